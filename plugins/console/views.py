"""What each page shows: plain values for the templates, from kept counts and index look-ups alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

import pyarrow as pa
from fastapi import Query
from pydantic import BaseModel, Field, field_validator

from include.modes import MODES
from include.normalize.bins import PACE_EDGES, VOLUME_EDGES_DB
from include.quality.rules import RULES, Answer
from include.schema import AGE_GROUPS, EMOTIONS, GENDERS, LABEL_COLUMNS
from include.settings import Settings
from include.sources import RECIPES
from include.storage import console
from include.storage.console import Row, SampleFilter, State
from include.storage.staging import latest_loads, list_unmapped
from include.storage.warehouse import Warehouse

SIFT_SOURCES = tuple(name for name, recipe in RECIPES.items() if recipe.task == "sift")
GENERATE = "generate_and_publish"
PAGE_SIZE = 25
STATES: dict[State, str] = {"accepted": "accepted", "pending": "pending", "given_up": "given up"}
HISTOGRAMS = {
    "pace": ("Speaking rate", "phonetic symbols per second", PACE_EDGES, ("slow", "normal", "fast")),
    "volume": ("Loudness", "dB", VOLUME_EDGES_DB, ("quiet", "no label", "loud")),
}
MEASURES = {
    "words_mean": "Words, mean",
    "words_p95": "Words, 95th percentile",
    "duplicates": "Duplicates (share of answers that an earlier one says as well)",
    "same_opening": "Same opening (share of the most frequent first three words)",
    "distinct_1": "Distinct words",
    "distinct_2": "Distinct pairs of words",
    "distinct_3": "Distinct triples of words",
    "emotion_named": "Emotion named (share of clips with an emotion)",
    "emotion_agrees": "Emotion agrees with the label",
}
UNSHARED = ("words_mean", "words_p95", "answers")
"""Measures that are no shares."""


class SampleQuery(BaseModel):
    """What a reader looks for, as it stands in the address: a link keeps its filters."""

    source: str | None = None
    mode: str | None = None
    emotion: str | None = None
    gender: str | None = None
    age: str | None = None
    verdict: str | None = None
    q: Annotated[str | None, Field(max_length=200)] = None
    after: Annotated[str | None, Field(max_length=500)] = None
    before: Annotated[str | None, Field(max_length=500)] = None

    @field_validator("*", mode="before")
    @classmethod
    def _blank_is_any(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("must not hold NUL")
        return (value.strip() or None) if isinstance(value, str) else value

    @field_validator("source", "mode", "emotion", "gender", "age", "verdict")
    @classmethod
    def _known(cls, value: str | None, info: Any) -> str | None:
        known = OPTIONS[info.field_name]
        if value is not None and value not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return value

    def filters(self) -> dict[str, str]:
        """The filters that are set, without the place in the list."""
        return self.model_dump(exclude_none=True, include=set(OPTIONS) | {"q"})

    def link(self, **more: str | None) -> str:
        """The query string of these filters and more; one that is None is left out."""
        merged = {**self.filters(), **more}
        return urlencode({name: value for name, value in merged.items() if value is not None})

    def wanted(self, settings: Settings) -> SampleFilter:
        """What the warehouse is asked."""
        return SampleFilter(
            source=self.source,
            modes=(self.mode,) if self.mode else tuple(MODES),
            emotion=self.emotion,
            gender=self.gender,
            age=self.age,
            words=self.q,
            state=next((state for state in STATES if state == self.verdict), None),
            rule=self.verdict if self.verdict in RULES else None,
            max_attempts=settings.max_attempts,
            prompted=SIFT_SOURCES,
        )


class SampleInQuery(SampleQuery):
    """One sample, among those that a reader looks for."""

    sample_id: Annotated[str, Field(max_length=500)]


OPTIONS: dict[str, tuple[str, ...]] = {
    "source": tuple(RECIPES),
    "mode": tuple(MODES),
    "emotion": EMOTIONS,
    "gender": GENDERS,
    "age": AGE_GROUPS,
    "verdict": (*STATES, *RULES),
}
"""The values that each filter may have."""

SampleQueryParams = Annotated[SampleQuery, Query()]
SampleInQueryParams = Annotated[SampleInQuery, Query()]


def coverage(warehouse: Warehouse, settings: Settings) -> dict[str, Any]:
    """Sources by modes, the last load of each source, and the shards that run."""
    counts = {(row["source"], row["mode"]): row for row in console.kept_coverage(warehouse, settings.max_attempts)}
    loads = latest_loads(warehouse)
    sources: list[dict[str, Any]] = []
    for name, recipe in RECIPES.items():
        load = loads.get(name)
        cells = [{"mode": mode, **counts[name, mode]} for mode in MODES if (name, mode) in counts]
        pending = [cell["mode"] for cell in cells if cell["pending"]]
        sources.append(
            {
                "recipe": recipe,
                "load": load,
                "samples": load and load["staged"] + load["changed"] + load["unchanged"],
                "rejected": sum(load["rejected"].values()) if load else 0,
                "cells": cells,
                "conf": json.dumps({"sources": [name], "modes": pending}) if pending else None,
            }
        )
    shown = [cell for source in sources for cell in source["cells"]]
    totals = {name: sum(cell[name] for cell in shown) for name in ("staged", "accepted", "pending", "given_up")}
    # What is staged comes first: whoever looks wants to see what is there.
    sources.sort(key=lambda source: (not source["load"], source["recipe"].task != "sift"))
    return {
        "sources": sources,
        "totals": totals,
        "counted_at": min((cell["counted_at"] for cell in shown), default=None),
        "shards": console.running_shards(warehouse),
        "modes": MODES,
        "generate": GENERATE,
    }


def run(warehouse: Warehouse, dag_id: str, run_id: str) -> dict[str, Any]:
    """What one run of a DAG did to the data."""
    source = dag_id.removeprefix("ingest_")
    verdicts: dict[str, list[Row]] = {}
    for row in console.verdicts_of_run(warehouse, run_id) if dag_id == GENERATE else []:
        verdicts.setdefault(row["mode"], []).append(row)
    return {
        "dag_id": dag_id,
        "run_id": run_id,
        "recipe": RECIPES.get(source),
        "shards": console.shards_of_run(warehouse, run_id) if dag_id == GENERATE else [],
        "verdicts": {mode: verdict_table(rows) for mode, rows in verdicts.items()},
        "loads": console.loads_of_run(warehouse, source, run_id) if source in RECIPES else [],
        "generate": GENERATE,
        "modes": MODES,
    }


def samples(warehouse: Warehouse, settings: Settings, query: SampleQuery) -> dict[str, Any]:
    """One page of samples, with the state of their prompts."""
    backwards = query.before is not None
    at = query.before or query.after
    found = console.find_samples(warehouse, query.wanted(settings), key=_key(at), backwards=backwards, most=PAGE_SIZE)
    states = console.states_of_samples(warehouse, [(row["source"], row["sample_id"]) for row in found.rows])
    rows = []
    for row in found.rows:
        by_mode = states.get((row["source"], row["sample_id"]), {})
        modes = MODES if row["source"] in SIFT_SOURCES else ()
        rows.append({**row, "states": {mode: _state(by_mode.get(mode), settings.max_attempts) for mode in modes}})
    first, last = (rows[0]["sample_id"], rows[-1]["sample_id"]) if rows else (at, at)
    more = found.more[1] if found.more else None
    # Where a page was reached from is where the way back leads.
    before, after = (more, last) if backwards else (first if at else None, more)
    return {
        "query": query,
        "options": OPTIONS,
        "states": STATES,
        "recipes": RECIPES,
        "rows": rows,
        "previous": query.link(before=before) if before else None,
        "following": query.link(after=after) if after else None,
        "searched": found.searched,
        "max_attempts": settings.max_attempts,
    }


def sample(warehouse: Warehouse, settings: Settings, query: SampleInQuery) -> dict[str, Any] | None:
    """One sample with all that is known of it; None if there is none."""
    sample_id = query.sample_id
    source = sample_id.partition("/")[0]
    if source not in RECIPES:
        return None
    found = console.find_sample(warehouse, source, sample_id)
    if found is None:
        return None
    recipe = RECIPES[source]
    previous, following = console.neighbours(warehouse, query.wanted(settings), (source, sample_id))
    texts = console.texts_of_sample(warehouse, source, sample_id)
    return {
        "query": query,
        "sample": found,
        "recipe": recipe,
        "labels": [_label(found, recipe, field) for field in LABEL_COLUMNS if field in recipe.fields],
        "modes": _modes(found, texts, settings) if recipe.task == "sift" else [],
        "older": [text for text in texts if not text["current"]],
        "previous": previous and query.link(sample_id=previous[1]),
        "following": following and query.link(sample_id=following[1]),
    }


def labels(warehouse: Warehouse, source: str | None) -> dict[str, Any]:
    """A source's labels before and after normalisation, and its measurements."""
    loads = latest_loads(warehouse)
    staged = [name for name in RECIPES if name in loads]
    chosen = source if source in staged else next(iter(staged), None)
    counts = console.list_label_counts(warehouse, chosen) if chosen else {}
    bars = console.list_histograms(warehouse, chosen) if chosen else {}
    return {
        "staged": {name: RECIPES[name] for name in staged},
        "chosen": chosen,
        "recipe": RECIPES[chosen] if chosen else None,
        "load": loads.get(chosen) if chosen else None,
        "fields": {field: _label_table(counts[field]) for field in LABEL_COLUMNS if field in counts},
        "histograms": {field: _histogram(field, bars[field]) for field in HISTOGRAMS if field in bars},
        "unmapped": [row for row in list_unmapped(warehouse) if row["source"] == chosen],
    }


