"""Transcripts and free-text labels: columns of published text -> clean text."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from include.normalize.labels import MISSING

# Corpus noise marks: "[inaudible 00:01:02]", "[Tom 00:02:24]", "[laughter]". Nothing spoken stands in brackets.
_NOISE = r"\[[^\[\]]*\]"
# Markup-like text ("</text>", "<meta>", "<|im_end|>"), then any bracket left over: nothing in a transcript may
# pose as a tag of the audio context or as a special token.
_MARKUP = r"<[^<>]{0,200}>"
_STRAY = r"[<>\[\]]"
# Control and invisible characters and the replacement character; NUL cannot even be stored.
_UNPRINTABLE = r"[\x00-\x1f\x7f-\x{9f}\x{200b}-\x{200f}\x{2028}-\x{202e}\x{feff}\x{fffd}]"
_BLANKS = r"[\s\p{Z}]+"
# Most transcripts need none of the above: only those that hold a bracket, two blanks or anything outside ASCII's
# printable characters are worked on.
_SUSPECT = r"[\[\]<>]|  |[^\x20-\x7e]"

# What a table tool writes for a transcript that is not there; "none" and "unknown" are words that people say.
_MISSING_TEXT = ("nan", "null", "n/a")


def clean_transcripts(column: pa.Array) -> pa.Array:
    """Clean N transcripts.

    Returns:
        N strings: markup, noise marks and control characters gone, blanks collapsed, stripped, lower-cased; NULL
        where nothing is left.

    Source:
        `str(x).strip().lower()` is the reference generator's rule, which lets markup through; the cleaning is ours.
    """
    text = column.cast(pa.string())
    suspect = pc.fill_null(pc.match_substring_regex(text, _SUSPECT), False)
    if pc.any(suspect).as_py():
        cleaned = text.filter(suspect)
        for pattern in (_NOISE, _MARKUP, _UNPRINTABLE, _STRAY, _BLANKS):
            cleaned = pc.replace_substring_regex(cleaned, pattern, " ")
        text = pc.replace_with_mask(text, suspect, cleaned)
    text = pc.utf8_lower(pc.utf8_trim_whitespace(text))
    # A row without a single letter or digit says nothing.
    missing = pc.is_in(text, value_set=pa.array(_MISSING_TEXT))
    spoken = pc.and_not(pc.match_substring_regex(text, r"[\pL\pN]"), missing)
    return pc.if_else(spoken, text, pa.scalar(None, pa.string()))


def free_text_labels(column: pa.Array) -> pa.Array:
    """Strip and lower-case N free-text labels (accents), as published otherwise; NULL where empty or missing."""
    encoded = pc.dictionary_encode(column.cast(pa.string()))
    text = pc.replace_substring_regex(encoded.dictionary, _UNPRINTABLE, " ")
    return _present(pc.utf8_lower(pc.utf8_trim_whitespace(text))).take(encoded.indices)


def clean_answers(column: pa.Array) -> pa.Array:
    """Clean N answers of markup, strip and lower-case them; NULL where nothing is left.

    They are published as they are, as what a model is to say: no rule of quality looks at them. What stands in square
    brackets stays, without the brackets, and any word may be an answer, "none" and "unknown" too.
    """
    text = column.cast(pa.string())
    for pattern in (_MARKUP, _UNPRINTABLE, _STRAY, _BLANKS):
        text = pc.replace_substring_regex(text, pattern, " ")
    text = pc.utf8_lower(pc.utf8_trim_whitespace(text))
    return pc.if_else(pc.not_equal(text, ""), text, pa.scalar(None, pa.string()))


def verbatim_labels(column: pa.Array) -> pa.Array:
    """Strip N names (speakers) and keep what can be seen of them; NULL where empty or missing."""
    encoded = pc.dictionary_encode(column.cast(pa.string()))
    text = pc.replace_substring_regex(encoded.dictionary, _UNPRINTABLE, " ")
    return _present(pc.utf8_trim_whitespace(text)).take(encoded.indices)


def _present(text: pa.Array) -> pa.Array:
    missing = pc.is_in(pc.utf8_lower(text), value_set=pa.array(sorted(MISSING)))
    return pc.if_else(missing, pa.scalar(None, pa.string()), text)
