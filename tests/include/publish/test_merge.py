"""From the warehouse to a release: what is complete, what is reused, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks._corpus import write_every_source
from include.generate import describe_quality, plan_run
from include.generation.runner import current_mode_hashes
from include.modes import MODES
from include.publish import release as release_module
from include.publish.guards import OverwriteError
from include.publish.manifest import ReleaseError, read_manifest
from include.publish.merge import has_news
from include.publish.targets import open_target
from include.settings import PROJECT_ROOT, Settings
from include.sources import RECIPES
from include.storage.releases import list_releases
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLED, SAMPLES
from tests.include.publish.steps import EVERYTHING, default_target, folder_target, generate, merge_and_publish, stage


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    shutil.copytree(SAMPLES, tmp_path / "hub")
    return make_settings(hub=str(tmp_path / "hub"))


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the process that opens a built release with `datasets`."""
    monkeypatch.setattr(release_module, "check_opens", lambda path, cache: None)


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


@pytest.mark.usefixtures("unopened")
def test_nothing_new_publishes_nothing(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    assert has_news(warehouse, settings, EVERYTHING, default_target(settings))
    merge_and_publish(warehouse, settings, EVERYTHING)
    assert not has_news(warehouse, settings, EVERYTHING, default_target(settings))
    assert merge_and_publish(warehouse, settings, EVERYTHING) is None
    assert not generate(warehouse, settings)


@pytest.mark.usefixtures("unopened")
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


@pytest.mark.usefixtures("unopened")
def test_an_incomplete_source_waits_or_keeps_its_part(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings, sources=["meld"])
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    assert first and list(first["rows"]) == ["meld"] and first["waiting"] == ["ravdess"]
    # Another sentence came in, so meld is pending again; only ravdess gets done.
    change_a_text(settings, "meld")
    stage(warehouse, settings, "meld", run_id="2")
    generate(warehouse, settings, sources=["ravdess"])
    second = merge_and_publish(warehouse, settings, EVERYTHING)
    assert second and list(second["rows"]) == ["meld", "ravdess"]
    assert second["waiting"] == ["meld"] and second["reused"] == ["meld"]
    assert second["rows"]["meld"] == first["rows"]["meld"]


def change_a_text(settings: Settings, source: str) -> None:
    """Change one transcript of a corpus."""
    (path,) = (Path(settings.hub) / RECIPES[source].repository).rglob("*.parquet")
    table = pq.read_table(path)
    texts = ["Something else was said.", *table["text"].to_pylist()[1:]]
    position = table.column_names.index("text")
    pq.write_table(table.set_column(position, table.schema.field("text"), pa.array(texts)), path)


@pytest.mark.usefixtures("unopened")
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
    assert manifest.narrowed == "with max_samples=2" and manifest.verdicts == {mode: {"accepted": 4} for mode in MODES}
    assert "**A trial.** It was made with max_samples=2." in (Path(trial["uri"]) / "README.md").read_text()
    assert merge_and_publish(warehouse, settings, narrowed, trials) is None
    # A larger trial may take its place, and so may the whole dataset.
    generate(warehouse, settings, trials, max_samples=3)
    assert merge_and_publish(warehouse, settings, {**EVERYTHING, "max_samples": 3}, trials)
    generate(warehouse, settings, trials)
    whole = merge_and_publish(warehouse, settings, EVERYTHING, trials)
    assert whole and read_manifest(Path(whole["uri"])).narrowed is None
    with pytest.raises(OverwriteError, match=f"would take the place of release {whole['release_id']}, which is whole"):
        generate(warehouse, settings, trials, max_samples=2)


@pytest.mark.parametrize(
    ("default", "asked"), [("trials/", "trials"), ("trials", "trials/"), ("releases", "releases/")]
)
def test_the_default_target_takes_no_trial_however_it_is_spelled(
    warehouse: Warehouse, settings: Settings, default: str, asked: str
) -> None:
    settings = settings.model_copy(update={"target": f"{settings.home}/{default}"})
    target = open_target(f"{settings.home}/{asked}", settings, private=True, s3_client=dict, hub_account=dict)
    stage(warehouse, settings, "meld")
    with pytest.raises(OverwriteError, match="max_samples=2 would take the place of the dataset"):
        generate(warehouse, settings, target, max_samples=2)


@pytest.mark.usefixtures("unopened")
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


@pytest.mark.usefixtures("unopened")
def test_another_model_does_not_take_the_place_of_the_dataset(
    warehouse: Warehouse, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    assert first
    monkeypatch.setattr("include.generation.identity._model_identity", lambda settings: ("other", "r1", "none"))
    assert generate(warehouse, settings)  # as a run does that nobody watches
    said = f"release {first['release_id']} was written by fake, .* by other.* force=true once everything is generated"
    with pytest.raises(OverwriteError, match=said):
        merge_and_publish(warehouse, settings, EVERYTHING)
    forced = merge_and_publish(warehouse, settings, {**EVERYTHING, "force": True})
    assert forced and read_manifest(Path(forced["uri"])).generator["model"] == "other"


@pytest.mark.usefixtures("unopened")
def test_a_source_that_is_left_out_leaves_the_release(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    merge_and_publish(warehouse, settings, EVERYTHING)
    release = merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["meld"]})
    assert release and list(release["rows"]) == ["ravdess"] and release["reused"] == ["ravdess"]
    with pytest.raises(ValueError, match="unknown sources melt"):
        merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["melt"]})


