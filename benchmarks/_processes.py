"""What benchmarks of the warehouse share: a PostgreSQL of their own, processes like tasks', and their memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import psutil

from include.local.postgres import running_postgres
from include.storage.warehouse import Warehouse


class PeakMemory(threading.Thread):
    """Samples the resident memory of a process (this one, if none is named) and its children, without some of them."""

    def __init__(self, without: set[int], of: int | None = None) -> None:
        super().__init__(daemon=True)
        self._of = of
        self._without, self._done, self._peak = without, threading.Event(), 0

    def run(self) -> None:
        """Sample until `stop`."""
        me = psutil.Process(self._of)
        while not self._done.wait(0.05):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    if not {process.pid, process.ppid()} & self._without:
                        total += process.memory_info().rss
                except psutil.Error:
                    continue
            self._peak = max(self._peak, total)

    def stop(self) -> float:
        """Return the peak, in MiB."""
        self._done.set()
        self.join()
        return self._peak / 2**20


@contextmanager
def fresh_warehouse(work: Path) -> Iterator[tuple[Warehouse, set[int]]]:
    """A PostgreSQL of the benchmark's own, and its process ids."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with running_postgres(work / "postgres", work / "postgres.log") as server:
        warehouse = Warehouse(server.conninfo("sift"))
        warehouse.migrate()
        yield warehouse, {process.pid for process in psutil.Process().children(recursive=True)} - before


@contextmanager
def task_processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes like those in which tasks run: started before, our code imported, nothing else in their memory."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(_import_ours, range(workers)))
        yield pool


def _import_ours(_: int) -> None:
    import time

    import include.ingest  # noqa: F401

    time.sleep(0.2)  # so that no process gets two of these
