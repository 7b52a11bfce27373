"""Device leases: exclusive between processes, freed by SIGKILL, never on top of somebody else's memory."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from include.generation import device as device_module
from include.generation.device import (
    DEVICE_ORDER,
    VISIBLE_DEVICES,
    Device,
    DeviceOccupiedError,
    MemoryUse,
    device_candidates,
    lease_device,
    lease_dir,
    nvml_memory_use,
)

FORK = multiprocessing.get_context("fork")
MIB = 1 << 20


def unknown(device: str) -> None:
    """Nobody can tell what memory is in use: these tests are about locks, on whatever machine."""


def hold(lock_dir: Path, candidates: list[str], held: Event) -> None:
    """Lease a device and keep it until killed."""
    with lease_device(lock_dir, candidates, timeout_s=10, memory_use=unknown):
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
    for name in (VISIBLE_DEVICES, DEVICE_ORDER):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
    with pytest.raises(KeyError), lease_device(tmp_path, ["1"], memory_use=unknown) as device:
        assert device == Device("cuda", "1")
        assert (os.environ[VISIBLE_DEVICES], os.environ[DEVICE_ORDER]) == ("1", "PCI_BUS_ID")
        assert (tmp_path / "gpu-1.lock").read_text() == f"{os.getpid()}\n"
        raise KeyError
    assert os.environ.get(VISIBLE_DEVICES) == os.environ.get(DEVICE_ORDER) == before
    with lease_device(tmp_path, ["1"], timeout_s=0, memory_use=unknown):
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
    with lease_device(tmp_path, ["0", "1"], timeout_s=0, memory_use=unknown) as device:
        assert device.index == "1"


def test_a_timeout_names_the_holder(tmp_path: Path, holder: multiprocessing.context.ForkProcess) -> None:
    with (
        pytest.raises(TimeoutError, match=f"GPU 0 is held by pid {holder.pid}"),
        lease_device(tmp_path, ["0"], timeout_s=0.1, memory_use=unknown),
    ):
        pytest.fail("the device is held")


def test_waiting_is_logged_and_a_killed_holder_frees_its_device(
    tmp_path: Path, holder: multiprocessing.context.ForkProcess, caplog: pytest.LogCaptureFixture
) -> None:
    assert holder.pid is not None
    killer = FORK.Process(target=lambda pid: (time.sleep(0.3), os.kill(pid, signal.SIGKILL)), args=(holder.pid,))
    killer.start()
    with caplog.at_level("INFO"), lease_device(tmp_path, ["0"], timeout_s=20, memory_use=unknown) as device:
        assert device.index == "0"
    killer.join()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    assert f"waiting for a GPU: GPU 0 is held by pid {holder.pid}" in caplog.text


def lease_in_turn(lock_dir: Path, log: Path) -> None:
    """Lease one of two devices for a moment, writing down from when to when."""
    with lease_device(lock_dir, ["0", "1"], timeout_s=30, memory_use=unknown) as device:
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


def lease_until_killed(lock_dir: Path, devices: list[str], log: Path, seed: int) -> None:
    """Lease devices again and again, for moments, writing down when each lease begins and ends."""
    moments = random.Random(seed)
    while True:
        with lease_device(lock_dir, devices, timeout_s=60, memory_use=unknown) as device:
            _write_down(log, "begins", device.index)
            time.sleep(moments.uniform(0, 0.03))
            _write_down(log, "ends", device.index)
        time.sleep(moments.uniform(0, 0.01))


def _write_down(log: Path, what: str, device: str | None) -> None:
    line = f"{device} {time.monotonic()} {os.getpid()} {what}\n".encode()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line)  # one write, so whole or not at all
    os.close(file)


@pytest.mark.parametrize(("tasks", "devices"), [(3, 3), (6, 3)])
def test_tasks_that_are_killed_at_random_moments_never_share_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int, devices: int
) -> None:
    monkeypatch.setattr(device_module, "POLL_S", 0.01)
    seed = random.randrange(10**6)
    moments, log, kills = random.Random(seed), tmp_path / "log", 24
    names = [str(number) for number in range(devices)]
    died_at: dict[int, float] = {}

    def start(number: int) -> multiprocessing.context.ForkProcess:
        process = FORK.Process(target=lease_until_killed, args=(tmp_path, names, log, seed + number))
        process.start()
        return process

    running = [start(number) for number in range(tasks)]
    try:
        for kill in range(kills):
            time.sleep(moments.uniform(0.02, 0.1))
            victim = running.pop(moments.randrange(tasks))
            assert victim.pid is not None
            died_at[victim.pid] = time.monotonic()
            victim.kill()
            victim.join()
            running.append(start(tasks + kill))
        time.sleep(0.2)
    finally:
        for process in running:
            died_at[process.pid or 0] = time.monotonic()
            process.kill()
            process.join()

    events = sorted(
        (device, float(at), int(pid), what) for device, at, pid, what in map(str.split, log.read_text().splitlines())
    )
    assert {device for device, *_ in events} == set(names), f"seed {seed}"
    assert len({pid for _, _, pid, _ in events}) > kills, f"seed {seed}"  # those that replaced the killed got theirs
    killed_holding = 0
    for (device, at, pid, what), (next_device, next_at, next_pid, next_what) in pairwise(events):
        if what == "ends" or device != next_device:
            continue
        if next_what == "ends":
            assert pid == next_pid, f"seed {seed}: {next_pid} held {device} beside {pid}"
        else:  # its holder never ended the lease, so it must have been killed before the next one began
            assert died_at[pid] <= next_at, f"seed {seed}: {next_pid} got {device} from {pid}, which held it since {at}"
            killed_holding += 1
    assert killed_holding > 0, f"seed {seed}"


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that took no lease."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--api-key", "sk-secret"])
    yield process
    process.kill()
    process.wait()


def test_a_device_whose_memory_somebody_holds_is_passed_over(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    use = {"0": MemoryUse(60_000, {stranger.pid: 59_000}), "1": MemoryUse(9)}
    for _ in range(2):
        with lease_device(tmp_path, ["0", "1"], timeout_s=0, memory_use=use.get) as device:
            assert device.index == "1"
    with lease_device(tmp_path, ["0"], timeout_s=0, memory_use=unknown):
        pass  # what was only looked at is not kept locked


def test_when_all_memory_is_held_the_holders_are_named(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    user = psutil.Process().username()
    use = {
        "0": MemoryUse(60_000, {stranger.pid: 59_000, 2**22 + 7: None}),
        "GPU-aa": MemoryUse(4_000),
    }
    with (
        pytest.raises(DeviceOccupiedError) as error,
        lease_device(tmp_path, list(use), timeout_s=0, memory_use=use.get),
    ):
        pytest.fail("all devices are occupied")
    message = str(error.value)
    assert f"GPU 0 has 60000 MiB in use by pid {stranger.pid} ({sys.executable} -c import time" in message
    assert f"of {user} with 59000 MiB, pid {2**22 + 7} (which cannot be looked at from here)" in message
    assert "GPU GPU-aa has 4000 MiB in use by processes that the driver does not list here; nvidia-smi" in message
    assert "End what is left over" in message and VISIBLE_DEVICES in message
    assert "sk-secret" not in message


def test_memory_of_a_process_that_was_just_killed_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "POLL_S", 0.01)
    uses = iter([MemoryUse(60_000, {1: 60_000})] * 5 + [MemoryUse(0)])
    with lease_device(tmp_path, ["0"], timeout_s=20, memory_use=lambda device: next(uses)) as device:
        assert device.index == "0"


@pytest.mark.usefixtures("holder")
def test_a_leased_device_is_waited_for_beside_an_occupied_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "OCCUPIED_GRACE_S", 0)
    use = {"0": MemoryUse(0), "1": MemoryUse(60_000)}
    # Device 0 will come free, so this is no reason to give up before the time is up.
    with (
        pytest.raises(TimeoutError, match=r"GPU 0 is held by pid .*; GPU 1 has 60000 MiB in use"),
        lease_device(tmp_path, ["0", "1"], timeout_s=0.2, memory_use=use.get),
    ):
        pytest.fail("no device is free")


@dataclass
class Gpu:
    """A device of `Nvml`: its id, memory in MiB, and MiB by process that computes, and that draws."""

    uuid: str
    used: int
    compute: Mapping[int, int | None] = field(default_factory=dict)
    graphics: Mapping[int, int | None] = field(default_factory=dict)
    is_mig: bool = False


class Nvml:
    """The driver's library as far as we ask it, for machines without a GPU; MIG instances know less, as real ones."""

    nvmlMemory_v2 = 2

    class NVMLError(Exception):
        """Whatever the library refuses."""

    def __init__(self, *gpus: Gpu, is_there: bool = True) -> None:
        self.gpus = gpus
        self.is_there = is_there
        self.users = 0

    def nvmlInit(self) -> None:
        if not self.is_there:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.users += 1

    def nvmlShutdown(self) -> None:
        self.users -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        if index >= len(self.gpus):
            raise self.NVMLError("Invalid Argument")
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu, version: int | None = None) -> SimpleNamespace:
        if version and gpu.is_mig:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(used=gpu.used * MIB + (0 if version else MIB))

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: Gpu) -> list[SimpleNamespace]:
        return self._listed(gpu.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, gpu: Gpu) -> list[SimpleNamespace]:
        if gpu.is_mig:
            raise self.NVMLError("Not Supported")
        return self._listed(gpu.graphics)

    def _listed(self, processes: Mapping[int, int | None]) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=None if mib is None else mib * MIB) for pid, mib in processes.items()
        ]


