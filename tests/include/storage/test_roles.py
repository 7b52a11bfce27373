"""Every step does its work as its own role, and can do nothing else; on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from include.generate import describe_quality, estimate_run, generate_shard, plan_run, summarise_written
from include.ingest import count_samples, describe_load, load_group, merge_groups, resolve_revision
from include.local.postgres import PostgresServer
from include.modes import MODES
from include.publish.merge import merge_release
from include.publish.promotion import publish_release
from include.settings import Settings
from include.sources import RECIPES
from include.storage.console import kept_coverage, list_label_counts, read_only, verdict_history
from include.storage.databases import ensure_database, ensure_owner
from include.storage.releases import list_releases
from include.storage.roles import OWNER, ROLES, as_owner, grant_roles, take_over
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLED, SAMPLES
from tests.filled import FAULTS
from tests.include.publish.steps import EVERYTHING, default_target

PASSWORDS = {role: f"canary-{role}-5eb1" for role in ROLES}
WRITES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN")

OWNERS = """
with ours as (select * from pg_namespace where nspname in ('staging', 'generation', 'publish'))
select relowner::regrole::text as owner from pg_class where relnamespace in (select oid from ours)
    or oid = 'warehouse_version'::regclass
union select proowner::regrole::text from pg_proc where pronamespace in (select oid from ours)
union select nspowner::regrole::text from ours
"""

REFUSED = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)  # the second: a view

As = Callable[[str], Warehouse]


def as_role(warehouse: Warehouse) -> As:
    """The warehouse as a role sees it; the embedded server believes a user's name."""
    return lambda role: Warehouse(make_conninfo(warehouse.conninfo, user=f"sift_{role}"))


@pytest.fixture
def granted(filled: Warehouse) -> Warehouse:
    """A filled warehouse with its roles."""
    grant_roles(filled, PASSWORDS)
    return filled


@pytest.fixture
def owned(postgres: PostgresServer) -> Iterator[Warehouse]:
    """A warehouse whose owner may make roles and is no superuser, as at a provider of PostgreSQL."""
    owner, name = (sql.Identifier(f"{what}_{uuid4().hex}") for what in ("owner", "owned"))
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        for role in ROLES:  # of other tests, made by the superuser
            connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(role)))
        connection.execute(sql.SQL("create role {} login createrole").format(owner))
        connection.execute(sql.SQL("create database {} owner {}").format(name, owner))
    yield Warehouse(make_conninfo(postgres.conninfo(name.as_string().strip('"')), user=owner.as_string().strip('"')))
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(name))


def publish(warehouse: Warehouse, settings: Settings) -> dict[str, Any]:
    merged = merge_release(warehouse, settings, EVERYTHING, default_target(settings))
    assert merged
    return publish_release(warehouse, settings, EVERYTHING, default_target(settings), merged["release_id"])


def test_every_step_works_as_its_role(warehouse: Warehouse, make_settings: Callable[..., Settings]) -> None:
    grant_roles(warehouse, PASSWORDS)
    settings, role = make_settings(), as_role(warehouse)
    for run in ("1", "2"):  # the second one finds its partitions and prompts
        for source in SAMPLED:
            ingest = role("ingest")
            recipe = RECIPES[source]
            groups = resolve_revision(recipe, settings.hub, ingest, run_id=run, force=True)
            load = merge_groups(recipe, [load_group(recipe, group, ingest) for group in groups], ingest)
            count_samples(recipe, list(MODES), settings.max_attempts, ingest)
            assert describe_load(recipe, load, ingest)
    work = plan_run(role("generate"), settings, EVERYTHING, default_target(settings))
    assert work
    estimate_run(role("generate"), settings, work)
    for shards in work.values():
        for shard in shards:
            assert generate_shard(role("generate"), settings, shard, "run")["written"]
    assert describe_quality(role("generate"), settings, SAMPLED, list(MODES), "run")
    assert summarise_written(role("generate"), "run").startswith("Wrote")
    released = publish(role("publish"), settings)
    console = read_only(role("console"))
    assert [row["release_id"] for row in list_releases(console)] == [released["release_id"]]
    assert kept_coverage(console, 2) and list_label_counts(console, SAMPLED[0]) and verdict_history(console)


def test_rules_that_changed_are_applied_by_the_generating_role(
    granted: Warehouse, make_settings: Callable[..., Settings]
) -> None:
    with granted.connection() as connection:
        connection.execute("update generation.responses set rules_version = 'old'")
        connection.execute("update generation.responses set response = '' where mode = 'sift_s'")
    report = describe_quality(as_role(granted)("generate"), make_settings(**FAULTS), SAMPLED, list(MODES), "run-2")
    assert "rules changed" in report


