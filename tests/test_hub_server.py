"""The stand-in Hub, as the installed huggingface_hub and datasets see it: a client process drives them."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub_server import HubServer

TOY = "org/toy"
CONVERTED = "org/converted"
CONVERT = "refs/convert/parquet"
CARD = b"""---
configs:
- config_name: english
  data_files:
  - split: train
    path: en/train-*.parquet
  - split: test
    path: en/test.parquet
- config_name: other
  data_files: other.parquet
---
# Toy
"""
FIRST = datetime(2024, 1, 1, 12, tzinfo=UTC)
SECOND = datetime(2024, 2, 1, 12, 0, 0, 250_000, tzinfo=UTC)

CLIENT = """
import json, sys, traceback
from datasets import load_dataset_builder
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
import pyarrow.parquet as pq
for line in sys.stdin:
    HfFileSystem.clear_instance_cache()
    scope = {"api": HfApi(), "fs": HfFileSystem(), "dataset": {"repo_type": "dataset"}, **globals()}
    try:
        exec(json.loads(line), scope)
        answer = scope["answer"]
    except Exception as error:
        traceback.print_exc()
        answer = f"{type(error).__module__.split('.')[0]}.{type(error).__name__}"
    print(json.dumps(answer, default=str), flush=True)
"""
"""Executes the code of each line and prints what it leaves in `answer`, or the name of its exception."""

Client = Callable[[str], Any]


def parquet(rows: int = 40, row_group_size: int = 10) -> bytes:
    """A file with a small column `text` beside a large one, `audio`."""
    clips = [hashlib.sha256(bytes([row])).digest() * 1_000 for row in range(rows)]
    table = pa.table({"text": [f"Sentence {row}." for row in range(rows)], "audio": clips})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_size, use_dictionary=False, compression="none")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two Parquet files on disk."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        (folder / f"{number}.parquet").write_bytes(parquet(rows=40 + number))
    return [folder / "0.parquet", folder / "1.parquet"]


@pytest.fixture(scope="module")
def server(shards: list[Path]) -> Iterator[HubServer]:
    """A Hub with a repository that has a card and one that was converted to Parquet."""
    with HubServer() as hub:
        hub.commit(TOY, {"README.md": b"# Soon\n", "old.txt": b"x"}, created_at=FIRST, title="Start")
        files: dict[str, bytes | Path | None] = {
            "README.md": CARD,
            "en/train-0.parquet": shards[0],
            "en/train-1.parquet": shards[1],
            "old.txt": None,
        }
        more = {"en/test.parquet": parquet(rows=5), "other.parquet": parquet(rows=3)}
        hub.commit(TOY, files | more, created_at=SECOND)
        hub.commit(CONVERTED, {"README.md": b"# Converted\n"})
        hub.commit(
            CONVERTED, {"ihm/train/0000.parquet": shards[0], "sdm/train/0000.parquet": shards[1]}, branch=CONVERT
        )
        yield hub


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    """The Hub, nothing counted and nothing about to fail."""
    server.reset()
    return server


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Runs code in a process whose HF_ENDPOINT is the Hub; returns its `answer`."""
    environment = server.environment(tmp_path_factory.mktemp("hf_home"))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLIENT], env=environment, **pipes) as process:
        questions, answers = process.stdin, process.stdout
        assert questions
        assert answers

        def ask(code: str) -> Any:
            print(json.dumps(textwrap.dedent(code)), file=questions, flush=True)
            return json.loads(answers.readline())

        yield ask
        questions.close()


def head(hub: HubServer, repository: str = TOY, branch: str = "main") -> str:
    return hub.repositories[repository].branches[branch].sha


def read_text(hub: HubServer, path: str = "en/train-0.parquet") -> str:
    """Code that reads one column as the reader of corpora does."""
    return f"""
        uri = "hf://datasets/{TOY}@{head(hub)}/{path}"
        with fs.open(uri, "rb", cache_type="none") as file, pq.ParquetFile(file, pre_buffer=True) as table:
            answer = table.read(columns=["text"])["text"].to_pylist()
        """


def test_commits_come_newest_first_and_branches_by_any_name(hub: HubServer, client: Client) -> None:
    commits = client(f"answer = [vars(c) for c in api.list_repo_commits('{TOY}', revision='main', **dataset)]")
    assert [commit["commit_id"] for commit in commits] == [c.sha for c in hub.repositories[TOY].commits.values()][::-1]
    assert [commit["title"] for commit in commits] == ["Add files", "Start"]
    assert [datetime.fromisoformat(commit["created_at"]) for commit in commits] == [SECOND, FIRST]
    converted = client(
        f"answer = [c.commit_id for c in api.list_repo_commits('{CONVERTED}', revision='{CONVERT}', **dataset)]"
    )
    assert converted == [head(hub, CONVERTED, CONVERT)]
    refs = client(f"refs = api.list_repo_refs('{CONVERTED}', **dataset); answer = [refs.branches, refs.converts]")
    assert [[len(group), "refs/" in group[0]] for group in refs] == [[1, True], [1, True]]


