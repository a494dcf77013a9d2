"""What importing the package and starting the program change in a process."""

import os
import platform
import subprocess
import sys

import pytest

CALM = {
    name: value
    for name, value in os.environ.items()
    if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "GLIBC_TUNABLES")
    and not name.startswith("MALLOC_")
}


def printed(code: str, **environment: str) -> str:
    """Return what a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True, capture_output=True, text=True, env=CALM | environment,
    ).stdout.strip()  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "first", "policy"),
    [
        ({}, "", "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", "ACTIVE"),
        ({"GOMP_SPINCOUNT": "100"}, "", None),
        ({"KMP_BLOCKTIME": "200"}, "", None),
        ({}, "import torch; ", None),  # it has read its settings already
    ],
)
def test_threads_wait_passively_unless_the_user_says_otherwise(
    environment: dict[str, str], first: str, policy: str | None
) -> None:
    code = f"{first}import os, oodcli.errors; print(os.environ.get('OMP_WAIT_POLICY'))"
    assert printed(code, **environment) == str(policy)


FAULTS = """
import resource
from oodcli.__main__ import keep_freed_memory

print(keep_freed_memory())
byte = b"x"  # no constant, which would be made once
byte * 2**24
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    byte * 2**24
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are"
)
def test_freed_memory_is_kept_unless_the_user_says_otherwise() -> None:
    done, faults = printed(FAULTS).split()
    assert done == "True"
    assert int(faults) < 2**24 / os.sysconf("SC_PAGE_SIZE")  # less than one array of eight
    for setting in (
        {"MALLOC_TRIM_THRESHOLD_": "1000000"},
        {"GLIBC_TUNABLES": "glibc.malloc.top_pad=131072"},
    ):
        assert printed(FAULTS, **setting).split()[0] == "False"
    done, faults = printed(FAULTS, MALLOC_MMAP_THRESHOLD_="100000").split()
    assert done == "False"
    assert int(faults) > 7 * 2**24 / os.sysconf("SC_PAGE_SIZE")


def test_the_program_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from oodcli import __main__ as program

    called: list[str] = []
    monkeypatch.setattr(program, "keep_freed_memory", lambda: called.append("memory"))
    monkeypatch.setattr("oodcli.cli.app.main", lambda: called.append("program"))
    program.main()
    assert called == ["memory", "program"]
