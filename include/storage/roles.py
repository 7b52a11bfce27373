"""Roles that may do what their step does in the warehouse, and nothing else.

They belong to the server and not to one database, and not every owner of a database may make roles: so no migration
makes them. A deployment does, after each `Warehouse.migrate()`; the embedded stack, whose server only its owner can
reach, has none.
"""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import sql
from psycopg.conninfo import make_conninfo

from include.storage.warehouse import Warehouse, statement

ROLES = ("sift_ingest", "sift_generate", "sift_publish", "sift_console")
"""Names of the login roles: "sift_" and what the connection `warehouse_<role>` is called by."""

OWNER = "sift"
"""Owns the warehouse of a deployment, whose functions act in this name, and cannot log in: no superuser's rights are
behind a function that a task may call."""

_GRANTS = ("grant_ingest", "grant_generate", "grant_publish", "grant_console")


def as_owner(conninfo: str) -> str:
    """Return a superuser's connection string as one that has the rights of OWNER, and makes things in that name."""
    return make_conninfo(conninfo, options=f"-c role={OWNER}")


def take_over(warehouse: Warehouse) -> None:
    """Make OWNER own all of the warehouse that somebody else does.

    Args:
        warehouse: As the superuser; it may be empty.
    """
    with warehouse.transaction() as connection:
        connection.execute(statement("take_over"))


def grant_roles(warehouse: Warehouse, passwords: Mapping[str, str]) -> None:
    """Make the roles that are missing, set their passwords, and grant each what it needs; PUBLIC loses everything.

    Calling it again grants the same, and takes away whatever was granted besides. The server, and so its log, sees
    passwords as SCRAM verifiers only.

    Args:
        warehouse: Migrated; as its owner, if he may make roles, or as a superuser.
        passwords: Name of each of ROLES -> its password.

    Raises:
        ValueError: If passwords are not those of ROLES, or one is empty; names are shown.
    """
    if set(passwords) != set(ROLES):
        raise ValueError(f"passwords are needed for {', '.join(ROLES)}; given for {', '.join(sorted(passwords))}")
    if empty := [role for role in ROLES if not passwords[role]]:
        raise ValueError(f"the password of {', '.join(empty)} is empty")
    with warehouse.transaction() as connection:
        connection.execute("select pg_advisory_xact_lock(hashtext('warehouse roles'))")  # two at once would collide
        for role in ROLES:
            name = sql.Identifier(role)
            if not connection.execute(statement("find_role"), {"role": role}).fetchone():
                connection.execute(sql.SQL("create role {}").format(name))
            verifier = connection.pgconn.encrypt_password(passwords[role].encode(), role.encode(), b"scram-sha-256")
            alter = sql.SQL("alter role {} with login password {}")
            connection.execute(alter.format(name, sql.Literal(verifier.decode())))
        database = sql.Identifier(connection.info.dbname)
        for grants in ("revoke_all", *_GRANTS):
            connection.execute(sql.SQL(statement(grants).as_string()).format(database=database))
