"""Parquet files that are small on disk and huge in memory, or say what is not so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from include.settings import PROJECT_ROOT
from tests.include.sources.corpus_files import TOY_SCHEMA, toy_row

MIB = 1 << 20


def write_toy(hub: Path, columns: dict[str, pa.Array] | None = None, rows: int = 4, **options: object) -> Path:
    """A file of the corpus TOY in which some columns are others; returns the file."""
    table = pa.Table.from_pylist([toy_row(number) for number in range(min(rows, 4))], schema=TOY_SCHEMA)
    if rows > 4:  # the same values again: small on disk
        table = table.take(pa.array([0]).take(pa.nulls(rows, pa.int64()).fill_null(0)))
    for name, values in (columns or {}).items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    folder = hub / "org/toy/data"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "train-00000-of-00001.parquet"
    defaults = {
        "compression": "zstd",
        "dictionary_pagesize_limit": 1 << 30,
        "store_schema": False,
        "row_group_size": rows,
    }
    pq.write_table(table, file, **{**defaults, **options})
    return file


def repeated(value: str | bytes, rows: int) -> pa.DictionaryArray:
    """One value, N times, held once."""
    return pa.DictionaryArray.from_arrays(pa.nulls(rows, pa.int32()).fill_null(0), pa.array([value]))


def rewritten(file: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of the same length, which must occur."""
    content = file.read_bytes()
    assert len(old) == len(new) and old in content
    file.write_bytes(content.replace(old, new))


def varint(number: int) -> bytes:
    """A Thrift i32 or i64 that is not negative."""
    number <<= 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def peak_mib(code: str, *arguments: str, timeout_s: int = 60) -> tuple[float, str]:
    """Run code in a process of its own: MiB by which its peak exceeds what its imports took, and what it printed."""
    program = (
        "import resource, sys\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "from include import ingest\n"
        "from include.sources import reader\n"
        "from include.sources.corpus import *\n"
        "from include.sources.reader import *\n"
        "from include.publish.parquet import write_source\n"
        "from tests.include.sources.corpus_files import TOY\n"
        "from tests.include.sources.hostile_files import *\n"
        "import datasets\n"
        "before = peak()\n"
        f"{code}\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=PROJECT_ROOT,
        env={"PYTHONPATH": str(PROJECT_ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *said, grown = done.stdout.strip().splitlines()
    return float(grown), "\n".join(said)
