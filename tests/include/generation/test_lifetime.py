"""A generating process ends with its parent, stops on SIGTERM, and does not hang: real processes, real signals."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from include.generate import generate_shard
from include.generation import lifetime
from include.generation.fake import FakeEngine
from include.generation.lifetime import STALLED_STATUS, Watchdog, bound_to_task, uninterrupted
from include.generation.runner import run_shard
from include.schema import Prompt, Response
from include.settings import Settings
from include.storage.generation import list_progress, shard_lock
from include.storage.warehouse import Warehouse
from tests.kills import begun, is_gone, random_moments, stored, texts, wait_until

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.include.generation.test_lifetime"])
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
# It takes a fraction of one, but a busy machine is slow. The batches that must not be waited for take 300.
SECONDS = 30


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    """Batches of 5 rows, with a log."""
    return make_settings(batch_size=5, fake_batch_s=0.05, fake_log=str(tmp_path / "batches"))


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def _generate(conninfo: str, settings: Settings, shard: dict[str, Any]) -> None:
    generate_shard(Warehouse(conninfo), settings, shard, "run")


def statuses(warehouse: Warehouse) -> list[str]:
    return [row["status"] for row in list_progress(warehouse, EPOCH)]


def wait_for_batches(settings: Settings, count: int) -> None:
    wait_until(lambda: len(begun(Path(settings.fake_log))) >= count, f"{count} batches")


def holders(warehouse: Warehouse) -> int:
    """How many connections hold a shard or wait for one."""
    with warehouse.connection() as connection:
        row = connection.execute("select count(*) as n from pg_locks where locktype = 'advisory'").fetchone()
    assert row
    return int(row["n"])


def test_sigterm_stores_what_is_finished_and_frees_the_shard(
    warehouse: Warehouse, settings: Settings, toy_shard: Callable[..., dict[str, Any]]
) -> None:
    shard = toy_shard(settings, 400)
    moments = random_moments("sigterm")
    for number in range(5):
        process = start(_generate, warehouse.conninfo, settings, shard)
        wait_for_batches(settings, 1 + len(begun(Path(settings.fake_log))))
        time.sleep(moments.uniform(0, 0.4))
        began = time.monotonic()
        process.terminate()
        process.join(60)
        assert time.monotonic() - began < SECONDS
        assert process.exitcode == 1
        assert statuses(warehouse) == ["stopped"]
        wait_until(lambda: holders(warehouse) == 0, "the shard to be free")
        own = [rows for pid, rows in begun(Path(settings.fake_log)) if pid == process.pid]
        there = texts(stored(warehouse))
        # Only the batch in work is missing, never one that was finished.
        assert [rows for rows in own if not set(rows) <= there] in ([], own[-1:]), number
    done = len(stored(warehouse))
    (row,) = list_progress(warehouse, EPOCH)
    assert 0 < row["done"] == done < 400 and row["total"] == 400


def test_sigterm_does_not_wait_for_a_long_batch(
    warehouse: Warehouse, settings: Settings, toy_shard: Callable[..., dict[str, Any]]
) -> None:
    slow = settings.model_copy(update={"fake_batch_s": 300})
    process = start(_generate, warehouse.conninfo, slow, toy_shard(slow, 10))
    wait_for_batches(slow, 1)
    began = time.monotonic()
    process.terminate()
    process.join(60)
    assert time.monotonic() - began < SECONDS and process.exitcode == 1
    assert statuses(warehouse) == ["stopped"]


def test_sigterm_ends_the_wait_for_a_shard_that_another_holds(
    warehouse: Warehouse, settings: Settings, toy_shard: Callable[..., dict[str, Any]]
) -> None:
    shard = toy_shard(settings, 10)
    with shard_lock(warehouse, shard["mode"], 0):
        process = start(_generate, warehouse.conninfo, settings, shard)
        wait_until(lambda: holders(warehouse) == 2, "the second one to wait")
        began = time.monotonic()
        process.terminate()
        process.join(60)
        assert time.monotonic() - began < SECONDS and process.exitcode == 1
        wait_until(lambda: holders(warehouse) == 1, "its place in the queue to be given up")
    assert begun(Path(settings.fake_log)) == []


def test_sigterm_waits_for_a_block_that_must_not_be_interrupted() -> None:
    steps = []
    with pytest.raises(SystemExit, match="SIGTERM"), bound_to_task():
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            steps.append("stored")
        steps.append("not reached")
    assert steps == ["stored"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def _fork_and_wait(conninfo: str, settings: Settings, shard: dict[str, Any]) -> None:
    """What Airflow's supervisor does: fork the task from the main thread, put it into a group of its own, wait."""
    task = os.fork()
    if task == 0:
        os.setpgid(0, 0)
        _generate(conninfo, settings, shard)
        os._exit(0)
    os.waitpid(task, 0)