def test_loads_that_were_never_merged_are_dropped_by_the_ingesting_role(granted: Warehouse) -> None:
    ingest, recipe = as_role(granted)("ingest"), RECIPES[SAMPLED[0]]
    load_group(recipe, resolve_revision(recipe, str(SAMPLES), ingest, run_id="1", force=True)[0], ingest)
    with granted.connection() as connection:
        connection.execute("update staging.incoming_loads set started_at = now() - interval '3 days'")
    resolve_revision(recipe, str(SAMPLES), ingest, run_id="2", force=True)
    with granted.connection() as connection:
        left = connection.execute(
            "select to_regclass(format('staging.%I', relname)) from pg_class where relname ~ '^incoming_[0-9a-f]+$'"
        )
        assert left.fetchall() == []


def test_roles_are_granted_again_while_a_load_is_under_way(warehouse: Warehouse) -> None:
    grant_roles(warehouse, PASSWORDS)
    ingest, recipe = as_role(warehouse)("ingest"), RECIPES[SAMPLED[0]]
    for run in ("1", "2"):  # the second one finds its partition
        groups = resolve_revision(recipe, str(SAMPLES), ingest, run_id=run, force=True)
        loaded = [load_group(recipe, group, ingest) for group in groups]
        grant_roles(warehouse, PASSWORDS)
        assert may(warehouse, "sift_ingest", f"staging.samples_{recipe.name}", "UPDATE") if run == "2" else True
        assert merge_groups(recipe, loaded, ingest)["read"]


def test_a_load_with_another_table_s_name_is_granted_nothing(granted: Warehouse) -> None:
    with as_role(granted)("ingest").connection() as connection:
        connection.execute(
            "insert into staging.incoming_loads (load_id, source, incoming)"
            " values ('1', 'toy', 'samples'), ('2', 'toy', 'rejects'), ('3', 'toy', 'samples to sift_ingest; --')"
        )
    grant_roles(granted, PASSWORDS)
    assert not may(granted, "sift_ingest", "staging.samples", "DELETE")
    assert not may(granted, "sift_ingest", "staging.rejects", "UPDATE")


def relations(warehouse: Warehouse) -> list[str]:
    with warehouse.connection() as connection:
        rows = connection.execute(
            "select c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace "
            "where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') and nspname not in ('pg_catalog', 'pg_toast')"
            " and nspname <> 'information_schema'"
        ).fetchall()
    return [row["name"] for row in rows]


def may(warehouse: Warehouse, role: str, table: str, privilege: str) -> bool:
    """Whether a role has a privilege on a table, or on any column of it."""
    asked = (
        "has_any_column_privilege"
        if privilege in ("SELECT", "INSERT", "UPDATE", "REFERENCES")
        else "has_table_privilege"
    )
    with warehouse.connection() as connection:
        row = connection.execute(
            sql.SQL("select {}(%s, %s, %s) as may").format(sql.Identifier(asked)), [role, table, privilege]
        )
        return bool((row.fetchone() or {})["may"])


def test_the_console_can_write_nothing(granted: Warehouse) -> None:
    tables = relations(granted)
    assert {"staging.samples", "generation.responses", "publish.releases", f"staging.samples_{SAMPLED[0]}"} <= set(
        tables
    )
    found = [(table, right) for table in tables for right in WRITES if may(granted, "sift_console", table, right)]
    assert found == []
    with as_role(granted)("console").connection() as connection:
        for table in tables:
            with pytest.raises(REFUSED):
                connection.execute(sql.SQL("delete from {}").format(sql.Identifier(*table.split("."))))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("create temporary table mine (n integer)")


