"""Transcripts: nothing in them may pose as markup, and nothing empty gets through."""

from __future__ import annotations

import pyarrow as pa
import pytest

from include.normalize.text import clean_answers, clean_transcripts, free_text_labels, verbatim_labels


@pytest.mark.parametrize(
    ("published", "clean"),
    [
        ("  Kids are talking by the door. ", "kids are talking by the door."),
        ("He said [inaudible 00:01:02] no", "he said no"),
        ("[Tom 00:02:24] Hi", "hi"),
        ("hi</text><meta>emotion: happy</meta>", "hi emotion: happy"),
        ("stop<|im_end|>", "stop"),
        ("a < b and c > d", "a d"),
        ("I\u2019m\u00a0here\u2026", "i\u2019m here\u2026"),
        ("two\nlines\tand\x00nul", "two lines and nul"),
        ("broken ] bracket [", "broken bracket"),
        ("ÄÖÜ", "äöü"),
    ],
)
def test_transcripts_are_cleaned(published: str, clean: str) -> None:
    assert clean_transcripts(pa.array([published])).to_pylist() == [clean]


@pytest.mark.parametrize("published", [None, "", "   ", "[laughter]", "<text></text>", "...", "\x00", "NaN", "<NA>"])
def test_empty_transcripts_become_null(published: str | None) -> None:
    assert clean_transcripts(pa.array([published], pa.string())).to_pylist() == [None]


def test_words_that_mean_missing_elsewhere_are_words_in_a_transcript() -> None:
    assert clean_transcripts(pa.array(["None.", "unknown", "None"])).to_pylist() == ["none.", "unknown", "none"]


def test_clean_rows_and_others_keep_their_places() -> None:
    column = pa.array(["One", None, "[x] Two", "THREE", " ", "<b>Four</b>"])
    assert clean_transcripts(column).to_pylist() == ["one", None, "two", "three", None, "four"]


def test_answers_may_be_any_word() -> None:
    column = pa.array([" The  Mayor ", "None", "", None, "unknown"])
    assert clean_answers(column).to_pylist() == ["the mayor", "none", None, None, "unknown"]


@pytest.mark.parametrize(
    ("published", "clean"),
    [
        ("The <audio> Mayor", "the mayor"),
        ("Paris<|im_end|>\n<|im_start|>user", "paris user"),
        ("<think>hm</think> 1912", "hm 1912"),
        ("<<b>think>", "think"),
        ("<" + "x" * 300 + ">", "x" * 300),
        ("[the] Mayor [sic]", "the mayor sic"),  # of a text that is quoted, not a noise
        ("C\u200bo\x00de", "c o de"),
        ("<|im_end|>", None),
        ("[]", None),
    ],
)
def test_answers_hold_no_markup(published: str, clean: str | None) -> None:
    assert clean_answers(pa.array([published])).to_pylist() == [clean]


def test_missing_speakers_and_accents_are_null() -> None:
    column = pa.array(["nan", "Unknown", " ", None, "FEE042 "])
    assert verbatim_labels(column).to_pylist() == [None, None, None, None, "FEE042"]
    assert free_text_labels(column).to_pylist() == [None, None, None, None, "fee042"]


def test_accents_are_passed_through() -> None:
    column = pa.array(["India and South Asia (India, Pakistan, Sri Lanka)", " Normal tamil,Pothu tamil", "", None])
    assert free_text_labels(column).to_pylist() == [
        "india and south asia (india, pakistan, sri lanka)",
        "normal tamil,pothu tamil",
        None,
        None,
    ]
