"""The embedded stack: PostgreSQL and Airflow under one supervisor, as long as it lives.

`python -m include.local.stack` is the supervisor: it starts everything, restarts what dies, and stops everything when
it is told to. `./sift up` leaves it in the background; `./sift demo` takes it along when it ends.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import urlsplit

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from include.local.airflow import (
    COMPONENTS,
    WORKER_TITLE,
    AirflowApi,
    airflow_command,
    airflow_environment,
    end_scheduler_jobs,
)
from include.local.postgres import PostgresServer, start_postgres
from include.local.processes import rotate_logs, start_process, stop_process
from include.settings import PROJECT_ROOT, Settings, get_settings
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)

DEFAULT_PORT = 8080
OPEN = "There is no login: it is open to everybody who can log in to this machine, and to nobody else"
"""What is said whenever a stack stays up."""
START_TIMEOUT_S = 240
# A part that ends more often than `settings.most_restarts` within it does not get better by being started again.
RESTART_WINDOW_S = 600
# How often logs are looked at, and Airflow's history of runs.
HOUSEKEEPING_S = 60
DAY_S = 86_400
# Every process of the stack carries this in its environment, so that none can hide from `stop`.
STACK_MARK = "SIFT_STACK"


class StackError(RuntimeError):
    """The stack cannot start or stop; the message says why and what to do."""


@dataclass(frozen=True)
class StackState:
    """What a running stack tells others, in `<home>/run/state.json`.

    Attributes:
        pid: The supervisor.
        url: Airflow's address.
        conninfo: The warehouse.
        psql: The program that speaks to it.
        hub: Where corpora are read from.
        schedules: Whether its DAGs have their schedules.
    """

    pid: int
    url: str
    conninfo: str
    psql: str
    hub: str
    schedules: bool = True


def read_state(home: Path) -> StackState | None:
    """Return the state of this home's running stack; None when there is none."""
    try:
        state = StackState(**json.loads((home / "run" / "state.json").read_text()))
    except FileNotFoundError:
        return None
    with _lock_file(home).open("a") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None  # nobody holds it: the supervisor is gone
    return state


def environment_of(settings: Settings, state: StackState) -> dict[str, str]:
    """Return the environment of a running stack's Airflow, for a process that joins it."""
    socket_dir = Path(str(conninfo_to_dict(state.conninfo)["host"]))
    port = urlsplit(state.url).port
    assert port is not None
    return airflow_environment(settings, PostgresServer(socket_dir, Path(state.psql).parent), port)


def start_stack(
    settings: Settings, *, port: int | None, attached: bool, on_progress: Callable[[str], None]
) -> StackState:
    """Start a supervisor and wait until Airflow works.

    Args:
        settings: Of the stack; its processes read them from the environment.
        port: Of the web UI; None takes 8080, or the next one that is free.
        attached: Whether the stack ends when this process does.
        on_progress: Called with what is being started.

    Raises:
        StackError: If a stack runs already, the port is taken, or a part does not come up.
    """
    if running := read_state(settings.home):
        raise StackError(
            f"Airflow of this clone runs already at {running.url} (process {running.pid}). "
            "Stop it with ./sift down, or give this run a home of its own with SIFT_HOME"
        )
    run_dir = settings.home / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in ("state.json", "progress", "error"):
        (run_dir / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "include.local.stack", *([str(port)] if port else [])]
    log_file = settings.home / "logs" / "supervisor.log"
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    supervisor = start_process(command, log_file, env=env, death_signal=signal.SIGTERM if attached else None)
    try:
        return _wait_for(supervisor, settings, on_progress)
    except BaseException:
        stop_process(supervisor, signal.SIGTERM, patience_s=60)
        raise


def stop_stack(home: Path) -> bool:
    """Stop the stack of this home and wait for it; False when none runs."""
    state = read_state(home)
    if not state:
        return False
    with suppress(psutil.NoSuchProcess):
        supervisor = psutil.Process(state.pid)
        supervisor.terminate()
        # Generous: the parts are stopped one after the other, the busiest may need its whole patience.
        _, alive = psutil.wait_procs([supervisor], timeout=90)
        if alive:
            raise StackError(f"the supervisor (process {state.pid}) does not stop; see {home}/logs/supervisor.log")
    return True


def _wait_for(
    supervisor: subprocess.Popen[bytes], settings: Settings, on_progress: Callable[[str], None]
) -> StackState:
    run_dir = settings.home / "run"
    deadline = time.monotonic() + START_TIMEOUT_S
    shown = ""
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            step = (run_dir / "progress").read_text()
            if step != shown:
                on_progress(shown := step)
        if (run_dir / "state.json").exists() and (state := read_state(settings.home)):
            return state
        if supervisor.poll() is not None:
            error = run_dir / "error"
            reason = error.read_text() if error.exists() else f"exit status {supervisor.returncode}"
            raise StackError(f"{reason}\nLogs: {settings.home}/logs")
        time.sleep(0.2)
    raise StackError(f"Airflow did not come up within {START_TIMEOUT_S} s ({shown}). Logs: {settings.home}/logs")


