"""Run the command line, also as ``python -m oodcli``."""

import contextlib
import os
import sys

# What glibc reads of its own accord; where one of these is set the user has decided.
_ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
# Numbers of mallopt(3) that <malloc.h> fixes.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Have the C library keep up to 1 GiB of freed memory; return whether it does.

    Notes
    -----
    By default glibc maps every array of some megabytes for itself, and unmaps it when it is freed:
    the kernel has to hand out and clear every page of every layer's output for every batch again.
    Other C libraries are left as they are.
    """
    if any(name.startswith(_ALLOCATOR) for name in os.environ) or sys.platform != "linux":
        return False
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
    return False


def main() -> None:
    """Load the program and run it; Ctrl-C while it loads ends it as Ctrl-C later does."""
    try:
        keep_freed_memory()
        from oodcli.cli.app import main as program

        program()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
