"""Rules that an answer must keep. One small function per rule, True where the rule is broken.

A rule of severity "reject" keeps an answer out: it is tried again with another seed, then given up and counted; a text
is never edited into passing. "warn" counts it in the quality report, "off" does not look. Settings may change a
severity (`SIFT_RULE_SEVERITIES`), but not that of a hard rule.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from include.quality.lexicon import EMOTION_WORDS, FEMALE_WORDS, MALE_WORDS, NEGATIONS
from include.schema import BadInputError

RULES_VERSION = 2
"""Raised with every change that can change a verdict; current responses are then judged again, without a GPU."""

ACCEPTED = "accepted"
LONGEST_REPLY_WORDS = 60
COPIED_WORDS = 8
# A transcript of fewer words may well be answered in the same ones ("Hello!").
SHORTEST_COPY_WORDS = 5
COPY_ROUGE_L = 0.8
QUOTE_WER = 0.2

Severity = Literal["reject", "warn", "off"]

# C0 and C1 control characters besides tab and line ends, the replacement character, lone surrogates, noncharacters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffd-\uffff\ud800-\udfff]")

# Tags of our own prompts even when cut short; special tokens in the `<|name|>` form; and any whole `<name>`, which
# is the other form of special tokens (`<repo_name>`, `<tool_call>`, `</s>`) and has no place in speech either.
_TAG = re.compile(r"</?\s*(?:think|audio|meta|text)\b|<\|[^|<>\n]*\|>|</?[a-z]\w*\s*/?>|\[/?INST\]", re.IGNORECASE)

_PROMPT_TEXT = re.compile(r"## Metadata|## Custom Instructions|Reasoning Mode|/no_think", re.IGNORECASE)
_ROLE_ECHO = re.compile(r"^[\s*_#>]*(?:user|assistant|system)[*_]*\s*:", re.IGNORECASE | re.MULTILINE)
_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|language model|text-based)\b"
    r"|\bi (?:can(?:no|')?t|am unable to|'m unable to|am not able to|'m not able to) (?:actually )?(?:hear|listen)"
    r"|\bi (?:don't|do not) have (?:access to|the ability to hear)"
    r"|\bbased on the (?:metadata|meta data|transcript|text) (?:provided|given)",
    re.IGNORECASE,
)
_LABEL_LIST = re.compile(r"\b(?:gender|emotion|pace|volume|accent|age)\s*:\s*\w", re.IGNORECASE)
_SOUNDS_LIKE = re.compile(r"Sounds like\b")
_NEXT_SENTENCE = re.compile(r"[.!?…][)\]]*\s+[\"'“‘(]*[A-Z]")
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|‘(.+?)’(?!\w)|(?<!\w)'(.+?)'(?!\w)", re.DOTALL)
_AUDIO_TALK = re.compile(
    r"\bthe (?:audio|recording|clip|speaker)\b|\b(?:this|your) (?:audio|recording|clip)\b"
    r"|\bin an? [\w-]+(?: [\w-]+)? (?:voice|tone)\b|\b(?:male|female) (?:voice|speaker)\b|\byour (?:voice|tone)\b"
    r"|^sounds like an? [^.!?]*\b(?:man|woman|male|female|person|speaker|girl|boy)\b",
    re.IGNORECASE,
)
_CONDOLENCE = re.compile(
    r"\bsorry (?:to hear|for your loss)|\bcondolences\b|\bthat must be (?:hard|tough|difficult)", re.I
)
_APPLAUSE = re.compile(
    r"\bcongratulat|\bso happy for you\b"
    r"|\b(?:that's|that is|sounds) (?:great|wonderful|fantastic|awesome|amazing)\b",
    re.IGNORECASE,
)
_AGE_CLAIM = re.compile(r"\b(?:young|old|elderly|middle-aged|teenage[rd]?|senior|child|kid)\b", re.IGNORECASE)
_ACCENT_CLAIM = re.compile(r"\baccent(?:ed)?\b", re.IGNORECASE)
_PACE_OR_VOLUME_CLAIM = re.compile(
    r"\b(?:slow(?:ly)?|fast|quick(?:ly)?|rapid(?:ly)?|hurried|quiet(?:ly)?|loud(?:ly)?|whisper\w*|shout\w*)\b", re.I
)
_WORD = re.compile(r"[\w']+")


@dataclass(frozen=True)
class Answer:
    """One answer, and what it is judged against.

    Attributes:
        mode: Mode that asked, e.g. "sit_ssp".
        text: The answer after `clean_answer`.
        finish_reason: As `Response` has it.
        transcript: What was said; None where it is not at hand.
        labels: Canonical labels of the clip that the prompt showed; missing ones are absent or None.
        system_prompt: What the mode told the model.
    """

    mode: str
    text: str
    finish_reason: str
    transcript: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)
    system_prompt: str = ""

    @cached_property
    def quotes(self) -> list[str]:
        """Quoted spans, in order."""
        return [next(filter(None, match.groups())) for match in _QUOTED.finditer(self.text)]

    @cached_property
    def own_words(self) -> str:
        """The text without its quoted spans: what the model says itself."""
        return _QUOTED.sub(" ", self.text)

    @cached_property
    def emotions(self) -> frozenset[str]:
        """Emotions that the model's own words name."""
        return named_emotions(self.own_words)


