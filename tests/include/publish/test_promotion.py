"""From a release that lies aside to one that is published: approved, recorded, old ones removed, deaths recovered."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from include.publish import merge as merge_module
from include.publish import promotion
from include.publish import release as release_module
from include.publish.guards import LicenceError
from include.publish.manifest import UnreadableError, read_manifest
from include.publish.merge import check_publishing, has_news, merge_release
from include.publish.promotion import publish_release, size
from include.publish.release import (
    ReleaseError,
    ReleasePlan,
    awaits_review,
    promoted_releases,
    unpromoted,
    verify_release,
)
from include.publish.targets import Target
from include.publish.targets.hub import HubTarget
from include.publish.targets.s3 import S3Target
from include.schema import BadInputError, HubAccount
from include.settings import Settings
from include.storage.releases import SourceChangedError, list_releases
from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLES
from tests.hub_server import TOKEN, HubServer
from tests.include.publish.steps import EVERYTHING, default_target, folder_target, generate, merge_and_publish, stage
from tests.s3_server import S3Server, moto_server


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(autouse=True)
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the process that opens a built release with `datasets`, and let huggingface_hub out to this machine."""
    monkeypatch.setattr(release_module, "check_opens", lambda path, cache: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    shutil.copytree(SAMPLES, tmp_path / "hub")
    return make_settings(hub=str(tmp_path / "hub"))


@pytest.fixture(params=["folder", "s3", "hub"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """An empty target of each kind."""
    if request.param == "folder":
        return folder_target(tmp_path / "folder")
    if request.param == "s3":
        return s3_target(request.getfixturevalue("moto"), tmp_path)
    server: HubServer = request.getfixturevalue("hub")
    account = HubAccount(TOKEN, server.endpoint)
    return HubTarget(f"org/{uuid4().hex}", tmp_path / "staging", account, private=True)


def s3_target(moto: S3Server, tmp_path: Path) -> S3Target:
    bucket = f"bucket-{uuid4().hex}"
    moto.client().create_bucket(Bucket=bucket)
    return S3Target(bucket, "sift", tmp_path / "staging", moto.client(), private=True)


def test_the_next_release_sends_what_changed_and_says_so(
    warehouse: Warehouse, settings: Settings, target: Target
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING, target)
    stage(warehouse, settings, "ravdess")
    generate(warehouse, settings)
    second = merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert first and second and second["reused"] == ["meld"]
    manifest = target.latest()
    assert manifest and manifest.release_id == second["release_id"]
    (meld,), (ravdess,) = manifest.sources["meld"].files, manifest.sources["ravdess"].files
    assert (first["sent_files"], first["sent_bytes"]) == (1, meld.bytes)
    assert (second["sent_files"], second["sent_bytes"]) == (1, ravdess.bytes)
    assert second["copied_bytes"] + second["kept_bytes"] == meld.bytes
    # Both may be of the same second, and their order then that of their ids.
    recorded = sorted(list_releases(warehouse), key=lambda row: -row["total_rows"])
    assert [(row["target"], row["release_id"], row["uri"], row["commit"]) for row in recorded] == [
        (target.uri, release["release_id"], release["uri"], release["commit"]) for release in (second, first)
    ]
    assert [row["total_rows"] for row in recorded] == [102, 54]
    assert [row["bytes"] for row in recorded] == [meld.bytes + ravdess.bytes, meld.bytes]


def test_news_is_what_the_runs_own_target_lacks(warehouse: Warehouse, settings: Settings, target: Target) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    assert merge_and_publish(warehouse, settings, EVERYTHING)
    assert not has_news(warehouse, settings, EVERYTHING, default_target(settings))
    assert has_news(warehouse, settings, EVERYTHING, target)
    assert merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert not has_news(warehouse, settings, EVERYTHING, target)
    assert merge_and_publish(warehouse, settings, EVERYTHING, target) is None
    assert {row["target"] for row in list_releases(warehouse)} == {"local", target.uri}


class DiedError(BaseException):
    """The process ended here."""


def die(*_: object, **__: object) -> None:
    raise DiedError


@pytest.mark.parametrize("step", ["promote", "_record", "_prune"])
def test_a_run_that_died_after_pushing_is_finished_by_the_next_one(
    warehouse: Warehouse, settings: Settings, target: Target, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    with monkeypatch.context() as patch:
        patch.setattr(promotion, step, die)
        with pytest.raises(DiedError):
            merge_and_publish(warehouse, settings, EVERYTHING, target)
    manifest = target.latest()
    assert manifest
    assert has_news(warehouse, settings, EVERYTHING, target) == (step != "_prune")
    assert merge_and_publish(warehouse, settings, EVERYTHING, target) is None
    (recorded,) = list_releases(warehouse)
    assert (recorded["release_id"], recorded["target"]) == (manifest.release_id, target.uri)
    assert unpromoted(target.staging) == {}
    assert not has_news(warehouse, settings, EVERYTHING, target)


@pytest.mark.parametrize("step", ["promote", "_record"])
def test_a_run_that_died_after_pushing_is_finished_although_there_is_news(
    warehouse: Warehouse, settings: Settings, target: Target, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    with monkeypatch.context() as patch:
        patch.setattr(promotion, step, die)
        with pytest.raises(DiedError):
            merge_and_publish(warehouse, settings, EVERYTHING, target)
    first = target.latest()
    stage(warehouse, settings, "ravdess")
    generate(warehouse, settings)
    second = merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert first and second and second["reused"] == ["meld"]
    recorded = [(row["target"], row["release_id"]) for row in list_releases(warehouse)]
    assert sorted(recorded) == sorted((target.uri, each) for each in (first.release_id, second["release_id"]))


def test_a_commit_that_got_no_tag_gets_one_although_there_is_news(
    warehouse: Warehouse, settings: Settings, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"org/{uuid4().hex}"
    target = HubTarget(name, tmp_path / "staging", HubAccount(TOKEN, hub.endpoint), private=True)
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    with monkeypatch.context() as patch:
        patch.setattr(target._api, "create_tag", die)
        with pytest.raises(DiedError):
            merge_and_publish(warehouse, settings, EVERYTHING, target)
    first = target.latest()
    stage(warehouse, settings, "ravdess")
    generate(warehouse, settings)
    second = merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert first and second
    assert set(hub.repositories[name].tags) == {first.release_id, second["release_id"]}


def test_publishing_again_changes_nothing(warehouse: Warehouse, settings: Settings, target: Target) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    merged = merge_release(warehouse, settings, EVERYTHING, target)
    assert merged
    results = [publish_release(warehouse, settings, EVERYTHING, target, merged["release_id"]) for _ in range(2)]
    assert results[0]["sent_files"] == results[1]["kept_files"] == 1
    assert results[0]["uri"] == results[1]["uri"] and results[1]["sent_files"] == 0
    assert len(list_releases(warehouse)) == 1


def another_deployment(target: Target, staging: Path, request: pytest.FixtureRequest) -> Target:
    """The same target, as another machine sees it."""
    if isinstance(target, S3Target):
        client = request.getfixturevalue("moto").client()
        return S3Target(target._bucket, target._prefix, staging, client, private=True)
    assert isinstance(target, HubTarget)
    account = HubAccount(TOKEN, request.getfixturevalue("hub").endpoint)
    return HubTarget(target._repository, staging, account, private=True)


@pytest.mark.parametrize("target", ["s3", "hub"], indirect=True)
def test_what_another_deployment_published_meanwhile_is_not_lost(
    warehouse: Warehouse, settings: Settings, target: Target, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    other = another_deployment(target, tmp_path / "elsewhere", request)
    waits = merge_release(warehouse, settings, {**EVERYTHING, "leave_out": ["ravdess"]}, target)
    theirs = merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["meld"]}, other)
    assert waits and theirs
    with pytest.raises(
        ReleaseError,
        match=rf"{waits['release_id']} was built on no release, but the latest one is {theirs['release_id']} by now; "
        r".*Run generate_and_publish again",
    ):
        publish_release(warehouse, settings, EVERYTHING, target, waits["release_id"], approved=True)
    latest = target.latest()
    assert latest and list(latest.sources) == ["ravdess"]
    # What it says to do: theirs is kept, ours comes to it.
    assert merge_and_publish(warehouse, settings, EVERYTHING, target)
    latest = target.latest()
    assert latest and set(latest.sources) == {"meld", "ravdess"}


@pytest.mark.parametrize("target", ["s3", "hub"], indirect=True)
def test_the_condition_holds_until_the_release_is_the_latest(
    warehouse: Warehouse,
    settings: Settings,
    target: Target,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    other = another_deployment(target, tmp_path / "elsewhere", request)
    ours = merge_release(warehouse, settings, {**EVERYTHING, "leave_out": ["ravdess"]}, target)
    assert ours
    push = target.push

    def overtaken(*arguments: Any) -> Any:
        merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["meld"]}, other)
        return push(*arguments)

    monkeypatch.setattr(target, "push", overtaken)
    with pytest.raises(ReleaseError, match="was built on no release, but the latest one is"):
        publish_release(warehouse, settings, EVERYTHING, target, ours["release_id"])
    latest = target.latest()
    assert latest and list(latest.sources) == ["ravdess"]


def test_a_release_of_the_same_content_is_taken_up_on_the_newer_one(
    warehouse: Warehouse, settings: Settings, moto: S3Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    target = s3_target(moto, tmp_path)
    other = another_deployment(target, tmp_path / "elsewhere", request)
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    ours = merge_release(warehouse, settings, EVERYTHING, target)
    merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["meld"]}, other)
    assert ours
    with pytest.raises(ReleaseError, match="was built on no release"):
        publish_release(warehouse, settings, EVERYTHING, target, ours["release_id"])
    again = merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert again and again["release_id"] == ours["release_id"]
    latest = target.latest()
    assert latest and latest.release_id == ours["release_id"]


def test_an_older_release_that_is_published_again_does_not_come_back(
    warehouse: Warehouse, settings: Settings, tmp_path: Path
) -> None:
    target = folder_target(tmp_path / "folder")
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["ravdess"]}, target)
    second = merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert first and second
    with pytest.raises(ReleaseError, match=f"published before, and the latest one is {second['release_id']} by now"):
        publish_release(warehouse, settings, EVERYTHING, target, first["release_id"])
    assert target.latest() == read_manifest(target.staging / second["release_id"])
    publish_release(warehouse, settings, {**EVERYTHING, "force": True}, target, first["release_id"])
    assert target.latest() == read_manifest(target.staging / first["release_id"])


@pytest.mark.parametrize("after", [False, True])
def test_a_promotion_that_died_half_way_is_finished_by_its_retry(
    warehouse: Warehouse, settings: Settings, target: Target, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    assert merge_and_publish(warehouse, settings, {**EVERYTHING, "leave_out": ["ravdess"]}, target)
    merged = merge_release(warehouse, settings, {**EVERYTHING, "review": True}, target)
    assert merged
    point_latest_to = release_module._point_latest_to

    def dies(promoted: Path) -> None:
        if after:
            point_latest_to(promoted)
        die()

    with monkeypatch.context() as patch:
        patch.setattr(release_module, "_point_latest_to", dies)
        with pytest.raises(DiedError):
            publish_release(warehouse, settings, EVERYTHING, target, merged["release_id"], approved=True)
    assert publish_release(warehouse, settings, EVERYTHING, target, merged["release_id"], approved=True)
    latest = target.latest()
    assert latest and latest.release_id == merged["release_id"]
    assert latest == read_manifest(target.staging / "latest")


def test_a_run_that_was_not_asked_does_not_publish_what_another_was_asked_about(
    warehouse: Warehouse, settings: Settings, target: Target
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_release(warehouse, settings, EVERYTHING, target)  # its publish fails
    asked = merge_release(warehouse, settings, {**EVERYTHING, "review": True}, target)  # somebody says no
    assert first and asked and first["release_id"] == asked["release_id"] and not first["review"]
    with pytest.raises(ReleaseError, match=r"by another run, and did not say yes; .* Run generate_and_publish again"):
        publish_release(warehouse, settings, EVERYTHING, target, first["release_id"], approved=first["review"])
    assert target.latest() is None
    publish_release(warehouse, settings, {**EVERYTHING, "force": True}, target, first["release_id"])
    assert target.latest()


def test_what_nobody_approved_is_kept_aside_for_a_later_yes(
    warehouse: Warehouse, settings: Settings, target: Target
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    asked = merge_release(warehouse, settings, {**EVERYTHING, "review": True}, target)
    assert asked and asked["review"]
    assert target.latest() is None and list_releases(warehouse) == []
    aside = Path(asked["aside"])
    made = {path: path.stat().st_ino for path in aside.rglob("*.parquet")}
    # A later run finds it, and asks again although it would not have asked by itself.
    assert has_news(warehouse, settings, EVERYTHING, target)
    again = merge_release(warehouse, settings, EVERYTHING, target)
    assert again and again["review"] and again["release_id"] == asked["release_id"]
    assert {path: path.stat().st_ino for path in aside.rglob("*.parquet")} == made
    publish_release(warehouse, settings, EVERYTHING, target, again["release_id"], approved=again["review"])
    assert target.latest() == read_manifest(target.staging / "latest")
    assert not awaits_review(target.staging / asked["release_id"])
    assert not has_news(warehouse, settings, EVERYTHING, target)


def test_the_summary_shows_rows_beside_those_of_the_release_before(
    warehouse: Warehouse, settings: Settings, target: Target
) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    first = merge_release(warehouse, settings, {**EVERYTHING, "leave_out": ["ravdess"]}, target)
    assert first and f"To **{target.uri}**, in place of nothing: it is the first." in first["summary"]
    assert "| meld | 18 | 18 | 18 | 54 | 0 |" in first["summary"]
    publish_release(warehouse, settings, EVERYTHING, target, first["release_id"])
    second = merge_release(warehouse, settings, {**EVERYTHING, "leave_out": ["meld"]}, target)
    assert second and f"in place of release {first['release_id']}" in second["summary"]
    assert "| ravdess | 16 | 16 | 16 | 48 | 0 |" in second["summary"]
    assert "| meld, no longer in it | | | | | 54 |" in second["summary"]


def test_a_release_that_is_out_of_date_is_not_kept_aside(
    warehouse: Warehouse, settings: Settings, target: Target
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_release(warehouse, settings, EVERYTHING, target)
    stage(warehouse, settings, "ravdess")
    generate(warehouse, settings)
    second = merge_release(warehouse, settings, EVERYTHING, target)
    assert first and second and not second["review"]
    assert list(unpromoted(target.staging)) == [second["release_id"]]
    with pytest.raises(ReleaseError, match="must see the same SIFT_HOME"):
        publish_release(warehouse, settings, EVERYTHING, target, first["release_id"])


def test_a_trial_that_lies_aside_is_not_taken_for_the_dataset(
    warehouse: Warehouse, settings: Settings, target: Target
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    trial = merge_release(warehouse, settings, {**EVERYTHING, "max_samples": 1_000}, target)  # more than there are
    whole = merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert trial and whole and trial["rows"] == whole["rows"]
    manifest = target.latest()
    assert manifest and manifest.narrowed is None and manifest.release_id != trial["release_id"]


def test_what_takes_the_place_of_a_rejected_release_awaits_a_yes_too(
    warehouse: Warehouse, settings: Settings, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    rejected = merge_release(warehouse, settings, {**EVERYTHING, "review": True}, target)
    stage(warehouse, settings, "ravdess")
    generate(warehouse, settings)
    for step in ("_build", "ask_for_review"):  # a run that dies on the way forgets nothing
        with monkeypatch.context() as patch:
            patch.setattr(release_module, step, die)
            with pytest.raises(DiedError):
                merge_release(warehouse, settings, EVERYTHING, target)
    again = merge_release(warehouse, settings, EVERYTHING, target)
    assert rejected and again and again["review"] and again["release_id"] != rejected["release_id"]
    assert list(unpromoted(target.staging)) == [again["release_id"]]
    # Somebody says yes to the dataset as it is by now.
    forced = merge_release(warehouse, settings, {**EVERYTHING, "force": True}, target)
    assert forced and not forced["review"] and forced["release_id"] == again["release_id"]
    publish_release(warehouse, settings, EVERYTHING, target, forced["release_id"])
    assert not awaits_review(target.staging / forced["release_id"])


def test_a_damaged_release_that_lay_aside_is_built_anew(
    warehouse: Warehouse, settings: Settings, target: Target
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_release(warehouse, settings, EVERYTHING, target)
    assert first
    (file,) = Path(first["aside"]).rglob("*.parquet")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    second = merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert second and second["release_id"] == first["release_id"]
    verify_release(target.staging / "latest")


@pytest.mark.parametrize(
    "change",
    [
        "update generation.responses set response = 'corrected ' || response where source = 'meld'",
        "update staging.samples set blob_id = 'other' where source = 'meld'",
    ],
    ids=["responses", "files"],
)
def test_a_source_that_changes_while_its_release_is_made_is_read_again_by_the_retry(
    warehouse: Warehouse, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    target = folder_target(tmp_path / "folder")
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    build_aside = merge_module.build_aside

    def meanwhile(staging: Path, plan: ReleasePlan, rows: Any, audio: Any) -> Any:
        with warehouse.connection() as connection:
            connection.execute(change)  # as many rows as before
            connection.execute("update staging.loads set load_id = load_id || '2' where source = 'meld'")
        return build_aside(staging, plan, rows, audio)

    with monkeypatch.context() as patch:
        patch.setattr(merge_module, "build_aside", meanwhile)
        with pytest.raises(SourceChangedError, match=r"meld was (changed|ingested) after its release was planned"):
            merge_release(warehouse, settings, EVERYTHING, target)
    assert not issubclass(SourceChangedError, BadInputError)  # so Airflow tries it again
    assert [path.name for path in target.staging.iterdir()] == [".lock"]
    if "responses" in change:
        published = merge_and_publish(warehouse, settings, EVERYTHING, target)
        assert published
        (file,) = (target.staging / "latest" / "data" / "meld").glob("*.parquet")
        texts = pq.read_table(file, columns=["sift_response"])["sift_response"].to_pylist()
        assert all(text.startswith("corrected ") for text in texts)


def test_a_source_that_changes_while_it_is_counted_does_not_pass_for_complete(
    warehouse: Warehouse, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder_target(tmp_path / "folder")
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    coverage = merge_module.coverage

    def then_ingested(*arguments: Any) -> Any:
        counted = coverage(*arguments)
        with warehouse.connection() as connection:  # one sample's text is another now, and its prompts are not planned
            connection.execute(
                "update staging.samples set row_hash = 'x' where source = 'meld' and sample_id = "
                "(select min(sample_id) from staging.samples where source = 'meld')"
            )
        return counted

    with monkeypatch.context() as patch:
        patch.setattr(merge_module, "coverage", then_ingested)
        with pytest.raises(SourceChangedError, match="meld: changed while their rows were counted"):
            merge_release(warehouse, settings, EVERYTHING, target)
    merged = merge_release(warehouse, settings, EVERYTHING, target)
    assert merged and merged["waiting"] == ["meld"] and list(merged["rows"]) == ["ravdess"]


@pytest.mark.parametrize("damage", [b"{", None])
def test_a_release_that_lay_aside_and_cannot_be_read_is_built_anew(
    warehouse: Warehouse, settings: Settings, target: Target, damage: bytes | None
) -> None:
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_release(warehouse, settings, {**EVERYTHING, "review": True}, target)
    assert first
    manifest = Path(first["aside"]) / "manifest.json"
    # As one of an earlier version, that lacks a field, or damaged altogether.
    manifest.write_bytes(damage or manifest.read_bytes().replace(b'"gates"', b'"doors"'))
    second = merge_release(warehouse, settings, EVERYTHING, target)
    assert second and second["review"]  # who was asked has not said yes to this one either
    assert list(unpromoted(target.staging)) == [second["release_id"]]
    assert [path.name for path in target.staging.glob(".built-*")] == [f".built-{second['release_id']}"]
    publish_release(warehouse, settings, EVERYTHING, target, second["release_id"], approved=True)
    verify_release(target.staging / "latest")


def test_a_damaged_release_that_was_rejected_awaits_a_yes_although_its_rebuilding_died(
    warehouse: Warehouse, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder_target(tmp_path / "folder")
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_release(warehouse, settings, {**EVERYTHING, "review": True}, target)
    assert first
    (file,) = Path(first["aside"]).rglob("*.parquet")
    file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(release_module, "_build", die)
        with pytest.raises(DiedError):
            merge_release(warehouse, settings, EVERYTHING, target)
    second = merge_release(warehouse, settings, EVERYTHING, target)
    assert second and second["review"]
    assert [path.name for path in target.staging.glob(".built-*")] == [f".built-{second['release_id']}"]


def test_two_merges_at_once_build_one_release(
    warehouse: Warehouse, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder_target(tmp_path / "folder")
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    built: list[str] = []
    begun, plans = threading.Event(), threading.Barrier(2)
    build, build_aside = release_module._build, merge_module.build_aside

    def built_slowly(*arguments: Any) -> Any:
        built.append(arguments[2].release_id)
        begun.wait(60)
        return build(*arguments)

    def planned_by_both(staging: Path, plan: ReleasePlan, *arguments: Any) -> Any:
        if plans.wait(60):  # one of them a second later
            moment = plan.created_at + timedelta(seconds=1)
            content = plan.release_id.rpartition("-")[2]
            plan = replace(plan, release_id=f"{moment:%Y%m%dT%H%M%SZ}-{content}", created_at=moment)
        begun.set()
        return build_aside(staging, plan, *arguments)

    monkeypatch.setattr(release_module, "_build", built_slowly)
    monkeypatch.setattr(merge_module, "build_aside", planned_by_both)
    with ThreadPoolExecutor(2) as pool:
        merging = [pool.submit(merge_release, warehouse, settings, EVERYTHING, target) for _ in range(2)]
        merged = [each.result(timeout=120) for each in merging]
    assert [each["release_id"] for each in merged if each] == built * 2
    for _ in merged:
        publish_release(warehouse, settings, EVERYTHING, target, built[0])


@pytest.mark.parametrize("damage", ["lost", "damaged"])
@pytest.mark.parametrize("lost_record", [False, True])
def test_a_file_that_the_latest_release_lost_does_not_block_the_next_one(
    warehouse: Warehouse,
    settings: Settings,
    target: Target,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    damage: str,
    lost_record: bool,
) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    merge_and_publish(warehouse, settings, EVERYTHING, target)
    before = target.latest()
    assert before
    path = before.sources["meld"].files[0].path
    if isinstance(target, S3Target):
        key = {"Bucket": target._bucket, "Key": target._key(f"{before.release_id}/{path}")}
        target._client.delete_object(**key)
        if damage == "damaged":
            target._client.put_object(**key, Body=b"damaged")
    elif isinstance(target, HubTarget):
        files = request.getfixturevalue("hub").repositories[target._repository].branches["main"].files
        if damage == "damaged":
            files[path] = files["README.md"]
        else:
            del files[path]
    else:
        file = target.staging / before.release_id / path
        file.unlink()
        if damage == "damaged":
            file.write_bytes(b"damaged")
    if target.is_remote:
        shutil.rmtree(target.staging)
    if lost_record:
        with warehouse.connection() as connection:
            connection.execute("delete from publish.releases")
    # Without meld's rows nothing can mend it.
    with warehouse.connection() as connection:
        connection.execute("delete from staging.loads where source = 'meld'")
    stage(warehouse, settings, "commonvoice")
    generate(warehouse, settings)
    with pytest.raises(ReleaseError, match="meld is not staged, and its files in the latest release cannot be used"):
        merge_and_publish(warehouse, settings, EVERYTHING, target)
    if target.is_remote:
        said = {"lost": "not there", "damaged": "damaged"}[damage]
        assert f"{path} of release {before.release_id} is {said}" in caplog.text
    stage(warehouse, settings, "meld", run_id="2")
    generate(warehouse, settings)
    mended = merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert mended and mended["reused"] == ["ravdess"]
    after = target.latest()
    assert after and after.sources["meld"] == before.sources["meld"]
    verify_release(target.staging / "latest")


@pytest.mark.parametrize("target", ["folder", "s3"], indirect=True)
@pytest.mark.parametrize("damage", ["lost", "of another version"])
def test_a_latest_release_that_cannot_be_read_is_not_taken_for_none(
    warehouse: Warehouse, settings: Settings, target: Target, damage: str
) -> None:
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    merge_and_publish(warehouse, settings, EVERYTHING, target)
    latest = target.latest()
    assert latest
    content = {"lost": None, "of another version": latest.to_json().replace('"gates"', '"doors"').encode()}[damage]
    if isinstance(target, S3Target):
        key = {"Bucket": target._bucket, "Key": target._key(f"{latest.release_id}/manifest.json")}
        target._client.delete_object(**key)
        if content:
            target._client.put_object(**key, Body=content)
    elif content:
        (target.staging / "latest" / "manifest.json").write_bytes(content)
    else:
        shutil.rmtree(target.staging / latest.release_id)
    with warehouse.connection() as connection:  # incomplete now: its part must be kept
        connection.execute("delete from generation.responses where source = 'ravdess'")
    forced = {**EVERYTHING, "force": True}
    for step in (check_publishing, has_news, merge_release):
        with pytest.raises(UnreadableError, match=r"its latest release cannot be read.* with force=true"):
            step(warehouse, settings, EVERYTHING, target)
        if step is not merge_release:
            step(warehouse, settings, forced, target)
    again = merge_and_publish(warehouse, settings, forced, target)
    assert again and list(again["rows"]) == ["meld"]
    latest = target.latest()
    assert latest and latest.release_id == again["release_id"]


def test_a_target_that_became_public_meanwhile_is_refused(
    warehouse: Warehouse, settings: Settings, moto: S3Server, tmp_path: Path
) -> None:
    target = s3_target(moto, tmp_path)
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    merged = merge_release(warehouse, settings, EVERYTHING, target)
    moto.client().put_bucket_acl(Bucket=target._bucket, ACL="public-read")
    assert merged
    with pytest.raises(LicenceError, match="meld"):
        publish_release(warehouse, settings, EVERYTHING, target, merged["release_id"])
    assert target.latest() is None


def test_old_releases_are_removed_after_the_new_one_is_there(
    warehouse: Warehouse, settings: Settings, target: Target
) -> None:
    few = settings.model_copy(update={"keep_releases": 2})
    stage(warehouse, settings, "meld", "ravdess")
    generate(warehouse, settings)
    leave_out: list[list[str]] = [["meld"], ["ravdess"], []]
    made = [merge_and_publish(warehouse, few, {**EVERYTHING, "leave_out": names}, target) for names in leave_out]
    ids = [release["release_id"] for release in made if release]
    # Releases of one second have their order by content.
    assert len(ids) == 3
    latest = target.latest()
    assert latest and latest.release_id == ids[-1]
    if target.is_remote:
        assert [path.name for path in promoted_releases(target.staging)] == [ids[-1]]
    else:
        assert len(promoted_releases(target.staging)) == 2
        assert sum(len(release["pruned"]) for release in made if release) == 1
    verify_release(target.staging / "latest")
    assert len(list_releases(warehouse)) == 3  # what was published stays recorded


def build_with_little_room(conninfo: str, settings: Settings, folder: Path, errors: Any) -> None:
    """Merge while no file may grow above some kilobytes; runs in a process of its own."""
    release_module.check_opens = lambda path, cache: None
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        merge_release(Warehouse(conninfo), settings, EVERYTHING, folder_target(folder))
    except OSError as error:
        errors.put(error.strerror)


def test_no_room_on_the_disk_leaves_the_last_release(warehouse: Warehouse, settings: Settings, tmp_path: Path) -> None:
    target = folder_target(tmp_path / "folder")
    stage(warehouse, settings, "meld")
    generate(warehouse, settings)
    first = merge_and_publish(warehouse, settings, EVERYTHING, target)
    stage(warehouse, settings, "ravdess")
    generate(warehouse, settings)
    context = multiprocessing.get_context("spawn")
    errors = context.Queue()
    arguments = (warehouse.conninfo, settings, target.staging, errors)
    builder = context.Process(target=build_with_little_room, args=arguments)
    builder.start()
    assert "large" in errors.get(timeout=60)
    builder.join()
    assert first and target.latest() == read_manifest(target.staging / first["release_id"])
    assert sorted(path.name for path in target.staging.iterdir()) == [".lock", first["release_id"], "latest"]
    second = merge_and_publish(warehouse, settings, EVERYTHING, target)
    assert second and second["reused"] == ["meld"]


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (12_345_678, "12.3 MB"), (5 * 10**12, "5.0 TB")]
)
def test_sizes_for_people(count: int, shown: str) -> None:
    assert size(count) == shown
