"""Staging at scale: seconds, memory and rows/s for a million rows, against a plain loop, and bytes read over HTTP.

A million Common-Voice-shaped rows, generated with audio bytes in the files and 100 rows a row group, go into
PostgreSQL. The loop is what people write: `for row in load_dataset(...)`, one label at a time, inserted a thousand rows
at once. It is timed twice: with each clip decoded by soundfile, which is what iterating does in `datasets` before
version 4, and with the audio left as bytes (`loop_ratio_undecoded`), which favours the loop. Bytes over HTTP are
counted by the server.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks._corpus import write_commonvoice
from benchmarks._processes import PeakMemory, fresh_warehouse, task_processes
from benchmarks._report import report
from include.ingest import load_group, merge_groups, resolve_revision
from include.sources import RECIPES
from include.sources.corpus import resolve_corpus
from include.sources.reader import read_metadata
from include.storage.warehouse import Warehouse

RECIPE = replace(RECIPES["commonvoice"], max_rows=None)
MILLION_AUDIO_BYTES = 1_000
# The mean clip of the SIFT corpora, by rows, is 3.6 s of 16 kHz WAV (PODCAST 5.7 s, CREMA-D 2.5 s).
LOOP_ROWS, LOOP_AUDIO_BYTES, LOOP_ROUNDS = 30_000, 115_000, 3
HTTP_ROWS, HTTP_AUDIO_BYTES = 10_000, 40_000
REACH = {
    "seconds": "<= 60",
    "peak_rss_mib": "<= 1,024",
    "normalise_rows_per_s": ">= 1,000,000",
    "loop_ratio": ">= 20",
    "http_share": "<= 0.02",
}


def load_in_process(group: dict, conninfo: str) -> dict:
    """What a `load` task does."""
    return load_group(RECIPE, group, Warehouse(conninfo))


def stage(hub: Path, warehouse: Warehouse, run_id: str, pool: ProcessPoolExecutor) -> dict:
    """One ingest run; its groups are loaded in parallel, as Airflow would."""
    groups = resolve_revision(RECIPE, str(hub), warehouse, run_id=run_id)
    loads = list(pool.map(load_in_process, groups, [warehouse.conninfo] * len(groups)))
    return merge_groups(RECIPE, loads, warehouse)


def normalise_rows_per_s(hub: Path) -> float:
    """Rows/s of normalising alone, on one core: batches are read first, then staged."""
    corpus = resolve_corpus(RECIPE, str(hub))
    batches = [batch for file in corpus.files for batch in read_metadata(corpus, file, RECIPE)]
    times = []
    for _ in range(3):
        started = time.perf_counter()
        for batch in batches:
            RECIPE.stage(batch)
        times.append(time.perf_counter() - started)
    return sum(map(len, batches)) / min(times)


def loop_over_rows(folder: Path, warehouse: Warehouse, cache: Path, *, decode: bool) -> float:
    """Seconds of the plain loop."""
    import soundfile
    from datasets import Audio, disable_progress_bars, load_dataset

    disable_progress_bars()
    ages = {"teens": "teenager", "twenties": "young adult", "thirties": "young adult", "fourties": "middle-age adult",
            "fifties": "middle-age adult", "sixties": "senior", "seventies": "senior"}  # fmt: skip
    genders = {"male_masculine": "male", "female_feminine": "female"}
    insert = "insert into plain values (%s, %s, %s, %s, %s, %s)"
    started = time.perf_counter()
    dataset = load_dataset(str(folder), "en", split="train", cache_dir=str(cache))
    dataset = dataset.cast_column("audio", Audio(decode=False))
    with warehouse.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("drop table if exists plain")
        cursor.execute(
            "create table plain (id text primary key, text text, gender text, age text, accent text, by text)"
        )
        rows = []
        for row in dataset:
            if decode:
                soundfile.read(io.BytesIO(row["audio"]["bytes"]))
            text = str(row["sentence"]).strip().lower()
            gender, age = genders.get(row["gender"]), ages.get(row["age"])
            rows.append((row["path"], text, gender, age, row["accent"].lower() or None, row["client_id"]))
            if len(rows) == 1000:
                cursor.executemany(insert, rows)
                rows.clear()
        cursor.executemany(insert, rows)
    seconds = time.perf_counter() - started
    shutil.rmtree(cache)
    return seconds


def against_loop(folder: Path, warehouse: Warehouse, work: Path, workers: int) -> dict[str, float]:
    """The same rows by us and by the loop, by turns."""
    ours, decoded, undecoded = [], [], []
    with task_processes(workers) as pool:
        stage(work / "small", warehouse, "warm", pool)  # so that neither side pays for imports
        for number in range(LOOP_ROUNDS):
            undecoded.append(loop_over_rows(folder, warehouse, work / "cache", decode=False))
            decoded.append(loop_over_rows(folder, warehouse, work / "cache", decode=True))
            with warehouse.connection() as connection:
                connection.execute("truncate staging.samples, staging.loads")
                connection.execute("checkpoint")
            os.sync()  # what the loop has written must not slow us down
            started = time.perf_counter()
            stage(work / "small", warehouse, f"small{number}", pool)
            ours.append(time.perf_counter() - started)
    ratio = statistics.median(loop / own for loop, own in zip(decoded, ours, strict=True))
    ratio_undecoded = statistics.median(loop / own for loop, own in zip(undecoded, ours, strict=True))
    return {
        "loop_rows": LOOP_ROWS,
        "loop_seconds": statistics.median(decoded),
        "loop_undecoded_seconds": statistics.median(undecoded),
        "same_rows_seconds": statistics.median(ours),
        "loop_ratio": ratio,
        "loop_ratio_undecoded": ratio_undecoded,
    }


def over_http(folder: Path, work: Path) -> dict[str, float]:
    """Bytes that staging reads of a corpus on a stand-in for the Hub."""
    from tests.hub_server import HubServer

    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    size = sum(path.stat().st_size for path in files.values())
    program = (
        "import sys, time; from benchmarks.staging import RECIPE, read_metadata, resolve_corpus\n"
        "corpus = resolve_corpus(RECIPE, 'hf://datasets')\n"
        "started = time.perf_counter()\n"
        "rows = sum(len(RECIPE.stage(b).table) for f in corpus.files for b in read_metadata(corpus, f, RECIPE))\n"
        "print(rows, time.perf_counter() - started)"
    )
    with HubServer() as server:
        server.commit(RECIPE.repository, files)
        env = server.environment(work / "hf", PYTHONPATH=str(Path.cwd()))
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        rows, seconds = done.stdout.split()[-2:]
        if int(rows) != HTTP_ROWS:
            raise RuntimeError(f"{rows} of {HTTP_ROWS} rows came over HTTP")
        sent = server.bytes_sent(".parquet")
        requests = sum(request.path.endswith(".parquet") for request in server.requests)
    return {
        "http_corpus_mib": size / 2**20,
        "http_read_mib": sent / 2**20,
        "http_requests": requests,
        "http_seconds": float(seconds),
        "http_share": sent / size,
    }


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    workers = min(len(os.sched_getaffinity(0)), 8)
    figures: dict[str, float] = {"rows": rows, "workers": workers}
    with tempfile.TemporaryDirectory() as name, fresh_warehouse(Path(name)) as (warehouse, postgres):
        work = Path(name)
        with task_processes(1) as pool:  # elsewhere, so that its memory does not count
            hub = work / "hub"
            pool.submit(write_commonvoice, hub, rows, audio_bytes=MILLION_AUDIO_BYTES).result()
            small = pool.submit(write_commonvoice, work / "small", LOOP_ROWS, audio_bytes=LOOP_AUDIO_BYTES, files=4)
            web = pool.submit(write_commonvoice, work / "web", HTTP_ROWS, audio_bytes=HTTP_AUDIO_BYTES, files=4)
            small.result()
            web.result()
        with task_processes(workers) as pool:
            memory = PeakMemory(without=postgres)
            memory.start()
            started = time.perf_counter()
            load = stage(hub, warehouse, "first", pool)
            figures["seconds"] = time.perf_counter() - started
            figures["peak_rss_mib"] = memory.stop()
        if load["staged"] != rows:
            raise RuntimeError(f"staged {load['staged']} of {rows} rows")
        figures["rows_per_s"] = rows / figures["seconds"]
        figures["normalise_rows_per_s"] = normalise_rows_per_s(hub)
        figures |= over_http(web.result(), work)
        figures |= against_loop(small.result(), warehouse, work, workers)
    report("staging", figures, REACH)


if __name__ == "__main__":
    main()