class Supervisor:
    """Starts the parts of the stack, keeps them alive, and stops them.

    Args:
        settings: Of the stack.
        port: Of the web UI; None takes the first free one from 8080.
    """

    def __init__(self, settings: Settings, port: int | None) -> None:
        self._settings = settings
        self._wanted_port = port
        self._home = settings.home
        self._logs = settings.home / "logs"
        self._run = settings.home / "run"
        self._postgres: PostgresServer | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._env: dict[str, str] = {}
        self._restarts: dict[str, list[float]] = {}
        self._workers: set[psutil.Process] = set()
        self._cleaning: subprocess.Popen[bytes] | None = None
        self._kept_house_at = 0.0
        self._stopping = False

    def run(self) -> None:
        """Start everything, then watch it until SIGTERM or SIGINT.

        Raises:
            StackError: If a part does not come up, or keeps dying.
        """
        for received in (signal.SIGTERM, signal.SIGINT):
            signal.signal(received, self._ask_to_stop)
        with _lock_file(self._home).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackError(f"another stack of {self._home} is running or starting") from None
            with reserve_port(self._wanted_port) as port:
                try:
                    self._start(port)
                    while not self._stopping:
                        self._restart_dead()
                        self._keep_house()
                        time.sleep(0.5)
                finally:
                    self._stop()

    def _start(self, port: int) -> None:
        settings = self._settings
        self._progress("Starting PostgreSQL")
        self._postgres = start_postgres(self._home / "postgres", self._logs / "postgres.log")
        conninfo = self._postgres.conninfo("sift")
        self._progress("Preparing the warehouse and Airflow's metadata")
        Warehouse(conninfo).migrate()
        os.environ[STACK_MARK] = f"{os.getpid()}-{time.time_ns()}"
        self._env = airflow_environment(settings, self._postgres, port)
        self._migrate_airflow()
        self._progress("Starting Airflow: API server, scheduler, DAG processor")
        for name in COMPONENTS:
            self._start_component(name)
        url = self._env["AIRFLOW__API__BASE_URL"]
        api = AirflowApi(url)
        while not self._stopping and not api.healthy():
            if dead := [name for name, process in self._processes.items() if process.poll() is not None]:
                raise StackError(f"{dead[0]} ended while starting; the end of its log:\n{self._tail(dead[0])}")
            time.sleep(0.5)
        if self._stopping:
            return
        from include.generation.device import device_candidates

        api.set_pool("gpu", max(1, len(device_candidates())), "One slot per GPU; one on a machine without")
        psql = str(self._postgres.bin_dir / "psql")
        state = StackState(os.getpid(), url, conninfo, psql, settings.hub, settings.schedules)
        aside = self._run / "state.new"
        aside.write_text(json.dumps(asdict(state)))
        aside.rename(self._run / "state.json")
        log.info("up at %s", url)

    def _migrate_airflow(self) -> None:
        """Bring Airflow's metadata up to date; takes seconds, so the database remembers which version did it."""
        assert self._postgres is not None
        wanted = f"airflow {version('apache-airflow')}"
        if self._postgres.database_comment("airflow") == wanted:
            return
        process = start_process(airflow_command("db", "migrate"), self._logs / "migrate.log", env=self._env)
        while process.poll() is None and not self._stopping:
            time.sleep(0.1)
        stop_process(process, signal.SIGTERM)
        if self._stopping:
            return
        if process.returncode:
            raise StackError(f"airflow db migrate failed; the end of its log:\n{self._tail('migrate')}")
        self._postgres.set_database_comment("airflow", wanted)

    def _start_component(self, name: str) -> None:
        if name == "scheduler":
            assert self._postgres is not None
            self._workers = set()
            try:
                end_scheduler_jobs(self._postgres)
            except psycopg.OperationalError as error:  # it is restarting; then Airflow finds out by itself
                log.warning("tasks of an earlier scheduler may stay as they are for five minutes: %s", error)
        command = airflow_command(*COMPONENTS[name])
        self._processes[name] = start_process(command, self._logs / f"{name}.log", env=self._env)

    def _restart_dead(self) -> None:
        assert self._postgres is not None and self._postgres.process is not None
        if self._postgres.process.poll() is not None:
            log.warning("PostgreSQL ended (%s); starting it again", self._postgres.process.returncode)
            self._count_restart("PostgreSQL")
            self._postgres = start_postgres(self._home / "postgres", self._logs / "postgres.log")
        if self._lost_worker():
            log.warning("a worker of the scheduler was killed; the scheduler is stopped, to start anew")
            stop_process(self._processes["scheduler"], signal.SIGKILL)
        for name, process in self._processes.items():
            if process.poll() is not None:
                log.warning("%s ended (%s); starting it again", name, process.returncode)
                self._count_restart(name)
                # What it left in its session (a dead scheduler's idle workers) would only be in the way.
                stop_process(process, signal.SIGTERM)
                self._start_component(name)

    def _keep_house(self) -> None:
        """Keep what grows small: the logs of processes and, once a day, Airflow's history of runs."""
        if time.monotonic() - self._kept_house_at < HOUSEKEEPING_S:
            return
        self._kept_house_at = time.monotonic()
        try:
            self._clean_up()
        except OSError as error:  # a full disk, say; it is no reason to stop
            log.warning("could not clean up: %s", error)

    def _clean_up(self) -> None:
        rotate_logs(self._logs)
        keep_days = self._settings.keep_logs_days
        stamp = self._run / "cleaned"
        if not stamp.exists():
            stamp.touch()  # a new home has nothing old
        if not keep_days or time.time() - stamp.stat().st_mtime < DAY_S:
            return
        stamp.touch()
        oldest = (datetime.now(UTC) - timedelta(days=keep_days)).isoformat(timespec="seconds")
        command = airflow_command("db", "clean", "--clean-before-timestamp", oldest, "--skip-archive", "--yes")
        self._cleaning = start_process(command, self._logs / "clean.log", env=self._env)

    def _lost_worker(self) -> bool:
        """Whether one of LocalExecutor's workers ended, which they only do when they are killed.

        Airflow would hear of it when the worker's task has sent no heartbeat for five minutes. And of a worker that
        waited for work it would never hear: that holds the lock of their common queue, and takes it along, so that no
        task starts again.
        """
        scheduler = self._processes["scheduler"]
        if scheduler.poll() is not None:
            return False  # then its workers do not count
        workers = set()
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(scheduler.pid).children():
                with suppress(psutil.Error):
                    if " ".join(child.cmdline()).startswith(WORKER_TITLE):
                        workers.add(child)
        lost = bool(self._workers - workers)
        self._workers = workers
        return lost

    def _count_restart(self, name: str) -> None:
        now = time.monotonic()
        recent = [at for at in self._restarts.get(name, []) if now - at < RESTART_WINDOW_S]
        self._restarts[name] = [*recent, now]
        if len(recent) >= self._settings.most_restarts:
            raise StackError(f"{name} keeps ending; see {self._logs}")

    def _stop(self) -> None:
        (self._run / "state.json").unlink(missing_ok=True)
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.terminate()
        for process in (*self._processes.values(), *([self._cleaning] if self._cleaning else [])):
            stop_process(process, signal.SIGTERM)
        _kill_marked(os.environ.get(STACK_MARK))
        if self._postgres:
            self._postgres.stop()

    def _ask_to_stop(self, received: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _progress(self, step: str) -> None:
        log.info(step)
        (self._run / "progress").write_text(step)

    def _tail(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])


