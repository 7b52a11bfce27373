"""Answers: thinking is stripped in every form it leaks in, and sentences end where a reader would end them."""

import pytest

from include.generation.answer import clean_answer, sentence_end


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("  That's lovely!\n", "That's lovely!"),
        ("<think>\n\n</think>\nThat's lovely!", "That's lovely!"),
        ("<think>one</think>Hello <think>two\nlines</think>there", "Hello there"),
        ("That's lovely! <think>I should go on", "That's lovely!"),
        ("<think>never closed", ""),
        ("still thinking</think>\n\nThat's lovely!", "That's lovely!"),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("a </think> b <think> c", "b"),
        ("I think <3 is fine", "I think <3 is fine"),
        ("", ""),
    ],
)
def test_clean_answer(text: str, answer: str) -> None:
    assert clean_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "sentences", "kept"),
    [
        ("One is here. Two", 1, "One is here."),
        ("One is here. Two is here! Three", 2, "One is here. Two is here!"),
        ("Really?! Yes", 1, "Really?!"),
        ("Well... I see. Now", 1, "Well..."),
        ("Well... maybe so. Now", 1, "Well... maybe so."),
        ('He said "stop." Then', 1, 'He said "stop."'),
        ("He said ‘stop.’ Then", 1, "He said ‘stop.’"),
        ('Sounds like a man saying "no!" in a harsh voice. He', 1, 'Sounds like a man saying "no!" in a harsh voice.'),
        ("Ask Dr. Smith about it. He", 1, "Ask Dr. Smith about it."),
        ("Ask J. R. Smith. He", 1, "Ask J. R. Smith."),
        ("So do I. You", 1, "So do I."),
        ("He said no. You", 1, "He said no."),
        ("Try music, walks, etc. You", 1, "Try music, walks, etc."),
        ("Hello,\nDr. Smith is in. You", 1, "Hello,\nDr. Smith is in."),
        ("It costs 3.50 today. That", 1, "It costs 3.50 today."),
        ("1. Take a breath. 2", 1, "1. Take a breath."),
        ("Great! 😊 I am", 1, "Great!"),
        ("A list:\n- one.\n- two.", 1, "A list:\n- one."),
        ("Done.\n\n", 1, "Done."),
        ("!!! ??? Hello there. You", 1, "!!! ??? Hello there."),
        ("No end yet", 1, None),
        ("Only one. And", 2, None),
        ("", 1, None),
    ],
)
def test_a_sentence_ends_where_a_reader_ends_it(text: str, sentences: int, kept: str | None) -> None:
    end = sentence_end(text, sentences)
    assert (text[:end] if end is not None else None) == kept


def test_the_end_of_a_text_that_may_go_on_is_not_yet_an_end() -> None:
    text = "I hear you."
    assert sentence_end(text, 1) is None
    assert sentence_end(text + " ", 1) is None
    assert sentence_end(text, 1, finished=True) == len(text)
    assert sentence_end("I hear you", 1, finished=True) is None


def test_a_text_cut_at_its_end_ends_there() -> None:
    text = 'Sounds like a happy woman saying "we won!" in a bright voice. She is near. And'
    for sentences in (1, 2):
        end = sentence_end(text, sentences)
        assert sentence_end(text[:end], sentences, finished=True) == end
