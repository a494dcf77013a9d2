"""How much memory is free, as the driver, Linux, a container and other systems report it."""

import os
from pathlib import Path

import pytest
import torch

from oodcli.compute import memory
from oodcli.compute.memory import free_memory

CPU = torch.device("cpu")
MEMINFO = "MemTotal:  2000 kB\nMemFree:  7 kB\nMemAvailable:     900 kB\n"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Give files of the system this content; all others are absent."""
    content: dict[str, str] = {}

    def read(path: Path, encoding: str | None = None) -> str:
        if str(path) not in content:
            raise FileNotFoundError(path)
        return content[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    return content


def container(limit: str, used: int, cached: int) -> dict[str, str]:
    return {
        "/sys/fs/cgroup/memory.max": f"{limit}\n",
        "/sys/fs/cgroup/memory.current": f"{used}\n",
        "/sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {cached}\nslab 7\n",
    }


def test_that_of_a_gpu_is_what_its_driver_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert free_memory(torch.device("cuda")) == 123


def test_it_is_what_linux_calls_available(files: dict[str, str]) -> None:
    files["/proc/meminfo"] = MEMINFO
    assert free_memory(CPU) == 900 * 1024


def test_a_container_has_its_limit_less_what_is_used_and_no_cache(files: dict[str, str]) -> None:
    files |= {"/proc/meminfo": MEMINFO, **container("500000", 300_000, 120_000)}
    assert free_memory(CPU) == 320_000
    files |= container("500000", 700_000, 0)
    assert free_memory(CPU) == 0


def test_a_container_without_a_limit_has_what_its_host_has(files: dict[str, str]) -> None:
    files |= {"/proc/meminfo": MEMINFO, **container("max", 300_000, 120_000)}
    assert free_memory(CPU) == 900 * 1024


@pytest.mark.usefixtures("files")
def test_elsewhere_it_is_a_quarter_of_the_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(memory.os, "sysconf", sizes.__getitem__)
    assert free_memory(CPU) == 1_024_000


@pytest.mark.usefixtures("files")
def test_none_where_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert free_memory(CPU) is None
