"""``ood recommend`` and ``--method auto``."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oodcli.compute.compute import Compute
from oodcli.methods import parse_method
from oodcli.scoring.open_run import OpenRun
from oodcli.store.runs import RunFolder
from oodcli.store.store import Store, read_json, write_json
from oodcli.workflows.recommend import RecommendRequest, recommend, recommended_method
from tests.support.cli import Ood, flat, tree

FEW = ("--method", "msp", "--method", "scale", "--method", "knn:k=3", "--method", "featurenorm")


@pytest.fixture
def held_out(ood: Ood, tmp_path: Path) -> RunFolder:
    """Train a run that has 12 validation images."""
    data = tree(tmp_path / "colours", n=20)
    argv = ["train", "--data", data, "--arch", "resnet18:width=2", "--epochs", 1, "--name", "r"]
    assert ood(*argv, "--val-fraction", 0.3, "--batch-size", 8)[0] == 0
    return RunFolder(tmp_path / "store" / "runs" / "r")


def test_a_method_is_recommended_stored_and_used(
    ood: Ood, held_out: RunFolder, tmp_path: Path
) -> None:
    folder = flat(tmp_path / "odd", n=9)
    code, _, err = ood("score", "--method", "auto", "--ood", folder, "--dry-run")
    assert code == 1
    assert "no method has been recommended for run r yet" in err

    code, out, err = ood("recommend", "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    assert found["schema"] == 1
    assert found == read_json(held_out.recommendation)
    assert (found["part"], found["n"], found["data"]) == ("val", 12, "colours")
    ways = set(found["families"])
    assert ways == {
        "jigsaw-2", "jigsaw-3", "jigsaw-4", "pixel-shuffle", "gaussian-noise", "uniform-noise",
        "blur", "rotation",
    }  # fmt: skip
    by_name = {each["method"]: each for each in found["candidates"]}
    assert found["candidates"][0]["method"] == found["method"]
    assert {"msp", "knn", "featurenorm:block=0", "ensemble:knn+energy+featurenorm"} <= set(by_name)
    worth = [each["merit"] for each in found["candidates"]]
    assert worth == sorted(worth, reverse=True)
    chosen = by_name[found["method"]]
    means: dict[str, list[float]] = {}
    for way, family in found["families"].items():
        means.setdefault(family, []).append(chosen["auroc"][way])
    assert chosen["merit"] == pytest.approx(np.mean([np.mean(v) for v in means.values()]))
    assert sum(each["share"] for each in found["candidates"]) == pytest.approx(1)
    assert found["lead_low"] <= found["lead_high"]

    code, out, err = ood(
        "score", "--method", "auto", "--method", "msp", "--ood", folder, "--format", "json"
    )
    assert code == 0, err
    assert f"--method auto: {found['method']}" in err
    rows = {row["method"]: row["params"] for row in json.loads(out)["rows"]}
    assert rows[found["method"]]["chosen"] == "auto"
    assert found["method"] == "msp" or "chosen" not in rows["msp"]
    code, out, _ = ood("score", "--method", "auto", "--ood", folder, "--dry-run")
    assert (code, found["method"] in out) == (0, True)
    assert ood("runs", "remove", "r")[0] == 0
    assert not held_out.path.exists()


def test_what_is_chosen_is_what_the_fitted_method_gives(held_out: RunFolder) -> None:
    from oodcli.selection.trial import evaluate_candidates
    from oodcli.selection.validation import selection_images

    store = Store(held_out.path.parents[1])
    run = OpenRun.of(store, held_out, Compute.of("cpu"))
    images, _ = selection_images(run)
    trial = evaluate_candidates(run, images, seed=0)
    names = [spec.canonical for spec in trial.specs]
    name = "ensemble:knn+energy+featurenorm"
    fitted = parse_method(name).fit(run.reference())
    (plain,) = run.activator.activations(images).chunks()
    way = next(each for each in trial.contrasts if each.kind == "blur")
    np.testing.assert_allclose(
        way.id_scores[:, names.index(name)], fitted.detector.score(plain).numpy(), rtol=1e-9
    )
    assert not any("scores of" in reason and n == "energy" for n, reason in trial.left_out.items())


def test_the_stored_choice_is_for_these_weights(held_out: RunFolder) -> None:
    store = Store(held_out.path.parents[1])
    content = {
        **recommend(store, RecommendRequest(run="r", methods=["msp", "energy"])).to_json(),
        "method": "she",
    }
    assert not held_out.recommendation.exists()  # its candidates were limited
    write_json(held_out.recommendation, content)
    assert recommended_method(OpenRun.of(store, held_out, Compute.of("cpu"))) == "she"
    # Other weights, an unknown method or a damaged file: it is made again.
    for change in ({"weights": "other"}, {"method": "gone"}, {"schema": 0}, {"candidates": 3}):
        write_json(held_out.recommendation, content | change)
        made = recommended_method(OpenRun.of(store, held_out, Compute.of("cpu")))
        assert made != "she"
        assert read_json(held_out.recommendation)["method"] == made


def test_a_choice_that_cannot_be_used_any_more_has_another_one_as_its_cure(
    ood: Ood, held_out: RunFolder, tmp_path: Path
) -> None:
    assert ood("recommend", "--format", "json")[0] == 0
    content = {**read_json(held_out.recommendation)}
    folder = flat(tmp_path / "odd", n=9)
    score = ("score", "--ood", folder, "--method")
    cures = {}
    for method in ("vim:dim=500", "gone"):
        write_json(held_out.recommendation, content | {"method": method})
        cures[method] = [
            ood(*argv)[2].splitlines()
            for argv in (("predict", folder), ("predict", folder, "--method", "auto"),
                         (*score, "auto"), (*score, "auto", "--method", "msp"))
        ]  # fmt: skip
    cure = "; vim:dim=500 was recommended for run r: to choose again, ood recommend --run r"
    for lines in cures["vim:dim=500"]:
        (error,) = (line for line in lines if line.startswith("error: "))
        assert error.startswith("error: vim is not defined for dim 500: ")
        assert error.count(cure) == 1
    note = "the recommendation of run r is not used: no method 'gone'; "
    # Where a choice is needed it is made again, and then there is one.
    found = [any(line.startswith(note) for line in lines) for lines in cures["gone"]]
    assert found == [True, True, False, False]
    assert "to choose one without OOD images: ood recommend --run r" in "\n".join(cures["gone"][0])
    # Who names a method is told of that method alone.
    assert "was recommended" not in ood("predict", folder, "--method", "vim:dim=500")[2]


def test_the_table_says_the_choice_the_reason_and_the_confidence(
    ood: Ood, held_out: RunFolder
) -> None:
    code, out, err = ood("recommend", *FEW, "--limit", 10)
    assert code == 0, err
    assert "10 val images of colours" in out
    lead, following = out.splitlines()[:2]
    chosen = re.fullmatch(r"recommended: (\S+) \(.+\)", lead)
    assert chosen, lead
    # What was chosen among few candidates is not stored, so that auto would choose again.
    assert following == f"next: ood predict IMAGES --run r --method {chosen[1]}"
    for text in ("reason: ", "confidence: ", "not stored", "bootstrap samples of images"):
        assert text in out
    code, out, _ = ood("recommend", *FEW, "--format", "markdown", "--all")
    assert code == 0
    assert "| featurenorm:block=3 |" in out
    code, out, _ = ood("recommend", *FEW, "--format", "csv", "--output", held_out.path / "x.csv")
    assert (code, out) == (0, "")
    assert (held_out.path / "x.csv").read_text().startswith("method,merit,gap,jigsaw-2")
    code, out, _ = ood("recommend", "--method", "msp")
    assert code == 0
    assert "the only candidate" in out


def test_a_run_without_validation_images_is_reported(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    code, out, err = ood("recommend", "--method", "msp", "--method", "energy")
    assert code == 0
    assert "choosing on test images" in err
    assert "hold some out: ood train --val-fraction 0.1" in err
    assert "test images of colours" in out
    folder = RunFolder(tmp_path / "store" / "runs" / "tiny")
    folder.write(replace(folder.read(), origin="imported"))
    again = ood("recommend", "--method", "msp", "--method", "knn")
    assert "hold some out: ood import --val-fraction 0.1" in again[2]
    code, _, err = ood("score", "--method", "auto", "--ood", flat(tmp_path / "odd"))
    assert code == 1
    assert "--method auto needs validation images" in err
    assert "--val-fraction" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--method", "ensemble:knn"), "has 1 member"),
        (("--method", "mspp"), "did you mean 'msp'"),
        (("--run", "nobody"), "no run 'nobody'"),
        (("--limit", 1), "--limit must be at least 2, not 1"),
        (("--seed", -1), "--seed must be at least 0, not -1"),
        (("--method", "auto"), "there is no run here; name a method"),
        (("--method", "rankfeat"), "more than one forward pass"),
    ],
)
def test_what_cannot_be_is_reported(
    ood: Ood, tiny: Path, argv: tuple[object, ...], message: str
) -> None:
    code, out, err = ood("recommend", *argv)
    assert (code, out) == (1, "")
    assert message in err
    assert err.strip().splitlines()[-1].startswith("error: ")
