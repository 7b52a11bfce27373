"""Faults of a deployment that asks a model server: the server goes away, and midnight comes while it is asked."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from include.generation.fake import plausible_text
from include.modes import MODES
from include.schema import Prompt
from include.settings import PROJECT_ROOT
from include.storage.warehouse import Warehouse
from tests.cluster.cluster import Cluster, running
from tests.cluster.drill import GENERATE, Drill, Outcome
from tests.include.generation.byte_tokenizer import save_byte_tokenizer
from tests.include.generation.llm_server import Fault, Request, ServerState, running_server
from tests.kills import wait_until
from tests.ports import free_port

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

ROWS = 60
# As SmolLM3's does, it prints today's date into every prompt.
DATED_TEMPLATE = (
    '<|im_start|>system\nToday Date: {{ strftime_now("%d %B %Y") }}\n\n'
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
DATE = re.compile(r"Today Date: (\d\d \w+ \d{4})")
USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)
# Python imports it at the start of each process that has its folder in PYTHONPATH.
MOVE_THE_CLOCK = """
from datetime import UTC, datetime, timedelta
from pathlib import Path

import time_machine

offset = timedelta(seconds=float(Path(__file__).with_name("offset").read_text()))
time_machine.travel(datetime.now(UTC) + offset, tick=True).start()
"""


class WorkersClock:
    """The clock of the workers, where prompts are made and rendered; it is moved when a worker starts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "sitecustomize.py").write_text(MOVE_THE_CLOCK)
        (folder / "offset").write_text("0")
        self.environment = {"PYTHONPATH": f"{folder}:{PROJECT_ROOT}"}
        self.midnight = 0.0  # by time.monotonic()

    def set_before_midnight(self, cluster: Cluster, before: timedelta) -> None:
        """Start the workers again, with a clock by which it is midnight, UTC, after so much time."""
        now = datetime.now(UTC)
        tomorrow = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
        (self._folder / "offset").write_text(str((tomorrow - before - now).total_seconds()))
        self.midnight = time.monotonic() + before.total_seconds()
        for name in cluster.services:
            if "worker" in name:
                cluster.stop(name, signal.SIGKILL)
                cluster.start(name)


class ModelServer:
    """A server that can be switched off and on again, on one port."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.port = free_port()
        self._running = ExitStack()

    def on(self) -> None:
        self.state.fault = lambda request, before: None
        self._running.enter_context(running_server(self.state, self.port))

    def off(self) -> None:
        self.state.fault = lambda request, before: Fault(0)  # connections that are open are cut
        self._running.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    model = save_byte_tokenizer(tmp_path_factory.mktemp("model"), DATED_TEMPLATE)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    state = ServerState(
        models=[str(model)],
        count=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        answer=answer,
        seconds=0.6,
    )
    found = ModelServer(state)
    found.on()
    yield found
    found.off()


def answer(request: Request) -> tuple[str, str]:
    """Answer as a good model would: what the fake engine writes."""
    text = request.body["prompt"]
    mode = next((name for name, mode in MODES.items() if mode.system_prompt and mode.system_prompt in text), "sift_s")
    user = USER.search(text)
    prompt = Prompt("", "", mode, "", "", user[1] if user else "", 1, request.body.get("seed", 0))
    return plausible_text(prompt), "stop"


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> WorkersClock:
    return WorkersClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory, server: ModelServer, clock: WorkersClock) -> Iterator[Drill]:
    root = tmp_path_factory.mktemp("served")
    settings = {
        "SIFT_HUB": str(root / "hub"),
        "SIFT_ENGINE": "openai",
        "SIFT_MODEL_NAME": server.state.models[0],
        "SIFT_SCHEDULES": "false",
        "SIFT_BATCH_SIZE": "4",
        "SIFT_SERVER_CONCURRENCY": "2",
        "AIRFLOW_CONN_LLM_SERVER": f'{{"conn_type": "http", "host": "http://127.0.0.1:{server.port}/v1"}}',
    }
    with running(root, profiles={"gpu-2"}, gpus=2, settings=settings, worker_environment=clock.environment) as cluster:
        found = Drill(cluster, root / "hub", root / "batches")
        cluster.api.unpause(GENERATE)
        with found.running("nothing", ROWS):
            pass
        yield found


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Outcome], None]:
    return lambda outcome: record_property("fault", str(outcome))


def prompts(warehouse: Warehouse) -> dict[tuple[str, str], tuple[str, str]]:
    """Hashes of all current prompts by sample and mode."""
    with warehouse.connection() as connection:
        rows: list[dict[str, Any]] = connection.execute("select * from generation.prompts").fetchall()
    return {(row["sample_id"], row["mode"]): (row["mode_hash"], row["prompt_hash"]) for row in rows}


def test_model_server_away(drill: Drill, server: ModelServer, report: Callable[[Outcome], None]) -> None:
    with drill.running("model server away for 30 s, generating", ROWS) as outcome:
        asked = len(server.state.requests)
        wait_until(lambda: len(server.state.requests) > asked + 40, "the server to be asked", 120)
        server.off()
        time.sleep(30)
        server.on()
    report(outcome)


def test_clock_moved_over_midnight(
    drill: Drill, server: ModelServer, clock: WorkersClock, report: Callable[[Outcome], None]
) -> None:
    before = prompts(drill.cluster.warehouse)
    began = len(server.state.requests)
    clock.set_before_midnight(drill.cluster, timedelta(seconds=60))
    with drill.running("midnight comes, generating", 3 * ROWS) as outcome:
        pass
    asked = server.state.asked()[began:]
    assert asked[0].at < clock.midnight < asked[-1].at
    assert {found[1] for request in asked if (found := DATE.search(request.body["prompt"]))} == {"01 January 2026"}
    after = prompts(drill.cluster.warehouse)
    assert {key: after[key] for key in before} == before
    assert len({mode_hash for mode_hash, _ in after.values()}) == len(MODES)
    # Nothing is pending on the new day.
    run_id = drill.trigger(GENERATE)
    wait_until(lambda: drill.cluster.api.run(GENERATE, run_id)["state"] == "success", "a run of the new day", 120)
    assert server.state.asked()[began:] == asked
    report(outcome)