def test_a_role_touches_nothing_of_another_step(granted: Warehouse) -> None:
    tables = relations(granted)

    def rights(role: str, *wanted: str) -> set[str]:
        return {table for table in tables for right in wanted if may(granted, f"sift_{role}", table, right)}

    texts = {"generation.responses", "generation.attempts"}
    assert not rights("ingest", "SELECT", *WRITES) & (texts | {"generation.prompts", "publish.releases"})
    assert {name for name in rights("ingest", *WRITES) if not name.startswith("staging.")} == {"generation.coverage"}
    assert all(name.startswith("generation.") for name in rights("generate", *WRITES))
    assert rights("publish", *WRITES) == {"publish.releases"}
    assert rights("publish", "UPDATE", "DELETE") == set()
    with granted.connection() as connection:
        updatable = connection.execute(
            "select attname from pg_attribute where attrelid = 'generation.responses'::regclass and attnum > 0"
            " and has_column_privilege('sift_generate', attrelid, attnum, 'update')"
        ).fetchall()
    assert updatable == [{"attname": "rules_version"}]


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("ingest", "select response from generation.responses"),
        ("ingest", "delete from staging.samples"),
        ("ingest", "update staging.loads set revision = 'x'"),
        ("ingest", "create table staging.mine (n integer)"),
        (
            "ingest",
            "create trigger t before update on staging.samples execute function suppress_redundant_updates_trigger()",
        ),
        ("ingest", "select staging.share_with_caller('generation.responses', '{select}')"),
        ("generate", "update staging.samples set text = 'x'"),
        ("generate", "select staging.drop_incoming('incoming_0123456789abcdef')"),
        ("generate", "update generation.responses set response = 'x'"),
        ("publish", "insert into generation.responses select * from generation.responses"),
        ("publish", "delete from publish.releases"),
        ("console", "select staging.create_partition('mine')"),
    ],
)
def test_what_a_role_must_not_do_is_refused(granted: Warehouse, role: str, statement: str) -> None:
    with as_role(granted)(role).connection() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


