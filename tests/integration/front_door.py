"""`./sift` as a user types it, for the tests of the whole system."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from include.local.airflow import AirflowApi
from include.local.stack import read_state
from include.settings import PROJECT_ROOT


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

    @property
    def api(self) -> AirflowApi:
        state = read_state(self.home)
        assert state
        return AirflowApi(state.url)