def quality(warehouse: Warehouse, source: str | None) -> dict[str, Any]:
    """Verdicts and measures over the newest reports, by mode."""
    chosen = source if source in SIFT_SOURCES else None
    verdicts = [row for row in console.verdict_history(warehouse) if chosen in (None, row["source"])]
    measures = console.quality_history(warehouse)
    modes = []
    for name, mode in MODES.items():
        of_mode = [row for row in verdicts if row["mode"] == name]
        runs = list(dict.fromkeys(row["run_id"] for row in of_mode))
        history = []
        for run_id in runs:
            rows = [row for row in of_mode if row["run_id"] == run_id]
            accepted = sum(row["texts"] for row in rows if row["verdict"] == "accepted")
            total = sum(row["texts"] for row in rows)
            history.append(
                {"run_id": run_id, "accepted": accepted, "rejected": total - accepted, "at": rows[0]["counted_at"]}
            )
        newest = [row for row in of_mode if runs and row["run_id"] == runs[-1]]
        series = _series([row for row in measures if row["mode"] == name])
        modes.append({"mode": mode, "history": history, "table": verdict_table(newest), "series": series})
    return {"modes": modes, "chosen": chosen, "recipes": {name: RECIPES[name] for name in SIFT_SOURCES}, "rules": RULES}


