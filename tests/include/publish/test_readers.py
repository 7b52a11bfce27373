"""Everybody's readers open a release: `datasets` both configurations, copied or streamed; others the Parquet files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import polars as pl
import pytest

from include.modes import MODES
from include.publish.release import build_release
from tests.include.publish.clip_corpus import Corpus, World

OLD_DATASETS = "datasets==3.6.0"
"""The newest before version 4, which the reference's trainer needs."""

SPLITS = {
    "default": {"ravdess": 12, "meld": 9, "ravdess_heldout": 3},
    "omni": {"train": 12 + 9 + 4 + 3, "validation": 3 + 2},
}
"""Rows of every split of the release below."""


@pytest.fixture
def world(tmp_path: Path, make_corpus: Callable[..., Corpus]) -> World:
    """Sources of every task, two of them with clips held out."""
    corpora = {
        "ravdess": make_corpus("ravdess", 5, held_out=(3,)),
        "meld": make_corpus("meld", 3),
        "ami": make_corpus("ami", 4, task="transcribe"),
        "heysquad": make_corpus("heysquad", 5, task="answer", held_out=(0, 4)),
    }
    return World(tmp_path / "releases", corpora)


@pytest.fixture
def release(world: World) -> Path:
    return build_release(world.releases, world.plan("r1"), world.rows, world.audio).path


def expected_rows(world: World) -> dict[str, tuple[str, str, str, bytes]]:
    """(sample_id, mode) -> (task, instruction, target, clip), of all rows."""
    instructions = {"sit_ssp": MODES["sit_ssp"].instruction, "transcribe": "Transcribe: "}
    return {
        f"{row['sample_id']} {row['mode']}": (
            row["task"],
            instructions.get(row["mode"] or row["task"], ""),
            row["response"],
            corpus.clips[int(row["sample_id"].rpartition("/")[2])],
        )
        for corpus in world.corpora.values()
        for row in corpus.table().to_pylist()
    }


def key(row: dict[str, Any]) -> str:
    return f"{row['sample_id']} {row['mode']}"


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_both_configurations(world: World, release: Path, tmp_path: Path, streaming: bool) -> None:
    expected, held_out = expected_rows(world), set()
    for config, sizes in SPLITS.items():
        opened = datasets.load_dataset(str(release), config, streaming=streaming, cache_dir=str(tmp_path / "cache"))
        assert list(opened) == list(sizes)
        rows = {split: list(data.cast_column("audio", datasets.Audio(decode=False))) for split, data in opened.items()}
        assert {split: len(found) for split, found in rows.items()} == sizes
        for row in (row for found in rows.values() for row in found):
            target = (row["task"], row["instruction"], row["sift_response"], row["audio"]["bytes"])
            assert target == expected[key(row)]
        if config == "omni":
            assert {key(row) for found in rows.values() for row in found} == set(expected)
            held_out = {row["sample_id"] for row in rows["validation"]}
            assert held_out.isdisjoint(row["sample_id"] for row in rows["train"])
        else:
            assert {row["source_dataset"] for row in rows["ravdess_heldout"]} == {"ravdess"}
    assert held_out == {"ravdess/3", "heysquad/0", "heysquad/4"}


def test_the_first_rows_of_a_split_hold_the_modes_in_equal_parts(release: Path, tmp_path: Path) -> None:
    """The trainer takes `select(range(n))`."""
    split = datasets.load_dataset(str(release), split="ravdess", cache_dir=str(tmp_path / "cache"))
    for count in range(len(split) + 1):
        modes = split.select(range(count))["mode"]
        counts = [list(modes).count(mode) for mode in MODES]
        assert max(counts) - min(counts) <= 1


def test_pandas_polars_and_duckdb_read_the_files(world: World, release: Path) -> None:
    expected = expected_rows(world)
    pattern = str(release / "data" / "*" / "*.parquet")
    columns = ["sample_id", "mode", "audio"]
    query = f"select {', '.join(columns)} from read_parquet('{pattern}')"
    files = sorted(release.glob("data/*/*.parquet"))
    tables = {
        "pandas": pd.concat(pd.read_parquet(path, columns=columns) for path in files),
        "polars": pl.scan_parquet(pattern).select(columns).collect().to_pandas(),
        "duckdb": duckdb.sql(query).df(),
    }
    for reader, table in tables.items():
        read = {key(row): row["audio"]["bytes"] for row in table.to_dict("records")}
        assert read == {name: clip for name, (_, _, _, clip) in expected.items()}, reader
    by_mode = duckdb.sql(f"select mode, count(*) from read_parquet('{pattern}') where task = 'sift' group by mode")
    assert dict(by_mode.fetchall()) == dict.fromkeys(MODES, 8)


READ_WITH_OLD_DATASETS = """
import hashlib, json, sys
import datasets
assert datasets.__version__ < "4", datasets.__version__
release, cache = sys.argv[1:]
found = {}
for config in ("default", "omni"):
    for streaming in (False, True):
        opened = datasets.load_dataset(release, config, streaming=streaming, cache_dir=cache)
        for split, data in opened.items():
            assert data.features["audio"] == datasets.Audio(sampling_rate=16000), data.features
            rows = found.setdefault(config, {}).setdefault(split, [])
            for row in data.cast_column("audio", datasets.Audio(decode=False)):
                clip = hashlib.sha256(row["audio"]["bytes"]).hexdigest()
                rows.append([row["sample_id"] + " " + row["mode"], row["task"], row["instruction"],
                             row["sift_response"], clip, row["messages"]])
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def old_datasets(request: pytest.FixtureRequest) -> Path:
    """Python of a virtual environment with OLD_DATASETS, made once and kept in pytest's cache."""
    folder = request.config.cache.mkdir(OLD_DATASETS.replace("=", "-"))
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", OLD_DATASETS]
        subprocess.run(install, check=True)
        complete.touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first time it downloads some 150 MB
def test_datasets_before_version_4_reads_both_configurations(
    world: World, release: Path, tmp_path: Path, old_datasets: Path
) -> None:
    done = subprocess.run(
        [str(old_datasets), "-c", READ_WITH_OLD_DATASETS, str(release), str(tmp_path / "cache")],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Each row twice: copied, then streamed.
    assert {
        config: {split: len(rows) / 2 for split, rows in splits.items()} for config, splits in found.items()
    } == SPLITS
    expected = expected_rows(world)
    for name, task, instruction, response, clip, messages in (
        row for splits in found.values() for rows in splits.values() for row in rows
    ):
        wanted_task, wanted_instruction, wanted_response, wanted_clip = expected[name]
        assert (task, instruction, response) == (wanted_task, wanted_instruction, wanted_response)
        assert clip == hashlib.sha256(wanted_clip).hexdigest()
        assert [message["role"] for message in messages] == ["user", "assistant"]
