"""`manifest.json`: what a release holds and what it was made from. It decides what the next release may reuse."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from include.schema import BadInputError

MANIFEST_NAME = "manifest.json"


class ReleaseError(BadInputError):
    """A release cannot be built or is not what its manifest says; the message names the release and the reason."""


class FileEntry(BaseModel):
    """One data file.

    Attributes:
        path: Path within the release, with "/".
        rows: Records in it.
        bytes: Its size.
        sha256: Hex digest of its bytes.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SourceEntry(BaseModel):
    """One source's part of a release.

    Attributes:
        fingerprint: Hash over its staged rows, responses and blob ids; equal fingerprints mean equal files.
        revision: Revision of the corpus that was staged.
        licence: Licence as the corpus states it.
        redistributable: Whether its audio may be published again.
        modes: Mode name -> mode_hash under which its responses were written; a part that was kept from an earlier
            release keeps its own.
        rows: Records: clips times their modes.
        rows_by_mode: The same, by mode.
        clips: Distinct clips.
        left_out: Rows that could not be published, by reason.
        arrow_bytes: Size of its rows as an Arrow table, which is what `datasets` calls a split's `num_bytes`.
        files: Its data files, in order; none when it has no row.
    """

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    revision: str
    licence: str
    redistributable: bool
    modes: dict[str, str]
    rows: int = Field(ge=0)
    rows_by_mode: dict[str, int]
    clips: int = Field(ge=0)
    left_out: dict[str, int]
    arrow_bytes: int = Field(ge=0)
    files: tuple[FileEntry, ...]


class Manifest(BaseModel):
    """Everything a release holds.

    Attributes:
        release_id: Name of the release's folder.
        created_at: When it was built, UTC.
        writer_version: Version of the code that lays out data files; files of another version are not reused.
        sources: Source name -> its part.
        generator: What the responses depend on besides sample and mode: model, revision, template, frozen date, ...
        modes: Mode name -> mode_hash.
        max_samples: Most samples of each source, of a run that was narrowed to some; None: whole sources.
        verdicts: Mode name -> verdict -> responses.
    """

    model_config = ConfigDict(frozen=True)

    release_id: str
    created_at: AwareDatetime
    writer_version: int
    sources: dict[str, SourceEntry]
    generator: dict[str, Any]
    modes: dict[str, str]
    max_samples: int | None = None
    verdicts: dict[str, dict[str, int]]

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
        ReleaseError: If there is none, or it is not a manifest.
    """
    path = release / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ReleaseError(f"{os.fspath(path)} is not a readable manifest: {error}") from error
