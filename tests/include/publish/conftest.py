"""Corpora of real clips, and two of them with a folder for their releases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.include.publish.clip_corpus import Corpus, World, wav


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Corpus]:
    def make(source: str = "ravdess", clips: list[bytes | None] | int = 5, **options: int) -> Corpus:
        clips = [wav(seed) for seed in range(clips)] if isinstance(clips, int) else clips
        return Corpus(tmp_path / "hub" / source, source, clips, **options)

    return make


@pytest.fixture
def world(tmp_path: Path, make_corpus: Callable[..., Corpus]) -> World:
    corpora = {name: make_corpus(name, clips) for name, clips in {"ravdess": 5, "meld": 3}.items()}
    return World(tmp_path / "releases", corpora)
