"""Every hard rule: at least three answers it lets pass and three it stops, and nothing else stops those."""

import pytest

from include.modes import MODES
from include.quality.rules import RULES, Answer, check_severities, judge, rules_identity, warnings
from include.schema import BadInputError

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
    "refused_prompt": [(SIFT, "I hear you.", "stop"), (SIFT, "I refused.", "sentences"), (SIFT, "No.", "stop")],
    "not_sounds_like": [
        (SIT, "Sounds like an angry man saying 'no'.", "stop"),
        (SIT, "Sounds like\na sad woman.", "stop"),
        (SIFT, "It will be all right.", "stop"),
        ("sift_s", "The sounds like rain are lovely.", "stop"),
    ],
}
BAD = {
    "refused_prompt": [(mode, "", "refused") for mode in MODES],
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


HARD = set(GOOD)

SOFT_OFF = {name: "off" for name, rule in RULES.items() if not rule.hard}
SAID = "i lost my keys again."
LONG = "we moved the plants to the other window and they did fine."

# rule -> (mode, text, transcript, labels) that pass it, and that break it
SOFT_GOOD = {
    "refusal": [
        ("sift_s", "I can't wait to hear more!", SAID, {}),
        ("sift_s", "I hear you. Listen, keys turn up.", SAID, {}),
        ("sift_ssp", "As an old friend of yours, I get it.", SAID, {}),
    ],
    "copied_prompt": [
        ("sift_s", "I am your friend, so tell me what happened with the keys.", SAID, {}),
        ("sift_s", "Respond to that email first, then look for the keys.", SAID, {}),
        ("sift_ssp", "Oh no, have you checked your coat pockets?", SAID, {}),
    ],
    "copied_example": [
        (
            SIT,
            "Sounds like an angry man saying 'leave me alone' in a harsh voice.",
            "leave me alone.",
            {"emotion": "angry"},
        ),
        (SIT, "Sounds like an angry man saying 'i lost my keys again'.", SAID, {"emotion": "angry"}),
        (SIT, "Sounds like a woman who wants to be left alone: 'i lost my keys again.'", SAID, {}),
    ],
    "several_sentences": [
        (SIT, "Sounds like a man saying 'i lost my keys. Again.' in a tired voice.", "i lost my keys. again.", {}),
        (SIT, "Sounds like Dr. smith saying 'i lost my keys again'.", SAID, {}),
        (SIT, "Sounds like a sad man saying “i lost my keys again.”", SAID, {}),
    ],
    "recited_labels": [
        ("sift_ssp", "Your age is just a number: enjoy it.", SAID, {}),
        ("sift_ssp", "Pick up the pace, and the keys will turn up.", SAID, {}),
        (SIT, "Sounds like a man saying 'emotion: happy' flatly.", "emotion: happy", {}),
    ],
    "describes_audio": [
        ("sift_s", "Sounds like you had a rough morning.", SAID, {}),
        ("sift_ssp", "You sound upset, I'm sorry.", SAID, {}),
        ("sift_s", "That sets the tone for the day.", SAID, {}),
    ],
    "copied_transcript": [
        ("sift_s", "Hello!", "hello.", {}),
        ("sift_s", "Oh no, not the keys again! Have you looked in your coat?", SAID, {}),
        ("sift_ssp", "They did fine? Plants love light.", LONG, {}),
    ],
    "wrong_tone": [
        ("sift_ssp", "Congratulations, that's wonderful!", "i got the job!", {"emotion": "happy"}),
        ("sift_ssp", "I'm sorry to hear that.", SAID, {"emotion": "sad"}),
        ("sift_ssp", "That's great to know.", SAID, {"emotion": "neutral"}),
    ],
    "no_quote": [
        (SIT, "Sounds like a man saying 'i lost my keys again.'", SAID, {}),
        (SIT, 'Sounds like a man saying "i lost my keys again."', SAID, {}),
        (SIT, "Sounds like a man saying ‘don’t do it’ loudly.", "don't do it", {}),
    ],
    "wrong_quote": [
        (SIT, "Sounds like a man saying 'I lost my keys, again!'", SAID, {}),
        (SIT, 'Sounds like a man saying "we moved the plants to the other window and they did well."', LONG, {}),
        (SIT, "Sounds like a man.", SAID, {}),
    ],
    "wrong_gender": [
        (SIT, "Sounds like an angry man saying 'woman!'", "woman!", {"gender": "male"}),
        (SIT, "Sounds like a woman saying 'no'.", "no", {"gender": "female"}),
        (SIT, "Sounds like someone saying 'no'.", "no", {"gender": "female"}),
    ],
    "invented_gender": [
        (SIT, "Sounds like a speaker saying 'man!'", "man!", {}),
        (SIT, "Sounds like a man saying 'no'.", "no", {"gender": "male"}),
        (SIT, "Sounds like a person saying 'no'.", "no", {}),
    ],
    "wrong_emotion": [
        (SIT, "Sounds like a furious man saying 'no'.", "no", {"emotion": "angry"}),
        (SIT, "Sounds like a man saying 'i am so happy'.", "i am so happy", {"emotion": "angry"}),
        (SIT, "Sounds like an angry, frustrated and sad man saying 'no'.", "no", {"emotion": "angry"}),
        (SIT, "Sounds like a sad, not angry man saying 'no'.", "no", {"emotion": "sad"}),
    ],
    "invented_age": [
        (SIT, "Sounds like a young man saying 'no'.", "no", {"age": "young adult"}),
        (SIT, "Sounds like a man saying 'my old man'.", "my old man", {}),
        (SIT, "Sounds like a golden voice saying 'no'.", "no", {}),
    ],
    "invented_accent": [
        (SIT, "Sounds like a man with a scottish accent saying 'no'.", "no", {"accent": "scottish english"}),
        (SIT, "Sounds like a man saying 'nice accent'.", "nice accent", {}),
        (SIT, "Sounds like an accentuated 'no'.", "no", {}),
    ],
    "too_long": [
        ("sift_s", "word " * 60, SAID, {}),
        ("sift_ssp", "Short.", SAID, {}),
        (SIT, "Sounds like " + "word " * 80, SAID, {}),
    ],
    "no_emotion": [
        (SIT, "Sounds like an angry man saying 'no'.", "no", {"emotion": "angry"}),
        (SIT, "Sounds like a sad man saying 'no'.", "no", {"emotion": "angry"}),
        (SIT, "Sounds like a man saying 'no'.", "no", {}),
    ],
    "invented_emotion": [
        (SIT, "Sounds like an angry man saying 'no'.", "no", {"emotion": "angry"}),
        (SIT, "Sounds like a calm man saying 'no'.", "no", {}),
        (SIT, "Sounds like a man saying 'i am sad'.", "i am sad", {}),
    ],
    "invented_pace_or_volume": [
        (SIT, "Sounds like a man loudly saying 'no'.", "no", {"volume": "loud"}),
        (SIT, "Sounds like a man saying 'slow down'.", "slow down", {}),
        (SIT, "Sounds like a man saying 'no' in a harsh voice.", "no", {}),
    ],
}
SOFT_BAD = {
    "refusal": [
        ("sift_s", "As an AI, I have no keys.", SAID, {}),
        ("sift_ssp", "I'm sorry, but I can't hear the audio.", SAID, {}),
        ("sift_ssp", "Based on the transcript provided, you lost your keys.", SAID, {}),
        ("sift_ssp", "I don't have access to audio.", SAID, {}),
    ],
    "copied_prompt": [
        ("sift_s", "I respond warmly and briefly to what they tell you.", SAID, {}),
        ("sift_s", "You are the user's friend. Respond warmly and briefly.", SAID, {}),
        ("sift_ssp", "Don't describe the audio, just respond to it naturally.", SAID, {}),
    ],
    "copied_example": [
        (SIT, "Sounds like an angry man saying 'leave me alone' in a harsh voice.", SAID, {"emotion": "angry"}),
        (SIT, "Sounds like a woman saying “Leave me alone!”", SAID, {}),
        (SIT, "Sounds like 'leave me alone'.", None, {}),
    ],
    "several_sentences": [
        (SIT, "Sounds like a man. He is angry.", SAID, {}),
        (SIT, "Sounds like a man saying 'no'! The voice is harsh.", "no", {}),
        (SIT, "Sounds like a man saying 'no'.\n\nsad", "no", {}),
    ],
    "recited_labels": [
        ("sift_ssp", "Gender: male, emotion: sad. I am sorry.", SAID, {}),
        (SIT, "Sounds like age: young adult, saying 'no'.", "no", {}),
        ("sift_s", "volume: quiet", SAID, {}),
    ],
    "describes_audio": [
        ("sift_s", "The audio is about keys.", SAID, {}),
        ("sift_ssp", "You said that in a sad voice.", SAID, {}),
        ("sift_ssp", "Sounds like a sad man who lost his keys.", SAID, {}),
        ("sift_s", "I can tell by your tone that you are cross.", SAID, {}),
    ],
    "copied_transcript": [
        ("sift_s", "I lost my keys again.", SAID, {}),
        ("sift_ssp", "We moved the plants to the other window, and they did fine!", LONG, {}),
        ("sift_s", "You moved the plants to the other window and they did fine.", LONG, {}),
    ],
    "wrong_tone": [
        ("sift_ssp", "I'm so sorry to hear that.", "i got the job!", {"emotion": "happy"}),
        ("sift_ssp", "Congratulations!", SAID, {"emotion": "sad"}),
        ("sift_ssp", "That's wonderful news.", SAID, {"emotion": "angry"}),
    ],
    "no_quote": [
        (SIT, "Sounds like a man who lost his keys.", SAID, {}),
        (SIT, "Sounds like a man's voice, isn't it", SAID, {}),
        (SIT, "Sounds like", SAID, {}),
    ],
    "wrong_quote": [
        (SIT, "Sounds like a man saying 'i found my wallet'.", SAID, {}),
        (SIT, "Sounds like a man saying 'i lost'.", SAID, {}),
        (SIT, 'Sounds like a man saying "the plants are dead"', LONG, {}),
    ],
    "wrong_gender": [
        (SIT, "Sounds like an angry man saying 'no'.", "no", {"gender": "female"}),
        (SIT, "Sounds like a young lady saying 'no'.", "no", {"gender": "male"}),
        (SIT, "Sounds like a female voice saying 'no'.", "no", {"gender": "male"}),
    ],
    "invented_gender": [
        (SIT, "Sounds like a man saying 'no'.", "no", {}),
        (SIT, "Sounds like a girl saying 'no'.", "no", {"gender": None}),
        (SIT, "Sounds like a male voice saying 'no'.", "no", {"emotion": "sad"}),
    ],
    "wrong_emotion": [
        (SIT, "Sounds like a cheerful man saying 'no'.", "no", {"emotion": "angry"}),
        (SIT, "Sounds like an angry man saying 'no'.", "no", {"emotion": "neutral"}),
        (SIT, "Sounds like a terrified man saying 'no'.", "no", {"emotion": "happy"}),
    ],
    "invented_age": [
        (SIT, "Sounds like an elderly man saying 'no'.", "no", {}),
        (SIT, "Sounds like a young woman saying 'no'.", "no", {"gender": "female"}),
        (SIT, "Sounds like a child saying 'no'.", "no", {}),
    ],
    "invented_accent": [
        (SIT, "Sounds like a man with a scottish accent saying 'no'.", "no", {}),
        (SIT, "Sounds like heavily accented speech: 'no'.", "no", {}),
        (SIT, "Sounds like a person without an accent saying 'no'.", "no", {"accent": None}),
    ],
    "too_long": [
        ("sift_s", "word " * 61, SAID, {}),
        ("sift_ssp", "word " * 100, SAID, {}),
        ("sift_s", "a b " * 40, None, {}),
    ],
    "no_emotion": [
        (SIT, "Sounds like a man saying 'no'.", "no", {"emotion": "angry"}),
        (SIT, "Sounds like a man saying 'i am angry'.", "i am angry", {"emotion": "angry"}),
        (SIT, "Sounds like a person in a not angry mood: 'no'.", "no", {"emotion": "angry"}),
    ],
    "invented_emotion": [
        (SIT, "Sounds like an angry man saying 'no'.", "no", {}),
        (SIT, "Sounds like a cheerful woman saying 'no'.", "no", {"gender": "female"}),
        (SIT, "Sounds like a scared child saying 'no'.", "no", {"emotion": None}),
    ],
    "invented_pace_or_volume": [
        (SIT, "Sounds like a man shouting 'no'.", "no", {}),
        (SIT, "Sounds like a man quickly saying 'no'.", "no", {}),
        (SIT, "Sounds like a whispered 'no'.", "no", {"pace": None}),
    ],
}


def answer_of(case: tuple[str, str, str | None, dict[str, str | None]]) -> Answer:
    mode, text, transcript, labels = case
    return Answer(mode, text, "stop", transcript, labels, MODES[mode].system_prompt)


def test_every_rule_has_examples() -> None:
    assert set(RULES) == set(GOOD) | set(SOFT_GOOD) == set(BAD) | set(SOFT_BAD)
    cases = (*GOOD.values(), *BAD.values(), *SOFT_GOOD.values(), *SOFT_BAD.values())
    assert all(len(examples) >= 3 for examples in cases)
    assert {name for name, rule in RULES.items() if rule.hard} >= HARD


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule, cases in SOFT_GOOD.items() for case in cases])
def test_answers_that_keep_a_rule(rule: str, case: tuple[str, str, str | None, dict[str, str | None]]) -> None:
    answer = answer_of(case)
    applies = RULES[rule].modes is None or answer.mode in RULES[rule].modes
    assert not (applies and RULES[rule].broken(answer))


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule, cases in SOFT_BAD.items() for case in cases])
def test_answers_that_break_a_rule(rule: str, case: tuple[str, str, str | None, dict[str, str | None]]) -> None:
    answer = answer_of(case)
    assert RULES[rule].broken(answer)
    only_this = {name: "off" for name, other in RULES.items() if name != rule}
    assert judge(answer, {**only_this, rule: "reject"}) == rule
    assert warnings(answer, {**only_this, rule: "warn"}) == [rule]
    assert judge(answer, {**only_this, rule: "off"}) == "accepted"


