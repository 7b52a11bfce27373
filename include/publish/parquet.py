"""Write one source's records as Parquet shards, its audio passed through undecoded.

A clip has a row per mode, so its bytes would be stored several times. They are stored once a row group, because all
of a clip's rows lie in one row group and `audio.bytes` goes to the writer as a dictionary: each distinct clip once,
and an index a row. Parquet keeps such a dictionary as one page ahead of the indices, as long as that page stays
within `dictionary_pagesize_limit`; beyond it the writer would fall back to writing every row's bytes. Readers give
plain bytes back.

Memory holds one row group of the corpus and two of each split, whatever the corpus's size.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from include.publish.manifest import ReleaseError
from include.publish.record import PUBLISHED_SCHEMA, build_records, file_names, modes_or_tasks
from include.schema import LABEL_COLUMNS

WRITER_VERSION = 3
"""Raise it whenever the same rows and clips would be laid out in other bytes: every source is then written anew."""

SHARD_BYTES = 500_000_000

ROW_GROUP_BYTES = 32_000_000
"""Bytes of distinct clips in a row group.

Readers decode a row group whole, and then hold a clip's bytes once a row: 100 MB of clips become 300 MB, and more on
the way. Tried: `datasets` takes 1.4 GB of memory to stream the first row at 100 MB, 0.8 GB at 32 MB; this writer takes
600 MB and 340 MB. The file is no larger for it (ratio to three copies 0.3334 either way).
"""

# Parquet's limit for a page: a row group's dictionary, at most ROW_GROUP_BYTES or one clip, always stays below it.
_DICTIONARY_LIMIT = 2**31 - 1


def _leaves(name: str, kind: pa.DataType) -> list[str]:
    """The Parquet columns below one Arrow column, by their paths."""
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{name}.{field.name}", field.type)]
    if pa.types.is_list(kind):
        return _leaves(f"{name}.list.element", kind.value_type)
    return [name]


_AUDIO_BYTES = "audio.bytes"
_COLUMNS = [leaf for field in PUBLISHED_SCHEMA for leaf in _leaves(field.name, field.type)]

# Audio is compressed already, and storage that finds repeated chunks (Xet on the Hub) finds them in plain bytes only.
_COMPRESSION = {name: "none" if name == _AUDIO_BYTES else "zstd" for name in _COLUMNS}

# Nearly every value of the others is distinct: a dictionary would only add its indices.
_DICTIONARY_COLUMNS = [name for name in _COLUMNS if name not in ("sift_response", "messages.list.element.content")]

# Smallest and largest value help to skip row groups by label or id; of audio and prose they say nothing.
_STATISTICS_COLUMNS = [
    name for name in _COLUMNS if name in ("sample_id", "source_dataset", "mode", "task", *LABEL_COLUMNS)
]

_AUDIO_HEADS = (
    rb"RIFF.{4}WAVE",
    rb"fLaC",
    rb"OggS",
    rb"ID3",  # MP3 with tags
    rb"\xff[\xe0-\xff]",  # frame sync of MPEG audio
    rb".{4}ftyp",  # MP4, M4A
)
"""How the containers begin that corpora publish and `datasets` decodes."""

_AUDIO_HEAD = rb"(?s)\A(" + b"|".join(_AUDIO_HEADS) + rb")"
_HEAD_BYTES = 12
# A WAV header alone has 44 bytes, a FLAC header 42: in less than that there is no sound.
_SMALLEST_CLIP = 44

_CHUNK_BYTES = 1 << 20

SplitName = Literal["train", "heldout"]

AudioReader = Callable[[str, int], pa.StructArray]
"""(audio file, row group) -> its whole audio column: structs {bytes, path}, one a row of the corpus."""


@dataclass(frozen=True)
class WrittenFile:
    """One shard.

    Attributes:
        name: File name, e.g. "train-00000-of-00002.parquet".
        rows: Records in it.
        bytes: Its size.
        sha256: Hex digest of its bytes.
    """

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class WrittenSplit:
    """What became of the rows of one split that could be published.

    Attributes:
        files: The shards, in order; at least one.
        rows_by_mode: Records by mode, and by task where they have no mode.
        clips: Distinct clips.
        arrow_bytes: Size of the records as an Arrow table, where a clip is held once a row.
    """

    files: tuple[WrittenFile, ...]
    rows_by_mode: dict[str, int]
    clips: int
    arrow_bytes: int


@dataclass(frozen=True)
class SourceFiles:
    """What became of one source's rows: those of the splits and of `left_out` add up to the rows given.

    Attributes:
        splits: "train" and "heldout", as far as there are rows of them.
        left_out: Rows left out, by reason: "audio missing", "audio empty", "not audio", "audio cut off".
    """

    splits: dict[SplitName, WrittenSplit]
    left_out: dict[str, int]


def write_source(
    directory: Path,
    source: str,
    rows: Iterator[pa.Table],
    audio: AudioReader,
    *,
    shard_bytes: int = SHARD_BYTES,
    row_group_bytes: int = ROW_GROUP_BYTES,
) -> SourceFiles:
    """Write one source's shards. The same rows and clips give the same files, wherever the tables are cut.

    Args:
        directory: Where `train-*.parquet` and `heldout-*.parquet` go; made when there is a row to write.
        source: Name of the source, for messages.
        rows: Tables of rows as `build_records` takes them, with `held_out` (bool), `audio_file` (string),
            `audio_row_group` and `audio_row` (int32), ordered by (audio_file, audio_row_group, audio_row, mode). They
            may be cut anywhere.
        audio: Reads the audio column of one row group; called once a row group, in order.
        shard_bytes: About the size at which a shard is closed; it is cut between row groups.
        row_group_bytes: Bytes of distinct clips in a row group; more only if a single clip is larger.

    Returns:
        The files and counts. Rows whose clip is missing, empty or not audio are left out and counted.

    Raises:
        ReleaseError: If the rows are not in order, or a row lies beyond its row group.
    """
    with ExitStack() as open_files:
        # Both sides are written in one pass: most row groups of a corpus hold clips of both, and reading them twice
        # would cost half the speed.
        shards: dict[SplitName, _ShardWriter] = {
            split: open_files.enter_context(_ShardWriter(directory, split, shard_bytes))
            for split in ("train", "heldout")
        }
        # A row group is written while the clips of the next one are read. Entered last, so that the last write has
        # ended before the files are let go.
        writing = open_files.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="write"))
        groups = {split: _RowGroupBuilder(writer, row_group_bytes, writing) for split, writer in shards.items()}
        clips = _SourceClips(source, audio)
        for table in rows:
            for run in _runs_of_one_row_group(table):
                kept, positions = clips.select(run)
                held_out = kept.column("held_out").combine_chunks()
                for split, builder in groups.items():
                    chosen = held_out if split == "heldout" else pc.invert(held_out)
                    builder.add(kept.filter(chosen), positions[_mask(chosen)], clips)
        splits = {split: written for split, builder in groups.items() if (written := builder.finish())}
    return SourceFiles(splits, dict(clips.left_out))


def _runs_of_one_row_group(table: pa.Table) -> Iterator[pa.Table]:
    """Cut a table into slices whose rows lie in one row group of one file."""
    files = table.column("audio_file").combine_chunks().dictionary_encode().indices.to_numpy()
    row_groups = _numbers(table, "audio_row_group")
    cuts = np.flatnonzero((np.diff(files) != 0) | (np.diff(row_groups) != 0)) + 1
    edges = [0, *cuts.tolist(), len(table)]
    for start, end in pairwise(edges):
        if end > start:
            yield table.slice(start, end - start)


def _mask(values: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = values.to_numpy(zero_copy_only=False)
    return mask


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = table.column(name).combine_chunks().cast(pa.int64()).to_numpy()
    return numbers


class _SourceClips:
    """The clips of one row group of the corpus, and which of them can be published."""

    def __init__(self, source: str, audio: AudioReader) -> None:
        self.left_out: Counter[str] = Counter()
        self._source = source
        self._read = audio
        self._key: tuple[str, int] | None = None
        self._seen: set[tuple[str, int]] = set()
        self._last_row = -1

    def select(self, run: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """Load the row group of R rows; return the rows that can be published and their clips' positions in it."""
        key = (run.column("audio_file")[0].as_py(), run.column("audio_row_group")[0].as_py())
        if key != self._key:
            self._load(key)
        positions = _numbers(run, "audio_row")
        self._check(positions)
        reasons = self._reasons.take(pa.array(positions))
        for count in reasons.drop_null().value_counts().to_pylist():
            self.left_out[count["values"]] += count["counts"]
        usable = reasons.is_null()
        return run.filter(usable), positions[_mask(usable)]

    def sizes(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Bytes of the clips at these positions."""
        taken: npt.NDArray[np.int64] = self._sizes[positions]
        return taken

    def copy(self, positions: npt.NDArray[np.int64], buffer: _ClipBuffer) -> None:
        """Append the clips at these positions to a buffer."""
        starts, ends = self._offsets[positions], self._offsets[positions + 1]
        apart = np.flatnonzero(ends[:-1] != starts[1:])  # clips that lie side by side are copied together
        for start, end in zip(starts[[0, *(apart + 1)]], ends[[*apart, -1]], strict=True):
            buffer.append(self._data[start:end])
        buffer.close_clips(self._sizes[positions], self._paths.take(pa.array(positions)))

    def _load(self, key: tuple[str, int]) -> None:
        if key in self._seen:
            raise ReleaseError(f"{self._source}: rows of {key[0]}, row group {key[1]}, are not together")
        self._seen.add(key)
        self._key, self._last_row = key, -1
        self._data = np.empty(0, np.uint8)  # let go of the last row group before the next one is read
        column = self._read(*key)
        # Unlike StructArray.field, struct_field turns a missing struct into missing bytes.
        clips = pc.struct_field(column, "bytes")
        self._paths = file_names(pc.struct_field(column, "path"))
        self._sizes = pc.fill_null(pc.binary_length(clips), 0).cast(pa.int64()).to_numpy()
        self._reasons = _reasons_to_leave_out(clips)
        self._offsets, self._data = _layout(clips)

    def _check(self, positions: npt.NDArray[np.int64]) -> None:
        """Refuse positions that would read another clip than the one staged, or one clip twice."""
        file, row_group = self._key or ("", -1)
        if positions.max() >= len(self._sizes) or positions.min() < 0:
            raise ReleaseError(
                f"{self._source}: {file}, row group {row_group}, has {len(self._sizes)} rows, but row "
                f"{positions.max()} was staged from it: the file has changed since; ingest {self._source} again"
            )
        if positions[0] < self._last_row or (np.diff(positions) < 0).any():
            raise ReleaseError(f"{self._source}: rows of {file}, row group {row_group}, are not ordered by audio_row")
        self._last_row = int(positions[-1])


def _layout(clips: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """N + 1 offsets of a binary array's values, and the data that they point into, which is not copied."""
    _, offsets, data = clips.buffers()
    width = np.int64 if pa.types.is_large_binary(clips.type) else np.int32
    if offsets is None or data is None:
        return np.zeros(len(clips) + 1, np.int64), np.empty(0, np.uint8)
    edges = np.frombuffer(offsets, width)[clips.offset : clips.offset + len(clips) + 1]
    return edges.astype(np.int64), np.frombuffer(data, np.uint8)


def _reasons_to_leave_out(clips: pa.Array) -> pa.StringArray:
    """Why each of N clips cannot be published; NULL where it can."""
    head = pc.binary_slice(clips, 0, _HEAD_BYTES)
    is_empty = pc.equal(pc.binary_length(clips), 0)
    is_other = pc.invert(pc.match_substring_regex(head, _AUDIO_HEAD))
    is_cut = pc.less(pc.binary_length(clips), _SMALLEST_CLIP)
    # A missing clip is the first case; in the others it is NULL, which case_when takes for no.
    return pc.case_when(
        pc.make_struct(clips.is_null(), is_empty, is_other, is_cut),
        pa.scalar("audio missing"),
        pa.scalar("audio empty"),
        pa.scalar("not audio"),
        pa.scalar("audio cut off"),
    )


class _ClipBuffer:
    """The distinct clips of one row group, one after the other in memory that every row group uses again.

    Fresh arrays would do, but joining them copies once more, and the allocator keeps what they leave behind (tried:
    160 MB more RSS).

    Attributes:
        count: Clips.
        size: Their bytes.
    """

    def __init__(self, capacity: int) -> None:
        self._data = np.empty(capacity, np.uint8)
        self.clear()

    def clear(self) -> None:
        """Begin with the next row group; arrays given out before are no longer valid."""
        self.count = self.size = self._end = 0
        self._sizes: list[npt.NDArray[np.int64]] = []
        self._paths: list[pa.StringArray] = []

    def append(self, data: npt.NDArray[np.uint8]) -> None:
        """Append the bytes of one clip, or of several that lie side by side."""
        end = self._end + len(data)
        if end > len(self._data):  # a single clip above the limit
            self._data = np.concatenate([self._data[: self._end], data])
        else:
            self._data[self._end : end] = data
        self._end = end

    def close_clips(self, sizes: npt.NDArray[np.int64], paths: pa.StringArray) -> None:
        """Say where the clips appended since the last call end, and what they are called."""
        self._sizes.append(sizes)
        self._paths.append(paths)
        self.count += len(sizes)
        self.size += int(sizes.sum())

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each clip."""
        return np.concatenate(self._sizes)

    def paths(self) -> pa.StringArray:
        """Path of each clip."""
        return pa.concat_arrays(self._paths)

    def take(self, index: npt.NDArray[np.int32]) -> pa.DictionaryArray:
        """The clips at these positions, as a dictionary over this buffer's memory and an index."""
        sizes = self.sizes()
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        clips = pa.Array.from_buffers(
            pa.binary(), self.count, [None, offsets.buffers()[1], pa.py_buffer(self._data[: self.size])]
        )
        indices = pa.array(index)
        if self._may_repeat(sizes):
            # A dictionary that repeats a value makes the Parquet writer give up on it and store every row's bytes.
            encoded = clips.dictionary_encode()
            clips, indices = encoded.dictionary, encoded.indices.take(indices)
        return pa.DictionaryArray.from_arrays(indices, clips)

    def _may_repeat(self, sizes: npt.NDArray[np.int64]) -> bool:
        """Whether clips may be equal, as corpora do repeat clips: same size, same bytes at 64 places.

        Comparing all bytes of every row group would cost a quarter of the writer's time.
        """
        starts = np.cumsum(sizes) - sizes
        places = starts[:, None] + (np.linspace(0, 1, 64) * (sizes[:, None] - 1)).astype(np.int64)
        samples = np.column_stack([sizes.view(np.uint8).reshape(self.count, -1), self._data[places]])
        return len(np.unique(samples, axis=0)) < self.count


class _RowGroupBuilder:
    """Collects a split's rows and their distinct clips until a row group is full, then has it written."""

    def __init__(self, shards: _ShardWriter, limit: int, writing: Executor) -> None:
        self._clips_written = 0
        self._rows_by_mode: Counter[str] = Counter()
        self._arrow_bytes = 0
        self._shards = shards
        self._limit = limit
        self._clips, self._clips_in_writing = _ClipBuffer(limit), _ClipBuffer(limit)
        self._writing = writing
        self._written: Future[None] | None = None
        self._tables: list[pa.Table] = []
        self._index: list[npt.NDArray[np.int32]] = []  # per table: each row's clip, counted within the row group
        self._last_clip: tuple[str, int, int] | None = None

    def add(self, rows: pa.Table, positions: npt.NDArray[np.int64], clips: _SourceClips) -> None:
        """Add R rows of one row group of the corpus, whose clips lie at these R ascending positions."""
        if not len(rows):
            return
        file, row_group = rows.column("audio_file")[0].as_py(), rows.column("audio_row_group")[0].as_py()
        # A table may end amid a clip's modes: then the first rows belong to the last clip of the open row group.
        is_new = np.diff(positions, prepend=-1) != 0
        is_new[0] = (file, row_group, int(positions[0])) != self._last_clip
        self._last_clip = (file, row_group, int(positions[-1]))
        first_rows = np.flatnonzero(is_new)
        sizes = clips.sizes(positions[first_rows])

        continued = int(first_rows[0]) if len(first_rows) else len(rows)
        self._append(rows.slice(0, continued), is_new[:continued], self._clips.count)
        start = 0
        while start < len(first_rows):
            room = self._limit - self._clips.size
            fitting = int(np.searchsorted(np.cumsum(sizes[start:]), room, side="right"))
            if not fitting and self._clips.count:
                self._flush()
                continue
            end = start + max(fitting, 1)
            from_row = int(first_rows[start])
            to_row = int(first_rows[end]) if end < len(first_rows) else len(rows)
            before = self._clips.count
            clips.copy(positions[first_rows[start:end]], self._clips)
            self._append(rows.slice(from_row, to_row - from_row), is_new[from_row:to_row], before)
            start = end

    def _append(self, rows: pa.Table, is_new: npt.NDArray[np.bool_], clips_before: int) -> None:
        """Append rows, each of which opens the next clip or belongs to the one before it."""
        if len(rows):
            self._tables.append(rows)
            self._index.append(clips_before - 1 + np.cumsum(is_new, dtype=np.int32))

    def finish(self) -> WrittenSplit | None:
        """Write the rest and close the files; None if there was no row."""
        self._flush()
        self._wait()
        if not self._rows_by_mode:
            return None
        return WrittenSplit(self._shards.finish(), dict(self._rows_by_mode), self._clips_written, self._arrow_bytes)

    def _wait(self) -> None:
        """Wait until the last row group is written; raise what went wrong with it."""
        if self._written:
            self._written.result()

    def _flush(self) -> None:
        """Have what was collected written as one row group."""
        if not self._tables:
            return
        index = np.concatenate(self._index).astype(np.int32)
        paths = self._clips.paths().take(pa.array(index))
        audio = pa.StructArray.from_arrays([self._clips.take(index), paths], ["bytes", "path"])
        records = build_records(pa.concat_tables(self._tables), audio)
        self._wait()
        self._written = self._writing.submit(self._shards.write, records, self._clips.size)

        self._clips_written += self._clips.count
        for modes in modes_or_tasks(records).value_counts().to_pylist():
            self._rows_by_mode[modes["values"]] += modes["counts"]
        self._arrow_bytes += int(self._clips.sizes()[index].sum())
        self._arrow_bytes += paths.nbytes + records.drop_columns("audio").nbytes
        self._tables, self._index = [], []
        self._clips, self._clips_in_writing = self._clips_in_writing, self._clips
        self._clips.clear()


class _ShardWriter:
    """Writes a split's row groups into `<split>-*.parquet`, opening the next file when one is full.

    The number of shards, which their names tell, is known at the end: until then they are `<split>-00000.tmp`.
    """

    def __init__(self, directory: Path, split: SplitName, shard_bytes: int) -> None:
        self._directory = directory
        self._split = split
        self._shard_bytes = shard_bytes
        self._shards: list[_Shard] = []
        self._open: _Shard | None = None
        # Hashing costs more than writing where the CPU has no SHA instructions (tried: 0.4 against 0.6 GB/s), so a
        # thread does it, from the page cache, behind the writer.
        self._hashing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hashing.shutdown(cancel_futures=True)
        for shard in self._shards:
            shard.abandon()

    def write(self, records: pa.Table, size: int) -> None:
        """Write N records as one row group of about `size` bytes."""
        if self._open is None or self._open.size + size > self._shard_bytes:
            self._close_shard()
            self._directory.mkdir(parents=True, exist_ok=True)
            path = self._directory / f"{self._split}-{len(self._shards):05d}.tmp"
            self._open = _Shard(path, records.schema, self._hashing)
            self._shards.append(self._open)
        self._open.write(records)

    def finish(self) -> tuple[WrittenFile, ...]:
        """Close the last shard, wait for the hashes, and give all shards their names."""
        self._close_shard()
        return tuple(
            shard.rename(f"{self._split}-{number:05d}-of-{len(self._shards):05d}.parquet")
            for number, shard in enumerate(self._shards)
        )

    def _close_shard(self) -> None:
        if self._open:
            self._open.close()
            self._open = None


class _Shard:
    """One Parquet file, and the hash that follows it.

    Attributes:
        size: Bytes written so far.
    """

    def __init__(self, path: Path, schema: pa.Schema, hashing: Executor) -> None:
        self.size = 0
        self._path = path
        self._rows = 0
        self._hashing = hashing
        self._hashes: list[Future[None]] = []
        self._digest = hashlib.sha256()
        self._sink = pa.OSFile(str(path), "wb")
        self._written = path.open("rb", buffering=0)
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression=_COMPRESSION,
            use_dictionary=_DICTIONARY_COLUMNS,
            dictionary_pagesize_limit=_DICTIONARY_LIMIT,
            use_content_defined_chunking=True,
            write_statistics=_STATISTICS_COLUMNS,
            write_page_index=True,
            # The Arrow schema would make readers give the dictionary back; without it they follow the Parquet schema.
            store_schema=False,
        )
        self._writer.add_key_value_metadata(PUBLISHED_SCHEMA.metadata)

    def write(self, records: pa.Table) -> None:
        """Write N records as one row group."""
        self._writer.write_table(records, row_group_size=len(records))
        self._rows += len(records)
        self._follow()

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()
        self._follow()
        self._sink.close()
        self._hashes.append(self._hashing.submit(self._bring_to_disk))

    def rename(self, name: str) -> WrittenFile:
        """Give the closed file its name and return its facts, waiting for its hash."""
        for done in self._hashes:
            done.result()
        self._path.rename(self._path.with_name(name))
        return WrittenFile(name, self._rows, self.size, self._digest.hexdigest())

    def abandon(self) -> None:
        """Let go of the file; after an error, what it holds is of no use."""
        if self._writer.is_open:
            with suppress(OSError):
                self._writer.close()
            self._writer.is_open = False  # a full disk fails the footer too: no second try when it is collected
        self._sink.close()
        self._written.close()

    def _follow(self) -> None:
        """Have what was written since the last call hashed; it never changes again."""
        written = int(self._sink.tell())
        self._hashes.append(self._hashing.submit(self._hash, written - self.size))
        self.size = written

    def _bring_to_disk(self) -> None:
        """Flush the file while the next one is written, not all of them at the end."""
        os.fsync(self._written.fileno())
        self._written.close()

    def _hash(self, count: int) -> None:
        while count:
            chunk = self._written.read(min(_CHUNK_BYTES, count))
            if not chunk:
                raise OSError(f"{self._path} is shorter than what was written to it")
            self._digest.update(chunk)
            count -= len(chunk)
