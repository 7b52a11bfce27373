"""Releases in S3, on real servers: sent once, read back, whole or not there whatever fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasets
import fsspec
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from datasets import Audio, load_dataset
from huggingface_hub import DatasetCard

from include.publish import release as release_module
from include.publish.guards import LicenceError, check_licences
from include.publish.manifest import ReleaseError
from include.publish.mirror import mirror_latest
from include.publish.record import published_features
from include.publish.release import Release, build_aside, latest_manifest, promote, verify_release
from include.publish.targets import Pushed, s3
from include.publish.targets.s3 import S3Target
from include.schema import BadInputError
from include.settings import PROJECT_ROOT
from tests.include.publish.clip_corpus import Corpus, World, wav
from tests.s3_server import CREDENTIALS, S3Server, moto_server, rclone_server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each of the servers, nothing counted and nothing about to fail."""
    server: S3Server = request.getfixturevalue(request.param)
    server.reset()
    return server


@pytest.fixture(autouse=True)
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the process that opens a built release with `datasets`; here the target's is opened."""
    monkeypatch.setattr(release_module, "check_opens", lambda path, cache: None)


def new_target(server: S3Server, tmp_path: Path, prefix: str = "speech/sift") -> S3Target:
    bucket = f"bucket-{uuid4().hex}"
    server.client().create_bucket(Bucket=bucket)
    server.reset()
    return target_in(server, bucket, tmp_path / "staging", prefix)


def target_in(server: S3Server, bucket: str, staging: Path, prefix: str = "speech/sift", **options: Any) -> S3Target:
    return S3Target(bucket, prefix, staging, server.client(**options), private=True)


@pytest.fixture
def target(server: S3Server, tmp_path: Path) -> S3Target:
    """An empty bucket's prefix."""
    return new_target(server, tmp_path)


def build(world: World, target: S3Target, release_id: str, **fingerprints: str) -> Release:
    return build_aside(target.staging, world.plan(release_id, **fingerprints), world.rows, world.audio)


def publish(world: World, target: S3Target, release_id: str, **fingerprints: str) -> Pushed:
    release = build(world, target, release_id, **fingerprints)
    pushed = target.push(release.path, release.manifest)
    promote(target.staging, release_id)
    return pushed


def own_id(number: int) -> str:
    """An id as `merge` makes them; only such are pruned."""
    return f"20261101T12000{number}Z-{number:012x}"


def put(server: S3Server, target: S3Target, path: str, content: bytes) -> None:
    server.client().put_object(Bucket=target._bucket, Key=target._key(path), Body=content)


def keys(target: S3Target) -> set[str]:
    """All that lies below the prefix."""
    return {key.removeprefix(target._key("")) for key in target._keys("")}


def names(server: S3Server) -> set[str]:
    """Sources whose data was uploaded."""
    return {path.split("/data/")[1].split("/")[0] for path in server.uploaded()}


def test_a_release_arrives_whole_and_is_the_latest(server: S3Server, target: S3Target, world: World) -> None:
    assert target.latest() is None
    pushed = publish(world, target, "r1")
    manifest = latest_manifest(target.staging)
    assert manifest is not None and target.latest() == manifest
    files = {file.path for file in manifest.files}
    size = sum(file.bytes for file in manifest.files)
    assert keys(target) == {"latest.json", *(f"r1/{path}" for path in {*files, "README.md", "manifest.json"})}
    assert pushed == Pushed(f"{target.uri}/r1", sent_files=2, sent_bytes=size)
    assert sum(server.uploaded().values()) == size
    written = [seen.path.partition("?")[0].rpartition("/")[2] for seen in server.requests if seen.method == "PUT"]
    order = [name for name in written if not name.startswith((".probe", "lock"))]
    assert order[-3:] == ["README.md", "manifest.json", "latest.json"]


