"""Releases in a folder of this machine, or one that it mounts: `<folder>/<release id>`, and a link `latest`."""

from __future__ import annotations

from pathlib import Path

from include.publish.manifest import Base, FileEntry, Manifest, read_manifest
from include.publish.release import LATEST, latest_manifest, promote, prune_releases
from include.publish.targets import Pushed


class LocalTarget:
    """A folder; releases are built in it, so promoting one is a rename.

    Args:
        uri: As users name it.
        folder: The folder; made by the first release.
    """

    is_remote = False

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        self.staging = folder

    def latest(self) -> Manifest | None:
        """See Target."""
        latest = self.staging / LATEST
        # A link that leads nowhere is a release that was lost, not one that never was.
        return read_manifest(latest) if latest.exists() or latest.is_symlink() else None

    def is_public(self) -> bool:
        """See Target: who may read a folder is for its owner to say."""
        return False

    def fetch(self, release_id: str, file: FileEntry, path: Path) -> None:
        """See Target: never needed, because releases are built where they lie."""
        raise FileNotFoundError(self.staging / release_id / file.path)

    def push(self, release: Path, manifest: Manifest, base: Base | None = None) -> Pushed:
        """See Target."""
        before = latest_manifest(self.staging)  # only to count
        known = {file.sha256 for file in before.files} if before else set()
        kept = [file.bytes for file in manifest.files if file.sha256 in known]
        sent = [file.bytes for file in manifest.files if file.sha256 not in known]
        promoted = promote(self.staging, manifest.release_id, base)
        return Pushed(
            str(promoted), sent_files=len(sent), sent_bytes=sum(sent), kept_files=len(kept), kept_bytes=sum(kept)
        )

    def prune(self, keep: int) -> list[str]:
        """See Target."""
        return prune_releases(self.staging, keep)
