"""Devices, and what is said when one is too small."""

import platform
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from oodcli.compute.devices import (
    check_compiler,
    explain_out_of_memory,
    find_device,
    has_fast_bfloat16,
    versions,
)
from oodcli.errors import InvalidInputError
from oodcli.version import __version__


def test_auto_is_something_that_is_there() -> None:
    assert torch.zeros(1, device=find_device("auto")).item() == 0


def test_too_little_memory_is_one_line_with_the_cure() -> None:
    with (
        pytest.raises(InvalidInputError, match=r"^cuda has too little memory; take fewer$"),
        explain_out_of_memory(torch.device("cuda"), "take fewer"),
    ):
        raise torch.OutOfMemoryError


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(InvalidInputError, match=r"but .*none was not found; install one, or omit"):
        check_compiler(torch.device("cpu"))
    with pytest.raises(InvalidInputError, match="not for mps"):
        check_compiler(torch.device("mps"))


def test_compiling_needs_the_headers_of_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(InvalidInputError, match=r"but .*Python\.h"):
        check_compiler(torch.device("cpu"))
    (tmp_path / "Python.h").touch()
    check_compiler(torch.device("cpu"))


def test_a_cpu_without_bfloat16_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for has in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert has_fast_bfloat16(torch.device("cpu")) is has


def test_versions_name_what_computes() -> None:
    assert versions()["ood"] == __version__
    assert versions()["torch"] == torch.__version__
