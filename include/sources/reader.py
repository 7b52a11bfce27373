"""Read a corpus's files: their metadata columns, and the audio of one row group.

pyarrow reads only the columns that are asked for, from a folder or over `hf://`. Audio bytes are read by publishing
and by the console's player alone, one row group at a time, and never decoded.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from include.sources.corpus import HF_PREFIX, Corpus, CorpusFile, SourceError, folder_blob_id, named_errors
from include.sources.pages import CheckedFile, Chunk
from include.sources.recipe import MOST_LABEL_BYTES, ColumnKind, SourceRecipe

log = logging.getLogger(__name__)

_LARGEST_NUMBER = 12  # bytes, of Parquet's types
_LARGEST_FIXED = 32  # bytes, of a decimal; what is null is as long in memory
BATCH_ROWS = 65_536
FOOTER_THREADS = 8
# What is read of a file has to fit into memory, whoever wrote it and whatever it says of itself. The limits are several
# times what corpora have: a row group of theirs holds some 10 to 100 MiB of audio, and at most a million rows of text.
MOST_ROW_GROUP_BYTES = 512 << 20
"""Audio of a row group."""
MOST_METADATA_BYTES = 256 << 20
"""All metadata columns of a row group."""
_RUN_BYTES = 32 << 20  # of several row groups that are fetched together: a full batch of most corpora
MOST_BATCH_BYTES = 64 << 20
"""Text of a batch: a dictionary may hold one long value for a million rows."""
MOST_FILE_ROWS = 20_000_000
"""Rows of a file; a footer may promise billions."""


def choose_row_groups(corpus: Corpus, max_rows: int) -> Corpus:
    """Choose whole row groups by hash, until another one would exceed `max_rows` rows; at least one.

    The order hangs on where a row group stands (split, number of the file, number in the file) and on nothing else: the
    same rows come every time, a larger limit adds to a smaller one's rows, and publishing reads the audio of the chosen
    row groups alone. See docs/decisions/0008-caps.md.

    Args:
        corpus: With all its files.
        max_rows: Most rows that are read.

    Returns:
        The corpus with the files and row groups that are read; unchanged if it is not larger than that.
    """
    counts = _row_counts(corpus)
    total = sum(map(sum, counts))
    if total <= max_rows:
        return corpus
    ordinals: dict[str, int] = {}
    places = []
    for number, (file, rows_of_groups) in enumerate(zip(corpus.files, counts, strict=True)):
        ordinal = ordinals[file.split] = ordinals.get(file.split, -1) + 1
        for index, rows in enumerate(rows_of_groups):
            rank = hashlib.sha256(f"{corpus.source}/{file.split}/{ordinal}/{index}".encode()).digest()
            places.append((rank, number, index, rows))
    chosen: dict[int, list[int]] = {}
    taken = 0
    for _, number, index, rows in sorted(places):
        if taken and taken + rows > max_rows:
            break
        taken += rows
        chosen.setdefault(number, []).append(index)
    log.info("%s: %d of %d rows, %d of %d files", corpus.source, taken, total, len(chosen), len(corpus.files))
    files = tuple(
        replace(corpus.files[number], row_groups=tuple(sorted(indices))) for number, indices in sorted(chosen.items())
    )
    return replace(corpus, files=files, rows=total)


def read_metadata(corpus: Corpus, file: CorpusFile, recipe: SourceRecipe) -> Iterator[pa.Table]:
    """Read the metadata columns of one file, and where each row lies.

    Yields:
        Tables of at most BATCH_ROWS rows with the columns of `recipe.kinds` and LOCATION_COLUMNS, in the file's order.

    Raises:
        SourceError: If the file cannot be read, lacks a column or holds another type than the recipe says, or has more
            audio in a row group than can be published: what is staged is worth the GPU's work.
        SourceUnavailableError: If it cannot be reached just now.
    """
    with _open_parquet(corpus, file.path) as opened:
        class_names = _check_columns(opened.parquet.schema_arrow, file.path, recipe)
        metadata = opened.parquet.metadata
        groups = np.array(range(metadata.num_row_groups) if file.row_groups is None else file.row_groups, np.int32)
        for group in groups.tolist():
            opened.refuse_large_audio(group, recipe.audio_column)
        sizes = [metadata.row_group(int(index)).num_rows for index in groups]
        if min(sizes, default=0) < 0 or sum(sizes) > MOST_FILE_ROWS:
            raise SourceError(
                f"{corpus.source}: {file.path} says that it has {sum(sizes):,} rows (most: {MOST_FILE_ROWS:,}). "
                f"If it is sound, its owners can cut it; else leave the source out"
            )
        first_rows = np.concatenate([[0], np.cumsum(sizes)])  # of each row group, and where the last one ends
        start = 0
        for table in _joined(_decoded(batch, class_names, recipe) for batch in opened.batches(groups.tolist(), recipe)):
            place = np.arange(start, start + len(table))
            start += len(table)
            if start > first_rows[-1]:
                break
            group = np.searchsorted(first_rows, place, side="right") - 1
            for name, values in (
                ("split", pa.repeat(pa.scalar(file.split), len(table))),
                ("audio_file", pa.repeat(pa.scalar(file.path), len(table))),
                ("audio_row_group", pa.array(groups[group])),
                ("audio_row", pa.array((place - first_rows[group]).astype(np.int32))),
                ("blob_id", pa.repeat(pa.scalar(file.blob_id), len(table))),
            ):
                # The corpus may have a column of the same name (`split`); where its bytes lie is ours to say.
                if name in table.column_names:
                    table = table.drop_columns([name])
                table = table.append_column(name, values)
            yield table
        if start != first_rows[-1]:
            raise SourceError(f"{corpus.source}: {file.path} holds other rows than its footer says. Fetch it again")


def read_columns(corpus: Corpus) -> pa.Schema:
    """Return the columns of a corpus's first file."""
    with _open_parquet(corpus, corpus.files[0].path) as opened:
        return opened.parquet.schema_arrow


