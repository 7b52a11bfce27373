"""The steps of an ingest run: resolve a revision, load groups of its files, merge them, report.

Each step is one task. What passes between them is small and JSON: where the rows are, never the rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from include.schema import LABEL_COLUMNS, BadInputError, StepReport, merge_counts
from include.sources import RECIPES
from include.sources.corpus import Corpus, CorpusFile, NoRevisionYetError, group_files, resolve_corpus
from include.sources.reader import choose_row_groups, read_metadata
from include.sources.recipe import SourceRecipe
from include.storage.console import LabelColumn, count_coverage, count_labels, index_samples
from include.storage.staging import (
    IncomingLoad,
    OlderRevisionError,
    forget_abandoned_loads,
    label_distribution,
    latest_loads,
    merge_load,
    retires_too_many,
)
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)

# A field with free text in the wrong column must not flood XCom: the rest is counted together.
MOST_UNMAPPED = 200
LONGEST_SHOWN = 100  # characters of a label
# A class of a measurement that holds more than this share of a corpus says little; the report warns. Of a few rows it
# means nothing.
LOPSIDED = 0.8
FEWEST_TO_WARN = 20

# Histograms of the measurements behind a label: a bar's width, the lowest and the highest edge; phonetic symbols per
# second, and dB. Corpora publish few values beyond, which are counted in the outermost bars.
MEASURED = {"pace": (0.5, 0.0, 20.0), "volume": (2.0, -60.0, 0.0)}

LabelCounts = dict[str, dict[str, int]]
"""Canonical column -> published label -> rows."""


class NothingToLoadError(Exception):
    """There is no work for this run, and that is fine; the message says why."""


def resolve_revision(
    recipe: SourceRecipe,
    hub: str,
    warehouse: Warehouse,
    *,
    run_id: str,
    revision: str | None = None,
    not_after: datetime | None = None,
    max_rows: int | None = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Choose the revision to stage and split its files into groups to load in parallel.

    Args:
        recipe: The corpus.
        hub: Where corpora are read from.
        warehouse: Holds what is staged now.
        run_id: Identity of the run; a run that is cleared makes a load of its own each time.
        revision: Pin a revision; None follows the branch.
        not_after: Take the newest revision that is not younger.
        max_rows: Most rows to stage; None: all.
        force: Stage even what is staged already, an older revision than that, or one without many of its rows.

    Returns:
        At most 8 groups, each a JSON object that `load_group` takes.

    Raises:
        NothingToLoadError: If that revision is staged already, or a newer one is.
        SourceError: If the corpus cannot be read.
    """
    try:
        corpus = resolve_corpus(recipe, hub, revision=revision, not_after=not_after)
    except NoRevisionYetError as too_early:
        raise NothingToLoadError(str(too_early)) from too_early
    latest = latest_loads(warehouse, recipe.name).get(recipe.name)
    code_hash = normalising_code_hash(recipe, max_rows)
    if latest and not force:
        if latest["revision"] == corpus.revision and latest["code_hash"] == code_hash:
            raise NothingToLoadError(f"{recipe.name}: revision {corpus.revision[:12]} is staged already")
        _refuse_older(recipe, corpus, latest)
    if max_rows is not None:
        corpus = choose_row_groups(corpus, max_rows)
    forget_abandoned_loads(warehouse, recipe.name)
    load_id = f"{recipe.name}/{run_id}/{uuid4().hex[:8]}"
    groups = group_files(corpus.files)
    log.info("%s: revision %s, %d files in %d groups", recipe.name, corpus.revision, len(corpus.files), len(groups))
    return [
        {
            "load_id": load_id,
            "file_group": number,
            "code_hash": code_hash,
            "force": force,
            "corpus": {**asdict(corpus), "files": [asdict(file) for file in files]},
        }
        for number, files in enumerate(groups)
    ]


def load_group(recipe: SourceRecipe, group: dict[str, Any], warehouse: Warehouse) -> dict[str, Any]:
    """Normalise one group of files and copy its rows beside the samples, all or nothing.

    Returns:
        A JSON object for `merge_groups`: the group's identity, its StepReport, and the labels without a canonical form.
    """
    corpus = _corpus(group["corpus"])
    report = StepReport(f"load {recipe.name}, group {group['file_group']}")
    unmapped: LabelCounts = {}
    left_out: LabelCounts = {}
    incoming = IncomingLoad(group["load_id"])
    with warehouse.connection() as connection:
        incoming.prepare(connection, recipe.name)
        with connection.transaction():
            incoming.clear(connection, group["file_group"])
            for file in corpus.files:
                for batch in read_metadata(corpus, file, recipe):
                    staged = recipe.stage(batch)
                    incoming.append(connection, group["file_group"], staged.table)
                    reasons = staged.table.column("reject_reason").drop_null().value_counts().to_pylist()
                    rejected = {entry["values"]: entry["counts"] for entry in reasons}
                    report.read += len(batch)
                    report.written += len(batch) - sum(rejected.values())
                    report.skipped = merge_counts(report.skipped, rejected)
                    unmapped = _merged_labels(unmapped, staged.unmapped)
                    left_out = _merged_labels(left_out, staged.left_out)
                log.info("%s: %d rows read up to %s", recipe.name, report.read, file.path)
    return {**group, "report": asdict(report.check()), "unmapped": unmapped, "left_out": left_out}


