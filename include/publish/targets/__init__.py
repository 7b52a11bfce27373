"""Where releases go: a folder, an S3 bucket, a dataset repository on the Hub; one protocol for all.

A release is always built and verified in a folder of this machine first (`Target.staging`). `push` then makes it what
readers of the target get: whole or not at all, whatever fails and however the process dies.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from include.publish.manifest import Base, FileEntry, Manifest, UnreadableError
from include.schema import BadInputError, HubAccount
from include.settings import Settings

log = logging.getLogger(__name__)

LOCAL = "local"


@dataclass(frozen=True)
class Pushed:
    """What a push did with the data files of a release, counted.

    Attributes:
        uri: Where the release lies now.
        commit: Commit on the Hub; None elsewhere.
        sent_files: Files that were written or uploaded; card and manifest are not counted.
        sent_bytes: Their bytes.
        copied_files: Files that the store copied from the release before; nothing went over the wire.
        copied_bytes: Their bytes.
        kept_files: Files that were there: of the release before, or sent by a push that died.
        kept_bytes: Their bytes.
    """

    uri: str
    commit: str | None = None
    sent_files: int = 0
    sent_bytes: int = 0
    copied_files: int = 0
    copied_bytes: int = 0
    kept_files: int = 0
    kept_bytes: int = 0


class Target(Protocol):
    """One place that holds releases.

    Attributes:
        uri: As users name it; never with credentials.
        staging: Folder of this machine where releases for it are built; its link `latest` names what was pushed last.
        is_remote: Whether releases lie elsewhere, so that those in `staging` are copies.
    """

    uri: str
    staging: Path
    is_remote: bool

    def latest(self) -> Manifest | None:
        """Return the manifest of the release that readers get; None if there is none.

        Raises:
            UnreadableError: If there is a release, but not its manifest, or none of this version.
            BadInputError: If the target is not there, or must not be read with these credentials.
        """
        ...

    def is_public(self) -> bool:
        """Whether anybody can read what is pushed there."""
        ...

    def fetch(self, release_id: str, file: FileEntry, path: Path) -> None:
        """Bring one data file of the latest release to this machine; the caller checks its hash.

        Raises:
            FileNotFoundError: If the target does not have it.
        """
        ...

    def push(self, release: Path, manifest: Manifest, base: Base | None = None) -> Pushed:
        """Make a verified release the latest one, and read it back; a push that died is continued.

        Args:
            release: Its folder; not looked at when the target holds the release already.
            manifest: Its manifest.
            base: Whose place it may take; None: that of whatever is the latest one when the push begins.

        Raises:
            ReleaseError: If the latest one is not the base, somebody else published meanwhile, or what is there is not
                what was sent.
        """
        ...

    def prune(self, keep: int) -> list[str]:
        """Remove old releases and what pushes that died left behind; never the latest release, nor what is not ours.

        Args:
            keep: Releases to keep, with the latest; 0: all.

        Returns:
            Ids of what was removed.
        """
        ...


def latest_release(target: Target, *, force: bool) -> Manifest | None:
    """Return what `Target.latest` does; with `force`, None for a release that cannot be read.

    Taking an unreadable release for none would drop every source from the next one that is not complete here, and pass
    the guards that compare the two. Only a person can tell that nothing is lost.

    Raises:
        BadInputError: As `Target.latest`.
    """
    try:
        return target.latest()
    except UnreadableError as error:
        if not force:
            raise UnreadableError(
                f"{target.uri}: its latest release cannot be read: {error}. Bring it back, or point the target to an "
                "earlier one; with force=true the next release is built from scratch, without what is not complete here"
            ) from error
        log.warning("%s: the next release is built from scratch, as force=true asks for: %s", target.uri, error)
        return None


def open_target(
    uri: str,
    settings: Settings,
    *,
    private: bool,
    s3_client: Callable[[], Any],
    hub_account: Callable[[], HubAccount],
) -> Target:
    """Return the target of a URI.

    Args:
        uri: "local", a folder's absolute path, "s3://bucket/prefix" or "hf://datasets/org/name".
        settings: For the places on this machine.
        private: Whether a remote target is meant for members only.
        s3_client: Makes the client; called for an S3 target only.
        hub_account: Likewise, for one on the Hub.

    Raises:
        BadInputError: If the URI names no target.
    """
    from include.publish.targets.hub import HubTarget
    from include.publish.targets.local import LocalTarget
    from include.publish.targets.s3 import S3Target

    uri = canonical_uri(uri, settings)
    if uri == LOCAL:
        return LocalTarget(LOCAL, settings.releases_dir)
    if match := re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*?))?/*", uri):
        bucket, prefix = match[1], match[2] or ""
        return S3Target(bucket, prefix, _staging(settings, uri), s3_client(), private=private)
    if match := re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)/*", uri):
        return HubTarget(match[1], _staging(settings, uri), hub_account(), private=private)
    if "://" not in uri and Path(uri).is_absolute():
        return LocalTarget(uri, Path(uri))
    raise BadInputError(
        f"target {uri!r}: give 'local', the absolute path of a folder, s3://bucket/prefix or hf://datasets/org/name"
    )


def canonical_uri(uri: str, settings: Settings) -> str:
    """Return the one spelling of a target's URI: no slash at its end, and "local" for the releases folder's path.

    What is recorded under it, and guarded as everybody's target, must not depend on how somebody typed it.
    """
    if "://" in uri:
        return uri if uri.endswith("://") else uri.rstrip("/")
    if not Path(uri).is_absolute():
        return uri
    same = Path(uri).resolve() == settings.releases_dir.resolve()
    return LOCAL if same else os.path.normpath(uri)


def _staging(settings: Settings, uri: str) -> Path:
    """Folder where releases of a remote target are built; its name tells people which one it is."""
    uri = uri.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", uri)
    return settings.home / "targets" / f"{name[:80]}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
