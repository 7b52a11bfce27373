"""What the accepted answers of a mode look like as a whole: lengths, repetition, openings, agreement with labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from include.quality.rules import Answer, Severity, warnings

OPENING_WORDS = 3


def measure(answers: Sequence[Answer], severities: Mapping[str, Severity]) -> dict[str, float]:
    """Measure N accepted answers of one mode.

    Args:
        answers: N answers.
        severities: Severities by rule, instead of the rules' own; rules that warn are counted.

    Returns:
        Measure -> value; none for no answers. `answers` is N; `words_mean` and `words_p95` are lengths; `distinct_1` to
        `distinct_3` are distinct n-grams by all n-grams (1: nothing is said twice); `duplicates` is the share of
        answers that an earlier one says as well; `same_opening` is the share of the most frequent first three words;
        `emotion_named` and `emotion_agrees` are shares of the answers whose clip has an emotion; `warn_<rule>` are
        shares of all.
    """
    if not answers:
        return {}
    count = len(answers)
    texts = [answer.text.lower().split() for answer in answers]
    lengths = sorted(map(len, texts))
    measures = {
        "answers": float(count),
        "words_mean": sum(lengths) / count,
        "words_p95": float(lengths[min(count - 1, int(0.95 * count))]),
        "duplicates": 1 - len({answer.text for answer in answers}) / count,
        "same_opening": Counter(tuple(words[:OPENING_WORDS]) for words in texts).most_common(1)[0][1] / count,
    }
    for size in (1, 2, 3):
        grams = [tuple(words[at : at + size]) for words in texts for at in range(len(words) - size + 1)]
        if grams:
            measures[f"distinct_{size}"] = len(set(grams)) / len(grams)
    labelled = [answer for answer in answers if answer.labels.get("emotion")]
    named = [answer for answer in labelled if answer.emotions]
    if labelled and answers[0].mode == "sit_ssp":
        measures["emotion_named"] = len(named) / len(labelled)
        agreeing = sum(answer.labels["emotion"] in answer.emotions for answer in named)
        measures["emotion_agrees"] = agreeing / len(labelled)
    warned = Counter(name for answer in answers for name in warnings(answer, severities))
    return measures | {f"warn_{name}": rows / count for name, rows in sorted(warned.items())}