def merge_groups(recipe: SourceRecipe, loads: Sequence[dict[str, Any]], warehouse: Warehouse) -> dict[str, Any]:
    """Merge the loaded groups into the samples, in one transaction.

    Returns:
        The row of `staging.loads`, as JSON, with the labels that have no canonical form.

    Raises:
        MergeRefusedError: If rows got lost, none came, too many were rejected, integer labels read wrong, or too many
            staged rows would be retired.
        NothingToLoadError: If a newer revision was staged meanwhile.
    """
    first = loads[0]
    unmapped = _merged_labels(*(load["unmapped"] for load in loads))
    try:
        load = merge_load(
            warehouse,
            load_id=first["load_id"],
            source=recipe.name,
            revision=first["corpus"]["revision"],
            published_at=first["corpus"]["published_at"],
            code_hash=first["code_hash"],
            rows_by_group={load["file_group"]: load["report"]["read"] for load in loads},
            unmapped=unmapped,
            max_reject_share=recipe.max_reject_share,
            largest_class=recipe.largest_class or {},
            force=first["force"],
        )
    except OlderRevisionError as overtaken:
        raise NothingToLoadError(str(overtaken)) from overtaken
    wanted = ("load_id", "source", "revision", "read", "staged", "unchanged", "changed", "moved", "retired", "rejected")
    merged = {
        **{name: load[name] for name in wanted},
        "unmapped": unmapped,
        "left_out": _merged_labels(*(load["left_out"] for load in loads)),
        "corpus_rows": first["corpus"]["rows"] or load["read"],
    }
    StepReport(
        f"merge {recipe.name}",
        read=merged["read"],
        written=merged["staged"] + merged["unchanged"] + merged["changed"],
        skipped=merged["rejected"],
    ).check()
    return merged


def row_limit(recipe: SourceRecipe, overrides: Mapping[str, int]) -> int | None:
    """Return the most rows to stage of a corpus: the setting's, else the recipe's; None: all.

    Raises:
        BadInputError: If the setting names a source that is not there, or a negative number.
    """
    for name, rows in overrides.items():
        if name not in RECIPES or rows < 0:
            raise BadInputError(
                f"SIFT_MAX_ROWS holds {name!r}: {rows}; give rows (0: all) by source, of {', '.join(RECIPES)}"
            )
    return overrides.get(recipe.name, recipe.max_rows) or None


def has_changes(load: dict[str, Any]) -> bool:
    """Whether a merged load changed anything that a release shows."""
    return any(load[name] for name in ("staged", "changed", "moved", "retired"))


def summarise_load(load: dict[str, Any]) -> str:
    """Say in one sentence what a merged load brought, for the run's note."""
    counts = {"new": load["staged"], "changed": load["changed"], "moved": load["moved"], "retired": load["retired"]}
    counts["rejected"] = sum(load["rejected"].values())
    said = ", ".join(f"{rows:,} {what}" for what, rows in counts.items() if rows)
    unmapped = ", ".join(f"{len(labels)} of {column}" for column, labels in load["unmapped"].items())
    return f"Staged {load['source']} at revision {load['revision'][:12]}: {load['read']:,} rows read, {said}." + (
        f" Labels that no rule knows: {unmapped}." if unmapped else ""
    )


def describe_load(recipe: SourceRecipe, load: dict[str, Any], warehouse: Warehouse) -> str:
    """Write the report of a merged load: what came in, what was rejected, labels, and what deserves a look."""
    lines = [
        f"{recipe.name}: revision {load['revision'][:12]}",
        "  {read} rows read = {staged} new + {changed} changed + {unchanged} unchanged ({moved} of them moved) "
        "+ {rejected_rows} rejected; {retired} retired".format(**load, rejected_rows=sum(load["rejected"].values())),
    ]
    if load["corpus_rows"] != load["read"]:
        lines.append(f"  chosen by hash from {load['corpus_rows']} rows")
    lines += [f"  rejected: {rows} x {reason}" for reason, rows in load["rejected"].items()]
    distribution = label_distribution(warehouse, [recipe.name]).get(recipe.name, {})
    usable = load["read"] - sum(load["rejected"].values())
    for column, labels in distribution.items():
        shown = [f"{label} {rows}" for label, rows in list(labels.items())[:12]]
        if len(labels) > 12:
            shown.append(f"{len(labels) - 12} more")
        if missing := usable - sum(labels.values()):
            shown.append(f"none {missing}")
        lines.append(f"  {column}: {', '.join(shown)}")
    lines += [
        f"  {column}: outside the vocabulary, kept in `raw` only: {_listed(labels)}"
        for column, labels in load["left_out"].items()
    ]
    lines += [f"  WARNING {warning}" for warning in _warnings(recipe, load, distribution, usable)]
    return "\n".join(lines)


