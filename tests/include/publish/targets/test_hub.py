"""Releases on the Hub's stand-in: one commit each, sent once, whole or not there whatever fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import DatasetCard, constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import _http

from include.publish import release as release_module
from include.publish.guards import LicenceError, check_licences
from include.publish.manifest import ReleaseError
from include.publish.mirror import mirror_latest
from include.publish.release import Release, build_aside, latest_manifest, promote
from include.publish.targets import Pushed, hub
from include.publish.targets.hub import HubTarget
from include.schema import BadInputError, HubAccount
from include.settings import PROJECT_ROOT
from tests.hub_server import TOKEN, HubServer, Repository
from tests.include.publish.clip_corpus import World

NAME = "org/sift"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub out, to this machine only, over HTTP; and leave out the process that opens a release."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(release_module, "check_opens", lambda path, cache: None)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after the first error, here and inside huggingface_hub."""
    monkeypatch.setattr(hub, "TRIES", 1)
    monkeypatch.setattr(_http.http_backoff, "__kwdefaults__", {
        **_http.http_backoff.__kwdefaults__, "max_retries": 0
    })  # fmt: skip


@pytest.fixture
def target(server: HubServer, tmp_path: Path) -> HubTarget:
    return target_of(server, tmp_path / "staging")


def target_of(server: HubServer, staging: Path, *, private: bool = True, token: str = TOKEN) -> HubTarget:
    return HubTarget(NAME, staging, HubAccount(token, server.endpoint), private=private)


def build(world: World, target: HubTarget, release_id: str, **fingerprints: str) -> Release:
    return build_aside(target.staging, world.plan(release_id, **fingerprints), world.rows, world.audio)


def publish(world: World, target: HubTarget, release_id: str, **fingerprints: str) -> Pushed:
    release = build(world, target, release_id, **fingerprints)
    pushed = target.push(release.path, release.manifest)
    promote(target.staging, release_id)
    return pushed


def repository(server: HubServer) -> Repository:
    return server.repositories[NAME]


def titles(server: HubServer) -> list[str]:
    return [commit.title for commit in repository(server).branches["main"].history()]


def sources(server: HubServer, release: Release) -> set[str]:
    """Sources whose data was uploaded since the last reset."""
    sent = server.uploaded()
    return {file.path.split("/")[1] for file in release.manifest.files if file.sha256 in sent}


def test_a_release_is_one_commit_with_a_tag_in_a_private_repository(
    server: HubServer, target: HubTarget, world: World
) -> None:
    assert target.latest() is None
    pushed = publish(world, target, "r1")
    manifest = latest_manifest(target.staging)
    assert manifest is not None and target.latest() == manifest
    assert repository(server).private
    assert titles(server) == ["Release r1", "initial commit"]
    assert repository(server).tags["r1"].sha == pushed.commit == repository(server).branches["main"].sha
    files = repository(server).branches["main"].files
    assert set(files) == {".gitattributes", "README.md", "manifest.json", *(file.path for file in manifest.files)}
    size = sum(file.bytes for file in manifest.files)
    assert pushed == Pushed(f"hf://datasets/{NAME}@r1", pushed.commit, sent_files=2, sent_bytes=size)
    assert sum(server.uploaded().values()) == size


