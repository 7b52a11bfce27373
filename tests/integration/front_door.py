"""`./sift` as a user types it, for the tests of the whole system."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil

from include.local.airflow import AirflowApi
from include.local.stack import read_state
from include.settings import PROJECT_ROOT


def copy_project(folder: Path) -> None:
    """Make a checkout of what is here, committed or not, for tests that change its files."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (PROJECT_ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT_ROOT / name, folder / name)


@dataclass
class FrontDoor:
    """Runs commands of `./sift` with a home of their own.

    Attributes:
        home: State of this stack.
        project: Checkout whose code runs.
        settings: Variables of the environment besides.
    """

    home: Path
    project: Path = PROJECT_ROOT
    settings: dict[str, str] = field(default_factory=dict)

    def env(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SIFT_", "AIRFLOW"))}
        return {
            **kept,
            "SIFT_HOME": str(self.home),
            "SIFT_ENGINE": "fake",
            "PYTHONPATH": str(self.project),
            **self.settings,
            **more,
        }

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "include.cli", *arguments]
        return subprocess.Popen(
            command, cwd=self.project, env=self.env(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def __call__(self, *arguments: str, status: int = 0, **env: str) -> str:
        process = self.start(*arguments, **env)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == status, output
        return output

    def processes(self) -> list[psutil.Process]:
        """The running stack: its supervisor and all below it."""
        state = read_state(self.home)
        if not state:
            return []
        supervisor = psutil.Process(state.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def left_over(self) -> list[psutil.Process]:
        """Whatever still runs with this home: some say so in their environment, others in their command line."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                said = f"{process.environ().get('SIFT_HOME')} {' '.join(process.cmdline())}"
                if str(self.home) in said:
                    found.append(process)
        return found

    def close(self) -> None:
        """`./sift down`, after which nothing of the stack is left."""
        running = self.processes()
        self("down")
        _, alive = psutil.wait_procs(running, timeout=5)
        assert alive == []
        assert self.left_over() == []

    def answer(self, dag: str, run_id: str, task_id: str, option: str) -> dict[str, Any]:
        """Answer what a task asks, as the web UI does under Required Actions; returns what it asked.

        Not within a second, as nobody does: Airflow's scheduler has to hear first that the task waits, or asks again.
        """
        time.sleep(5)
        path = f"/api/v2/dags/{dag}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/-1/hitlDetails"
        state = read_state(self.home)
        assert state
        with httpx.Client(base_url=state.url) as client:
            token = client.get("/auth/token").raise_for_status().json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            asked = client.get(path).raise_for_status().json()
            client.patch(path, json={"chosen_options": [option], "params_input": {}}).raise_for_status()
        return dict(asked)

    @property
    def api(self) -> AirflowApi:
        state = read_state(self.home)
        assert state
        return AirflowApi(state.url)
