"""``ood score --ensemble``: an ensemble of runs beside its members, from their stored logits."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from oodcli import load_run
from oodcli.errors import InvalidInputError
from oodcli.store.ensembles import read_ensemble
from oodcli.store.runs import Run, RunFolder
from tests.support.cli import Ood, flat

ENERGY = ("--method", "energy", "--method", "msp")


@pytest.fixture(scope="module")
def seeds(trained_store: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a second seed in a copy of the store with the tiny run; return the store."""
    from oodcli.store.store import Store
    from oodcli.workflows.train import TrainRequest, train

    store, images = trained_store
    root = tmp_path_factory.mktemp("seeds")
    shutil.copytree(store, root / "store")
    request = TrainRequest(
        data=str(images), arch="resnet18:width=2", name="tiny-s1", seed=1, epochs=2, batch_size=8
    )
    train(Store(root / "store"), request)
    return root / "store"


@pytest.fixture
def odd(seeds: Path, tmp_path: Path) -> Path:
    """Copy the store for this test; return a folder of images of another kind."""
    shutil.copytree(seeds, tmp_path / "store")
    return flat(tmp_path / "odd")


PAIR = ("--run", "tiny", "--run", "tiny-s1")


def scored(ood: Ood, *argv: object) -> dict[str, object]:
    code, out, err = ood("score", *PAIR, "--ensemble", *argv, "--format", "json")
    assert code == 0, err
    return json.loads(out)


def test_an_ensemble_stands_beside_its_members(ood: Ood, odd: Path, tmp_path: Path) -> None:
    table = scored(ood, "--ood", odd, "--export", tmp_path / "scores.npz")
    runs = {run["name"]: run for run in table["runs"]}  # type: ignore[attr-defined]
    assert list(runs) == ["tiny", "tiny-s1", "tiny-ensemble"]
    assert [each["name"] for each in runs["tiny-ensemble"]["members"]] == ["tiny", "tiny-s1"]
    assert runs["tiny"]["members"] == []
    methods = {row["method"] for row in table["rows"] if row["run"] == "tiny-ensemble"}  # type: ignore[attr-defined]
    assert methods == {
        "mean-probability", "mean-entropy", "mutual-information", "msp", "maxlogit", "energy",
        "entropy", "gen", "klm", "doctor", "logitgap", "igeood", "tempscale",
    } - set(table["left_out"])  # fmt: skip  # type: ignore[call-overload]
    # Members are seeds of one training, and averaged; the ensemble is no further seed.
    pooled = [row for row in table["rows"] if row["run"] == "tiny, tiny-s1"]  # type: ignore[attr-defined]
    assert {row["n_runs"] for row in pooled} == {2}
    assert "mean-probability" not in {row["method"] for row in pooled}

    logits = []
    for run in ("tiny", "tiny-s1"):
        path = tmp_path / f"{run}.npz"
        code, _, err = ood(
            "score", "--run", run, "--method", "energy", "--ood", odd, "--export-activations", path
        )
        assert code == 0, err
        logits.append(np.load(path))
    found = np.load(tmp_path / "scores.npz")
    for dataset, name in (("test", "colours"), ("odd", "odd")):
        both = np.stack([each[f"{dataset}/logits"] for each in logits]).astype(np.float64)
        p = softmax(both, axis=2).mean(axis=0)
        np.testing.assert_allclose(
            found[f"energy/{name}"], logsumexp(both.mean(axis=0), axis=1), rtol=1e-5
        )
        odds = np.log(p.max(axis=1) / (1 - p.max(axis=1)))
        np.testing.assert_allclose(found[f"mean-probability/{name}"], odds, rtol=1e-6, atol=1e-9)
        if dataset == "test":
            right = np.mean(p.argmax(axis=1) == logits[0]["test/labels"])
            assert runs["tiny-ensemble"]["id_accuracy"] == right
            # The confidence of an ensemble is that of its mean probabilities.
            (own,) = (each for each in table["calibration"] if each["run"] == "tiny-ensemble")  # type: ignore[attr-defined]
            assert own["confidence"] == pytest.approx(p.max(axis=1).mean())


def test_an_ensemble_is_scored_again_without_a_pass(ood: Ood, odd: Path) -> None:
    first = scored(ood, "--ood", odd, *ENERGY)
    assert sum(each["computed"] for each in first["passes"]) > 0  # type: ignore[attr-defined]
    again = scored(ood, "--ood", odd, "--method", "mutual-information", "--method", "gen")
    assert sum(each["computed"] for each in again["passes"]) == 0  # type: ignore[attr-defined]
    # Scores are added to the stored ensemble of the same networks, in whatever order they come.
    code, _, err = ood(
        "score", "--run", "tiny-s1", "--run", "tiny", "--ensemble", "--ood", odd, *ENERGY
    )
    assert code == 0, err
    names = [run["name"] for run in json.loads(ood("runs", "list", "--format", "json")[1])["runs"]]
    assert names == ["tiny", "tiny-s1", "tiny-ensemble"]
    code, out, err = ood("report", "--run", "tiny-ensemble", "--format", "json")
    assert code == 0, err
    rows = {row["method"] for row in json.loads(out)["rows"]}
    assert rows == {"energy", "msp", "mutual-information", "gen"}


