"""The dataset card: the release's README.md, whose front matter tells `datasets` what the release holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from include.modes import MODES
from include.publish.manifest import Manifest, SourceEntry
from include.publish.record import card_features
from include.schema import LABEL_COLUMNS

if TYPE_CHECKING:
    from include.publish.release import ReleasePlan

CARD_NAME = "README.md"
CONFIG = "default"
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
    names = [name for name in plan.sources if manifest.sources[name].files]
    return environment.get_template("card.md.j2").render(
        front_matter=_Literal(_front_matter(names, manifest)),
        manifest=manifest,
        plan=plan,
        modes=list(manifest.modes),
        purposes={name: MODES[name].purpose for name in manifest.modes if name in MODES},
        generator=list(_flat(manifest.generator)),
        production_model=PRODUCTION_MODEL,
        is_demonstration=not str(manifest.generator.get("model", "")).endswith(PRODUCTION_MODEL),
        labels=[table for name in LABEL_COLUMNS if (table := _label_table(name, plan.labels, names))],
        verdicts=sorted({verdict for counts in manifest.verdicts.values() for verdict in counts}),
        folder=_Literal(manifest.release_id),
        example=_Literal(names[0]),
    )


def _front_matter(names: list[str], manifest: Manifest) -> str:
    """The card's YAML: what `datasets` needs to open the release without guessing."""
    from huggingface_hub import DatasetCardData

    sources = {name: manifest.sources[name] for name in names}
    splits = [
        {"name": name, "num_bytes": source.arrow_bytes, "num_examples": source.rows} for name, source in sources.items()
    ]
    data = DatasetCardData(
        pretty_name="SIFT audio",
        language="en",
        license="other",
        license_name="per-source",
        task_categories=["audio-text-to-text"],
        tags=["speech", "sift", "paralinguistics"],
        # A pattern without a file breaks the whole configuration, hence only sources that have one.
        configs=[
            {
                "config_name": CONFIG,
                "default": True,
                "data_files": [{"split": name, "path": f"data/{name}/train-*.parquet"} for name in names],
            }
        ],
        dataset_info={
            "config_name": CONFIG,
            "features": card_features(),
            "splits": splits,
            "download_size": sum(_file_bytes(source) for source in sources.values()),
            "dataset_size": sum(source.arrow_bytes for source in sources.values()),
        },
    )
    return data.to_yaml().strip()


def _file_bytes(source: SourceEntry) -> int:
    return sum(file.bytes for file in source.files)


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
