"""Releases: whole or not there, reused where nothing changed, and opened by `datasets`."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import pandas as pd
import pytest
from datasets import Audio, load_dataset

from include.modes import MODES
from include.publish import release
from include.publish.manifest import Gate, read_manifest
from include.publish.record import published_features
from include.publish.release import (
    Release,
    ReleaseError,
    build_release,
    latest_manifest,
    needs_release,
    verify_release,
)
from tests.include.publish.clip_corpus import Corpus, World, wav


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the process that opens the release with `datasets`: two seconds a release."""
    monkeypatch.setattr(release, "check_opens", lambda path, cache: None)


def build(world: World, release_id: str, **fingerprints: str) -> Release:
    return build_release(world.releases, world.plan(release_id, **fingerprints), world.rows, world.audio)


def own_id(number: int) -> str:
    """An id as `merge` makes them; only such are listed and pruned."""
    return f"20261101T12000{number}Z-{number:012x}"


def latest_name(world: World) -> str:
    """What the `latest` link says, which is relative to its folder."""
    return str((world.releases / "latest").readlink())


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its hash."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_datasets_opens_every_split_with_the_audio_unchanged(world: World, tmp_path: Path) -> None:
    build(world, "r1")
    opened = load_dataset(str(world.releases / "latest"), cache_dir=str(tmp_path / "cache"))
    assert list(opened) == ["ravdess", "meld"]
    for name, split in opened.items():
        assert split.features == published_features()
        assert split.features["audio"] == Audio(sampling_rate=16_000)
        audio = split.cast_column("audio", Audio(decode=False))["audio"]
        assert [row["bytes"] for row in audio] == [clip for clip in world.corpora[name].clips for _ in MODES]
        assert split["mode"][:4] == [*MODES, next(iter(MODES))]
        assert set(split["source_dataset"]) == {name}
    frame = pd.read_parquet(world.releases / "latest" / "data" / "meld")
    assert len(frame) == 9


