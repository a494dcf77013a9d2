"""``ood train --compile`` and ``--amp``: what is said, what is kept with the run."""

import json
from pathlib import Path

import pytest
import torch

from oodcli.compute.processes import Processes
from oodcli.errors import InvalidInputError
from oodcli.store.store import Store
from oodcli.workflows.train import TrainRequest
from oodcli.workflows.train import train as train_workflow
from tests.support.cli import Ood, tree

SHORT = ("--arch", "resnet18:width=2", "--epochs", 1, "--batch-size", 8, "--name", "quick")


def test_without_a_compiler_nothing_is_begun(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, out, err = ood("train", "--data", "digits", "--device", "cpu", "--compile")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: --compile needs a compiler, but no-such-compiler was not found; install one, or "
        "omit --compile"
    )
    assert not list((tmp_path / "store").glob("runs/*"))


def test_a_compiled_run_says_so_and_is_no_other_run(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    command = ("train", "--data", tree(tmp_path / "colours"), "--device", "cpu", *SHORT)
    code, out, err = ood(*command, "--compile")
    assert (code, out) == (0, "quick\n"), err
    record = json.loads((tmp_path / "store" / "runs" / "quick" / "run.json").read_text())
    assert record["training"]["compile"] is True
    code, _, err = ood(*command, "--compile", "--resume")
    assert code == 0
    assert "run quick is already finished" in err
    code, _, err = ood(*command, "--resume")
    assert code == 1
    assert "run quick was started with other settings" in err


def test_several_processes_do_not_compile(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="--compile is for one process, not for 2"):
        train_workflow(
            Store.at(tmp_path / "store"),
            TrainRequest(data="digits", device="cpu", compile=True),
            processes=Processes(0, 2),
        )


@pytest.mark.parametrize("quick", [True, False])
def test_half_precision_that_does_not_pay_is_reported(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    monkeypatch.setattr("oodcli.training.session.has_fast_bfloat16", lambda _: quick)
    data = tree(tmp_path / "colours")
    code, _, err = ood("train", "--data", data, "--device", "cpu", "--amp", *SHORT)
    assert code == 0
    assert ("cpu has no instructions for bfloat16, so --amp" in err) is not quick
