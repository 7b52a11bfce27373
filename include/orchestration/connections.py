"""Secrets: Airflow connections, by `AIRFLOW_CONN_*` or a secrets backend, handed to `include`."""

from __future__ import annotations

from airflow.sdk import Connection
from psycopg.conninfo import make_conninfo

from include.storage.warehouse import Warehouse

WAREHOUSE_CONN_ID = "warehouse"


def warehouse() -> Warehouse:
    """Return the warehouse of the connection `warehouse` (type postgres; the host may be a socket's folder)."""
    connection = Connection.get(WAREHOUSE_CONN_ID)
    fields = {
        "host": connection.host,
        "port": connection.port,
        "user": connection.login,
        "password": connection.password,
        "dbname": connection.schema,
    }
    return Warehouse(make_conninfo(**{name: value for name, value in fields.items() if value is not None}))
