"""Backup and restore of the embedded stack: both databases and the keys that Airflow's secrets are encrypted with.

A backup is a folder. Releases are not in it: they are plain files, and are copied as such.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from include.local.postgres import PostgresServer, require_cluster, running_postgres
from include.local.stack import read_state
from include.settings import Settings

log = logging.getLogger(__name__)

DATABASES = ("sift", "airflow")
KEYS = Path("airflow", "secrets.json")


def make_backup(settings: Settings, folder: Path) -> None:
    """Write a backup; the stack may run meanwhile, each database is then as it was at one moment.

    Args:
        settings: For the home.
        folder: Made; must not exist. It is as secret as the database: readable by the owner only.

    Raises:
        ValueError: If there is nothing to save, or the folder exists.
        RuntimeError: If pg_dump fails, with its words.
    """
    require_cluster(settings.home)
    if folder.exists():
        raise ValueError(f"{folder} exists; give the name of a new folder")
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700, parents=True)
    with _server(settings) as server:
        for database in DATABASES:
            _run(server, "pg_dump", "--format=custom", f"--file={aside / database}.dump", server.conninfo(database))
    if (settings.home / KEYS).exists():
        shutil.copy2(settings.home / KEYS, aside / KEYS.name)
    aside.rename(folder)


def restore_backup(settings: Settings, folder: Path) -> None:
    """Make a home's databases from a backup.

    Args:
        settings: For the home, which must not have a database yet.
        folder: The backup.

    Raises:
        ValueError: If the folder is no backup, or the home has a database.
        RuntimeError: If pg_restore fails, with its words; the half-made database is removed.
    """
    missing = [name for database in DATABASES if not (folder / (name := f"{database}.dump")).is_file()]
    if missing:
        raise ValueError(f"{folder} is no backup: it has no {', '.join(missing)}")
    data_dir = settings.home / "postgres"
    if data_dir.exists():
        raise ValueError(
            f"{data_dir} holds a database, which a restore would replace: move it away, or give SIFT_HOME another place"
        )
    try:
        with running_postgres(data_dir, settings.home / "logs" / "postgres.log") as server:
            for database in DATABASES:
                dump = str(folder / f"{database}.dump")
                _run(server, "pg_restore", "--exit-on-error", f"--dbname={server.conninfo(database)}", dump)
    except BaseException:
        shutil.rmtree(data_dir, ignore_errors=True)
        raise
    if (folder / KEYS.name).exists():
        (settings.home / KEYS).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / KEYS.name, settings.home / KEYS)


@contextmanager
def _server(settings: Settings) -> Iterator[PostgresServer]:
    """The home's server, started for the time when it is down."""
    if state := read_state(settings.home):
        host = str(conninfo_to_dict(state.conninfo)["host"])
        yield PostgresServer(Path(host), Path(state.psql).parent)
    else:
        with running_postgres(settings.home / "postgres", settings.home / "logs" / "postgres.log") as server:
            yield server


def _run(server: PostgresServer, program: str, *arguments: str) -> None:
    done = subprocess.run(
        [str(server.bin_dir / program), *arguments], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{program} failed:\n{done.stderr.strip()[-2000:]}")
