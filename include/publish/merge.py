"""Merge what was generated with what was staged into a release, when it would differ from the target's latest one.

A source is in a release when it is complete: every staged sample and mode is accepted or given up; one whose task needs
no language model is complete as soon as it is staged. One that is not keeps its part of the target's latest release, or
waits for its first; so does one that this warehouse never staged. None leaves the dataset unless somebody says so. The
release is built and verified on this machine; `include.publish.promotion` makes it public.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from include.publish import gates
from include.publish.guards import Selection, check_licences, check_overwrite
from include.publish.manifest import Manifest, ReleaseError
from include.publish.mirror import mirror_latest
from include.publish.parquet import WRITER_VERSION, AudioReader
from include.publish.promotion import settle, summary
from include.publish.release import (
    Release,
    ReleasePlan,
    SourcePlan,
    ask_for_review,
    awaits_review,
    build_aside,
    clear_review,
    needs_release,
)
from include.publish.targets import Target, canonical_uri, latest_release
from include.settings import Settings
from include.sources import RECIPES
from include.sources.corpus import resolve_corpus
from include.sources.reader import audio_reader
from include.storage.generation import count_verdicts, coverage, previous_quality
from include.storage.releases import (
    SourceChangedError,
    SourceContents,
    SourceQuery,
    is_recorded,
    mode_inputs,
    published_rows,
    source_contents,
    staged_files,
)
from include.storage.staging import label_distribution, latest_loads, list_unmapped
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Content:
    """What a release would hold now.

    Attributes:
        complete: Complete source -> what it holds.
        waiting: Sources that are not complete.
        unstaged: Sources of the latest release that this warehouse never staged: it is new, or not the only one.
        gone: Source of the latest release of which nothing is left -> why.
        kept: Sources of the first two kinds that have a part in the latest release, with its fingerprint.
        coverage: Staged and given-up samples of the complete sources, by source and mode.
    """

    complete: dict[str, SourceContents]
    waiting: list[str]
    unstaged: list[str]
    gone: dict[str, str]
    kept: dict[str, str]
    coverage: list[dict[str, Any]]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Source -> fingerprint, of all that would be in it."""
        return {name: contents.fingerprint for name, contents in self.complete.items()} | self.kept


def check_publishing(
    warehouse: Warehouse, settings: Settings, params: Mapping[str, Any], target: Target | None
) -> None:
    """Refuse what would not be published in the end, before any work is done for it.

    Not another model: what it writes is wanted, and when all is written somebody lets it pass (`force`).

    Args:
        warehouse: Knows what is staged.
        settings: Name the target that is everybody's.
        params: Of the run.
        target: Of the run; None if it does not publish.

    Raises:
        BadInputError: See `include.publish.guards`.
    """
    if target is None or not params["publish"]:
        return
    latest = latest_release(target, force=params["force"])
    selection = Selection.of(params, latest)
    check_licences(target, [name for name in latest_loads(warehouse) if name in RECIPES and selection.takes(name)])
    check_overwrite(
        target,
        latest,
        selection.narrowed,
        None,
        default=canonical_uri(settings.target, settings),
        force=params["force"],
    )


def has_news(warehouse: Warehouse, settings: Settings, params: Mapping[str, Any], target: Target | None) -> bool:
    """Whether `merge_release` would make a release if it were called now, or finish one."""
    if target is None or not params["publish"]:
        return False
    manifest = latest_release(target, force=params["force"])
    if manifest is not None and not is_recorded(warehouse, target.uri, manifest.release_id):
        return True  # the run that made it died before it could say so
    content = _content(warehouse, settings, Selection.of(params, manifest), manifest)
    return bool(content.gone or content.fingerprints) and needs_release(manifest, content.fingerprints)


