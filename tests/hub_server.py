"""A stand-in for the Hugging Face Hub on this machine: dataset repositories, their commits, their files by ranges.

It answers what huggingface_hub and datasets ask when they read, and what publishing asks: repositories, large files
uploaded beforehand, commits, tags; writing needs the token. Clients find it through HF_ENDPOINT, which they read
when they are imported: start them in a process of their own, with `HubServer.environment`. As on the real Hub, a
Parquet file lies in a store of another origin and is redirected to; Xet is never offered, so bytes come over HTTP.

By hand, over a folder in the Hub's layout: `python -m tests.hub_server samples`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from socket import SHUT_RDWR, socket
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

log = logging.getLogger(__name__)

DEFAULT_BRANCH = "main"
CONVERT_PREFIX = "refs/convert/"
TOKEN = "hf_of_a_test"
"""What a client must send to write, or to see a private repository."""

MAX_FORM_VALUES = 1_000
"""Values in one posted form; the Hub refuses more (https://github.com/huggingface/huggingface_hub/issues/1503)."""
_CHUNK = 1 << 16
_FOREIGN_VARIABLES = re.compile(r"HF_.*|HUGGING_?FACE.*|TRANSFORMERS_OFFLINE|(https?|all|no)_proxy", re.IGNORECASE)


class RefusedError(Exception):
    """A request that gets an error status.

    Attributes:
        status: HTTP status.
        code: X-Error-Code, by which the client chooses its exception; None sends none.
        headers: More headers.
    """

    def __init__(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


@dataclass(frozen=True)
class Blob:
    """The content of one file.

    Attributes:
        content: The bytes, or the file they are read from when they are asked for.
        size: Bytes.
        oid: Git's blob id: of the content, or of the LFS pointer to it.
        sha256: Of the content, for a file in LFS; None for any other.
        pointer_size: Bytes of the LFS pointer.
    """

    content: bytes | Path
    size: int
    oid: str
    sha256: str | None = None
    pointer_size: int = 0

    @classmethod
    def of(cls, path: str, content: bytes | Path) -> Self:
        """Identify a file's content; Parquet goes to LFS, anything else into git."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if not path.endswith(".parquet"):
            return cls(content, size, _git_oid("blob", content if isinstance(content, bytes) else content.read_bytes()))
        sha256 = hashlib.sha256()
        for chunk in cls(content, size, oid="").read(0, size):
            sha256.update(chunk)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256.hexdigest()}\nsize {size}\n".encode()
        return cls(content, size, _git_oid("blob", pointer), sha256.hexdigest(), len(pointer))

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield bytes start..stop-1 in chunks."""
        if isinstance(self.content, bytes):
            for position in range(start, stop, _CHUNK):
                yield self.content[position : min(position + _CHUNK, stop)]
            return
        with self.content.open("rb") as file:
            file.seek(start)
            while start < stop and (chunk := file.read(min(_CHUNK, stop - start))):
                start += len(chunk)
                yield chunk


@dataclass(frozen=True, eq=False)
class Commit:
    """A snapshot of a repository: all its files, path -> blob."""

    sha: str
    title: str
    created_at: datetime
    parent: Commit | None
    files: Mapping[str, Blob]

    def history(self) -> Iterator[Commit]:
        """Yield this commit and all before it, newest first."""
        commit: Commit | None = self
        while commit:
            yield commit
            commit = commit.parent

    def entries(self, folder: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
        """List the files and folders below a folder as the Hub's API describes them, by path.

        Raises:
            RefusedError: If there is no such folder.
        """
        prefix = f"{folder}/" if folder else ""
        inside = {path: blob for path, blob in self.files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise self.no_entry(folder)
        found: dict[str, dict[str, Any]] = {}
        contents: dict[str, list[bytes]] = {}
        for path, blob in sorted(inside.items()):
            found[path] = {"type": "file", "path": path, "oid": blob.oid, "size": blob.size}
            if blob.sha256:
                found[path]["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
            for parent in map(str, PurePosixPath(path).parents):
                if parent != folder and parent.startswith(prefix) and parent != ".":
                    contents.setdefault(parent, []).append(f"{path} {blob.oid}\n".encode())
        for path, lines in contents.items():
            found[path] = {"type": "directory", "path": path, "oid": _git_oid("tree", b"".join(lines)), "size": 0}
        depth = prefix.count("/")
        return [found[path] for path in sorted(found) if recursive or path.count("/") == depth]

    def last_change(self, path: str) -> Commit:
        """Find the commit that gave a file, or a folder's files, what they hold in this one."""

        def state(commit: Commit) -> dict[str, str]:
            return {
                name: blob.oid for name, blob in commit.files.items() if name == path or name.startswith(f"{path}/")
            }

        here = self
        while here.parent and state(here.parent) == state(here):
            here = here.parent
        return here

    def no_entry(self, path: str) -> RefusedError:
        """Return the refusal for a path that is not in this commit."""
        return RefusedError(404, "EntryNotFound", f"no {path} at {self.sha}", {"X-Repo-Commit": self.sha})


@dataclass
class Repository:
    """A dataset repository.

    Attributes:
        name: "<organisation>/<name>".
        private: Whether reading needs the token too.
        branches: Branch -> its newest commit; also "refs/convert/parquet".
        tags: Tag -> its commit.
        commits: All commits by sha.
    """

    name: str
    private: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(
        self, files: Mapping[str, bytes | Path | None], branch: str, created_at: datetime | None, title: str
    ) -> Commit:
        """Put a commit on top of a branch; a new branch starts empty."""
        parent = self.branches.get(branch)
        snapshot = dict(parent.files) if parent else {}
        for path, content in files.items():
            if content is None:
                del snapshot[path]
            else:
                snapshot[path] = Blob.of(path, content)
        moment = (created_at or datetime.now(UTC)).astimezone(UTC)
        moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)  # as exact as the API's dates are
        lines = [self.name, title, moment.isoformat(), parent.sha if parent else "", branch]
        lines += [f"{path} {blob.oid}" for path, blob in sorted(snapshot.items())]
        commit = Commit(_git_oid("commit", "\n".join(lines).encode()), title, moment, parent, snapshot)
        self.commits[commit.sha] = self.branches[branch] = commit
        return commit

    def find(self, revision: str | None) -> Commit:
        """Find the commit of a branch, tag or sha; None: of main, or of the first branch where there is no main.

        Raises:
            RefusedError: If there is no such revision.
        """
        if revision is None:
            revision = DEFAULT_BRANCH if DEFAULT_BRANCH in self.branches else next(iter(self.branches), DEFAULT_BRANCH)
        commit = self.branches.get(revision) or self.tags.get(revision) or self.commits.get(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


@dataclass
class SeenRequest:
    """One request and what it got.

    Attributes:
        method: "GET", "HEAD", "POST" or "PUT".
        path: Path of the URL, unquoted, without the query.
        range: The Range header, if there was one.
        status: HTTP status of the answer.
        sent: Bytes of the body that were sent.
        received: Bytes of body that came with the request.
    """

    method: str
    path: str
    range: str | None
    status: int
    sent: int = 0
    received: int = 0


@dataclass(frozen=True)
class Request:
    """What a handler is asked: `names` are the parts of the path its route names, unquoted."""

    method: str
    names: Mapping[str, str | None]
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes

    def flag(self, name: str) -> bool:
        """Tell whether the query sets a boolean."""
        return self.query.get(name) == ["true"]

    @property
    def knows_token(self) -> bool:
        """Whether it came with the token."""
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def json(self) -> Any:
        """Return the body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What goes back: `length` bytes of body in chunks."""

    status: int
    headers: Mapping[str, str]
    body: Iterable[bytes] = ()
    length: int = 0


@dataclass
class _Fault:
    """Something that goes wrong with the next `times` requests whose path contains `match`."""

    match: str
    times: int
    status: int = 0
    after_bytes: int = 0
    retry_after: str = "0"


class HubServer:
    """A Hub of our own; a context manager, or `start` and `stop`.

    Attributes:
        endpoint: What HF_ENDPOINT must be.
        store: Where the Parquet files lie.
        repositories: By name.
        blobs: What the store holds, by sha256.
        requests: All requests since the last reset, in the order they were answered.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, Blob] = {}
        self.requests: list[SeenRequest] = []
        self._failures: list[_Fault] = []
        self._cuts: list[_Fault] = []
        self._cut_uploads: list[_Fault] = []
        self._lock = threading.Lock()
        self._servers = [_Server(self), _Server(self)]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self._servers]
        self.endpoint, self.store = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def start(self) -> Self:
        """Serve, in threads of this process."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Stop for good and drop all connections: the endpoint then refuses connections."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.stop()
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def environment(self, home: Path, **variables: str) -> dict[str, str]:
        """Return the environment of a client process: this Hub, a home of its own, neither offline nor by a proxy."""
        inherited = {name: value for name, value in os.environ.items() if not _FOREIGN_VARIABLES.fullmatch(name)}
        hub = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**inherited, **hub, **variables}

    def commit(
        self,
        repository: str,
        files: Mapping[str, bytes | Path | None],
        *,
        branch: str = DEFAULT_BRANCH,
        created_at: datetime | None = None,
        title: str = "Add files",
    ) -> str:
        """Put a commit on top of a branch; makes the repository and the branch where there are none.

        Args:
            repository: "<organisation>/<name>".
            files: Path -> content; a Path is read when it is served and must not change until then, None deletes.
            branch: "main", or a reference such as "refs/convert/parquet".
            created_at: With a time zone, kept to the millisecond; None: now.
            title: First line of its message.

        Returns:
            Its sha, 40 hexadecimal digits.

        Raises:
            KeyError: If a path to delete is not there.
        """
        target = self.repositories.setdefault(repository, Repository(repository))
        commit = target.commit(files, branch, created_at, title)
        self.blobs.update({blob.sha256: blob for blob in commit.files.values() if blob.sha256})
        return commit.sha

    def commit_folder(self, folder: Path) -> dict[str, str]:
        """Commit every repository of a folder in the Hub's layout, dated by its newest file; hidden files stay out.

        Returns:
            Repository -> sha; the same as long as the files are.
        """
        commits = {}
        for home in sorted(path for path in folder.resolve().glob("*/*") if path.is_dir()):
            paths = {path.relative_to(home).as_posix(): path for path in sorted(home.rglob("*")) if path.is_file()}
            files = {name: path for name, path in paths.items() if not re.search(r"(^|/)\.", name)}
            if files:
                newest = max(path.stat().st_mtime for path in files.values())
                name = home.relative_to(folder.resolve()).as_posix()
                commits[name] = self.commit(name, files, created_at=datetime.fromtimestamp(newest, UTC))
        return commits

    def reset(self) -> None:
        """Forget the requests, and the faults that have not happened."""
        with self._lock:
            self.requests = []
            self._failures.clear()
            self._cuts.clear()
            self._cut_uploads.clear()

    def uploaded(self) -> dict[str, int]:
        """Bytes of the large files that arrived, by sha256."""
        puts = [seen for seen in self.requests if seen.method == "PUT" and seen.status == 200]
        return {seen.path.rpartition("/")[2]: seen.received for seen in puts}

    def bytes_sent(self, suffix: str = ".parquet") -> int:
        """Add up the bodies of the GET requests to paths that end so."""
        return sum(seen.sent for seen in self.requests if seen.method == "GET" and seen.path.endswith(suffix))

    def fail_next(self, status: int = 500, times: int = 1, match: str = "", retry_after: str = "0") -> None:
        """Answer the next requests whose path contains `match` with an error status; 429 says when to come back."""
        self._failures.append(_Fault(match, times, status=status, retry_after=retry_after))

    def cut_upload_next(self, match: str = "", times: int = 1, after_bytes: int = 0) -> None:
        """Close the connection after so many bytes of the next request bodies that are longer."""
        self._cut_uploads.append(_Fault(match, times, after_bytes=after_bytes))

    def take_cut_upload(self, path: str, length: int) -> int | None:
        """Take the number of bytes after which a request must be cut, if it must."""
        fault = self._take(self._cut_uploads, lambda fault: fault.match in path and fault.after_bytes < length)
        return fault.after_bytes if fault else None

    def cut_next(self, match: str = "", times: int = 1, after_bytes: int = 0) -> None:
        """Close the connection after so many bytes of the next bodies that are longer, where the path contains `match`.

        A Parquet file's redirection has no body: it is the file's bytes that are cut.
        """
        self._cuts.append(_Fault(match, times, after_bytes=after_bytes))

    def take_failure(self, path: str) -> tuple[int, str] | None:
        """Take the status that a request must fail with, and its Retry-After, if it must."""
        fault = self._take(self._failures, lambda fault: fault.match in path)
        return (fault.status, fault.retry_after) if fault else None

    def take_cut(self, path: str, length: int) -> int | None:
        """Take the number of bytes after which a body must end, if it must."""
        fault = self._take(self._cuts, lambda fault: fault.match in path and fault.after_bytes < length)
        return fault.after_bytes if fault else None

    def repository(self, request: Request) -> Repository:
        """Find the repository that a request names.

        Raises:
            RefusedError: If there is none.
        """
        name = str(request.names["repository"])
        if name not in self.repositories:
            raise RefusedError(404, "RepoNotFound", f"Repository not found: {name}")
        if self.repositories[name].private and not request.knows_token:
            raise RefusedError(401, "RepoNotFound", f"Repository not found: {name}")
        return self.repositories[name]

    def _take(self, faults: list[_Fault], wanted: Callable[[_Fault], bool]) -> _Fault | None:
        with self._lock:
            fault = next((fault for fault in faults if fault.times > 0 and wanted(fault)), None)
            if fault:
                fault.times -= 1
            return fault


def _info(hub: HubServer, request: Request) -> Reply:
    repository = hub.repository(request)
    commit = repository.find(request.names.get("revision"))
    siblings = [
        {"rfilename": entry["path"]}
        | ({"size": entry["size"], "blobId": entry["oid"]} if request.flag("blobs") else {})
        | ({"lfs": {**entry["lfs"], "sha256": entry["lfs"]["oid"]}} if request.flag("blobs") and "lfs" in entry else {})
        for entry in commit.entries()
        if entry["type"] == "file"
    ]
    return _json_reply(
        {
            "id": repository.name,
            "author": repository.name.split("/")[0],
            "sha": commit.sha,
            "createdAt": _date(min(commit.created_at for commit in repository.commits.values())),
            "lastModified": _date(commit.created_at),
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
    )


def _references(hub: HubServer, request: Request) -> Reply:
    answer: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    for branch, commit in hub.repository(request).branches.items():
        name = branch.removeprefix(CONVERT_PREFIX)
        kind, reference = ("branches", f"refs/heads/{branch}") if name == branch else ("converts", branch)
        answer[kind].append({"name": name, "ref": reference, "targetCommit": commit.sha})
    answer["tags"] = [
        {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": commit.sha}
        for tag, commit in hub.repository(request).tags.items()
    ]
    return _json_reply(answer)


def _commits(hub: HubServer, request: Request) -> Reply:
    commit = hub.repository(request).find(request.names["revision"])
    return _json_reply(
        [
            {"id": each.sha, "title": each.title, "message": "", "authors": [], "date": _date(each.created_at)}
            for each in commit.history()
        ]
    )


def _tree(hub: HubServer, request: Request) -> Reply:
    commit = hub.repository(request).find(request.names["revision"])
    entries = commit.entries(request.names["path"] or "", recursive=request.flag("recursive"))
    return _json_reply(_with_last_commit(commit, entries) if request.flag("expand") else entries)


def _paths_info(hub: HubServer, request: Request) -> Reply:
    commit = hub.repository(request).find(request.names["revision"])
    form = parse_qs(request.body.decode())
    if sum(map(len, form.values())) > MAX_FORM_VALUES:
        raise RefusedError(413, None, "too many parameters")
    wanted = set(form.get("paths", []))
    entries = [entry for entry in commit.entries() if entry["path"] in wanted]
    return _json_reply(_with_last_commit(commit, entries) if form.get("expand") == ["true"] else entries)


def _resolve(hub: HubServer, request: Request) -> Reply:
    commit = hub.repository(request).find(request.names["revision"])
    path = str(request.names["path"])
    blob = commit.files.get(path)
    if blob is None:
        raise commit.no_entry(path)
    headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.sha256 or blob.oid}"'}
    if blob.sha256 is None:
        return _content(blob, request, headers)
    linked = {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    return Reply(302, headers | linked | {"Location": f"{hub.store}/store/{blob.sha256}/{quote(path)}"})


def _stored(hub: HubServer, request: Request) -> Reply:
    blob = hub.blobs.get(str(request.names["sha256"]))
    if blob is None:
        raise RefusedError(404, None, "no such object")
    return _content(blob, request, {"ETag": f'"{blob.sha256}"'})


def _create(hub: HubServer, request: Request) -> Reply:
    asked = request.json()
    name = f"{asked['organization']}/{asked['name']}"
    if name in hub.repositories:
        raise RefusedError(409, None, f"You already created this dataset repo: {name}")
    hub.commit(name, {".gitattributes": b"*.parquet filter=lfs\n"}, title="initial commit")
    hub.repositories[name].private = asked.get("private", False) or asked.get("visibility") == "private"
    return _json_reply({"url": f"{hub.endpoint}/datasets/{name}", "name": name, "id": name})


def _validate_card(hub: HubServer, request: Request) -> Reply:
    return _json_reply({"errors": [], "warnings": []})


def _preupload(hub: HubServer, request: Request) -> Reply:
    there = hub.repository(request).find(request.names["revision"]).files
    files = []
    for path in (each["path"] for each in request.json()["files"]):
        mode = "lfs" if path.endswith(".parquet") else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
        if blob := there.get(path):
            files[-1]["oid"] = blob.sha256 or blob.oid
    return _json_reply({"files": files})


def _upload_instructions(hub: HubServer, request: Request) -> Reply:
    hub.repository(request)
    objects = [{"oid": each["oid"], "size": each["size"]} for each in request.json()["objects"]]
    for each in objects:
        if each["oid"] not in hub.blobs:
            each["actions"] = {"upload": {"href": f"{hub.store}/upload/{each['oid']}", "header": {}}}
    return _json_reply({"transfer": "basic", "objects": objects})


def _upload(hub: HubServer, request: Request) -> Reply:
    blob = Blob.of("upload.parquet", request.body)
    if blob.sha256 != request.names["sha256"]:
        raise RefusedError(400, None, "the body is not what its name says")
    hub.blobs[blob.sha256] = blob
    return _json_reply({})


def _commit(hub: HubServer, request: Request) -> Reply:
    repository = hub.repository(request)
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit", repository.branches[DEFAULT_BRANCH].sha) != repository.branches[DEFAULT_BRANCH].sha:
        raise RefusedError(412, None, "A commit has happened since. Please refresh and try again.")
    files: dict[str, bytes | Path | None] = {}
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.blobs:
                raise RefusedError(400, None, f"{value['path']} was never uploaded")
            files[value["path"]] = hub.blobs[value["oid"]].content
        elif line["key"] == "deletedFile":
            files[value["path"]] = None
    sha = hub.commit(repository.name, files, title=header["summary"])
    return _json_reply({"commitUrl": f"{hub.endpoint}/datasets/{repository.name}/commit/{sha}", "commitOid": sha})


def _tag(hub: HubServer, request: Request) -> Reply:
    repository = hub.repository(request)
    name = request.json()["tag"]
    if name in repository.tags:
        raise RefusedError(409, None, f"Tag reference exists already: {name}")
    repository.tags[name] = repository.find(request.names["revision"])
    return _json_reply({})


_REPOSITORY = r"datasets/(?P<repository>[^/]+/[^/]+)"
ROUTES: tuple[tuple[str, str, Callable[[HubServer, Request], Reply]], ...] = (
    ("GET", rf"/api/{_REPOSITORY}", _info),
    ("GET", rf"/api/{_REPOSITORY}/revision/(?P<revision>[^/]+)", _info),
    ("GET", rf"/api/{_REPOSITORY}/refs", _references),
    ("GET", rf"/api/{_REPOSITORY}/commits/(?P<revision>[^/]+)", _commits),
    ("GET", rf"/api/{_REPOSITORY}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", _tree),
    ("POST", rf"/api/{_REPOSITORY}/paths-info/(?P<revision>[^/]+)", _paths_info),
    ("GET", rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
    ("GET", r"/store/(?P<sha256>[0-9a-f]{64})/.+", _stored),
    ("POST", r"/api/validate-yaml", _validate_card),
    ("PUT", r"/upload/(?P<sha256>[0-9a-f]{64})", _upload),
)
"""Method, pattern of the quoted path, and who answers; HEAD is a GET without the body."""

WRITES: tuple[tuple[str, str, Callable[[HubServer, Request], Reply]], ...] = (
    ("POST", r"/api/repos/create", _create),
    ("POST", rf"/api/{_REPOSITORY}/preupload/(?P<revision>[^/]+)", _preupload),
    ("POST", rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", _upload_instructions),
    ("POST", rf"/api/{_REPOSITORY}/commit/(?P<revision>[^/]+)", _commit),
    ("POST", rf"/api/{_REPOSITORY}/tag/(?P<revision>[^/]+)", _tag),
)
"""The same for what needs the token."""


class _Server(ThreadingHTTPServer):
    """One origin of the Hub; it knows its connections, so that it can drop them."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: set[socket] = set()

    def stop(self) -> None:
        """Stop accepting, drop every connection, and wait for their threads."""
        self.shutdown()
        for connection in list(self.connections):
            try:
                connection.shutdown(SHUT_RDWR)
            except OSError:  # its client was faster
                continue
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has gone is no error
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, asks the routes, sends the replies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        hub = self.server.hub
        length = int(self.headers.get("Content-Length") or 0)
        if (left := hub.take_cut_upload(path, length)) is not None:
            self.rfile.read(left)
            hub.requests.append(SeenRequest(self.command, path, None, 0, received=left))
            self.close_connection = True
            return
        body = self.rfile.read(length)
        try:
            if failure := hub.take_failure(path):
                headers = {"Retry-After": failure[1]} if failure[0] == 429 else None
                raise RefusedError(failure[0], None, "told to fail", headers)
            reply = self._answer(url.path, parse_qs(url.query), body)
        except RefusedError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            headers = {**error.headers, **code, "X-Error-Message": str(error).encode("ascii", "replace").decode()}
            reply = _json_reply({"error": str(error)}, error.status, headers)
        self._send(reply, path, len(body))

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _answer(self, path: str, query: Mapping[str, list[str]], body: bytes) -> Reply:
        for method, pattern, answer in (*ROUTES, *WRITES):
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace("HEAD", "GET"):
                names = {name: value and unquote(value) for name, value in match.groupdict().items()}
                request = Request(self.command, names, query, self.headers, body)
                if (method, pattern, answer) in WRITES and not request.knows_token:
                    raise RefusedError(401, None, "Invalid username or password.")
                return answer(self.server.hub, request)
        raise RefusedError(404, None, f"{self.command} {path} is not offered here")

    def _send(self, reply: Reply, path: str, received: int) -> None:
        hub = self.server.hub
        seen = SeenRequest(self.command, path, self.headers.get("Range"), reply.status, received=received)
        hub.requests.append(seen)
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(reply.length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        left = hub.take_cut(path, reply.length)
        if left is not None:
            self.close_connection = True
        for chunk in reply.body:
            piece = chunk if left is None else chunk[:left]
            left = None if left is None else left - len(piece)
            seen.sent += len(piece)  # first: whoever has received the bytes finds them counted
            self.wfile.write(piece)
            if left == 0:
                return

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name it has in http.server
        log.debug(format, *arguments)


def _content(blob: Blob, request: Request, headers: Mapping[str, str]) -> Reply:
    """Answer with a file, or the one range that is asked for."""
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    asked = re.fullmatch(r"bytes=(?=.*\d)(\d*)-(\d*)", request.headers.get("Range") or "")
    if asked is None:
        return Reply(200, headers, blob.read(0, blob.size), blob.size)
    first, last = asked.groups()
    start = int(first) if first else max(blob.size - int(last), 0)
    stop = min(int(last) + 1, blob.size) if first and last else blob.size
    if start >= stop:
        raise RefusedError(416, None, "no such range", {"Content-Range": f"bytes */{blob.size}"})
    span = {"Content-Range": f"bytes {start}-{stop - 1}/{blob.size}"}
    return Reply(206, headers | span, blob.read(start, stop), stop - start)


def _json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps(value).encode()
    return Reply(status, {**(headers or {}), "Content-Type": "application/json"}, [body], len(body))


def _with_last_commit(commit: Commit, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each entry the commit that changed it last."""
    changes = [commit.last_change(entry["path"]) for entry in entries]
    return [
        {**entry, "lastCommit": {"id": change.sha, "title": change.title, "date": _date(change.created_at)}}
        for entry, change in zip(entries, changes, strict=True)
    ]


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _git_oid(kind: str, content: bytes) -> str:
    """Hash an object as git does."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def main(folder: Path) -> None:
    """Serve a folder in the Hub's layout until interrupted; prints the endpoint first, the requests to stderr."""
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(message)s")
    with HubServer() as hub:
        commits = hub.commit_folder(folder)
        sys.stdout.write(f"{hub.endpoint}\n" + "".join(f"  {name} {sha}\n" for name, sha in commits.items()))
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
