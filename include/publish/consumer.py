"""Open a release as its users do, in a process of its own: `python -m include.publish.consumer RELEASE CACHE`.

A process of its own, because `datasets` reads its environment when it is imported, and because reading a split takes
memory that the publishing task would not give back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from include.publish.card import DEFAULT, config_splits
from include.publish.manifest import ReleaseError, read_manifest
from include.publish.record import AUDIO_PLACEHOLDER, published_features
from include.settings import PROJECT_ROOT

TIMEOUT_S = 900

# Read by Arrow when it is loaded: give back what is freed at once, and decode one column after the other. With these,
# and nothing read ahead, opening ten splits takes 0.5 GB of memory instead of 1.2 (tried).
_LEAN = {"MIMALLOC_PURGE_DELAY": "0", "OMP_NUM_THREADS": "1"}


def check_opens(release: Path, cache: Path) -> None:
    """Check that `datasets` opens a release: splits, features and the first row of each split, in both configurations.

    Args:
        release: Folder of the release.
        cache: Folder that `datasets` may fill; the caller removes it.

    Raises:
        ReleaseError: If it does not open, or shows something else than was published.
    """
    command = [sys.executable, "-m", "include.publish.consumer", str(release.resolve()), str(cache.resolve())]
    pa.default_memory_pool().release_unused()  # two processes share the task's memory now
    try:
        done = subprocess.run(
            command,
            cwd=PROJECT_ROOT,
            env=os.environ | _LEAN,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"{release.name}: datasets did not open it within {TIMEOUT_S} s") from error
    if done.returncode:
        raise ReleaseError(f"{release.name}: datasets does not open it: {done.stderr.strip()[-2000:]}")


def _open(release: Path) -> None:
    """Open every split of both configurations and look at its first row, as the trainer's collator does."""
    from datasets import Audio, load_dataset, load_dataset_builder
    from pyarrow.dataset import ParquetFragmentScanOptions

    lean = {"batch_size": 1, "fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
    for config, expected in config_splits(read_manifest(release)).items():
        stated = load_dataset_builder(str(release), config).info.splits or {}
        splits = load_dataset(str(release), config, streaming=True, **lean)
        if set(splits) != set(expected):
            raise ReleaseError(f"{config} shows the splits {sorted(splits)}, not {sorted(expected)}")
        for name, split in splits.items():
            where = f"split {name} of {config}"
            rows = sum(part.rows for part in expected[name])
            if stated[name].num_examples != rows:
                raise ReleaseError(f"{where} is said to have {stated[name].num_examples} rows, not {rows}")
            if split.features != published_features():
                raise ReleaseError(f"{where} has the features {split.features}")
            row = next(iter(split.cast_column("audio", Audio(decode=False))))
            if not row["audio"]["bytes"]:
                raise ReleaseError(f"{where} begins with a row without audio")
            if config == DEFAULT and row["source_dataset"] != name.removesuffix("_heldout"):
                raise ReleaseError(f"{where} begins with a row of {row['source_dataset']!r}")
            if row["messages"][0]["content"].count(AUDIO_PLACEHOLDER) != 1:
                raise ReleaseError(f"{where} begins with a row without its {AUDIO_PLACEHOLDER} placeholder")


def main(release: str, cache: str) -> int:
    """Open the release offline; return the exit status, with the reason of a failure on stderr."""
    # Read by datasets and huggingface_hub when they are imported.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": cache, "HF_DATASETS_CACHE": cache}
    try:
        _open(Path(release))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - the parent reads it
        return 1
    return 0


if __name__ == "__main__":
    sys.stderr.flush()
    # Not sys.exit: pyarrow's threads may still read ahead, and a normal exit can crash on them (apache/arrow#45214).
    status = main(sys.argv[1], sys.argv[2])
    sys.stderr.flush()
    os._exit(status)
