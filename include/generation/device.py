"""A lease on one GPU of this machine, held by a file lock that the kernel frees however its holder dies.

Airflow's pool and queues decide how many generating tasks run; this decides which device each of them gets, also
when two tasks land on one machine that the pool did not count right.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

log = logging.getLogger(__name__)

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
POLL_S = 0.5


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


@contextmanager
def lease_device(
    lock_dir: Path, candidates: Sequence[str] | None = None, timeout_s: float = 6 * 3600
) -> Iterator[Device]:
    """Hold one device for as long as the block runs.

    Enter it before torch is imported: CUDA_VISIBLE_DEVICES is set to the leased device inside the block (to "" for
    the CPU), and put back behind it. CPU leases lock nothing. A process forked inside the block shares the lock: the
    device is free when both are gone.

    Args:
        lock_dir: Folder of the lock files `gpu-<device>.lock`, made if missing. It must be local to the machine:
            devices have the same names everywhere.
        candidates: G devices to choose from, the first free one is taken; None: `device_candidates()`; empty: CPU.
        timeout_s: Seconds to wait for a free device.

    Yields:
        The device held.

    Raises:
        RuntimeError: If this process has already initialised CUDA, which fixes its devices.
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
    device, lock = _wait_for_lock(lock_dir, devices, timeout_s)
    with lock, _visible_devices(device):  # closing the file frees the lock
        log.info("leased GPU %s", device)
        yield Device("cuda", device)


def _wait_for_lock(lock_dir: Path, devices: Sequence[str], timeout_s: float) -> tuple[str, IO[str]]:
    """Lock the first free device, polling until the time is up."""
    deadline = time.monotonic() + timeout_s
    waiting = False
    while True:
        for device in devices:
            lock = _try_lock(_lock_path(lock_dir, device))
            if lock is not None:
                return device, lock
        if time.monotonic() >= deadline:
            raise TimeoutError(f"No GPU came free in {timeout_s:g} s: {_holders(lock_dir, devices)}")
        if not waiting:
            log.info("waiting for a GPU: %s", _holders(lock_dir, devices))
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


def _holders(lock_dir: Path, devices: Sequence[str]) -> str:
    """Say which process holds which device."""
    pids = {device: _lock_path(lock_dir, device).read_text().strip() or "unknown" for device in devices}
    return ", ".join(f"GPU {device} is held by pid {pid}" for device, pid in pids.items())


@contextmanager
def _visible_devices(value: str) -> Iterator[None]:
    """Set CUDA_VISIBLE_DEVICES, and put it back."""
    before = os.environ.get(VISIBLE_DEVICES)
    os.environ[VISIBLE_DEVICES] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VISIBLE_DEVICES, None)
        else:
            os.environ[VISIBLE_DEVICES] = before