def forget(warehouse: Warehouse, source: str) -> None:
    """Make the warehouse one that never staged a source."""
    with warehouse.connection() as connection:
        connection.execute("delete from staging.samples where source = %s", [source])
        connection.execute("delete from staging.loads where source = %s", [source])


@pytest.mark.usefixtures("unopened")
def test_a_source_that_this_warehouse_never_staged_keeps_its_part(
    warehouse: Warehouse, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    forget(warehouse, "ravdess")
    assert not has_news(warehouse, settings, EVERYTHING, default_target(settings))
    with caplog.at_level("WARNING"):
        assert merge_and_publish(warehouse, settings, EVERYTHING) is None
    assert "not staged in this warehouse, so left as they were: ravdess" in caplog.text
    change_a_text(settings, "meld")
    stage(warehouse, settings, "meld", run_id="2")
    generate(warehouse, settings)
    second = merge_and_publish(warehouse, settings, EVERYTHING)
    assert first and second and second["rows"] == first["rows"]
    assert (second["unstaged"], second["reused"]) == (["ravdess"], ["ravdess"])
    assert "Not staged in this warehouse, so as before: ravdess." in second["summary"]
    # Its files are all there is of it.
    (file,) = (Path(second["uri"]) / "data" / "ravdess").glob("*.parquet")
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    stage(warehouse, settings, "commonvoice")
    generate(warehouse, settings)
    with pytest.raises(ReleaseError, match=r"ravdess is not staged, and its files .* run ingest_ravdess"):
        merge_and_publish(warehouse, settings, EVERYTHING)
    left = merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["ravdess"]})
    assert left and set(left["rows"]) == {"commonvoice", "meld"}