def audio_columns(columns: pa.Schema) -> list[str]:
    """Return the columns that hold clips: structs of bytes and path."""

    def holds_clips(kind: pa.DataType) -> bool:
        if not pa.types.is_struct(kind) or not {field.name for field in kind} >= {"bytes", "path"}:
            return False
        content, name = kind.field("bytes").type, kind.field("path").type
        binary = pa.types.is_binary(content) or pa.types.is_large_binary(content)
        return bool(binary and (_is_text(name) or pa.types.is_null(name)))  # null: a file that names none

    return [column.name for column in columns if holds_clips(column.type)]


def count_rows(corpus: Corpus) -> int:
    """Return the rows of all files that are read, from their footers."""
    return sum(map(sum, _row_counts(corpus)))


def audio_reader(corpus: Corpus, column: str = "audio") -> Callable[[str, int], pa.StructArray]:
    """Return a function (file path, row group) -> the N clips of that row group as struct{bytes, path}."""

    def read(path: str, row_group: int) -> pa.StructArray:
        with _open_parquet(corpus, path) as opened:
            return opened.clips(row_group, column)

    return read


@dataclass(frozen=True)
class Place:
    """Where a clip's bytes lie, as a staged sample says it.

    Attributes:
        revision: Revision of the corpus.
        path: File within the repository.
        row_group: Row group of the file.
        row: Row within the row group.
        blob_id: Identity of the file's content.
    """

    revision: str
    path: str
    row_group: int
    row: int
    blob_id: str


def read_clips(recipe: SourceRecipe, hub: str, place: Place, count: int = 1) -> list[bytes | None]:
    """Read a clip, and up to `count - 1` that follow it in its row group: whoever plays one plays the next.

    Memory holds the audio of that row group meanwhile: it is written as one page, of which no part can be read alone.

    Returns:
        The clips' bytes as published, at least one; None where the corpus has none.

    Raises:
        SourceError: If the file is not there, is not what was staged, or its row group is larger than
            MOST_ROW_GROUP_BYTES.
        SourceUnavailableError: If the corpus cannot be reached just now.
    """
    on_hub = hub.startswith(HF_PREFIX)
    location = (
        f"{HF_PREFIX}/{recipe.repository}@{place.revision}"
        if on_hub
        else str((Path(hub) / recipe.repository).resolve())
    )
    if not on_hub:  # a commit never changes; a folder's files may
        file = (Path(location) / place.path).resolve()
        if not file.is_relative_to(location) or not file.is_file():
            raise SourceError(f"{recipe.name}: no file {place.path} in {recipe.repository}; ingest the source again")
        if folder_blob_id(file, recipe.name) != place.blob_id:
            raise SourceError(f"{recipe.name}: {place.path} changed since it was staged; ingest the source again")
    corpus = Corpus(recipe.name, location, place.revision, None, ())
    with _open_parquet(corpus, place.path) as opened:
        wanted = opened.clips(place.row_group, recipe.audio_column).slice(place.row, count)
        found: list[bytes | None] = [clip and clip["bytes"] for clip in wanted.to_pylist()]
        if not found:
            raise SourceError(f"{recipe.name}: {place.path} has no row {place.row} in row group {place.row_group}")
    return found


