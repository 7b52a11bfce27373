"""Publishing at scale: MB/s of source audio, memory at 1x and 10x, size, a release of little news, and bytes reused.

Eight corpora of generated clips are staged, and responses written straight into the warehouse; then a process like a
task's calls `merge_release` and `publish_release`, with all that belongs to it: reading rows and audio, writing,
hashing, reading back, opening with `datasets`, flushing to the disk. The corpora were just written, so their audio
comes from the page cache as far as that is large enough.

How much of a file content-addressed storage would share with its last version is measured with a chunker like the
Hub's: a gear hash over the last 64 bytes cuts chunks of 8 to 128 KiB, 64 KiB on average.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._corpus import CARD, FIXTURES, wav_header
from benchmarks._processes import PeakMemory, fresh_warehouse, task_processes
from benchmarks._report import report
from include.generation.runner import current_mode_hashes, sync_prompts
from include.ingest import load_group, merge_groups, resolve_revision
from include.modes import MODES
from include.publish.manifest import Manifest, read_manifest
from include.publish.merge import merge_release
from include.publish.promotion import publish_release
from include.publish.targets import LOCAL
from include.publish.targets.local import LocalTarget
from include.settings import Settings
from include.sources import RECIPES
from include.sources.recipe import SourceRecipe
from include.storage.warehouse import Warehouse

SOURCES = [recipe for recipe in RECIPES.values() if recipe.task == "sift"]
# The mean clip of the SIFT corpora, by rows, is 3.6 s of 16 kHz WAV.
CLIP_BYTES = 115_000
ROW_GROUP_CLIPS = 100
FILE_CLIPS = 2_000
PARAMS = {
    "publish": True,
    "modes": list(MODES),
    "max_samples": None,
    "leave_out": [],
    "review": False,
    "force": False,
}
REACH = {
    "mb_per_s": ">= 200",
    "rss_mib_1x": "<= 1,024",
    "rss_mib_10x": "<= 1,024, that of 1x",
    "size_ratio": "<= 0.4",
    "chunk_reuse": ">= 0.9",
}

MIN_CHUNK, MAX_CHUNK, CHUNK_BITS = 8 << 10, 128 << 10, 16
_GEAR = np.frombuffer(np.random.default_rng(0).bytes(8 * 256), np.uint64)
_WINDOW = 64


def write_corpus(hub: Path, recipe: SourceRecipe, clips: int, seed: int) -> int:
    """Write a corpus whose rows repeat one of the recipe's fixture, each with a key and a clip of noise of its own.

    Returns:
        Bytes of audio.
    """
    fixture = json.loads((FIXTURES / f"{recipe.name}.json").read_text(encoding="utf-8"))
    largest = (recipe.largest_class or {}).get("emotion")
    row, _ = max(
        (
            (row, sample)
            for row, sample in zip(fixture["rows"], fixture["samples"], strict=True)
            if "reject_reason" not in sample and largest in (None, sample.get("emotion"))
        ),
        key=lambda pair: len(pair[1]),  # the row of which most is known: none of its labels is odd
    )
    generator = np.random.default_rng(seed)
    folder = hub / recipe.repository
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD.format(config=recipe.config, folder="data"))
    header, size = wav_header(CLIP_BYTES), CLIP_BYTES - 44
    files = -(-clips // FILE_CLIPS)
    for number in range(files):
        path = folder / "data" / f"train-{number:05}-of-{files:05}.parquet"
        writer = None
        for first in range(number * FILE_CLIPS, min((number + 1) * FILE_CLIPS, clips), ROW_GROUP_CLIPS):
            count = min(ROW_GROUP_CLIPS, (number + 1) * FILE_CLIPS - first, clips - first)
            noise = generator.bytes(count * size)
            rows = []
            for clip in range(count):
                name = f"clip_{first + clip:07}.wav"
                audio = {"bytes": header + noise[clip * size : (clip + 1) * size], "path": name}
                key = {} if "." in recipe.key else {recipe.key: name}
                rows.append({**row, recipe.audio_column: audio, **key})
            table = pa.Table.from_pylist(rows)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="none")
            writer.write_table(table, row_group_size=count)
        if writer:
            writer.close()
    return clips * CLIP_BYTES


def prepare(work: Path, warehouse: Warehouse, settings: Settings, audio_bytes: int) -> int:
    """Write and stage all corpora, and write a response for every prompt; return the bytes of audio."""
    clips = max(audio_bytes // len(SOURCES) // CLIP_BYTES, 1)
    total = 0
    for seed, recipe in enumerate(SOURCES):
        total += write_corpus(work / "hub", recipe, clips, seed)
        groups = resolve_revision(recipe, settings.hub, warehouse, run_id="bench")
        merge_groups(recipe, [load_group(recipe, group, warehouse) for group in groups], warehouse)
    sync_prompts(warehouse, [recipe.name for recipe in SOURCES], current_mode_hashes(settings, list(MODES)))
    with warehouse.connection() as connection:
        connection.execute(
            "insert into generation.responses select source, sample_id, mode, prompt_hash, "
            "'Sounds like somebody who says this: ' || md5(sample_id || mode) || '.', "
            "'stop', 50, 30, 0, 1, 'bench', '1', 'accepted' from generation.prompts"
        )
        connection.execute("analyze")
    return total


def publish(conninfo: str, settings: Settings) -> dict[str, Any]:
    """What the tasks `merge` and `publish` do, and their seconds."""
    started = time.perf_counter()
    warehouse, target = Warehouse(conninfo), LocalTarget(LOCAL, settings.releases_dir)
    merged = merge_release(warehouse, settings, PARAMS, target)
    if merged is None:
        raise RuntimeError("nothing was published")
    published = publish_release(warehouse, settings, PARAMS, target, merged["release_id"])
    return {**merged, **published, "seconds": time.perf_counter() - started}


def measure(audio_bytes: int, *, news: bool) -> dict[str, float]:
    """Publish so many bytes of audio; with `news` also what a second and a third release cost.

    Returns:
        `audio_bytes`, `seconds`, `rss_mib` and `size_ratio`; with news `one_of_eight_seconds`, `one_of_eight_written`
        (share of the sources that was written anew) and `chunk_reuse`.
    """
    with tempfile.TemporaryDirectory() as name, fresh_warehouse(Path(name)) as (warehouse, _):
        work = Path(name)
        settings = Settings(home=work / "home", hub=str(work / "hub"), engine="fake")
        audio_bytes = prepare(work, warehouse, settings, audio_bytes)
        os.sync()  # what was just written must not slow us down

        def in_a_task() -> tuple[dict[str, Any], Manifest]:
            with task_processes(1) as pool:
                memory = PeakMemory(without=set(), of=pool.submit(os.getpid).result())
                memory.start()
                made = pool.submit(publish, warehouse.conninfo, settings).result()
                made["rss_mib"] = memory.stop()
            return made, read_manifest(Path(made["uri"]))

        made, manifest = in_a_task()
        figures = {
            "audio_bytes": audio_bytes,
            "seconds": made["seconds"],
            "rss_mib": made["rss_mib"],
            "size_ratio": sum(file.bytes for file in manifest.files) / (len(MODES) * audio_bytes),
        }
        if news:
            source = SOURCES[-1].name
            change = "update generation.responses set response = response || ' Truly.' where source = %s"
            drop = (
                "update staging.samples set retired_at = now() where source = %s "
                "and hashtextextended(sample_id, 0) %% 100 = 0"
            )
            with warehouse.connection() as connection:
                connection.execute(change, [source])
            second, _ = in_a_task()
            with warehouse.connection() as connection:
                dropped = connection.execute(drop, [source]).rowcount
            third, _ = in_a_task()
            figures |= {
                "one_of_eight_seconds": second["seconds"],
                "one_of_eight_written": 1 - len(second["reused"]) / len(SOURCES),
                "clips_dropped": dropped,
                "chunk_reuse": chunk_reuse(Path(second["uri"]) / "data" / source, Path(third["uri"]) / "data" / source),
            }
    return figures


def chunk_reuse(old: Path, new: Path) -> float:
    """Share of the bytes of a folder's Parquet files that lie in chunks which the old folder's files have too."""
    known = {digest for path in sorted(old.glob("*.parquet")) for digest, _ in chunks(path.read_bytes())}
    sizes = [
        (size, digest in known) for path in sorted(new.glob("*.parquet")) for digest, size in chunks(path.read_bytes())
    ]
    return sum(size for size, is_known in sizes if is_known) / sum(size for size, _ in sizes)


def chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Cut data where its content says so; yield each chunk's digest and size."""
    cuts = _candidates(np.frombuffer(data, np.uint8))
    start = 0
    while start < len(data):
        position = int(np.searchsorted(cuts, start + MIN_CHUNK))
        end = min(int(cuts[position]) if position < len(cuts) else len(data), start + MAX_CHUNK, len(data))
        yield hashlib.sha256(data[start:end]).digest(), end - start
        start = end


