"""Real S3 servers on this machine, behind a proxy that counts and breaks: moto's, and `rclone serve s3`.

The second does not honour conditional writes. Both are processes of their own; clients speak to the proxy.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, create_connection, socket
from typing import Any, Self

from tests.ports import free_port

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server", "expect")


@dataclass
class SeenRequest:
    """One request: what it asked, the bytes of body that came with it, and the status that went back (0: cut)."""

    method: str
    path: str
    received: int
    status: int = 0


@dataclass
class _Fault:
    """What happens to the next `times` requests of a method whose path contains `match`."""

    method: str
    match: str
    times: int
    status: int
    answered: bool
    headers: dict[str, str]


class S3Server:
    """One server and the proxy before it; a context manager.

    Attributes:
        endpoint: Where clients find the proxy.
        requests: All requests since the last reset.
    """

    def __init__(self, command: list[str], port: int) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._port = port
        self.requests: list[SeenRequest] = []
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._proxy = _Proxy(self)
        self.endpoint = f"http://127.0.0.1:{self._proxy.server_port}"
        self._thread = threading.Thread(target=self._proxy.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), create_connection(("127.0.0.1", self._port), timeout=1):
                break
            assert self._process.poll() is None and time.monotonic() < deadline, "the S3 server does not start"
            time.sleep(0.1)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.stop()
        self._thread.join()
        self._process.kill()
        self._process.wait()

    def client(self, **options: Any) -> Any:
        """A boto3 client of the proxy that does not wait long between its tries."""
        import boto3
        from botocore.config import Config

        config = Config(retries={"mode": "standard", "total_max_attempts": 2}, s3={"addressing_style": "path"})
        return boto3.client("s3", endpoint_url=self.endpoint, config=config.merge(Config(**options)), **CREDENTIALS)

    def storage_options(self) -> dict[str, Any]:
        """What `datasets` needs to read from here with s3fs."""
        return {
            "key": CREDENTIALS["aws_access_key_id"],
            "secret": CREDENTIALS["aws_secret_access_key"],
            "client_kwargs": {"endpoint_url": self.endpoint, "region_name": CREDENTIALS["region_name"]},
        }

    def reset(self) -> None:
        """Forget the requests, and the faults that have not happened."""
        with self._lock:
            self.requests = []
            self._faults.clear()

    def uploaded(self, suffix: str = ".parquet") -> dict[str, int]:
        """Bytes of body that were taken in by path, of writes to paths that end so."""
        found: dict[str, int] = {}
        for seen in self.requests:
            path = seen.path.partition("?")[0]
            if seen.method == "PUT" and path.endswith(suffix) and seen.received and seen.status == 200:
                found[path] = found.get(path, 0) + seen.received
        return found

    def fail_next(self, method: str, match: str, status: int, times: int = 1, **headers: str) -> None:
        """Answer the next such requests with an error, without asking the server."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._faults.append(_Fault(method, match, times, status, answered=False, headers=named))

    def cut_next(self, method: str, match: str, times: int = 1, *, answered: bool = False) -> None:
        """Close the connection of the next such requests: before the server hears of it, or after it has answered."""
        self._faults.append(_Fault(method, match, times, 0, answered, {}))

    def take_fault(self, method: str, path: str) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and fault.match in path:
                    fault.times -= 1
                    return fault
        return None

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, list[Any], bytes]:
        """Pass a request on."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


CREDENTIALS = {
    "aws_access_key_id": "key",
    "aws_secret_access_key": "a-secret-of-a-test",
    "region_name": "us-east-1",
}


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """Start moto's server, which honours conditional writes."""
    port = free_port()
    program = str(Path(sys.executable).with_name("moto_server"))
    with S3Server([program, "-H", "127.0.0.1", "-p", str(port)], port) as server:
        yield server


@contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """Start `rclone serve s3` on a folder whose folders are the buckets; conditional writes are ignored."""
    port = free_port()
    program = str(Path(sys.executable).with_name("rclone"))
    command = [program, "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}", str(folder)]
    with S3Server(command, port) as server:
        yield server


class _Proxy(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, owner: S3Server) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner
        self.connections: set[socket] = set()

    def stop(self) -> None:
        self.shutdown()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Proxy

    def _serve(self) -> None:
        owner = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen = SeenRequest(self.command, self.path, len(body))
        owner.requests.append(seen)
        fault = owner.take_fault(self.command, self.path)
        if fault and not fault.status and not fault.answered:
            self.close_connection = True
            return
        if fault and fault.status:
            self._send(seen, fault.status, list(fault.headers.items()), b"")
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            status, answered, content = owner.ask(self.command, self.path, body, headers)
        except (OSError, HTTPException):
            self.close_connection = True
            return
        if fault and fault.answered:
            self.close_connection = True
            return
        self._send(seen, status, answered, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _send(self, seen: SeenRequest, status: int, headers: list[Any], content: bytes) -> None:
        seen.status = status
        self.send_response_only(status)
        length = next((value for name, value in headers if name.lower() == "content-length"), None)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name it has in http.server
        return
