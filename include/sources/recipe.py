"""What a recipe may say about a corpus, and how it turns a batch of published rows into staged samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from include.normalize.bins import PACE_EDGES, VOLUME_EDGES_DB, pace_labels, volume_labels
from include.normalize.columns import NormalisedColumn, map_labels, parse_numbers
from include.normalize.labels import canonical_age, canonical_emotion, canonical_gender
from include.normalize.text import clean_answers, clean_transcripts, free_text_labels, verbatim_labels
from include.schema import LABEL_COLUMNS, STAGED_SCHEMA, Task

CANONICAL_COLUMNS = ("text", *LABEL_COLUMNS, "speaker", "duration", "answer")
"""What a recipe's fields may fill."""

LOCATION_COLUMNS = ("split", "audio_file", "audio_row_group", "audio_row", "blob_id")
"""Columns that the reader adds to every batch: where the row's bytes lie."""

MOST_TEXT_BYTES = 32_768
"""Of a transcript or an answer: half an hour of speech and more. A clip has seconds, and a model's context an end."""
MOST_LABEL_BYTES = 1_024
"""Of anything else that is published as text: a label, a speaker, a path, a number."""
MOST_KEY_BYTES = 512
"""Of a row's key: with the source it must fit PostgreSQL's index, whose entries have at most 2,704 bytes."""

ColumnKind = Literal["text", "label", "number", "flag", "answers"]
"""What a column of the corpus must hold; another type is schema drift and stops the load. A "label" is text, or
integers whose names the file declares (ClassLabel); a "number" may be written as text; a "flag" is boolean; "answers"
is a list of structs with a `text`."""


_TOO_LONG = {MOST_TEXT_BYTES: "text too long", MOST_LABEL_BYTES: "label too long", MOST_KEY_BYTES: "key too long"}
_CONTROL = r"[\x00-\x1f\x7f]"


@dataclass(frozen=True)
class Field:
    """One canonical column: the corpus's columns it comes from, and how they are normalised.

    Attributes:
        columns: Column names in the Parquet files; "audio.path" names a leaf of a struct.
        kind: What each of them must hold.
        rule: What becomes of a value, in words, for the generated documents.
        normalise: Maps the columns' N values to N canonical ones.
        class_names: Names of integer labels, for a file that declares none; see SourceRecipe.largest_class.
    """

    columns: tuple[str, ...]
    kind: ColumnKind
    rule: str
    normalise: Callable[..., NormalisedColumn]
    class_names: tuple[str, ...] = ()


def text(column: str) -> Field:
    """A transcript."""
    return Field(
        (column,),
        "text",
        "cleaned of markup and noise marks, lower-cased",
        lambda values: NormalisedColumn(clean_transcripts(values)),
    )


def emotion(column: str, also: Mapping[str, str | None] | None = None, class_names: tuple[str, ...] = ()) -> Field:
    """Emotion labels in the corpus's spelling; `also` maps the classes that only this corpus has."""
    canonical = partial(canonical_emotion, also=also)
    return Field(
        (column,), "label", "one of the seven emotions", lambda values: map_labels(values, canonical), class_names
    )


def gender(column: str) -> Field:
    """Gender labels in the corpus's spelling."""
    return Field((column,), "label", "male or female", lambda values: map_labels(values, canonical_gender))


def age(column: str) -> Field:
    """Ages, in decades or years."""
    return Field((column,), "label", "one of the four age groups", lambda values: map_labels(values, canonical_age))


def accent(column: str) -> Field:
    """Accents: free text, passed through."""
    return Field(
        (column,), "text", "as published, lower-cased", lambda values: NormalisedColumn(free_text_labels(values))
    )


def speaking_rate(column: str) -> Field:
    """Phonetic symbols per second."""
    low, high = PACE_EDGES
    return Field((column,), "number", f"slow below {low:g}, fast above {high:g}, else normal", pace_labels)


