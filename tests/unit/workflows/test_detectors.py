"""Detectors of a run: fitted once, stored, and read without the training set."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oodcli.errors import InvalidInputError, MissingArtifactError, OodError
from oodcli.methods import METHODS
from oodcli.metrics import fpr_at_tpr
from oodcli.models.extraction import extract
from oodcli.runs import RunFolder, find_run, remove_run
from oodcli.store import Store, read_json, write_json
from oodcli.workflows.detectors import Detector, detector_for
from oodcli.workflows.train import TrainRequest, train
from tests.support.cli import tree
from tests.support.progress import Notes

CPU = torch.device("cpu")
IN_NETWORK = [n for n, m in METHODS.items() if m.needs_network]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train a tiny network once; return its store and its images."""
    root = tmp_path_factory.mktemp("detectors")
    images = tree(root / "colours", parts=("train", "val", "test"), n=10)
    train(
        Store(root / "store"),
        TrainRequest(
            data=str(images), arch="resnet18:width=2", name="tiny", epochs=1, batch_size=8
        ),
    )
    return root / "store", images


@pytest.fixture
def store(made: tuple[Path, Path], tmp_path: Path) -> Store:
    """Return a store of this test's own."""
    shutil.copytree(made[0], tmp_path / "own")
    return Store(tmp_path / "own")


@pytest.fixture
def folder(store: Store) -> RunFolder:
    """Return the run."""
    return find_run(store, "tiny")


def scores_of(detector: Detector, folder: RunFolder) -> np.ndarray:
    """Score noise."""
    pixels = np.random.default_rng(3).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    pre = detector.record.preprocess
    found = extract(
        detector.network(folder),
        [pixels],
        mean=pre.mean,
        std=pre.std,
        probes=detector.fitted.probes,
    )
    return detector.score(next(iter(found)))


@pytest.mark.parametrize(
    "method",
    ["msp", "featurenorm", "knn:k=3", "norm+energy", "mds", "nac:layers=2,least=5", *IN_NETWORK],
)
def test_a_stored_detector_is_the_one_that_was_fitted(
    store: Store, folder: RunFolder, method: str
) -> None:
    fitted = detector_for(store, folder, method, device=CPU)
    watch = Notes()
    read = detector_for(store, folder, method, device=CPU, progress=watch)
    assert watch.tasks == watch.notes == []
    np.testing.assert_array_equal(scores_of(read, folder), scores_of(fitted, folder))
    np.testing.assert_array_equal(read.id_scores, fitted.id_scores)
    assert read.origin() == json.loads(json.dumps(fitted.origin()))
    assert (read.id_part, len(read.id_scores)) == ("val", 20)


def test_a_stored_detector_needs_no_data(
    made: tuple[Path, Path], store: Store, folder: RunFolder
) -> None:
    detector_for(store, folder, "knn:k=3", device=CPU)
    shutil.rmtree(store.activations)
    shutil.rmtree(store.images)
    moved = made[1].rename(made[1].with_name("gone"))
    try:
        assert detector_for(store, folder, "knn:k=3", device=CPU).method == "knn:k=3"
        with pytest.raises(MissingArtifactError, match="the data of run tiny cannot be opened"):
            detector_for(store, folder, "knn:k=4", device=CPU)
    finally:
        moved.rename(made[1])


def test_a_method_of_others_is_fitted_anew_each_time(
    store: Store, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_detect.py").write_text(
        "class Mine:\n"
        "    @classmethod\n"
        "    def fit(cls, reference):\n"
        "        return cls()\n"
        "    def score(self, batch):\n"
        "        return batch.logits.amax(dim=1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = []
    for _ in range(2):
        watch = Notes()
        made.append(detector_for(store, folder, "acme_detect:Mine", device=CPU, progress=watch))
        assert watch.notes == [
            "acme_detect:Mine cannot be stored (it holds a acme_detect:Mine): "
            "it is fitted anew each time"
        ]
    assert made[1].created > made[0].created
    np.testing.assert_array_equal(made[0].id_scores, made[1].id_scores)
    assert not folder.detectors.exists()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["detector.json", "detector.safetensors"])
@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
def test_a_damaged_detector_is_fitted_again(
    store: Store, folder: RunFolder, name: str, damage: Callable[[Path], None]
) -> None:
    before = detector_for(store, folder, "energy", device=CPU)
    (path,) = folder.detectors.glob(f"*/{name}")
    damage(path)
    after = detector_for(store, folder, "energy", device=CPU)
    # A last newline that is gone changes nothing.
    assert after.created > before.created or (name, damage) == ("detector.json", _truncate)
    np.testing.assert_array_equal(after.id_scores, before.id_scores)


