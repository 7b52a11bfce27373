"""Gates: what must hold before a release is promoted, with what was measured and what is allowed.

A release that fails one is not promoted, and the one before stays. Every function returns the gates that fail, each
with its own reason, or one gate that says what was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from include.publish.manifest import Gate, ReleaseError, SourceEntry
from include.schema import BadInputError, merge_counts

DEFAULT_LIMIT = "default"
"""Key of a limit that holds for every mode without one of its own."""

READ_BACK = (
    Gate(name="features of every file", measured="as declared", limit="as declared", passed=True),
    Gate(name="datasets opens every split", measured="yes", limit="yes", passed=True),
)
"""What reading the release back checks. The manifest that says so is part of what is read: it is promoted or gone."""


def require(gates: Iterable[Gate], release_id: str) -> None:
    """Refuse a release that fails a gate.

    Raises:
        ReleaseError: Naming every gate that failed, what was found and what is allowed.
    """
    failed = [f"{gate.name}: {gate.measured} (allowed: {gate.limit})" for gate in gates if not gate.passed]
    if failed:
        raise ReleaseError(f"release {release_id} is not promoted; " + "; ".join(failed))


def rows_add_up(sources: Mapping[str, SourceEntry]) -> list[Gate]:
    """Check that no accepted row was lost: train + held out + left out = accepted, in every source."""
    name = "rows: train + held out + left out"
    counts = {
        source: (
            *(entry.splits[split].rows if split in entry.splits else 0 for split in ("train", "heldout")),
            sum(entry.left_out.values()),
            entry.accepted,
        )
        for source, entry in sources.items()
    }
    failed = [
        Gate(
            name=f"{name}, {source}",
            measured=f"{train:,} + {held_out:,} + {left_out:,}",
            limit=f"{accepted:,} accepted rows",
            passed=False,
        )
        for source, (train, held_out, left_out, accepted) in counts.items()
        if train + held_out + left_out != accepted
    ]
    totals = [sum(column) for column in zip((0, 0, 0, 0), *counts.values(), strict=True)]
    found = Gate(
        name=name,
        measured=f"{totals[0]:,} + {totals[1]:,} + {totals[2]:,}",
        limit=f"{totals[3]:,} accepted rows",
        passed=True,
    )
    return failed or [found]


def one_generator(
    modes: Mapping[str, Mapping[str, str]], generators: Mapping[str, str | None], kept: Mapping[str, str]
) -> list[Gate]:
    """Check that one model in one revision wrote everything, and one prompt each mode.

    Args:
        modes: Source -> mode -> mode_hash.
        generators: Source -> "<model>@<revision>", None where the task needs no model.
        kept: Source whose part is that of an earlier release -> why, as "not complete".
    """

    def found(name: str, by_source: Mapping[str, str]) -> Gate:
        sources: dict[str, list[str]] = {}
        for source, value in by_source.items():
            sources.setdefault(value, []).append(f"{source} (kept, {kept[source]})" if source in kept else source)
        if len(sources) <= 1:
            return Gate(name=name, measured=next(iter(sources), "none"), limit="one", passed=True)
        measured = "; ".join(f"{value} for {', '.join(names)}" for value, names in sources.items())
        limit = "one; run until no source is pending, and stage or leave_out those that are not staged"
        return Gate(name=name, measured=measured, limit=limit, passed=False)

    by_mode: dict[str, dict[str, str]] = {}
    for source, hashes in modes.items():
        for mode, mode_hash in hashes.items():
            by_mode.setdefault(mode, {})[source] = mode_hash[:12]
    models = {source: model for source, model in generators.items() if model is not None}
    return [
        found("model and revision", models),
        *(found(f"mode hash, {mode}", by_source) for mode, by_source in sorted(by_mode.items())),
    ]


def given_up(coverage: Iterable[Mapping[str, Any]], limits: Mapping[str, float]) -> list[Gate]:
    """Check, mode by mode, how many samples no attempt could answer well enough.

    Measured are samples, not texts: a sample whose second answer was accepted does not count.

    Args:
        coverage: Rows with `mode`, `staged` and `given_up`, of the complete sources.
        limits: Mode, or DEFAULT_LIMIT -> share of its staged samples that may be given up.

    Raises:
        BadInputError: If a mode has no limit.
    """
    staged: dict[str, int] = {}
    missing: dict[str, int] = {}
    for row in coverage:
        staged = merge_counts(staged, {row["mode"]: row["staged"]})
        missing = merge_counts(missing, {row["mode"]: row["given_up"]})
    gates = []
    for mode, samples in sorted(staged.items()):
        limit = limits.get(mode, limits.get(DEFAULT_LIMIT))
        if limit is None:
            raise BadInputError(
                f"SIFT_MAX_GIVEN_UP has neither a limit for {mode} nor {DEFAULT_LIMIT!r}: {dict(limits)}"
            )
        share = missing[mode] / samples if samples else 0.0
        gates.append(
            Gate(
                name=f"samples given up, {mode}",
                measured=f"{missing[mode]:,} of {samples:,} ({share:.2%})",
                limit=f"{limit:.2%}",
                passed=share <= limit,
            )
        )
    return gates


def unmapped_labels(unmapped: Iterable[Mapping[str, Any]], read: Mapping[str, int], limit: float) -> list[Gate]:
    """Check how many rows of a source have a label that no rule knows.

    Args:
        unmapped: Rows with `source`, `field`, `raw_value` and `count`, the most frequent value first.
        read: Source -> rows of its newest load, of the complete sources; others are not looked at.
        limit: Share of a source's rows that may have an unknown value in a column.
    """
    values: dict[tuple[str, str], dict[str, int]] = {}
    for row in unmapped:
        if row["source"] in read:
            values.setdefault((row["source"], row["field"]), {})[row["raw_value"]] = row["count"]
    shares = {key: sum(counts.values()) / read[key[0]] for key, counts in values.items()}
    failed = [
        Gate(
            name=f"labels that no rule knows, {source}.{field}",
            measured=f"{share:.2%} of {read[source]:,} rows: "
            + ", ".join(f"{value!r} {count:,}" for value, count in list(values[source, field].items())[:5]),
            limit=f"{limit:.2%}; add them to the tables of include/normalize/labels.py or raise SIFT_MAX_UNMAPPED",
            passed=False,
        )
        for (source, field), share in shares.items()
        if share > limit
    ]
    most = max(shares, key=lambda key: shares[key], default=None)
    measured = f"at most {shares[most]:.2%} of a source's rows ({'.'.join(most)})" if most else "none"
    return failed or [Gate(name="labels that no rule knows", measured=measured, limit=f"{limit:.2%}", passed=True)]
