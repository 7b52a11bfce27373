"""Build a release on this machine: aside, read back, then promoted by a rename and the `latest` link.

A release is whole or not there: whatever fails, and however the process dies, the last release and `latest` stay as
they are. Between building and promoting it may lie aside as long as it has to, for an approval, say. A source whose
fingerprint is that of the latest release is not written again: its files are hard-linked.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from include.publish.card import CARD_NAME, build_card
from include.publish.consumer import check_opens
from include.publish.gates import READ_BACK, require, rows_add_up
from include.publish.manifest import (
    MANIFEST_NAME,
    Base,
    FileEntry,
    Gate,
    Manifest,
    ReleaseError,
    SourceEntry,
    SplitEntry,
    is_own_id,
    is_release_id,
    read_manifest,
    write_manifest,
)
from include.publish.parquet import WRITER_VERSION, AudioReader, SourceFiles, write_source
from include.publish.record import PUBLISHED_SCHEMA, modes_or_tasks
from include.schema import Task, merge_counts

__all__ = [
    "Release",
    "ReleaseError",
    "ReleasePlan",
    "SourcePlan",
    "ask_for_review",
    "awaits_review",
    "base_of",
    "build_aside",
    "build_release",
    "clear_review",
    "find_release",
    "latest_manifest",
    "needs_release",
    "promote",
    "promoted_releases",
    "prune_releases",
    "unpromoted",
    "verify_release",
]

log = logging.getLogger(__name__)

LATEST = "latest"
_BUILDING = ".building-"
_BUILT = ".built-"
_DAMAGED = "-damaged"
_REVIEW = ".review"
_BUILT_ON = ".built-on"
_LOCK = ".lock"
_SOURCE_NAME = re.compile(r"[a-z][a-z0-9_]*")  # also what `datasets` takes for a split's name


@dataclass(frozen=True)
class SourcePlan:
    """What is known of a source before it is published.

    Attributes:
        fingerprint: Hash over its staged rows, responses, sides and blob ids.
        revision: Revision of the corpus that was staged.
        licence: Licence as the corpus states it.
        redistributable: Whether its audio may be published again.
        title: What people call it.
        url: Where the corpus comes from.
        accepted: Rows that it is to have, clips left out included.
        task: What its rows are for.
        citation: How its owners ask to be cited, or "".
        modes: Mode name -> mode_hash under which its responses were written.
        prompts: Mode name -> digest over the prompt hashes of its responses.
        generator: "<model>@<revision>" that wrote its responses; None where the task needs none.
    """

    fingerprint: str
    revision: str
    licence: str
    redistributable: bool
    title: str
    url: str
    accepted: int
    task: Task = "sift"
    citation: str = ""
    modes: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    generator: str | None = None


@dataclass(frozen=True)
class ReleasePlan:
    """What a release is to hold, besides its rows.

    Attributes:
        release_id: Name of its folder: letters, digits and `._+-`.
        created_at: Now, with a time zone.
        sources: Source name -> its facts, in the order of the card.
        generator: What the responses depend on besides sample and mode, JSON values; `model` names the model.
        modes: Mode name -> mode_hash.
        narrowed: Why it is only a trial, as "with max_samples=5"; None: it holds all that is complete.
        built_on: The target's latest release, whose place it is to take; None: it has none.
        verdicts: Mode name -> verdict -> texts.
        quality: Mode name -> measure -> value.
        labels: Source name -> label column -> value -> clips, for the card.
        gates: What the warehouse was checked for; one that failed refuses the release before any audio is read.
    """

    release_id: str
    created_at: datetime
    sources: Mapping[str, SourcePlan]
    generator: Mapping[str, object]
    modes: Mapping[str, str]
    narrowed: str | None = None
    built_on: str | None = None
    verdicts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    quality: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()

    @property
    def fingerprints(self) -> dict[str, str]:
        """Source name -> fingerprint."""
        return {name: source.fingerprint for name, source in self.sources.items()}


@dataclass(frozen=True)
class Release:
    """A whole release, promoted or aside.

    Attributes:
        path: Its folder.
        manifest: What it holds.
        reused: Sources whose files are those of the release before.
    """

    path: Path
    manifest: Manifest
    reused: tuple[str, ...] = ()


def latest_manifest(releases_dir: Path) -> Manifest | None:
    """Return the manifest of the release that `latest` names; None if there is no release, or none that can be read.

    For what only saves work: an unreadable one costs a full build. Whether there is one that must not be lost is
    `Target.latest` to say.
    """
    if not (releases_dir / LATEST).exists():
        return None
    try:
        return read_manifest(releases_dir / LATEST)
    except ReleaseError as error:
        log.warning("no files are taken over from the latest release: %s", error)
        return None


def needs_release(manifest: Manifest | None, fingerprints: Mapping[str, str]) -> bool:
    """Tell whether a release would differ from the one with this manifest.

    Args:
        manifest: The latest release's, or None if there is none.
        fingerprints: Source name -> fingerprint, of all sources that a release would hold now.

    Returns:
        True if a source is new, changed or gone, or if files would be laid out otherwise.
    """
    return manifest is None or manifest.writer_version != WRITER_VERSION or manifest.fingerprints != fingerprints


def build_release(
    releases_dir: Path,
    plan: ReleasePlan,
    rows: Callable[[str], Iterator[pa.Table]],
    audio: Callable[[str], AudioReader],
) -> Release:
    """Build, verify and promote a release, with nothing in between; takes and raises what `build_aside` does.

    Returns:
        The release that `latest` now points to.
    """
    release = build_aside(releases_dir, plan, rows, audio)
    return replace(release, path=promote(releases_dir, plan.release_id))


def build_aside(
    releases_dir: Path,
    plan: ReleasePlan,
    rows: Callable[[str], Iterator[pa.Table]],
    audio: Callable[[str], AudioReader],
) -> Release:
    """Build and verify a release, and leave it aside for `promote`.

    A release of the same content that lies aside, or was promoted by a run that died then, is taken as it is, with its
    id: its run died, nobody approved it, or it built while we waited for the lock. Others that lie aside are removed:
    what they hold is out of date. If one of them awaits a review, so does this.

    Args:
        releases_dir: Folder of all releases; made if it is not there.
        plan: What the release is to hold.
        rows: Source name -> its rows, as `write_source` takes them; called only for sources that are written anew.
        audio: Source name -> reader of its audio; likewise.

    Returns:
        The release; `latest` does not point to it yet.

    Raises:
        ReleaseError: If the id is taken, a gate fails, no row could be published, or what was written does not read
            back as planned. The releases that were there are untouched, then and after any other error.
    """
    _check_plan(plan)
    with _only_builder(releases_dir):
        for stale in releases_dir.glob(f"{_BUILDING}*"):  # we hold the lock: its builder is dead
            log.warning("removing %s, left by a build that died", stale.name)
            shutil.rmtree(stale)
        plan = _taking_up(releases_dir, plan)
        aside = releases_dir / f"{_BUILT}{plan.release_id}"
        for old in releases_dir.glob(f"{_BUILT}*"):
            if old != aside and not awaits_review(old):
                _remove_outdated(old)
        require(plan.gates, plan.release_id)
        release = _finished_before(releases_dir, plan) or _build(releases_dir, aside, plan, rows, audio)
        asked = [old for old in releases_dir.glob(f"{_BUILT}*") if old != aside]
        if asked:  # one changed row makes no yes of a no; should we die before, the old one still says so
            ask_for_review(release.path)
        for old in asked:
            _remove_outdated(old)
        # Also of one that is taken up: the content is the same, but the latest release may be another by now.
        (release.path / _BUILT_ON).write_text(plan.built_on or "", encoding="utf-8")
    log.info(
        "release %s is whole: %d rows, reused: %s",
        plan.release_id,
        sum(file.rows for file in release.manifest.files),
        release.reused,
    )
    for name, source in release.manifest.sources.items():
        if source.left_out:
            log.warning("%s: rows whose clip cannot be published were left out: %s", name, source.left_out)
    return release


def promote(releases_dir: Path, release_id: str, base: Base | None = None) -> Path:
    """Make a release that lies aside the one that `latest` names; doing it again changes nothing.

    Args:
        releases_dir: Folder of all releases.
        release_id: The release.
        base: What `latest` may name now, besides the release; None: anything.

    Returns:
        Its folder.

    Raises:
        ReleaseError: If there is no such release, or `latest` names another one.
    """
    promoted, latest = releases_dir / release_id, releases_dir / LATEST
    with _only_builder(releases_dir):
        there = find_release(releases_dir, release_id)
        if base is not None:
            base.check(str(releases_dir), release_id, read_manifest(latest).release_id if latest.exists() else None)
        clear_review(there)
        if there != promoted:
            there.rename(promoted)
        _point_latest_to(promoted)
        (promoted / _BUILT_ON).unlink(missing_ok=True)
    return promoted


def find_release(releases_dir: Path, release_id: str) -> Path:
    """Return the folder of a whole release, promoted or aside.

    Raises:
        ReleaseError: If there is no such release.
    """
    for path in (releases_dir / release_id, releases_dir / f"{_BUILT}{release_id}"):
        if path.exists():
            return path
    raise ReleaseError(
        f"release {release_id} is not in {releases_dir}: the tasks merge and publish must see the same SIFT_HOME; if "
        "they do, a newer release took its place, and generate_and_publish has to run again"
    )


def base_of(release: Path) -> Base | None:
    """Return what a release that lies aside was built on; None if it does not say: it was promoted already."""
    try:
        return Base((release / _BUILT_ON).read_text(encoding="utf-8") or None)
    except FileNotFoundError:
        return None


def unpromoted(releases_dir: Path) -> dict[str, Path]:
    """Return whole releases that `latest` has not come to yet, by id: those aside, and newer ones than the latest."""
    latest = (releases_dir / LATEST).resolve().name if (releases_dir / LATEST).exists() else ""
    built = {path.name.removeprefix(_BUILT): path for path in releases_dir.glob(f"{_BUILT}*")}
    aside = {release_id: path for release_id, path in built.items() if is_own_id(release_id)}
    # Promoted by a run that died before it could point `latest` to it.
    return aside | {path.name: path for path in promoted_releases(releases_dir) if path.name > latest}


def ask_for_review(release: Path) -> None:
    """Mark a release that lies aside: it must not be promoted without an approval."""
    (release / _REVIEW).touch()


def clear_review(release: Path) -> None:
    """Take the mark away: somebody said yes."""
    (release / _REVIEW).unlink(missing_ok=True)


def awaits_review(release: Path) -> bool:
    """Tell whether a release was marked so.

    Once asked, always asked: a later run that does not review must not publish what was rejected, nor what took its
    place.
    """
    return (release / _REVIEW).exists()


def prune_releases(releases_dir: Path, keep: int) -> list[str]:
    """Remove the oldest promoted releases.

    Args:
        releases_dir: Folder of all releases.
        keep: Releases to keep, among them the one that `latest` names; 0: all.

    Returns:
        Ids of what was removed.
    """
    if not keep:
        return []
    with _only_builder(releases_dir):
        latest = (releases_dir / LATEST).resolve()
        others = [path for path in promoted_releases(releases_dir) if path.resolve() != latest]
        removed = sorted(others, key=lambda path: path.name, reverse=True)[keep - 1 :]
        for path in removed:
            _remove(path)
    return [path.name for path in removed]


def promoted_releases(releases_dir: Path) -> list[Path]:
    """Return the folders of promoted releases; neither the `latest` link, nor what lies aside, nor others' folders."""
    found = [manifest.parent for manifest in releases_dir.glob(f"[!.]*/{MANIFEST_NAME}")]
    return [path for path in found if is_own_id(path.name) and not path.is_symlink()]