def relative_db(column: str) -> Field:
    """Loudness in dB, as the AbstractTTS corpora publish it."""
    low, high = VOLUME_EDGES_DB
    return Field((column,), "number", f"quiet below {low:g} dB, loud above {high:g} dB, else none", volume_labels)


def seconds(column: str) -> Field:
    """A duration in seconds."""
    return Field((column,), "number", "seconds", lambda values: parse_numbers(values, above=0.0))


def verbatim(column: str, pattern: str | None = None) -> Field:
    """A name that is kept as it is, stripped (speakers); with a pattern, its group `name` of it."""

    def names(values: pa.Array) -> NormalisedColumn:
        values = values.cast(pa.string())
        if pattern:
            values = pc.struct_field(pc.extract_regex(values, pattern), "name")
        return NormalisedColumn(verbatim_labels(values))

    return Field((column,), "text", f"what {pattern} finds" if pattern else "as published", names)


def first_answer(column: str) -> Field:
    """The text of the first of each row's answers, cleaned of markup, lower-cased; NULL where there is none."""

    def answers(values: pa.Array) -> NormalisedColumn:
        # Slices of one element: NULL where the list is empty.
        first = pc.list_slice(values, 0, 1, return_fixed_size_list=True)
        return NormalisedColumn(clean_answers(pc.struct_field(pc.list_element(first, 0), "text")))

    return Field((column,), "answers", "the first one, cleaned of markup, lower-cased", answers)


@dataclass(frozen=True)
class Rejection:
    """Rows that the corpus itself marks as unusable.

    Attributes:
        reason: What `staging.rejects` says.
        column: A boolean column of the corpus; true means unusable.
    """

    reason: str
    column: str


