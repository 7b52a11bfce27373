"""Corpora on the Hub, through the stand-in: revisions, bytes that are read, and what may be tried again."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from include.settings import PROJECT_ROOT
from tests.hub_server import HubServer
from tests.include.sources.corpus_files import toy_row, write_corpus

FIRST, SECOND = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)

PRELUDE = """
import json
from dataclasses import asdict, replace
from datetime import datetime, UTC
from include.sources import RECIPES
from include.sources.corpus import *
from include.sources.reader import *
from tests.include.sources.corpus_files import TOY

def keys(corpus, recipe=TOY):
    return [row["file"] for f in corpus.files for t in read_metadata(corpus, f, recipe) for row in t.to_pylist()]

def outcome(call):
    try:
        return call()
    except Exception as error:
        return [type(error).__name__, str(error)]

HUB = "hf://datasets"
"""

Read = Callable[[str], Any]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def read(hub: HubServer, tmp_path: Path) -> Read:
    """Run code in a process whose Hub is the stand-in; returns what the code leaves in `answer`."""

    def run(code: str) -> Any:
        program = f"{PRELUDE}\n{textwrap.dedent(code)}\nprint(json.dumps(answer, default=str))"
        env = hub.environment(tmp_path / "hf", PYTHONPATH=str(PROJECT_ROOT))
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


def commit(hub: HubServer, folder: Path, when: datetime, gone: tuple[str, ...] = ()) -> str:
    files: dict[str, bytes | Path | None] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    return hub.commit("org/toy", files | dict.fromkeys(gone), created_at=when)


def test_a_run_takes_the_newest_revision_not_after_its_date(hub: HubServer, read: Read, tmp_path: Path) -> None:
    first = commit(hub, write_corpus(tmp_path / "1", [toy_row(1), toy_row(2)]), FIRST)
    second = commit(hub, write_corpus(tmp_path / "2", [toy_row(2), toy_row(3)]), SECOND)
    answer = read(f"""
        newest = resolve_corpus(TOY, HUB)
        february = resolve_corpus(TOY, HUB, not_after=datetime(2024, 2, 1, tzinfo=UTC))
        answer = {{
            "newest": [newest.revision, newest.published_at, keys(newest)],
            "february": [february.revision, keys(february)],
            "pinned": resolve_corpus(TOY, HUB, revision={first!r}).revision,
            "too early": outcome(lambda: resolve_corpus(TOY, HUB, not_after=datetime(2023, 1, 1, tzinfo=UTC))),
        }}
    """)
    assert answer["newest"] == [second, "2024-03-01T00:00:00+00:00", ["002.wav", "003.wav"]]
    assert answer["february"] == [first, ["001.wav", "002.wav"]]
    assert answer["pinned"] == first
    assert answer["too early"][0] == "NoRevisionYetError"
    assert "org/toy has no revision as old as 2023-01-01" in answer["too early"][1]


def test_audio_is_never_read_for_metadata_and_one_row_group_at_a_time_for_publishing(
    hub: HubServer, read: Read, tmp_path: Path
) -> None:
    rows = [toy_row(n, audio={"bytes": bytes([n % 256]) * 20_000, "path": f"{n:03}.wav"}) for n in range(1000)]
    commit(hub, write_corpus(tmp_path, rows[:500], rows[500:], row_group_size=100), FIRST)
    assert read("answer = len(keys(resolve_corpus(TOY, HUB)))") == 1000
    ranges = [request for request in hub.requests if request.path.endswith(".parquet") and request.sent]
    assert all(request.range for request in ranges)
    # A footer in at most two reads a file, then columns that lie beside each other in one read a row group.
    assert len(ranges) <= 2 * (2 + 2 * 5)
    hub.reset()
    answer = read("""
        corpus = resolve_corpus(TOY, HUB)
        clips = audio_reader(corpus)("data/train-00001-of-00002.parquet", 3)
        answer = [len(clips), clips[7].as_py()["path"], len(clips[7].as_py()["bytes"])]
    """)
    assert answer == [100, "807.wav", 20_000]
    assert not [request for request in hub.requests if "train-00000" in request.path and request.sent]


def test_a_clip_comes_from_the_revision_that_was_staged(hub: HubServer, read: Read, tmp_path: Path) -> None:
    rows = [toy_row(n) for n in range(10)]
    commit(hub, write_corpus(tmp_path / "1", rows, row_group_size=5), FIRST)
    commit(hub, write_corpus(tmp_path / "2", rows[::-1]), SECOND)
    answer = read("""
        corpus = resolve_corpus(TOY, HUB, not_after=datetime(2024, 1, 2, tzinfo=UTC))
        (file,) = corpus.files
        rows = [row for table in read_metadata(corpus, file, TOY) for row in table.to_pylist()]
        read = audio_reader(corpus)
        answer = []
        for row in rows:
            place = Place(corpus.revision, row["audio_file"], row["audio_row_group"], row["audio_row"], row["blob_id"])
            whole = read(row["audio_file"], row["audio_row_group"])[row["audio_row"]].as_py()["bytes"]
            answer.append(read_clips(TOY, HUB, place) == [whole])
        gone = replace(place, revision="0" * 40)
        answer.append(outcome(lambda: read_clips(TOY, HUB, gone))[0])
    """)
    assert answer == [True] * 10 + ["SourceError"]


def test_rows_that_moved_to_other_files_still_find_their_bytes(hub: HubServer, read: Read, tmp_path: Path) -> None:
    rows = [toy_row(n) for n in range(10)]
    commit(hub, write_corpus(tmp_path / "1", rows), FIRST)
    folder = write_corpus(tmp_path / "2", rows[::-1][:4], rows[::-1][4:], row_group_size=2)
    commit(hub, folder, SECOND, gone=("data/train-00000-of-00001.parquet",))
    answer = read("""
        answer = []
        for when in (datetime(2024, 1, 2, tzinfo=UTC), None):
            corpus = resolve_corpus(TOY, HUB, not_after=when)
            read = audio_reader(corpus)
            for file in corpus.files:
                for row in [row for table in read_metadata(corpus, file, TOY) for row in table.to_pylist()]:
                    clip = read(row["audio_file"], row["audio_row_group"])[row["audio_row"]].as_py()
                    answer.append(clip["path"] == row["file"])
    """)
    assert answer == [True] * 20


def test_a_cap_reads_footers_only_and_chooses_the_same_row_groups_every_time(
    hub: HubServer, read: Read, tmp_path: Path
) -> None:
    rows = [toy_row(n) for n in range(600)]
    commit(hub, write_corpus(tmp_path, rows[:300], rows[300:], row_group_size=10), FIRST)
    answer = read("""
        corpus = resolve_corpus(TOY, HUB)
        chosen = [choose_row_groups(corpus, 100), choose_row_groups(corpus, 100)]
        answer = [chosen[0] == chosen[1], chosen[0].rows, keys(chosen[0]), keys(choose_row_groups(corpus, 155))]
    """)
    same, total, few, more = answer
    assert same and total == 600
    assert len(few) == 100 and len(more) == 150
    assert set(few) < set(more)


def test_the_converted_branch_is_read_without_a_card(
    hub: HubServer, read: Read, tmp_path: Path, shared_data: Path
) -> None:
    source = shared_data / "hub" / "edinburghcstr" / "ami" / "ihm" / "train-00000-of-00001.parquet"
    hub.commit("edinburghcstr/ami", {"README.md": b"# script", "ami.py": b"raise SystemExit"}, created_at=FIRST)
    sha = hub.commit(
        "edinburghcstr/ami",
        {"ihm/partial-train/0000.parquet": source, "ihm/partial-validation/0000.parquet": source},
        branch="refs/convert/parquet",
        created_at=SECOND,
    )
    answer = read("""
        corpus = resolve_corpus(RECIPES["ami"], HUB)
        rows = sum(len(t) for f in corpus.files for t in read_metadata(corpus, f, RECIPES["ami"]))
        answer = [corpus.revision, [f.path for f in corpus.files], rows]
    """)
    assert answer == [sha, ["ihm/partial-train/0000.parquet"], 44]


def test_what_is_not_there_is_named_and_not_tried_again(hub: HubServer, read: Read, tmp_path: Path) -> None:
    commit(hub, write_corpus(tmp_path, [toy_row(1)]), FIRST)
    answer = read("""
        answer = [outcome(lambda: resolve_corpus(replace(TOY, **change), HUB)) for change in (
            {"repository": "org/nothing"}, {"branch": "gone"}, {"config": "french"}, {"splits": ("test",)}
        )]
    """)
    messages = ("cannot list org/nothing@main", "cannot list org/toy@gone", "'french'", "no files for split test")
    for (kind, said), message in zip(answer, messages, strict=True):
        assert kind == "SourceError"
        assert said.startswith("toy: ") and message in said


def test_a_failing_server_is_not_a_broken_corpus(hub: HubServer, read: Read, tmp_path: Path) -> None:
    commit(hub, write_corpus(tmp_path, [toy_row(1)]), FIRST)
    hub.fail_next(503, times=1, match="/revision/")  # a call that the client does not repeat
    kind, message = read("answer = outcome(lambda: resolve_corpus(TOY, HUB))")
    assert kind == "SourceUnavailableError"
    assert "just now" in message and "HF_ENDPOINT" in message


def test_a_file_cut_off_upstream_is_named(hub: HubServer, read: Read, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, [toy_row(n) for n in range(9)])
    file = folder / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    commit(hub, folder, FIRST)
    kind, message = read("answer = outcome(lambda: keys(resolve_corpus(TOY, HUB)))")
    assert kind == "SourceError"
    assert "cannot read data/train-00000-of-00001.parquet" in message
