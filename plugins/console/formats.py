"""How numbers, times and foreign text are written on a page."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Any

# What turns the direction of text around it, or hides in it, is shown by its name instead of being obeyed.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = {"\u200c", "\u200d"}  # part of ordinary words and emoji
MOST_CHARACTERS = 20_000


def number(value: float | None) -> str:
    """Write a number with thousands separated; fractions with three digits that matter."""
    if value is None:
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """Write a share of a whole in percent, without rounding a rest away: 99.9 % is not 100 %."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %" if percent % 1 else f"{percent:.0f} %"


def size(count: float | None) -> str:
    """Write bytes in the largest unit that leaves a whole part."""
    if count is None:
        return "–"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def span(seconds: float | None) -> str:
    """Write a duration in its two largest units."""
    if seconds is None:
        return "–"
    whole = int(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit} {rest} {smaller}" if rest else f"{whole // length} {unit}"
    return f"{whole} s"


def ago(moment: datetime | None) -> str:
    """Say how long ago something was."""
    if moment is None:
        return "never"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return "just now" if seconds < 5 else f"{span(seconds)} ago"


def stamp(moment: datetime | str | None) -> str:
    """Write a moment in UTC."""
    if moment is None:
        return "–"
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def visible(text: Any, most: int = MOST_CHARACTERS) -> str:
    """Make foreign text safe to look at; the template escapes it besides.

    Args:
        text: From a corpus or a model.
        most: Characters that are shown at most.

    Returns:
        The text with control and formatting characters written as ⟨U+202E⟩; line ends and tabs stay. Cut after `most`
        characters; where the whole text is to be seen, saying how many are left out.
    """
    whole = str(text)
    shown = "".join(
        f"⟨U+{ord(char):04X}⟩"
        if char not in "\n\t" and char not in _JOINERS and unicodedata.category(char) in _HIDDEN
        else char
        for char in whole[:most]
    )
    if len(whole) <= most:
        return shown
    return f"{shown} … ({len(whole) - most:,} more characters)" if most == MOST_CHARACTERS else f"{shown.rstrip()}…"


FILTERS = {
    "number": number,
    "share": share,
    "size": size,
    "span": span,
    "ago": ago,
    "stamp": stamp,
    "visible": visible,
}
"""Jinja filters by name."""