@pytest.mark.parametrize("role", ROLES)
def test_no_role_drops_tables_or_creates_schemas(granted: Warehouse, role: str) -> None:
    with as_role(granted)(role.removeprefix("sift_")).connection() as connection:
        for statement in (
            "drop table staging.samples",
            "drop table generation.responses cascade",
            "truncate publish.releases",
            "alter table staging.samples add column mine integer",
            "create schema mine",
            "create table public.mine (n integer)",
            "set role postgres",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_public_has_nothing(granted: Warehouse) -> None:
    with granted.connection() as connection:
        connection.execute("drop role if exists nobody_in_particular; create role nobody_in_particular")
        rows = connection.execute(
            "select 'table ' || c.oid::regclass as what from pg_class c join pg_namespace n on n.oid = c.relnamespace,"
            "   aclexplode(relacl) where grantee = 0 and nspname in ('staging', 'generation', 'publish') "
            "union all select 'function ' || p.oid::regprocedure from pg_proc p"
            "   join pg_namespace n on n.oid = pronamespace where nspname in ('staging', 'generation', 'publish')"
            "   and has_function_privilege('nobody_in_particular', p.oid, 'execute') "
            "union all select 'schema ' || nspname from pg_namespace, aclexplode(nspacl)"
            "   where grantee = 0 and nspname in ('staging', 'generation', 'publish') "
            "union all select 'database' "
            "   where has_database_privilege('nobody_in_particular', current_database(), 'connect')"
            "   or has_database_privilege('nobody_in_particular', current_database(), 'temporary')"
        ).fetchall()
        connection.execute("drop role nobody_in_particular")
    assert rows == []


@pytest.mark.parametrize(
    "name",
    [
        "incoming",
        "samples",
        "incoming_0123456789ABCDEF",
        'incoming_0123456789abcdef"; drop table staging.samples; --',
        "",
        None,
    ],
)
@pytest.mark.parametrize("function", ["create_incoming", "drop_incoming"])
def test_the_table_of_a_load_has_a_name_of_its_kind(granted: Warehouse, function: str, name: str | None) -> None:
    call = sql.SQL("select staging.{}(%s)").format(sql.Identifier(function))
    with as_role(granted)("ingest").connection() as connection, pytest.raises(psycopg.errors.InvalidParameterValue):
        connection.execute(call, [name])


@pytest.mark.parametrize("name", ["Ravdess", "a b", "x'); drop table staging.samples; --", "x" * 41, "", None, "a\nb"])
@pytest.mark.parametrize("function", ["create_partition", "index_samples"])
def test_a_partition_has_a_source_s_name(granted: Warehouse, function: str, name: str | None) -> None:
    call = sql.SQL("select staging.{}(%s)").format(sql.Identifier(function))
    with as_role(granted)("ingest").connection() as connection, pytest.raises(psycopg.errors.InvalidParameterValue):
        connection.execute(call, [name])


def test_names_in_a_caller_s_search_path_do_not_get_in_the_way(granted: Warehouse) -> None:
    with granted.connection() as connection:  # of the one role that may make temporary functions
        connection.execute("grant temporary on database {} to sift_ingest".format(f'"{connection.info.dbname}"'))
    with as_role(granted)("ingest").connection() as connection:
        connection.execute(
            "create function pg_temp.format(text, text) returns text language sql as"
            " $$ select 'drop table staging.samples cascade' $$"
        )
        connection.execute("set search_path = pg_temp, pg_catalog")
        connection.execute("select staging.create_partition('trick')")
        assert connection.execute("select to_regclass('staging.samples_trick') is not null as made").fetchone() == {
            "made": True
        }


def test_an_owner_who_is_no_superuser_grants_and_grants_again(
    owned: Warehouse, make_settings: Callable[..., Settings]
) -> None:
    owned.migrate()
    for _ in range(2):
        grant_roles(owned, PASSWORDS)
    recipe, ingest = RECIPES[SAMPLED[0]], as_role(owned)("ingest")
    settings = make_settings()
    groups = resolve_revision(recipe, settings.hub, ingest, run_id="1")
    assert merge_groups(recipe, [load_group(recipe, group, ingest) for group in groups], ingest)["staged"]
    count_samples(recipe, list(MODES), settings.max_attempts, ingest)


def owners(warehouse: Warehouse) -> set[str]:
    """Who owns anything in the warehouse."""
    with warehouse.connection() as connection:
        rows = connection.execute(OWNERS).fetchall()
    return {row["owner"] for row in rows}


def test_an_owner_who_cannot_log_in_owns_what_is_migrated_and_what_loads_make(postgres: PostgresServer) -> None:
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as server:
        for _ in range(2):
            ensure_owner(server, OWNER)
            ensure_database(server, name, owner=OWNER)
        superuser = Warehouse(postgres.conninfo(name))
        for _ in range(2):
            take_over(superuser)
            Warehouse(as_owner(superuser.conninfo)).migrate()
            grant_roles(superuser, PASSWORDS)
        recipe, ingest = RECIPES[SAMPLED[0]], as_role(superuser)("ingest")
        groups = resolve_revision(recipe, str(SAMPLES), ingest, run_id="1")
        loaded = [load_group(recipe, group, ingest) for group in groups]
        assert owners(superuser) == {OWNER}
        assert merge_groups(recipe, loaded, ingest)["staged"]
        assert owners(superuser) == {OWNER}
        server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_the_owner_takes_over_what_a_superuser_has_made(granted: Warehouse, postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as server:
        ensure_owner(server, OWNER)
        ensure_database(server, str(psycopg.conninfo.conninfo_to_dict(granted.conninfo)["dbname"]), owner=OWNER)
    assert owners(granted) == {"postgres"}
    take_over(granted)
    assert owners(granted) == {OWNER}
    Warehouse(as_owner(granted.conninfo)).migrate()
    grant_roles(granted, PASSWORDS)
    recipe, ingest = RECIPES[SAMPLED[0]], as_role(granted)("ingest")
    groups = resolve_revision(recipe, str(SAMPLES), ingest, run_id="2", force=True)
    assert merge_groups(recipe, [load_group(recipe, group, ingest) for group in groups], ingest)["read"]


def test_granting_again_takes_away_what_was_granted_besides(granted: Warehouse) -> None:
    with granted.connection() as connection:
        connection.execute("grant delete on generation.responses to sift_console")
    grant_roles(granted, PASSWORDS)
    assert not may(granted, "sift_console", "generation.responses", "DELETE")


def test_a_password_never_reaches_the_server(granted: Warehouse, postgres: PostgresServer) -> None:
    with granted.connection() as connection:
        kept = connection.execute("select rolname, rolpassword from pg_authid where rolname = any(%s)", [list(ROLES)])
        rows = kept.fetchall()
        assert len(rows) == len(ROLES)
        assert all(row["rolpassword"].startswith("SCRAM-SHA-256$") for row in rows)
        # Whatever fails is written to the log as it was sent.
        log_path = connection.execute("select current_setting('data_directory') as folder").fetchone()
    assert log_path
    with pytest.raises(psycopg.Error):
        grant_roles(
            Warehouse(
                make_conninfo(granted.conninfo, options="-c log_statement=all -c default_transaction_read_only=on")
            ),
            PASSWORDS,
        )
    log = (Path(log_path["folder"]).parent / "postgres.log").read_text(errors="replace")
    assert "alter role" in log.lower() or "create role" in log.lower()
    assert "canary-" not in log


@pytest.mark.parametrize(
    "passwords", [{}, {**PASSWORDS, "postgres": "canary"}, dict.fromkeys(ROLES, "")], ids=["none", "more", "empty"]
)
def test_passwords_that_do_not_fit_are_refused_unseen(granted: Warehouse, passwords: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="password") as error:
        grant_roles(granted, passwords)
    assert "canary" not in str(error.value)


def test_the_migration_can_be_taken_back(warehouse: Warehouse) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine

    config = Config()
    config.set_main_option("script_location", "include/storage/migrations")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(warehouse.conninfo))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0006")
        left = connection.exec_driver_sql(
            "select proname from pg_proc where pronamespace = 'staging'::regnamespace"
        ).all()
        assert [row[0] for row in left] == ["first_samples"]
        connection.commit()
        command.upgrade(config, "head")
    engine.dispose()
    with warehouse.connection() as connection:
        connection.execute("select staging.create_partition('again')")


SHAPE = """
select 'table' as what, format('%%s %%s %%s %%s %%s', relowner::regrole, relkind, relpersistence, relreplident,
    pg_get_expr(relpartbound, oid)) as how from pg_class where oid = %(table)s::regclass
union all select 'privilege', (aclexplode(coalesce(relacl, acldefault('r', relowner))))::text
    from pg_class where oid = %(table)s::regclass
union all select 'column', jsonb_build_object('column', to_jsonb(a) - '{attrelid,attcompression}'::text[],
    'default', pg_get_expr(adbin, adrelid), 'comment', col_description(a.attrelid, attnum))::text
    from pg_attribute a left join pg_attrdef on adrelid = attrelid and adnum = attnum
    where attrelid = %(table)s::regclass and attnum > 0
union all select 'constraint', format('%%s %%s local %%s inherited %%s of %%s', contype, pg_get_constraintdef(oid),
    conislocal, coninhcount, conparentid <> 0) from pg_constraint where conrelid = %(table)s::regclass
union all select 'index', format('%%s primary %%s of %%s', pg_get_indexdef(indexrelid), indisprimary,
    inhparent::regclass) from pg_index left join pg_inherits on inhrelid = indexrelid
    where indrelid = %(table)s::regclass
union all select 'parent', inhparent::regclass::text from pg_inherits where inhrelid = %(table)s::regclass
union all select 'trigger', tgname from pg_trigger where tgrelid = %(table)s::regclass
order by 1, 2
"""


def test_a_partition_is_what_postgresql_itself_would_make(warehouse: Warehouse) -> None:
    grant_roles(warehouse, PASSWORDS)
    with as_role(warehouse)("ingest").connection() as ingest:
        ingest.execute("select staging.create_partition('mine')")
    with warehouse.connection() as connection:
        connection.execute("create table staging.samples_made partition of staging.samples for values in ('made')")
        connection.execute("grant select, insert, update on staging.samples_made to sift_ingest")
        mine, made = (
            [
                (row["what"], row["how"].replace(name, "NAME"))
                for row in connection.execute(SHAPE, {"table": f"staging.samples_{name}"}).fetchall()
            ]
            for name in ("mine", "made")
        )
    assert mine == made
    assert {what for what, _ in mine} == {"table", "privilege", "column", "constraint", "index", "parent"}


def test_a_first_load_waits_for_no_reader_and_keeps_none_waiting(warehouse: Warehouse) -> None:
    hurried = Warehouse(make_conninfo(warehouse.conninfo, options="-c lock_timeout=2s"))
    recipe = RECIPES[SAMPLED[0]]
    groups = resolve_revision(recipe, str(SAMPLES), hurried, run_id="1")
    loaded = [load_group(recipe, group, hurried) for group in groups]
    with warehouse.transaction() as release, hurried.connection() as reader:
        release.execute("select count(*) from staging.samples")  # a long COPY holds the same lock
        with hurried.transaction() as other:
            other.execute("select staging.create_partition('other')")
            reader.execute("select count(*) from staging.samples")
        assert merge_groups(recipe, loaded, hurried)["staged"]


def test_a_partition_that_two_make_at_once_is_made_once(warehouse: Warehouse) -> None:
    with warehouse.connection() as first, ThreadPoolExecutor(1) as pool:
        with first.transaction():
            first.execute("select staging.create_partition('mine')")

            def again() -> None:
                with warehouse.connection() as second:
                    second.execute("select staging.create_partition('mine')")

            waiting = pool.submit(again)
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
        waiting.result(30)
        assert first.execute(
            "select count(*) as n from pg_inherits where inhrelid::regclass::text ~ 'mine$'"
        ).fetchone() == {"n": 1}
