"""A lease on one GPU of this machine, held by a file lock that the kernel frees however its holder dies.

Airflow's pool and queues decide how many generating tasks run; this decides which device each of them gets, also
when two tasks land on one machine that the pool did not count right. Locks bind only those who take them, so a device
is leased only if nobody holds its memory either: an engine that outlived its task, or somebody else's.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import psutil

log = logging.getLogger(__name__)

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
DEVICE_ORDER = "CUDA_DEVICE_ORDER"
POLL_S = 0.5
# A CUDA context takes more than this on any recent GPU, the driver and an MPS server less.
OCCUPIED_MIB = 256
# A process that was killed holds its memory for some seconds after its lock is free.
OCCUPIED_GRACE_S = 30.0


class DeviceOccupiedError(RuntimeError):
    """Every device's memory is held by processes that took no lease."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a lease gives.

    Attributes:
        kind: "cuda" or "cpu".
        index: The device as CUDA_VISIBLE_DEVICES names it (a number, or a GPU's or MIG instance's id); None for
            the CPU.
    """

    kind: Literal["cuda", "cpu"]
    index: str | None


def device_candidates(dev_dir: Path = Path("/dev")) -> list[str]:
    """List the GPUs this process may use, without loading CUDA.

    Args:
        dev_dir: Where the driver's device nodes lie.

    Returns:
        The devices of CUDA_VISIBLE_DEVICES where it is set, in its order (none for "" or "-1"); else one number
        per `/dev/nvidia<n>`, counted from 0 as CUDA counts them; else none.
    """
    visible = os.environ.get(VISIBLE_DEVICES)
    if visible is None:
        return [str(index) for index, _ in enumerate(dev_dir.glob("nvidia[0-9]*"))]
    devices: list[str] = []
    for name in visible.split(","):
        if name.strip() in ("", "-1"):
            break  # CUDA takes what stands before the first invalid entry
        devices.append(name.strip())
    return devices


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of a device that is in use.

    Attributes:
        mib: MiB in use, less what the driver reserves and what desktops draw with.
        processes: MiB by process id, of those that compute on the device; None where the driver does not say.
            In a container the driver may list none, or ids that mean something on the host only.
    """

    mib: int
    processes: Mapping[int, int | None] = field(default_factory=dict)


def nvml_memory_use(device: str) -> MemoryUse | None:
    """Ask the driver who uses a device's memory.

    Args:
        device: As CUDA_VISIBLE_DEVICES names it: a number, or a GPU's or MIG instance's id.

    Returns:
        The memory in use; None if the driver cannot be asked, which is logged once.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _log_unchecked(str(error))
        return None
    try:
        handle = _nvml_handle(pynvml, device)
        processes = _nvml_processes(pynvml, pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        graphics = _nvml_processes(pynvml, pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
        drawing = sum(used or 0 for pid, used in graphics.items() if pid not in processes)
        return MemoryUse(_nvml_used_mib(pynvml, handle) - drawing, processes)
    except pynvml.NVMLError as error:
        _log_unchecked(f"GPU {device}: {error}")
        return None
    finally:
        pynvml.nvmlShutdown()


@cache
def _log_unchecked(reason: str) -> None:
    """Say, once in a process, that devices are leased without a look at their memory."""
    log.warning("cannot check whether somebody else holds a GPU's memory: %s", reason)


def _nvml_handle(pynvml: Any, device: str) -> Any:
    """The driver's handle of a device; CUDA takes the beginning of a GPU's id for the whole."""
    if device.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(device))
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(device)
    except pynvml.NVMLError:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if pynvml.nvmlDeviceGetUUID(handle).startswith(device):
                return handle
        raise


def _nvml_processes(pynvml: Any, query: Callable[[Any], list[Any]], handle: Any) -> dict[int, int | None]:
    """MiB by process id; empty where the driver does not list them, as for graphics on a MIG instance."""
    try:
        found = query(handle)
    except pynvml.NVMLError:
        return {}
    return {entry.pid: None if entry.usedGpuMemory is None else entry.usedGpuMemory >> 20 for entry in found}


def _nvml_used_mib(pynvml: Any, handle: Any) -> int:
    """MiB in use, without the driver's reserve where the driver tells them apart."""
    try:
        used = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used
    except pynvml.NVMLError:
        used = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    return int(used) >> 20


