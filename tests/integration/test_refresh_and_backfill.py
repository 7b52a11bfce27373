"""Corpora that change: a Hub with a history, refreshed, backfilled and joined by a twelfth source in a real Airflow."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from include.local.stack import read_state
from tests.hub_server import HubServer
from tests.include.sources.corpus_files import TOY_SCHEMA, toy_row
from tests.integration.front_door import FrontDoor, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAVEE = "AbstractTTS/SAVEE"
CARD = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"


@dataclass
class World:
    """A stack on a checkout of its own, reading from a Hub with a history.

    Attributes:
        sift: The front door.
        hub: The Hub.
        revisions: SAVEE's commits, oldest first.
    """

    sift: FrontDoor
    hub: HubServer
    revisions: list[str]

    def query(self, text: str) -> list[tuple[Any, ...]]:
        state = read_state(self.sift.home)
        assert state
        with psycopg.connect(state.conninfo, autocommit=True) as connection:
            return connection.execute(text).fetchall()

    def staged(self, source: str) -> int:
        return self.query(f"select count(*) from staging.samples where source = '{source}' and retired_at is null")[0][
            0
        ]

    def unpause(self, dag: str) -> None:
        """Unpause a DAG with a cron, which at once starts the run of its last tick, and wait for that."""
        self.sift.api.unpause(dag)
        deadline = time.monotonic() + 120
        while not self.sift.api.runs(dag):
            assert time.monotonic() < deadline
            time.sleep(1)
        self.wait_for_runs(dag)

    def wait_for_runs(self, dag: str, most_s: float = 240) -> None:
        """Until no run of a DAG is under way, and no event waits for one."""
        deadline = time.monotonic() + most_s
        while any(run["state"] in ("queued", "running") for run in self.sift.api.runs(dag)) or (
            self.sift.api.queued_events(dag)
        ):
            assert time.monotonic() < deadline
            time.sleep(1)

    def skipped_because(self, dag: str, run: dict[str, Any]) -> str:
        return "\n".join(self.sift.api.task_log(dag, run["dag_run_id"], "resolve_revision", 1))


def savee(*numbers: int, **changes: object) -> bytes:
    rows = [toy_row(n, **changes) | {"file": f"DC_a{n:02}.wav"} for n in numbers]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=TOY_SCHEMA), sink)
    return sink.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    copy_project(root / "project")
    with HubServer() as hub:
        file = "data/train-00000-of-00001.parquet"
        first = hub.commit(
            SAVEE, {"README.md": CARD, file: savee(1, 2, 3)}, created_at=datetime(2024, 2, 1, tzinfo=UTC)
        )
        second = hub.commit(SAVEE, {file: savee(1, 2, 3, 4)}, created_at=datetime(2024, 2, 10, tzinfo=UTC))
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "0"}
        settings["SIFT_REVIEW_TIMEOUT_H"] = "0.005"  # 18 s
        door = FrontDoor(root / "sift", root / "project", {**settings, "SIFT_HUB": "hf://datasets"})
        try:
            door("up")
            yield World(door, hub, [first, second])
        finally:
            door.close()


def test_a_backfill_never_goes_back_unless_it_is_told_to(world: World) -> None:
    first, second = world.revisions
    world.unpause("ingest_savee")  # last Sunday's run stages the newest revision
    assert world.staged("savee") == 4

    said = world.sift("backfill", "ingest_savee", "--from", "2024-01-28", "--to", "2024-02-18", "--wait")
    assert said.count("success") == 4
    runs = world.sift.api.runs("ingest_savee", "backfill")[::-1]
    reasons = [world.skipped_because("ingest_savee", run) for run in runs]
    assert "has no revision as old as 2024-01-28" in reasons[0]
    assert f"revision {first[:12]} of 2024-02-01" in reasons[1] and "is older than what is staged" in reasons[1]
    assert "is staged already" in reasons[2] and "is staged already" in reasons[3]
    assert world.staged("savee") == 4

    arguments = ("--from", "2024-02-01", "--to", "2024-02-12", "--conf", '{"force": true}', "--reprocess", "completed")
    world.sift("backfill", "ingest_savee", *arguments, "--wait")
    loads = world.query("select revision, staged, unchanged, retired from staging.loads order by finished_at")
    assert loads == [(second, 4, 0, 0), (first, 0, 3, 1), (second, 0, 3, 0)]
    assert world.staged("savee") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate_and_publish", "--from", "2024-02-01", "--to", "2024-02-12"), "backfill"),
        (("ingest_savee", "--from", "2024-02-12", "--to", "2024-02-01"), "date"),
        (("ingest_nothing", "--from", "2024-02-01", "--to", "2024-02-12"), "ingest_nothing"),
        (("ingest_savee", "--from", "2024-02-01", "--to", "2024-02-12", "--conf", '{"force": 3}'), "force"),
    ],
)
def test_a_backfill_that_makes_no_sense_is_refused(world: World, arguments: tuple[str, ...], message: str) -> None:
    said = world.sift("backfill", *arguments, status=1)
    assert said.startswith("sift: Airflow refused POST /api/v2/backfills") and message in said


def test_a_refresh_without_news_wakes_nobody_and_one_with_news_does(world: World) -> None:
    world.unpause("generate_and_publish")
    before = len(world.sift.api.runs("generate_and_publish"))
    world.sift("trigger", "ingest_savee", "--wait")
    world.wait_for_runs("generate_and_publish")
    assert len(world.sift.api.runs("generate_and_publish")) == before
    texts = world.query("select count(*) from generation.responses")[0][0]

    changed = pa.concat_tables(
        [pq.read_table(io.BytesIO(savee(1, 2, 3, 5))), pq.read_table(io.BytesIO(savee(4, emotion="sad")))]
    )
    sink = io.BytesIO()
    pq.write_table(changed, sink)
    world.hub.commit(SAVEE, {"data/train-00000-of-00001.parquet": sink.getvalue()}, created_at=datetime.now(UTC))
    world.sift("trigger", "ingest_savee", "--wait")
    world.wait_for_runs("generate_and_publish")
    assert len(world.sift.api.runs("generate_and_publish")) > before
    # One row is new and one has another emotion, which the bare transcript of sift_s does not show.
    assert world.query("select count(*) from generation.responses")[0][0] == texts + 3 + 2


def test_a_twelfth_source_needs_no_other_file(world: World) -> None:
    rows = [toy_row(n, emotion="joy") for n in range(6)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=TOY_SCHEMA), sink)
    world.hub.commit("org/mine", {"README.md": CARD, "data/train-0.parquet": sink.getvalue()})
    before = (world.sift.home / "releases" / "latest").resolve()
    said = world.sift("new-source", "mine", "--repository", "org/mine")
    assert "include/sources/mine.py" in said
    fixture = json.loads((world.sift.project / "tests/include/sources/fixtures/mine.json").read_text())
    assert [row["emotion"] for row in fixture["samples"]] == ["happy"] * 4
    assert "sift: there is an include/sources/mine.py already" in world.sift(
        "new-source", "mine", "--repository", "org/mine", status=1
    )

    deadline = time.monotonic() + 120
    while "ingest_mine" not in {dag["dag_id"] for dag in world.sift.api.list_dags()}:
        assert time.monotonic() < deadline and not world.sift.api.import_errors()
        time.sleep(1)
    # The consumer has to know the new asset as well: its file is parsed as often.
    while "staged/mine" not in json.dumps(world.sift.api.dag_details("generate_and_publish")["asset_expression"]):
        assert time.monotonic() < deadline
        time.sleep(1)
    world.sift("trigger", "ingest_mine", "--wait")
    world.wait_for_runs("generate_and_publish")
    assert world.staged("mine") == 6
    assert world.query("select count(*) from generation.responses where source = 'mine'") == [(18,)]
    after = (world.sift.home / "releases" / "latest").resolve()
    assert after != before
    assert (after / "data" / "mine").is_dir() and (after / "data" / "savee").is_dir()


def test_a_release_that_nobody_approves_in_time_is_kept_aside(world: World, tmp_path: Path) -> None:
    world.sift("trigger", "ingest_savee", "--wait")
    folder = tmp_path / "releases"
    conf = json.dumps({"target": str(folder), "review": True})
    world.sift("trigger", "generate_and_publish", "--conf", conf, "--wait", status=1)
    run = world.sift.api.runs("generate_and_publish", "manual")[0]
    states = {
        task["task_id"].rpartition(".")[2]: (task["state"], task["try_number"])
        for task in world.sift.api.tasks("generate_and_publish", run["dag_run_id"])
        if task["task_id"].startswith("merge_and_publish.")
    }
    # Asked once: the timeout is not tried again.
    assert states == {"merge": ("success", 1), "approve": ("failed", 1), "publish": ("upstream_failed", 0)}
    assert len(list(folder.glob(".built-*"))) == 1
    assert not (folder / "latest").exists()


def test_an_upstream_column_that_is_renamed_is_a_red_task_that_names_it(world: World) -> None:
    table = pq.read_table(io.BytesIO(savee(1, 2, 3, 4))).rename_columns(
        [{"emotion": "feeling"}.get(name, name) for name in TOY_SCHEMA.names]
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    world.hub.commit(SAVEE, {"data/train-00000-of-00001.parquet": sink.getvalue()}, created_at=datetime.now(UTC))
    before = world.query("select max(last_changed), count(*) from staging.samples where source = 'savee'")
    world.sift("trigger", "ingest_savee", "--wait", status=1)
    run = world.sift.api.runs("ingest_savee")[0]
    (task,) = [t for t in world.sift.api.tasks("ingest_savee", run["dag_run_id"]) if t["state"] == "failed"]
    assert (task["task_id"], task["try_number"]) == ("load", 1)
    log = "\n".join(world.sift.api.task_log("ingest_savee", run["dag_run_id"], "load", 1, task["map_index"]))
    assert "savee: data/train-00000-of-00001.parquet has no column 'emotion'" in log
    assert world.query("select max(last_changed), count(*) from staging.samples where source = 'savee'") == before
