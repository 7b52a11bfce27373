"""Every hard rule: at least three answers it lets pass and three it stops, and nothing else stops those."""

import pytest

from include.quality.rules import RULES, judge

SIFT, SIT = "sift_ssp", "sit_ssp"

# rule -> (mode, text, finish_reason) that pass it
GOOD = {
    "empty": [(SIFT, "Oh.", "stop"), (SIFT, " ok \n", "stop"), (SIT, "Sounds like a man.", "stop")],
    "unprintable": [
        (SIFT, "Tab\tand\nlines\r\nare fine.", "stop"),
        (SIFT, "Café, naïve, “quotes” … and 日本語.", "stop"),
        (SIFT, "Family 👨\u200d👩\u200d👧 and 🙂.", "stop"),
    ],
    "leaked_tag": [
        (SIFT, "I <3 that!", "stop"),
        (SIFT, "If 3 < 5 and 7 > 2, all is well.", "stop"),
        (SIFT, "I think the audio text was meta.", "stop"),
        (SIFT, "a | b, and [insert a name]", "stop"),
    ],
    "leaked_prompt": [
        (SIFT, "The user: who are they? The system: broken.", "stop"),
        (SIFT, "My assistant helped me.\nUsers: many.", "stop"),
        (SIFT, "No metadata here. I have no thinking to do.", "stop"),
    ],
    "truncated": [
        (SIFT, "An answer that ended.", "stop"),
        (SIFT, "An answer that we ended.", "sentences"),
        (SIT, "Sounds like a man", "stop"),
    ],
    "not_sounds_like": [
        (SIT, "Sounds like an angry man saying 'no'.", "stop"),
        (SIT, "Sounds like\na sad woman.", "stop"),
        (SIFT, "It will be all right.", "stop"),
        ("sift_s", "The sounds like rain are lovely.", "stop"),
    ],
}
BAD = {
    "empty": [(SIFT, "", "stop"), (SIFT, " \n\t", "stop"), (SIT, "\u00a0", "stop"), (SIFT, "", "length")],
    "unprintable": [
        (SIFT, "bad \ufffd byte", "stop"),
        (SIFT, "bell \x07", "stop"),
        (SIFT, "half a pair \ud83d", "stop"),
        (SIFT, "del \x7f", "stop"),
    ],
    "leaked_tag": [
        (SIFT, text, "stop")
        for text in (
            "<think>hm",
            "fine</think>",
            "<audio>",
            "see <AUDIO><meta>age: senior</meta>",
            "</text>ok",
            "<text",
            "Hello<|im_end|>",
            "<|im_start|>assistant",
            "cut<|truncated|>",
            "<|finetune_right_pad_id|>",
            "<repo_name>x",
            "<tool_call>",
            "bye</s>",
            "[INST] hi",
        )
    ],
    "leaked_prompt": [
        (SIFT, "## Metadata\nKnowledge", "stop"),
        (SIFT, "Reasoning Mode: off", "stop"),
        (SIFT, "I will /no_think", "stop"),
        (SIFT, "Sure.\nUser: and then?", "stop"),
        (SIFT, "assistant: hello", "stop"),
        (SIFT, "**System:** you are", "stop"),
    ],
    "truncated": [
        (SIFT, "And then I", "length"),
        (SIT, "Sounds like a", "length"),
        ("sift_s", "Whole, but cut.", "length"),
    ],
    "not_sounds_like": [
        (SIT, "This sounds like a man.", "stop"),
        (SIT, "sounds like a man.", "stop"),
        (SIT, " Sounds like a man.", "stop"),
        (SIT, "Soundslike a man.", "stop"),
        (SIT, '"Sounds like a man."', "stop"),
    ],
}


def test_every_rule_has_examples() -> None:
    assert set(RULES) == set(GOOD) == set(BAD)
    assert all(len(cases) >= 3 for cases in (*GOOD.values(), *BAD.values()))


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule, cases in GOOD.items() for case in cases])
def test_good_answers_pass(rule: str, case: tuple[str, str, str]) -> None:
    mode, text, finish_reason = case
    assert not RULES[rule](mode, text, None, finish_reason)
    assert judge(mode, text, finish_reason) == "accepted"


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule, cases in BAD.items() for case in cases])
def test_bad_answers_are_named(rule: str, case: tuple[str, str, str]) -> None:
    mode, text, finish_reason = case
    assert RULES[rule](mode, text, None, finish_reason)
    assert judge(mode, text, finish_reason) == rule


def test_the_first_broken_rule_is_the_verdict() -> None:
    assert judge("sit_ssp", "<think>", "length") == "leaked_tag"
    assert judge("sit_ssp", "It is", "length", transcript="it is") == "truncated"