def count_samples(recipe: SourceRecipe, modes: Sequence[str], max_attempts: int, warehouse: Warehouse) -> None:
    """Index and count what the console shows of a source: labels before and after, measurements, prompts by state."""
    index_samples(warehouse, recipe.name)
    columns = [
        LabelColumn(field, recipe.fields[field].columns[0], *MEASURED.get(field, ()))
        for field in LABEL_COLUMNS
        if field in recipe.fields
    ]
    count_labels(warehouse, recipe.name, columns)
    if recipe.task == "sift":
        count_coverage(warehouse, [recipe.name], modes, max_attempts)


def _warnings(
    recipe: SourceRecipe, load: dict[str, Any], distribution: dict[str, dict[str, int]], usable: int
) -> Iterator[str]:
    for column, labels in load["unmapped"].items():
        yield f"{column}: no rule knows {_listed(labels)}; these rows have no {column}"
    kept = load["unchanged"] + load["changed"]
    if retires_too_many(load["retired"], load["retired"] + kept):
        yield (
            f"{load['retired']} rows that were staged are not in this load and are retired; {kept} are still there. "
            "They passed because of `force`, or because the code that normalises the corpus, or its cap, has changed"
        )
    if recipe.expected_rows not in (None, load["corpus_rows"]):
        yield f"the corpus holds {load['corpus_rows']} rows; its card says {recipe.expected_rows}"
    for column in ("pace", "volume"):
        for label, rows in distribution.get(column, {}).items():
            if usable >= FEWEST_TO_WARN and rows > LOPSIDED * usable:
                yield (
                    f"{column}: {rows} of {usable} rows are {label!r}, so it hardly tells them apart. The thresholds "
                    "are the specification's; see docs/decisions/0003-labels.md"
                )


def _listed(labels: dict[str, int]) -> str:
    return ", ".join(f"{label!r} {rows}" for label, rows in labels.items())


def normalising_code_hash(recipe: SourceRecipe, max_rows: int | None = None) -> str:
    """Identity of what turns this corpus's rows into samples: code, and how many of them."""
    here = Path(__file__).parent
    files = [*sorted((here / "normalize").glob("*.py")), here / "schema.py"]
    files += [here / "sources" / f"{name}.py" for name in ("corpus", "reader", "recipe", recipe.name)]
    digest = hashlib.sha256(f"{max_rows}\n".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _refuse_older(recipe: SourceRecipe, corpus: Corpus, latest: dict[str, Any]) -> None:
    newest = latest["published_at"]
    if newest and corpus.published_at and datetime.fromisoformat(corpus.published_at) < newest:
        raise NothingToLoadError(
            f"{recipe.name}: revision {corpus.revision[:12]} of {corpus.published_at} is older than what is "
            f"staged ({latest['revision'][:12]} of {newest.isoformat()}); the Param `force` goes back in time"
        )


def _corpus(fields: dict[str, Any]) -> Corpus:
    files = (
        CorpusFile(**{**file, "row_groups": tuple(file["row_groups"]) if file["row_groups"] is not None else None})
        for file in fields["files"]
    )
    return Corpus(**{**fields, "files": tuple(files)})


def _merged_labels(*counts: LabelCounts) -> LabelCounts:
    """Add up labels by column, the most frequent first."""
    columns = sorted({column for count in counts for column in count})
    return {column: _most_frequent(merge_counts(*(count.get(column, {}) for count in counts))) for column in columns}


def _most_frequent(counts: dict[str, int]) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = merge_counts(*({_shortened(label): rows} for label, rows in ordered[:MOST_UNMAPPED]))
    rest = sum(rows for _, rows in ordered[MOST_UNMAPPED:])
    return {**kept, "(others)": kept.get("(others)", 0) + rest} if rest else kept


def _shortened(label: str) -> str:
    """A label that is short enough to be shown, and another one for every label: two would be counted as one."""
    if len(label) <= LONGEST_SHOWN:
        return label
    end = f"… ({hashlib.sha256(label.encode()).hexdigest()[:8]})"
    return label[: LONGEST_SHOWN - len(end)] + end