def test_the_cards_example_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (build(world, "r1").path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(world.releases)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    exec(code, {})
    assert f"sift_s answers clip 0 {len(world.corpora['ravdess'].clips[0])}" in capsys.readouterr().out


@pytest.mark.usefixtures("unopened")
def test_a_release_holds_what_its_manifest_says(world: World) -> None:
    made = build(world, "r1")
    assert made.path == world.releases / "r1"
    assert latest_name(world) == "r1"
    assert made.manifest == read_manifest(made.path) == latest_manifest(world.releases)
    assert set(contents(made.path)) == {"README.md", "manifest.json", *(file.path for file in made.manifest.files)}
    assert {file.path: file.sha256 for file in made.manifest.files}.items() <= contents(made.path).items()
    assert made.manifest.sources["meld"].rows_by_mode == dict.fromkeys(MODES, 3)
    assert not list(world.releases.glob(".building-*"))


@pytest.mark.usefixtures("unopened")
def test_unchanged_sources_are_linked_and_changed_ones_written(world: World) -> None:
    first = build(world, "r1")
    changed = world.changed("meld")
    second = build(changed, "r2", meld="other")
    assert (second.reused, changed.written) == (("ravdess",), ["meld"])
    name = "data/ravdess/train-00000-of-00001.parquet"
    assert (first.path / name).stat().st_ino == (second.path / name).stat().st_ino
    assert second.manifest.sources["ravdess"] == first.manifest.sources["ravdess"]
    assert second.manifest.sources["meld"].clips == 2
    assert first.manifest.sources["meld"].clips == 3
    assert verify_release(first.path) == first.manifest
    assert latest_name(world) == "r2"


@pytest.mark.usefixtures("unopened")
def test_a_reused_source_shows_its_newest_revision(world: World) -> None:
    build(world, "r1")
    plan = world.plan("r2", meld="other")
    moved = {name: replace(source, revision="def456") for name, source in plan.sources.items()}
    second = build_release(world.releases, replace(plan, sources=moved), world.rows, world.audio)
    assert second.reused == ("ravdess",)
    assert {source.revision for source in second.manifest.sources.values()} == {"def456"}


@pytest.mark.usefixtures("unopened")
def test_another_writer_version_reuses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(world, "r1")
    monkeypatch.setattr(release, "WRITER_VERSION", 99)
    assert needs_release(first.manifest, first.manifest.fingerprints)
    assert build(world, "r2").reused == ()


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_damaged_file_is_written_anew(world: World, damage: str) -> None:
    first = build(world, "r1")
    path = first.path / first.manifest.sources["meld"].files[0].path
    content = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(content[:50] + b"\0" + content[51:])
    second = build(world, "r2")
    assert second.reused == ("ravdess",)
    assert second.manifest.sources == first.manifest.sources


@pytest.mark.usefixtures("unopened")
def test_files_are_copied_where_they_cannot_be_linked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise OSError("cross-device link")

    first = build(world, "r1")
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    second = build(world, "r2", meld="other")
    assert second.reused == ("ravdess",)
    assert contents(first.path / "data") == contents(second.path / "data")


@pytest.mark.usefixtures("unopened")
def test_a_spoiled_copy_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise OSError("cross-device link")

    first = build(world, "r1")
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    spoil = lambda source, target: target.write_bytes(source.read_bytes()[:-9] + b"123456789")  # noqa: E731
    monkeypatch.setattr(release.shutil, "copyfile", spoil)
    with pytest.raises(ReleaseError, match="sha256"):
        build(world, "r2", meld="other")
    assert latest_name(world) == "r1"
    assert verify_release(first.path) == first.manifest


@pytest.mark.usefixtures("unopened")
def test_a_release_is_needed_when_a_source_is_new_changed_or_gone(world: World) -> None:
    manifest = build(world, "r1").manifest
    same = {"ravdess": "unchanged", "meld": "unchanged"}
    assert needs_release(None, same)
    assert not needs_release(manifest, same)
    assert needs_release(manifest, {**same, "meld": "other"})
    assert needs_release(manifest, {**same, "esd": "new"})
    assert needs_release(manifest, {"ravdess": "unchanged"})


@pytest.mark.usefixtures("unopened")
def test_a_source_without_rows_is_in_the_manifest_but_no_split(world: World, make_corpus) -> None:
    world.corpora["esd"] = make_corpus("esd", [None, b"no audio"])
    made = build(world, "r1")
    assert made.manifest.sources["esd"].left_out == {"audio missing": 3, "not audio": 3}
    assert "data/esd" not in (made.path / "README.md").read_text()
    assert build(world, "r2", meld="other").reused == ("ravdess", "esd")


@pytest.mark.usefixtures("unopened")
def test_a_release_without_rows_is_refused_with_the_reason(world: World, make_corpus) -> None:
    world.corpora = {"esd": make_corpus("esd", [None])}
    with pytest.raises(ReleaseError, match=r"esd.*audio missing': 3"):
        build(world, "r1")
    assert sorted(path.name for path in world.releases.iterdir()) == [".lock"]


@pytest.mark.parametrize("release_id", ["", "latest", "../r1", ".hidden", "a/b"])
def test_ids_that_are_no_folder_names_are_refused(world: World, release_id: str) -> None:
    with pytest.raises(ReleaseError, match="release id"):
        build(world, release_id)


@pytest.mark.usefixtures("unopened")
def test_an_id_that_was_used_for_other_rows_is_refused(world: World) -> None:
    build(world, "r1")
    with pytest.raises(ReleaseError, match="r1 exists"):
        build(world, "r1", meld="other")


@pytest.mark.usefixtures("unopened")
def test_the_same_release_again_is_taken_as_it_is(world: World) -> None:
    first = build(world, "r1")
    (world.releases / "latest").unlink()
    world.written.clear()
    assert build(world, "r1").manifest == first.manifest
    assert world.written == []
    assert latest_name(world) == "r1"


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize(
    "step",
    ["write_source", "_entry", "_link_files", "write_manifest", "build_card", "verify_release", "_sync_tree",
     "_point_latest_to"],
)  # fmt: skip
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_last_release(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    first = build(world, "r1")
    before = contents(first.path)
    with monkeypatch.context() as patch:
        patch.setattr(release, step, fail)
        with pytest.raises(type(error)):
            build(world, "r2", meld="other")
    assert latest_name(world) == "r1"
    assert contents(first.path) == before
    assert not list(world.releases.glob(".building-*"))
    assert build(world, "r2", meld="other").path == (world.releases / "latest").resolve()


@pytest.mark.usefixtures("unopened")
def test_a_failure_amid_the_rows_leaves_nothing(world: World) -> None:
    def audio(file: str, row_group: int) -> None:
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        build_release(world.releases, world.plan("r1"), world.rows, lambda source: audio)
    assert sorted(path.name for path in world.releases.iterdir()) == [".lock"]


def hang(marker: Path) -> None:
    """Say that this step was reached, and stay there until killed."""
    marker.touch()
    time.sleep(600)


def build_and_hang(releases: Path, hub: Path, step: str, marker: Path) -> None:
    """Build release r2 and hang at a step; runs in a process of its own."""
    names = {"ravdess": 5, "meld": 3}
    clips = {name: [wav(seed) for seed in range(count)] for name, count in names.items()}
    world = World(releases, {name: Corpus(hub / name, name, clips[name]) for name in names})
    audio = world.audio
    release.check_opens = lambda path, cache: None
    if step == "audio":
        audio = lambda source: lambda file, group: hang(marker)  # noqa: E731
    else:
        setattr(release, step, lambda *args, **options: hang(marker))
    build_release(releases, world.plan("r2", meld="other"), world.rows, audio)


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("step", ["audio", "check_opens", "_point_latest_to"])
def test_a_killed_build_leaves_the_last_release_and_the_next_one_completes(
    world: World, tmp_path: Path, step: str
) -> None:
    first = build(world, "r1")
    before = contents(first.path)
    marker = tmp_path / "reached"
    builder = multiprocessing.get_context("spawn").Process(
        target=build_and_hang, args=(world.releases, tmp_path / "child", step, marker), daemon=True
    )
    builder.start()
    while not marker.exists():
        assert builder.is_alive()
        time.sleep(0.05)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert bool(list(world.releases.glob(".building-*"))) is (step != "_point_latest_to")
    assert latest_name(world) == "r1"
    assert contents(first.path) == before
    assert verify_release(world.releases / "latest") == first.manifest

    assert build(world, "r2", meld="other").manifest.sources["meld"].fingerprint == "other"
    assert latest_name(world) == "r2"
    assert not list(world.releases.glob(".building-*"))


@pytest.mark.usefixtures("unopened")
def test_a_second_builder_waits_for_the_first(world: World, tmp_path: Path) -> None:
    marker = tmp_path / "reached"
    builder = multiprocessing.get_context("spawn").Process(
        target=build_and_hang, args=(world.releases, tmp_path / "child", "audio", marker), daemon=True
    )
    builder.start()
    while not marker.exists():
        assert builder.is_alive()
        time.sleep(0.05)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(build, world, "r3")
        time.sleep(0.3)
        assert not waiting.done()
        os.kill(builder.pid, signal.SIGKILL)
        assert waiting.result(timeout=30).path.name == "r3"
    builder.join()


@pytest.mark.usefixtures("unopened")
def test_an_unreadable_manifest_costs_a_full_build(world: World) -> None:
    made = build(world, "r1")
    (made.path / "manifest.json").write_text("{")
    assert latest_manifest(world.releases) is None
    assert build(world, "r2").reused == ()


def test_there_is_no_latest_manifest_before_the_first_release(tmp_path: Path) -> None:
    assert latest_manifest(tmp_path / "releases") is None
    (tmp_path / "latest").symlink_to("gone")
    assert latest_manifest(tmp_path) is None


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path, file: file.unlink(), "missing"),
        (lambda path, file: (path / "data" / "extra.parquet").touch(), "not listed"),
        (lambda path, file: file.chmod(0o644) or file.write_bytes(file.read_bytes()[:-1] + b"x"), "sha256"),
        (lambda path, file: (path / "manifest.json").unlink(), "manifest"),
    ],
)
def test_verification_finds_damage(world: World, damage, message: str) -> None:
    made = build(world, "r1")
    damage(made.path, made.path / made.manifest.files[0].path)
    with pytest.raises(ReleaseError, match=message):
        verify_release(made.path)