@pytest.mark.skipif("sys.platform != 'linux'", reason="only Linux tells a process that its parent died")
def test_no_engine_outlives_the_supervisor_of_its_task(
    warehouse: Warehouse, settings: Settings, toy_shard: Callable[..., dict[str, Any]]
) -> None:
    # A batch that never ends: nothing but the signal can end this process.
    slow = settings.model_copy(update={"fake_batch_s": 300})
    supervisor = start(_fork_and_wait, warehouse.conninfo, slow, toy_shard(slow, 10))
    wait_for_batches(slow, 1)
    ((task, _),) = begun(Path(slow.fake_log))
    assert task != supervisor.pid and not is_gone(task)
    supervisor.kill()
    supervisor.join()
    wait_until(lambda: is_gone(task), "the task's process to die", SECONDS)
    assert stored(warehouse) == {}
    wait_until(lambda: holders(warehouse) == 0, "the shard to be free")


class HangingEngine(FakeEngine):
    """Writes two batches, then hangs in native code, with or without the interpreter's lock."""

    holds_lock = False

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Response]]:
        for number, batch in enumerate(super().generate(prompts)):
            if number == 2:
                library = (ctypes.PyDLL if self.holds_lock else ctypes.CDLL)(None)
                library.pause()
            yield batch


class LockingEngine(HangingEngine):
    """Takes the interpreter's lock along."""

    holds_lock = True


class HangingLoader(FakeEngine):
    """Never has its model loaded."""

    def load(self) -> None:
        ctypes.CDLL(None).pause()


def _generate_with(engine: type[FakeEngine], grace_s: float, conninfo: str, settings: Settings, shard: Any) -> None:
    lifetime._GRACE_S = grace_s
    logging.basicConfig(level=logging.INFO)
    with Path(settings.fake_log).with_name("stderr").open("wb") as stderr:
        os.dup2(stderr.fileno(), 2)
    run_shard(Warehouse(conninfo), engine(settings), settings, shard, "run")


@pytest.mark.parametrize(
    ("engine", "limits", "said"),
    [
        (HangingEngine, {"stall_timeout_s": 3}, "no row finished for 3 s"),
        (HangingLoader, {"load_timeout_s": 1}, "no model loaded for 1 s"),
    ],
)
def test_a_task_that_stalls_says_so_and_ends(
    warehouse: Warehouse,
    settings: Settings,
    toy_shard: Callable[..., dict[str, Any]],
    engine: type[FakeEngine],
    limits: dict[str, float],
    said: str,
) -> None:
    settings = settings.model_copy(update=limits)
    process = start(_generate_with, engine, 60, warehouse.conninfo, settings, toy_shard(settings, 40))
    process.join(60)
    assert process.exitcode == STALLED_STATUS
    assert statuses(warehouse) == ["stalled"]
    assert len(stored(warehouse)) == (10 if engine is HangingEngine else 0)
    log = Path(settings.fake_log).with_name("stderr").read_text()
    assert said in log and f"in {'generate' if engine is HangingEngine else 'load'}" in log


def test_a_hang_that_holds_the_interpreter_lock_ends_as_well(
    warehouse: Warehouse, settings: Settings, toy_shard: Callable[..., dict[str, Any]]
) -> None:
    settings = settings.model_copy(update={"stall_timeout_s": 3})
    process = start(_generate_with, LockingEngine, 1, warehouse.conninfo, settings, toy_shard(settings, 40))
    process.join(60)
    assert process.exitcode == 1  # faulthandler's own status
    assert "Timeout (0:00:04)" in Path(settings.fake_log).with_name("stderr").read_text()
    assert len(stored(warehouse)) == 10


def test_a_slow_task_is_no_stall(
    warehouse: Warehouse, settings: Settings, toy_shard: Callable[..., dict[str, Any]]
) -> None:
    # Longer than the limit in all, shorter from row to row.
    settings = settings.model_copy(update={"stall_timeout_s": 6, "fake_batch_s": 0.8})
    process = start(_generate, warehouse.conninfo, settings, toy_shard(settings, 40))
    process.join(60)
    assert process.exitcode == 0
    assert statuses(warehouse) == ["done"]


def test_nothing_watches_when_nothing_is_expected() -> None:
    with Watchdog(lambda: None) as watchdog:
        watchdog.expect("row finished", 0.1)
        watchdog.expect("row finished", 0)
        time.sleep(1)
