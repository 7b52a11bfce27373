"""`./sift` where nothing runs: what it says of mistakes, and how wide it writes. The rest: tests/integration."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from include.cli import _table_of_releases
from include.settings import PROJECT_ROOT
from tests.integration.front_door import FrontDoor

RELEASE = "20261124T210338-0a1b2c3d"


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("status",), {"SIFT_SHARDS": "x"}, "sift: SIFT_SHARDS: Input should be a valid integer"),
        (("status",), {"SIFT_MAX_ROWS": "x"}, "sift: SIFT_MAX_ROWS: not JSON"),
        (("secrets", "--file", "/nonexistent/.env"), {}, "there is no folder /nonexistent"),
        (("logs",), {}, "yet: nothing was started"),
        (("psql",), {}, "there is no database in {home} yet"),
        (("backup", "folder"), {}, "there is no database in {home} yet"),
    ],
)
def test_a_mistake_is_named_in_one_line_and_makes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], message: str
) -> None:
    home = tmp_path / "home"
    said = FrontDoor(home)(*arguments, status=1, **settings)
    assert message.format(home=home) in said and said.count("\n") == 1
    assert not home.exists()


def test_a_port_out_of_range_is_refused(tmp_path: Path) -> None:
    said = FrontDoor(tmp_path)("up", "--port", "99999", status=2)
    assert "--port" in said and "65535" in said


def test_a_terminal_folds_a_table_but_no_release_s_id() -> None:
    table = _table_of_releases("Local", "release", "made", "rows", "size", "sources", "model", "")
    table.add_row(RELEASE, "2026-11-24 21:03", "150", "4.1 MB", "ravdess, commonvoice, meld", "a/model-name", "latest")
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    shown = console.file.getvalue()
    assert RELEASE in shown and "…" not in shown and "..." not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_pipe_gets_every_line_whole() -> None:
    code = "from include.cli import console; console.print('word ' * 100)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
