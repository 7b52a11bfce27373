"""Merge what was generated with what was staged, and publish it when it differs from the latest release.

A source is published when it is complete: every staged sample and mode is accepted or given up; one whose task needs no
language model is complete as soon as it is staged. One that is not keeps its part of the latest release, or waits for
its first.
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
from include.publish import gates
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
from include.storage.generation import count_verdicts, coverage, previous_quality
from include.storage.releases import (
    SourceContents,
    SourceQuery,
    is_recorded,
    mode_inputs,
    published_rows,
    record_release,
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
        kept: Those of them that have a part in the latest release, with its fingerprint.
        coverage: Staged and given-up samples of the complete sources, by source and mode.
    """

    complete: dict[str, SourceContents]
    waiting: list[str]
    kept: dict[str, str]
    coverage: list[dict[str, Any]]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Source -> fingerprint, of all that would be in it."""
        return {name: contents.fingerprint for name, contents in self.complete.items()} | self.kept


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
        ReleaseError: If a gate fails, a corpus is no longer what was staged, or the release does not read back as
            planned. The latest release is as it was.
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
    generated = [name for name in sources if RECIPES[name].task == "sift"]
    covered = coverage(warehouse, generated, list(MODES), settings.max_attempts)
    pending = {row["source"] for row in covered if row["pending"]}
    waiting = [name for name in generated if name in pending]
    found = {name: source_contents(warehouse, _query(name)) for name in sources if name not in pending}
    published = manifest.fingerprints if manifest else {}
    return _Content(
        complete={name: contents for name, contents in found.items() if contents},
        waiting=waiting,
        kept={name: published[name] for name in waiting if name in published},
        coverage=[row for row in covered if row["source"] not in pending],
    )


def _query(source: str) -> SourceQuery:
    recipe = RECIPES[source]
    return SourceQuery(source=source, task=recipe.task, modes=list(MODES), held_out_speakers=recipe.held_out_speakers)


def _build(warehouse: Warehouse, settings: Settings, content: _Content, latest: Manifest | None) -> Release:
    loads = latest_loads(warehouse)
    release_id, created_at = _identity(settings, content.fingerprints)
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
    plan = ReleasePlan(
        release_id=release_id,
        created_at=created_at,
        sources=sources,
        generator=generator,
        modes=current,
        verdicts=count_verdicts(warehouse, list(content.complete)),
        quality=previous_quality(warehouse, ""),
        labels=label_distribution(warehouse, list(content.complete)),
        gates=(
            *gates.one_generator(
                {name: source.modes for name, source in sources.items()},
                {name: source.generator for name, source in sources.items()},
                content.kept,
            ),
            *gates.given_up(content.coverage, settings.max_given_up),
            *gates.unmapped_labels(list_unmapped(warehouse), read, settings.max_unmapped),
        ),
    )
    rows = _rows_of(warehouse, content.waiting)
    return build_release(settings.releases_dir, plan, rows, _audio_of(warehouse, settings, loads))


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
    """A source that is not complete, as the latest release holds it."""
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
        return published_rows(warehouse, _query(source))

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
