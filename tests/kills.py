"""What kill tests share: random moments that can be had again, what was stored, what was begun, and the tally."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from include.storage.warehouse import Warehouse

SEED_VARIABLE = "SIFT_TEST_KILL_SEED"
Row = tuple[Any, ...]


def random_moments(test: str) -> random.Random:
    """Random numbers whose seed is printed (pytest shows it when the test fails) and can be given by a variable."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.randrange(10**6))
    print(f"{test}: to have the same moments again, {SEED_VARIABLE}={seed}")  # noqa: T201
    return random.Random(seed)


def stored(warehouse: Warehouse) -> dict[Row, Row]:
    """All accepted and rejected texts by (sample, mode, prompt, attempt; 0 for accepted), with all their columns."""
    found: dict[Row, Row] = {}
    with warehouse.connection() as connection:
        for table in ("responses", "attempts"):
            for row in connection.execute(f"select * from generation.{table}").fetchall():
                attempt = 0 if table == "responses" else row["attempt"]
                found[row["sample_id"], row["mode"], row["prompt_hash"], attempt] = tuple(row.items())
    return found


def texts(rows: dict[Row, Row]) -> set[Row]:
    """Stored texts as the engine's log names them: (sample, mode, attempt)."""
    return {(key[0], key[1], dict(row)["attempt"]) for key, row in rows.items()}


def doubled(rows: dict[Row, Row]) -> int:
    """Count prompts whose attempts are not 1, 2, ... up to the accepted one: one text too many, or one too few."""
    attempts: dict[Row, list[int]] = {}
    for key, row in rows.items():
        attempts.setdefault(key[:3], []).append(dict(row)["attempt"])
    return sum(sorted(numbers) != list(range(1, len(numbers) + 1)) for numbers in attempts.values())


@dataclass(frozen=True)
class Batch:
    """A batch that the fake engine has begun: in which process, on which device, rows as in `texts`."""

    pid: int
    device: str
    rows: list[Row]


def batches_begun(log_file: Path) -> list[Batch]:
    """The batches that the fake engine has begun, in order."""
    if not log_file.exists():
        return []
    lines = [json.loads(line) for line in log_file.read_text().splitlines()]
    return [Batch(line["pid"], line["device"], [tuple(row) for row in line["rows"]]) for line in lines]


def begun(log_file: Path) -> list[tuple[int, list[Row]]]:
    """The same as (process, rows)."""
    return [(batch.pid, batch.rows) for batch in batches_begun(log_file)]


def redone(log_file: Path) -> tuple[int, int, int]:
    """Count what was begun more than once.

    Returns:
        Rows begun again; batches with rows that were begun again later; those of them that were not the last one of
        their process, so that it was not the kill that cut them short.
    """
    batches = begun(log_file)
    times = Counter(row for _, rows in batches for row in rows)
    last_begun = {row: number for number, (_, rows) in enumerate(batches) for row in rows}
    last_of_process = {pid: number for number, (pid, _) in enumerate(batches)}
    again = [number for number, (_, rows) in enumerate(batches) if any(last_begun[row] != number for row in rows)]
    needless = sum(last_of_process[batches[number][0]] != number for number in again)
    return sum(times.values()) - len(times), len(again), needless


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Poll until it is so; nothing is concluded from how long it takes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass
class Tally:
    """What a campaign found; `tests/conftest.py` prints it at the end of the test run.

    Attributes:
        target: What was killed.
        kills: How often.
        lost: Stored rows that were gone or different after a kill.
        doubled: Prompts with a text too many.
        rows: Texts stored in the end.
        redone_rows: Texts that the engine began once more.
        redone_batches: Batches that had to be begun again.
        notes: Anything else.
    """

    target: str
    kills: int = 0
    lost: int = 0
    doubled: int = 0
    rows: int = 0
    redone_rows: int = 0
    redone_batches: int = 0
    notes: str = ""
    began: float = field(default_factory=time.monotonic)

    def compare(self, before: dict[Row, Row], after: dict[Row, Row]) -> None:
        """Count what was stored before and is not there unchanged."""
        self.lost += sum(after.get(key) != row for key, row in before.items())

    def __str__(self) -> str:
        return (
            f"killed {self.target}: {self.kills} kills, {self.rows} texts, {self.lost} lost, {self.doubled} doubled, "
            f"{self.redone_batches} batches redone ({self.redone_rows} rows), "
            f"{time.monotonic() - self.began:.0f} s{self.notes and ', ' + self.notes}"
        )