@dataclass(frozen=True)
class StagedBatch:
    """What became of N published rows.

    Attributes:
        table: N rows of STAGED_SCHEMA and `reject_reason` (NULL for a usable row).
        unmapped: Canonical column -> published value that no rule knows -> rows.
        left_out: Canonical column -> published value that is known to have no canonical form -> rows.
    """

    table: pa.Table
    unmapped: dict[str, dict[str, int]]
    left_out: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """One corpus: where it is, what it may be used for, and how its columns become a sample.

    Attributes:
        name: As the specification writes it; also the split's name in a release.
        title: What people call it.
        repository: Dataset repository on the Hub.
        config: Configuration of the repository.
        splits: The corpus's own splits that are read. Its validation and test splits are not: people measure on them.
        data_files: Split -> patterns of its Parquet files, for a repository whose card does not name them.
        branch: Branch that a run follows; it resolves it to a commit and records that.
        url: Where the corpus comes from.
        licence: Licence as its owners state it.
        redistributable: Whether its audio may be published again.
        citation: How its owners ask to be cited, one reference in plain text; "" while nobody has looked it up.
        language: ISO 639-1.
        task: What its samples are for.
        key: Column that names a row, the same in every revision of the corpus.
        audio_column: Column with the clips, struct{bytes, path}.
        fields: Canonical column -> Field; `text` is required, and `answer` for the task "answer".
        reject_if: Rows that the corpus itself marks as unusable.
        expected_rows: Rows of `splits`, as the corpus's card says; a load that finds another number warns.
        max_rows: Most rows that are staged, chosen by hash; None: all. The setting `max_rows` overrides it.
        largest_class: Canonical column -> label that must be its most frequent one, where that is known of the corpus:
            it shows integer labels that were read in the wrong order.
        held_out_speakers: Speakers whose clips a release holds out of training; none: by the rule of
            docs/decisions/0010-held-out.md.
        schedule: Cron of the refresh, UTC.
        max_reject_share: Share of unusable rows above which a load fails before anything is merged.
        card: Markdown that describes the corpus: its module's docstring, set by the registry.
    """

    name: str
    title: str
    repository: str
    key: str
    fields: Mapping[str, Field]
    licence: str
    redistributable: bool
    url: str
    citation: str = ""
    config: str = "default"
    splits: tuple[str, ...] = ("train",)
    data_files: Mapping[str, tuple[str, ...]] | None = None
    branch: str = "main"
    language: str = "en"
    task: Task = "sift"
    audio_column: str = "audio"
    reject_if: tuple[Rejection, ...] = ()
    expected_rows: int | None = None
    max_rows: int | None = None
    largest_class: Mapping[str, str] | None = None
    held_out_speakers: tuple[str, ...] = ()
    schedule: str = "0 3 * * 0"
    max_reject_share: float = 0.2
    card: str = ""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.fields) - set(CANONICAL_COLUMNS))
        if unknown:
            raise ValueError(f"recipe {self.name}: fields {unknown} are not among {CANONICAL_COLUMNS}")
        needed = ("text", "answer") if self.task == "answer" else ("text",)
        for column in needed:
            if column not in self.fields:
                raise ValueError(f"recipe {self.name}: fields must hold '{column}'")
        if self.held_out_speakers and "speaker" not in self.fields:
            raise ValueError(f"recipe {self.name}: held_out_speakers needs a field 'speaker' to find them by")

    @property
    def kinds(self) -> dict[str, ColumnKind]:
        """Columns of the corpus that are read, with what each must hold; audio bytes are never among them."""
        kinds: dict[str, ColumnKind] = {self.key: "text"}
        for field in self.fields.values():
            kinds.update(dict.fromkeys(field.columns, field.kind))
        kinds.update({rejection.column: "flag" for rejection in self.reject_if})
        return kinds

    @property
    def most_bytes(self) -> dict[str, int]:
        """Columns of `kinds` -> bytes that a value of theirs may have, where it is text."""
        most = dict.fromkeys(self.kinds, MOST_LABEL_BYTES)
        for name in ("text", "answer"):
            most.update(dict.fromkeys(self.fields[name].columns if name in self.fields else (), MOST_TEXT_BYTES))
        return {**most, self.key: MOST_KEY_BYTES}

    def stage(self, batch: pa.Table) -> StagedBatch:
        """Normalise N published rows.

        Args:
            batch: N rows with the columns of `kinds` and LOCATION_COLUMNS.

        Returns:
            N rows in the same order, unusable ones with their `reject_reason`, and the values no rule knew.
        """
        batch, faults = self._without_broken_text(batch)
        normalised = {
            name: field.normalise(*(_flat(batch, column) for column in field.columns))
            for name, field in self.fields.items()
        }
        key = pc.utf8_trim_whitespace(_flat(batch, self.key).cast(pa.string()))
        has_key = pc.fill_null(pc.not_equal(key, ""), False)
        unprintable = pc.fill_null(pc.match_substring_regex(key, _CONTROL), False)
        columns: dict[str, pa.Array] = {
            "source": pa.repeat(pa.scalar(self.name), len(batch)),
            "language": pa.repeat(pa.scalar(self.language), len(batch)),
            "sample_id": pc.if_else(
                pc.and_not(has_key, unprintable),
                pc.binary_join_element_wise(pa.scalar(self.name), key, pa.scalar("/")),
                pa.scalar(None, pa.string()),
            ),
            "raw": self._raw_labels(batch),
            **{name: column.values for name, column in normalised.items()},
            **{name: _flat(batch, name) for name in LOCATION_COLUMNS},
        }
        faults += [("missing key", pc.invert(has_key)), ("unprintable key", unprintable)]
        faults += [(fault.reason, pc.fill_null(_flat(batch, fault.column), False)) for fault in self.reject_if]
        faults += [("empty text", pc.is_null(columns["text"]))]
        if self.task == "answer":
            faults += [("empty answer", pc.is_null(columns["answer"]))]
        masks, reasons = [mask for _, mask in faults], [pa.scalar(reason) for reason, _ in faults]
        reason = pc.case_when(pc.make_struct(*masks), *reasons)
        staged = [
            columns[column.name].cast(column.type) if column.name in columns else pa.nulls(len(batch), column.type)
            for column in STAGED_SCHEMA
        ]
        table = pa.Table.from_arrays(
            [*staged, reason], schema=STAGED_SCHEMA.append(pa.field("reject_reason", pa.string()))
        )
        return StagedBatch(
            table,
            {name: column.unmapped for name, column in normalised.items() if column.unmapped},
            {name: column.left_out for name, column in normalised.items() if column.left_out},
        )

    def _without_broken_text(self, batch: pa.Table) -> tuple[pa.Table, list[tuple[str, pa.Array]]]:
        """NULL in place of text that cannot be worked with, and the rows that have any, by reason."""
        faults: list[tuple[str, pa.Array]] = []
        for name, most in self.most_bytes.items():
            strings = _strings(batch, name)
            if strings is None:
                continue
            broken = pc.fill_null(pc.greater(pc.binary_length(strings), most), False)
            found = {_TOO_LONG[most]: broken}
            if (invalid := _invalid_utf8(strings)) is not None:
                found["invalid UTF-8"] = invalid
                broken = pc.or_(broken, invalid)
            if pc.any(broken).as_py():
                column = name.partition(".")[0]
                values = batch.column(column).combine_chunks()
                position = batch.schema.get_field_index(column)
                batch = batch.set_column(position, column, pc.if_else(broken, pa.scalar(None, values.type), values))
                faults += found.items()
        return batch, faults

    def _raw_labels(self, batch: pa.Table) -> pa.Array:
        """N JSON objects: the label columns as published."""
        names = dict.fromkeys(
            column for name, field in self.fields.items() if name in LABEL_COLUMNS for column in field.columns
        )
        if not names:
            return pa.repeat(pa.scalar("{}"), len(batch))
        members = [_json_members(name, _flat(batch, name)) for name in names]
        return pc.binary_join_element_wise("{", pc.binary_join_element_wise(*members, ", "), "}", "")