@pytest.mark.usefixtures("unopened")
def test_a_new_warehouse_empties_no_dataset(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    forget(warehouse, "meld")
    forget(warehouse, "ravdess")
    assert not has_news(warehouse, settings, EVERYTHING, default_target(settings))
    assert merge_and_publish(warehouse, settings, EVERYTHING) is None
    stage(warehouse, settings, "commonvoice")
    generate(warehouse, settings)
    second = merge_and_publish(warehouse, settings, EVERYTHING)
    assert first and second and second["unstaged"] == ["meld", "ravdess"]
    assert second["rows"].items() > first["rows"].items()


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("way_out", [{"leave_out": ["meld"]}, {"force": True}])
@pytest.mark.parametrize("loss", ["no recipe has that name", "staged here, but no accepted row is left"])
def test_a_source_of_which_nothing_is_left_is_dropped_only_if_somebody_says_so(
    warehouse: Warehouse, settings: Settings, monkeypatch: pytest.MonkeyPatch, loss: str, way_out: dict[str, Any]
) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    merge_and_publish(warehouse, settings, EVERYTHING)
    if "recipe" in loss:
        monkeypatch.delitem(RECIPES, "meld")
    else:
        with warehouse.connection() as connection:
            connection.execute("delete from staging.samples where source = 'meld'")
    assert has_news(warehouse, settings, EVERYTHING, default_target(settings))
    with pytest.raises(ReleaseError, match=rf'meld \({loss}\)\. .*: leave_out=\["meld"\], or force=true'):
        merge_and_publish(warehouse, settings, EVERYTHING)
    release = merge_and_publish(warehouse, settings, {**EVERYTHING, **way_out})
    assert release and list(release["rows"]) == ["ravdess"]


def test_a_corpus_that_changed_since_it_was_staged_is_refused(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    files = Path(settings.hub) / RECIPES["meld"].repository / "data"
    other = Path(settings.hub) / RECIPES["ravdess"].repository / "data"
    shutil.copy(next(other.glob("*.parquet")), next(files.glob("*.parquet")))
    with pytest.raises(ReleaseError, match=r"meld: data/train-.* changed since it was staged .* run ingest_meld first"):
        merge_and_publish(warehouse, settings, EVERYTHING)
    assert not (settings.releases_dir / "latest").exists()


@pytest.mark.usefixtures("unopened")
def test_given_up_rows_are_left_out_and_counted(warehouse: Warehouse, settings: Settings) -> None:
    limits = {"default": 1.0}
    faulty = settings.model_copy(update={"fake_faults": "empty:0.4", "max_attempts": 1, "max_given_up": limits})
    stage(warehouse, faulty, "meld")
    generate(warehouse, faulty)
    release = merge_and_publish(warehouse, faulty, EVERYTHING)
    assert release
    manifest = read_manifest(Path(release["uri"]))
    for mode, rows in release["rows"]["meld"].items():
        assert manifest.verdicts[mode] == {"accepted": rows, "empty": 18 - rows}


@pytest.mark.usefixtures("unopened")
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


@pytest.mark.usefixtures("unopened")
def test_a_release_is_of_one_generator_or_not_promoted(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    assert first
    before = read_manifest(Path(first["uri"]))
    # Prompts of another date: all is pending again, only ravdess gets done, and meld would keep its part.
    other = settings.model_copy(update={"frozen_date": "2026-03-03"})
    generate(warehouse, other, sources=["ravdess"])
    with pytest.raises(ReleaseError) as refused:
        merge_and_publish(warehouse, other, EVERYTHING)
    for mode in MODES:
        kept, new = before.modes[mode][:12], current_mode_hashes(other, [mode])[mode][0][:12]
        assert f"mode hash, {mode}: {kept} for meld (kept, not complete); {new} for ravdess" in str(refused.value)
    assert read_manifest(settings.releases_dir / "latest") == before
    assert has_news(warehouse, other, EVERYTHING, default_target(other))
    generate(warehouse, other)
    second = merge_and_publish(warehouse, other, EVERYTHING)
    assert second
    manifest = read_manifest(Path(second["uri"]))
    assert manifest.generator["frozen_date"] == "2026-03-03"
    assert manifest.sources["ravdess"].modes == manifest.sources["meld"].modes == manifest.modes
    assert not set(before.modes.values()) & set(manifest.modes.values())


@pytest.mark.usefixtures("unopened")
def test_too_many_samples_given_up_keep_the_old_release(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "ravdess")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING)
    faulty = settings.model_copy(update={"fake_faults": "empty:0.4", "max_attempts": 1})
    stage(warehouse, faulty, "meld")
    generate(warehouse, faulty)
    with pytest.raises(ReleaseError, match=r"samples given up, sift_s: \d+ of 34 \(\d+\.\d\d%\) \(allowed: 1\.00%\)"):
        merge_and_publish(warehouse, faulty, EVERYTHING)
    assert first and (settings.releases_dir / "latest").resolve() == Path(first["uri"])
    assert [row["release_id"] for row in list_releases(warehouse)] == [first["release_id"]]


@pytest.mark.usefixtures("unopened")
def test_labels_that_no_rule_knows_keep_the_old_release(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    with warehouse.connection() as connection:
        connection.execute("insert into staging.unmapped_labels values ('meld', 'emotion', 'grumpy', 5, 'load')")
    with pytest.raises(ReleaseError, match=r"meld\.emotion: 27\.78% of 18 rows: 'grumpy' 5 \(allowed: 1\.00%"):
        merge_and_publish(warehouse, settings, EVERYTHING)
    assert not settings.releases_dir.exists() or not (settings.releases_dir / "latest").exists()
    tolerant = settings.model_copy(update={"max_unmapped": 0.3})
    assert merge_and_publish(warehouse, tolerant, EVERYTHING)


def test_the_manifest_and_the_card_say_what_was_checked(warehouse: Warehouse, settings: Settings) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    release = merge_and_publish(warehouse, settings, EVERYTHING)
    assert release
    found = {gate.name: gate.measured for gate in read_manifest(Path(release["uri"])).gates}
    assert found["rows: train + held out + left out"] == "54 + 0 + 0"
    assert found["model and revision"] == "fake@fake"
    assert found["samples given up, sit_ssp"] == "0 of 18 (0.00%)"
    assert found["labels that no rule knows"] == "none"
    card = (Path(release["uri"]) / "README.md").read_text()
    assert "| samples given up, sit_ssp | 0 of 18 (0.00%) | 3.00% |" in card
    assert all(f"| {name} |" in card for name in found)


@pytest.fixture
def every_source(settings: Settings) -> Settings:
    """The same settings with a corpus of a few rows for every recipe, one of which may be a tenth of all."""
    shutil.rmtree(settings.hub)
    write_every_source(Path(settings.hub))
    return settings.model_copy(update={"max_given_up": {"default": 0.1}, "max_unmapped": 0.5})


def test_rows_of_all_tasks_are_published(warehouse: Warehouse, every_source: Settings) -> None:
    settings = every_source
    stage(warehouse, settings, *RECIPES)
    generate(warehouse, settings, sources=list(RECIPES))
    release = merge_and_publish(warehouse, settings, EVERYTHING)
    assert release
    by_task = {task: {name for name, recipe in RECIPES.items() if recipe.task == task} for task in ("sift", "answer")}
    opened = load_undecoded(settings, release, "default")
    assert set(opened) == by_task["sift"]
    assert {task for split in opened.values() for task in split["task"]} == {"sift"}
    train = load_undecoded(settings, release, "omni")["train"]
    assert set(train["source_dataset"]) == set(RECIPES)
    for row in train:
        if row["task"] != "sift":
            asked = {"transcribe": "<audio> Transcribe: ", "answer": "<audio>"}[row["task"]]
            assert (row["mode"], row["messages"][0]["content"]) == ("", asked)
            assert row["messages"][1]["content"] == row["sift_response"] == row["sift_response"].lower()
            assert (row["sift_response"] == row["text"]) == (row["task"] == "transcribe")
    answers = train.filter(lambda task: task == "answer", input_columns="task")
    staged = read_fixture("heysquad")
    assert dict(zip(answers["sample_id"], answers["sift_response"], strict=True)) == {
        sample["sample_id"]: sample["answer"] for sample in staged if "reject_reason" not in sample
    }
    assert sum(rows["transcribe"] for name, rows in release["rows"].items() if name in ("ami", "loquacious")) == sum(
        "reject_reason" not in sample for name in ("ami", "loquacious") for sample in read_fixture(name)
    )


def load_undecoded(settings: Settings, release: dict[str, Any], config: str) -> datasets.DatasetDict:
    opened = datasets.load_dataset(release["uri"], config, cache_dir=str(settings.home / "cache"))
    return opened.cast_column("audio", datasets.Audio(decode=False))


def read_fixture(source: str) -> list[dict[str, Any]]:
    """The samples that the rows of a source's fixture become."""
    path = PROJECT_ROOT / "tests" / "include" / "sources" / "fixtures" / f"{source}.json"
    return json.loads(path.read_text(encoding="utf-8"))["samples"]


@pytest.mark.usefixtures("unopened")
def test_a_source_without_responses_is_complete_once_staged(warehouse: Warehouse, every_source: Settings) -> None:
    settings = every_source
    stage(warehouse, settings, "ami")
    # What a run does that ingest_ami woke: nothing is pending, but there is news.
    work = plan_run(warehouse, settings, EVERYTHING, default_target(settings))
    assert work == {mode: [] for mode in MODES}
    assert describe_quality(warehouse, settings, SAMPLED, list(MODES), "run")
    release = merge_and_publish(warehouse, settings, EVERYTHING)
    assert release and set(release["rows"]) == {"ami"} and set(release["rows"]["ami"]) == {"transcribe"}
    assert read_manifest(Path(release["uri"])).generator == {}
    assert "No language model wrote any row" in (Path(release["uri"]) / "README.md").read_text()
    assert plan_run(warehouse, settings, EVERYTHING, default_target(settings)) is None
    # A source that needs responses comes later, and leaves it as it is.
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    later = merge_and_publish(warehouse, settings, EVERYTHING)
    assert later and later["reused"] == ["ami"] and set(later["rows"]) == {"ami", "meld"}


def test_held_out_rows_are_in_files_and_splits_of_their_own(
    warehouse: Warehouse, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = replace(RECIPES["ravdess"], held_out_speakers=("03",))
    monkeypatch.setitem(RECIPES, "ravdess", named)
    stage(warehouse, settings, "ravdess", "meld")
    generate(warehouse, settings)
    release = merge_and_publish(warehouse, settings, EVERYTHING)
    assert release
    default, omni = (load_undecoded(settings, release, config) for config in ("default", "omni"))
    assert list(default) == ["meld", "ravdess", "ravdess_heldout"]
    assert list(omni) == ["train", "validation"]
    with warehouse.connection() as connection:
        by_speaker = connection.execute(
            "select speaker = '03' as chosen, count(*) as clips from staging.samples "
            "where source = 'ravdess' group by 1 order by 1"
        ).fetchall()
    assert [row["chosen"] for row in by_speaker] == [False, True]
    assert [3 * row["clips"] for row in by_speaker] == [len(default["ravdess"]), len(default["ravdess_heldout"])]
    assert set(default["ravdess_heldout"]["sample_id"]).isdisjoint(default["ravdess"]["sample_id"])
    assert omni["validation"]["sample_id"] == default["ravdess_heldout"]["sample_id"]
    assert len(omni["train"]) == len(default["ravdess"]) + len(default["meld"])
    assert not has_news(warehouse, settings, EVERYTHING, default_target(settings))
    monkeypatch.setitem(RECIPES, "ravdess", replace(named, held_out_speakers=()))
    assert has_news(warehouse, settings, EVERYTHING, default_target(settings))
    again = merge_and_publish(warehouse, settings, EVERYTHING)
    assert again and again["reused"] == ["meld"] and again["rows"] == release["rows"]


@pytest.mark.usefixtures("unopened")
def test_clips_that_cannot_be_published_are_counted_everywhere(
    warehouse: Warehouse, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = (Path(settings.hub) / RECIPES["meld"].repository).rglob("*.parquet")
    table = pq.read_table(path)
    clips = table["audio"].to_pylist()
    clips[0]["bytes"], clips[1]["bytes"], clips[2]["bytes"] = None, b"", b"<html>404 not found</html>"
    position = table.column_names.index("audio")
    audio = pa.array(clips, table.schema.field("audio").type)
    pq.write_table(table.set_column(position, table.schema.field("audio"), audio), path)
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    with caplog.at_level("WARNING"):
        release = merge_and_publish(warehouse, settings, EVERYTHING)
    assert release
    left_out = {"audio missing": 3, "audio empty": 3, "not audio": 3}
    entry = read_manifest(Path(release["uri"])).sources["meld"]
    assert entry.left_out == release["left_out"]["meld"] == left_out
    assert entry.rows + sum(left_out.values()) == entry.accepted == 54
    assert "audio empty: 3, audio missing: 3, not audio: 3" in (Path(release["uri"]) / "README.md").read_text()
    assert f"meld: rows whose clip cannot be published were left out: {left_out}" in caplog.text
