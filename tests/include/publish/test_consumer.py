"""The check that `datasets` opens a release, in its own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from include.publish import consumer, release
from include.publish.consumer import check_opens
from include.publish.manifest import ReleaseError
from include.publish.release import build_release
from tests.include.publish.clip_corpus import Corpus, World


@pytest.fixture
def built(world: World, make_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release of two sources with rows, and one without."""
    world.corpora["esd"] = make_corpus("esd", [None])
    monkeypatch.setattr(release, "check_opens", lambda path, cache: None)
    return build_release(world.releases, world.plan("r1"), world.rows, world.audio).path


def test_a_sound_release_opens_from_any_folder(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built.parent)
    (tmp_path / "cache").mkdir()
    check_opens(Path(built.name), tmp_path / "cache")
    assert {path.name for path in built.iterdir()} == {"README.md", "manifest.json", "data"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path: data/meld/train-*.parquet", "path: data/nothing/train-*.parquet", "Couldn't infer"),
        ("  - split: meld\n    path: data/meld/train-*.parquet\n", "", "shows the splits"),
        ("sampling_rate: 16000", "sampling_rate: 8000", "has the features"),
    ],
)
def test_a_card_that_says_otherwise_is_refused(built: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    card = built / "README.md"
    assert old in card.read_text()
    card.write_text(card.read_text().replace(old, new))
    with pytest.raises(ReleaseError, match=message):
        check_opens(built, tmp_path)


def test_a_process_that_does_not_end_is_refused(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "TIMEOUT_S", 0.01)
    with pytest.raises(ReleaseError, match="within"):
        check_opens(built, tmp_path)
