"""How long to wait before a server is asked again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MOST_WAIT_S = 900.0
"""Longest time that a server is waited for at once, if it asks for it; Airflow tries again later."""


def asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for, at most MOST_WAIT_S; None if there is none.

    Args:
        headers: Of an answer; looked up by the name in lower case.

    Source:
        RFC 9110, section 10.2.3: a number of seconds, or a date.
    """
    asked = headers.get("retry-after")
    if not asked:
        return None
    if asked.strip().isdigit():
        return min(float(asked), MOST_WAIT_S)
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return min(max((until - datetime.now(UTC)).total_seconds(), 0.0), MOST_WAIT_S)
