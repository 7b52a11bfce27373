"""Processes of the embedded stack: each in a session of its own, none outliving the process that started it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

MOST_LOG_BYTES = 20 << 20
KEPT_LOGS = 3
"""Older pieces of each process's log that are kept beside it."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def start_process(
    command: Sequence[str],
    log_file: Path,
    *,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    death_signal: signal.Signals | None = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one, unless it is told otherwise.

    Args:
        command: Program and arguments.
        log_file: Where its output is appended.
        env: Its whole environment; None: ours.
        user: System user to run as (only root may choose).
        death_signal: What the kernel sends it when this process ends in whatever way (Linux); None leaves it alone.
            Call this from the main thread: the kernel watches the thread that started the child.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            preexec_fn=_dies_with_parent(death_signal) if death_signal else None,
        )


def rotate_logs(folder: Path, most_bytes: int = MOST_LOG_BYTES) -> None:
    """Put logs that have grown large aside, as `<name>.log.1` and so on; the oldest of `KEPT_LOGS` goes.

    The processes that write them go on: they append, so each finds itself at the start of its emptied file. Lines that
    are written within that moment are lost.

    Args:
        folder: Of the `*.log` files.
        most_bytes: Size from which a log is put aside.
    """
    for log_file in folder.glob("*.log"):
        if log_file.stat().st_size < most_bytes:
            continue
        for number in range(KEPT_LOGS, 1, -1):
            with suppress(FileNotFoundError):
                Path(f"{log_file}.{number - 1}").replace(f"{log_file}.{number}")
        shutil.copyfile(log_file, f"{log_file}.1")
        os.truncate(log_file, 0)


def stop_process(process: subprocess.Popen[bytes], first: signal.Signals, patience_s: float = 15) -> None:
    """End a process and whatever is left of its session.

    Args:
        process: Started by `start_process`, so its pid is its session and process group.
        first: Signal that asks it to end; after `patience_s` seconds it is killed.
        patience_s: Seconds to wait.
    """
    if process.poll() is None:
        process.send_signal(first)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def set_death_signal(number: int) -> None:
    """Ask the kernel to send this process a signal when the thread that started it ends.

    Args:
        number: The signal; 0 for none. Nothing happens where there is no such wish (outside Linux).
    """
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def _dies_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    parent = os.getpid()

    def arrange() -> None:
        set_death_signal(death_signal)
        if os.getppid() != parent:  # it died before we asked
            os.kill(os.getpid(), death_signal)

    return arrange
