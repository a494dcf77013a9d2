"""Free memory of a device."""

import contextlib
import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can be allocated on a device without affecting other programs.

    GPU: the free memory that its driver reports. CPU: the available memory that Linux reports or,
    if less, the rest of the memory limit of the container, with cached file pages counted as free;
    on other systems, a quarter of the installed memory. None if unknown.

    Parameters
    ----------
    device
        The device.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [bytes_ for bytes_ in (_available(), _left_in_container()) if bytes_ is not None]
    if known:
        return max(0, min(known))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    return None


def _available() -> int | None:
    """Return the available memory of this machine in bytes, if the system reports it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _left_in_container() -> int | None:
    """Return the bytes below the memory limit of the container; None if there is no limit."""
    with contextlib.suppress(OSError, ValueError):  # without a limit it is "max", not a number
        limit, used = (
            int((_CGROUP / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        counts = dict(
            line.split() for line in (_CGROUP / "memory.stat").read_text("ascii").splitlines()
        )
        # The kernel frees its file cache when a program needs the memory.
        return limit - used + int(counts.get("inactive_file", 0))
    return None