def test_a_commit_is_a_snapshot(hub: HubServer, client: Client) -> None:
    code = "answer = sorted(s.rfilename for s in api.dataset_info('{}', revision={!r}).siblings)"
    start = hub.repositories[TOY].branches["main"].parent
    assert start
    assert client(code.format(TOY, start.sha)) == ["README.md", "old.txt"]
    assert "old.txt" not in client(code.format(TOY, None))
    assert client(f"answer = [api.dataset_info('{TOY}').sha, api.dataset_info('{TOY}').last_modified]") == [
        head(hub),
        str(SECOND),
    ]


def test_files_have_the_identities_that_git_and_lfs_give_them(
    hub: HubServer, client: Client, shards: list[Path]
) -> None:
    infos = client(f"""
        paths = ["README.md", "en/train-0.parquet", "en", "nowhere"]
        infos = api.get_paths_info("{TOY}", paths, expand=True, revision="{head(hub)}", **dataset)
        answer = {{info.path: vars(info) for info in infos}}
        """)
    assert sorted(infos) == ["README.md", "en", "en/train-0.parquet"]
    blob = hashlib.sha1(f"blob {len(CARD)}\0".encode() + CARD).hexdigest()
    assert [infos["README.md"][name] for name in ("blob_id", "size", "lfs")] == [blob, len(CARD), None]
    large = infos["en/train-0.parquet"]
    assert large["lfs"]["sha256"] == hashlib.sha256(shards[0].read_bytes()).hexdigest()
    assert large["size"] == large["lfs"]["size"] == shards[0].stat().st_size
    assert large["blob_id"] not in (None, large["lfs"]["sha256"])
    assert large["xet_hash"] is None
    assert infos["en"]["last_commit"]["oid"] == head(hub)


def test_too_many_paths_at_once_are_refused(hub: HubServer, client: Client) -> None:
    code = f"answer = len(api.get_paths_info('{TOY}', ['README.md'] * {{}}, **dataset))"
    assert client(code.format(999)) == 1
    assert client(code.format(1_000)) == "huggingface_hub.HfHubHTTPError"


def test_trees_and_globs(hub: HubServer, client: Client) -> None:
    tree = f"answer = [e.path for e in api.list_repo_tree('{TOY}', {{}}, **dataset)]"
    assert client(tree.format("None")) == ["README.md", "en", "other.parquet"]
    assert client(tree.format("'en'")) == ["en/test.parquet", "en/train-0.parquet", "en/train-1.parquet"]
    assert len(client(tree.format("None, recursive=True"))) == 6
    assert client(tree.format("'nowhere'")) == "huggingface_hub.RemoteEntryNotFoundError"
    root = f"datasets/{CONVERTED}@{CONVERT}"
    assert client(f"answer = fs.glob('{root}/*/train/*.parquet')") == [
        f"{root}/ihm/train/0000.parquet",
        f"{root}/sdm/train/0000.parquet",
    ]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("api.dataset_info('org/none')", "RepositoryNotFoundError"),
        ("api.list_repo_commits('org/none', **dataset)", "RepositoryNotFoundError"),
        (f"api.list_repo_commits('{TOY}', revision='none', **dataset)", "RevisionNotFoundError"),
        (f"api.dataset_info('{TOY}', revision='{'0' * 40}')", "RevisionNotFoundError"),
        (f"hf_hub_download('{TOY}', 'où.txt', **dataset)", "RemoteEntryNotFoundError"),
        (f"hf_hub_download('{TOY}', 'none.parquet', revision='none', **dataset)", "RevisionNotFoundError"),
    ],
)
def test_what_is_not_there_has_the_clients_own_error(hub: HubServer, client: Client, call: str, error: str) -> None:
    assert client(f"answer = {call}") == f"huggingface_hub.{error}"
    assert [seen.status for seen in hub.requests] == [404]


def test_existence(hub: HubServer, client: Client) -> None:
    assert client(f"answer = [api.repo_exists(name, **dataset) for name in ('{TOY}', 'org/none')]") == [True, False]
    assert client(f"answer = [api.file_exists('{TOY}', p, **dataset) for p in ('other.parquet', 'none')]") == [
        True,
        False,
    ]


def test_downloads_are_whole_and_cached_by_commit(hub: HubServer, client: Client, shards: list[Path]) -> None:
    for path, content in {"README.md": CARD, "en/train-1.parquet": shards[1].read_bytes()}.items():
        found = Path(client(f"answer = hf_hub_download('{TOY}', '{path}', **dataset)"))
        assert found.read_bytes() == content
        assert head(hub) in found.parts
    assert hub.bytes_sent() == shards[1].stat().st_size
    assert hub.bytes_sent("README.md") == len(CARD)


