"""Merge what was generated with what was staged into a release, when it would differ from the target's latest one.

A source is in a release when it is complete: every staged sample and mode is accepted or given up. One that is not
keeps its part of the target's latest release, or waits for its first. The release is built and verified on this
machine; `include.publish.promotion` makes it public.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from include.publish.guards import Selection, check_licences, check_overwrite
from include.publish.manifest import Manifest, ReleaseError, read_manifest
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
    needs_release,
    unpromoted,
)
from include.publish.targets import Target
from include.settings import Settings
from include.sources import RECIPES
from include.sources.reader import audio_reader, resolve_corpus
from include.storage.generation import count_verdicts, coverage
from include.storage.releases import (
    is_recorded,
    published_rows,
    released_modes,
    source_fingerprints,
    staged_files,
)
from include.storage.staging import label_distribution, latest_loads
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Content:
    """What a release would hold now.

    Attributes:
        fingerprints: Source -> fingerprint, of all that would be in it.
        waiting: Sources that are not complete.
    """

    fingerprints: dict[str, str]
    waiting: list[str]


def check_publishing(
    warehouse: Warehouse, settings: Settings, params: Mapping[str, Any], target: Target, model: str
) -> None:
    """Refuse what would not be published in the end, before any work is done for it.

    Args:
        warehouse: Knows what is staged.
        settings: Name the target that is everybody's.
        params: Of the run.
        target: Of the run.
        model: Name of the model that this run generates with.

    Raises:
        BadInputError: See `include.publish.guards`.
    """
    if not params["publish"]:
        return
    selection = Selection.of(params)
    check_licences(target, [name for name in latest_loads(warehouse) if name in RECIPES and selection.takes(name)])
    check_overwrite(target, target.latest(), selection, model, default=settings.target, force=params["force"])


def has_news(warehouse: Warehouse, settings: Settings, params: Mapping[str, Any], target: Target) -> bool:
    """Whether `merge_release` would make a release if it were called now, or finish one."""
    if not params["publish"]:
        return False
    manifest = target.latest()
    if manifest is not None and not is_recorded(warehouse, target.uri, manifest.release_id):
        return True  # the run that made it died before it could say so
    content = _content(warehouse, settings, Selection.of(params), manifest)
    return bool(content.fingerprints) and needs_release(manifest, content.fingerprints)


def merge_release(
    warehouse: Warehouse, settings: Settings, params: Mapping[str, Any], target: Target
) -> dict[str, Any] | None:
    """Build and verify a release aside, if it would differ from the target's latest one.

    Returns:
        What the release is, as JSON: `release_id`, `review` (whether it needs approval), `summary` (Markdown), rows,
        and so on; None when there is nothing new to publish, or this run must not.

    Raises:
        BadInputError: If a guard refuses it.
        ReleaseError: If a corpus is no longer what was staged, or the release does not read back as planned.
    """
    if not params["publish"]:
        log.info("this run was asked not to publish")
        return None
    selection = Selection.of(params)
    manifest = target.latest()
    content = _content(warehouse, settings, selection, manifest)
    if content.waiting:
        log.warning("not complete yet, so left as they were: %s", ", ".join(content.waiting))
    if not content.fingerprints:
        log.info("no source is complete yet")
        return None
    if manifest is not None and not needs_release(manifest, content.fingerprints):
        settle(warehouse, target, manifest)
        log.info("release %s of %s holds just this already", manifest.release_id, target.uri)
        return None
    plan = _plan(warehouse, settings, selection, content, manifest, target)
    check_licences(target, plan.sources)
    model = str(plan.generator["model"])
    check_overwrite(target, manifest, selection, model, default=settings.target, force=params["force"])
    if manifest is not None:
        mirror_latest(target, manifest, content.fingerprints)
    rows = _rows_of(warehouse, selection, content.waiting)
    release = build_aside(target.staging, plan, rows, _audio_of(warehouse, settings))
    if params["review"]:
        ask_for_review(release.path)
    return _described(target, release, manifest, content.waiting)


def _described(target: Target, release: Release, before: Manifest | None, waiting: list[str]) -> dict[str, Any]:
    manifest = release.manifest
    return {
        "release_id": manifest.release_id,
        "target": target.uri,
        "aside": str(release.path),
        "review": awaits_review(release.path),
        "summary": summary(target, manifest, before, waiting),
        "rows": {name: source.rows_by_mode for name, source in manifest.sources.items()},
        "left_out": {name: source.left_out for name, source in manifest.sources.items() if source.left_out},
        "reused": list(release.reused),
        "waiting": waiting,
    }


def _content(warehouse: Warehouse, settings: Settings, selection: Selection, manifest: Manifest | None) -> _Content:
    """Find what is complete, and what of the latest release stays."""
    sources = [name for name in latest_loads(warehouse) if name in RECIPES and selection.takes(name)]
    pending = dict.fromkeys(sources, 0)
    for row in coverage(warehouse, sources, selection.modes, settings.max_attempts, selection.max_samples):
        if RECIPES[row["source"]].task == "sift":
            pending[row["source"]] += row["pending"]
    waiting = [name for name, rows in pending.items() if rows]
    complete = [name for name in sources if not pending[name]]
    fingerprints = source_fingerprints(warehouse, complete, selection.modes, selection.max_samples)
    kept = manifest.fingerprints if manifest else {}
    return _Content(fingerprints | {name: kept[name] for name in waiting if name in kept}, waiting)


def _plan(
    warehouse: Warehouse,
    settings: Settings,
    selection: Selection,
    content: _Content,
    latest: Manifest | None,
    target: Target,
) -> ReleasePlan:
    """Say what the release is to hold, besides its rows."""
    loads = latest_loads(warehouse)
    complete = [name for name in sorted(content.fingerprints) if name not in content.waiting]
    written = released_modes(warehouse, complete, selection.modes)
    sources = {}
    for name in sorted(content.fingerprints):
        kept = latest.sources[name] if latest and name in content.waiting else None
        recipe = RECIPES[name]
        sources[name] = SourcePlan(
            fingerprint=content.fingerprints[name],
            revision=kept.revision if kept else loads[name]["revision"],
            licence=recipe.licence,
            redistributable=recipe.redistributable,
            modes=kept.modes if kept else {mode: hash_of_mode for mode, (hash_of_mode, _) in written[name].items()},
            title=recipe.title,
            url=recipe.url,
        )
    # What the complete sources were written with; plan keeps them all in step.
    current = {mode: described for modes in written.values() for mode, described in modes.items()}
    generator = next((inputs for _, inputs in current.values()), dict(latest.generator) if latest else {})
    release_id, created_at = _identity(target, content.fingerprints)
    verdicts = count_verdicts(warehouse, complete, selection.max_samples)
    return ReleasePlan(
        release_id=release_id,
        created_at=created_at,
        sources=sources,
        generator={
            **{name: value for name, value in generator.items() if name not in ("mode", "system_prompt")},
            "run_seed": settings.run_seed,
        },
        modes={mode: hash_of_mode for mode, (hash_of_mode, _) in current.items()},
        max_samples=selection.max_samples,
        verdicts={mode: counts for mode, counts in verdicts.items() if mode in selection.modes},
        labels=label_distribution(warehouse, complete, selection.max_samples),
    )


def _identity(target: Target, fingerprints: Mapping[str, str]) -> tuple[str, datetime]:
    """Name a release by its time and content.

    One of the same content that was built but not promoted is taken up again: its run died, or nobody approved it.
    """
    joined = "\n".join(f"{name} {fingerprints[name]}" for name in sorted(fingerprints))
    content = hashlib.sha256(f"{WRITER_VERSION}\n{joined}".encode()).hexdigest()[:12]
    for release_id, path in unpromoted(target.staging).items():
        if release_id.endswith(f"-{content}"):
            return release_id, read_manifest(path).created_at
    created_at = datetime.now(UTC).replace(microsecond=0)
    return f"{created_at:%Y%m%dT%H%M%SZ}-{content}", created_at


def _rows_of(warehouse: Warehouse, selection: Selection, waiting: list[str]) -> Callable[[str], Iterator[pa.Table]]:
    def rows(source: str) -> Iterator[pa.Table]:
        if source in waiting:
            raise ReleaseError(
                f"{source} is not complete, and its files in the latest release cannot be used again; "
                "run generate_and_publish until nothing of it is pending"
            )
        return published_rows(warehouse, source, selection.modes, selection.max_samples)

    return rows


def _audio_of(warehouse: Warehouse, settings: Settings) -> Callable[[str], AudioReader]:
    loads = latest_loads(warehouse)

    def audio(source: str) -> AudioReader:
        corpus = resolve_corpus(RECIPES[source], settings.hub, revision=loads[source]["revision"])
        there = {file.path: file.blob_id for file in corpus.files}
        changed = [path for path, blob_id in staged_files(warehouse, source).items() if there.get(path) != blob_id]
        if changed:
            raise ReleaseError(
                f"{source}: {', '.join(sorted(changed)[:3])} changed since it was staged ({len(changed)} files in "
                f"all); run ingest_{source} first"
            )
        return audio_reader(corpus, RECIPES[source].audio_column)

    return audio
