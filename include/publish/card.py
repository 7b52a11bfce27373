"""The dataset card: the release's README.md, whose front matter tells `datasets` what the release holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from include.modes import MODES
from include.publish.manifest import Manifest, SplitEntry
from include.publish.record import card_features
from include.schema import LABEL_COLUMNS

if TYPE_CHECKING:
    from include.publish.release import ReleasePlan

CARD_NAME = "README.md"
DEFAULT, OMNI = "default", "omni"
"""Configurations: a split per SIFT source, and one training split over all sources."""

PRODUCTION_MODEL = "SmolLM3-3B"
"""The drop-in contract's generator: the same frozen model that the speech model is built on."""

SHOWN_LABEL_VALUES = 20
"""Rows of a label's table; accents are free text, and there are hundreds."""

# Each of these can begin markup in CommonMark, a GFM table or the Hub's formulas; an underscore only outside of words.
_MARKUP = re.compile(r"([\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_]))")


class _Literal(str):
    """Text of ours that goes into the card as it is."""

    __slots__ = ()


def build_card(plan: ReleasePlan, manifest: Manifest) -> str:
    """Write the card of a release.

    Args:
        plan: What the manifest does not hold: titles, addresses, label distributions, and the order of sources.
        manifest: The finished manifest.

    Returns:
        Markdown with YAML front matter. Everything that comes from data is escaped.
    """
    environment = Environment(
        loader=PackageLoader("include.publish", "."),
        autoescape=select_autoescape(),  # for HTML only; Markdown is escaped by finalize
        undefined=StrictUndefined,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    splits = config_splits(manifest, list(plan.sources))
    names = [name for name in plan.sources if manifest.sources[name].files]
    config, example = next((config, next(iter(found))) for config, found in splits.items())
    return environment.get_template("card.md.j2").render(
        front_matter=_Literal(_front_matter(splits)),
        manifest=manifest,
        plan=plan,
        splits=splits,
        counts=list(_counts(plan, manifest)),
        modes=list(manifest.modes),
        purposes={name: MODES[name].purpose for name in manifest.modes if name in MODES},
        generator=list(_flat(manifest.generator)),
        production_model=PRODUCTION_MODEL,
        is_demonstration=bool(manifest.generator)
        and not str(manifest.generator.get("model", "")).endswith(PRODUCTION_MODEL),
        labels=[table for name in LABEL_COLUMNS if (table := _label_table(name, plan.labels, names))],
        verdicts=sorted({verdict for counts in manifest.verdicts.values() for verdict in counts}),
        measures=list(dict.fromkeys(measure for found in manifest.quality.values() for measure in found)),
        held_out=any("heldout" in source.splits for source in manifest.sources.values()),
        folder=_Literal(manifest.release_id),
        config=_Literal(config),
        example=_Literal(example),
    )


def config_splits(manifest: Manifest, order: Sequence[str] | None = None) -> dict[str, dict[str, list[SplitEntry]]]:
    """Say which splits the configurations have: only those that have a file, as a pattern without one breaks them all.

    Args:
        manifest: Of the release.
        order: Sources in the order of the splits; None takes the manifest's.

    Returns:
        Configuration -> its split -> the parts of sources that it is made of.
    """
    sources = {name: manifest.sources[name] for name in order or manifest.sources}
    default = {
        split: [source.splits[side]]
        for side, suffix in (("train", ""), ("heldout", "_heldout"))
        for name, source in sources.items()
        if source.task == "sift" and side in source.splits and (split := f"{name}{suffix}")
    }
    omni = {
        split: parts
        for split, side in (("train", "train"), ("validation", "heldout"))
        if (parts := [source.splits[side] for source in sources.values() if side in source.splits])
    }
    return {config: splits for config, splits in ((DEFAULT, default), (OMNI, omni)) if splits}


def _front_matter(configs: Mapping[str, Mapping[str, list[SplitEntry]]]) -> str:
    """The card's YAML: what `datasets` needs to open the release without guessing."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        pretty_name="SIFT audio",
        language="en",
        license="other",
        license_name="per-source",
        task_categories=["audio-text-to-text", "automatic-speech-recognition"],
        tags=["speech", "sift", "paralinguistics"],
        configs=[
            {
                "config_name": config,
                **({"default": True} if config == next(iter(configs)) else {}),
                "data_files": [{"split": split, "path": _pattern(config, parts)} for split, parts in splits.items()],
            }
            for config, splits in configs.items()
        ],
        dataset_info=[
            {
                "config_name": config,
                "features": card_features(),
                "splits": [
                    {
                        "name": split,
                        "num_bytes": sum(part.arrow_bytes for part in parts),
                        "num_examples": sum(part.rows for part in parts),
                    }
                    for split, parts in splits.items()
                ],
                "download_size": sum(file.bytes for parts in splits.values() for part in parts for file in part.files),
                "dataset_size": sum(part.arrow_bytes for parts in splits.values() for part in parts),
            }
            for config, splits in configs.items()
        ],
    )
    return data.to_yaml().strip()


def _pattern(config: str, parts: list[SplitEntry]) -> str:
    """The files of a split: those of one source, or those of all."""
    folder, _, name = parts[0].files[0].path.rpartition("/")
    return f"{'data/*' if config == OMNI else folder}/{name.partition('-')[0]}-*.parquet"


def _counts(plan: ReleasePlan, manifest: Manifest) -> Iterable[dict[str, Any]]:
    """One row for each source and mode (or task): records to train on, and held out."""
    for name in plan.sources:
        source = manifest.sources[name]
        sides = [source.splits[side].rows_by_mode if side in source.splits else {} for side in ("train", "heldout")]
        for mode in sorted(source.rows_by_mode) or [source.task]:
            yield {"source": name, "mode": mode, "rows": [side.get(mode, 0) for side in sides]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested mappings, as ("sampling.top_p", 0.92)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _label_table(
    name: str, labels: Mapping[str, Mapping[str, Mapping[str, int]]], sources: list[str]
) -> dict[str, Any] | None:
    """One label's values by source, the most frequent first; None if no source has the label."""
    counts = {source: labels.get(source, {}).get(name, {}) for source in sources}
    counts = {source: values for source, values in counts.items() if any(values)}
    totals = Counter[str]()
    for values in counts.values():
        totals.update(values)
    if not totals:
        return None
    ordered = sorted(totals, key=lambda value: (-totals[value], value))
    rows = [(value or "(none)", [counts[source].get(value, 0) for source in counts]) for value in ordered]
    shown, others = rows[:SHOWN_LABEL_VALUES], rows[SHOWN_LABEL_VALUES:]
    if others:
        sums = [sum(column) for column in zip(*(numbers for _, numbers in others), strict=True)]
        shown.append((f"({len(others)} others)", sums))
    return {"name": name, "sources": list(counts), "rows": shown}


def _escaped(value: object) -> object:
    """Make a value safe in a table cell or a sentence: one line, no character read as markup."""
    if isinstance(value, _Literal):
        return value
    return _MARKUP.sub(r"\\\1", " ".join(str(value).split()))