def lease_dir() -> Path:
    """Return the folder of this user's leases, made if missing.

    It is the machine's own and not in SIFT_HOME: that may be shared by machines, on which devices have equal names, and
    several homes on one machine share its devices.

    Raises:
        RuntimeError: If it belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"sift-leases-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} is not ours, so no GPU can be leased there; remove it")
    return folder


@contextmanager
def lease_device(
    lock_dir: Path,
    candidates: Sequence[str] | None = None,
    timeout_s: float = 6 * 3600,
    memory_use: Callable[[str], MemoryUse | None] = nvml_memory_use,
) -> Iterator[Device]:
    """Hold one device for as long as the block runs.

    Enter it before torch is imported: CUDA_VISIBLE_DEVICES is set to the leased device inside the block (to "" for
    the CPU), and put back behind it; so is the order in which CUDA counts devices, which is the driver's own. CPU
    leases lock nothing. A process forked inside the block shares the lock: the device is free when both are gone.

    Args:
        lock_dir: Folder of the lock files `gpu-<device>.lock`, made if missing. It must be local to the machine:
            devices have the same names everywhere.
        candidates: G devices to choose from, the first free one is taken; None: `device_candidates()`; empty: CPU.
        timeout_s: Seconds to wait for a free device.
        memory_use: Device -> its memory in use; None means that nobody can tell, and the device is taken.

    Yields:
        The device held.

    Raises:
        RuntimeError: If this process has already initialised CUDA, which fixes its devices.
        DeviceOccupiedError: If processes without a lease hold the memory of all devices, naming them.
        TimeoutError: If no device came free in time, naming the processes that hold them.
    """
    devices = device_candidates() if candidates is None else list(candidates)
    if not devices:
        with _visible_devices(""):
            yield Device("cpu", None)
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("CUDA is initialised in this process; lease a device before anything uses torch.cuda")
    lock_dir.mkdir(parents=True, exist_ok=True)
    device, lock = _wait_for_lock(lock_dir, devices, timeout_s, memory_use)
    with lock, _visible_devices(device):  # closing the file frees the lock
        log.info("leased GPU %s", device)
        yield Device("cuda", device)


def _wait_for_lock(
    lock_dir: Path, devices: Sequence[str], timeout_s: float, memory_use: Callable[[str], MemoryUse | None]
) -> tuple[str, IO[str]]:
    """Lock the first device that is free and empty, polling until the time is up."""
    started = time.monotonic()
    some_leased_at = started  # when a device was last leased by somebody, and so will come free
    waiting = False
    while True:
        occupied: dict[str, MemoryUse] = {}
        for device in devices:
            lock = _try_lock(_lock_path(lock_dir, device))
            if lock is None:
                continue
            use = memory_use(device)
            if use is None or use.mib < OCCUPIED_MIB:
                return device, lock
            lock.close()
            occupied[device] = use
        now = time.monotonic()
        if len(occupied) < len(devices):
            some_leased_at = now
        elif now - some_leased_at >= min(OCCUPIED_GRACE_S, timeout_s):
            raise DeviceOccupiedError(
                f"No GPU is free: {_holders(lock_dir, devices, occupied)}. End what is left over from an earlier run, "
                f"or leave those devices out with {VISIBLE_DEVICES}"
            )
        if now - started >= timeout_s:
            raise TimeoutError(f"No GPU came free in {timeout_s:g} s: {_holders(lock_dir, devices, occupied)}")
        if not waiting:
            log.info("waiting for a GPU: %s", _holders(lock_dir, devices, occupied))
            waiting = True
        time.sleep(min(POLL_S, timeout_s))


def _lock_path(lock_dir: Path, device: str) -> Path:
    return lock_dir / f"gpu-{device.replace('/', '_')}.lock"


def _try_lock(path: Path) -> IO[str] | None:
    """Lock the file and write our process id into it; None if another process holds it."""
    lock = path.open("a+")  # never truncates what its holder wrote
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _holders(lock_dir: Path, devices: Sequence[str], occupied: Mapping[str, MemoryUse]) -> str:
    """Say who holds which device: a lease, or memory without one."""
    return "; ".join(
        f"GPU {device} has {occupied[device].mib} MiB in use by {_processes(occupied[device])}"
        if device in occupied
        else f"GPU {device} is held by pid {_lock_path(lock_dir, device).read_text().strip() or 'unknown'}"
        for device in devices
    )


def _processes(use: MemoryUse) -> str:
    """Name the processes that hold a device's memory."""
    named = [_process(pid) + ("" if mib is None else f" with {mib} MiB") for pid, mib in use.processes.items()]
    return ", ".join(named) or "processes that the driver does not list here; nvidia-smi on the host shows them"


def _process(pid: int) -> str:
    """A process's id, its command as far as it can hold no secret, and its user."""
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()[:3])[:120] or process.name()
        return f"pid {pid} ({command}) of {process.username()}"
    except psutil.Error:
        return f"pid {pid} (which cannot be looked at from here)"


@contextmanager
def _visible_devices(value: str) -> Iterator[None]:
    """Set CUDA_VISIBLE_DEVICES, numbers meaning what they mean to the driver, and put it back."""
    before = {name: os.environ.get(name) for name in (VISIBLE_DEVICES, DEVICE_ORDER)}
    os.environ |= {VISIBLE_DEVICES: value, DEVICE_ORDER: "PCI_BUS_ID"}
    try:
        yield
    finally:
        for name, was in before.items():
            os.environ.pop(name, None)
            if was is not None:
                os.environ[name] = was
