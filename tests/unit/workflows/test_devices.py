"""Devices, and what is said when one is too small."""

import pytest
import torch

from oodcli import __version__
from oodcli.errors import InvalidInputError
from oodcli.workflows.devices import enough_memory, find_device, versions


def test_auto_is_something_that_is_there() -> None:
    assert torch.zeros(1, device=find_device("auto")).item() == 0


def test_too_little_memory_is_one_line_with_the_cure() -> None:
    with (
        pytest.raises(InvalidInputError, match=r"^cuda has too little memory; take fewer$"),
        enough_memory(torch.device("cuda"), "take fewer"),
    ):
        raise torch.OutOfMemoryError


def test_versions_name_what_computes() -> None:
    assert versions()["ood"] == __version__
    assert versions()["torch"] == torch.__version__
