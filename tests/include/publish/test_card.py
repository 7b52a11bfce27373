"""The card: front matter that `datasets` reads, and a body that data cannot break."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from include.modes import MODES
from include.publish.card import build_card
from include.publish.manifest import FileEntry, Gate, Manifest, SourceEntry, SplitEntry
from include.publish.record import card_features
from tests.include.publish.clip_corpus import World
from tests.include.publish.test_manifest import manifest


def finished(world: World, *, held_out: bool = False, **changes: object) -> Manifest:
    """The manifest of a release of this world, where only ravdess has rows."""
    plan = world.plan("r1")

    def file(name: str, rows: int) -> FileEntry:
        return FileEntry(path=f"data/ravdess/{name}-00000-of-00001.parquet", rows=rows, bytes=1000, sha256="a" * 64)

    splits = {
        "train": SplitEntry(rows_by_mode=dict.fromkeys(MODES, 5), clips=5, arrow_bytes=3000, files=(file("train", 15),))
    }
    if held_out:
        splits["heldout"] = SplitEntry(
            rows_by_mode=dict.fromkeys(MODES, 1), clips=1, arrow_bytes=600, files=(file("heldout", 3),)
        )
    entries = {
        name: SourceEntry(
            fingerprint="f",
            revision="abc",
            licence="x",
            redistributable=True,
            task="sift",
            accepted=15 if name == "ravdess" else 9,
            modes={},
            prompts={},
            generator="m@r",
            splits=splits if name == "ravdess" else {},
            left_out={} if name == "ravdess" else {"audio missing": 9},
        )
        for name in plan.sources
    }
    values = {"sources": entries, "generator": plan.generator, "modes": plan.modes, "verdicts": plan.verdicts}
    return manifest(**(values | changes))


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter_lists_only_splits_that_have_a_file(world: World) -> None:
    data = front_matter(build_card(world.plan("r1"), finished(world)))
    default, omni = data["configs"]
    assert (default["config_name"], default["default"]) == ("default", True)
    assert default["data_files"] == [{"split": "ravdess", "path": "data/ravdess/train-*.parquet"}]
    assert (omni["config_name"], "default" in omni) == ("omni", False)
    assert omni["data_files"] == [{"split": "train", "path": "data/*/train-*.parquet"}]
    info, omni_info = data["dataset_info"]
    assert info["features"] == omni_info["features"] == card_features()
    assert info["splits"] == [{"name": "ravdess", "num_bytes": 3000, "num_examples": 15}]
    assert omni_info["splits"] == [{"name": "train", "num_bytes": 3000, "num_examples": 15}]
    assert (info["download_size"], info["dataset_size"]) == (1000, 3000)


def test_held_out_files_are_splits_of_both_configurations(world: World) -> None:
    data = front_matter(build_card(world.plan("r1"), finished(world, held_out=True)))
    default, omni = ({part["split"]: part["path"] for part in config["data_files"]} for config in data["configs"])
    assert default == {
        "ravdess": "data/ravdess/train-*.parquet",
        "ravdess_heldout": "data/ravdess/heldout-*.parquet",
    }
    assert omni == {"train": "data/*/train-*.parquet", "validation": "data/*/heldout-*.parquet"}
    for info in data["dataset_info"]:
        assert [split["num_examples"] for split in info["splits"]] == [15, 3]
        assert (info["download_size"], info["dataset_size"]) == (2000, 3600)


def test_without_a_sift_source_omni_is_all_there_is(world: World) -> None:
    made = finished(world)
    sources = {name: entry.model_copy(update={"task": "answer"}) for name, entry in made.sources.items()}
    data = front_matter(build_card(world.plan("r1"), made.model_copy(update={"sources": sources})))
    (config,) = data["configs"]
    assert (config["config_name"], config["default"]) == ("omni", True)


def test_body_shows_counts_labels_verdicts_and_generator(world: World) -> None:
    gate = Gate(name="samples given up, sit_ssp", measured="1 of 9 (11.11%)", limit="20.00%", passed=True)
    changes = {"gates": (gate,), "quality": {"sift_s": {"words_mean": 11.25}}}
    plan = world.plan("r1")
    plan = replace(
        plan, sources={name: replace(source, citation="Somebody, 2020") for name, source in plan.sources.items()}
    )
    card = build_card(plan, finished(world, held_out=True, **changes))
    for line in [
        "| ravdess | sift_s | 5 | 1 |",
        "| meld | sift | 0 | 0 |",
        "| ravdess | sift | 6 | 18 | - |",
        "| meld | sift | 0 | 0 | audio missing: 9 |",
        "| default | ravdess_heldout | 3 |",
        "| omni | validation | 3 |",
        "| happy | 2 |",
        "| (none) | 1 |",
        "| leaked_tag | 1 | 1 | 1 |",
        "| words_mean | 11.2 | - | - |",
        "| samples given up, sit_ssp | 1 of 9 (11.11%) | 20.00% |",
        "| sampling.top_p | 0.92 |",
        "- meld: Somebody, 2020",
    ]:
        assert f"\n{line}\n" in card, line


def test_data_cannot_break_tables_or_become_markup(world: World) -> None:
    card = build_card(world.plan("r1"), finished(world, generator={"model": "a|b\n[x](y) <img> `c` __d__"}))
    assert r"| model | a\|b \[x\](y) \<img\> \`c\` \_\_d\_\_ |" in card
    assert r"| a\|b \*c\* | 1 |" in card
    assert r"| The \| ravdess \<corpus\>, https://example.org/ravdess |" in card
    for table in card.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") - line.count(r"\|") for line in lines}) <= 1, table


@pytest.mark.parametrize(
    ("model", "warned"), [("HuggingFaceTB/SmolLM3-3B", False), ("SmolLM2-135M-Instruct", True), ("fake", True)]
)
def test_another_model_than_the_contracts_makes_a_demonstration(world: World, model: str, warned: bool) -> None:
    card = build_card(world.plan("r1"), finished(world, generator={"model": model}))
    assert ("A demonstration" in card) is warned


def test_long_label_tables_are_cut_and_add_up(world: World) -> None:
    labels = {"ravdess": {"accent": {f"accent {number:02d}": 1 for number in range(50)}}}
    card = build_card(replace(world.plan("r1"), labels=labels), finished(world))
    assert "| accent 19 | 1 |" in card
    assert "| accent 20 |" not in card
    assert "| (30 others) | 30 |" in card