def test_python_scores_an_ensemble(odd: Path) -> None:
    result = load_run("tiny").score(method="energy", ood=odd, ensemble="tiny-s1", name="both")
    assert [run.name for run in result.report.runs] == ["tiny", "tiny-s1", "both"]
    with pytest.raises(InvalidInputError, match="both is an ensemble, and this needs one network"):
        load_run("both")


def test_a_report_shows_the_members_and_the_ensemble(ood: Ood, odd: Path) -> None:
    scored(ood, "--ood", odd, "--name", "both", *ENERGY)
    code, out, err = ood("report", *PAIR, "--run", "both", "--average", "--format", "json")
    assert code == 0, err
    report = json.loads(out)
    assert [each["run"] for each in report["summaries"]] == ["tiny, tiny-s1", "both"]
    assert report["runs"][2]["arch"] == "ensemble of tiny, tiny-s1"
    code, out, err = ood("report", "--run", "both")
    assert code == 0, err
    said = " ".join((out + err).split())
    assert "both (ensemble of tiny, tiny-s1): accuracy" in said
    assert "next: ood report --run tiny --run tiny-s1 --run both # beside its members" in said


def test_an_ensemble_is_listed_shown_renamed_and_removed(
    ood: Ood, odd: Path, tmp_path: Path
) -> None:
    scored(ood, "--ood", odd, *ENERGY)
    listed = json.loads(ood("runs", "list", "--format", "json")[1])["runs"][-1]
    assert (listed["name"], listed["origin"], listed["finished"]) == (
        "tiny-ensemble", "ensemble", True,
    )  # fmt: skip
    shown = json.loads(ood("runs", "show", "tiny-ensemble")[1])
    members = {each["name"]: each for each in shown["members"]}
    for name, member in members.items():
        run = json.loads(ood("runs", "show", name)[1])
        assert (member["network"], member["weights"]) == (run["network"], run["weights"])
    code, _, err = ood("runs", "rename", "tiny-ensemble", "pair")
    assert code == 0, err
    folder = RunFolder(tmp_path / "store" / "runs" / "pair")
    assert [each.seed for each in read_ensemble(folder).members] == [0, 1]
    assert ood("doctor")[0] == 0
    # It is no network of its own, and the default run stays a run.
    for argv in (("predict", odd), ("recommend",), ("score",), ("train", "--resume")):
        code, _, err = ood(*argv, "--run", "pair")
        assert code == 1, argv
        assert "pair is an ensemble, and this needs one network" in " ".join(err.split()), argv
    assert ood("runs", "use", "pair")[0] == 1
    code, _, err = ood("runs", "remove", "pair")
    assert code == 0, err
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--run", "tiny", "--ensemble"), "an ensemble needs two or more runs, and 1 is named"),
        (("--ensemble",), "an ensemble needs two or more runs, and none is named"),
        (("--run", "tiny", "--run", "tiny", "--ensemble"), "run tiny is named twice"),
        (PAIR, "2 runs are named; score each of them in a call of its own"),
        ((*PAIR, "--ensemble", "--dry-run"), "--dry-run is for one run"),
        ((*PAIR, "--ensemble", "--tune", "pseudo"), "--tune is for one run"),
        ((*PAIR, "--ensemble", "--method", "auto"), "auto is the method recommended for one run"),
        (
            (*PAIR, "--ensemble", "--method", "react"),
            "react+energy is not defined for an ensemble: it needs features, head, and an",
        ),
        ((*PAIR, "--ensemble", "--name", "tiny"), "run tiny already exists"),
        ((*PAIR, "--ensemble", "--name", "a b"), "'a b' is not a valid name"),
        (("--run", "tiny", "--name", "x"), "--name is the name of an ensemble; add --ensemble"),
    ],
)
def test_what_cannot_be_an_ensemble_is_refused(
    ood: Ood, odd: Path, argv: tuple[str, ...], said: str
) -> None:
    code, out, err = ood("score", *argv, "--ood", odd)
    assert (code, out) == (1, "")
    assert said in " ".join(err.split())


def _other_classes(run: Run) -> Run:
    return replace(run, class_names=("red", "blue"))


def _more_classes(run: Run) -> Run:
    return replace(run, class_names=("blue", "red", "green"))


def _larger_images(run: Run) -> Run:
    return run.with_preprocess(replace(run.preprocess, size=(48, 40)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_classes, "have different classes: class 0 is 'blue' and 'red'; an ensemble needs"),
        (_more_classes, "runs tiny and tiny-s1 have 2 and 3 classes;"),
        (_larger_images, "do not have the same images of colours (images resized by"),
        (None, "runs tiny and tiny-s1 have the same network;"),
    ],
)
def test_members_that_do_not_fit_are_refused_before_the_work(
    ood: Ood, odd: Path, tmp_path: Path, change: Callable[[Run], Run] | None, said: str
) -> None:
    first, second = (RunFolder(tmp_path / "store" / "runs" / name) for name in PAIR[1::2])
    network = first.read().network
    second.write(
        replace(second.read(), network=network) if change is None else change(second.read())
    )
    code, out, err = ood("score", *PAIR, "--ensemble", "--ood", odd)
    assert (code, out) == (1, "")
    assert said in " ".join(err.split())
    assert "forward pass" not in err
