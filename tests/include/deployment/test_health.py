"""The health check of a container: silent, quick, and right."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from include.settings import PROJECT_ROOT
from tests.ports import free_port


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.removeprefix("/")))
        self.end_headers()
        if self.path != "/204":
            self.wfile.write(
                b'{"scheduler": {"status": "healthy"}, "triggerer": {"status": "unhealthy"}, "other": null}'
            )

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check(url: str, *part: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "include.deployment.health", url, *part],
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
        env={"http_proxy": "http://127.0.0.1:1"},
        check=False,
    )


@pytest.mark.parametrize(("status", "code"), [(200, 0), (204, 0), (404, 1), (503, 1)])
def test_the_status_decides(url: str, status: int, code: int) -> None:
    assert check(f"{url}/{status}").returncode == code


@pytest.mark.parametrize(("part", "code"), [("scheduler", 0), ("triggerer", 1), ("other", 1), ("dag_processor", 1)])
def test_a_part_must_be_healthy(url: str, part: str, code: int) -> None:
    assert check(f"{url}/200", part).returncode == code


def test_nobody_there_is_not_well_and_nothing_is_said(url: str) -> None:
    checked = check(f"http://127.0.0.1:{free_port()}/")
    assert checked.returncode == 1 and not checked.stdout
    lines = checked.stderr.splitlines()
    assert all(line.startswith("import time:") for line in lines)
    assert not any(name in line for line in lines for name in ("airflow", "pydantic", "psycopg"))
