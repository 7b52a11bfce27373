"""A small server on this machine that speaks the OpenAI API, as far as the engine asks, and fails on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from typing import Any

from include.schema import LlmServer


@dataclass(frozen=True)
class Fault:
    """What a request gets instead of its answer.

    Attributes:
        status: HTTP status; 0 cuts the connection, None answers nothing until the server stops.
        message: The server's own words.
        headers: More headers.
    """

    status: int | None
    message: str = "the server's own words"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """A request that was seen: when (monotonic seconds), where to, with which key and JSON body."""

    at: float
    path: str
    key: str
    body: dict[str, Any]


@dataclass
class ServerState:
    """What the server does, to be changed by a test at any time, and what it has seen.

    Attributes:
        models: Ids that it lists.
        key: The API key that it asks for.
        endpoints: Paths that it has besides `/v1/models`.
        count: Text -> how many tokens it says that a prompt has; None: it says nothing.
        fault: (request, requests like it before) -> what goes wrong; "like it" means the same seed.
        answer: Request -> (text, finish_reason).
        seconds: How long an answer takes.
        strict: Refuse fields that `transformers serve` does not know.
        answers_as: The model's name in answers; None: the one asked for.
        requests: All that it was asked, in order.
        most_open: Most requests that were open at once.
        server: Where it is, once it runs.
    """

    models: list[str]
    key: str = "none"
    endpoints: tuple[str, ...] = ("/v1/completions",)
    count: Callable[[str], int] | None = len
    fault: Callable[[Request, int], Fault | None] = lambda request, before: None
    answer: Callable[[Request], tuple[str, str]] = lambda request: (f"Answer {request.body['seed']}.", "stop")
    seconds: float = 0
    strict: bool = False
    answers_as: str | None = None
    requests: list[Request] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)
    server: LlmServer = field(init=False)

    def asked(self) -> list[Request]:
        """The requests for answers, without those of getting acquainted (one token)."""
        return [request for request in self.requests if request.body.get("max_tokens", 1) > 1]


@contextmanager
def running_server(state: ServerState, port: int = 0) -> Iterator[ServerState]:
    """Serve on a port of this machine, by default a free one; `state.server` says where."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hung up is no news here."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            self.handle_request({})

        def do_POST(self) -> None:
            self.handle_request(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def handle_request(self, body: dict[str, Any]) -> None:
            key = self.headers["Authorization"].removeprefix("Bearer ")
            request = Request(time.monotonic(), self.path, key, body)
            with state.lock:
                before = sum(body.get("seed") == other.body.get("seed") for other in state.requests)
                state.requests.append(request)
                state.open += 1
                state.most_open = max(state.most_open, state.open)
            try:
                status, value, headers = _reply(state, request, before)
            finally:
                with state.lock:
                    state.open -= 1
            if status == 0:
                self.close_connection = True
                self.connection.shutdown(SHUT_RDWR)
                return
            content = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
                self.send_header(name, str(text))
            self.end_headers()
            self.wfile.write(content)

    state.stopped.clear()
    http = Server(("127.0.0.1", port), Handler)
    state.server = LlmServer(f"http://127.0.0.1:{http.server_port}/v1", None if state.key == "none" else state.key)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield state
    finally:
        state.stopped.set()
        http.shutdown()
        http.server_close()


_KNOWN_BY_TRANSFORMERS = {
    *("model", "prompt", "messages", "temperature", "top_p", "max_tokens", "seed", "stop"),
    *("generation_config", "chat_template_kwargs"),
}


def _reply(state: ServerState, request: Request, before: int) -> tuple[int, object, Mapping[str, str]]:
    """Status, JSON value and headers of the answer to a request."""
    fault = state.fault(request, before)
    if fault is None and request.key != state.key:
        fault = Fault(401, f"no such key: {request.key}")
    if fault is None and request.path not in ("/v1/models", *state.endpoints):
        fault = Fault(404)
    if fault is None and state.strict and (unknown := set(request.body) - _KNOWN_BY_TRANSFORMERS):
        fault = Fault(422, f"Unexpected fields in the request: {unknown}")
    value: dict[str, object]
    if fault is not None:
        if fault.status is None:
            state.stopped.wait()
        # FastAPI's form for what `transformers serve` says, OpenAI's for the rest.
        value = {"detail": fault.message} if fault.status == 422 else {"error": {"message": fault.message}}
        return fault.status or 0, value, fault.headers
    if request.path == "/v1/models":
        return 200, {"object": "list", "data": [{"id": name} for name in state.models]}, {}
    time.sleep(state.seconds)
    text, finish_reason = state.answer(request)
    choice: dict[str, object] = {"index": 0, "finish_reason": finish_reason}
    choice |= {"message": {"content": text}} if "messages" in request.body else {"text": text}
    value = {"model": state.answers_as or request.body["model"], "choices": [choice]}
    if state.count is not None:
        prompt = request.body.get("prompt") or str(request.body["messages"])
        value["usage"] = {"prompt_tokens": state.count(prompt), "completion_tokens": len(text.split())}
    return 200, value, {}
