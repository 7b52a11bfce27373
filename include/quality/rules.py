"""Hard rules: what no published response may show. One small function per rule, True where the rule is broken.

These are never loosened by a profile. A rejected response is tried again with another seed, then given up and
counted; its text is never edited into passing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

RULES_VERSION = 1
"""Raised with every change of a verdict; current responses are then judged again, without a GPU."""

ACCEPTED = "accepted"

# C0 and C1 control characters besides tab and line ends, the replacement character, lone surrogates, noncharacters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffd-\uffff\ud800-\udfff]")

# Tags of our own prompts even when cut short; special tokens in the `<|name|>` form; and any whole `<name>`, which
# is the other form of special tokens (`<repo_name>`, `<tool_call>`, `</s>`) and has no place in speech either.
_TAG = re.compile(r"</?\s*(?:think|audio|meta|text)\b|<\|[^|<>\n]*\|>|</?[a-z]\w*\s*/?>|\[/?INST\]", re.IGNORECASE)

_PROMPT_TEXT = re.compile(r"## Metadata|## Custom Instructions|Reasoning Mode|/no_think", re.IGNORECASE)
_ROLE_ECHO = re.compile(r"^[\s*_#>]*(?:user|assistant|system)[*_]*\s*:", re.IGNORECASE | re.MULTILINE)

_SOUNDS_LIKE = re.compile(r"Sounds like\b")

Rule = Callable[[str, str, str | None, str], bool]
"""(mode, response text, transcript or None, finish_reason) -> whether the rule is broken."""


def empty(mode: str, text: str, transcript: str | None, finish_reason: str) -> bool:
    """Nothing but white space."""
    return not text.strip()


def unprintable(mode: str, text: str, transcript: str | None, finish_reason: str) -> bool:
    """A control or replacement character, or half of a surrogate pair."""
    return _UNPRINTABLE.search(text) is not None


def leaked_tag(mode: str, text: str, transcript: str | None, finish_reason: str) -> bool:
    """A tag of the prompt or a special token: `<audio>` in a target breaks the consumer's training."""
    return _TAG.search(text) is not None


def leaked_prompt(mode: str, text: str, transcript: str | None, finish_reason: str) -> bool:
    """Words of the chat template, or a line that starts a turn of a role."""
    return (_PROMPT_TEXT.search(text) or _ROLE_ECHO.search(text)) is not None


def truncated(mode: str, text: str, transcript: str | None, finish_reason: str) -> bool:
    """Cut by the token limit; trained on as it is, it would teach answers that stop in the middle."""
    return finish_reason == "length"


def not_sounds_like(mode: str, text: str, transcript: str | None, finish_reason: str) -> bool:
    """A description that does not start with the words its prompt asks for."""
    return mode == "sit_ssp" and _SOUNDS_LIKE.match(text) is None


RULES: dict[str, Rule] = {
    rule.__name__: rule for rule in (empty, unprintable, leaked_tag, leaked_prompt, truncated, not_sounds_like)
}
"""Rules by name, in the order they are applied; a verdict names the first one broken."""


def judge(mode: str, text: str, finish_reason: str, transcript: str | None = None) -> str:
    """Judge one answer.

    Args:
        mode: Mode that asked, e.g. "sit_ssp".
        text: The answer after `clean_answer`.
        finish_reason: "stop", "sentences" or "length".
        transcript: What was said, for rules that compare with it; None where it is not at hand.

    Returns:
        "accepted", or the name of the first rule broken.

    Source:
        The hard rules that every mode shares, and the required opening of `sit_ssp` from the specification's prompt.
    """
    for name, broken in RULES.items():
        if broken(mode, text, transcript, finish_reason):
            return name
    return ACCEPTED
