"""Detectors of a run: fitted once, stored, and read without the training set."""

import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oodcli.activations import Activations
from oodcli.compute.compute import Compute, Precision
from oodcli.data.incoming import Item
from oodcli.errors import InvalidInputError, MissingArtifactError, OodError
from oodcli.methods import METHODS
from oodcli.metrics import fpr_at_tpr
from oodcli.models.extraction import ReadyNetwork, extract
from oodcli.progress import SILENT, Progress
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.base import IdScores
from oodcli.screening.detector import Detector, detector_for, detector_or_reason
from oodcli.screening.judging import Judged, judge
from oodcli.screening.thresholds import DEFAULT_RULE, ThresholdRule
from oodcli.store.removal import remove_run
from oodcli.store.run_names import find_run
from oodcli.store.runs import RunFolder
from oodcli.store.store import Store, read_json, write_json
from oodcli.workflows.train import TrainRequest, train
from tests.support.cli import tree
from tests.support.progress import RecordingProgress

CPU = torch.device("cpu")
# MC dropout is refused here, as the network has no dropout.
IN_NETWORK = [
    name
    for name, method in METHODS.items()
    if method.needs_network
    and not method.is_zero_shot
    and not method.kept_head  # tests/cli/test_kept_heads.py has networks with these
    and name != "mcdropout"
]


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


def detector_of(
    store: Store,
    folder: RunFolder,
    method: str,
    *,
    precision: Precision = "float32",
    progress: Progress = SILENT,
) -> Detector:
    """Return the detector of a run on the CPU."""
    compute = Compute(CPU, precision)
    return detector_for(OpenRun.of(store, folder, compute, progress=progress), method)


