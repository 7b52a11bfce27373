"""Transcripts and free-text labels: columns of published text -> clean text."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

# Corpus noise marks: "[inaudible 00:01:02]", "[Tom 00:02:24]", "[laughter]". Nothing spoken stands in brackets.
_NOISE = r"\[[^\[\]]*\]"
# Markup-like text ("</text>", "<meta>", "<|im_end|>"), then any bracket left over: nothing in a transcript may
# pose as a tag of the audio context or as a special token.
_MARKUP = r"<[^<>]{0,200}>"
_STRAY = r"[<>\[\]]"
# Control and invisible characters and the replacement character; NUL cannot even be stored.
_UNPRINTABLE = r"[\x00-\x1f\x7f-\x{9f}\x{200b}-\x{200f}\x{2028}-\x{202e}\x{feff}\x{fffd}]"


def clean_transcripts(column: pa.Array) -> pa.Array:
    """Clean N transcripts.

    Returns:
        N strings: markup, noise marks and control characters gone, blanks collapsed, stripped, lower-cased; NULL
        where nothing is left.

    Source:
        `str(x).strip().lower()` is the reference generator's rule, which lets markup through; the cleaning is ours.
    """
    text = column.cast(pa.string())
    for pattern in (_NOISE, _MARKUP, _UNPRINTABLE, _STRAY):
        text = pc.replace_substring_regex(text, pattern, " ")
    text = pc.utf8_trim_whitespace(pc.replace_substring_regex(text, r"[\s\p{Z}]+", " "))
    # A row without a single letter or digit says nothing.
    spoken = pc.match_substring_regex(text, r"[\pL\pN]")
    return pc.if_else(spoken, pc.utf8_lower(text), pa.scalar(None, pa.string()))


def free_text_labels(column: pa.Array) -> pa.Array:
    """Strip and lower-case N free-text labels (accents), as published otherwise; NULL where empty."""
    text = pc.replace_substring_regex(column.cast(pa.string()), _UNPRINTABLE, " ")
    text = pc.utf8_lower(pc.utf8_trim_whitespace(text))
    return pc.if_else(pc.not_equal(text, ""), text, pa.scalar(None, pa.string()))