def test_datasets_reads_it_through_its_card(
    server: S3Server, target: S3Target, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # the server is on this machine
    publish(world, target, "r1")
    options = server.storage_options()
    with fsspec.open(f"{target.uri}/latest.json", **options) as pointer:
        uri = json.load(pointer)["uri"]
    assert uri == f"{target.uri}/r1"
    with fsspec.open(f"{uri}/README.md", "rt", **options) as card:
        configs = DatasetCard(card.read()).data.to_dict()["configs"]
    assert configs
    for config in configs:
        files = {part["split"]: f"{uri}/{part['path']}" for part in config["data_files"]}
        opened = load_dataset("parquet", data_files=files, storage_options=options, cache_dir=str(tmp_path / "cache"))
        streamed = load_dataset("parquet", data_files=files, storage_options=options, streaming=True)
        for split, rows in opened.items():
            assert rows.features == streamed[split].features == published_features()
            assert rows.features["audio"] == Audio(sampling_rate=16_000)
            plain = rows.cast_column("audio", Audio(decode=False))
            first = next(iter(streamed[split].cast_column("audio", Audio(decode=False))))
            assert plain[0] == first
            assert first["audio"]["bytes"] == world.corpora[first["source_dataset"]].clips[0]


def test_the_readmes_example_runs(
    server: S3Server, target: S3Target, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    publish(world, target, "r1")
    readme = (PROJECT_ROOT / "README.md").read_text()
    (code,) = [block.split("```")[0] for block in readme.split("```python\n") if block.startswith("import fsspec")]
    for old, new in {
        "s3://bucket/prefix": target.uri,
        "https://s3.example.org": server.endpoint,
        '"key": "..."': f'"key": "{CREDENTIALS["aws_access_key_id"]}"',
        '"secret": "..."': f'"secret": "{CREDENTIALS["aws_secret_access_key"]}"',
    }.items():
        assert old in code
        code = code.replace(old, new)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert len(scope["dataset"]["train"]) == 3 * sum(len(corpus.clips) for corpus in world.corpora.values())


def test_a_refresh_of_one_source_uploads_that_source_only(server: S3Server, target: S3Target, world: World) -> None:
    publish(world, target, "r1")
    before = latest_manifest(target.staging)
    server.reset()
    pushed = publish(world.changed("meld"), target, "r2", meld="other")
    after = target.latest()
    assert before and after
    (same,), (new,) = after.sources["ravdess"].files, after.sources["meld"].files
    assert same == before.sources["ravdess"].files[0]
    assert names(server) == {"meld"}
    assert sum(server.uploaded().values()) == new.bytes
    assert pushed == Pushed(
        f"{target.uri}/r2", sent_files=1, sent_bytes=new.bytes, copied_files=1, copied_bytes=same.bytes
    )
    assert {"r1/manifest.json", "r2/manifest.json"} <= keys(target)


def test_another_machine_takes_the_latest_release_up(
    server: S3Server, target: S3Target, world: World, tmp_path: Path
) -> None:
    publish(world, target, "r1")
    elsewhere = target_in(server, target._bucket, tmp_path / "another machine")
    manifest = elsewhere.latest()
    assert manifest
    mirror_latest(elsewhere, manifest, {"ravdess": "unchanged", "meld": "other"})
    assert latest_manifest(elsewhere.staging) == manifest
    assert {path.name for path in (elsewhere.staging / "r1" / "data").iterdir()} == {"ravdess"}
    changed = world.changed("meld")
    server.reset()
    pushed = publish(changed, elsewhere, "r2", meld="other")
    assert changed.written == ["meld"]
    assert (pushed.copied_files, pushed.sent_files) == (1, 1)
    assert names(server) == {"meld"}


FAULTS: dict[str, Callable[[S3Server], None]] = {
    "data cut": lambda server: server.cut_next("PUT", "/data/meld/", times=9),
    "data 500": lambda server: server.fail_next("PUT", "/data/meld/", 500, times=9),
    "data 429": lambda server: server.fail_next("PUT", "/data/meld/", 429, times=99, Retry_After="0"),
    "data refused": lambda server: server.fail_next("PUT", "/data/meld/", 507, times=9),
    "copy 500": lambda server: server.fail_next("PUT", "r2/data/ravdess/", 500, times=9),
    "card 503": lambda server: server.fail_next("PUT", "README.md", 503, times=9),
    "manifest cut": lambda server: server.cut_next("PUT", "manifest.json", times=9),
    "read-back 500": lambda server: server.fail_next("GET", "r2/manifest.json", 500, times=9),
    "latest 500": lambda server: server.fail_next("PUT", "latest.json", 500, times=9),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_that_fails_leaves_the_last_release_and_is_continued(
    server: S3Server, target: S3Target, world: World, fault: str
) -> None:
    publish(world, target, "r1")
    first = target.latest()
    changed = world.changed("meld")
    release = build(changed, target, "r2", meld="other")
    server.reset()
    FAULTS[fault](server)
    with pytest.raises((BotoCoreError, ClientError, s3_upload_failed())):
        target.push(release.path, release.manifest)
    arrived = names(server)
    assert target.latest() == first
    assert f"r2/{release.manifest.sources['meld'].files[0].path}" not in keys(target) or arrived == {"meld"}

    server.reset()
    pushed = target.push(release.path, release.manifest)
    assert target.latest() == release.manifest
    assert names(server) == {"meld"} - arrived  # what had arrived was not sent again
    assert pushed.kept_files + pushed.copied_files + pushed.sent_files == 2


def s3_upload_failed() -> type[Exception]:
    from boto3.exceptions import S3UploadFailedError

    return S3UploadFailedError


@pytest.mark.parametrize(
    "fault",
    [
        lambda server: server.cut_next("PUT", "/data/"),
        lambda server: server.fail_next("PUT", "/data/", 500),
        lambda server: server.fail_next("PUT", "/data/", 429, times=3, Retry_After="0"),
        lambda server: server.cut_next("PUT", "latest.json", answered=True),
        lambda server: server.fail_next("HEAD", "README.md", 503),
    ],
    ids=["cut", "500", "429", "answer lost", "503"],
)
def test_a_short_fault_is_not_even_noticed(
    server: S3Server, target: S3Target, world: World, fault: Callable[[S3Server], None]
) -> None:
    fault(server)
    publish(world, target, "r1")
    assert target.latest() == latest_manifest(target.staging)


def test_the_server_is_asked_again_as_late_as_it_says(server: S3Server, target: S3Target, world: World) -> None:
    server.fail_next("PUT", "/data/meld/", 429, Retry_After="2")
    started = time.monotonic()
    publish(world, target, "r1")
    assert time.monotonic() - started >= 2


def push_and_hang(endpoint: str, bucket: str, staging: Path, release_id: str, event: str, marker: Path) -> None:
    """Push a release and hang before the n-th request of a kind; runs in a process of its own."""
    import boto3

    from include.publish.manifest import read_manifest

    s3.PART_BYTES = 5 << 20
    client = boto3.client("s3", endpoint_url=endpoint, **CREDENTIALS)
    name, _, count = event.partition(":")
    seen = 0

    def hang(**_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == int(count or 1):
            marker.touch()
            time.sleep(600)

    client.meta.events.register(f"before-send.s3.{name}", hang)
    folder = staging / f".built-{release_id}"
    S3Target(bucket, "speech/sift", staging, client, private=True).push(folder, read_manifest(folder))


@pytest.mark.parametrize(
    ("event", "sent_before", "sent_after"),
    [
        ("PutObject:4", set(), {"ravdess", "meld"}),  # after the three of the probe
        ("UploadPart:2", {"meld"}, {"ravdess"}),
        ("PutObject:5", {"ravdess", "meld"}, set()),
        ("PutObject:7", {"ravdess", "meld"}, set()),
    ],
    ids=["before data", "within a file", "before the card", "before latest.json"],
)
def test_a_killed_push_is_continued(
    moto: S3Server,
    world: World,
    make_corpus: Callable[..., Corpus],
    tmp_path: Path,
    event: str,
    sent_before: set[str],
    sent_after: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    target = new_target(moto, tmp_path)
    world.corpora = {
        "ravdess": make_corpus("ravdess", [wav(n, seconds=60) for n in range(4)]),
        "meld": make_corpus("meld", 2),
    }
    publish(world, target, "r1")
    first = target.latest()
    world.corpora["ravdess"] = make_corpus("ravdess", [wav(n, seconds=60) for n in range(5)])
    world.corpora["meld"] = make_corpus("meld", 4)
    release = build(world, target, "r2", ravdess="other", meld="other")
    marker = tmp_path / "reached"
    moto.reset()
    arguments = (moto.endpoint, target._bucket, target.staging, "r2", event, marker)
    pusher = multiprocessing.get_context("spawn").Process(target=push_and_hang, args=arguments, daemon=True)
    pusher.start()
    while not marker.exists():
        assert pusher.is_alive()
        time.sleep(0.05)
    os.kill(pusher.pid, signal.SIGKILL)
    pusher.join()
    assert {key.split("/")[2] for key in keys(target) if key.startswith("r2/data/")} == sent_before
    assert target.latest() == first
    assert verify_release(target.staging / "latest") == first

    moto.reset()
    pushed = target.push(release.path, release.manifest)
    assert target.latest() == release.manifest
    assert names(moto) == sent_after
    assert (pushed.kept_files, pushed.sent_files) == (len(sent_before), len(sent_after))
    uploads = moto.client().list_multipart_uploads(Bucket=target._bucket).get("Uploads", [])
    assert uploads == []


def test_a_file_that_was_damaged_on_the_server_is_sent_again(server: S3Server, target: S3Target, world: World) -> None:
    release = build(world, target, "r1")
    server.fail_next("PUT", "latest.json", 500, times=9)
    with pytest.raises(ClientError):
        target.push(release.path, release.manifest)
    path = release.manifest.sources["meld"].files[0].path
    content = (release.path / path).read_bytes()
    server.client().put_object(Bucket=target._bucket, Key=target._key(f"r1/{path}"), Body=content[:-1] + b"x")
    server.reset()
    assert target.push(release.path, release.manifest).sent_files == 1
    assert names(server) == {"meld"}


def test_two_publishers_do_not_overwrite_each_other(
    moto: S3Server, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = new_target(moto, tmp_path)
    publish(world, target, "r1")
    rival = target_in(moto, target._bucket, tmp_path / "rival")
    theirs = build(world, rival, "r2", meld="theirs")
    ours = build(world, target, "r3", meld="ours")
    read_back = S3Target._read_back

    def overtaken(self: S3Target, *arguments: Any) -> None:
        read_back(self, *arguments)
        if self is target:
            rival.push(theirs.path, theirs.manifest)

    monkeypatch.setattr(S3Target, "_read_back", overtaken)
    with pytest.raises(ReleaseError, match="release r2 was published meanwhile by somebody else"):
        target.push(ours.path, ours.manifest)
    assert target.latest() == theirs.manifest


def test_without_conditional_writes_a_lock_keeps_publishers_apart(
    rclone: S3Server, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = new_target(rclone, tmp_path)
    release = build(world, target, "r1")
    rclone.client().put_object(
        Bucket=target._bucket,
        Key=target._key("lock.json"),
        Body=json.dumps({"release_id": "r0", "host": "elsewhere, process 1", "at": "2026-11-01T12:00:00"}).encode(),
    )
    with pytest.raises(RuntimeError, match="release r0 is being published from elsewhere, process 1"):
        target.push(release.path, release.manifest)
    assert "does not honour conditional writes" in caplog.text
    rclone.client().delete_object(Bucket=target._bucket, Key=target._key("lock.json"))
    # A push of the same release that died is taken over, lock and all.
    rclone.fail_next("PUT", "README.md", 500, times=9)
    with pytest.raises((ClientError, s3_upload_failed())):
        target.push(release.path, release.manifest)
    assert "lock.json" in keys(target)
    rclone.reset()
    target.push(release.path, release.manifest)
    assert "lock.json" not in keys(target)
    assert target.latest() == release.manifest


def test_old_releases_are_pruned_but_never_the_latest(server: S3Server, target: S3Target, world: World) -> None:
    ids = [own_id(number) for number in range(5)]
    for release_id in ids[1:4]:
        publish(world, target, release_id, meld=release_id)
    # What a push of long ago left that died and was never tried again.
    put(server, target, f"{ids[0]}/data/meld/train.parquet", b"half")
    put(server, target, f"{ids[4]}/data/meld/train.parquet", b"on its way")
    assert target.prune(0) == [ids[0]]
    assert target.prune(2) == [ids[1]]
    assert {key.split("/")[0] for key in keys(target)} == {*ids[2:], "latest.json"}
    assert target.prune(1) == [ids[2]]
    assert target.prune(1) == []
    assert target.latest() == latest_manifest(target.staging)


def test_a_newer_release_that_is_whole_is_not_pruned(server: S3Server, target: S3Target, world: World) -> None:
    first, latest, newer = (own_id(number) for number in range(1, 4))
    for release_id in (first, latest):
        publish(world, target, release_id, meld=release_id)
    # Another deployment has sent it, and is about to point latest.json to it.
    for path in ("data/meld/train.parquet", "README.md", "manifest.json"):
        put(server, target, f"{newer}/{path}", b"of another deployment")
    assert target.prune(1) == [first]
    assert {key.split("/")[0] for key in keys(target)} == {latest, newer, "latest.json"}


@pytest.mark.parametrize("prefix", ["speech/sift", ""])
@pytest.mark.parametrize("keep", [0, 2])
def test_what_others_keep_beside_the_releases_is_not_touched(
    moto: S3Server, world: World, tmp_path: Path, prefix: str, keep: int
) -> None:
    target = new_target(moto, tmp_path, prefix)
    ids = [own_id(number) for number in range(1, 4)]
    for release_id in ids:
        publish(world, target, release_id, meld=release_id)
    others = {
        "00-raw/clip.wav",  # sorts before every release, and has no manifest
        "app/manifest.json",
        "r1/data/meld/train.parquet",
        f"{own_id(0)}-old/data.parquet",
        f"x/{own_id(0)}/data.parquet",
    }
    for path in others:
        put(moto, target, path, b"not ours")
    moto.client().put_object(Bucket=target._bucket, Key=f"elsewhere/{own_id(0)}/data.parquet", Body=b"not ours")
    put(moto, target, f"{own_id(0)}/data/meld/train.parquet", b"half")
    assert set(target.prune(keep)) == {own_id(0), *(ids[:-keep] if keep else [])}
    left = keys(target)
    assert others < left
    assert {path.split("/")[0] for path in left} - {path.split("/")[0] for path in others} - {"elsewhere"} == {
        *(ids[-keep:] if keep else ids),
        "latest.json",
    }
    assert moto.client().head_object(Bucket=target._bucket, Key=f"elsewhere/{own_id(0)}/data.parquet")


def test_a_public_bucket_is_public_whatever_the_setting_says(moto: S3Server, tmp_path: Path) -> None:
    target = new_target(moto, tmp_path)
    assert not target.is_public()
    assert S3Target(target._bucket, "", tmp_path, moto.client(), private=False).is_public()
    for acl in ("authenticated-read", "public-read"):
        moto.client().put_bucket_acl(Bucket=target._bucket, ACL="private")
        assert not target.is_public()
        moto.client().put_bucket_acl(Bucket=target._bucket, ACL=acl)
        assert target.is_public()
    with pytest.raises(LicenceError, match=f"{target.uri} is public"):
        check_licences(target, ["meld"])


def test_what_no_retry_can_mend_says_what_to_do(server: S3Server, tmp_path: Path) -> None:
    nowhere = target_in(server, f"none-{uuid4().hex}", tmp_path)
    with pytest.raises(BadInputError, match=r"NoSuchBucket; the bucket must be there, .* connection aws_default"):
        nowhere.latest()
    target = new_target(server, tmp_path)
    for body in (b"[]", b'{"release_id": "../other"}'):
        put(server, target, "latest.json", body)
        with pytest.raises(ReleaseError, match=r"latest\.json is not ours"):
            target.latest()


def test_credentials_are_never_shown(moto: S3Server, tmp_path: Path) -> None:
    target = target_in(moto, "bucket", tmp_path)
    assert CREDENTIALS["aws_secret_access_key"] not in f"{target!r}{vars(target)}{target.uri}"