def releases(warehouse: Warehouse) -> dict[str, Any]:
    """The newest releases, each with what changed since the one before it on the same target."""
    described = [_release(row) for row in console.released_manifests(warehouse)]
    for number, release in enumerate(described):
        before = next((other for other in described[number + 1 :] if other["target"] == release["target"]), None)
        release["before"] = before and before["release_id"]
        release["changes"] = _changes(before, release) if before else []
    return {"releases": described, "recipes": RECIPES}


def verdict_table(rows: Sequence[Row]) -> dict[str, Any]:
    """Verdicts by source: what is accepted comes first, then the rule that rejected most."""
    totals: dict[str, int] = {}
    cells: dict[tuple[str, str], int] = {}
    for row in rows:
        totals[row["verdict"]] = totals.get(row["verdict"], 0) + row["texts"]
        cells[row["verdict"], row["source"]] = row["texts"]
    order = sorted(totals, key=lambda verdict: (verdict != "accepted", -totals[verdict], verdict))
    return {
        "sources": sorted({row["source"] for row in rows}),
        "verdicts": {verdict: totals[verdict] for verdict in order},
        "cells": cells,
        "total": sum(totals.values()),
    }


def _key(sample_id: str | None) -> tuple[str, str] | None:
    return (sample_id.partition("/")[0], sample_id) if sample_id else None


def _state(row: Mapping[str, Any] | None, max_attempts: int) -> str:
    if row is None:
        return "pending"
    if row["accepted"]:
        return "accepted"
    return "given_up" if row["tries"] >= max_attempts else "pending"


def _label(sample: Row, recipe: Any, field: str) -> dict[str, Any]:
    columns = recipe.fields[field].columns
    return {"field": field, "raw": {column: sample["raw"].get(column) for column in columns}, "value": sample[field]}


def _modes(sample: Row, texts: Sequence[Row], settings: Settings) -> list[dict[str, Any]]:
    """Each mode's prompt as it is sent, the answer that stands, the attempts before it, and every rule's verdict."""
    columns = {name: pa.array([sample[name]], pa.string()) for name in ("text", *LABEL_COLUMNS)}
    table = pa.table(columns)
    labels = {name: sample[name] for name in LABEL_COLUMNS}
    described = []
    for name, mode in MODES.items():
        current = [text for text in texts if text["mode"] == name and text["current"]]
        answer = next((text for text in current if text["verdict"] == "accepted"), None)
        attempts = [text for text in current if text is not answer]
        tries = max((text["attempt"] for text in attempts), default=0)
        judged = answer or next(iter(attempts), None)
        described.append(
            {
                "mode": mode,
                "user_message": mode.build_user_messages(table)[0].as_py(),
                "state": _state({"accepted": answer is not None, "tries": tries}, settings.max_attempts),
                "answer": answer,
                "attempts": attempts,
                "rules": _rules(name, judged, sample["text"], labels, mode.system_prompt, settings) if judged else [],
                "inputs": judged["inputs"] if judged else None,
            }
        )
    return described


def _rules(
    mode: str, text: Row, transcript: str, labels: Mapping[str, str | None], system_prompt: str, settings: Settings
) -> list[dict[str, Any]]:
    answer = Answer(mode, text["response"], text["finish_reason"], transcript, labels, system_prompt)
    found = []
    for rule in RULES.values():
        if rule.applies_to(mode):
            severity = rule.severity_under(settings.rule_severities)
            doc = (rule.broken.__doc__ or "").strip().partition("\n")[0]
            found.append({"name": rule.name, "severity": severity, "broken": rule.broken(answer), "what": doc})
    return found


