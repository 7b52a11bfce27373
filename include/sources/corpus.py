"""Find what there is of a corpus in the Hub's layout: its revision and its files, in a folder or on the Hub.

`datasets` resolves configurations and splits to files. A folder has no commits; hashes of its files stand for them.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from include.schema import BadInputError
from include.sources.pages import UnsafePagesError
from include.sources.recipe import SourceRecipe

HF_PREFIX = "hf://datasets"
MOST_FOOTER_BYTES = 64 << 20
"""A footer has some kilobytes per row group."""
_PARQUET_MAGIC = b"PAR1"


class SourceError(BadInputError):
    """A corpus cannot be read as its recipe says; the message names the corpus, the file or column, and what to do."""


class SourceUnavailableError(RuntimeError):
    """A corpus could not be reached just now; trying again may help."""


class NoRevisionYetError(SourceError):
    """The corpus has no revision as old as the one asked for."""


@dataclass(frozen=True)
class CorpusFile:
    """One Parquet file of a corpus.

    Attributes:
        path: Path within the repository.
        split: The corpus's split it belongs to.
        size: Bytes.
        blob_id: Identity of its content: the Hub's blob id, or in a folder a hash of size and footer.
        row_groups: Row groups that are read, ascending; None: all.
    """

    path: str
    split: str
    size: int
    blob_id: str
    row_groups: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Corpus:
    """The files of one revision of a corpus.

    Attributes:
        source: Name of the source.
        location: Folder, or "hf://datasets/<repository>@<commit>".
        revision: Commit, or in a folder a hash of all files' paths, sizes and footers.
        published_at: When the revision was committed (ISO 8601); None for a folder, which is valid at any date.
        files: The Parquet files of the recipe's splits that are read.
        rows: Rows of all files of those splits, where only some are read; None: all are read.
    """

    source: str
    location: str
    revision: str
    published_at: str | None
    files: tuple[CorpusFile, ...]
    rows: int | None = None


def resolve_corpus(
    recipe: SourceRecipe, hub: str, *, revision: str | None = None, not_after: datetime | None = None
) -> Corpus:
    """Find the revision to read and its files.

    Args:
        recipe: The corpus.
        hub: "hf://datasets", or a folder in the Hub's layout.
        revision: Pin a revision; None follows the recipe's branch. Ignored for a folder, which has just one.
        not_after: Take the newest revision that is not younger; None: the newest.

    Raises:
        SourceError: If the corpus, its configuration or a split is not there, or a file is not Parquet.
        SourceUnavailableError: If it cannot be reached just now.
        NoRevisionYetError: If every revision is younger than `not_after`.
    """
    if hub.startswith(HF_PREFIX):
        return _resolve_on_hub(recipe, revision, not_after)
    return _resolve_in_folder(recipe, Path(hub))


def group_files(files: Sequence[CorpusFile], groups: int = 8) -> list[list[CorpusFile]]:
    """Split files into at most `groups` groups of about equal bytes, largest files first.

    Returns:
        Non-empty groups; every file in exactly one.
    """
    bins: list[list[CorpusFile]] = [[] for _ in range(min(groups, len(files)))]
    sizes = [0] * len(bins)
    for file in sorted(files, key=lambda file: (-file.size, file.path)):
        smallest = sizes.index(min(sizes))
        bins[smallest].append(file)
        sizes[smallest] += file.size
    return bins


def folder_blob_id(path: Path, source: str) -> str:
    """Identity of a file in a folder: a hash of its size and its footer, so that no audio is read for it."""
    return hashlib.sha256(f"{path.stat().st_size}\n".encode() + _footer(path, source)).hexdigest()


@contextmanager
def named_errors(what: str) -> Iterator[None]:
    """Say what could not be done, and whether trying again may help.

    Raises:
        SourceUnavailableError: If the network or the server failed.
        SourceError: If the answer will be the same next time.
    """
    import httpx2

    try:
        yield
    except SourceError:
        raise
    except UnsafePagesError as error:
        raise SourceError(
            f"{what}: {error}. It may be damaged, or made to exhaust memory: fetch it again, or leave the source out"
        ) from error
    except (pa.ArrowException, OSError, ValueError, httpx2.HTTPError) as error:
        if any(_is_passing(cause) for cause in _causes(error)):
            raise SourceUnavailableError(f"{what} just now: {error}. Check the network and HF_ENDPOINT") from error
        raise SourceError(f"{what}: {error}") from error


def _resolve_in_folder(recipe: SourceRecipe, hub: Path) -> Corpus:
    folder = (hub / recipe.repository).resolve()
    if not folder.is_dir():
        raise SourceError(
            f"{recipe.name}: no folder {recipe.repository} in {hub}; point SIFT_HUB (or --hub) at a folder in the "
            "Hub's layout, or leave this source out"
        )
    files = []
    for split, path in _data_files(recipe, str(folder)):
        here = Path(os.path.normpath(path))  # ".." leads out of the folder, a link of the folder's owner may
        if not here.is_relative_to(folder):
            raise SourceError(
                f"{recipe.name}: the card of {recipe.repository} names {path}, which is not in its folder"
            )
        name = here.relative_to(folder).as_posix()
        files.append(CorpusFile(name, split, here.stat().st_size, folder_blob_id(here, recipe.name)))
    files.sort(key=lambda file: file.path)
    revision = hashlib.sha256()
    for file in files:
        revision.update(f"{file.path}\n{file.size}\n{file.blob_id}\n".encode())
    return Corpus(recipe.name, str(folder), revision.hexdigest()[:40], None, tuple(files))


def _resolve_on_hub(recipe: SourceRecipe, revision: str | None, not_after: datetime | None) -> Corpus:
    from huggingface_hub import HfApi, RepoFile

    api, wanted = HfApi(), revision or recipe.branch
    with named_errors(f"{recipe.name}: cannot list {recipe.repository}@{wanted} (private? then set HF_TOKEN)"):
        commits = api.list_repo_commits(recipe.repository, repo_type="dataset", revision=wanted)
        # Newest first. The commit asked for is the first one.
        chosen = next((c for c in commits if not_after is None or c.created_at <= not_after), None)
        if chosen is None:
            raise NoRevisionYetError(f"{recipe.name}: {recipe.repository} has no revision as old as {not_after}")
        location = f"{HF_PREFIX}/{recipe.repository}@{chosen.commit_id}"
        split_of = {
            path.removeprefix(f"{location}/"): split
            for split, path in _data_files(recipe, recipe.repository, revision=chosen.commit_id)
        }
        tree = api.list_repo_tree(recipe.repository, recursive=True, revision=chosen.commit_id, repo_type="dataset")
        files = tuple(
            CorpusFile(info.path, split_of[info.path], info.size, info.lfs.sha256 if info.lfs else info.blob_id)
            for info in sorted(tree, key=lambda info: info.path)
            if isinstance(info, RepoFile) and info.path in split_of
        )
    return Corpus(recipe.name, location, chosen.commit_id, chosen.created_at.isoformat(), files)


def _data_files(recipe: SourceRecipe, path: str, revision: str | None = None) -> list[tuple[str, str]]:
    """Let `datasets` resolve the recipe's configuration: (split, file) pairs of its splits."""
    from datasets import load_dataset_builder

    # Without a card that names them there are no configurations: the patterns say all.
    patterns = {split: list(names) for split, names in (recipe.data_files or {}).items()}
    config = None if patterns else recipe.config
    with (
        named_errors(f"{recipe.name}: {recipe.repository}, configuration {recipe.config!r}, cannot be resolved"),
        tempfile.TemporaryDirectory() as cache,
    ):
        builder = load_dataset_builder(path, config, data_files=patterns or None, revision=revision, cache_dir=cache)
    by_split = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    missing = [split for split in recipe.splits if not by_split.get(split)]
    if missing:
        raise SourceError(
            f"{recipe.name}: {recipe.repository} has no files for split {', '.join(missing)}; it has {sorted(by_split)}"
        )
    return [(split, file) for split in recipe.splits for file in by_split[split]]


def _footer(path: Path, source: str) -> bytes:
    """Return the bytes of a Parquet footer: schema, row groups and their statistics."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size >= 12:
            file.seek(size - 8)
            length, magic = struct.unpack("<I4s", file.read(8))
            if magic == _PARQUET_MAGIC and length > MOST_FOOTER_BYTES:
                raise SourceError(f"{source}: {path.name} has a footer of {length >> 20} MiB, which no sound file has")
            if magic == _PARQUET_MAGIC and length <= size - 12:
                file.seek(size - 8 - length)
                return file.read(length)
    raise SourceError(
        f"{source}: {path.name} is not a whole Parquet file (no footer; cut off while copying?). Fetch it again"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_passing(error: BaseException) -> bool:
    """Whether an error is of the network or the server, not of what was asked for."""
    import httpx2

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in (408, 429) or status >= 500
    return isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError)