@dataclass(frozen=True)
class Rule:
    """A rule with its name, the modes it applies to (None: all) and its severity; a hard one is never loosened."""

    name: str
    broken: Callable[[Answer], bool]
    modes: tuple[str, ...] | None
    severity: Severity
    hard: bool

    def applies_to(self, mode: str) -> bool:
        """Whether answers of a mode must keep it."""
        return self.modes is None or mode in self.modes

    def severity_under(self, severities: Mapping[str, Severity]) -> Severity:
        """Its severity where settings may name another one than its own."""
        return severities.get(self.name, self.severity)


RULES: dict[str, Rule] = {}
"""Rules by name, in the order they are applied; a verdict names the first one broken."""

_REPLIES = ("sift_s", "sift_ssp")
_DESCRIPTIONS = ("sit_ssp",)


def _rule(
    modes: tuple[str, ...] | None = None, severity: Severity = "reject", hard: bool = False
) -> Callable[[Callable[[Answer], bool]], Callable[[Answer], bool]]:
    def register(broken: Callable[[Answer], bool]) -> Callable[[Answer], bool]:
        RULES[broken.__name__] = Rule(broken.__name__, broken, modes, severity, hard)
        return broken

    return register


@_rule(hard=True)
def refused_prompt(answer: Answer) -> bool:
    """No answer at all: the model server would not read this one prompt, too long for it, say."""
    return answer.finish_reason == "refused"


@_rule(hard=True)
def empty(answer: Answer) -> bool:
    """Nothing but white space."""
    return not answer.text.strip()


@_rule(hard=True)
def unprintable(answer: Answer) -> bool:
    """A control or replacement character, or half of a surrogate pair."""
    return _UNPRINTABLE.search(answer.text) is not None


@_rule(hard=True)
def leaked_tag(answer: Answer) -> bool:
    """A tag of the prompt or a special token: `<audio>` in a target breaks the consumer's training."""
    return _TAG.search(answer.text) is not None


@_rule(hard=True)
def leaked_prompt(answer: Answer) -> bool:
    """Words of the chat template, or a line that starts a turn of a role."""
    return (_PROMPT_TEXT.search(answer.text) or _ROLE_ECHO.search(answer.text)) is not None


@_rule(hard=True)
def truncated(answer: Answer) -> bool:
    """Cut by the token limit; trained on as it is, it would teach answers that stop in the middle."""
    return answer.finish_reason == "length"


@_rule(hard=True)
def refusal(answer: Answer) -> bool:
    """A denial that it can hear, or talk of the text that it was given instead."""
    return _REFUSAL.search(answer.text) is not None


@_rule(hard=True)
def copied_prompt(answer: Answer) -> bool:
    """Eight words in a row of what the mode told the model, its example aside (that is the next rule's)."""
    told = answer.system_prompt.partition("Example:")[0]
    return bool(_windows(told) & _windows(answer.text)) if told else False


