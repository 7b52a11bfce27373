"""Merge what was generated with what was staged, and publish it when it differs from the latest release.

A source is published when it is complete: every staged sample and mode is accepted or given up. One that is not keeps
its part of the latest release, or waits for its first.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from include.modes import MODES
from include.publish.manifest import Manifest, ReleaseError, read_manifest
from include.publish.parquet import WRITER_VERSION, AudioReader
from include.publish.release import (
    LATEST,
    Release,
    ReleasePlan,
    SourcePlan,
    build_release,
    latest_manifest,
    needs_release,
)
from include.settings import Settings
from include.sources import RECIPES
from include.sources.reader import audio_reader, resolve_corpus
from include.storage.generation import count_verdicts, coverage
from include.storage.releases import (
    is_recorded,
    published_rows,
    record_release,
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


def has_news(warehouse: Warehouse, settings: Settings, params: Mapping[str, Any]) -> bool:
    """Whether `merge_and_publish` would make a release if it were called now."""
    if not _publishes(params):
        return False
    manifest = latest_manifest(settings.releases_dir)
    if manifest is not None and not is_recorded(warehouse, manifest.release_id):
        return True  # the run that made it died before it could say so
    content = _content(warehouse, settings, manifest)
    return bool(content.fingerprints) and needs_release(manifest, content.fingerprints)


def merge_and_publish(warehouse: Warehouse, settings: Settings, params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Build, verify and promote a release, if it would differ from the latest one.

    Returns:
        What the release is, as JSON; None when there is nothing new to publish, or this run must not.

    Raises:
        ReleaseError: If a corpus is no longer what was staged, or the release does not read back as planned.
    """
    if not _publishes(params):
        log.info("this run was narrowed to some samples, or asked not to publish")
        return None
    manifest = latest_manifest(settings.releases_dir)
    content = _content(warehouse, settings, manifest)
    if content.waiting:
        log.warning("not complete yet, so left as they were: %s", ", ".join(content.waiting))
    if not content.fingerprints:
        log.info("no source is complete yet")
        return None
    if manifest is not None and not needs_release(manifest, content.fingerprints):
        _record(warehouse, settings, manifest)
        log.info("release %s holds just this already", manifest.release_id)
        return None
    release = _build(warehouse, settings, content, manifest)
    _record(warehouse, settings, release.manifest)
    return {
        "release_id": release.manifest.release_id,
        "uri": str(release.path),
        "rows": {name: source.rows_by_mode for name, source in release.manifest.sources.items()},
        "left_out": {name: source.left_out for name, source in release.manifest.sources.items() if source.left_out},
        "reused": list(release.reused),
        "waiting": content.waiting,
    }


def _publishes(params: Mapping[str, Any]) -> bool:
    return bool(params["publish"]) and params["max_samples"] is None


def _content(warehouse: Warehouse, settings: Settings, manifest: Manifest | None) -> _Content:
    """Find what is complete, and what of the latest release stays."""
    sources = [name for name in latest_loads(warehouse) if name in RECIPES]
    pending = dict.fromkeys(sources, 0)
    for row in coverage(warehouse, sources, list(MODES), settings.max_attempts):
        if RECIPES[row["source"]].task == "sift":
            pending[row["source"]] += row["pending"]
    waiting = [name for name, rows in pending.items() if rows]
    fingerprints = source_fingerprints(warehouse, [name for name in sources if not pending[name]], list(MODES))
    kept = manifest.fingerprints if manifest else {}
    return _Content(fingerprints | {name: kept[name] for name in waiting if name in kept}, waiting)


def _build(warehouse: Warehouse, settings: Settings, content: _Content, latest: Manifest | None) -> Release:
    loads = latest_loads(warehouse)
    complete = [name for name in sorted(content.fingerprints) if name not in content.waiting]
    written = released_modes(warehouse, complete, list(MODES))
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
    release_id, created_at = _identity(settings, content.fingerprints)
    plan = ReleasePlan(
        release_id=release_id,
        created_at=created_at,
        sources=sources,
        generator={
            **{name: value for name, value in generator.items() if name not in ("mode", "system_prompt")},
            "run_seed": settings.run_seed,
        },
        modes={mode: hash_of_mode for mode, (hash_of_mode, _) in current.items()},
        verdicts=count_verdicts(warehouse, complete),
        labels=label_distribution(warehouse, complete),
    )
    rows = _rows_of(warehouse, content.waiting)
    return build_release(settings.releases_dir, plan, rows, _audio_of(warehouse, settings, loads))


def _identity(settings: Settings, fingerprints: Mapping[str, str]) -> tuple[str, datetime]:
    """Name a release by its time and content.

    One of the same content that was promoted by a run that died before `latest` pointed to it is taken up again.
    """
    joined = "\n".join(f"{name} {fingerprints[name]}" for name in sorted(fingerprints))
    content = hashlib.sha256(f"{WRITER_VERSION}\n{joined}".encode()).hexdigest()[:12]
    latest = (settings.releases_dir / LATEST).resolve().name
    for orphan in settings.releases_dir.glob(f"[0-9]*-{content}"):
        if orphan.name > latest or latest == LATEST:
            return orphan.name, read_manifest(orphan).created_at
    created_at = datetime.now(UTC).replace(microsecond=0)
    return f"{created_at:%Y%m%dT%H%M%SZ}-{content}", created_at


def _rows_of(warehouse: Warehouse, waiting: list[str]) -> Callable[[str], Iterator[pa.Table]]:
    def rows(source: str) -> Iterator[pa.Table]:
        if source in waiting:
            raise ReleaseError(
                f"{source} is not complete, and its files in the latest release cannot be used again; "
                "run generate_and_publish until nothing of it is pending"
            )
        return published_rows(warehouse, source, list(MODES))

    return rows


def _audio_of(
    warehouse: Warehouse, settings: Settings, loads: Mapping[str, Mapping[str, Any]]
) -> Callable[[str], AudioReader]:
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


def _record(warehouse: Warehouse, settings: Settings, manifest: Manifest) -> None:
    record_release(
        warehouse,
        {
            "release_id": manifest.release_id,
            "created_at": manifest.created_at,
            "target": "local",
            "uri": str(settings.releases_dir / manifest.release_id),
            "commit": None,
            "rows": {name: source.rows_by_mode for name, source in manifest.sources.items()},
            "manifest": manifest.model_dump(mode="json"),
        },
    )