def test_what_is_no_method_any_more_is_fitted_again(store: Store, folder: RunFolder) -> None:
    before = detector_for(store, folder, "energy", device=CPU)
    (path,) = folder.detectors.glob("*/detector.json")
    write_json(path, {**read_json(path), "detector": {"list": []}})
    after = detector_for(store, folder, "energy", device=CPU)
    assert after.created > before.created
    np.testing.assert_array_equal(after.id_scores, before.id_scores)


def test_a_number_that_was_changed_is_not_believed(store: Store, folder: RunFolder) -> None:
    before = detector_for(store, folder, "knn:k=3", device=CPU)
    (path,) = folder.detectors.glob("*/detector.json")
    content = json.loads(path.read_text())
    content["origin"]["id_data"] = "others"
    path.write_text(json.dumps(content))
    after = detector_for(store, folder, "knn:k=3", device=CPU)
    assert after.created > before.created
    assert after.id_data == before.id_data


def test_another_precision_or_network_is_another_detector(store: Store, folder: RunFolder) -> None:
    first = detector_for(store, folder, "energy", device=CPU)
    half = detector_for(store, folder, "energy", device=CPU, amp=True)
    assert half.precision == "bfloat16"
    assert detector_for(store, folder, "energy", device=CPU).created == first.created
    assert len(list(folder.detectors.iterdir())) == 2
    record = folder.read()
    folder.write(replace(record, preprocess=replace(record.preprocess, mean=(0.4, 0.5, 0.5))))
    assert detector_for(store, folder, "energy", device=CPU).created > first.created


def test_the_threshold_is_stored_with_method_data_and_date(store: Store, folder: RunFolder) -> None:
    detector = detector_for(store, folder, "knn:k=3", device=CPU)
    (path,) = folder.detectors.glob("*/detector.json")
    content = json.loads(path.read_text())
    assert content["threshold"] == asdict(detector.threshold(0.95))
    assert content["threshold"]["stderr"] > 0
    origin = content["origin"]
    assert (origin["method"], origin["id_data"], origin["id_part"]) == ("knn:k=3", "colours", "val")
    assert origin["created"][:2] == "20"


def test_a_removed_run_takes_its_detectors_along(store: Store, folder: RunFolder) -> None:
    detector_for(store, folder, "energy", device=CPU)
    assert remove_run(store, "tiny")[1] == []
    assert not folder.path.exists()


def test_wrong_methods_are_told(store: Store, folder: RunFolder) -> None:
    for method in ("enrgy", "knn:k=0", "msp+energy"):
        with pytest.raises(OodError):
            detector_for(store, folder, method, device=CPU)
    assert not folder.detectors.exists()


def _detector(scores: np.ndarray) -> Detector:
    return Detector(
        run="r", record=None, fitted=None, id_scores=np.sort(scores), id_part="val", id_data="d",  # type: ignore[arg-type]
        id_digest="", precision="float32", created="",
    )  # fmt: skip


@pytest.mark.parametrize("tpr", [0.95, 0.9, 0.5, 0.001, 1.0])
@pytest.mark.parametrize("n", [1, 2, 20, 1001])
def test_the_threshold_is_that_of_fpr95(tpr: float, n: int) -> None:
    rng = np.random.default_rng(n)
    scores, other = rng.normal(size=n).round(1), rng.normal(size=200).round(1)
    detector = _detector(scores)
    threshold = detector.threshold(tpr)
    accepted = detector.verdicts(other, threshold).mean()
    assert accepted == pytest.approx(fpr_at_tpr(scores, other, tpr=tpr))
    assert (scores >= threshold.value).mean() >= tpr - 1e-12


def test_the_standard_error_is_how_far_thresholds_of_other_images_lie() -> None:
    rng = np.random.default_rng(0)
    values = [_detector(rng.normal(size=2000)).threshold(0.95) for _ in range(400)]
    spread = np.std([each.value for each in values])
    told = np.mean([each.stderr for each in values])
    assert told == pytest.approx(spread, rel=0.1)
    assert values[0].share_stderr == pytest.approx(math.sqrt(0.95 * 0.05 / 2000))


def test_percentiles_count_id_scores_below() -> None:
    detector = _detector(np.arange(10.0))
    np.testing.assert_array_equal(detector.percentile([-1, 0, 0.5, 9, 9.5]), [0, 0, 10, 90, 100])
    given = detector.given_threshold(2.0)
    assert (given.tpr, given.stderr, given.given) == (pytest.approx(0.8), None, True)


@pytest.mark.parametrize("tpr", [0, -0.1, 1.01, math.nan])
def test_a_share_out_of_range_is_refused(tpr: float) -> None:
    with pytest.raises(InvalidInputError, match="--tpr must be above 0 and at most 1, not"):
        _detector(np.arange(3.0)).threshold(tpr)


def test_a_threshold_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="--threshold must be a finite number, not nan"):
        _detector(np.arange(3.0)).given_threshold(math.nan)
