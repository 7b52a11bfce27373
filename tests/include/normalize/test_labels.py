"""Labels that really occur, to the specification's vocabularies."""

from __future__ import annotations

import pytest

from include.normalize.labels import UnmappedLabelError, canonical_age, canonical_emotion, canonical_gender
from include.schema import AGE_GROUPS, EMOTIONS, GENDERS


@pytest.mark.parametrize(
    ("published", "canonical"),
    [
        ("angry", "angry"),
        ("anger", "angry"),
        ("joy", "happy"),
        ("happiness", "happy"),
        ("fearful", "fear"),
        ("surprised", "surprise"),
        ("ps", "surprise"),
        ("pleasant_surprise", "surprise"),
        ("pleasant surprised", "surprise"),
        ("disgusted", "disgust"),
        ("sadness", "sad"),
        ("neutral", "neutral"),
        ("pleasant - surprise", "surprise"),
    ],
)
def test_emotions(published: str, canonical: str) -> None:
    assert canonical_emotion(published) == canonical
    assert canonical in EMOTIONS


def test_a_corpus_may_add_classes_of_its_own() -> None:
    assert canonical_emotion("calm", also={"calm": None}) is None
    assert canonical_emotion("excited", also={"excited": "happy"}) == "happy"
    assert canonical_emotion("joy", also={"excited": "happy"}) == "happy"


@pytest.mark.parametrize("published", ["hangry", "7", "-1", "other", "calm", "true"])
def test_unknown_emotions_are_unmapped(published: str) -> None:
    with pytest.raises(UnmappedLabelError):
        canonical_emotion(published)


@pytest.mark.parametrize(
    ("published", "canonical"),
    [
        ("male", "male"),
        ("male_masculine", "male"),
        ("female_feminine", "female"),
        ("f", "female"),
        ("non-binary", None),
        ("do_not_wish_to_say", None),
        ("transgender", None),
    ],
)
def test_genders(published: str, canonical: str | None) -> None:
    assert canonical_gender(published) == canonical
    assert canonical is None or canonical in GENDERS


@pytest.mark.parametrize(
    ("published", "canonical"),
    [
        ("teens", "teenager"),
        ("twenties", "young adult"),
        ("thirties", "young adult"),
        ("fourties", "middle-age adult"),
        ("forties", "middle-age adult"),
        ("fifties", "middle-age adult"),
        ("sixties", "senior"),
        ("nineties", "senior"),
        ("17", "teenager"),
        ("18", "young adult"),
        ("25.0", "young adult"),
        ("40", "middle-age adult"),
        ("60", "senior"),
        ("120", "senior"),
    ],
)
def test_ages(published: str, canonical: str) -> None:
    assert canonical_age(published) == canonical
    assert canonical in AGE_GROUPS


@pytest.mark.parametrize("published", ["0", "-3", "121", "25-30", "inf", "young"])
def test_ages_that_are_none(published: str) -> None:
    with pytest.raises(UnmappedLabelError):
        canonical_age(published)
