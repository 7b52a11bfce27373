"""From the warehouse to a release: what is complete, what is reused, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from include import ingest
from include.generate import describe_quality, generate_shard, plan_run
from include.modes import MODES
from include.publish.manifest import ReleaseError, read_manifest
from include.publish.merge import has_news, merge_and_publish
from include.settings import Settings
from include.sources import RECIPES
from include.storage.releases import list_releases
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLED, SAMPLES

EVERYTHING: dict[str, Any] = {"sources": SAMPLED, "modes": list(MODES), "max_samples": None, "publish": True}


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    shutil.copytree(SAMPLES, tmp_path / "hub")
    return make_settings(hub=str(tmp_path / "hub"))


def stage(warehouse: Warehouse, settings: Settings, *sources: str, run_id: str = "1") -> None:
    for name in sources:
        recipe = RECIPES[name]
        groups = ingest.resolve_revision(recipe, settings.hub, warehouse, run_id=run_id, force=True)
        ingest.merge_groups(recipe, [ingest.load_group(recipe, group, warehouse) for group in groups], warehouse)


def generate(warehouse: Warehouse, settings: Settings, **params: Any) -> bool:
    """Plan and generate; False when the plan finds no work at all."""
    work = plan_run(warehouse, settings, {**EVERYTHING, **params})
    for shards in (work or {}).values():
        for shard in shards:
            generate_shard(warehouse, settings, shard, "run")
    return work is not None


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
    assert has_news(warehouse, settings, EVERYTHING)
    merge_and_publish(warehouse, settings, EVERYTHING)
    assert not has_news(warehouse, settings, EVERYTHING)
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


def test_a_narrowed_run_does_not_publish(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld")
    narrowed = {**EVERYTHING, "max_samples": 2}
    assert generate(warehouse, settings, max_samples=2)
    assert merge_and_publish(warehouse, settings, narrowed) is None
    assert merge_and_publish(warehouse, settings, EVERYTHING) is None  # nothing is complete
    assert not settings.releases_dir.exists()


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
    assert has_news(warehouse, settings, EVERYTHING)
    assert merge_and_publish(warehouse, settings, EVERYTHING) is None
    assert [row["release_id"] for row in list_releases(warehouse)] == [first["release_id"]]
    assert not has_news(warehouse, settings, EVERYTHING)


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