def test_one_column_is_read_by_ranges(hub: HubServer, client: Client, shards: list[Path]) -> None:
    assert client(read_text(hub)) == [f"Sentence {row}." for row in range(40)]
    listings = [seen.path for seen in hub.requests if seen.path.startswith("/api/")]
    assert listings == [f"/api/datasets/{TOY}/revision/{head(hub)}", f"/api/datasets/{TOY}/tree/{head(hub)}/en"]
    asked, answered = ([seen for seen in hub.requests if seen.status == status] for status in (302, 206))
    assert [seen.range for seen in asked] == [seen.range for seen in answered]
    spans = [seen.range.removeprefix("bytes=").split("-") for seen in answered if seen.range]
    assert [seen.sent for seen in answered] == [int(last) + 1 - int(first) for first, last in spans]
    assert len(spans) == 1 + 4  # the footer, and the column's chunk in each row group
    assert hub.bytes_sent() == sum(seen.sent for seen in answered) < shards[0].stat().st_size / 10


@pytest.mark.parametrize(
    ("span", "expected"), [("bytes=2-4", b"234"), ("bytes=7-", b"789"), ("bytes=-2", b"89"), ("bytes=8-99", b"89")]
)
def test_ranges(hub: HubServer, client: Client, span: str, expected: bytes) -> None:
    hub.commit("org/digits", {"digits.txt": b"0123456789"}, created_at=FIRST)
    get = "from huggingface_hub.utils import get_session; r = get_session().get('{}', headers={{'Range': '{}'}}); "
    url = f"{hub.endpoint}/datasets/org/digits/resolve/main/digits.txt"
    fields = "answer = [r.status_code, r.text, r.headers['Content-Range'].split('/')[1]]"
    assert client(get.format(url, span) + fields) == [206, expected.decode(), "10"]
    assert client(get.format(url, "bytes=10-") + "answer = r.status_code") == 416


def test_datasets_reads_the_configurations_of_a_card(hub: HubServer, client: Client) -> None:
    code = f"answer = load_dataset_builder('{TOY}', {{!r}}, revision='{head(hub)}').config.data_files"
    root = f"hf://datasets/{TOY}@{head(hub)}"
    assert client(code.format("english")) == {
        "train": [f"{root}/en/train-0.parquet", f"{root}/en/train-1.parquet"],
        "test": [f"{root}/en/test.parquet"],
    }
    assert client(code.format("other")) == {"train": [f"{root}/other.parquet"]}
    assert client(code.format("none")) == "builtins.ValueError"
    assert hub.bytes_sent() == 0


def test_datasets_reads_a_converted_branch_by_patterns(hub: HubServer, client: Client) -> None:
    sha = head(hub, CONVERTED, CONVERT)
    for revision in (sha, CONVERT):
        files = client(f"""
            patterns = {{"train": ["ihm/train/*.parquet"]}}
            builder = load_dataset_builder("{CONVERTED}", data_files=patterns, revision="{revision}")
            answer = builder.config.data_files
            """)
        assert files == {"train": [f"hf://datasets/{CONVERTED}@{sha}/ihm/train/0000.parquet"]}
    missing = f"answer = load_dataset_builder('org/none', revision='{sha}')"
    assert client(missing) == "datasets.DatasetNotFoundError"


def test_a_read_outlives_one_error_and_one_cut(hub: HubServer, client: Client) -> None:
    hub.fail_next(status=500, match="/resolve/")
    hub.cut_next(match="train-0.parquet", after_bytes=100)
    assert client(read_text(hub))[-1] == "Sentence 39."
    statuses = [seen.status for seen in hub.requests if seen.path.endswith(".parquet")]
    assert statuses[:5] == [500, 302, 206, 302, 206]
    assert next(seen.sent for seen in hub.requests if seen.status == 206) == 100


def test_listings_are_not_tried_again_where_the_client_does_not(hub: HubServer, client: Client) -> None:
    hub.fail_next(status=503, match="/paths-info/")
    assert client(f"answer = api.get_paths_info('{TOY}', 'README.md', **dataset)") == "huggingface_hub.HfHubHTTPError"
    hub.fail_next(status=429, match="/commits/")
    assert len(client(f"answer = api.list_repo_commits('{TOY}', **dataset)")) == 2
    assert [seen.status for seen in hub.requests] == [503, 429, 200]


def test_a_stopped_hub_drops_connections_and_refuses_new_ones() -> None:
    with HubServer() as hub:
        connection = HTTPConnection(hub.endpoint.removeprefix("http://"))
        for _ in range(2):  # the second over the same connection
            connection.request("GET", "/nothing/here")
            assert connection.getresponse().read()
    with pytest.raises(ConnectionError):
        connection.request("GET", "/nothing/here")
        connection.getresponse()
    connection.close()
    with pytest.raises(ConnectionRefusedError):
        connection.connect()


def test_a_folder_in_the_hubs_layout_is_served_the_same_each_time(tmp_path: Path) -> None:
    for name in ("org/one/README.md", "org/one/data/train.parquet", "org/one/.cache/x", "org/two/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    hubs = [HubServer(), HubServer()]
    commits = [hub.commit_folder(tmp_path) for hub in hubs]
    assert commits[0] == commits[1]
    files = hubs[0].repositories["org/one"].find(commits[0]["org/one"]).files
    assert sorted(files) == ["README.md", "data/train.parquet"]
