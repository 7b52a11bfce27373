"""What a machine fetches of a target's latest release."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.publish import mirror
from include.publish import release as release_module
from include.publish.manifest import FileEntry
from include.publish.mirror import mirror_latest
from include.publish.release import build_release
from include.publish.targets.local import LocalTarget
from tests.include.publish.clip_corpus import World


class ElsewhereTarget(LocalTarget):
    """A target whose releases lie elsewhere."""

    is_remote = True

    def fetch(self, release_id: str, file: FileEntry, path: Path) -> None:
        raise AssertionError(f"{file.path} was fetched")


def test_nothing_is_fetched_that_cannot_be_used_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_module, "check_opens", lambda path, cache: None)
    manifest = build_release(world.releases, world.plan("r1"), world.rows, world.audio).manifest
    target = ElsewhereTarget("elsewhere", tmp_path / "staging")
    with pytest.raises(AssertionError, match="was fetched"):
        mirror_latest(target, manifest, manifest.fingerprints)
    monkeypatch.setattr(mirror, "WRITER_VERSION", manifest.writer_version + 1)
    mirror_latest(target, manifest, manifest.fingerprints)