def _remove(release: Path) -> None:
    """Remove a release: out of sight first, so that no half of it is ever seen."""
    condemned = release.parent / f"{_BUILDING}{release.name.lstrip('.')}"
    release.rename(condemned)
    shutil.rmtree(condemned)


def verify_release(
    release: Path, scratch: Path | None = None, already_hashed: Collection[str] = frozenset()
) -> Manifest:
    """Read a release back and hold it against its manifest.

    Every file is read whole for its hash, its modes and responses are looked at row by row, and `datasets` opens both
    configurations. Audio is not decoded.

    Args:
        release: Its folder.
        scratch: Folder for a temporary folder that `datasets` may fill; None takes the system's.
        already_hashed: Files, by their paths in the manifest, that were read back for their hash a moment ago.

    Returns:
        The manifest.

    Raises:
        ReleaseError: If a file is missing, not listed or not what the manifest says, a response is empty, or
            `datasets` does not open the release.
    """
    manifest = read_manifest(release)
    listed = {file.path for file in manifest.files}
    present = {path.relative_to(release).as_posix() for path in release.glob("data/**/*") if path.is_file()}
    if listed != present:
        raise ReleaseError(
            f"{release.name}: files {sorted(listed - present)} are missing, {sorted(present - listed)} are not listed"
        )
    if damaged := _damaged(release, [file for file in manifest.files if file.path not in already_hashed]):
        raise ReleaseError(f"{release.name}: {damaged} are not the files that the manifest lists (sha256)")
    for name, source in manifest.sources.items():
        _verify_source(release, name, source)
    with TemporaryDirectory(prefix=".datasets-", dir=scratch) as cache:
        check_opens(release, Path(cache))
    return manifest


