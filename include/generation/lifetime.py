"""How a generating process ends before its work does: with its parent, when it is asked to, or because it stalls.

Whatever is stored by then stays, and the pending rule finds the rest.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from include.local.processes import set_death_signal

log = logging.getLogger(__name__)

STALLED_STATUS = 70
"""Exit status of a process that its watchdog ended."""
_STDERR = 2
_POLL_S = 0.5
# What the watchdog's thread has for saying why, before the process is ended without a word.
_GRACE_S = 45.0


@contextmanager
def bound_to_task() -> Iterator[None]:
    """Let this process end with its parent and, inside the block, stop on SIGTERM with SystemExit.

    The parent of a task's process is Airflow's supervisor of that task. Once that was killed nobody would hear of the
    task again, and yet it would keep its GPU: so the kernel kills it too (on Linux). The supervisor forks from its
    main thread, which matters, for the kernel watches the thread.

    When a task is cleared or marked in the UI, the supervisor sends SIGTERM and 5 s later SIGKILL. Airflow's own
    handler only calls `on_kill` and lets the task go on until then.

    Enter it in the main thread: only there can signals be handled.

    Raises:
        SystemExit: When SIGTERM comes, at whatever line runs. Airflow tries such a task again, unless the user has
            said what is to become of it.
    """

    def stop(received: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what ends now must not be cut short
        raise SystemExit("stopped by SIGTERM")

    set_death_signal(signal.SIGKILL)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        set_death_signal(0)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let SIGTERM wait until the block is done: a finished batch is stored first. For the main thread."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if received:
            signal.raise_signal(signal.SIGTERM)


class Watchdog:
    """Ends this process when what is expected does not come in time.

    A hang inside a library cannot be interrupted, so a thread watches; it says why in the log, with where every thread
    is, calls `on_stall` and ends the process with STALLED_STATUS. A hang that holds the interpreter's lock stops
    that thread as well: then `faulthandler`, which needs no lock, shows where and ends the process.

    Args:
        on_stall: Called from the watchdog's thread before the end.
    """

    def __init__(self, on_stall: Callable[[], None]) -> None:
        self._on_stall = on_stall
        self._expected: tuple[str, float, float] | None = None  # what, within so many seconds, by then
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.expect("", 0)
        self._ended.set()
        self._thread.join()

    def expect(self, what: str, within_s: float) -> None:
        """Forget what was expected before, and expect this.

        Args:
            what: As the log says it: "no <what> for 600 s".
            within_s: Seconds from now; 0: no limit.
        """
        if not within_s:
            self._expected = None
            faulthandler.cancel_dump_traceback_later()
            return
        self._expected = (what, within_s, time.monotonic() + within_s)
        faulthandler.dump_traceback_later(within_s + _GRACE_S, exit=True, file=_STDERR)

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            expected = self._expected
            if expected is not None and time.monotonic() > expected[2]:
                self._end(*expected[:2])

    def _end(self, what: str, within_s: float) -> None:
        log.critical("no %s for %g s: this process ends, so that its task is tried again; it stands at", what, within_s)
        faulthandler.dump_traceback(file=_STDERR)
        try:
            self._on_stall()
        except Exception:  # whatever it is, a process that hangs must end
            log.exception("could not record that this process stalled")
        os._exit(STALLED_STATUS)
