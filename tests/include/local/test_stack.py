"""Ports and the state of a stack, without starting Airflow (tests/integration does)."""

from __future__ import annotations

import fcntl
import json
import socket
from pathlib import Path

import pytest

from include.local.stack import StackError, read_state, reserve_port
from tests.ports import free_port


def test_a_wanted_port_in_use_is_refused_by_number() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(StackError, match=f"port {port} is in use; choose another one with --port"),
            reserve_port(port),
        ):
            pass


def test_two_stacks_that_start_at_once_get_different_ports() -> None:
    with reserve_port(None) as first, reserve_port(None) as second:
        assert first != second


def test_a_reserved_port_is_free_again_afterwards() -> None:
    port = free_port()
    for _ in range(2):
        with reserve_port(port) as reserved:
            assert reserved == port


def test_the_state_of_a_dead_stack_is_not_believed(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    run = tmp_path / "run"
    run.mkdir()
    state = {"pid": 1, "url": "http://127.0.0.1:1", "conninfo": "", "psql": "", "hub": ""}
    (run / "state.json").write_text(json.dumps(state))
    assert read_state(tmp_path) is None
    with (run / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_state(tmp_path)
        assert found and found.url == "http://127.0.0.1:1"
