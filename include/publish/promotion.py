"""Make a release that lies aside what a target's readers get; record it, and clear away old ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from include.publish.guards import check_licences, check_overwrite
from include.publish.manifest import AGAIN, Base, Manifest, ReleaseError, read_manifest
from include.publish.release import awaits_review, base_of, find_release, promote, prune_releases
from include.publish.targets import Pushed, Target, canonical_uri, latest_release
from include.settings import Settings
from include.storage.releases import is_recorded, record_release
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)


def publish_release(
    warehouse: Warehouse,
    settings: Settings,
    params: Mapping[str, Any],
    target: Target,
    release_id: str,
    *,
    approved: bool = False,
) -> dict[str, Any]:
    """Promote a release that was built and verified, record it, and remove old ones.

    Doing it again, after it died at any moment, does the rest. Doing it again after another release was published is
    refused: it would take that one's content away.

    Args:
        warehouse: Where it is recorded.
        settings: Name the default target, and how many releases are kept.
        params: Of the run.
        target: Where to.
        release_id: The release, as `merge_release` named it.
        approved: Whether somebody was asked in this run, and said yes.

    Returns:
        Where it lies, and the counters of what was sent, copied and kept, as JSON.

    Raises:
        BadInputError: If a guard refuses it.
        ReleaseError: If there is no such release on this machine, it was built on another one than the target's latest,
            somebody was asked about it and did not say yes, or it does not read back from the target.
    """
    folder = find_release(target.staging, release_id)
    manifest = read_manifest(folder)
    latest = latest_release(target, force=params["force"])
    check_licences(target, manifest.sources)
    base: Base | None = Base(release_id)
    if latest is None or latest.release_id != release_id:
        base = None if params["force"] else _base(target, folder, release_id, latest, approved=approved)
        check_overwrite(
            target,
            latest,
            manifest.narrowed,
            manifest.generator.get("model"),
            default=canonical_uri(settings.target, settings),
            force=params["force"],
        )
    pushed = target.push(folder, manifest, base)
    promote(target.staging, release_id)
    _record(warehouse, target, manifest, pushed)
    log.info(
        "release %s is at %s: sent %d files (%s), copied %d (%s), kept %d (%s)",
        release_id,
        pushed.uri,
        pushed.sent_files,
        size(pushed.sent_bytes),
        pushed.copied_files,
        size(pushed.copied_bytes),
        pushed.kept_files,
        size(pushed.kept_bytes),
    )
    return {"release_id": release_id, "target": target.uri, **asdict(pushed), "pruned": _prune(settings, target)}


def _base(target: Target, folder: Path, release_id: str, latest: Manifest | None, *, approved: bool) -> Base:
    """What the release may take the place of; refuses one that is out of date, or that nobody said yes to."""
    base = base_of(folder)
    if base is None:
        raise ReleaseError(
            f"{target.uri}: release {release_id} was published before, and the latest one is "
            f"{latest.release_id if latest else 'none'} by now; nothing was published. {AGAIN}"
        )
    # Again when it is pushed, by then with a condition; here nothing was sent yet.
    base.check(target.uri, release_id, latest.release_id if latest else None)
    if awaits_review(folder) and not approved:
        raise ReleaseError(
            f"{target.uri}: somebody was asked about release {release_id} by another run, and did not say yes; nothing "
            "was published. Run generate_and_publish again: it asks once more. With force=true nobody is asked"
        )
    return base


def settle(warehouse: Warehouse, target: Target, manifest: Manifest) -> None:
    """Finish what a run left undone that died after its release was promoted."""
    if is_recorded(warehouse, target.uri, manifest.release_id):
        return
    log.info("release %s of %s was promoted by a run that died; recording it", manifest.release_id, target.uri)
    try:
        pushed = target.push(target.staging / manifest.release_id, manifest, Base(manifest.release_id))
    except ReleaseError as error:  # damaged there meanwhile; the next release mends it, and must not wait for it
        log.warning("release %s of %s is not recorded: %s", manifest.release_id, target.uri, error)
        return
    with suppress(ReleaseError):  # another machine built it
        promote(target.staging, manifest.release_id)
    _record(warehouse, target, manifest, pushed)


def summary(
    target: Target, manifest: Manifest, before: Manifest | None, waiting: Sequence[str], unstaged: Sequence[str]
) -> str:
    """Describe a release to whoever is to approve it, as Markdown: rows by source and mode, beside the latest's."""
    modes = list(manifest.modes)
    were = {name: source.rows for name, source in before.sources.items()} if before else {}
    lines = [
        f"To **{target.uri}**, in place of {f'release {before.release_id}' if before else 'nothing: it is the first'}.",
        "",
        f"Model {manifest.generator.get('model')}, {size(sum(file.bytes for file in manifest.files))}.",
        "",
        f"| source | {' | '.join(modes)} | rows | before |",
        f"|---|{'--:|' * (len(modes) + 2)}",
    ]
    for name, source in manifest.sources.items():
        counts = [f"{source.rows_by_mode.get(mode, 0):,}" for mode in modes]
        lines.append(f"| {name} | {' | '.join(counts)} | {source.rows:,} | {were.pop(name, 0):,} |")
    lines += [f"| {name}, no longer in it |{' |' * (len(modes) + 1)} {rows:,} |" for name, rows in were.items()]
    if waiting:
        lines += ["", f"Not complete yet, so as before: {', '.join(waiting)}."]
    if unstaged:
        lines += ["", f"Not staged in this warehouse, so as before: {', '.join(unstaged)}."]
    return "\n".join(lines)


def size(count: int) -> str:
    """Write a number of bytes for people, as "12.3 MB"."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _record(warehouse: Warehouse, target: Target, manifest: Manifest, pushed: Pushed) -> None:
    record_release(
        warehouse,
        {
            "release_id": manifest.release_id,
            "created_at": manifest.created_at,
            "target": target.uri,
            "uri": pushed.uri,
            "commit": pushed.commit,
            "rows": {name: source.rows_by_mode for name, source in manifest.sources.items()},
            "manifest": manifest.model_dump(mode="json"),
        },
    )


def _prune(settings: Settings, target: Target) -> list[str]:
    removed = target.prune(settings.keep_releases)
    if target.is_remote:  # of what was pushed only the latest is built on
        prune_releases(target.staging, 1)
    if removed:
        log.info("removed old releases of %s: %s", target.uri, ", ".join(removed))
    return removed
