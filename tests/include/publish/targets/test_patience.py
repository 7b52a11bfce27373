"""What a Retry-After header asks for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from include.publish.targets.patience import MOST_WAIT_S, asked_wait_s


@pytest.mark.parametrize(
    ("asked", "seconds"), [("0", 0), ("7", 7), (" 30 ", 30), ("86400", MOST_WAIT_S), ("", None), ("soon", None)]
)
def test_seconds_are_taken_up_to_a_limit(asked: str, seconds: float | None) -> None:
    assert asked_wait_s({"retry-after": asked}) == seconds
    assert asked_wait_s({}) is None


def test_a_date_is_taken_as_the_time_until_then() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    wait = asked_wait_s({"retry-after": soon})
    assert wait is not None and 57 <= wait <= 60
    assert asked_wait_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
