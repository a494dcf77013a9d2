"""Run the command line, also as ``python -m oodcli``."""

import contextlib
import os
import sys

# Environment variables that configure glibc's allocator; if one is set, the user has decided.
_ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
# Parameter numbers of mallopt(3), as defined in <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_RETAINED_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Make the C library retain up to 1 GiB of freed memory; return whether that succeeded.

    Notes
    -----
    By default, glibc allocates each array of several megabytes with its own ``mmap`` and returns it
    to the kernel when it is freed, so the kernel must zero every page of every layer's output again
    for each batch. Other C libraries are not changed.
    """
    if any(name.startswith(_ALLOCATOR) for name in os.environ) or sys.platform != "linux":
        return False
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _RETAINED_BYTES))
    return False


def main() -> None:
    """Import the program and run it; Ctrl-C during the import gives exit code 130, as later."""
    try:
        keep_freed_memory()
        from oodcli.cli.app import main as program

        program()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
