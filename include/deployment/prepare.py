"""`./sift prepare`: make a server ready for the platform, once or again.

The compose service `init` and the Kubernetes job run it at every start, before Airflow's processes. It changes what has
to be changed: new passwords are set, a new version's tables are made, the pool follows the number of GPUs.
"""

from __future__ import annotations

import logging
import subprocess
import sys

from pydantic import ValidationError

from include.deployment.secrets import InitSecrets
from include.settings import get_settings
from include.storage.databases import (
    ensure_database,
    ensure_owner,
    ensure_user,
    prepared_alone,
    superuser_conninfo,
)
from include.storage.roles import OWNER, as_owner, grant_roles, take_over
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)

SERVER_TIMEOUT_S = 120


def prepare() -> None:
    """Prepare databases and users, the warehouse, Airflow's metadata, the pool and the admin.

    A second call at the same time waits for the first.

    Raises:
        ValueError: If a password is missing in the environment.
        RuntimeError: If PostgreSQL does not answer, or a step fails; it says what to do.
    """
    passwords = _passwords()
    slots = max(1, get_settings().gpus)
    with prepared_alone(SERVER_TIMEOUT_S) as server:
        log.info("databases and their users")
        for name, password in (
            ("airflow", passwords.airflow_db_password),
            ("celery", passwords.celery_db_password),
        ):
            ensure_user(server, name, password.get_secret_value())
            ensure_database(server, name, owner=name)
        ensure_owner(server, OWNER)
        ensure_database(server, "sift", owner=OWNER)
        log.info("the warehouse and its roles")
        warehouse = Warehouse(superuser_conninfo("sift"))
        take_over(warehouse)
        Warehouse(as_owner(warehouse.conninfo)).migrate()
        grant_roles(warehouse, passwords.warehouse_passwords)
        log.info("Airflow's metadata")
        if code := subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=False).returncode:
            raise RuntimeError(
                f"airflow db migrate failed (exit status {code}); see the lines above, then run this again"
            )
        _prepare_airflow(slots, passwords.admin_password.get_secret_value())
        log.info("ready")


def _passwords() -> InitSecrets:
    try:
        return InitSecrets()
    except ValidationError as error:
        problems = ", ".join(f"{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors())
        raise ValueError(f"{problems}. These variables come from the file that ./sift secrets writes") from None


def _prepare_airflow(slots: int, admin_password: str) -> None:
    from include.orchestration.metadata import ADMIN, set_admin, set_gpu_pool

    set_gpu_pool(slots)
    log.info("pool gpu: %d", slots)
    log.info("user %s: %s", ADMIN, "set" if set_admin(admin_password) else "as it was")
