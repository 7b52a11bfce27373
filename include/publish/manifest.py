"""`manifest.json`: what a release holds and what it was made from. It decides what the next release may reuse."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from include.schema import BadInputError, Task, merge_counts

MANIFEST_NAME = "manifest.json"

_OWN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")
_RELEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_DATA_PATH = re.compile(r"data(/[A-Za-z0-9_][A-Za-z0-9._+-]*)+")


class ReleaseError(BadInputError):
    """A release cannot be built or is not what its manifest says; the message names the release and the reason."""


class UnreadableError(ReleaseError):
    """The manifest of a target's latest release is not there, or is none of this version."""


@dataclass(frozen=True)
class Base:
    """What a release was built on: the only one, besides itself, whose place it may take.

    Attributes:
        release_id: The target's latest release when it was built; None: the target had none.
    """

    release_id: str | None

    def check(self, uri: str, release_id: str, latest: str | None) -> None:
        """Refuse to put a release in the place of one that it does not know.

        Args:
            uri: The target.
            release_id: What is to be published.
            latest: What the target's readers get now; None: nothing.

        Raises:
            ReleaseError: If that is neither the base nor the release itself.
        """
        if latest not in (self.release_id, release_id):
            raise ReleaseError(
                f"{uri}: release {release_id} was built on {self.release_id or 'no release'}, but the latest one is "
                f"{latest or 'none'} by now; what that holds would be lost, so nothing was published. {AGAIN}"
            )


AGAIN = (
    "Run generate_and_publish again: nothing is generated again, the release is merged on the latest one. "
    "With force=true it takes the latest one's place as it is"
)


def is_own_id(name: str) -> bool:
    """Tell whether a folder has the name that `merge` gives a release: its time, and a hash of its content.

    Others may keep folders beside the releases, with a manifest.json of their own: those are not ours to remove.
    """
    return _OWN_ID.fullmatch(name) is not None


def is_release_id(name: str) -> bool:
    """Tell whether a release's folder may have this name."""
    return _RELEASE_ID.fullmatch(name) is not None and name != "latest"


def _release_id(name: str) -> str:
    if not is_release_id(name):
        raise ValueError(f"{name[:200]!r} is no folder name of letters, digits and ._+-")
    return name


def _data_path(path: str) -> str:
    if not _DATA_PATH.fullmatch(path):
        raise ValueError(f"{path[:200]!r} is no path of names of letters, digits and ._+- below data/")
    return path


# A manifest may come from a target that others can write to, and what it names is written to and read on this machine.
DataPath = Annotated[str, AfterValidator(_data_path)]
ReleaseId = Annotated[str, AfterValidator(_release_id)]


class FileEntry(BaseModel):
    """One data file.

    Attributes:
        path: Path within the release, with "/", below data/.
        rows: Records in it.
        bytes: Its size.
        sha256: Hex digest of its bytes.
    """

    model_config = ConfigDict(frozen=True)

    path: DataPath
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SplitEntry(BaseModel):
    """One side of a source: what is trained on, or what is held out.

    Attributes:
        rows_by_mode: Records by mode, and by task where they have no mode.
        clips: Distinct clips.
        arrow_bytes: Size of its rows as an Arrow table, which is what `datasets` calls a split's `num_bytes`.
        files: Its data files, in order; at least one.
    """

    model_config = ConfigDict(frozen=True)

    rows_by_mode: dict[str, int]
    clips: int = Field(ge=1)
    arrow_bytes: int = Field(ge=1)
    files: tuple[FileEntry, ...] = Field(min_length=1)

    @property
    def rows(self) -> int:
        """Records: clips times their modes."""
        return sum(self.rows_by_mode.values())


