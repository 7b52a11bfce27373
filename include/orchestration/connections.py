"""Secrets: Airflow connections, by `AIRFLOW_CONN_*` or a secrets backend, handed to `include`."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from psycopg.conninfo import make_conninfo

from include.schema import BadInputError, HubAccount, LlmServer
from include.storage.warehouse import Warehouse

WAREHOUSE_CONN_ID = "warehouse"
LLM_SERVER_CONN_ID = "llm_server"
AWS_CONN_ID = "aws_default"
HUB_CONN_ID = "hub"


def warehouse(role: Literal["ingest", "generate", "publish", "console"]) -> Warehouse:
    """Return the warehouse as one of its roles sees it: the connection `warehouse_<role>`, else `warehouse`.

    Both are of type postgres; the host may be a socket's folder. Small set-ups have only `warehouse`, and pay for the
    question after the other with one request to the API server. Airflow tells a connection that is not there from one
    that the task must not have: the second is an error and no reason to take the owner's.
    """
    try:
        connection = Connection.get(f"{WAREHOUSE_CONN_ID}_{role}")
    except AirflowNotFoundException:
        connection = Connection.get(WAREHOUSE_CONN_ID)
    return open_warehouse(connection)


def open_warehouse(connection: Connection) -> Warehouse:
    """Return the warehouse that a connection leads to."""
    fields: dict[str, Any] = {
        "host": connection.host,
        "port": connection.port,
        "user": connection.login,
        "password": connection.password,
        "dbname": connection.schema,
    }
    return Warehouse(make_conninfo(**{name: value for name, value in fields.items() if value is not None}))


def llm_server() -> LlmServer:
    """Return the server of the connection `llm_server`: any type, as http or openai.

    The host is a full URL (`http://gpu-box:8000/v1`), or a name with port and schema beside it. A schema of http or
    https is the protocol, as in Airflow's own connections of type http; any other is the path. Without a path it is
    `/v1`. The password is the API key.

    Raises:
        BadInputError: If there is no such connection, or its host is none.
    """
    try:
        connection = Connection.get(LLM_SERVER_CONN_ID)
    except AirflowNotFoundException:
        connection = None
    if connection is None or not connection.host:
        raise BadInputError(
            f"SIFT_ENGINE=openai needs the Airflow connection {LLM_SERVER_CONN_ID} with a host: set "
            'AIRFLOW_CONN_LLM_SERVER=\'{"conn_type": "http", "host": "http://gpu-box:8000/v1", "password": "the key"}\''
        )
    protocols = ("http", "https")
    schema = (connection.schema or "").strip("/")
    protocol = next((name for name in (schema, connection.conn_type) if name in protocols), "http")
    try:
        url = urlsplit(connection.host if "://" in connection.host else f"{protocol}://{connection.host}")
        port_missing = url.port is None
    except ValueError:
        url = None
    # What looks like a port or a path may be part of a password, so it is not shown.
    if url is None or url.scheme not in protocols or not url.hostname or "@" in url.path:
        raise BadInputError(
            f"The host of the Airflow connection {LLM_SERVER_CONN_ID} is not an address such as "
            "http://gpu-box:8000/v1; the key belongs in the connection's password"
        ) from None
    netloc = url.netloc.rpartition("@")[2]  # credentials would be shown with the URL
    if port_missing and connection.port:
        netloc += f":{connection.port}"
    path = url.path.strip("/") or ("" if schema in protocols else schema) or "v1"
    key = connection.password or (unquote(url.password) if url.password else None)
    return LlmServer(f"{url.scheme}://{netloc}/{path}", key)


def s3_client() -> Any:
    """Return a boto3 client for S3 with the credentials of the connection `aws_default` (type aws).

    All that Airflow's own S3 tasks understand is understood here: keys, roles, profiles, `endpoint_url`, `region_name`,
    `config_kwargs`; without the connection, what boto3 finds by itself, such as a machine's role.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config

    patient = Config(retries={"mode": "standard", "total_max_attempts": 8}, connect_timeout=20, read_timeout=120)
    configured = S3Hook(AWS_CONN_ID).conn_config.botocore_config
    return S3Hook(AWS_CONN_ID, config=patient.merge(configured) if configured else patient).get_conn()


def hub_account() -> HubAccount:
    """Return the account of the connection `hub`: the password is the token, the host another Hub's URL.

    Raises:
        BadInputError: If there is no such connection, or it has no password.
    """
    try:
        connection = Connection.get(HUB_CONN_ID)
    except AirflowNotFoundException:
        connection = None
    if connection is None or not connection.password:
        raise BadInputError(
            f"a target on the Hub needs the Airflow connection {HUB_CONN_ID} with a token that may write: set "
            'AIRFLOW_CONN_HUB=\'{"conn_type": "http", "password": "the token"}\''
        )
    return HubAccount(connection.password, connection.host or None)
