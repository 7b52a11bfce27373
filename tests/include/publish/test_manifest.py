"""The manifest: stable JSON, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from include.publish.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Gate,
    Manifest,
    ReleaseError,
    SourceEntry,
    SplitEntry,
    read_manifest,
    write_manifest,
)


def manifest(**changes: object) -> Manifest:
    file = FileEntry(path="data/meld/train-00000-of-00001.parquet", rows=3, bytes=10, sha256="a" * 64)
    source = SourceEntry(
        fingerprint="f",
        revision="abc",
        licence="GPL-3.0",
        redistributable=True,
        task="sift",
        accepted=6,
        modes={},
        prompts={},
        generator="m@r",
        splits={"train": SplitEntry(rows_by_mode={"sit_ssp": 1, "sift_s": 2}, clips=2, arrow_bytes=100, files=(file,))},
        left_out={"audio missing": 3},
    )
    values = {
        "release_id": "r1",
        "created_at": datetime(2026, 11, 1, tzinfo=UTC),
        "writer_version": 1,
        "sources": {"meld": source, "ami": source.model_copy(update={"splits": {}})},
        "generator": {"model": "m", "sampling": {"top_p": 0.92, "top_k": 50}},
        "modes": {"sift_s": "h"},
        "verdicts": {"sift_s": {"accepted": 3}},
        "quality": {"sift_s": {"words_mean": 9.5}},
        "gates": (Gate(name="rows", measured="3", limit="3", passed=True),),
    }
    return Manifest.model_validate(values | changes)


def test_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path) == manifest()


def test_json_is_sorted_and_in_utc(tmp_path: Path) -> None:
    text = manifest().to_json()
    content = json.loads(text)
    assert text == json.dumps(content, sort_keys=True, indent=2) + "\n"
    assert content["created_at"] == "2026-11-01T00:00:00Z"
    assert set(content["sources"]["meld"]["splits"]["train"]["files"][0]) == {"path", "rows", "bytes", "sha256"}


def test_properties_span_all_sources() -> None:
    assert manifest().fingerprints == {"meld": "f", "ami": "f"}
    assert [file.rows for file in manifest().files] == [3]


def test_a_source_adds_up_its_splits() -> None:
    source = manifest().sources["meld"]
    held_out = SplitEntry(rows_by_mode={"sift_s": 4}, clips=4, arrow_bytes=1, files=source.files)
    both = source.model_copy(update={"splits": {**source.splits, "heldout": held_out}})
    assert (both.rows, both.clips, len(both.files)) == (7, 6, 2)
    assert both.rows_by_mode == {"sit_ssp": 1, "sift_s": 6}


@pytest.mark.parametrize("content", ["", "{}", '{"release_id": 3}'])
def test_other_content_is_refused_with_its_path(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(ReleaseError, match=MANIFEST_NAME):
        read_manifest(tmp_path)


def test_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="created_at"):
        manifest(created_at=datetime(2026, 11, 1))
    manifest(created_at=datetime(2026, 11, 1, tzinfo=timezone(timedelta(hours=2))))


@pytest.mark.parametrize(
    "path",
    [
        "../../../x",
        "data/../../x",
        "/data/x",
        "data//x",
        "data/./x",
        "data\\..\\x",
        "data/.hidden",
        "data",
        "README.md",
        "",
    ],
)
def test_a_data_file_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    content = json.loads(manifest().to_json())
    content["sources"]["meld"]["splits"]["train"]["files"][0]["path"] = path
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(ReleaseError, match=r"files\.0\.path.* below data/"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("release_id", ["../x", "a/b", ".hidden", "latest", "", "x" * 129])
def test_a_release_id_that_is_no_folder_is_refused(tmp_path: Path, release_id: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**json.loads(manifest().to_json()), "release_id": release_id}))
    with pytest.raises(ReleaseError, match=r"release_id: .* is no folder name"):
        read_manifest(tmp_path)
