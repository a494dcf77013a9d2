"""A method that is not defined for a run: named, with the reason, in every command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import oodcli
from oodcli import methods
from oodcli.errors import UndefinedMethodError
from oodcli.methods._needs import Need
from tests.support.cli import Ood

VIM = (
    "vim is not defined for dim 16: features of width 16 have no residual then; choose less, as in "
    "vim:dim=8"
)
NAC = (
    "nac is not defined here: it needs as many training images as an interval needs to count as "
    "covered, but there are 24 of the 900 of nac:least=900; choose less with "
    "nac:least=N, or train on more images"
)
NAMED = ("--method", "msp", "--method", "vim:dim=16", "--method", "energy")


def test_the_other_methods_are_scored_and_the_exit_code_is_1(ood: Ood, tiny: Path) -> None:
    code, out, err = ood("score", *NAMED, "--method", "nac:least=900", "--format", "json")
    assert code == 1
    content = json.loads(out)
    assert {row["method"] for row in content["rows"]} == {"msp", "energy"}
    assert content["left_out"] == {"vim:dim=16": VIM, "nac:least=900": NAC}
    assert content["undefined"] == ["vim:dim=16", "nac:least=900"]
    assert f"without vim:dim=16: {VIM}" in content["notes"]
    assert err.splitlines()[-2:] == [f"error: {VIM}", f"error: {NAC}"]
    # What was scored stands in reports, with the reason why something is missing.
    code, out, _ = ood("report", "--format", "json")
    assert code == 0
    assert f"without vim:dim=16: {VIM}" in json.loads(out)["notes"]


def test_of_a_group_the_exit_code_is_0(ood: Ood, tiny: Path) -> None:
    code, out, err = ood("score", "--format", "json")
    assert (code, json.loads(out)["undefined"]) == (0, [])
    assert {"openmax", "nac"} <= set(json.loads(out)["left_out"])
    assert "error:" not in err


def test_a_parameter_that_is_reduced_is_said_to_be(ood: Ood, tiny: Path) -> None:
    code, out, err = ood("score", "--method", "knn", "--method", "knn:k=9", "--format", "json")
    assert code == 0
    assert "knn: using k=24 instead of 50" in err.splitlines()
    assert "knn:k=9: k is" not in err
    params = {row["method"]: row["params"] for row in json.loads(out)["rows"]}
    assert params == {"knn": {"k": 24}, "knn:k=9": {"k": 9}}


def test_without_any_method_nothing_goes_through_the_network_in_vain(ood: Ood, tiny: Path) -> None:
    code, out, err = ood("score", "--method", "vim:dim=16")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == f"error: {VIM}"
    assert "forward pass: photographs" not in err


def test_scores_that_a_method_had_before_it_was_refused_are_withdrawn(
    ood: Ood, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ood("score", "--method", "nci", "--method", "msp")[0] == 0
    never = Need("what no network has", lambda _reference, _arguments: "there are 0 of it")
    refused = replace(methods.METHODS["nci"], needs=(never,))
    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS, "nci": refused})
    assert ood("score", "--method", "nci", "--method", "energy")[0] == 1
    _, out, _ = ood("report", "--format", "json")
    assert {row["method"] for row in json.loads(out)["rows"]} == {"msp", "energy"}


def test_tuning_leaves_it_out_too(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    train = ("train", "--data", tiny, "--arch", "resnet18:width=2", "--epochs", 1)
    assert ood(*train, "--val-fraction", 0.5, "--name", "held")[0] == 0
    code, out, err = ood(
        "score", "--run", "held", "--tune", "pseudo", "--method", "knn", "--method", "nac:images=3",
        "--format", "json",
    )  # fmt: skip
    content = json.loads(out)
    assert code == 1
    assert {row["method"] for row in content["rows"]} == {"knn@pseudo"}
    assert content["undefined"] == ["nac:images=3@pseudo"]
    assert "there are 3 of the 10 of nac:least=10" in err
    code, out, err = ood(
        "recommend", "--run", "held", "--method", "knn", "--method", "nac:least=900"
    )
    assert code == 1
    assert "recommended: knn" in out
    assert err.splitlines()[-1] == f"error: {NAC.replace('24 of', '12 of')}"


def test_screening_and_the_python_interface_refuse_it(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "rows.csv"
    code, _, err = ood("predict", tiny, "--method", "vim:dim=16", "--output", target)
    assert (code, err.splitlines()[-1]) == (1, f"error: {VIM}")
    assert not target.exists()
    run = oodcli.load_run(store=tmp_path / "store")
    with pytest.raises(UndefinedMethodError) as raised:
        run.detector("nac:least=900")
    assert str(raised.value) == NAC


def test_export_refuses_it(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    code, _, err = ood("export", "--method", "vim:dim=16", "--output", tmp_path / "file")
    assert (code, err.splitlines()[-1]) == (1, f"error: {VIM}")
    assert not (tmp_path / "file").exists()


def test_a_file_of_activations(ood: Ood, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"weight": rng.normal(size=(3, 16)), "bias": np.zeros(3)}
    arrays |= {f"{name}/features": rng.normal(size=(24, 16)) for name in ("train", "test", "other")}
    arrays["train/labels"] = np.arange(24) % 3
    np.savez(tmp_path / "acts.npz", **arrays)
    code, out, err = ood(
        "score", "--activations", tmp_path / "acts.npz", *NAMED, "--format", "json"
    )
    assert code == 1
    assert {row["method"] for row in json.loads(out)["rows"]} == {"msp", "energy"}
    assert json.loads(out)["undefined"] == ["vim:dim=16"]
    assert err.splitlines()[-1] == f"error: {VIM}"