def test_a_method_that_is_not_defined_is_tried_once(
    store: Store, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason_of() -> tuple[Detector | str, RecordingProgress]:
        watch = RecordingProgress()
        run = OpenRun.of(store, folder, Compute(CPU), progress=watch)
        return detector_or_reason(run, "mcdropout"), watch

    first, watch = reason_of()
    assert str(first).startswith("mcdropout is not defined for a network without dropout")
    assert watch.tasks
    again, watch = reason_of()
    assert again == first
    assert watch.tasks == watch.notes == []
    monkeypatch.setattr("oodcli.screening.detector.__version__", "another")
    again, watch = reason_of()
    assert again == first
    assert watch.tasks


def scores_of(detector: Detector, folder: RunFolder) -> np.ndarray:
    """Score noise."""
    pixels = np.random.default_rng(3).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    pre = detector.record.preprocess
    found = extract(
        detector.network(),
        [pixels],
        mean=pre.mean,
        std=pre.std,
        probes=detector.fitted.probes,
    )
    return detector.scores_of(next(iter(found)))


@pytest.mark.parametrize(
    "method",
    [
        "msp",
        "featurenorm",
        "knn:k=3",
        "norm+energy",
        "mds",
        "nac:layers=2,least=5",
        "norm+odin",
        *IN_NETWORK,
    ],
)
def test_a_stored_detector_is_the_one_that_was_fitted(
    store: Store, folder: RunFolder, method: str
) -> None:
    fitted = detector_of(store, folder, method)
    watch = RecordingProgress()
    read = detector_of(store, folder, method, progress=watch)
    assert watch.tasks == watch.notes == []
    np.testing.assert_array_equal(scores_of(read, folder), scores_of(fitted, folder))
    for field in ("values", "classes", "features"):
        np.testing.assert_array_equal(getattr(read.id, field), getattr(fitted.id, field))
    assert read.origin() == json.loads(json.dumps(fitted.origin()))
    assert (read.id.part, len(read.id.values)) == ("val", 20)


def test_classes_and_features_are_those_of_the_id_images(
    store: Store, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OpenRun.of(store, folder, Compute(CPU))
    found = run.activator.activations(run.data.images("val"))
    scores = detector_of(store, folder, "msp").scores_of(next(iter(found.chunks())))
    order = np.argsort(scores, kind="stable")
    detector = detector_of(store, folder, "energy")
    assert len(detector.id.classes) == len(detector.id.values) == 20
    np.testing.assert_array_equal(detector.id.features, found.features.numpy())
    read = detector_of(store, folder, "msp").id
    np.testing.assert_array_equal(read.classes, found.predictions.numpy()[order])
    monkeypatch.setattr("oodcli.screening.detector.ID_FEATURES", 7)
    few = detector_of(store, folder, "maxlogit").id.features
    assert len(few) == 7
    assert {row.tobytes() for row in few} <= {row.tobytes() for row in found.features.numpy()}


def test_a_stored_detector_needs_no_data(
    made: tuple[Path, Path], store: Store, folder: RunFolder
) -> None:
    detector_of(store, folder, "knn:k=3")
    shutil.rmtree(store.activations)
    shutil.rmtree(store.images)
    moved = made[1].rename(made[1].with_name("gone"))
    try:
        assert detector_of(store, folder, "knn:k=3").method == "knn:k=3"
        with pytest.raises(MissingArtifactError, match="the data of run tiny cannot be opened"):
            detector_of(store, folder, "knn:k=4")
    finally:
        moved.rename(made[1])


def test_a_third_party_method_is_fitted_anew_each_time(
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
        watch = RecordingProgress()
        made.append(detector_of(store, folder, "acme_detect:Mine", progress=watch))
        assert watch.notes == [
            "acme_detect:Mine cannot be stored (it contains a acme_detect:Mine): "
            "it is refitted each time"
        ]
    assert made[1].about.created > made[0].about.created
    np.testing.assert_array_equal(made[0].id.values, made[1].id.values)
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
    before = detector_of(store, folder, "energy")
    (path,) = folder.detectors.glob(f"*/{name}")
    damage(path)
    after = detector_of(store, folder, "energy")
    # A last newline that is gone changes nothing.
    assert after.about.created > before.about.created or (name, damage) == (
        "detector.json",
        _truncate,
    )
    np.testing.assert_array_equal(after.id.values, before.id.values)


def test_what_is_no_method_any_more_is_fitted_again(store: Store, folder: RunFolder) -> None:
    before = detector_of(store, folder, "energy")
    (path,) = folder.detectors.glob("*/detector.json")
    write_json(path, {**read_json(path), "detector": {"list": []}})
    after = detector_of(store, folder, "energy")
    assert after.about.created > before.about.created
    np.testing.assert_array_equal(after.id.values, before.id.values)


def test_a_number_that_was_changed_is_not_believed(store: Store, folder: RunFolder) -> None:
    before = detector_of(store, folder, "knn:k=3")
    (path,) = folder.detectors.glob("*/detector.json")
    content = json.loads(path.read_text())
    content["origin"]["id_data"] = "others"
    path.write_text(json.dumps(content))
    after = detector_of(store, folder, "knn:k=3")
    assert after.about.created > before.about.created
    assert after.id.data == before.id.data


def test_another_precision_or_network_is_another_detector(store: Store, folder: RunFolder) -> None:
    first = detector_of(store, folder, "energy")
    half = detector_of(store, folder, "energy", precision="bfloat16")
    assert half.compute.precision == "bfloat16"
    assert detector_of(store, folder, "energy").about.created == first.about.created
    assert len(list(folder.detectors.iterdir())) == 2
    record = folder.read()
    changed = replace(record.preprocess, mean=(0.4, 0.5, 0.5))
    folder.write(record.with_preprocess(changed))
    assert detector_of(store, folder, "energy").about.created > first.about.created


def test_the_threshold_is_stored_with_method_data_and_date(store: Store, folder: RunFolder) -> None:
    detector = detector_of(store, folder, "knn:k=3")
    (path,) = folder.detectors.glob("*/detector.json")
    content = json.loads(path.read_text())
    assert content["threshold"] == detector.threshold.to_json()
    assert content["threshold"]["stderr"] > 0
    origin = content["origin"]
    assert (origin["method"], origin["id_data"], origin["id_part"]) == ("knn:k=3", "colours", "val")
    assert origin["created"][:2] == "20"


def test_a_removed_run_takes_its_detectors_along(store: Store, folder: RunFolder) -> None:
    detector_of(store, folder, "energy")
    assert remove_run(store, "tiny")[1] == []
    assert not folder.path.exists()


def test_wrong_methods_are_reported(store: Store, folder: RunFolder) -> None:
    for method in ("enrgy", "knn:k=0", "msp+energy"):
        with pytest.raises(OodError):
            detector_of(store, folder, method)
    assert not folder.detectors.exists()


def _detector(scores: np.ndarray, rule: ThresholdRule = DEFAULT_RULE) -> Detector:
    values = np.sort(scores)
    classes, features = np.zeros(len(values), np.int64), np.zeros((0, 1), np.float32)
    return Detector(
        about=None, id=IdScores(values, "val", "d", "", classes, features),  # type: ignore[arg-type]
        threshold=rule.on(values),
        source=None, record=None, fitted=None, compute=Compute(CPU),  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("tpr", [0.95, 0.9, 0.5, 0.001, 1.0])
@pytest.mark.parametrize("n", [1, 2, 20, 1001])
def test_the_threshold_is_that_of_fpr95(tpr: float, n: int) -> None:
    rng = np.random.default_rng(n)
    scores, other = rng.normal(size=n).round(1), rng.normal(size=200).round(1)
    detector = _detector(scores, ThresholdRule(tpr))
    accepted = detector.accepts(other).mean()
    assert accepted == pytest.approx(fpr_at_tpr(scores, other, tpr=tpr))
    assert (scores >= detector.threshold.value).mean() >= tpr - 1e-12


def test_the_standard_error_is_how_far_thresholds_of_other_images_lie() -> None:
    rng = np.random.default_rng(0)
    values = [DEFAULT_RULE.on(np.sort(rng.normal(size=2000))) for _ in range(400)]
    spread = np.std([each.value for each in values])
    told = np.mean([each.stderr for each in values])
    assert told == pytest.approx(spread, rel=0.1)
    assert values[0].share_stderr == pytest.approx(math.sqrt(0.95 * 0.05 / 2000))


def test_percentiles_count_id_scores_below() -> None:
    detector = _detector(np.arange(10.0), ThresholdRule(threshold=2.0))
    np.testing.assert_array_equal(detector.percentile([-1, 0, 0.5, 9, 9.5]), [0, 0, 10, 90, 100])
    given = detector.threshold
    assert (given.value, given.tpr, given.stderr) == (2.0, pytest.approx(0.8), None)
    assert given.given
    np.testing.assert_array_equal(detector.accepts([1.9, 2.0]), [False, True])


@pytest.mark.parametrize("tpr", [0, -0.1, 1.01, math.nan])
def test_a_share_out_of_range_is_refused(tpr: float) -> None:
    with pytest.raises(InvalidInputError, match="--tpr must be above 0 and at most 1, not"):
        ThresholdRule(tpr)


def test_a_threshold_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="--threshold must be a finite number, not nan"):
        ThresholdRule(threshold=math.nan)
    with pytest.raises(InvalidInputError, match="--threshold must be a number, not 'high'"):
        ThresholdRule(threshold="high")  # type: ignore[arg-type]


def test_one_of_two_ways_sets_the_threshold() -> None:
    with pytest.raises(InvalidInputError, match="--tpr and --threshold both set the threshold"):
        ThresholdRule(0.95, 1.0)


def judged(detector: Detector, images: Iterable[Item], **options: Any) -> list[Judged]:
    """Return what a detector says of images."""
    with judge(detector, images, **options) as blocks:
        return list(blocks)


def _noise(n: int) -> list[Item]:
    """Return images of noise, every fourth of which cannot be read."""
    pixels = np.random.default_rng(4).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return [
        Item(f"image {i}", "", "", pixels=image, error="broken" if i % 4 == 1 else None)
        for i, image in enumerate(pixels)
    ]


@pytest.mark.parametrize("soon", [False, True])
def test_images_are_judged_in_their_order_however_they_are_gathered(
    store: Store, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, soon: bool
) -> None:
    detector = detector_of(store, folder, "energy")
    images = _noise(23)
    (wanted,) = judged(detector, images)
    assert [item.name for item in wanted.items] == [item.name for item in images]
    assert [each == "broken" for each in wanted.errors] == [i % 4 == 1 for i in range(23)]
    read = np.array([why is None for why in wanted.errors])
    np.testing.assert_array_equal(wanted.ood[read], wanted.score[read] < detector.threshold.value)
    assert wanted.ood[~read].all()
    np.testing.assert_array_equal(wanted.percentile, np.where(read, detector.percentile(
        np.nan_to_num(wanted.score)), np.nan))  # fmt: skip
    np.testing.assert_array_equal(np.isnan(wanted.p_value), ~read)
    known = detector.id.values
    assert wanted.p_value[read].tolist() == [
        (1 + (known <= score).sum()) / (len(known) + 1) for score in wanted.score[read]
    ]
    monkeypatch.setattr("oodcli.screening.judging._PIXELS", 4 * 32 * 32)
    monkeypatch.setattr("oodcli.screening.judging._FIRST_PIXELS", 32 * 32)
    found = judged(detector, iter(images), soon=soon)
    # The second image alone is a group of nothing that can be read.
    assert [len(each) for each in found] == ([1, 2, 4, 4, 4, 4, 4] if soon else [4] * 5 + [3])
    assert [item.name for each in found for item in each.items] == [i.name for i in images]
    scores = np.concatenate([each.score for each in found])
    np.testing.assert_allclose(scores, wanted.score, rtol=1e-5)
    np.testing.assert_array_equal(np.concatenate([each.classes for each in found]), wanted.classes)


def test_images_none_of_which_can_be_read_are_judged(store: Store, folder: RunFolder) -> None:
    detector = detector_of(store, folder, "energy")
    images = [replace(each, error="gone") for each in _noise(3)]
    (found,) = judged(detector, images)
    assert found.errors == ("gone",) * 3
    assert np.isnan(found.score).all()
    assert (found.classes == -1).all()
    assert judged(detector, []) == []


def test_pixels_come_back_only_where_they_were_to_be_kept(store: Store, folder: RunFolder) -> None:
    detector = detector_of(store, folder, "energy")
    (light,) = judged(detector, _noise(4))
    assert [item.pixels is None for item in light.items] == [True] * 4
    (kept,) = judged(detector, _noise(4), keep_pixels=True)
    assert [item.pixels is None for item in kept.items] == [False, True, False, False]


def test_activations_are_scored_on_the_device_where_they_are_computed(
    store: Store, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a way over the CPU, which would bring every feature back to a GPU."""
    detector = detector_of(store, folder, "energy")
    asked, scored = [], []
    whole, score = ReadyNetwork.extract, type(detector).scores_of

    def extracting(self: ReadyNetwork, *args: Any, **options: Any) -> Any:
        asked.append(options["to"])
        return (noted(each) for each in whole(self, *args, **options))

    def noted(batch: Activations) -> Activations:
        scored.append(batch)
        return batch

    def scoring(self: Detector, batch: Activations) -> np.ndarray:
        assert batch is scored[-1]
        return score(self, batch)

    monkeypatch.setattr(ReadyNetwork, "extract", extracting)
    monkeypatch.setattr(Detector, "scores_of", scoring)
    judged(detector, _noise(3))
    assert asked == [detector.compute.device]
    assert len(scored) == 1


def test_scores_that_are_not_finite_end_judging(
    store: Store, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detector_of(store, folder, "energy")
    monkeypatch.setattr(Detector, "scores_of", lambda _self, batch: np.full(len(batch), np.nan))
    with pytest.raises(InvalidInputError) as caught:
        judged(detector, _noise(4))
    assert str(caught.value) == (
        "energy gives 3 scores that are not finite; check its parameters and the weights of the run"
    )
