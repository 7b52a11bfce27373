"""The benchmark of publishing: its chunker finds what is shared, and a small run gives every figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.publish import CHUNK_BITS, MAX_CHUNK, MIN_CHUNK, chunk_reuse, chunks, measure


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def test_chunks_cover_the_data_within_their_limits() -> None:
    data = noise(9_000_000)
    sizes = [size for _, size in chunks(data)]
    assert sum(sizes) == len(data)
    assert all(MIN_CHUNK <= size <= MAX_CHUNK for size in sizes[:-1])
    assert 0.5 < np.mean(sizes) / (1 << CHUNK_BITS) < 1.5


def test_cuts_do_not_hang_on_where_the_data_is_read_in_blocks() -> None:
    data = noise(5_000_000)
    # 4 MiB is a block: the cuts around it are found again when the content is moved.
    shifted = noise(MAX_CHUNK, seed=1) + data
    known = {digest for digest, _ in chunks(data)}
    shared = sum(size for digest, size in chunks(shifted) if digest in known)
    assert shared > 0.9 * len(data)


def test_reuse_is_the_share_of_the_new_files_bytes(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    kept = noise(8_000_000)
    (old / "a.parquet").write_bytes(kept)
    (new / "a.parquet").write_bytes(kept[:3_000_000] + kept[3_100_000:])
    assert chunk_reuse(old, old) == 1
    assert 0.9 < chunk_reuse(old, new) < 1
    (new / "b.parquet").write_bytes(noise(8_000_000, seed=2))
    assert 0.4 < chunk_reuse(old, new) < 0.5


@pytest.mark.slow
def test_a_small_run_gives_every_figure() -> None:
    figures = measure(60_000_000, news=True)
    assert figures["size_ratio"] < 0.4
    assert figures["one_of_eight_written"] == 1 / 8
    assert figures["clips_dropped"] > 0
    assert 0.5 < figures["chunk_reuse"] < 1
    assert figures["seconds"] > 0 and figures["rss_mib"] > 100