class reserve_port:  # noqa: N801 - used as a function
    """Hold a loopback port against other stacks of this machine while it is not listened on yet.

    Args:
        wanted: The port to take, or None for the first free one from 8080.

    Raises:
        StackError: If the wanted port is taken.
    """

    def __init__(self, wanted: int | None) -> None:
        self._wanted = wanted
        self._lock: IO[str] | None = None

    def __enter__(self) -> int:
        candidates = [self._wanted] if self._wanted else range(DEFAULT_PORT, DEFAULT_PORT + 100)
        for port in candidates:
            if port is not None and self._take(port):
                return port
        if self._wanted:
            raise StackError(f"port {self._wanted} is in use; choose another one with --port, or leave it out")
        raise StackError(f"no free port between {DEFAULT_PORT} and {DEFAULT_PORT + 99}; choose one with --port")

    def __exit__(self, *error: object) -> None:
        if self._lock:
            self._lock.close()

    def _take(self, port: int) -> bool:
        # The lock keeps two stacks that start at once from choosing the same port before either listens.
        path = Path(tempfile.gettempdir()) / f"sift-port-{port}-{os.getuid()}.lock"
        lock = path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True


def _lock_file(home: Path) -> Path:
    return home / "run" / "lock"


def _kill_marked(mark: str | None) -> None:
    """End what carries this stack's mark and is not the supervisor itself (tasks in sessions of their own)."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and mark and process.environ().get(STACK_MARK) == mark:
                process.terminate()
                left.append(process)
    _, alive = psutil.wait_procs(left, timeout=5)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def main() -> int:
    """Run the supervisor; why it ended badly is left in `<home>/run/error`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for chatty in ("httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    settings = get_settings()
    port = int(sys.argv[1]) if len(sys.argv) > 1 else None
    try:
        Supervisor(settings, port).run()
    except Exception as error:
        log.exception("the stack ended")
        (settings.home / "run" / "error").write_text(str(error) or type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