class SourceEntry(BaseModel):
    """One source's part of a release: rows of all splits + sum(left_out) = accepted.

    Attributes:
        fingerprint: Hash over its staged rows, responses, sides and blob ids; equal fingerprints mean equal files.
        revision: Revision of the corpus that was staged.
        licence: Licence as the corpus states it.
        redistributable: Whether its audio may be published again.
        task: What its rows are for: "sift", "transcribe" or "answer".
        accepted: Rows that the warehouse held for it: accepted responses, or staged samples where the task needs none.
        modes: Mode name -> mode_hash under which its responses were written; a part that was kept from an earlier
            release keeps its own.
        prompts: Mode name -> digest over the prompt hashes of its responses.
        generator: "<model>@<revision>" that wrote its responses; None where the task needs none.
        splits: "train" and "heldout"; one without a row is not there.
        left_out: Rows that could not be published, by reason.
    """

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    revision: str
    licence: str
    redistributable: bool
    task: Task
    accepted: int = Field(ge=0)
    modes: dict[str, str]
    prompts: dict[str, str]
    generator: str | None
    splits: dict[Literal["train", "heldout"], SplitEntry]
    left_out: dict[str, int]

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Its data files; none when it has no row."""
        return tuple(file for split in self.splits.values() for file in split.files)

    @property
    def rows_by_mode(self) -> dict[str, int]:
        """Records of all splits by mode, and by task where they have no mode."""
        return merge_counts(*(split.rows_by_mode for split in self.splits.values()))

    @property
    def rows(self) -> int:
        """Records of all splits."""
        return sum(split.rows for split in self.splits.values())

    @property
    def clips(self) -> int:
        """Distinct clips of all splits; none is in two."""
        return sum(split.clips for split in self.splits.values())


class Gate(BaseModel):
    """A check that the release had to pass, as it was measured.

    Attributes:
        name: What is checked.
        measured: What was found.
        limit: What is allowed.
        passed: Whether it is; always true in a promoted release.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    measured: str
    limit: str
    passed: bool


class Manifest(BaseModel):
    """Everything a release holds.

    Attributes:
        release_id: Name of the release's folder.
        created_at: When it was built, UTC.
        writer_version: Version of the code that lays out data files; files of another version are not reused.
        sources: Source name -> its part.
        generator: What the responses depend on besides sample and mode: model, revision, template, frozen date, ...;
            empty when no source needs one.
        modes: Mode name -> mode_hash.
        narrowed: Why it is only a trial, as "with max_samples=5"; None: it holds all that is complete.
        verdicts: Mode name -> verdict -> texts, of the sources that were complete.
        quality: Mode name -> measure of its accepted responses -> value, as the newest quality report found them.
        gates: What was checked before it was promoted.
    """

    model_config = ConfigDict(frozen=True)

    release_id: ReleaseId
    created_at: AwareDatetime
    writer_version: int
    sources: dict[str, SourceEntry]
    generator: dict[str, Any]
    modes: dict[str, str]
    narrowed: str | None = None
    verdicts: dict[str, dict[str, int]]
    quality: dict[str, dict[str, float]]
    gates: tuple[Gate, ...]

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every data file, source by source."""
        return tuple(file for source in self.sources.values() for file in source.files)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Source name -> fingerprint."""
        return {name: source.fingerprint for name, source in self.sources.items()}

    def to_json(self) -> str:
        """Write it as JSON that is the same for equal manifests: keys sorted, indented by two, final newline."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def write_manifest(release: Path, manifest: Manifest) -> None:
    """Write the manifest of the release in that folder."""
    (release / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def read_manifest(release: Path) -> Manifest:
    """Read the manifest of the release in that folder.

    Raises:
        UnreadableError: If there is none, or it is not a manifest.
    """
    path = release / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{os.fspath(path)} is not a readable manifest: {error}") from error
    return parse_manifest(content, os.fspath(path))


def parse_manifest(content: bytes, name: str) -> Manifest:
    """Return the manifest that these bytes are.

    Raises:
        UnreadableError: If they are none; calls it by `name`.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UnreadableError(
            f"{name} is not a manifest of this version: {error.error_count()} faults, the first in {where}: "
            f"{first['msg']}"
        ) from error
