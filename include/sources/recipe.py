"""What a recipe may say about a corpus, and how it turns a batch of published rows into staged samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from include.normalize.bins import pace_labels, volume_labels
from include.normalize.columns import NormalisedColumn, map_labels
from include.normalize.labels import canonical_age, canonical_emotion, canonical_gender
from include.normalize.text import clean_transcripts, free_text_labels
from include.schema import LABEL_COLUMNS, STAGED_SCHEMA, Task

CANONICAL_COLUMNS = ("text", *LABEL_COLUMNS, "speaker", "duration")
"""What a recipe's fields may fill."""

LOCATION_COLUMNS = ("split", "audio_file", "audio_row_group", "audio_row", "blob_id")
"""Columns that the reader adds to every batch: where the row's bytes lie."""


@dataclass(frozen=True)
class Field:
    """One column of the corpus and how it is normalised.

    Attributes:
        column: Column name in the Parquet files; "audio.path" names a leaf of a struct.
        kind: What the column must hold; another type is schema drift and stops the load. A "label" is text, or
            integers whose names the file declares (ClassLabel).
        normalise: Maps the column's N values to N canonical ones.
    """

    column: str
    kind: Literal["text", "label", "number"]
    normalise: Callable[[pa.Array], NormalisedColumn]


def text(column: str) -> Field:
    """A transcript."""
    return Field(column, "text", lambda values: NormalisedColumn(clean_transcripts(values)))


def emotion(column: str) -> Field:
    """Emotion labels in the corpus's spelling."""
    return Field(column, "label", lambda values: map_labels(values, canonical_emotion))


def gender(column: str) -> Field:
    """Gender labels in the corpus's spelling."""
    return Field(column, "label", lambda values: map_labels(values, canonical_gender))


def age(column: str) -> Field:
    """Ages, in decades or years."""
    return Field(column, "label", lambda values: map_labels(values, canonical_age))


def accent(column: str) -> Field:
    """Accents: free text, passed through."""
    return Field(column, "text", lambda values: NormalisedColumn(free_text_labels(values)))


def speaking_rate(column: str) -> Field:
    """Phonetic symbols per second."""
    return Field(column, "number", lambda values: NormalisedColumn(pace_labels(values)))


def relative_db(column: str) -> Field:
    """Loudness in dB, as the AbstractTTS corpora publish it."""
    return Field(column, "number", lambda values: NormalisedColumn(volume_labels(values)))


def verbatim(column: str) -> Field:
    """A value that is kept as it is, stripped (speaker ids)."""
    return Field(column, "text", lambda values: NormalisedColumn(pc.utf8_trim_whitespace(values.cast(pa.string()))))


@dataclass(frozen=True)
class StagedBatch:
    """What became of N published rows.

    Attributes:
        table: N rows of STAGED_SCHEMA and `reject_reason` (NULL for a usable row).
        unmapped: Canonical column -> published label -> rows.
    """

    table: pa.Table
    unmapped: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """One corpus: where it is, what it may be used for, and how its columns become a sample.

    Attributes:
        name: As the specification writes it; also the split's name in a release.
        title: What people call it.
        repository: Dataset repository on the Hub.
        config: Configuration of the repository.
        splits: The corpus's own splits that are read.
        branch: Branch that a run follows; it resolves it to a commit and records that.
        url: Where the corpus comes from.
        licence: Licence as its owners state it.
        redistributable: Whether its audio may be published again.
        language: ISO 639-1.
        task: What its samples are for.
        key: Column that names a row, the same in every revision of the corpus.
        fields: Canonical column -> Field; `text` is required.
        schedule: Cron of the refresh, UTC.
        max_reject_share: Share of unusable rows above which a load fails before anything is merged.
    """

    name: str
    title: str
    repository: str
    key: str
    fields: Mapping[str, Field]
    licence: str
    redistributable: bool
    url: str
    config: str = "default"
    splits: tuple[str, ...] = ("train",)
    branch: str = "main"
    language: str = "en"
    task: Task = "sift"
    schedule: str = "0 3 * * 0"
    max_reject_share: float = 0.1

    def __post_init__(self) -> None:
        unknown = sorted(set(self.fields) - set(CANONICAL_COLUMNS))
        if unknown:
            raise ValueError(f"recipe {self.name}: fields {unknown} are not among {CANONICAL_COLUMNS}")
        if "text" not in self.fields:
            raise ValueError(f"recipe {self.name}: fields must hold 'text'")

    @property
    def columns(self) -> list[str]:
        """Columns of the corpus that are read, without repeats; audio bytes are never among them."""
        return list(dict.fromkeys([self.key, *(field.column for field in self.fields.values())]))

    def stage(self, batch: pa.Table) -> StagedBatch:
        """Normalise N published rows.

        Args:
            batch: N rows with `columns` and LOCATION_COLUMNS.

        Returns:
            N rows in the same order, unusable ones with their `reject_reason`, and the labels no table knew.
        """
        normalised = {name: field.normalise(_flat(batch, field.column)) for name, field in self.fields.items()}
        key = pc.utf8_trim_whitespace(_flat(batch, self.key).cast(pa.string()))
        has_key = pc.fill_null(pc.not_equal(key, ""), False)
        columns: dict[str, pa.Array] = {
            "source": pa.repeat(pa.scalar(self.name), len(batch)),
            "language": pa.repeat(pa.scalar(self.language), len(batch)),
            "sample_id": pc.if_else(
                has_key,
                pc.binary_join_element_wise(pa.scalar(self.name), key, pa.scalar("/")),
                pa.scalar(None, pa.string()),
            ),
            "raw": self._raw_labels(batch),
            **{name: column.values for name, column in normalised.items()},
            **{name: _flat(batch, name) for name in LOCATION_COLUMNS},
        }
        reason = pc.if_else(
            has_key,
            pc.if_else(pc.is_valid(columns["text"]), pa.scalar(None, pa.string()), pa.scalar("empty text")),
            pa.scalar("missing key"),
        )
        staged = [
            columns[column.name].cast(column.type) if column.name in columns else pa.nulls(len(batch), column.type)
            for column in STAGED_SCHEMA
        ]
        table = pa.Table.from_arrays(
            [*staged, reason], schema=STAGED_SCHEMA.append(pa.field("reject_reason", pa.string()))
        )
        return StagedBatch(table, {name: column.unmapped for name, column in normalised.items() if column.unmapped})

    def _raw_labels(self, batch: pa.Table) -> pa.Array:
        """N JSON objects: the label columns as published."""
        labels = {
            field.column: _flat(batch, field.column) for name, field in self.fields.items() if name in LABEL_COLUMNS
        }
        if not labels:
            return pa.repeat(pa.scalar("{}"), len(batch))
        import pandas as pd  # here, because DAG files import the recipes and must parse fast

        frame = pd.DataFrame({name: values.to_pandas() for name, values in labels.items()})
        lines = frame.to_json(orient="records", lines=True, force_ascii=False).splitlines()
        # PostgreSQL's jsonb cannot hold NUL.
        return pc.replace_substring(pa.array(lines, pa.string()), "\\u0000", "")


def _flat(batch: pa.Table, name: str) -> pa.Array:
    """One column as a single array; "a.b" is the leaf b of the struct a."""
    column, _, leaf = name.partition(".")
    values = batch.column(column).combine_chunks()
    return pc.struct_field(values, leaf) if leaf else values