@pytest.mark.usefixtures("unopened")
def test_a_row_without_a_response_is_never_promoted(world: World) -> None:
    table = world.corpora["meld"].table()
    responses = [*table["response"].to_pylist()[:-1], ""]
    position = table.column_names.index("response")
    world.corpora["meld"].table = lambda: table.set_column(position, "response", [responses])
    with pytest.raises(ReleaseError, match="1 rows without a response"):
        build(world, "r1")
    assert not (world.releases / "latest").exists()


@pytest.mark.usefixtures("unopened")
def test_the_release_that_latest_names_is_never_removed(world: World) -> None:
    ids = [own_id(number) for number in range(4)]
    for release_id in ids:
        build(world, release_id, meld=release_id)
    (world.releases / "latest").unlink()
    (world.releases / "latest").symlink_to(ids[0])  # somebody went back
    assert release.prune_releases(world.releases, 0) == []
    assert release.prune_releases(world.releases, 3) == [ids[1]]
    assert release.prune_releases(world.releases, 1) == [ids[3], ids[2]]
    assert [path.name for path in release.promoted_releases(world.releases)] == [ids[0]]
    verify_release(world.releases / "latest")


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_folders_of_others_are_neither_listed_nor_removed(world: World, keep: int) -> None:
    ids = [own_id(number) for number in range(3)]
    for release_id in ids:
        build(world, release_id, meld=release_id)
    others = ["00-raw", "r1", "zzz", f"{ids[0]}-old", f"x{ids[0]}"]
    for name in others:
        (world.releases / name).mkdir()
        (world.releases / name / "manifest.json").write_text('{"name": "an app"}')
    assert {path.name for path in release.promoted_releases(world.releases)} == set(ids)
    assert release.unpromoted(world.releases) == {}
    release.prune_releases(world.releases, keep)
    kept = ids[-keep:] if keep else ids
    assert {path.name for path in world.releases.glob("[!.]*")} == {*others, *kept, "latest"}