def test_the_cards_metadata_is_what_datasets_needs(server: HubServer, target: HubTarget, world: World) -> None:
    publish(world, target, "r1")
    committed = repository(server).branches["main"].files["README.md"].content
    assert committed == (target.staging / "latest" / "README.md").read_bytes()
    data = DatasetCard(committed.decode()).data.to_dict()
    assert data["configs"] and data["dataset_info"]
    release = build(world.changed("meld"), target, "r2", meld="other")
    (release.path / "README.md").write_text("---\nlicense: other\n---\n# Nothing\n")
    with pytest.raises(ReleaseError, match=r"front matter of README.md has no configs and no dataset_info"):
        target.push(release.path, release.manifest)
    assert repository(server).branches["main"].files["README.md"].content == committed


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_every_split_and_row(
    server: HubServer, target: HubTarget, world: World, tmp_path: Path, streaming: bool
) -> None:
    publish(world, target, "r1")
    code = f"""
import json
from datasets import Audio, load_dataset
found = {{}}
for config in ("default", "omni"):
    for name, rows in load_dataset({NAME!r}, config, revision="r1", streaming={streaming}).items():
        rows = list(rows.cast_column("audio", Audio(decode=False)))
        found[f"{{config}} {{name}}"] = [len(rows), len(rows[0]["audio"]["bytes"])]
print(json.dumps(found), flush=True)
import os
os._exit(0)  # pyarrow's threads may still read ahead
"""
    environment = server.environment(tmp_path / "hf", HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first = {name: [3 * len(corpus.clips), len(corpus.clips[0])] for name, corpus in world.corpora.items()}
    found = json.loads(done.stdout.splitlines()[-1])
    rows, _ = found.pop("omni train")
    assert found == {f"default {name}": expected for name, expected in first.items()}
    assert rows == sum(count for count, _ in first.values())


def test_a_refresh_of_one_source_uploads_that_source_only(server: HubServer, target: HubTarget, world: World) -> None:
    publish(world, target, "r1")
    before = latest_manifest(target.staging)
    server.reset()
    pushed = publish(world.changed("meld"), target, "r2", meld="other")
    after = target.latest()
    assert before and after
    (same,), (new,) = after.sources["ravdess"].files, after.sources["meld"].files
    assert same == before.sources["ravdess"].files[0]
    assert server.uploaded() == {new.sha256: new.bytes}
    assert (pushed.sent_files, pushed.sent_bytes, pushed.kept_files, pushed.kept_bytes) == (1, new.bytes, 1, same.bytes)
    assert set(repository(server).tags) == {"r1", "r2"}
    assert titles(server) == ["Release r2", "Release r1", "initial commit"]


def test_files_that_are_gone_are_deleted_in_the_same_commit(server: HubServer, target: HubTarget, world: World) -> None:
    publish(world, target, "r1")
    del world.corpora["meld"]
    publish(world, target, "r2")
    files = repository(server).branches["main"].files
    assert not any(path.startswith("data/meld/") for path in files)
    assert any(path.startswith("data/meld/") for path in repository(server).tags["r1"].files)
    assert titles(server)[0] == "Release r2"


def test_another_machine_takes_the_latest_release_up(
    server: HubServer, target: HubTarget, world: World, tmp_path: Path
) -> None:
    publish(world, target, "r1")
    elsewhere = target_of(server, tmp_path / "another machine")
    manifest = elsewhere.latest()
    assert manifest
    mirror_latest(elsewhere, manifest, {"ravdess": "unchanged", "meld": "other"})
    changed = world.changed("meld")
    pushed = publish(changed, elsewhere, "r2", meld="other")
    assert changed.written == ["meld"]
    assert (pushed.kept_files, pushed.sent_files) == (1, 1)


FAULTS: dict[str, Callable[[HubServer], None]] = {
    "upload cut": lambda server: server.cut_upload_next("/upload/", after_bytes=1_000),
    "upload 500": lambda server: server.fail_next(500, match="/upload/"),
    "upload 429": lambda server: server.fail_next(429, match="/upload/"),
    "store full": lambda server: server.fail_next(507, match="/upload/"),
    "commit 500": lambda server: server.fail_next(500, match="/commit/"),
    "commit 429": lambda server: server.fail_next(429, match="/commit/"),
    "commit's answer lost": lambda server: server.cut_next("/commit/"),
    "tag 503": lambda server: server.fail_next(503, match="/tag/"),
    "card refused": lambda server: server.fail_next(500, match="/validate-yaml"),
    "read-back 500": lambda server: server.fail_next(500, match="README.md", times=9),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_that_fails_leaves_the_last_release_and_is_continued(
    server: HubServer, target: HubTarget, world: World, fault: str
) -> None:
    publish(world, target, "r1")
    first = target.latest()
    release = build(world.changed("meld"), target, "r2", meld="other")
    server.reset()
    FAULTS[fault](server)
    with pytest.raises((HfHubHTTPError, httpx2.TransportError, RuntimeError, LocalEntryNotFoundError)):
        target.push(release.path, release.manifest)
    server_has = sources(server, release)
    server.reset()
    committed = titles(server)[0] == "Release r2"
    assert committed == (fault in ("commit's answer lost", "tag 503", "read-back 500"))
    assert target.latest() == (release.manifest if committed else first)

    pushed = target.push(release.path, release.manifest)
    assert target.latest() == release.manifest
    assert sources(server, release) == {"meld"} - server_has  # what had arrived was not sent again
    assert titles(server) == ["Release r2", "Release r1", "initial commit"]
    assert repository(server).tags["r2"].sha == pushed.commit


@pytest.mark.parametrize("fault", ["upload cut", "commit 429", "commit's answer lost", "tag 503"])
def test_a_short_fault_is_not_even_noticed(server: HubServer, target: HubTarget, world: World, fault: str) -> None:
    publish(world, target, "r1")
    FAULTS[fault](server)
    publish(world.changed("meld"), target, "r2", meld="other")
    assert titles(server) == ["Release r2", "Release r1", "initial commit"]
    assert "r2" in repository(server).tags


def test_the_hub_is_asked_again_as_late_as_it_says(
    server: HubServer, target: HubTarget, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(world, target, "r1")
    server.fail_next(429, match="/commit/", retry_after="3")
    started = time.monotonic()
    publish(world.changed("meld"), target, "r2", meld="other")
    assert time.monotonic() - started >= 3


PUSH = f"""
import sys, time
from pathlib import Path
from include.publish.manifest import read_manifest
from include.publish.targets.hub import HubTarget
from include.schema import HubAccount
staging, step, marker = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
def hang(*_, **__):
    marker.touch()
    time.sleep(600)
import huggingface_hub.lfs
target = HubTarget("{NAME}", staging, HubAccount("{TOKEN}"), private=True)
if step == "uploading":
    send = huggingface_hub.lfs._upload_single_part
    calls = iter(range(9))  # from several threads
    huggingface_hub.lfs._upload_single_part = lambda *a, **k: hang() if next(calls) else send(*a, **k)
elif step == "uploaded":
    import huggingface_hub._commit_api
    huggingface_hub._commit_api._send_commit = hang
else:
    target._api.create_tag = hang
folder = staging / ".built-r2"
target.push(folder, read_manifest(folder))
"""


@pytest.mark.parametrize(("step", "arrived"), [("uploading", 1), ("uploaded", 2), ("committed", 2)])
def test_a_killed_push_is_continued(
    server: HubServer, target: HubTarget, world: World, tmp_path: Path, step: str, arrived: int
) -> None:
    publish(world, target, "r1")
    first = target.latest()
    world = world.changed("meld").changed("ravdess")
    release = build(world, target, "r2", meld="other", ravdess="other")
    server.reset()
    marker = tmp_path / "reached"
    environment = server.environment(tmp_path / "hf", HF_HUB_DISABLE_XET="1", PYTHONPATH=str(PROJECT_ROOT))
    command = [sys.executable, "-c", PUSH, str(target.staging), step, str(marker)]
    with subprocess.Popen(command, env=environment) as pusher:
        while not marker.exists() or len(server.uploaded()) < arrived:
            assert pusher.poll() is None
            time.sleep(0.05)
        os.kill(pusher.pid, signal.SIGKILL)
    assert len(server.uploaded()) == arrived
    assert target.latest() == (release.manifest if step == "committed" else first)

    server.reset()
    target.push(release.path, release.manifest)
    assert len(server.uploaded()) == 2 - arrived
    assert target.latest() == release.manifest
    assert titles(server) == ["Release r2", "Release r1", "initial commit"]
    assert repository(server).tags["r2"] == repository(server).branches["main"]


def test_two_publishers_do_not_overwrite_each_other(
    server: HubServer, target: HubTarget, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(world, target, "r1")
    rival = target_of(server, tmp_path / "rival")
    theirs = build(world, rival, "r2", meld="theirs")
    ours = build(world, target, "r3", meld="ours")
    create_commit = target._api.create_commit

    def overtaken(*arguments, **options):
        if titles(server)[0] == "Release r1":
            rival.push(theirs.path, theirs.manifest)
        return create_commit(*arguments, **options)

    monkeypatch.setattr(target._api, "create_commit", overtaken)
    with pytest.raises(ReleaseError, match="its release is r2 by now, somebody else's"):
        target.push(ours.path, ours.manifest)
    assert target.latest() == theirs.manifest


def test_data_that_is_not_ours_is_not_deleted(server: HubServer, target: HubTarget, world: World) -> None:
    server.commit(NAME, {"data/train.parquet": b"not ours"})
    release = build(world, target, "r1")
    with pytest.raises(ReleaseError, match="holds 1 data files that no manifest lists"):
        target.push(release.path, release.manifest)


def test_a_public_repository_is_public_whatever_the_setting_says(server: HubServer, tmp_path: Path) -> None:
    assert not target_of(server, tmp_path).is_public()
    assert target_of(server, tmp_path, private=False).is_public()
    server.commit(NAME, {"README.md": b"# Public"})
    assert target_of(server, tmp_path).is_public()
    with pytest.raises(LicenceError, match=f"hf://datasets/{NAME} is public"):
        check_licences(target_of(server, tmp_path), ["meld"])
    repository(server).private = True
    assert not target_of(server, tmp_path).is_public()


def test_a_token_that_may_not_write_is_named_and_never_shown(server: HubServer, world: World, tmp_path: Path) -> None:
    target = target_of(server, tmp_path / "staging", token="hf_wrong")
    release = build(world, target, "r1")
    with pytest.raises(BadInputError, match="the token of the Airflow connection hub may not do that") as refused:
        target.push(release.path, release.manifest)
    assert "hf_wrong" not in f"{refused.value}{target!r}{HubAccount('hf_wrong')!r}"


def test_offline_is_said_at_once(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInputError, match="cannot be reached while HF_HUB_OFFLINE is set"):
        target_of(server, tmp_path)