def test_the_specifications_own_examples_are_accepted() -> None:
    labels = {"age": "young adult", "gender": "male", "emotion": "angry"}
    text = 'Sounds like an angry young male saying "leave me alone" in a harsh, frustrated voice.'
    assert judge(answer_of((SIT, text, "leave me alone", labels))) == "accepted"
    text = "Oh no, that's frustrating! Have you checked your coat pockets?"
    assert judge(answer_of(("sift_ssp", text, SAID, {"gender": "male", "emotion": "sad"}))) == "accepted"
    text = "That's wonderful news! Congratulations on your new position!"
    assert judge(answer_of(("sift_s", text, "i got the job!", {"emotion": "happy"}))) == "accepted"


def test_hard_rules_cannot_be_loosened_and_rules_are_known_by_name() -> None:
    check_severities({"too_long": "reject", "wrong_quote": "off", "empty": "reject"})
    with pytest.raises(BadInputError, match="'leaked_tag' is a hard rule"):
        check_severities({"leaked_tag": "warn"})
    with pytest.raises(BadInputError, match="no rule 'nosuch'"):
        check_severities({"nosuch": "off"})


def test_who_judged_changes_with_the_severities_only() -> None:
    assert rules_identity({}) == rules_identity({"too_long": "warn"})
    assert rules_identity({}) != rules_identity({"too_long": "reject"})


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule, cases in GOOD.items() for case in cases])
def test_good_answers_pass(rule: str, case: tuple[str, str, str]) -> None:
    mode, text, finish_reason = case
    applies = RULES[rule].modes is None or mode in RULES[rule].modes
    assert not (applies and RULES[rule].broken(Answer(mode, text, finish_reason)))
    assert judge(Answer(mode, text, finish_reason), SOFT_OFF) == "accepted"


@pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule, cases in BAD.items() for case in cases])
def test_bad_answers_are_named(rule: str, case: tuple[str, str, str]) -> None:
    mode, text, finish_reason = case
    assert RULES[rule].broken(Answer(mode, text, finish_reason))
    assert judge(Answer(mode, text, finish_reason), SOFT_OFF) == rule


def test_the_first_broken_rule_is_the_verdict() -> None:
    assert judge(Answer("sit_ssp", "<think>", "length")) == "leaked_tag"
    assert judge(Answer("sit_ssp", "It is", "length", transcript="it is")) == "truncated"
