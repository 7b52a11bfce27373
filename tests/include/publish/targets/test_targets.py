"""Which URI names which target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from include.publish.targets import LOCAL, Target, canonical_uri, open_target
from include.publish.targets.hub import HubTarget
from include.publish.targets.local import LocalTarget
from include.publish.targets.s3 import S3Target
from include.schema import BadInputError, HubAccount
from include.settings import Settings


@pytest.fixture
def opened(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Target]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    settings = make_settings()

    def client() -> Any:
        import boto3

        return boto3.client("s3", region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret")

    def open_it(uri: str) -> Target:
        account = HubAccount("token", "http://127.0.0.1:1")
        return open_target(uri, settings, private=True, s3_client=client, hub_account=lambda: account)

    return open_it


@pytest.mark.parametrize(
    ("uri", "kind", "shown"),
    [
        ("local", LocalTarget, "local"),
        ("/data/releases", LocalTarget, "/data/releases"),
        ("/data/./releases//", LocalTarget, "/data/releases"),
        ("s3://speech", S3Target, "s3://speech"),
        ("s3://speech/sift/omni/", S3Target, "s3://speech/sift/omni"),
        ("hf://datasets/org/sift-audio_2.0", HubTarget, "hf://datasets/org/sift-audio_2.0"),
        ("hf://datasets/org/sift/", HubTarget, "hf://datasets/org/sift"),
    ],
)
def test_a_uri_names_a_target(opened: Callable[[str], Target], uri: str, kind: type, shown: str) -> None:
    target = opened(uri)
    assert isinstance(target, kind)
    assert target.uri == shown
    assert target.is_remote == ("://" in uri)


@pytest.mark.parametrize(
    "uri", ["", "releases", "s3://", "s3://UPPER/case", "hf://datasets/name", "hf://models/org/name", "gs://bucket/x"]
)
def test_other_uris_are_refused_with_those_that_are_known(opened: Callable[[str], Target], uri: str) -> None:
    with pytest.raises(
        BadInputError, match=r"give 'local', the absolute path of a folder, s3://bucket/prefix or hf://"
    ):
        opened(uri)


def test_the_releases_folder_is_the_local_target_however_it_is_named(
    make_settings: Callable[..., Settings], opened: Callable[[str], Target], tmp_path: Path
) -> None:
    settings = make_settings()
    link = tmp_path / "link"
    link.symlink_to(settings.home)
    for uri in (f"{settings.releases_dir}", f"{settings.releases_dir}/", f"{link}/releases"):
        assert canonical_uri(uri, settings) == LOCAL
    assert canonical_uri(f"{settings.home}/trials/", settings) == f"{settings.home}/trials"


def test_every_remote_target_is_built_in_a_folder_of_its_own(opened: Callable[[str], Target]) -> None:
    uris = ["s3://aaa/b", "s3://aaa-b", "s3://aaa/b-c", "hf://datasets/a/b", "hf://datasets/a-b/c"]
    folders = {opened(uri).staging for uri in uris}
    assert len(folders) == len(uris)
    assert opened("s3://aaa/b/").staging == opened("s3://aaa/b").staging
    assert {folder.parent for folder in folders} == {Path(opened("s3://aaa/b").staging).parent}
