"""From the warehouse to a release: what is complete, what is reused, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from include.generate import describe_quality
from include.modes import MODES
from include.publish.guards import OverwriteError
from include.publish.manifest import ReleaseError, read_manifest
from include.publish.merge import has_news
from include.settings import Settings
from include.sources import RECIPES
from include.storage.releases import list_releases
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLED, SAMPLES
from tests.include.publish.steps import EVERYTHING, default_target, folder_target, generate, merge_and_publish, stage


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    shutil.copytree(SAMPLES, tmp_path / "hub")
    return make_settings(hub=str(tmp_path / "hub"))


def test_a_release_holds_every_accepted_row_and_opens(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, *SAMPLED)
    assert generate(warehouse, settings)
    release = merge_and_publish(warehouse, settings, EVERYTHING)
    assert release is not None
    opened = datasets.load_dataset(release["uri"], cache_dir=str(settings.home / "cache"))
    assert {split: len(rows) for split, rows in opened.items()} == {"commonvoice": 48, "meld": 54, "ravdess": 48}
    clips = opened["ravdess"].cast_column("audio", datasets.Audio(decode=False))
    assert clips[0]["mode"] == "sift_s" and clips[1]["mode"] == "sift_ssp" and clips[2]["mode"] == "sit_ssp"
    assert clips[0]["audio"] == clips[2]["audio"]
    source = datasets.load_dataset(str(SAMPLES / "AbstractTTS" / "RAVDESS"), cache_dir=str(settings.home / "cache"))
    original = source["train"].cast_column("audio", datasets.Audio(decode=False))
    assert [row["bytes"] for row in clips["audio"]][::3] == [row["bytes"] for row in original["audio"]]
    assert [row["release_id"] for row in list_releases(warehouse)] == [release["release_id"]]
    assert "ravdess         sift_s" in describe_quality(warehouse, settings, SAMPLED, list(MODES), "run")


def test_nothing_new_publishes_nothing(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    assert has_news(warehouse, settings, EVERYTHING, default_target(settings))
    merge_and_publish(warehouse, settings, EVERYTHING)
    assert not has_news(warehouse, settings, EVERYTHING, default_target(settings))
    assert merge_and_publish(warehouse, settings, EVERYTHING) is None
    assert not generate(warehouse, settings)


def test_an_added_source_reuses_the_files_of_the_others(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    stage(warehouse, settings, "ravdess")
    generate(warehouse, settings)
    second = merge_and_publish(warehouse, settings, EVERYTHING)
    assert first and second
    assert second["reused"] == ["meld"]
    assert sorted(second["rows"]) == ["meld", "ravdess"]


def test_an_incomplete_source_waits_or_keeps_its_part(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings, sources=["meld"])
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    assert first and list(first["rows"]) == ["meld"] and first["waiting"] == ["ravdess"]
    # Another model: all of meld is pending again, only ravdess gets done.
    other = settings.model_copy(update={"frozen_date": "2026-03-03"})
    generate(warehouse, other, sources=["ravdess"])
    second = merge_and_publish(warehouse, other, EVERYTHING)
    assert second and list(second["rows"]) == ["meld", "ravdess"]
    assert second["waiting"] == ["meld"] and second["reused"] == ["meld"]
    assert second["rows"]["meld"] == first["rows"]["meld"]


def test_a_narrowed_run_publishes_to_a_target_of_its_own_only(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    narrowed = {**EVERYTHING, "max_samples": 2}
    with pytest.raises(OverwriteError, match="max_samples=2 would take the place of the dataset"):
        generate(warehouse, settings, max_samples=2)
    assert generate(warehouse, settings, max_samples=2, publish=False)
    with pytest.raises(OverwriteError):
        merge_and_publish(warehouse, settings, narrowed)
    assert merge_and_publish(warehouse, settings, {**narrowed, "publish": False}) is None
    assert merge_and_publish(warehouse, settings, EVERYTHING) is None  # nothing is complete
    assert not (settings.releases_dir / "latest").exists()

    trials = folder_target(settings.home / "trials")
    assert not generate(warehouse, settings, trials, max_samples=2, publish=False)
    trial = merge_and_publish(warehouse, settings, narrowed, trials)
    assert trial and trial["rows"] == {name: dict.fromkeys(MODES, 2) for name in ("meld", "ravdess")}
    manifest = read_manifest(Path(trial["uri"]))
    assert manifest.max_samples == 2 and manifest.verdicts == {mode: {"accepted": 4} for mode in MODES}
    assert "**A trial.** At most 2 samples" in (Path(trial["uri"]) / "README.md").read_text()
    assert merge_and_publish(warehouse, settings, narrowed, trials) is None
    # A larger trial may take its place, and so may the whole dataset.
    generate(warehouse, settings, trials, max_samples=3)
    assert merge_and_publish(warehouse, settings, {**EVERYTHING, "max_samples": 3}, trials)
    generate(warehouse, settings, trials)
    whole = merge_and_publish(warehouse, settings, EVERYTHING, trials)
    assert whole and read_manifest(Path(whole["uri"])).max_samples is None
    with pytest.raises(OverwriteError, match=f"would take the place of release {whole['release_id']}, which is whole"):
        generate(warehouse, settings, trials, max_samples=2)


def test_some_modes_are_published_to_a_target_of_their_own_only(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld")
    only = {**EVERYTHING, "modes": ["sift_s"]}
    with pytest.raises(OverwriteError, match="without the modes sift_ssp, sit_ssp"):
        generate(warehouse, settings, modes=["sift_s"])
    trials = folder_target(settings.home / "trials")
    generate(warehouse, settings, trials, modes=["sift_s"])
    trial = merge_and_publish(warehouse, settings, only, trials)
    assert trial and trial["rows"] == {"meld": {"sift_s": 18}}
    assert set(read_manifest(Path(trial["uri"])).verdicts) == {"sift_s"}


def test_another_model_does_not_take_the_place_of_the_dataset(
    warehouse: Warehouse, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    assert first
    monkeypatch.setattr("include.generation.identity._model_identity", lambda settings: ("other", "r1", "none"))
    with pytest.raises(OverwriteError, match=f"release {first['release_id']} was written by fake, .* by other"):
        generate(warehouse, settings)
    generate(warehouse, settings, publish=False)
    with pytest.raises(OverwriteError, match="target of its own"):
        merge_and_publish(warehouse, settings, EVERYTHING)
    forced = merge_and_publish(warehouse, settings, {**EVERYTHING, "force": True})
    assert forced and read_manifest(Path(forced["uri"])).generator["model"] == "other"


def test_a_source_that_is_left_out_leaves_the_release(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    merge_and_publish(warehouse, settings, EVERYTHING)
    release = merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["meld"]})
    assert release and list(release["rows"]) == ["ravdess"] and release["reused"] == ["ravdess"]
    with pytest.raises(ValueError, match="unknown sources melt"):
        merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["melt"]})


def test_a_corpus_that_changed_since_it_was_staged_is_refused(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    files = Path(settings.hub) / RECIPES["meld"].repository / "data"
    other = Path(settings.hub) / RECIPES["ravdess"].repository / "data"
    shutil.copy(next(other.glob("*.parquet")), next(files.glob("*.parquet")))
    with pytest.raises(ReleaseError, match=r"meld: data/train-.* changed since it was staged .* run ingest_meld first"):
        merge_and_publish(warehouse, settings, EVERYTHING)
    assert not (settings.releases_dir / "latest").exists()


def test_given_up_rows_are_left_out_and_counted(warehouse: Warehouse, settings: Settings) -> None:
    faulty = settings.model_copy(update={"fake_faults": "empty:0.4", "max_attempts": 1})
    stage(warehouse, faulty, "meld")
    generate(warehouse, faulty)
    release = merge_and_publish(warehouse, faulty, EVERYTHING)
    assert release
    manifest = read_manifest(Path(release["uri"]))
    for mode, rows in release["rows"]["meld"].items():
        assert manifest.verdicts[mode] == {"accepted": rows, "empty": 18 - rows}


def test_a_run_that_died_after_promoting_is_finished_by_the_next_one(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    assert first
    # It died before `latest` pointed to its release and before the warehouse knew of it.
    (settings.releases_dir / "latest").unlink()
    with warehouse.connection() as connection:
        connection.execute("delete from publish.releases")
    second = merge_and_publish(warehouse, settings, EVERYTHING)
    assert second and second["release_id"] == first["release_id"]
    # It died before the warehouse knew of it.
    with warehouse.connection() as connection:
        connection.execute("delete from publish.releases")
    assert has_news(warehouse, settings, EVERYTHING, default_target(settings))
    assert merge_and_publish(warehouse, settings, EVERYTHING) is None
    assert [row["release_id"] for row in list_releases(warehouse)] == [first["release_id"]]
    assert not has_news(warehouse, settings, EVERYTHING, default_target(settings))


def test_a_part_that_was_kept_says_what_wrote_it(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    merge_and_publish(warehouse, settings, EVERYTHING)
    other = settings.model_copy(update={"frozen_date": "2026-03-03"})
    generate(warehouse, other, sources=["ravdess"])
    release = merge_and_publish(warehouse, other, EVERYTHING)
    assert release
    manifest = read_manifest(Path(release["uri"]))
    assert manifest.generator["frozen_date"] == "2026-03-03"
    assert manifest.sources["ravdess"].modes == manifest.modes
    assert set(manifest.sources["meld"].modes) == set(manifest.modes)
    assert not set(manifest.sources["meld"].modes.values()) & set(manifest.modes.values())
