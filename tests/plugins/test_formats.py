"""How numbers, times and foreign text are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from plugins.console import formats


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (0, 0, "–"),
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (999_999, 1_000_000, "> 99.9 %"),
        (1, 1_000_000, "< 0.1 %"),
        (1, 3, "33.3 %"),
    ],
)
def test_a_share_never_rounds_a_rest_away(part: int, whole: int, shown: str) -> None:
    assert formats.share(part, whole) == shown


def test_numbers_sizes_and_spans() -> None:
    assert [formats.number(value) for value in (None, 0, 1234567, 0.12345, -16.4, 12345.6)] == [
        "–",
        "0",
        "1,234,567",
        "0.123",
        "-16.4",
        "12,346",
    ]
    assert [formats.size(value) for value in (None, 0, 1023, 1536, 5 << 40)] == [
        "–",
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "5.0 TiB",
    ]
    assert [formats.span(value) for value in (None, 0.4, 61, 3600, 90_000)] == [
        "–",
        "0 s",
        "1 min 1 s",
        "1 h",
        "1 d 1 h",
    ]
    now = datetime.now(UTC)
    assert formats.ago(None) == "never" and formats.ago(now) == "just now"
    assert formats.ago(now - timedelta(hours=2, minutes=5, seconds=1)) == "2 h 5 min ago"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with\nlines\tand “quotes”", "plain, with\nlines\tand “quotes”"),
        ("abc\u202edef\u202c", "abc⟨U+202E⟩def⟨U+202C⟩"),
        ("\u2066isolated\u2069 \u200bzero\ufeff", "⟨U+2066⟩isolated⟨U+2069⟩ ⟨U+200B⟩zero⟨U+FEFF⟩"),
        ("bell\x07 escape\x1b[31m", "bell⟨U+0007⟩ escape⟨U+001B⟩[31m"),
        ("\u2028line", "⟨U+2028⟩line"),
        ("مرحبا שלום नमस्ते", "مرحبا שלום नमस्ते"),
        ("क्\u200dष 👩\u200d💻", "क्\u200dष 👩\u200d💻"),
    ],
)
def test_what_hides_in_text_is_shown_by_its_name(text: str, shown: str) -> None:
    assert formats.visible(text) == shown


def test_huge_text_is_cut_and_says_so() -> None:
    shown = formats.visible("x" * 1_000_000)
    assert len(shown) < 21_000 and shown.endswith("… (980,000 more characters)")
    assert formats.visible("some words", most=5) == "some…"
