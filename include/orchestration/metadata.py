"""What Airflow's metadata must hold before a deployment's first run: the pool of GPUs, and somebody who may log in.

These open Airflow's metadata database, so they are for the processes that own it, never for tasks.
"""

from __future__ import annotations

import logging

from include.orchestration.defaults import GPU_POOL

log = logging.getLogger(__name__)

ADMIN = "admin"


def set_gpu_pool(slots: int) -> None:
    """Make the pool of generating tasks, or change its size."""
    from airflow.models.pool import Pool

    Pool.create_or_update_pool(GPU_POOL, slots, "One slot per GPU; one without", include_deferred=False)


def set_admin(password: str) -> bool:
    """Make the user `admin` of the FAB auth manager, or set the password when it is another one.

    Airflow's command for it would show the password in the list of processes.

    Returns:
        Whether anything changed.

    Raises:
        RuntimeError: If FAB refuses.
    """
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.utils.providers_configuration_loader import providers_configuration_loaded
    from werkzeug.security import check_password_hash

    @providers_configuration_loaded
    def ensure() -> bool:
        with get_application_builder() as builder:
            manager = builder.sm
            manager.sync_roles()
            user = manager.find_user(username=ADMIN)
            if user is None:
                done = manager.add_user(ADMIN, "SIFT", "Admin", "admin@localhost", manager.find_role("Admin"), password)
            elif check_password_hash(user.password, password):
                return False
            else:
                done = manager.reset_password(user.id, password)
            if not done:
                raise RuntimeError(f"Airflow's user {ADMIN} could not be set; see the lines above")
            return True

    return ensure()
