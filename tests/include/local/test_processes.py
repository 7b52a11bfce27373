"""Processes do not outlive the one that started them, and sessions are cleaned up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from include.local.processes import start_process, stop_process
from include.settings import PROJECT_ROOT

SLEEPER = [sys.executable, "-c", "import time; time.sleep(300)"]


def test_a_child_dies_with_its_parent_even_by_sigkill(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from include.local.processes import start_process; "
        f"child = start_process({SLEEPER!r}, pathlib.Path({str(tmp_path / 'log')!r})); "
        "print(child.pid, flush=True); time.sleep(300)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_stopping_takes_the_whole_session_along(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen({SLEEPER!r}); print(child.pid, flush=True); time.sleep(300)"
    )
    process = start_process([sys.executable, "-u", "-c", code], tmp_path / "log")
    deadline = time.monotonic() + 20
    while not (text := (tmp_path / "log").read_text()).endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    grandchild = psutil.Process(int(text))
    stop_process(process, signal.SIGTERM)
    psutil.wait_procs([grandchild], timeout=10)
    assert process.returncode == -signal.SIGTERM
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_what_does_not_stop_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(300)"
    )
    process = start_process([sys.executable, "-c", code], tmp_path / "log")
    deadline = time.monotonic() + 20
    while "on" not in (tmp_path / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stop_process(process, signal.SIGTERM, patience_s=0.3)
    assert process.returncode == -signal.SIGKILL