def _strings(batch: pa.Table, name: str) -> pa.Array | None:
    """N strings of a column; of a column of answers, the first ones; None if it holds no text."""
    values = _flat(batch, name)
    if pa.types.is_list(values.type):
        first = pc.list_slice(values, 0, 1, return_fixed_size_list=True)
        values = pc.struct_field(pc.list_element(first, 0), "text")
    return values if pa.types.is_string(values.type) else None


def _invalid_utf8(strings: pa.Array) -> pa.Array | None:
    """Which of N strings are none; None if all are sound, as they nearly always are."""
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array([value is not None and not _is_utf8(value) for value in strings.view(pa.binary()).to_pylist()])
    return None


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_members(name: str, column: pa.Array) -> pa.Array:
    """N members of JSON objects: `"name": value`, the value a number, a string or null."""
    prefix = f"{json.dumps(name)}: "
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        written = column.cast(pa.string())
        if pa.types.is_floating(column.type):  # JSON has no NaN and no infinities
            written = pc.if_else(pc.is_finite(column), written, pa.scalar(None, pa.string()))
        return pc.binary_join_element_wise(prefix, written, "", null_handling="replace", null_replacement="null")
    encoded = pc.dictionary_encode(column.cast(pa.string()))
    # PostgreSQL's jsonb cannot hold NUL.
    quoted = [
        prefix + json.dumps(value.replace("\0", ""), ensure_ascii=False) for value in encoded.dictionary.to_pylist()
    ]
    return pc.fill_null(pa.array(quoted, pa.string()).take(encoded.indices), f"{prefix}null")


def _flat(batch: pa.Table, name: str) -> pa.Array:
    """One column as a single array; "a.b" is the leaf b of the struct a."""
    column, _, leaf = name.partition(".")
    values = batch.column(column).combine_chunks()
    return pc.struct_field(values, leaf) if leaf else values