def _row_counts(corpus: Corpus) -> list[list[int]]:
    """Rows of every row group of every file, from their footers."""

    def row_counts(file: CorpusFile) -> list[int]:
        with _open_parquet(corpus, file.path) as opened:
            metadata = opened.parquet.metadata
            return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]

    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(row_counts, corpus.files))


@contextmanager
def _open_parquet(corpus: Corpus, path: str) -> Iterator[_OpenedFile]:
    with (
        named_errors(f"{corpus.source}: cannot read {path} at {corpus.revision[:12]}"),
        _open_binary(f"{corpus.location}/{path}") as handle,
    ):
        opened = _OpenedFile(corpus.source, path, handle)
        try:
            yield opened
        finally:
            opened.close()


class _OpenedFile:
    """A Parquet file of which only as much is decoded at once as fits into memory, whatever it says of itself.

    Attributes:
        parquet: Its schema and footer.
    """

    def __init__(self, source: str, path: str, handle: IO[bytes]) -> None:
        self._source = source
        self._path = path
        self._file = CheckedFile(handle)
        self.parquet = pq.ParquetFile(self._file)

    def close(self) -> None:
        """Let go of what was fetched; Arrow's reader and its file hold on to each other."""
        self.parquet.close()
        self._file.forget()

    def batches(self, groups: Sequence[int], recipe: SourceRecipe) -> Iterator[pa.RecordBatch]:
        """Yield the metadata columns of row groups, in order, as many row groups at once as fit."""
        wanted = {path: kind for column, kind in recipe.kinds.items() for path in self._leaves(column, kind)}
        for run in self._runs(groups, list(wanted)):
            chunks = [chunk for group in run for chunk in self._chunks(group, list(wanted))]
            repeats = self._file.fetch(chunks, MOST_METADATA_BYTES, MOST_BATCH_BYTES // BATCH_ROWS)
            largest = dict.fromkeys(wanted, 0)
            for chunk, repeated in zip(chunks, repeats, strict=True):
                largest[chunk.name] = max(largest[chunk.name], repeated.entry_bytes)
                # How many of a list's values are one row's is not known before they are decoded.
                if wanted[chunk.name] == "answers":
                    self._refuse_larger(
                        repeated.values * repeated.entry_bytes, run[0], "of answers", MOST_METADATA_BYTES
                    )
            rows = max(1, min(BATCH_ROWS, MOST_BATCH_BYTES // max(1, sum(largest.values()))))
            yield from self.parquet.iter_batches(batch_size=rows, row_groups=run, columns=list(wanted))

    def refuse_large_audio(self, group: int, column: str) -> None:
        """Refuse a row group with more audio than `clips` would read, by what the footer says."""
        size = sum(max(chunk.declared, chunk.length) for chunk in self._audio_chunks(group, column))
        self._refuse_larger(size, group, "of audio", MOST_ROW_GROUP_BYTES)

    def clips(self, group: int, column: str) -> pa.StructArray:
        """Return the N clips of a row group as struct{bytes, path}."""
        self.refuse_large_audio(group, column)
        chunks = self._audio_chunks(group, column)
        repeated = self._file.fetch(chunks, MOST_ROW_GROUP_BYTES)
        columns = [chunk.name for chunk in chunks]
        if sum(each.values * each.entry_bytes for each in repeated) <= MOST_ROW_GROUP_BYTES:
            parts = self.parquet.read_row_group(group, columns=columns, use_threads=False).column(column).chunks
        else:
            # A few long clips in a dictionary, or one that a million rows repeat: that is seen as they are decoded.
            rows = max(1, MOST_BATCH_BYTES // sum(each.entry_bytes for each in repeated))
            parts, size = [], 0
            for batch in self.parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                parts.append(batch.column(column))
                size += batch.nbytes
                self._refuse_larger(size, group, "of audio", MOST_ROW_GROUP_BYTES)
        return pa.chunked_array(parts, parts[0].type if parts else None).combine_chunks()

    def _leaves(self, column: str, kind: ColumnKind) -> list[str]:
        """Paths of the schema's columns that hold a column of the recipe; of answers, their texts."""
        # From a row group: Arrow's footer and its schema hold on to each other, megabytes that nobody frees for long.
        group = self.parquet.metadata.row_group(0) if self.parquet.metadata.num_row_groups else None
        paths = [group.column(index).path_in_schema for index in range(group.num_columns)] if group else []
        if kind == "answers":
            return [path for path in paths if path.startswith(f"{column}.") and path.endswith(".text")]
        return [path for path in paths if path == column]

    def _audio_chunks(self, group: int, column: str) -> list[Chunk]:
        return self._chunks(group, [f"{column}.bytes", f"{column}.path"])

    def _chunks(self, group: int, paths: Sequence[str]) -> list[Chunk]:
        row_group = self.parquet.metadata.row_group(group)
        found = []
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            if column.path_in_schema in paths:
                dictionary = column.dictionary_page_offset or 0
                data = column.data_page_offset
                start = dictionary if 0 < dictionary < data else data
                sizes = (column.total_compressed_size, column.total_uncompressed_size)
                if min(start, *sizes) < 0:
                    raise SourceError(f"{self._source}: {self._path} has a damaged footer. Fetch it again")
                width = None if column.physical_type == "BYTE_ARRAY" else _LARGEST_NUMBER
                if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
                    width = self.parquet.schema.column(index).length
                    if width > _LARGEST_FIXED:
                        raise SourceError(
                            f"{self._source}: {self._path} gives each value of column {column.path_in_schema!r}, "
                            f"nulls too, {width:,} bytes. Have it written without fixed lengths, or leave it out"
                        )
                found.append(Chunk(column.path_in_schema, start, *sizes, column.compression, width))
        return found

    def _runs(self, groups: Sequence[int], columns: Sequence[str]) -> Iterator[list[int]]:
        """Cut row groups into runs that are small enough together."""
        run: list[int] = []
        run_bytes = 0
        for group in groups:
            size = sum(max(chunk.declared, chunk.length) for chunk in self._chunks(group, columns))
            self._refuse_larger(size, group, "in the columns that are read", MOST_METADATA_BYTES)
            if run and run_bytes + size > _RUN_BYTES:
                yield run
                run, run_bytes = [], 0
            run.append(group)
            run_bytes += size
        if run:
            yield run

    def _refuse_larger(self, size: int, group: int, of_what: str, most: int) -> None:
        if size > most:
            raise SourceError(
                f"{self._source}: row group {group} of {self._path} holds {size >> 20:,} MiB {of_what}, too much to "
                f"read at once (most: {most >> 20} MiB). Have it written in smaller row groups, or leave the source out"
            )


def _decoded(batch: pa.RecordBatch, class_names: Mapping[str, list[str]], recipe: SourceRecipe) -> pa.Table:
    """A batch with plain columns.

    A value that is too long is cut just beyond the limit: long enough to be rejected, too short to do harm.
    """
    columns = {}
    for name in recipe.kinds:
        root = name.partition(".")[0]
        values = batch.column(root)
        if root in class_names:
            values = _decode_classes(values, class_names[root])
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if _is_text(values.type):
            values = _cut(values.cast(pa.string()), recipe.most_bytes[name])
        columns[root] = values
    return pa.table(columns)


def _joined(pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables of about BATCH_ROWS rows or MOST_BATCH_BYTES at most, from smaller ones: row groups may be small."""
    held: list[pa.Table] = []
    rows = size = 0
    for piece in pieces:
        if held and (rows + len(piece) > BATCH_ROWS or size + piece.nbytes > MOST_BATCH_BYTES):
            yield pa.concat_tables(held)
            held, rows, size = [], 0, 0
        held.append(piece)
        rows += len(piece)
        size += piece.nbytes
    if held:
        yield pa.concat_tables(held)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _cut(values: pa.Array, most_bytes: int) -> pa.Array:
    """N strings, those that are too long cut just beyond the limit, perhaps within a character."""
    long = pc.greater(pc.binary_length(values), most_bytes)
    if not pc.any(long).as_py():
        return values
    raw = values.view(pa.binary())
    return pc.if_else(long, pc.binary_slice(raw, 0, most_bytes + 1), raw).view(pa.string())


def _open_binary(uri: str) -> IO[bytes]:
    if not uri.startswith("hf://"):
        return Path(uri).open("rb")
    from huggingface_hub import HfFileSystem

    # Parquet says exactly which ranges it wants, coalesced by pre_buffer: a read-ahead cache would only read more.
    handle: IO[bytes] = HfFileSystem().open(uri, "rb", cache_type="none")
    return handle


def _check_columns(schema: pa.Schema, path: str, recipe: SourceRecipe) -> dict[str, list[str]]:
    """Hold a file's columns against the recipe; return the names of the integer label columns' classes."""
    declared = _class_names(schema, path, recipe.name)
    fallback = {column: field.class_names for field in recipe.fields.values() for column in field.columns}
    used: dict[str, list[str]] = {}
    for column, kind in recipe.kinds.items():
        found = _leaf_type(schema, column)
        if found is None:
            raise SourceError(
                f"{recipe.name}: {path} has no column {column!r}; it has {schema.names}. The corpus has changed: "
                f"adapt include/sources/{recipe.name}.py or pin an older revision"
            )
        if not _is_kind(found, kind):
            raise SourceError(
                f"{recipe.name}: {path} holds {found} in column {column!r} where the recipe expects {kind}. "
                f"The corpus has changed: adapt include/sources/{recipe.name}.py or pin an older revision"
            )
        names = declared.get(column) or list(fallback.get(column, ()))
        if kind == "label" and names and pa.types.is_integer(found):
            used[column] = names
    # Nothing here reads it, but publishing will, when all that a GPU had to do for these rows is done.
    clips = audio_columns(schema)
    if recipe.audio_column not in clips:
        position = schema.get_field_index(recipe.audio_column)
        held = f"it holds {schema.field(position).type}" if position >= 0 else f"the file has {schema.names}"
        raise SourceError(
            f"{recipe.name}: {path} has no clips (struct of bytes and path) in column {recipe.audio_column!r}; {held}, "
            f"and clips in {clips}. The corpus has changed: set audio_column in include/sources/{recipe.name}.py, or "
            "pin an older revision"
        )
    return used


def _is_kind(found: pa.DataType, kind: ColumnKind) -> bool:
    if pa.types.is_null(found):  # a column without a single value
        return kind in ("text", "label", "number")
    if pa.types.is_dictionary(found):
        found = found.value_type
    text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    number = pa.types.is_integer(found) or pa.types.is_floating(found)
    listed = pa.types.is_list(found) or pa.types.is_large_list(found)
    kinds: Mapping[ColumnKind, bool] = {
        "text": text,
        "label": text or number,
        "number": text or number,
        "flag": pa.types.is_boolean(found),
        "answers": listed and pa.types.is_struct(found.value_type) and found.value_type.get_field_index("text") >= 0,
    }
    return kinds[kind]


def _leaf_type(schema: pa.Schema, column: str) -> pa.DataType | None:
    name, _, leaf = column.partition(".")
    position = schema.get_field_index(name)
    if position < 0:
        return None
    kind = schema.field(position).type
    if not leaf:
        return kind
    if not pa.types.is_struct(kind) or kind.get_field_index(leaf) < 0:
        return None
    return kind.field(leaf).type


def _class_names(schema: pa.Schema, path: str, source: str) -> dict[str, list[str]]:
    """Names that the file declares for its integer label columns (datasets' ClassLabel)."""
    metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(metadata).get("info", {}).get("features", {})
        declared = {
            column: [name.encode()[: MOST_LABEL_BYTES + 1].decode(errors="ignore") for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{source}: {path} declares features that cannot be read ({type(error).__name__}). Fetch it again, or pin "
            "an older revision"
        ) from error
    return declared


def _decode_classes(column: pa.ChunkedArray, names: list[str]) -> pa.Array:
    """Class numbers to class names; a number without a name stays as text, to be counted as unmapped."""
    numbers = column.cast(pa.int64(), safe=False)  # one beyond its range comes out below 0, and has no name
    known = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(names)))
    looked_up = pa.array(names, pa.string()).take(pc.if_else(known, numbers, 0))
    return pc.if_else(known, looked_up, column.cast(pa.string()))
