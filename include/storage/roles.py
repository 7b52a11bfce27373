"""Roles that may do what their step does in the warehouse, and nothing else.

They belong to the server and not to one database, and not every owner of a database may make roles: so no migration
makes them. A deployment does, after each `Warehouse.migrate()`; the embedded profile, whose server only its owner can
reach, has none.
"""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import sql

from include.storage.warehouse import Warehouse, statement

ROLES = ("sift_ingest", "sift_generate", "sift_publish", "sift_console")
"""Names of the login roles: "sift_" and what the connection `warehouse_<role>` is called by."""

_GRANTS = ("grant_ingest", "grant_generate", "grant_publish", "grant_console")


def grant_roles(warehouse: Warehouse, passwords: Mapping[str, str]) -> None:
    """Make the roles that are missing, set their passwords, and grant each what it needs; PUBLIC loses everything.

    Calling it again grants the same, and takes away whatever was granted besides. The server, and so its log, sees
    passwords as SCRAM verifiers only.

    Args:
        warehouse: Migrated, by its owner, who may also make roles.
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