def merge_release(
    warehouse: Warehouse, settings: Settings, params: Mapping[str, Any], target: Target | None
) -> dict[str, Any] | None:
    """Build and verify a release aside, if it would differ from the target's latest one.

    Returns:
        What the release is, as JSON: `release_id`, `review` (whether it needs approval), `summary` (Markdown), rows,
        and so on; None when there is nothing new to publish, or this run must not.

    Raises:
        BadInputError: If a guard refuses it.
        ReleaseError: If the latest release cannot be read, a gate fails, nothing is left of a source of the latest
            release, a corpus is no longer what was staged, or the release does not read back as planned. The latest
            release is as it was.
        SourceChangedError: If a source was ingested or written meanwhile; nothing is left of the release.
    """
    if target is None or not params["publish"]:
        log.info("this run was asked not to publish")
        return None
    manifest = latest_release(target, force=params["force"])
    selection = Selection.of(params, manifest)
    if manifest is not None:
        settle(warehouse, target, manifest)
    content = _content(warehouse, settings, selection, manifest)
    if content.waiting:
        log.warning("not complete yet, so left as they were: %s", ", ".join(content.waiting))
    if content.unstaged:
        log.warning("not staged in this warehouse, so left as they were: %s", ", ".join(content.unstaged))
    if not params["force"]:
        _refuse_to_drop(target, content.gone)
    if not content.fingerprints:
        log.info("no source is complete yet")
        return None
    if manifest is not None and not needs_release(manifest, content.fingerprints):
        log.info("release %s of %s holds just this already", manifest.release_id, target.uri)
        return None
    plan = _plan(warehouse, settings, selection, content, manifest)
    check_licences(target, plan.sources)
    check_overwrite(
        target,
        manifest,
        selection.narrowed,
        plan.generator.get("model"),
        default=canonical_uri(settings.target, settings),
        force=params["force"],
    )
    if manifest is not None:
        mirror_latest(target, manifest, content.fingerprints)
    rows = _rows_of(warehouse, selection, content)
    release = build_aside(target.staging, plan, rows, _audio_of(warehouse, settings))
    if params["review"]:
        ask_for_review(release.path)
    elif params["force"]:
        clear_review(release.path)
    return _described(target, release, manifest, content)


def _refuse_to_drop(target: Target, gone: Mapping[str, str]) -> None:
    """Refuse a release that would lack sources of the one before, though nobody asked for that."""
    if gone:
        named = ", ".join(f"{name} ({why})" for name, why in gone.items())
        raise ReleaseError(
            f"{target.uri}: its latest release holds sources that the next one could not: {named}. Bring them back, or "
            f"let them go: leave_out={json.dumps(list(gone))}, or force=true"
        )


def _described(target: Target, release: Release, before: Manifest | None, content: _Content) -> dict[str, Any]:
    manifest = release.manifest
    return {
        "release_id": manifest.release_id,
        "target": target.uri,
        "aside": str(release.path),
        "review": awaits_review(release.path),
        "summary": summary(target, manifest, before, content.waiting, content.unstaged),
        "rows": {name: source.rows_by_mode for name, source in manifest.sources.items()},
        "left_out": {name: source.left_out for name, source in manifest.sources.items() if source.left_out},
        "reused": list(release.reused),
        "waiting": content.waiting,
        "unstaged": content.unstaged,
    }


def _content(warehouse: Warehouse, settings: Settings, selection: Selection, manifest: Manifest | None) -> _Content:
    """Find what is complete, and what of the latest release stays."""
    sources = [name for name in latest_loads(warehouse) if name in RECIPES and selection.takes(name)]
    generated = [name for name in sources if RECIPES[name].task == "sift"]
    covered = coverage(warehouse, generated, selection.modes, settings.max_attempts, selection.max_samples)
    pending = {row["source"] for row in covered if row["pending"]}
    waiting = [name for name in generated if name in pending]
    found = {name: source_contents(warehouse, _query(name, selection)) for name in sources if name not in pending}
    complete = {name: contents for name, contents in found.items() if contents}
    changing = sorted({row["source"] for row in covered if not row["pending"] and _is_other(row, found)})
    if changing:  # counted, then read: an ingest in between would pass for a complete source
        raise SourceChangedError(
            f"{', '.join(changing)}: changed while their rows were counted; the next try counts anew"
        )
    published = manifest.fingerprints if manifest else {}
    missing = [name for name in published if selection.takes(name) and name not in (*complete, *waiting)]
    unstaged = [name for name in missing if name in RECIPES and name not in sources]
    gone = {
        name: "staged here, but no accepted row is left" if name in RECIPES else "no recipe has that name"
        for name in missing
        if name not in unstaged
    }
    return _Content(
        complete=complete,
        waiting=waiting,
        unstaged=unstaged,
        gone=gone,
        kept={name: published[name] for name in (*waiting, *unstaged) if name in published},
        coverage=[row for row in covered if row["source"] not in pending],
    )


