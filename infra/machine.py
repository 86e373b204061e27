"""What a process may use of the machine: processors and memory within its container's limits, and how."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes a huge number for "no limit"
_NEVER_BYTES = str(1 << 40)
_GLIBC_TAKES_ANY_THRESHOLD = (2, 35)  # older ones refuse to keep blocks above 32 MiB, and then mapping gets worse


def cpu_slots(cgroup: Path = CGROUP) -> int:
    """How many single-threaded workers fit: processors this process may run on, cut by the container's quota; >= 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cpu_quota(cgroup)
    return max(1, min(allowed, math.floor(quota)) if quota is not None else allowed)


def memory_limit_bytes(cgroup: Path = CGROUP) -> int:
    """Memory of the machine, or of the container if that is less, in bytes."""
    total = psutil.virtual_memory().total
    limits = [
        _integer(folder / name)
        for folder in _own_folders(cgroup)
        for name in ("memory.max", "memory/memory.limit_in_bytes")
    ]
    known = [limit for limit in limits if limit is not None and limit < _UNLIMITED_BYTES]
    return min([total, *known])


def malloc_environment() -> dict[str, str]:
    """Variables for a new process that runs a model on a CPU: freed memory is kept for the next image.

    glibc maps and unmaps every large tensor, and the kernel clears each page again: 60,000 page faults a second, a
    tenth to a sixth of a worker's time. A model asks for the same sizes for every image, so keeping them costs no
    memory beyond the peak. One arena, because only the main one can keep blocks of any size. Empty where malloc is
    another one.
    """
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name != "glibc" or numbers < _GLIBC_TAKES_ANY_THRESHOLD:
        return {}
    return {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": _NEVER_BYTES,
        "MALLOC_TRIM_THRESHOLD_": _NEVER_BYTES,
    }


def return_free_memory() -> None:
    """Give back to the system what malloc keeps though it is free (see :func:`malloc_environment`); glibc only.

    After something unusually large: its pieces would hardly fit the next one, and the heap would grow beside them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _cpu_quota(cgroup: Path) -> float | None:
    """Processors' worth of time per period (cgroup v2, then v1); None without a limit."""
    quotas: list[float] = []
    for folder in _own_folders(cgroup):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    quota, period = _integer(cgroup / "cpu/cpu.cfs_quota_us"), _integer(cgroup / "cpu/cpu.cfs_period_us")
    if quota is not None and quota > 0 and period:
        quotas.append(quota / period)
    return min(quotas, default=None)


def _own_folders(cgroup: Path) -> list[Path]:
    """The cgroup of this process and its parents; a limit anywhere on the way counts."""
    folders = [cgroup]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        if line.startswith("0::/"):
            folder = cgroup / line[4:]
            folders += [one for one in [folder, *folder.parents] if cgroup in one.parents]
    return folders


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _integer(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None


def may_have_gpu() -> bool:
    """False where there is surely no GPU that torch could use: Linux without a driver's device file."""
    if sys.platform != "linux":
        return True
    return any(os.path.exists(f"/dev/{name}") for name in ("nvidiactl", "nvidia0", "dxg", "kfd"))
