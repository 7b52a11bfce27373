"""From what a model wrote to the answer: thinking stripped, and where a whole sentence ends."""

from __future__ import annotations

import re

_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_TERMINATOR = re.compile(r"""[.!?…]+[*_)\]}"'”’»]*""")  # with the closing marks that belong to the sentence

# A full stop after one of these never ends a sentence: a name or a clause must follow.
_NEVER_LAST = frozenset(["mr", "mrs", "ms", "dr", "prof", "st", "mt", "vs", "e.g", "i.e", "approx", "cf"])
_LIST_NUMBER = re.compile(r"(?:^|\n)\s*\d+\.$")
_INITIAL = re.compile(r"(?:^|[\s.])[A-HJ-Z]\.$")  # "J. Smith", "U.S."; "I." is taken for the pronoun


def clean_answer(text: str) -> str:
    """Strip a model's thinking from its answer.

    Args:
        text: What the model wrote, special tokens left visible.

    Returns:
        The text without `<think>...</think>`, without what follows an unclosed `<think>` or precedes a bare
        `</think>`, stripped of white space at both ends. It may be empty.

    Source:
        The reference generator (lines 626 and 668) strips closed pairs only; the other two forms are what a cut
        answer and a pre-filled think block leave behind.
    """
    text = _THINKING.sub("", text)
    text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0].strip()


def sentence_end(text: str, sentences: int, finished: bool = False) -> int | None:
    """Find where the n-th whole sentence ends.

    A sentence ends at `.`, `!`, `?` or an ellipsis and the closing quotes or brackets behind it, where white space
    follows and then no lower-case letter: 'saying "leave me alone!" in a harsh voice' goes on. Titles, initials and
    the numbers of a list do not end one. So a text still being written shows its end only with the first character
    of what comes next.

    Args:
        text: The answer so far.
        sentences: n, at least 1.
        finished: Nothing more will come, so the end of the text may be the end of a sentence.

    Returns:
        The position just behind the n-th sentence, or None if fewer have ended.
    """
    ended, start = 0, 0
    for match in _TERMINATOR.finditer(text):
        if not _ends_sentence(text, match, finished) or not any(map(str.isalnum, text[start : match.start()])):
            continue
        ended, start = ended + 1, match.end()
        if ended == sentences:
            return start
    return None


def _ends_sentence(text: str, match: re.Match[str], finished: bool) -> bool:
    """Whether the sentence in `text` ends with this terminator."""
    behind = text[match.end() :]
    following = behind.lstrip()
    if not following:
        return finished or "\n" in behind
    if following == behind or ("\n" not in behind[: -len(following)] and following[0].islower()):
        return False
    if not match.group().startswith(".") or match.group().startswith(".."):
        return True
    before = text[: match.start() + 1]
    word = before.split()[-1].rstrip(".").lstrip("(\"'“‘").lower()
    return not (word in _NEVER_LAST or _LIST_NUMBER.search(before) or _INITIAL.search(before))