def _candidates(data: np.ndarray, block: int = 4 << 20) -> np.ndarray:
    """Positions behind which the gear hash of the last 64 bytes has CHUNK_BITS leading zeros, ascending."""
    found = []
    for first in range(0, len(data), block):
        begin = max(first - _WINDOW + 1, 0)
        rolling = _GEAR[data[begin : first + block]]
        span = 1
        while span < _WINDOW:  # from hashes of `span` bytes to those of twice as many
            longer = rolling.copy()
            longer[span:] += rolling[:-span] << np.uint64(span)
            rolling, span = longer, 2 * span
        ends = np.flatnonzero(rolling >> np.uint64(64 - CHUNK_BITS) == 0) + begin + 1
        found.append(ends[ends > first])
    return np.concatenate(found) if found else np.empty(0, np.int64)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=1.0, help="GB of audio at 1x")
    parser.add_argument("--times", type=float, default=10.0, help="how much more the second time; 0: no second time")
    given = parser.parse_args()
    once = measure(int(given.gb * 1e9), news=True)
    figures = {
        "audio_gb": once["audio_bytes"] / 1e9,
        "seconds_1x": once["seconds"],
        "mb_per_s_1x": once["audio_bytes"] / 1e6 / once["seconds"],
        "rss_mib_1x": once["rss_mib"],
        **{key: once[key] for key in ("size_ratio", "one_of_eight_seconds", "one_of_eight_written", "chunk_reuse")},
    }
    if given.times:
        more = measure(int(given.gb * given.times * 1e9), news=False)
        figures |= {
            "seconds_10x": more["seconds"],
            "mb_per_s": more["audio_bytes"] / 1e6 / more["seconds"],
            "rss_mib_10x": more["rss_mib"],
        }
    report("publish", figures, REACH)


if __name__ == "__main__":
    main()
