"""kill -9 of the scheduler and of its workers while a real Airflow generates, and a task that is failed in the UI."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from include.local.stack import read_state
from include.storage.generation import list_progress
from include.storage.warehouse import Warehouse
from tests.include.sources.corpus_files import toy_row, write_corpus
from tests.integration.front_door import FrontDoor
from tests.kills import Tally, begun, doubled, is_gone, random_moments, redone, stored, texts, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 20
BATCH = 2
# More than can be written between the kills: a life of at most 5 batches on each device.
ROWS = 200
DEVICES = 2
DAG = "generate_and_publish"
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def sift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontDoor]:
    """A stack with two devices, so that two shards are generated at once, and with two corpora staged."""
    root = tmp_path_factory.mktemp("kills")
    for repository in ("AbstractTTS/SAVEE", "AbstractTTS/TESS"):
        write_corpus(root / "hub", [toy_row(n) for n in range(ROWS)], repository=repository)
    settings = {
        "SIFT_HUB": str(root / "hub"),
        "SIFT_SCHEDULES": "false",
        "SIFT_BATCH_SIZE": str(BATCH),
        "SIFT_FAKE_BATCH_S": "0.5",
        "SIFT_FAKE_LOG": str(root / "batches"),
        "SIFT_FAKE_FAULTS": "empty:0.1",
        "SIFT_MOST_RESTARTS": "1000",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(DEVICES))),  # leased, though the fake engine leaves them alone
    }
    door = FrontDoor(root / "sift", settings=settings)
    try:
        door("up")
        for dag in ("ingest_savee", "ingest_tess"):
            door("trigger", dag, "--wait")
        yield door
    finally:
        door.close()


@pytest.fixture
def warehouse(sift: FrontDoor) -> Warehouse:
    """The stack's own."""
    state = read_state(sift.home)
    assert state
    return Warehouse(state.conninfo)