@_rule(modes=_DESCRIPTIONS, hard=True)
def copied_example(answer: Answer) -> bool:
    """The quotation of the prompt's own example, for a clip that does not say it."""
    example = "leave me alone"
    return example in _normalised(answer.text) and example not in _normalised(answer.transcript or "")


@_rule(modes=_DESCRIPTIONS, hard=True)
def not_sounds_like(answer: Answer) -> bool:
    """A description that does not start with the words its prompt asks for."""
    return _SOUNDS_LIKE.match(answer.text) is None


@_rule(modes=_DESCRIPTIONS, hard=True)
def several_sentences(answer: Answer) -> bool:
    """A description of more than one sentence; what the clip says does not count."""
    return _NEXT_SENTENCE.search(answer.own_words) is not None or "\n\n" in answer.text


@_rule()
def recited_labels(answer: Answer) -> bool:
    """The labels as a list, as they stand in the prompt."""
    return _LABEL_LIST.search(answer.own_words) is not None


@_rule(modes=_REPLIES)
def describes_audio(answer: Answer) -> bool:
    """A reply that talks about the recording or the voice instead of answering."""
    return _AUDIO_TALK.search(answer.text) is not None


@_rule(modes=_REPLIES)
def copied_transcript(answer: Answer) -> bool:
    """A reply that says the clip's own words back (ROUGE-L of 0.8 and more)."""
    said, replied = _words(answer.transcript or ""), _words(answer.text)
    if len(said) < SHORTEST_COPY_WORDS or not replied:
        return False
    common = _longest_common_subsequence(said, replied)
    return 2 * common / (len(said) + len(replied)) >= COPY_ROUGE_L


@_rule(modes=("sift_ssp",))
def wrong_tone(answer: Answer) -> bool:
    """Condolence for a happy clip, or applause for a sad, angry, fearful or disgusted one."""
    emotion = answer.labels.get("emotion")
    if emotion == "happy":
        return _CONDOLENCE.search(answer.text) is not None
    return emotion in ("sad", "angry", "fear", "disgust") and _APPLAUSE.search(answer.text) is not None


@_rule(modes=_DESCRIPTIONS)
def no_quote(answer: Answer) -> bool:
    """A description that does not quote what was said."""
    return not answer.quotes


@_rule(modes=_DESCRIPTIONS)
def wrong_quote(answer: Answer) -> bool:
    """A quotation that is not what was said (word error rate above 0.2)."""
    if not answer.quotes or not answer.transcript:
        return False
    said = _words(answer.transcript)
    spans = [*answer.quotes, " ".join(answer.quotes)]
    return bool(said) and min(_edit_distance(said, _words(span)) for span in spans) > QUOTE_WER * len(said)


@_rule(modes=_DESCRIPTIONS)
def wrong_gender(answer: Answer) -> bool:
    """A man called a woman, or a woman a man."""
    other = {"male": FEMALE_WORDS, "female": MALE_WORDS}.get(answer.labels.get("gender") or "", frozenset())
    return not other.isdisjoint(_words(answer.own_words))


@_rule(modes=_DESCRIPTIONS)
def invented_gender(answer: Answer) -> bool:
    """A gender that no label gives."""
    named = MALE_WORDS | FEMALE_WORDS
    return not answer.labels.get("gender") and not named.isdisjoint(_words(answer.own_words))


@_rule(modes=_DESCRIPTIONS)
def wrong_emotion(answer: Answer) -> bool:
    """Another emotion than the label's, and the label's not at all."""
    emotion = answer.labels.get("emotion")
    return bool(emotion and answer.emotions and emotion not in answer.emotions)


@_rule(modes=_DESCRIPTIONS)
def invented_age(answer: Answer) -> bool:
    """An age that no label gives."""
    return not answer.labels.get("age") and _AGE_CLAIM.search(answer.own_words) is not None


@_rule(modes=_DESCRIPTIONS)
def invented_accent(answer: Answer) -> bool:
    """An accent that no label gives."""
    return not answer.labels.get("accent") and _ACCENT_CLAIM.search(answer.own_words) is not None


