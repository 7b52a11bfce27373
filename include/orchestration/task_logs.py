"""Old logs: what Airflow writes under its base log folder and never removes."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from airflow.sdk.configuration import conf

log = logging.getLogger(__name__)

_DAY_S = 86_400


def log_folder() -> Path:
    """Return the folder of this machine under which tasks, DAG processor and triggerer write their logs."""
    return Path(conf.get("logging", "base_log_folder"))


def remove_old_logs(folder: Path, keep_days: int) -> dict[str, int]:
    """Remove what nobody has written to for some days, and folders that have been empty for a day.

    Args:
        folder: Searched to its bottom, links are not followed; it stays itself.
        keep_days: Days since a file's last write after which it goes; at least 1.

    Returns:
        `files` and `bytes` that were removed.
    """
    now = time.time()
    files = size = 0
    for parent, _, names in os.walk(folder, topdown=False):
        with suppress(OSError):  # another worker may clean the same folder
            emptied = not names and Path(parent) != folder and Path(parent).stat().st_mtime < now - _DAY_S
            if emptied:
                Path(parent).rmdir()  # refuses one that is not empty
        for file in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):
                status = file.lstat()
                if status.st_mtime < now - keep_days * _DAY_S:
                    file.unlink()
                    files, size = files + 1, size + status.st_size
    log.info("removed %s files (%.1f MB) older than %s days from %s", files, size / 1e6, keep_days, folder)
    return {"files": files, "bytes": size}
