"""Old logs go, everything else stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from include.orchestration.task_logs import remove_old_logs

DAY_S = 86_400


def made(path: Path, *, days_ago: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a line\n")
    aged(path, days_ago)
    return path


def aged(path: Path, days_ago: float) -> None:
    then = time.time() - days_ago * DAY_S
    os.utime(path, (then, then))


def test_logs_go_by_the_age_of_their_last_line(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    old = made(folder / "dag_id=a" / "run_id=1" / "task_id=t" / "attempt=1.log", days_ago=31)
    new = made(folder / "dag_id=a" / "run_id=2" / "task_id=t" / "attempt=1.log", days_ago=29)
    parsed = made(folder / "dag_processor" / "2026-01-01" / "dags" / "a.py.log", days_ago=40)
    assert remove_old_logs(folder, 30) == {"files": 2, "bytes": 14}
    assert not old.exists() and not parsed.exists()
    assert new.exists()
    assert remove_old_logs(folder, 30) == {"files": 0, "bytes": 0}


def test_folders_go_once_they_have_been_empty_for_a_day(tmp_path: Path) -> None:
    empty, fresh = tmp_path / "run_id=old" / "task_id=t", tmp_path / "run_id=new"
    for folder in (empty, fresh):
        folder.mkdir(parents=True)
    aged(empty, 2)
    remove_old_logs(tmp_path, 30)
    assert not empty.exists() and fresh.exists()
    assert tmp_path.exists()


def test_what_a_link_leads_to_is_not_ours(tmp_path: Path) -> None:
    elsewhere = made(tmp_path / "elsewhere" / "kept.log", days_ago=400)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "latest").symlink_to(elsewhere.parent)
    remove_old_logs(folder, 1)
    assert elsewhere.exists()