def _label_table(rows: Sequence[Row]) -> dict[str, Any]:
    totals: dict[str | None, int] = {}
    for row in rows:
        totals[row["value"]] = totals.get(row["value"], 0) + row["rows"]
    return {
        "pairs": rows,
        "values": dict(sorted(totals.items(), key=lambda item: (item[0] is None, -item[1]))),
        "total": sum(totals.values()),
    }


def _histogram(field: str, bars: Sequence[Row]) -> dict[str, Any]:
    title, unit, edges, names = HISTOGRAMS[field]
    low = min(bars[0]["low"], edges[0])
    high = max(bars[-1]["high"], edges[1])
    return {"title": title, "unit": unit, "edges": edges, "names": names, "bars": bars, "low": low, "high": high}


def _series(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each measure's values over the reports, those with a title first, then the rules that warn."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["measure"], []).append(row["value"])
    named = [name for name in MEASURES if name in values]
    warned = sorted(name for name in values if name.startswith("warn_"))
    titles = {**MEASURES, **{name: f"Warns: {name.removeprefix('warn_')}" for name in warned}}
    return [
        {"name": name, "title": titles[name], "values": values[name], "is_share": name not in UNSHARED}
        for name in (*named, *warned)
    ]


def _release(row: Row) -> dict[str, Any]:
    """A release as its manifest describes it; older and newer manifests lack some of this."""
    manifest = row["manifest"] if isinstance(row["manifest"], dict) else {}
    sources = {name: _part(part) for name, part in sorted(manifest.get("sources", {}).items())}
    return {
        **{name: row[name] for name in ("release_id", "created_at", "target", "uri", "commit")},
        "sources": sources,
        "rows": sum(part["rows"] for part in sources.values()),
        "clips": sum(part["clips"] for part in sources.values()),
        "bytes": sum(part["bytes"] for part in sources.values()),
        "files": sum(part["files"] for part in sources.values()),
        "left_out": sum(sum(part["left_out"].values()) for part in sources.values()),
        "generator": manifest.get("generator") or {},
        "modes": manifest.get("modes") or {},
        "gates": manifest.get("gates") or [],
        "restricted": [name for name, part in sources.items() if not part["redistributable"]],
    }


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """One source's part: its files lie in splits, or, as releases had it at first, in the part itself."""
    splits = part.get("splits") or {"train": part}
    by_mode: dict[str, int] = {}
    for split in splits.values():
        for mode, rows in (split.get("rows_by_mode") or {}).items():
            by_mode[mode] = by_mode.get(mode, 0) + rows
    files = [file for split in splits.values() for file in split.get("files") or ()]
    return {
        "revision": part.get("revision", ""),
        "licence": part.get("licence", ""),
        "redistributable": part.get("redistributable", False),
        "modes": part.get("modes") or {},
        "by_mode": dict(sorted(by_mode.items())),
        "rows": sum(by_mode.values()),
        "clips": sum(split.get("clips") or 0 for split in splits.values()),
        "heldout": (splits["heldout"].get("clips") or 0) if "heldout" in splits else 0,
        "left_out": part.get("left_out") or {},
        "files": len(files),
        "bytes": sum(file.get("bytes") or 0 for file in files),
    }


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Say in words what a release has that the one before had not."""
    found = []
    old, new = before["sources"], after["sources"]
    for name in sorted({*old, *new}):
        if name not in old:
            found.append(f"{name} is new: {new[name]['rows']:,} rows")
        elif name not in new:
            found.append(f"{name} is no longer there ({old[name]['rows']:,} rows)")
        else:
            parts = []
            if difference := new[name]["rows"] - old[name]["rows"]:
                parts.append(f"{difference:+,} rows")
            if new[name]["revision"] != old[name]["revision"]:
                parts.append(f"revision {old[name]['revision'][:12]} to {new[name]['revision'][:12]}")
            rewritten = [mode for mode, hashed in new[name]["modes"].items() if old[name]["modes"].get(mode) != hashed]
            if rewritten:
                parts.append(f"{', '.join(rewritten)} written anew by another prompt or model")
            if new[name]["licence"] != old[name]["licence"]:
                parts.append(f"licence {old[name]['licence']} to {new[name]['licence']}")
            if parts:
                found.append(f"{name}: {', '.join(parts)}")
    for key in sorted({*before["generator"], *after["generator"]}):
        was, now = before["generator"].get(key), after["generator"].get(key)
        if was != now and not isinstance(now, dict):
            found.append(f"generator's {key}: {str(was)[:60]} to {str(now)[:60]}")
    return found