@pytest.mark.usefixtures("unopened")
def test_a_release_lies_aside_until_it_is_promoted(world: World) -> None:
    first, second = own_id(1), own_id(2)
    build(world, first)
    made = release.build_aside(world.releases, world.plan(second, meld="other"), world.rows, world.audio)
    assert latest_name(world) == first
    assert release.unpromoted(world.releases) == {second: made.path}
    assert {path.name for path in world.releases.glob("[!.]*")} == {first, "latest"}
    release.ask_for_review(made.path)
    assert release.promote(world.releases, second) == release.promote(world.releases, second) == world.releases / second
    assert latest_name(world) == second and release.unpromoted(world.releases) == {}
    assert set(contents(world.releases / second)) == {
        "README.md",
        "manifest.json",
        *(f.path for f in made.manifest.files),
    }
    with pytest.raises(ReleaseError, match="release r3 is not in"):
        release.promote(world.releases, "r3")


@pytest.mark.usefixtures("unopened")
def test_a_release_that_lost_rows_is_not_promoted(world: World) -> None:
    first = build(world, "r1")
    plan = world.plan("r2", meld="other")
    expected = replace(plan.sources["meld"], accepted=12)  # its corpus has the clips of nine rows
    plan = replace(plan, sources={**plan.sources, "meld": expected})
    with pytest.raises(ReleaseError, match=r"r2 is not promoted; rows.*, meld: 9 \+ 0 \+ 0 \(allowed: 12 acc"):
        build_release(world.releases, plan, world.rows, world.audio)
    assert latest_name(world) == "r1" and latest_manifest(world.releases) == first.manifest
    assert not list(world.releases.glob(".building-*"))


@pytest.mark.usefixtures("unopened")
def test_a_plan_that_failed_a_gate_reads_no_audio(world: World) -> None:
    failed = [Gate(name=name, measured="9%", limit="1%", passed=False) for name in ("this", "that")]
    with pytest.raises(ReleaseError, match=r"this: 9% \(allowed: 1%\); that: 9%"):
        build_release(world.releases, replace(world.plan("r1"), gates=tuple(failed)), world.rows, world.audio)
    assert world.written == []
    # What lies aside was built when the limits were others.
    release.build_aside(world.releases, world.plan("r1"), world.rows, world.audio)
    with pytest.raises(ReleaseError, match=r"this: 9% \(allowed: 1%\); that: 9%"):
        build_release(world.releases, replace(world.plan("r1"), gates=tuple(failed)), world.rows, world.audio)


@pytest.mark.usefixtures("unopened")
def test_held_out_files_are_linked_too(world: World) -> None:
    world.corpora["ravdess"].held_out = (1,)
    first = build(world, "r1")
    assert [split.rows for split in first.manifest.sources["ravdess"].splits.values()] == [12, 3]
    second = build(world.changed("meld"), "r2", meld="other")
    assert second.reused == ("ravdess",)
    assert second.manifest.sources["ravdess"] == first.manifest.sources["ravdess"]
    name = "data/ravdess/heldout-00000-of-00001.parquet"
    assert (first.path / name).stat().st_ino == (second.path / name).stat().st_ino
