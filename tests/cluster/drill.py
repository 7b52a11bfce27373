"""A full run on a cluster while something breaks, and what must be true when it is over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pyarrow.parquet as pq

from include.publish.manifest import read_manifest
from tests.cluster.cluster import Cluster
from tests.include.sources.corpus_files import toy_row, write_corpus
from tests.kills import begun, doubled, redone, stored, wait_until

SOURCE = "savee"
REPOSITORY = "AbstractTTS/SAVEE"
INGEST = f"ingest_{SOURCE}"
GENERATE = "generate_and_publish"
MODES = 3
DAGS = (INGEST, GENERATE)
_UNREACHABLE = (httpx.HTTPError, ValueError, psycopg.Error)


@dataclass
class Outcome:
    """A line of the table of faults.

    Attributes:
        fault: What broke.
        texts: Responses written in this drill, rejected ones included.
        lost: Rows stored before the fault, or at any look during it, that were gone or different at the end.
        doubled: Prompts with a text too many.
        batches_redone: Batches that had to be begun again.
        retries: Tasks that Airflow tried again.
        runs: Runs of `generate_and_publish` that it took.
        reads: How often the release was read meanwhile, whole each time.
        seconds: From the start of the run to its release.
        restarted: Services that were started again.
    """

    fault: str
    texts: int = 0
    lost: int = 0
    doubled: int = 0
    batches_redone: int = 0
    retries: int = 0
    runs: int = 0
    reads: int = 0
    seconds: float = 0
    restarted: list[str] = field(default_factory=list)

    HEADER = (
        f"{'fault':<44}{'texts':>6}{'lost':>6}{'doubled':>8}{'redone':>7}{'retries':>8}{'runs':>5}{'reads':>7}{'s':>6}"
    )

    def __str__(self) -> str:
        return (
            f"{self.fault:<44}{self.texts:>6}{self.lost:>6}{self.doubled:>8}{self.batches_redone:>7}{self.retries:>8}"
            f"{self.runs:>5}{self.reads:>7}{self.seconds:>6.0f}"
        )


class ReleaseReader(threading.Thread):
    """Reads the latest release over and over, as a trainer would: whatever happens, it must be whole."""

    def __init__(self, folder: Path) -> None:
        super().__init__(name="reader")
        self._latest = folder / "latest"
        self._ended = threading.Event()
        self.reads = 0
        self.errors: list[str] = []

    def run(self) -> None:
        while not self._ended.wait(0.3):
            try:
                release = self._latest.resolve(strict=True)
                manifest = read_manifest(release)
                rows = sum(pq.read_metadata(release / file.path).num_rows for file in manifest.files if file.rows)
                assert rows == sum(source.rows for source in manifest.sources.values())
                self.reads += 1
            except Exception as error:  # whatever it is, a reader was hurt
                self.errors.append(repr(error))

    def end(self) -> None:
        self._ended.set()
        self.join()


class Drill:
    """One corpus grows by some rows; they are ingested, written and published while something breaks.

    Args:
        cluster: Up, with the fake engine, whose log is `batch_log`.
        hub: Folder that the cluster reads corpora from.
        batch_log: SIFT_FAKE_LOG of the cluster.
    """

    def __init__(self, cluster: Cluster, hub: Path, batch_log: Path) -> None:
        self.cluster, self.hub, self.batch_log = cluster, hub, batch_log
        self.rows = 0
        self.releases = cluster.home / "releases"

    def grow(self, rows: int) -> None:
        """Publish a new revision of the corpus, upstream."""
        self.rows += rows
        write_corpus(self.hub, [toy_row(number) for number in range(self.rows)], repository=REPOSITORY)

    @property
    def corpus_file(self) -> Path:
        (file,) = (self.hub / REPOSITORY / "data").glob("*.parquet")
        return file

    @contextmanager
    def running(self, fault: str, rows: int) -> Iterator[Outcome]:
        """Start a full run for the block, in which the fault is injected; afterwards let it complete, and check it.

        Args:
            fault: Its name in the table.
            rows: By which the corpus grows.
        """
        outcome = Outcome(fault)
        began = time.monotonic()
        restarts = len(self.cluster.restarts)
        before = stored(self.cluster.warehouse)
        self.batch_log.unlink(missing_ok=True)
        known = {dag: {run["dag_run_id"] for run in self.runs(dag)} for dag in DAGS}
        reader = ReleaseReader(self.releases)
        self.grow(rows)
        if (self.releases / "latest").exists():
            reader.start()
        try:
            self.trigger(INGEST)
            yield outcome
            self.wait_until_complete(known)
        finally:
            if reader.is_alive():
                reader.end()
        after = stored(self.cluster.warehouse)
        outcome.seconds = time.monotonic() - began
        outcome.texts = len(after) - len(before)
        outcome.lost = sum(after.get(key) != row for key, row in before.items())
        outcome.doubled = doubled(after)
        _, outcome.batches_redone, needless = redone(self.batch_log)
        outcome.restarted = self.cluster.restarts[restarts:]
        outcome.reads = reader.reads
        new = {dag: [run for run in self.runs(dag) if run["dag_run_id"] not in known[dag]] for dag in DAGS}
        outcome.runs = len(new[GENERATE])
        tasks = [task for dag in DAGS for run in new[dag] for task in self.cluster.api.tasks(dag, run["dag_run_id"])]
        outcome.retries = sum(max(0, task["try_number"] - 1) for task in tasks)
        assert reader.errors == []
        assert (outcome.lost, outcome.doubled, needless) == (0, 0, 0)
        accepted = {key[:2] for key in after if key[3] == 0}
        assert len(accepted) == MODES * self.rows

    def trigger(self, dag: str, conf: dict[str, Any] | None = None) -> str:
        """Trigger a run, as soon as Airflow takes it."""
        found: list[str] = []

        def triggered() -> bool:
            with suppress(*_UNREACHABLE):
                api = self.cluster.api
                api.unpause(dag)
                found.append(api.trigger(dag, conf))
            return bool(found)

        wait_until(triggered, f"{dag} to be triggered", 120)
        return found[0]

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """The runs of a DAG; waits while Airflow is away."""
        found: list[list[dict[str, Any]]] = []

        def asked() -> bool:
            with suppress(*_UNREACHABLE):
                found.append(self.cluster.api.runs(dag))
            return bool(found)

        wait_until(asked, "Airflow's API to answer", 180)
        return found[0]

    def wait_for_run(self, run_id: str | None = None) -> None:
        """Wait until a run of `generate_and_publish` has succeeded; None: until none is under way."""

        def done() -> bool:
            states = {run["dag_run_id"]: run["state"] for run in self.runs(GENERATE)}
            assert run_id is None or states[run_id] != "failed"
            return states[run_id] == "success" if run_id else not {"queued", "running"} & set(states.values())

        wait_until(done, "the run to end", 300)

    def wait_for_batches(self, number: int) -> None:
        """Wait until so many batches have begun in this drill."""
        wait_until(lambda: len(begun(self.batch_log)) >= number, f"{number} batches to begin", 240)

    def wait_for_task(self, run_id: str | None, task_id: str, states: tuple[str, ...], dag: str = GENERATE) -> None:
        """Wait until a task whose name begins so is in one of these states; in the newest run if none is named."""

        def reached() -> bool:
            with suppress(*_UNREACHABLE):
                tasks = self.cluster.api.tasks(dag, run_id or self.runs(dag)[0]["dag_run_id"])
                return any(task["task_id"].startswith(task_id) and task["state"] in states for task in tasks)
            return False

        wait_until(reached, f"{task_id} to be {' or '.join(states)}", 300)

    def published_rows(self) -> int:
        """Rows of the source in the latest release."""
        latest = self.releases / "latest"
        return read_manifest(latest).sources[SOURCE].rows if latest.exists() else 0

    def wait_until_complete(self, known: dict[str, set[str]], timeout_s: float = 600) -> None:
        """Wait until nothing runs any more and the release holds every row; a run that failed is triggered anew.

        That is what a person does who sees a red run, once the cause is mended.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            assert time.monotonic() < deadline, f"not complete within {timeout_s:g} s: {self._describe(known)}"
            time.sleep(1)
            with suppress(*_UNREACHABLE):
                new = {dag: [run for run in self.runs(dag) if run["dag_run_id"] not in known[dag]] for dag in DAGS}
                if any(run["state"] in ("queued", "running") for runs in new.values() for run in runs):
                    continue
                if self.cluster.api.queued_events(GENERATE):
                    continue
                if self.published_rows() == MODES * self.rows:
                    return
                if new[INGEST] and all(run["state"] == "failed" for run in new[INGEST]):
                    self.trigger(INGEST)
                elif new[GENERATE]:
                    self.trigger(GENERATE)

    def _describe(self, known: dict[str, set[str]]) -> str:
        states = {
            f"{dag} {run['dag_run_id']}": [run["state"], self._open_tasks(dag, run["dag_run_id"])]
            for dag in DAGS
            for run in self.runs(dag)
            if run["dag_run_id"] not in known[dag]
        }
        return f"{self.published_rows()} of {MODES * self.rows} rows published; {json.dumps(states)}"

    def _open_tasks(self, dag: str, run_id: str) -> list[str]:
        tasks = self.cluster.api.tasks(dag, run_id)
        return [
            f"{task['task_id']}[{task['map_index']}] {task['state']} try {task['try_number']}"
            for task in tasks
            if task["state"] not in ("success", "skipped")
        ]
