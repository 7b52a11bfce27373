"""The databases of a server and the users who own them: made by a superuser, once or again.

The superuser is libpq's: the variables PGHOST, PGPORT, PGUSER and PGPASSWORD say how to connect as him.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

log = logging.getLogger(__name__)

Connection = psycopg.Connection[Any]
_PREPARING = "sift prepare"  # names the lock


def superuser_conninfo(database: str) -> str:
    """Return the connection string of a database for the superuser; libpq's variables say the rest."""
    return make_conninfo(dbname=database)


@contextmanager
def prepared_alone(timeout_s: float) -> Iterator[Connection]:
    """Connect as the superuser, and let nobody else prepare this server until the end of the block.

    Args:
        timeout_s: Seconds to wait for a server that does not answer yet.

    Raises:
        RuntimeError: If it does not answer in time, or refuses the password.
    """
    with _connect(timeout_s) as connection:
        connection.execute("select pg_advisory_lock(hashtext(%s))", [_PREPARING])
        yield connection


def _connect(timeout_s: float) -> Connection:
    deadline = time.monotonic() + timeout_s
    waiting = False
    while True:
        try:
            return psycopg.connect(superuser_conninfo("postgres"), autocommit=True, connect_timeout=5)
        except psycopg.OperationalError as error:
            if "authentication failed" in str(error):
                raise RuntimeError(
                    "PostgreSQL refuses its superuser's password (PGPASSWORD). It keeps the one that its data was made "
                    f"with: give that, or change it with ALTER ROLE ({error})"
                ) from None
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"PostgreSQL did not answer within {timeout_s:.0f} s; see its log, and PGHOST and PGPORT ({error})"
                ) from None
            if not waiting:
                log.info("waiting for PostgreSQL")
            waiting = True
            time.sleep(1)


def ensure_user(connection: Connection, name: str, password: str) -> None:
    """Make a user who may log in, or set the password of one there is.

    The password is hashed on this side, so no log of statements holds it.
    """
    encrypted = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    exists = connection.execute("select 1 from pg_roles where rolname = %s", [name]).fetchone()
    verb = sql.SQL("alter") if exists else sql.SQL("create")
    connection.execute(
        sql.SQL("{} role {} with login password {}").format(verb, sql.Identifier(name), sql.Literal(encrypted))
    )


def ensure_owner(connection: Connection, name: str) -> None:
    """Make a role that owns things and cannot log in."""
    if not connection.execute("select 1 from pg_roles where rolname = %s", [name]).fetchone():
        connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(name)))


def ensure_database(connection: Connection, name: str, owner: str) -> None:
    """Make a database that only its owner, the superuser and whoever is granted it may connect to.

    Args:
        connection: The superuser's, to any database of the server.
        name: Of the database.
        owner: A role there is.
    """
    database = sql.Identifier(name)
    if not connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone():
        connection.execute(sql.SQL("create database {}").format(database))
    connection.execute(sql.SQL("alter database {} owner to {}").format(database, sql.Identifier(owner)))
    connection.execute(sql.SQL("revoke all on database {} from public").format(database))