class Campaign:
    """A run of one source, and what is killed while it goes on.

    Attributes:
        tally: What was found.
        generating: The processes that generate now.
    """

    def __init__(self, target: str, sift: FrontDoor, warehouse: Warehouse, source: str) -> None:
        self.moments = random_moments(f"killed {target}")
        self.sift, self.warehouse, self.source = sift, warehouse, source
        self.log_file = Path(sift.settings["SIFT_FAKE_LOG"])
        self.log_file.unlink(missing_ok=True)
        self.tally = Tally(target)
        self.before = self.stored()
        sift.api.unpause(DAG)
        self.run_id = sift.api.trigger(DAG, {"sources": [source]})
        self.killed: set[int] = set()

    def stored(self) -> dict[Any, Any]:
        rows = stored(self.warehouse)
        return {key: row for key, row in rows.items() if key[0].startswith(f"{self.source}/")}

    def generating(self) -> list[psutil.Process]:
        """Processes that have begun a batch and are there."""
        pids = {pid for pid, _ in begun(self.log_file)} - self.killed
        return [psutil.Process(pid) for pid in pids if not is_gone(pid)]

    def wait_for_generating(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        while not found:
            wait_until(lambda: bool(self.generating()), "a task to generate", 180)
            time.sleep(self.moments.uniform(0, 2))
            found = self.generating()
        return found

    def check(self, generating: list[psutil.Process]) -> None:
        """After a kill: these processes end too, nothing that was stored is lost, only batches in work are missing."""
        for process in generating:
            wait_until(lambda process=process: is_gone(process.pid), f"{process.pid} to die with its supervisor", 30)
            self.killed.add(process.pid)
        after = self.stored()
        self.tally.compare(self.before, after)
        self.before = after
        for process in generating:
            own = [rows for pid, rows in begun(self.log_file) if pid == process.pid]
            missing = [rows for rows in own if not set(rows) <= texts(after)]
            assert missing in ([], own[-1:])

    def finish(self) -> None:
        """The work completes, and adds up."""
        wait_until(lambda: self.sift.api.run(DAG, self.run_id)["state"] not in ("queued", "running"), "the run", 400)
        assert self.sift.api.run(DAG, self.run_id)["state"] == "success"
        after = self.stored()
        self.tally.compare(self.before, after)
        self.tally.rows, self.tally.doubled = len(after), doubled(after)
        self.tally.redone_rows, self.tally.redone_batches, needless = redone(self.log_file)
        assert len({key[:2] for key in after}) == 3 * ROWS
        assert (self.tally.lost, self.tally.doubled) == (0, 0)
        # At most the batch in work of every task that ran: two, one on each device.
        assert self.tally.redone_batches <= DEVICES * self.tally.kills and needless == 0
        assert (self.sift.home / "releases" / "latest" / "data" / self.source).is_dir()
        assert self.generating() == []


def scheduler(sift: FrontDoor) -> psutil.Process:
    """The scheduler itself, not its workers."""
    supervisor = sift.processes()[0]
    (process,) = [child for child in supervisor.children() if "scheduler" in child.cmdline()]
    return process


def patch(sift: FrontDoor, path: str, body: dict[str, str]) -> None:
    """What the web UI sends when a user marks a run or a task."""
    state = read_state(sift.home)
    assert state
    token = httpx.get(f"{state.url}/auth/token").raise_for_status().json()["access_token"]
    url, headers = f"{state.url}/api/v2/dags/{DAG}/dagRuns/{path}", {"Authorization": f"Bearer {token}"}
    httpx.patch(url, json=body, headers=headers, timeout=60).raise_for_status()


def test_a_task_that_is_failed_in_the_ui_stops(sift: FrontDoor, warehouse: Warehouse) -> None:
    campaign = Campaign("nothing", sift, warehouse, "savee")
    generating = campaign.wait_for_generating()
    run = quote(campaign.run_id, safe="")
    task = next(
        task
        for task in sift.api.tasks(DAG, campaign.run_id)
        if task["task_id"].endswith(".generate") and task["state"] == "running" and begun_by(campaign, task["pid"])
    )
    patch(sift, f"{run}/taskInstances/{task['task_id']}/{task['map_index']}", {"new_state": "failed"})
    # Airflow's supervisor hears of it by its next heartbeat, up to 5 s later, sends SIGTERM, and would kill after 5 s.
    wait_until(lambda: is_gone(task["pid"]), "the task's process to end", 60)
    mode, shard = task["task_id"].split(".")[0], task["map_index"]
    row = next(
        row
        for row in list_progress(warehouse, EPOCH)
        if (row["run_id"], row["mode"], row["shard"]) == (campaign.run_id, mode, shard)
    )
    assert row["status"] == "stopped" and 0 < row["done"] < row["total"]
    there = [key for key in campaign.stored() if key[1] == mode and key[3] == 0]
    assert len(there) >= row["accepted"]
    campaign.check([process for process in generating if process.pid == task["pid"]])
    patch(sift, run, {"state": "failed"})
    wait_until(lambda: campaign.generating() == [], "the other tasks to end", 60)
    states = {(t["task_id"], t["map_index"]): t["state"] for t in sift.api.tasks(DAG, campaign.run_id)}
    assert states[task["task_id"], shard] == "failed"  # and not up for retry: the user's word counts
    log = "\n".join(sift.api.task_log(DAG, campaign.run_id, task["task_id"], task["try_number"], shard))
    assert "shouldn't be running anymore" in log


def begun_by(campaign: Campaign, pid: int) -> bool:
    return any(pid == other for other, _ in begun(campaign.log_file))


def test_killed_schedulers(
    sift: FrontDoor, warehouse: Warehouse, record_property: Callable[[str, object], None]
) -> None:
    campaign = Campaign("scheduler", sift, warehouse, "savee")
    while campaign.tally.kills < KILLS:
        generating = campaign.wait_for_generating()
        scheduler(sift).kill()
        campaign.tally.kills += 1
        campaign.check(generating)
    campaign.finish()
    campaign.tally.notes = f"{len(campaign.killed)} generating processes died with it"
    record_property("tally", str(campaign.tally))


def pids(processes: list[psutil.Process]) -> set[int]:
    return {process.pid for process in processes}


def test_killed_workers(sift: FrontDoor, warehouse: Warehouse, record_property: Callable[[str, object], None]) -> None:
    campaign, idle = Campaign("worker", sift, warehouse, "tess"), 0
    for number in count():
        if campaign.tally.kills >= KILLS:
            break
        generating = campaign.wait_for_generating()
        workers = scheduler(sift).children()
        waiting = [worker for worker in workers if "<idle>" in " ".join(worker.cmdline())]
        # Every third time one that waits for work, which may hold the lock of the queue; else those that generate.
        if waiting and number % 3 == 0:
            victims, idle = waiting[:1], idle + 1
        else:
            victims = [worker for worker in workers if {child.pid for child in worker.children()} & pids(generating)]
        if not victims:
            continue  # what generates is dying: it belongs to the scheduler before
        for victim in victims:
            if victim.is_running():
                victim.kill()
                campaign.tally.kills += 1
                time.sleep(campaign.moments.uniform(0, 0.3))
        campaign.check(generating)
    assert idle
    campaign.finish()
    campaign.tally.notes = f"{idle} of them idle; {len(campaign.killed)} generating processes died with them"
    record_property("tally", str(campaign.tally))
