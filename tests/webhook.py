"""A webhook on loopback: keeps what it is sent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "T0/B0/hook-token"
"""Part of its address, as with most webhooks: whoever knows it may write there."""


@contextmanager
def webhook(*, status: int = 200, wait_s: float = 0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that keeps what it is sent: its address and the bodies."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == f"/services/{SECRET}"
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            time.sleep(wait_s)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/services/{SECRET}", bodies
        server.shutdown()