def _damaged(release: Path, files: Collection[FileEntry]) -> list[str]:
    """Paths of those files that are not what the manifest lists, or cannot be read."""

    def is_intact(entry: FileEntry) -> bool:
        try:
            with (release / entry.path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        except OSError as error:
            log.warning("%s", error)
            return False

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:  # hashing frees the interpreter
        return [file.path for file, intact in zip(files, pool.map(is_intact, files), strict=True) if not intact]


def _verify_source(release: Path, name: str, source: SourceEntry) -> None:
    """Hold one source's files against its entry, reading all columns that decide what a row is for."""
    for split_name, split in source.splits.items():
        rows_by_mode: Counter[str] = Counter()
        for entry in split.files:
            file = pq.ParquetFile(release / entry.path)
            if not file.schema_arrow.equals(PUBLISHED_SCHEMA, check_metadata=True):
                raise ReleaseError(f"{release.name}: {entry.path} has another schema:\n{file.schema_arrow}")
            rows, size = file.metadata.num_rows, (release / entry.path).stat().st_size
            if (rows, size) != (entry.rows, entry.bytes):
                raise ReleaseError(
                    f"{release.name}: {entry.path} has {rows} rows in {size} bytes, not {entry.rows} in {entry.bytes}"
                )
            for group in range(file.num_row_groups):
                records = file.read_row_group(group, columns=["mode", "task", "sift_response", "source_dataset"])
                empty = pc.sum(pc.equal(pc.fill_null(records["sift_response"], ""), "")).as_py()
                if empty:
                    raise ReleaseError(f"{release.name}: {entry.path} has {empty} rows without a response")
                for column, wanted in (("source_dataset", name), ("task", source.task)):
                    if not pc.all(pc.equal(records[column], wanted), min_count=0).as_py():
                        raise ReleaseError(f"{release.name}: {entry.path} holds rows whose {column} is not {wanted!r}")
                rows_by_mode.update(_counts(modes_or_tasks(records)))
        if rows_by_mode != split.rows_by_mode:
            raise ReleaseError(
                f"{release.name}: {split_name} of {name} holds the rows {dict(rows_by_mode)}, not {split.rows_by_mode}"
            )


def _check_plan(plan: ReleasePlan) -> None:
    """Refuse names that could not be a folder or a split."""
    if not is_release_id(plan.release_id):
        raise ReleaseError(f"release id {plan.release_id!r} is no folder name of letters, digits and ._+-")
    wrong = sorted(name for name in plan.sources if not _SOURCE_NAME.fullmatch(name))
    if wrong:
        raise ReleaseError(f"release {plan.release_id}: {wrong} cannot be names of splits")


@contextmanager
def _only_builder(releases_dir: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel frees it however the process ends."""
    releases_dir.mkdir(parents=True, exist_ok=True)
    with (releases_dir / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another release is being built in %s; waiting until it is done", releases_dir)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_outdated(old: Path) -> None:
    log.info("removing %s, which was never promoted and is out of date", old.name)
    _remove(old)


def _taking_up(releases_dir: Path, plan: ReleasePlan) -> ReleasePlan:
    """The plan, with the id of a release of the same content that is whole and `latest` has not come to, if any.

    Asked under the lock: a merge that waited for another one then takes up what that built, and does not remove it.
    """
    content = plan.release_id.rpartition("-")[2]
    for release_id, path in unpromoted(releases_dir).items() if is_own_id(plan.release_id) else ():
        if release_id.endswith(f"-{content}"):
            try:
                return replace(plan, release_id=release_id, created_at=read_manifest(path).created_at)
            except ReleaseError as error:
                log.warning("built anew: %s", error)
    return plan


def _finished_before(releases_dir: Path, plan: ReleasePlan) -> Release | None:
    """The release that an earlier run of the same plan built; None if there is none that is whole."""
    promoted, aside = releases_dir / plan.release_id, releases_dir / f"{_BUILT}{plan.release_id}"
    there = promoted if promoted.exists() else aside
    if not there.exists():
        return None
    try:
        manifest = verify_release(there)
    except ReleaseError as error:
        if there == promoted:
            raise
        log.warning("built anew: %s", error)
        damaged = releases_dir / f"{aside.name}{_DAMAGED}"
        if awaits_review(aside) and not damaged.exists():
            aside.rename(damaged)  # until the new one says that it awaits a review too
        else:
            _remove(aside)
        return None
    if needs_release(manifest, plan.fingerprints):
        raise ReleaseError(f"{there} exists and holds other rows; give this release another id")
    return Release(there, manifest, reused=tuple(plan.sources))


def _build(
    releases_dir: Path,
    aside: Path,
    plan: ReleasePlan,
    rows: Callable[[str], Iterator[pa.Table]],
    audio: Callable[[str], AudioReader],
) -> Release:
    """Build and verify a release; only then does it get the name of one that is whole."""
    building = releases_dir / f"{_BUILDING}{plan.release_id}"
    latest = latest_manifest(releases_dir)
    reusable = latest.sources if latest and latest.writer_version == WRITER_VERSION else {}
    building.mkdir()
    try:
        entries: dict[str, SourceEntry] = {}
        reused = []
        for name, source in plan.sources.items():
            entry = reusable.get(name)
            if (
                entry
                and entry.fingerprint == source.fingerprint
                and _link_files(releases_dir / LATEST, building, entry)
            ):
                reused.append(name)
            else:
                written = write_source(building / "data" / name, name, rows(name), audio(name))
                entry = _entry(name, source, written)
            # A corpus can move to a revision that changes none of its rows.
            entries[name] = entry.model_copy(update=_facts(source))
        gates = (*plan.gates, *rows_add_up(entries))
        require(gates, plan.release_id)
        manifest = _manifest(plan, entries, (*gates, *READ_BACK))
        write_manifest(building, manifest)
        (building / CARD_NAME).write_text(build_card(plan, manifest), encoding="utf-8")
        # A new file was read back for its hash behind its writer, a linked one before it was linked. Hashing them again
        # would read the same page cache. What had to be copied was hashed elsewhere, so it is read here.
        copied = {
            file.path
            for name in reused
            for file in entries[name].files
            if not (building / file.path).samefile(releases_dir / LATEST / file.path)
        }
        verify_release(building, scratch=building, already_hashed={file.path for file in manifest.files} - copied)
        _sync_tree(building)
        building.rename(aside)
    except BaseException:  # a task that is told to stop raises no Exception
        shutil.rmtree(building, ignore_errors=True)
        raise
    return Release(aside, manifest, tuple(reused))


def _link_files(latest: Path, building: Path, entry: SourceEntry) -> bool:
    """Link a source's files into the new release; False if one is not what the manifest says and must be made anew."""
    if damaged := _damaged(latest, entry.files):
        log.warning("%s are damaged in release %s: written anew", damaged, latest.resolve().name)
        return False
    for file in entry.files:
        target = building / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(latest.resolve() / file.path)
        except OSError:  # the file system has no links, or the file is another user's
            shutil.copyfile(latest / file.path, target)
    return True


def _entry(name: str, source: SourcePlan, written: SourceFiles) -> SourceEntry:
    return SourceEntry(
        **_facts(source),
        splits={
            split: SplitEntry(
                rows_by_mode=part.rows_by_mode,
                clips=part.clips,
                arrow_bytes=part.arrow_bytes,
                files=tuple(
                    FileEntry(path=f"data/{name}/{file.name}", rows=file.rows, bytes=file.bytes, sha256=file.sha256)
                    for file in part.files
                ),
            )
            for split, part in written.splits.items()
        },
        left_out=written.left_out,
    )


def _facts(source: SourcePlan) -> dict[str, Any]:
    """What the plan says of a source that its manifest entry says too."""
    return {
        "fingerprint": source.fingerprint,
        "revision": source.revision,
        "licence": source.licence,
        "redistributable": source.redistributable,
        "task": source.task,
        "accepted": source.accepted,
        "modes": dict(source.modes),
        "prompts": dict(source.prompts),
        "generator": source.generator,
    }


def _manifest(plan: ReleasePlan, entries: dict[str, SourceEntry], gates: tuple[Gate, ...]) -> Manifest:
    if not any(entry.rows for entry in entries.values()):
        reasons = merge_counts(*(entry.left_out for entry in entries.values()))
        raise ReleaseError(
            f"release {plan.release_id} would hold no row: {', '.join(entries) or 'no source'} "
            + (f"had all rows left out ({reasons})" if reasons else "had no row with an accepted response")
        )
    return Manifest(
        release_id=plan.release_id,
        created_at=plan.created_at.astimezone(UTC),
        writer_version=WRITER_VERSION,
        sources=entries,
        generator=dict(plan.generator),
        modes=dict(plan.modes),
        narrowed=plan.narrowed,
        verdicts={mode: dict(counts) for mode, counts in plan.verdicts.items()},
        quality={mode: dict(measures) for mode, measures in plan.quality.items()},
        gates=gates,
    )


def _sync_tree(folder: Path) -> None:
    """Bring a folder to the disk, so that a rename cannot outlive what it promotes, and seal its data files.

    A data file may be linked into many releases: writing to it would change them all.
    """
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
        if path.suffix == ".parquet":
            path.chmod(0o444)


def _point_latest_to(promoted: Path) -> None:
    """Let `latest` name this release, in one step and relative to its folder, which may be mounted elsewhere."""
    link = promoted.parent / LATEST
    replacement = promoted.parent / f".{LATEST}"
    replacement.unlink(missing_ok=True)
    replacement.symlink_to(promoted.name)
    replacement.replace(link)
    _sync(promoted.parent)


def _sync(path: Path) -> None:
    """Bring one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _counts(values: pa.Array) -> dict[str, int]:
    return {count["values"]: count["counts"] for count in values.value_counts().to_pylist()}
