"""Bring what this machine lacks of a target's latest release, so that unchanged sources keep their files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

from include.publish.manifest import Manifest, write_manifest
from include.publish.parquet import WRITER_VERSION
from include.publish.release import latest_manifest, promote
from include.publish.targets import Target

log = logging.getLogger(__name__)


def mirror_latest(target: Target, manifest: Manifest, fingerprints: Mapping[str, str]) -> None:
    """Make the staging folder's `latest` the target's latest release, as far as the next one needs its files.

    On the machine that pushed it nothing is missing. Another one fetches the files of the sources that stay as they
    are; the next release then has the same bytes under the same names, and they need not be uploaded. A file that the
    target lost, or that is damaged there, is left missing: its source is written anew, or refused by name.

    Args:
        target: Where it lies.
        manifest: Its manifest.
        fingerprints: Source -> fingerprint in the next release.
    """
    if not target.is_remote:  # releases are built where they lie
        return
    if manifest.writer_version != WRITER_VERSION:  # every source is written anew
        return
    folder = target.staging / manifest.release_id
    kept = [source for name, source in manifest.sources.items() if fingerprints.get(name) == source.fingerprint]
    fetched = 0
    for file in (file for source in kept for file in source.files):
        path = folder / file.path
        if path.is_file():  # its hash is compared by whoever links it
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            target.fetch(manifest.release_id, file, part)
        except FileNotFoundError:
            log.warning("%s: %s of release %s is not there", target.uri, file.path, manifest.release_id)
            continue
        with part.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                log.warning("%s: %s of release %s is damaged (sha256)", target.uri, file.path, manifest.release_id)
                part.unlink()
                continue
        part.chmod(0o444)
        part.rename(path)
        fetched += 1
    if fetched or latest_manifest(target.staging) != manifest:
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, manifest)
        promote(target.staging, manifest.release_id)
        log.info("%d files of release %s were fetched from %s", fetched, manifest.release_id, target.uri)