@pytest.mark.parametrize(
    ("device", "use"),
    [
        ("0", MemoryUse(3)),
        ("1", MemoryUse(500, {41: 500, 42: None})),  # less what 43 draws with
        ("GPU-1111", MemoryUse(3)),
        ("GPU-22", MemoryUse(500, {41: 500, 42: None})),
        ("MIG-3333", MemoryUse(701, {44: 600})),
        ("MIG-GPU-4444/1/0", MemoryUse(6)),
        ("5", None),
        ("GPU-9", None),
    ],
)
def test_the_driver_is_asked_by_every_name_of_a_device(
    monkeypatch: pytest.MonkeyPatch, device: str, use: MemoryUse | None
) -> None:
    nvml = Nvml(
        Gpu("GPU-1111", 3),
        Gpu("GPU-2222", 800, {41: 500, 42: None}, {43: 300, 41: 500}),
        Gpu("MIG-3333", 700, {44: 600}, is_mig=True),
        Gpu("MIG-GPU-4444/1/0", 5, is_mig=True),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    assert nvml_memory_use(device) == use
    assert nvml.users == 0


def test_without_the_drivers_library_nothing_is_checked_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device_module._log_unchecked.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(is_there=False))  # type: ignore[arg-type]
    for _ in range(3):
        with lease_device(tmp_path, ["0"], timeout_s=0) as device:
            assert device.index == "0"
    said = [record for record in caplog.records if "cannot check whether somebody else" in record.message]
    assert len(said) == 1 and "NVML Shared Library Not Found" in said[0].message


def test_leases_lie_on_the_machine_and_in_a_folder_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = lease_dir()
    assert folder.parent == tmp_path and folder == lease_dir()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match="is not ours"):
        lease_dir()
