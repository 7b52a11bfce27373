"""Passwords and tokens in connections turn up nowhere: not in logs, results, files or tables, whatever goes wrong."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from include.generate import describe_quality, generate_shard, plan_run
from include.ingest import count_samples, describe_load, load_group, merge_groups, resolve_revision
from include.local.postgres import PostgresServer
from include.modes import MODES
from include.publish.merge import merge_release
from include.publish.promotion import publish_release
from include.publish.targets.hub import HubTarget
from include.publish.targets.s3 import S3Target
from include.schema import HubAccount, LlmServer
from include.settings import Settings
from include.sources import RECIPES
from include.storage.roles import ROLES, grant_roles
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLED
from tests.hub_server import HubServer
from tests.include.publish.steps import EVERYTHING, default_target

CANARY = "canary-9b1d7c"
PASSWORDS = {role: f"{CANARY}-{role}" for role in ROLES}


def as_role(warehouse: Warehouse, role: str) -> Warehouse:
    return Warehouse(make_conninfo(warehouse.conninfo, user=f"sift_{role}", password=PASSWORDS[f"sift_{role}"]))


def everything_in(warehouse: Warehouse) -> str:
    """All rows of all tables, as text."""
    with warehouse.connection() as connection:
        tables = connection.execute(
            "select schemaname, tablename from pg_tables where schemaname not in ('pg_catalog', 'information_schema')"
        ).fetchall()
        rows = []
        for table in tables:
            name = sql.Identifier(table["schemaname"], table["tablename"])
            found = connection.execute(sql.SQL("select t::text as row from {} as t").format(name)).fetchall()
            rows += [row["row"] for row in found]
    return "\n".join(rows)


def test_a_whole_run_leaves_no_password_anywhere(
    warehouse: Warehouse, make_settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    grant_roles(warehouse, PASSWORDS)
    settings, source = make_settings(), SAMPLED[0]
    params = {**EVERYTHING, "sources": [source]}
    ingest, generate, publish = (as_role(warehouse, role) for role in ("ingest", "generate", "publish"))
    recipe, target = RECIPES[source], default_target(settings)
    groups = resolve_revision(recipe, settings.hub, ingest, run_id="1")
    loads = [load_group(recipe, group, ingest) for group in groups]
    merged = merge_groups(recipe, loads, ingest)
    count_samples(recipe, list(MODES), settings.max_attempts, ingest)
    work = plan_run(generate, settings, params, target)
    server = LlmServer("http://127.0.0.1:9/v1", f"{CANARY}-key")
    done = [
        generate_shard(generate, settings, shard, "run", server=server)
        for shards in (work or {}).values()
        for shard in shards
    ]
    report = describe_quality(generate, settings, [source], list(MODES), "run")
    release = merge_release(publish, settings, params, target)
    assert release and done
    published = publish_release(publish, settings, params, target, release["release_id"])

    returned = repr(
        [groups, loads, merged, describe_load(recipe, merged, ingest), work, done, report, release, published]
    )
    assert CANARY not in returned  # what XCom would hold
    assert len(caplog.records) > 10 and CANARY not in caplog.text
    # The database keeps verifiers, and everything else that was written says nothing of passwords.
    rows = everything_in(warehouse)
    assert source in rows and CANARY not in rows
    files = [file for file in settings.home.rglob("*") if file.is_file()]
    assert any(file.name == "README.md" for file in files) and any(file.name == "manifest.json" for file in files)
    for file in files:
        assert CANARY.encode() not in file.read_bytes(), file


def said_by(fails: Callable[[], object]) -> str:
    """All that a log would show of what fails: the chain of errors with their tracebacks."""
    with pytest.raises(Exception) as error:
        fails()
    return "".join(traceback.format_exception(error.value))


@contextmanager
def asking_for_passwords(postgres: PostgresServer) -> Iterator[Path]:
    """The server asks our roles for their passwords; yields its log."""
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        row = connection.execute("select current_setting('hba_file'), current_setting('data_directory')").fetchone()
        assert row
        rules, log = Path(row[0]), Path(row[1]).parent / "postgres.log"
        before = rules.read_text()
        rules.write_text(f"local all {','.join(ROLES)} scram-sha-256\n{before}")
        connection.execute("select pg_reload_conf()")
        try:
            yield log
        finally:
            rules.write_text(before)
            connection.execute("select pg_reload_conf()")


def connect(warehouse: Warehouse) -> None:
    with warehouse.connection() as connection:
        connection.execute("select 1")


def test_a_wrong_password_is_not_shown(warehouse: Warehouse, postgres: PostgresServer) -> None:
    grant_roles(warehouse, PASSWORDS)
    with asking_for_passwords(postgres) as log:
        for role in ROLES:
            connect(as_role(warehouse, role.removeprefix("sift_")))
            wrong = Warehouse(make_conninfo(warehouse.conninfo, user=role, password=f"{CANARY}-wrong"))
            said = said_by(lambda wrong=wrong: connect(wrong))
            assert f'password authentication failed for user "{role}"' in said
            assert CANARY not in said
        grant_roles(warehouse, dict.fromkeys(ROLES, f"{CANARY}-new"))
        connect(Warehouse(make_conninfo(warehouse.conninfo, user=ROLES[0], password=f"{CANARY}-new")))
        assert CANARY not in log.read_text(errors="replace")


@pytest.mark.parametrize(
    "conninfo",
    [
        f"host=127.0.0.1 port=1 user=sift password={CANARY} dbname=sift",
        f"postgresql://sift:{CANARY}@127.0.0.1:1/sift",
        f"host=127.0.0.1 passwrd={CANARY}",
        f"host=127.0.0.1 password={CANARY} sift",
        f"postgresql://sift:{CANARY}@[127.0.0.1:1/sift",
        f"postgresql://sift:{CANARY}%zz@127.0.0.1:1/sift",
    ],
    ids=["unreachable", "url", "misspelt", "no option", "bracket", "encoding"],
)
def test_a_connection_that_fails_does_not_show_its_password(conninfo: str) -> None:
    def connect_to() -> None:
        warehouse = Warehouse(conninfo)
        assert CANARY not in repr(warehouse) + str(warehouse)
        connect(warehouse)

    assert CANARY not in said_by(connect_to)
    assert CANARY not in said_by(lambda: Warehouse(conninfo).migrate())


def test_a_target_that_refuses_does_not_show_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from botocore.config import Config
    from huggingface_hub import constants

    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:1",
        region_name="eu-west-1",
        aws_access_key_id="key",
        aws_secret_access_key=CANARY,
        config=Config(connect_timeout=1, retries={"total_max_attempts": 1}),
    )
    assert CANARY not in said_by(S3Target("bucket", "prefix", tmp_path / "s3", client, private=True).latest)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer() as server:
        server.fail_next(403, times=20)
        account = HubAccount(f"hf_{CANARY}", server.endpoint)
        assert CANARY not in repr(account) + said_by(
            HubTarget("org/sift", tmp_path / "hub", account, private=True).latest
        )


def test_settings_hold_no_secrets() -> None:
    """Secrets are connections: settings are shown in logs and pages."""
    for name in Settings.model_fields:
        assert not any(word in name for word in ("password", "token_", "secret", "api_key")), name
