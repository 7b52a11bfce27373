"""`./sift prepare` on a PostgreSQL that asks for passwords, with the real Airflow and its FAB users."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from include.deployment.secrets import InitSecrets
from tests.include.deployment.conftest import PasswordServer

PASSWORDS = {
    name.upper(): f"first-{index}-{name.replace('_', '-')}" for index, name in enumerate(InitSecrets.model_fields)
}
# User -> the variable with the password, and the one database of ours that the user may connect to.
USERS = {
    "airflow": ("AIRFLOW_DB_PASSWORD", "airflow"),
    "celery": ("CELERY_DB_PASSWORD", "celery"),
    "sift_ingest": ("WAREHOUSE_INGEST_PASSWORD", "sift"),
    "sift_generate": ("WAREHOUSE_GENERATE_PASSWORD", "sift"),
    "sift_publish": ("WAREHOUSE_PUBLISH_PASSWORD", "sift"),
    "sift_console": ("WAREHOUSE_CONSOLE_PASSWORD", "sift"),
}

pytestmark = pytest.mark.slow


class Deployment:
    """What calls `./sift prepare` with passwords, as the service `init` does."""

    def __init__(self, server: PasswordServer, home: Path) -> None:
        self.server = server
        self.home = home
        self._calls = 0

    def environment(self, **changed: str) -> dict[str, str]:
        passwords = {**PASSWORDS, **changed}
        key = base64.urlsafe_b64encode(b"k" * 32).decode()
        return {
            **self.server.environment(),
            **passwords,
            "SIFT_HOME": str(self.home / "sift"),
            "AIRFLOW_HOME": str(self.home / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
            "AIRFLOW__CORE__FERNET_KEY": key,
            "AIRFLOW__API__SECRET_KEY": "s" * 64,
            "AIRFLOW__API_AUTH__JWT_SECRET": "j" * 64,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql+psycopg2://airflow:"
            f"{passwords['AIRFLOW_DB_PASSWORD']}@127.0.0.1:{self.server.port}/airflow",
        }

    def start(self, **changed: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a call; its output goes to a file, because nobody may read a pipe while two wait for each other."""
        self._calls += 1
        output = self.home / f"prepare-{self._calls}.log"
        with output.open("wb") as log:
            command = [sys.executable, "-m", "include.cli", "prepare"]
            return subprocess.Popen(command, env=self.environment(**changed), stdout=log, stderr=log), output

    def prepare(self, **changed: str) -> tuple[int, str]:
        process, output = self.start(**changed)
        return process.wait(timeout=120), output.read_text()

    def metadata(self, query: str) -> list[Any]:
        with self.server.superuser("airflow") as connection:
            return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def deployment(password_server: PasswordServer, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A server on which two calls of prepare have run at once."""
    deployed = Deployment(password_server, tmp_path_factory.mktemp("deployment"))
    for process, log in [deployed.start(SIFT_GPUS="2"), deployed.start(SIFT_GPUS="2")]:
        process.wait(timeout=120)
        output = log.read_text()
        assert process.returncode == 0, output
        assert " ready" in output.splitlines()[-1]
        for password in PASSWORDS.values():
            assert password not in output
    return deployed


def can_connect(server: PasswordServer, user: str, password: str, database: str) -> bool:
    try:
        server.connect(user, password, database).close()
    except psycopg.OperationalError:
        return False
    return True


def test_each_user_connects_to_one_database_only(deployment: Deployment) -> None:
    for user, (variable, own) in USERS.items():
        reached = [
            name
            for name in ("airflow", "celery", "sift")
            if can_connect(deployment.server, user, PASSWORDS[variable], name)
        ]
        assert reached == [own], user
        assert not can_connect(deployment.server, user, "another", own)


def test_the_metadata_holds_the_pool_and_the_admin(deployment: Deployment) -> None:
    assert deployment.metadata("select slots, include_deferred from slot_pool where pool = 'gpu'") == [(2, False)]
    roles = deployment.metadata(
        "select username, name from ab_user u join ab_user_role on user_id = u.id join ab_role r on role_id = r.id"
    )
    assert roles == [("admin", "Admin")]


def test_no_password_is_in_the_log_of_statements(deployment: Deployment) -> None:
    log = deployment.server.log_file.read_text()
    assert 'alter role "sift_ingest" with login password' in log
    for variable in PASSWORDS:
        assert PASSWORDS[variable] not in log


def superusers_things(server: PasswordServer) -> list[str]:
    """What of the warehouse a superuser owns."""
    with server.superuser("sift") as connection:
        rows = connection.execute(
            "select 'database ' || datname, datdba from pg_database where datname = 'sift' "
            "union all select 'schema ' || nspname, nspowner from pg_namespace where nspname = any(%(ours)s) "
            "union all select 'relation ' || oid::regclass, relowner from pg_class"
            "   where relnamespace::regnamespace::text = any(%(ours)s) or relname = 'warehouse_version' "
            "union all select 'function ' || oid::regprocedure, proowner from pg_proc"
            "   where pronamespace::regnamespace::text = any(%(ours)s)",
            {"ours": ["staging", "generation", "publish"]},
        ).fetchall()
        superusers = {row[0] for row in connection.execute("select oid from pg_roles where rolsuper")}
    assert len(rows) > 20
    return [what for what, owner in rows if owner in superusers]


def test_no_superuser_owns_anything_of_the_warehouse(deployment: Deployment) -> None:
    assert superusers_things(deployment.server) == []
    with deployment.server.superuser() as connection:
        assert connection.execute("select rolcanlogin, rolsuper from pg_roles where rolname = 'sift'").fetchone() == (
            False,
            False,
        )


def test_a_second_call_changes_what_is_new_only(deployment: Deployment) -> None:
    from werkzeug.security import check_password_hash

    def admin() -> str:
        return str(deployment.metadata("select password from ab_user where username = 'admin'")[0][0])

    before = admin()
    assert check_password_hash(before, PASSWORDS["ADMIN_PASSWORD"])
    with deployment.server.superuser("sift") as connection:  # as if restored from a server without that owner
        connection.execute("alter function staging.create_partition owner to postgres")
        connection.execute("alter table staging.samples owner to postgres")
    changed = {"CELERY_DB_PASSWORD": "second-celery", "ADMIN_PASSWORD": "second-admin", "SIFT_GPUS": "0"}
    code, output = deployment.prepare(**changed)
    assert code == 0, output
    assert superusers_things(deployment.server) == []
    assert check_password_hash(admin(), "second-admin")
    assert deployment.metadata("select slots from slot_pool where pool = 'gpu'") == [(1,)]
    assert can_connect(deployment.server, "celery", "second-celery", "celery")
    assert not can_connect(deployment.server, "celery", PASSWORDS["CELERY_DB_PASSWORD"], "celery")
    assert can_connect(deployment.server, "airflow", PASSWORDS["AIRFLOW_DB_PASSWORD"], "airflow")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"PGPASSWORD": "wrong"}, "change it with ALTER ROLE"),
        ({"CELERY_DB_PASSWORD": ""}, "CELERY_DB_PASSWORD: "),
        ({"ADMIN_PASSWORD": "p@ss"}, "ADMIN_PASSWORD: "),
    ],
)
def test_errors_say_what_to_do_and_no_value(
    password_server: PasswordServer, tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    code, output = Deployment(password_server, tmp_path).prepare(**changed)
    assert code == 1
    assert message in output and "Traceback" not in output
    assert not any(value and value in output for value in changed.values())
