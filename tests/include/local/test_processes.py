"""Processes do not outlive the one that started them, and sessions are cleaned up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from include.local.processes import KEPT_LOGS, rotate_logs, start_process, stop_process
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


def test_a_log_that_has_grown_is_put_aside_while_its_process_goes_on_writing(tmp_path: Path) -> None:
    log_file = tmp_path / "part.log"
    code = "import sys\nfor line in sys.stdin: print(line * 100, end='', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log_file.open("ab"), text=True
    )
    assert process.stdin
    for number in range(KEPT_LOGS + 2):
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        while log_file.stat().st_size < 200:
            time.sleep(0.01)
        rotate_logs(tmp_path, most_bytes=100)
    process.stdin.close()
    process.wait(10)
    names = {file.name: file.read_text().splitlines() for file in tmp_path.iterdir()}
    newest = KEPT_LOGS + 1
    kept = {f"part.log.{back}": [str(newest - back + 1)] * 100 for back in range(1, KEPT_LOGS + 1)}
    assert names == {"part.log": [], **kept}


def test_a_small_log_stays(tmp_path: Path) -> None:
    (tmp_path / "part.log").write_text("a line\n")
    rotate_logs(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["part.log"]