def _is_other(counted: Mapping[str, Any], found: Mapping[str, SourceContents | None]) -> bool:
    """Whether the accepted rows of a source and mode are not as many as were counted; a source that waits has none."""
    if counted["source"] not in found:
        return False
    contents = found[counted["source"]]
    rows = sum(split.get(counted["mode"], 0) for split in contents.rows.values()) if contents else 0
    return rows != int(counted["accepted"])


def _query(source: str, selection: Selection) -> SourceQuery:
    recipe = RECIPES[source]
    return SourceQuery(
        source=source,
        task=recipe.task,
        modes=selection.modes,
        held_out_speakers=recipe.held_out_speakers,
        max_samples=selection.max_samples,
    )


def _plan(
    warehouse: Warehouse,
    settings: Settings,
    selection: Selection,
    content: _Content,
    latest: Manifest | None,
) -> ReleasePlan:
    """Say what the release is to hold, besides its rows."""
    loads = latest_loads(warehouse)
    release_id, created_at = _identity(content.fingerprints, selection.narrowed)
    hashes = {
        name: {mode: _only(release_id, name, mode, found) for mode, found in contents.mode_hashes.items()}
        for name, contents in content.complete.items()
    }
    inputs = mode_inputs(warehouse, sorted({value for modes in hashes.values() for value in modes.values()}))
    sources = {}
    for name in sorted(content.fingerprints):
        if name in content.kept and latest:
            sources[name] = _kept_part(name, latest)
        else:
            sources[name] = _part(name, content.complete[name], hashes[name], inputs, loads[name]["revision"])
    # What the complete sources were written with; plan keeps them all in step.
    current = {mode: value for modes in hashes.values() for mode, value in modes.items()}
    described = next((inputs[value] for value in current.values()), None)
    if described is not None:
        generator = {name: value for name, value in described.items() if name not in ("mode", "system_prompt")}
        generator["run_seed"] = settings.run_seed
    else:  # nothing here was generated now; a part that is kept may have been
        generator, current = (dict(latest.generator), dict(latest.modes)) if latest and content.kept else ({}, {})
    read = {name: loads[name]["read"] for name in content.complete}
    complete = list(content.complete)
    verdicts = count_verdicts(warehouse, complete, selection.max_samples)
    return ReleasePlan(
        release_id=release_id,
        created_at=created_at,
        sources=sources,
        generator=generator,
        modes=current,
        narrowed=selection.narrowed,
        built_on=latest.release_id if latest else None,
        verdicts={mode: counts for mode, counts in verdicts.items() if mode in selection.modes},
        quality=previous_quality(warehouse, ""),
        labels=label_distribution(warehouse, complete, selection.max_samples),
        gates=(
            *gates.one_generator(
                {name: source.modes for name, source in sources.items()},
                {name: source.generator for name, source in sources.items()},
                {name: "not staged" if name in content.unstaged else "not complete" for name in content.kept},
            ),
            *gates.given_up(content.coverage, settings.max_given_up),
            *gates.unmapped_labels(list_unmapped(warehouse), read, settings.max_unmapped),
        ),
    )


