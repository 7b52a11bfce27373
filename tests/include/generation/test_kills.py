"""kill -9 of generating processes at random moments: nothing lost, nothing doubled, at most a batch redone a kill.

Real processes run `generate_shard` against a real PostgreSQL with the fake engine, whose batches are small and quick,
so that kills hit every step: connecting, waiting for the lock, generating, storing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from include.generate import generate_shard
from include.settings import Settings
from include.storage.generation import Scope, count_pending
from include.storage.warehouse import Warehouse
from tests.kills import Tally, begun, doubled, random_moments, redone, stored, texts, wait_until

KILLS = 25
BATCH = 3
ROWS = 900
# Starts processes that have imported everything within milliseconds, and without threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.include.generation.test_kills"])


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    """Small batches, some of whose answers are bad."""
    return make_settings(
        batch_size=BATCH,
        fake_batch_s=0.01,
        fake_log=str(tmp_path / "batches"),
        fake_faults="empty:0.1,tag:0.1",
        max_attempts=3,
    )


@pytest.fixture
def shard(toy_shard: Callable[..., dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """More rows than the kills leave time for."""
    return toy_shard(settings, ROWS)


def start(warehouse: Warehouse, settings: Settings, shard: dict[str, Any]) -> BaseProcess:
    """Generate the shard in a process of its own, as an attempt of one and the same task."""
    process = PROCESSES.Process(target=_generate, args=(warehouse.conninfo, settings, shard))
    process.start()
    return process


def _generate(conninfo: str, settings: Settings, shard: dict[str, Any]) -> None:
    generate_shard(Warehouse(conninfo), settings, shard, "run")


def kill(process: BaseProcess) -> None:
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def left(warehouse: Warehouse, shard: dict[str, Any]) -> int:
    scope = Scope(sources=["toy"], max_attempts=shard["max_attempts"])
    return sum(count_pending(warehouse, scope, ["sift_ssp"]).get("sift_ssp", {}).values())


def progress(warehouse: Warehouse) -> dict[str, Any]:
    with warehouse.connection() as connection:
        row = connection.execute("select * from generation.runs").fetchone()
    assert row
    return row


@pytest.mark.slow
def test_killed_tasks(
    warehouse: Warehouse, settings: Settings, shard: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    moments = random_moments("killed tasks")
    tally, log_file = Tally("task"), Path(settings.fake_log)
    before = stored(warehouse)
    while tally.kills < KILLS and left(warehouse, shard):
        process = start(warehouse, settings, shard)
        if tally.kills % 5:  # every fifth dies young: importing, connecting, waiting for the lock of the one before
            batches = len(begun(log_file))
            wait_until(lambda batches=batches: len(begun(log_file)) > batches, "a batch")
        time.sleep(moments.uniform(0, 0.15))
        kill(process)
        tally.kills += 1
        after = stored(warehouse)
        tally.compare(before, after)
        # Of what this process began, only the batch in work is missing.
        own = [rows for pid, rows in begun(log_file) if pid == process.pid]
        missing = [rows for rows in own if not set(rows) <= texts(after)]
        assert missing in ([], own[-1:])
        before = after
    assert tally.kills >= 20, "the shard is too small for so many kills"
    last = start(warehouse, settings, shard)
    last.join(120)
    assert last.exitcode == 0
    after = stored(warehouse)
    tally.compare(before, after)
    tally.rows, tally.doubled = len(after), doubled(after)
    tally.redone_rows, tally.redone_batches, needless = redone(log_file)
    record_property("tally", str(tally))
    assert left(warehouse, shard) == 0
    assert (tally.lost, tally.doubled) == (0, 0)
    assert tally.redone_batches <= tally.kills and tally.redone_rows <= tally.kills * BATCH and needless == 0
    # What the run's row says adds up over all attempts, the killed ones among them.
    row = progress(warehouse)
    accepted = sum(key[3] == 0 for key in after)
    assert (row["status"], row["done"], row["total"]) == ("done", ROWS, ROWS)
    assert (row["accepted"], row["rejected"]) == (accepted, len(after) - accepted)


@pytest.mark.slow
def test_killed_attempts_that_overlap(
    warehouse: Warehouse, settings: Settings, shard: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    moments = random_moments("killed attempts that overlap")
    tally, locks = Tally("one of two overlapping tasks"), 0
    before = stored(warehouse)
    pair = [start(warehouse, settings, shard) for _ in range(2)]
    while tally.kills < KILLS and left(warehouse, shard):
        time.sleep(moments.uniform(0.05, 0.25))
        if moments.random() < 0.4:
            locks += end_lock(warehouse)  # now both generate at once
            time.sleep(moments.uniform(0, 0.1))
        number = moments.randrange(2)
        kill(pair[number])
        tally.kills += 1
        pair[number] = start(warehouse, settings, shard)
        after = stored(warehouse)
        tally.compare(before, after)
        before = after
    assert tally.kills >= 20, "the shard is too small for so many kills"
    assert locks > 0
    for process in pair:
        process.join(120)
        assert process.exitcode == 0
    after = stored(warehouse)
    tally.compare(before, after)
    tally.rows, tally.doubled = len(after), doubled(after)
    tally.redone_rows, tally.redone_batches, _ = redone(Path(settings.fake_log))
    tally.notes = f"of which the lock's connection was cut {locks} times"
    record_property("tally", str(tally))
    assert left(warehouse, shard) == 0
    assert (tally.lost, tally.doubled) == (0, 0)


def end_lock(warehouse: Warehouse) -> int:
    """Cut the connection that holds the shard, as a network or a restarted proxy would; the task goes on."""
    with warehouse.connection() as connection:
        return connection.execute(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted"
            " and database = (select oid from pg_database where datname = current_database())"
        ).rowcount