@_rule(modes=_REPLIES, severity="warn")
def too_long(answer: Answer) -> bool:
    """A reply of more than 60 words, where brevity was asked for."""
    return len(_words(answer.text)) > LONGEST_REPLY_WORDS


@_rule(modes=_DESCRIPTIONS, severity="warn")
def no_emotion(answer: Answer) -> bool:
    """A description that names no emotion although the label gives one."""
    return bool(answer.labels.get("emotion")) and not answer.emotions


@_rule(modes=_DESCRIPTIONS, severity="warn")
def invented_emotion(answer: Answer) -> bool:
    """An emotion that no label gives; the prompt asks for one whether there is a label or not."""
    return not answer.labels.get("emotion") and bool(answer.emotions - {"neutral"})


@_rule(modes=_DESCRIPTIONS, severity="warn")
def invented_pace_or_volume(answer: Answer) -> bool:
    """A pace or a volume that no label gives; the prompt asks for the quality of a voice it knows nothing of."""
    known = answer.labels.get("pace") or answer.labels.get("volume")
    return not known and _PACE_OR_VOLUME_CLAIM.search(answer.own_words) is not None


def judge(answer: Answer, severities: Mapping[str, Severity] | None = None) -> str:
    """Judge one answer.

    Args:
        answer: The answer.
        severities: Severities by rule, instead of the rules' own.

    Returns:
        "accepted", or the name of the first rule broken whose severity is "reject".

    Source:
        The rules that every mode shares, the required opening of `sit_ssp` from the specification's prompt, and the
        agreement of a description with its labels.
    """
    return next(iter(_broken(answer, "reject", severities or {})), ACCEPTED)


def warnings(answer: Answer, severities: Mapping[str, Severity] | None = None) -> list[str]:
    """Name the rules broken whose severity is "warn"."""
    return list(_broken(answer, "warn", severities or {}))


def check_severities(severities: Mapping[str, Severity]) -> None:
    """Refuse severities of rules that are not there, and loosened hard rules.

    Raises:
        BadInputError: Naming the rule.
    """
    for name, severity in severities.items():
        if name not in RULES:
            raise BadInputError(f"SIFT_RULE_SEVERITIES: there is no rule {name!r}; there are {', '.join(RULES)}")
        if RULES[name].hard and severity != "reject":
            raise BadInputError(f"SIFT_RULE_SEVERITIES: {name!r} is a hard rule and always rejects")


def rules_identity(severities: Mapping[str, Severity]) -> str:
    """Name what judged a response: the rules' version, and a hash of their severities."""
    effective = {name: rule.severity_under(severities) for name, rule in RULES.items()}
    return f"{RULES_VERSION}-{hashlib.sha256(json.dumps(effective, sort_keys=True).encode()).hexdigest()[:8]}"


def named_emotions(text: str) -> frozenset[str]:
    """Emotions that a text names, negated ones aside."""
    words = _words(text)
    return frozenset(
        emotion
        for at, word in enumerate(words)
        if (emotion := EMOTION_WORDS.get(word)) and NEGATIONS.isdisjoint(words[max(0, at - 2) : at])
    )


def _broken(answer: Answer, severity: Severity, severities: Mapping[str, Severity]) -> Sequence[str]:
    return [
        name
        for name, rule in RULES.items()
        if rule.severity_under(severities) == severity and rule.applies_to(answer.mode) and rule.broken(answer)
    ]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("’", "'"))


def _normalised(text: str) -> str:
    return " ".join(_words(text))


def _windows(text: str) -> frozenset[tuple[str, ...]]:
    words = _words(text)
    return frozenset(tuple(words[at : at + COPIED_WORDS]) for at in range(len(words) - COPIED_WORDS + 1))


def _longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for at, against in enumerate(other, 1):
            diagonal, row[at] = row[at], diagonal + 1 if word == against else max(row[at], row[at - 1])
    return row[-1]


def _edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    row = list(range(len(other) + 1))
    for count, word in enumerate(one, 1):
        diagonal, row[0] = row[0], count
        for at, against in enumerate(other, 1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (word != against))
    return row[-1]