def _only(release_id: str, source: str, mode: str, hashes: tuple[str, ...]) -> str:
    """The one mode_hash of a source's responses in a mode."""
    if len(hashes) > 1:
        raise ReleaseError(
            f"release {release_id} is not promoted; {source} has responses of {len(hashes)} mode hashes in {mode}: "
            "plan did not bring all prompts in step; run generate_and_publish again"
        )
    return hashes[0]


def _part(
    name: str,
    contents: SourceContents,
    hashes: Mapping[str, str],
    inputs: Mapping[str, Mapping[str, Any]],
    revision: str,
) -> SourcePlan:
    """A complete source as it is now."""
    recipe = RECIPES[name]
    models = sorted({f"{inputs[value]['model']}@{inputs[value]['revision']}" for value in hashes.values()})
    return SourcePlan(
        fingerprint=contents.fingerprint,
        revision=revision,
        licence=recipe.licence,
        redistributable=recipe.redistributable,
        title=recipe.title,
        url=recipe.url,
        accepted=sum(sum(rows.values()) for rows in contents.rows.values()),
        task=recipe.task,
        citation=recipe.citation,
        modes=hashes,
        prompts=contents.prompts,
        generator=", ".join(models) or None,
    )


def _kept_part(name: str, latest: Manifest) -> SourcePlan:
    """A source that is not complete here, as the latest release holds it."""
    recipe, kept = RECIPES[name], latest.sources[name]
    return SourcePlan(
        fingerprint=kept.fingerprint,
        revision=kept.revision,
        licence=recipe.licence,
        redistributable=recipe.redistributable,
        title=recipe.title,
        url=recipe.url,
        accepted=kept.accepted,
        task=kept.task,
        citation=recipe.citation,
        modes=kept.modes,
        prompts=kept.prompts,
        generator=kept.generator,
    )


def _identity(fingerprints: Mapping[str, str], narrowed: str | None) -> tuple[str, datetime]:
    """Name a release by its time and content; by the latter `build_aside` finds one that was built already."""
    joined = "\n".join(f"{name} {fingerprints[name]}" for name in sorted(fingerprints))
    if narrowed:  # a trial is not the dataset, even if it happens to hold all of it
        joined += f"\n{narrowed}"
    content = hashlib.sha256(f"{WRITER_VERSION}\n{joined}".encode()).hexdigest()[:12]
    created_at = datetime.now(UTC).replace(microsecond=0)
    return f"{created_at:%Y%m%dT%H%M%SZ}-{content}", created_at


def _rows_of(warehouse: Warehouse, selection: Selection, content: _Content) -> Callable[[str], Iterator[pa.Table]]:
    def rows(source: str) -> Iterator[pa.Table]:
        if source in content.kept:
            lacks, first = ("staged", f"ingest_{source}, then ") if source in content.unstaged else ("complete", "")
            raise ReleaseError(
                f"{source} is not {lacks}, and its files in the latest release cannot be used again; "
                f"run {first}generate_and_publish until nothing of it is pending"
            )
        return published_rows(warehouse, _query(source, selection), content.complete[source].fingerprint)

    return rows


def _audio_of(warehouse: Warehouse, settings: Settings) -> Callable[[str], AudioReader]:
    loads = latest_loads(warehouse)

    def audio(source: str) -> AudioReader:
        corpus = resolve_corpus(RECIPES[source], settings.hub, revision=loads[source]["revision"])
        there = {file.path: file.blob_id for file in corpus.files}
        changed = [path for path, blob_id in staged_files(warehouse, source).items() if there.get(path) != blob_id]
        if changed and latest_loads(warehouse, source)[source]["load_id"] != loads[source]["load_id"]:
            raise SourceChangedError(f"{source} was ingested after its release was planned; the next try plans it anew")
        if changed:
            raise ReleaseError(
                f"{source}: {', '.join(sorted(changed)[:3])} changed since it was staged ({len(changed)} files in "
                f"all); run ingest_{source} first"
            )
        return audio_reader(corpus, RECIPES[source].audio_column)

    return audio
