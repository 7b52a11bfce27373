"""A small corpus of real WAV clips in Parquet files, and the warehouse's rows for them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

from include.modes import MODES
from include.publish.parquet import AudioReader
from include.publish.record import AUDIO_TYPE
from include.publish.release import ReleasePlan, SourcePlan
from include.schema import Task
from include.storage.releases import PUBLISHED_ROWS_SCHEMA

AUDIO_FILE = "data/train-00000.parquet"


def wav(seed: int, seconds: float = 0.1, rate: int = 16_000) -> bytes:
    """A WAV clip of noise."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate))
    buffer = io.BytesIO()
    sf.write(buffer, noise, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@dataclass
class Corpus:
    """One source: its clips in row groups, some held out, and three responses a clip (one target without modes)."""

    folder: Path
    source: str
    clips: list[bytes | None]
    clips_per_row_group: int = 2
    cut: int = 4
    held_out: tuple[int, ...] = ()
    task: Task = "sift"
    asked_for: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / Path(AUDIO_FILE).name
        schema = pa.schema([("audio", AUDIO_TYPE)])
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, len(self.clips), self.clips_per_row_group):
                group = [
                    {"bytes": clip, "path": f"clip_{start + number}.wav"}
                    for number, clip in enumerate(self.clips[start : start + self.clips_per_row_group])
                ]
                writer.write_table(pa.table([pa.array(group, AUDIO_TYPE)], schema=schema))
        self.file = pq.ParquetFile(path)

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes of each clip's rows."""
        return tuple(MODES) if self.task == "sift" else ("",)

    def table(self) -> pa.Table:
        """All rows, clip by clip and mode by mode."""
        records = [
            {
                "source": self.source,
                "sample_id": f"{self.source}/{clip}",
                "text": f"words of clip {clip}",
                "emotion": ("happy", None)[clip % 2],
                "gender": "female",
                "age": None,
                "pace": None,
                "accent": None,
                "volume": "loud",
                "held_out": clip in self.held_out,
                "task": self.task,
                "mode": mode,
                "response": f"{mode or self.task} answers clip {clip}",
                "audio_file": AUDIO_FILE,
                "audio_row_group": clip // self.clips_per_row_group,
                "audio_row": clip % self.clips_per_row_group,
            }
            for clip in range(len(self.clips))
            for mode in self.modes
        ]
        return pa.Table.from_pylist(records, schema=PUBLISHED_ROWS_SCHEMA)

    def rows(self) -> Iterator[pa.Table]:
        """The rows in tables of `cut` rows, which end amid clips."""
        table = self.table()
        for start in range(0, len(table), self.cut):
            yield table.slice(start, self.cut)

    def audio(self, audio_file: str, row_group: int) -> pa.StructArray:
        """The audio column of one row group."""
        assert audio_file == AUDIO_FILE
        self.asked_for.append(row_group)
        return self.file.read_row_group(row_group).column("audio").combine_chunks()


@dataclass
class World:
    """Two sources and a folder for their releases."""

    releases: Path
    corpora: dict[str, Corpus]
    written: list[str] = field(default_factory=list)

    def rows(self, source: str) -> Iterator[pa.Table]:
        """Rows of one source; notes that they were asked for."""
        self.written.append(source)
        return self.corpora[source].rows()

    def audio(self, source: str) -> AudioReader:
        """Reader of one source's audio."""
        return self.corpora[source].audio

    def plan(self, release_id: str, **fingerprints: str) -> ReleasePlan:
        """A plan over all sources, with other fingerprints where they are given."""
        sources = {
            name: SourcePlan(
                fingerprint=fingerprints.get(name, "unchanged"),
                revision="abc123",
                licence="CC-BY-4.0",
                redistributable=True,
                accepted=len(corpus.modes) * len(corpus.clips),
                task=corpus.task,
                title=f"The | {name} <corpus>",
                url=f"https://example.org/{name}",
            )
            for name, corpus in self.corpora.items()
        }
        return ReleasePlan(
            release_id=release_id,
            created_at=datetime(2026, 11, 1, 12, tzinfo=UTC),
            sources=sources,
            generator={"model": "SmolLM2-135M-Instruct", "revision": "r1", "sampling": {"top_p": 0.92}, "seed": 0},
            modes=dict.fromkeys(MODES, "0123456789abcdef" * 4),
            verdicts={name: {"accepted": 3, "leaked_tag": 1} for name in MODES},
            labels={name: {"emotion": {"happy": 2, "": 1}, "accent": {"a|b\n*c*": 1}} for name in self.corpora},
        )

    def changed(self, source: str) -> World:
        """The same world after this source lost its last clip."""
        corpus = self.corpora[source]
        smaller = Corpus(corpus.folder / "changed", source, corpus.clips[:-1])
        return replace(self, corpora={**self.corpora, source: smaller}, written=[])
