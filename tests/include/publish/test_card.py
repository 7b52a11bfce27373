"""The card: front matter that `datasets` reads, and a body that data cannot break."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from include.modes import MODES
from include.publish.card import build_card
from include.publish.manifest import FileEntry, Manifest, SourceEntry
from include.publish.record import card_features
from tests.include.publish.clip_corpus import World
from tests.include.publish.test_manifest import manifest


def finished(world: World, **changes: object) -> Manifest:
    """The manifest of a release of this world, where only ravdess has rows."""
    plan = world.plan("r1")
    files = (FileEntry(path="data/ravdess/train-00000-of-00001.parquet", rows=15, bytes=1000, sha256="a" * 64),)
    entries = {
        name: SourceEntry(
            fingerprint="f",
            revision="abc",
            licence="x",
            redistributable=True,
            modes={},
            rows=15 if name == "ravdess" else 0,
            rows_by_mode=dict.fromkeys(MODES, 5) if name == "ravdess" else {},
            clips=5 if name == "ravdess" else 0,
            left_out={} if name == "ravdess" else {"audio missing": 9},
            arrow_bytes=3000 if name == "ravdess" else 0,
            files=files if name == "ravdess" else (),
        )
        for name in plan.sources
    }
    values = {"sources": entries, "generator": plan.generator, "modes": plan.modes, "verdicts": plan.verdicts}
    return manifest(**(values | changes))


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter_lists_only_splits_that_have_a_file(world: World) -> None:
    data = front_matter(build_card(world.plan("r1"), finished(world)))
    (config,) = data["configs"]
    assert config["config_name"] == "default"
    assert config["data_files"] == [{"split": "ravdess", "path": "data/ravdess/train-*.parquet"}]
    info = data["dataset_info"]
    assert info["features"] == card_features()
    assert info["splits"] == [{"name": "ravdess", "num_bytes": 3000, "num_examples": 15}]
    assert (info["download_size"], info["dataset_size"]) == (1000, 3000)


def test_body_shows_counts_labels_verdicts_and_generator(world: World) -> None:
    card = build_card(world.plan("r1"), finished(world))
    for line in [
        "| ravdess | 5 | 15 | 5 | 5 | 5 | - |",
        "| meld | 0 | 0 | 0 | 0 | 0 | audio missing: 9 |",
        "| happy | 2 |",
        "| (none) | 1 |",
        "| leaked_tag | 1 | 1 | 1 |",
        "| sampling.top_p | 0.92 |",
    ]:
        assert f"\n{line}\n" in card


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
