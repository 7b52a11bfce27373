"""Label to label: a published value -> the canonical value of the specification.

Each `canonical_*` is a plain function of one published string, already stripped and lower-cased by
`columns.map_labels`, which calls it once per distinct value. A value that a table maps to None is known to have no
canonical form; a value that no table knows raises UnmappedLabelError, so that it is counted and seen.
"""

from __future__ import annotations

from collections.abc import Mapping


class UnmappedLabelError(ValueError):
    """A published label that no table knows."""


MISSING = frozenset({"", "nan", "none", "null", "n/a", "na", "unknown", "unk"})
"""Spellings of "no value", after strip and lower; they become NULL without being counted as unmapped."""

# Published spelling -> canonical, "_" and "-" as blanks. Classes that only one corpus has stand in its module
# (docs/decisions/0003-labels.md).
_EMOTIONS: dict[str, str | None] = {
    **dict.fromkeys(("angry", "anger"), "angry"),
    **dict.fromkeys(("happy", "happiness", "joy"), "happy"),
    **dict.fromkeys(("sad", "sadness"), "sad"),
    **dict.fromkeys(
        ("surprise", "surprised", "ps", "pleasant surprise", "pleasant surprised", "pleasantly surprised"), "surprise"
    ),
    "neutral": "neutral",
    **dict.fromkeys(("fear", "fearful"), "fear"),
    **dict.fromkeys(("disgust", "disgusted"), "disgust"),
}

_GENDERS: dict[str, str | None] = {
    **dict.fromkeys(("male", "m", "male masculine", "man"), "male"),
    **dict.fromkeys(("female", "f", "female feminine", "woman"), "female"),
    # Common Voice's other answers: known, and outside the specification's two.
    **dict.fromkeys(("other", "transgender", "non binary", "do not wish to say", "intersex"), None),
}

# Common Voice's decades; "fourties" is the corpus's own spelling.
_AGES: dict[str, str | None] = {
    **dict.fromkeys(("teens", "teenager"), "teenager"),
    **dict.fromkeys(("twenties", "thirties", "young adult"), "young adult"),
    **dict.fromkeys(("fourties", "forties", "fifties", "middle age adult"), "middle-age adult"),
    **dict.fromkeys(("sixties", "seventies", "eighties", "nineties", "senior"), "senior"),
}

# Upper bounds of the numeric ages, in years (exclusive).
# Source: the reference generator's age_to_group, which has no upper limit; 120 is ours.
_AGE_BOUNDS = ((18, "teenager"), (40, "young adult"), (60, "middle-age adult"), (120.000001, "senior"))


def canonical_emotion(label: str, also: Mapping[str, str | None] | None = None) -> str | None:
    """Map an emotion label to one of the seven.

    Args:
        label: As published, stripped and lower-cased.
        also: Classes that only this corpus has -> one of the seven, or None.

    Raises:
        UnmappedLabelError: If no table knows it.
    """
    return _looked_up({**_EMOTIONS, **also} if also else _EMOTIONS, label)


def canonical_gender(label: str) -> str | None:
    """Map a gender label to male, female or None.

    Raises:
        UnmappedLabelError: If no table knows it.
    """
    return _looked_up(_GENDERS, label)


def canonical_age(label: str) -> str | None:
    """Map an age, a decade in words or a number of years, to one of the four groups.

    Raises:
        UnmappedLabelError: If it is neither, or not between 0 and 120 years.
    """
    try:
        years = float(label)
    except ValueError:
        return _looked_up(_AGES, label)
    if years > 0:
        for bound, group in _AGE_BOUNDS:
            if years < bound:
                return group
    raise UnmappedLabelError(label)


def _looked_up(table: Mapping[str, str | None], label: str) -> str | None:
    spelled = " ".join(label.replace("_", " ").replace("-", " ").split())
    if spelled not in table:
        raise UnmappedLabelError(label)
    return table[spelled]
