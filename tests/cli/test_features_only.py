"""Encoders without a classifier, of which the features alone are used."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from oodcli import load_run
from oodcli.methods import METHODS, parse_methods
from oodcli.models import parse_architecture
from oodcli.scoring.fitting import expand_blocks
from tests.support.cli import Ood, flat, tree

ARCH = "resnet18:width=2"
# What a network without a classifier can be scored by.
OF_FEATURES = [
    "featurenorm", "nan-norm", "knn", "mds", "rmds", "mds++", "rmds++", "wdiscood", "residual",
    "cop", "maxcosine", "gmm",
]  # fmt: skip


@pytest.fixture
def encoder(ood: Ood, tmp_path: Path) -> Path:
    """Import the encoder of a SupCon checkpoint; return a folder with images of another kind."""
    torch.manual_seed(0)
    state = parse_architecture(ARCH).build(7).state_dict()
    state = {f"encoder.module.{n}": t for n, t in state.items() if not n.startswith("fc.")}
    state |= {"head.0.weight": torch.randn(4, 16), "head.0.bias": torch.randn(4)}
    torch.save({"model": state}, tmp_path / "encoder.pth")
    data = tree(tmp_path / "colours", n=24)
    argv = ["import", tmp_path / "encoder.pth", "--arch", ARCH, "--data", data, "--mean", 0.5]
    code, out, err = ood(*argv, "--std", 0.5)
    assert (code, out) == (0, "encoder\n"), err
    said = " ".join(err.split())
    assert "'encoder' removed from" in said
    assert "ignored: head.0.weight, head.0.bias" in said
    assert "encoder.pth: only methods that need no logits are available" in said
    assert "resnet18:width=2 without classifier" in said
    assert "accuracy" not in said
    return flat(tmp_path / "odd")


def test_methods_say_whether_they_need_a_classifier() -> None:
    without = [
        name
        for name, method in METHODS.items()
        if not (method.needs_classifier or method.kept_head)
    ]
    on_request = {
        "csd", "cfood", "corp", "mfs-mds", "mfs-mds++", "mfs-knn", "multi-mahalanobis", "multi-knn",
    }  # fmt: skip
    assert [name for name in without if name not in on_request] == OF_FEATURES
    assert on_request <= set(without)


def test_an_encoder_is_scored_by_its_features(ood: Ood, encoder: Path) -> None:
    record = json.loads(ood("runs", "show", "encoder")[1])
    assert record["imported"]["last_layer"] == "none"
    assert record["imported"]["plausibility"] == {}
    code, out, err = ood("score", "--ood", encoder, "--format", "json")
    assert code == 0, err
    table = json.loads(out)
    scored = {row["method"] for row in table["rows"]}
    skipped = table["left_out"]
    assert scored | (set(OF_FEATURES) & set(skipped)) == set(OF_FEATURES)
    assert {"knn", "mds++", "residual", "featurenorm", "gmm", "maxcosine"} <= scored
    every = {spec.canonical for spec in parse_methods(expand_blocks([], range(1)))}
    assert set(skipped) | scored == every
    assert skipped["msp"] == "it needs logits, and the network has no classifier"
    assert [run["id_accuracy"] for run in table["runs"]] == [None]
    (note,) = (each for each in table["notes"] if "skipped" in each)
    count = sum("no classifier" in reason for reason in skipped.values())
    assert note.startswith(f"{count} methods skipped, which need logits, as the network has no")
    code, out, _ = ood("report", "--format", "csv")
    assert {row["id_accuracy"] for row in csv.DictReader(io.StringIO(out))} == {""}
    assert "accuracy" not in ood("report")[1].partition("note")[0]


@pytest.mark.parametrize(
    "argv",
    [
        ("score", "--method", "msp", "--method", "knn", "--method", "react"),
        ("predict", "--method", "msp"),
        ("recommend", "--method", "ensemble:knn+msp"),
        ("export", "--method", "msp", "--output", "there"),
        ("score", "--export-activations", "file.npz"),
    ],
)
def test_what_needs_logits_is_refused_in_a_line(
    ood: Ood, encoder: Path, argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"score": ("--ood", encoder), "predict": (encoder,)}.get(argv[0], ())
    code, out, err = ood(argv[0], *names, *argv[1:])
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    if "--export-activations" in argv:
        assert line.startswith("error: --export-activations also writes the last layer, and run")
        return
    method = {"score": "msp, react+energy need", "recommend": "ensemble:knn+msp needs"}
    assert line == (
        f"error: {method.get(argv[0], 'msp needs')} logits, and the network of run encoder has no "
        "classifier; fit a linear layer: ood import --probe, or use methods without logits, such "
        "as knn"
    )
    assert "forward pass" not in err


def test_images_are_judged_without_class_and_probability(ood: Ood, encoder: Path) -> None:
    code, out, err = ood("predict", encoder)
    assert code == 0, err
    assert "method: knn, since none is given" in " ".join(err.split())
    assert "probability" not in out
    rows = [
        json.loads(line) for line in ood("predict", encoder, "--format", "jsonl")[1].splitlines()
    ]
    assert {(row["class"], row["probability"]) for row in rows} == {(None, None)}
    scores = [row["score"] for row in rows]
    found = load_run("encoder").detector("knn").predict(sorted(encoder.iterdir()))
    np.testing.assert_allclose(found.score, scores, rtol=1e-5)
    assert (set(found.classes), set(found.class_indices)) == ({None}, {-1})
    assert np.isnan(found.probability).all()
    code, out, err = ood("predict", encoder, "--per-class", "--format", "csv")
    assert (code, out) == (1, "")
    assert "--per-class needs the predicted class, and run encoder is an encoder without" in err


def test_drift_of_an_encoder_compares_no_classes(ood: Ood, encoder: Path, tmp_path: Path) -> None:
    output = tmp_path / "v.csv"
    assert ood("predict", encoder, "--method", "knn", "--features", "--output", output)[0] == 0
    found = json.loads(ood("drift", output, "--format", "json")[1])
    tests = [test["name"] for test in found["groups"][0]["tests"]]
    assert tests == ["share", "scores", "features"]


def test_a_method_is_recommended_among_those_of_features(ood: Ood, encoder: Path) -> None:
    found = json.loads(ood("recommend", "--limit", 8, "--format", "json")[1])
    for each in found["candidates"]:
        members = (
            each["method"].removeprefix("ensemble:").split("+" if ":" in each["method"] else "\n")
        )
        assert all(member.partition(":")[0] in OF_FEATURES for member in members if member != "")


@pytest.mark.slow
def test_an_export_of_features_has_score_and_verdict(
    ood: Ood, encoder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    code, out, err = ood(
        "export", "--method", "mds++", "--output", tmp_path / "there", "--format", "json"
    )
    assert code == 0, err
    described = json.loads(out)
    assert [each["name"] for each in described["outputs"]] == ["score", "verdict"]
    assert described["verification"]["logits"] is None
    assert described["verification"]["score"]["relative"] < 1e-4


def test_a_last_layer_of_an_unknown_name_is_not_ignored(ood: Ood, tmp_path: Path) -> None:
    state = parse_architecture(ARCH).build(2).state_dict()
    named = {n.replace("fc.", "verdicts."): tensor for n, tensor in state.items()}
    torch.save(named, tmp_path / "named.pth")
    argv = ["import", tmp_path / "named.pth", "--arch", ARCH, "--data", tree(tmp_path / "colours")]
    code, _, err = ood(*argv)
    assert code == 1
    said = " ".join(err.split())
    assert "missing: fc.weight, fc.bias; unexpected: verdicts.weight, verdicts.bias" in said
    code, _, err = ood(*argv, "--features-only")
    assert code == 0, err
    assert "ignored: verdicts.weight, verdicts.bias" in " ".join(err.split())


def test_a_classifier_is_left_aside_where_that_is_asked_for(ood: Ood, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(parse_architecture(ARCH).build(7).state_dict(), tmp_path / "seven.pth")
    data = tree(tmp_path / "colours")
    argv = ["import", tmp_path / "seven.pth", "--arch", ARCH, "--data", data]
    code, _, err = ood(*argv)
    assert code == 1
    assert (
        "or else, fit a linear layer (--probe), or use its features alone (--features-only)" in err
    )
    code, _, err = ood(*argv, "--features-only", "--probe")
    assert code == 1
    assert "give one of them" in err
    code, out, err = ood(*argv, "--features-only")
    assert (code, out) == (0, "seven\n"), err
    assert json.loads(ood("runs", "show", "seven")[1])["imported"]["last_layer"] == "none"
