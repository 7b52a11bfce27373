"""Device leases: exclusive between processes, freed by SIGKILL, and nothing is locked for the CPU."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from include.generation.device import VISIBLE_DEVICES, Device, device_candidates, lease_device

FORK = multiprocessing.get_context("fork")


def hold(lock_dir: Path, candidates: list[str], held: Event) -> None:
    """Lease a device and keep it until killed."""
    with lease_device(lock_dir, candidates, timeout_s=10):
        held.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[multiprocessing.context.ForkProcess]:
    """A process that holds device "0"."""
    held = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path, ["0"], held))
    process.start()
    assert held.wait(20)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("", []),
        ("-1", []),
        ("0", ["0"]),
        ("3, 1", ["3", "1"]),
        ("0,-1,1", ["0"]),
        ("GPU-aa,MIG-bb", ["GPU-aa", "MIG-bb"]),
    ],
)
def test_visible_devices_are_the_candidates(monkeypatch: pytest.MonkeyPatch, visible: str, devices: list[str]) -> None:
    monkeypatch.setenv(VISIBLE_DEVICES, visible)
    assert device_candidates() == devices


def test_device_nodes_are_counted_from_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    assert device_candidates(tmp_path) == []
    for node in ("nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / node).touch()
    assert device_candidates(tmp_path) == ["0", "1"]


@pytest.mark.parametrize("before", [None, "0,1"])
def test_a_lease_shows_its_device_alone_and_puts_the_rest_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str | None
) -> None:
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    if before is not None:
        monkeypatch.setenv(VISIBLE_DEVICES, before)
    with pytest.raises(KeyError), lease_device(tmp_path, ["1"]) as device:
        assert device == Device("cuda", "1")
        assert os.environ[VISIBLE_DEVICES] == "1"
        assert (tmp_path / "gpu-1.lock").read_text() == f"{os.getpid()}\n"
        raise KeyError
    assert os.environ.get(VISIBLE_DEVICES) == before
    with lease_device(tmp_path, ["1"], timeout_s=0):
        pass  # free again


def test_the_cpu_is_leased_without_a_lock_and_hides_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    locks = tmp_path / "locks"
    with lease_device(locks, []) as first, lease_device(locks, []) as second:
        assert first == second == Device("cpu", None)
        assert os.environ[VISIBLE_DEVICES] == ""
    assert VISIBLE_DEVICES not in os.environ
    assert not locks.exists()


@pytest.mark.usefixtures("holder")
def test_a_held_device_is_passed_over(tmp_path: Path) -> None:
    with lease_device(tmp_path, ["0", "1"], timeout_s=0) as device:
        assert device.index == "1"


def test_a_timeout_names_the_holder(tmp_path: Path, holder: multiprocessing.context.ForkProcess) -> None:
    with (
        pytest.raises(TimeoutError, match=f"GPU 0 is held by pid {holder.pid}"),
        lease_device(tmp_path, ["0"], timeout_s=0.1),
    ):
        pytest.fail("the device is held")


def test_waiting_is_logged_and_a_killed_holder_frees_its_device(
    tmp_path: Path, holder: multiprocessing.context.ForkProcess, caplog: pytest.LogCaptureFixture
) -> None:
    assert holder.pid is not None
    killer = FORK.Process(target=lambda pid: (time.sleep(0.3), os.kill(pid, signal.SIGKILL)), args=(holder.pid,))
    killer.start()
    with caplog.at_level("INFO"), lease_device(tmp_path, ["0"], timeout_s=20) as device:
        assert device.index == "0"
    killer.join()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    assert f"waiting for a GPU: GPU 0 is held by pid {holder.pid}" in caplog.text


def lease_in_turn(lock_dir: Path, log: Path) -> None:
    """Lease one of two devices for a moment, writing down from when to when."""
    with lease_device(lock_dir, ["0", "1"], timeout_s=30) as device:
        start = time.monotonic()
        time.sleep(0.2)
        with log.open("a") as file:
            file.write(f"{device.index} {start} {time.monotonic()}\n")


def test_no_device_is_ever_held_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [FORK.Process(target=lease_in_turn, args=(tmp_path, log)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(40)
        assert process.exitcode == 0
    spans = sorted(
        (device, float(start), float(end))
        for device, start, end in (line.split() for line in log.read_text().splitlines())
    )
    assert len(spans) == 6
    assert {device for device, _, _ in spans} == {"0", "1"}
    for (device, _, end), (next_device, start, _) in pairwise(spans):
        assert device != next_device or end <= start


def test_a_process_that_has_initialised_cuda_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Torch:
        class cuda:  # noqa: N801
            is_initialized = staticmethod(lambda: True)

    monkeypatch.setitem(__import__("sys").modules, "torch", Torch)
    with pytest.raises(RuntimeError, match="CUDA is initialised"), lease_device(tmp_path, ["0"]):
        pytest.fail("must not be reached")
