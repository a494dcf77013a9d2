"""The names for programs give what ``ood predict`` gives, for every kind of image."""

import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import oodcli
from oodcli.errors import InvalidInputError, OodError, UnknownNameError, UnreadableImageError

Ood = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train a tiny network on two colours; return its store and its test images."""
    from oodcli.store.store import Store
    from oodcli.workflows.train import TrainRequest, train

    root = tmp_path_factory.mktemp("api")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(("blue", "red")):
            folder = root / "colours" / part / name
            folder.mkdir(parents=True)
            for index in range(8):
                pixels = rng.integers(0, 90, (20, 24, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * label] += 150
                Image.fromarray(pixels).save(folder / f"{index}.png")
    request = TrainRequest(
        data=str(root / "colours"), arch="resnet18:width=2", name="tiny", epochs=1, batch_size=8
    )
    train(Store(root / "store"), request)
    return root / "store", root / "colours" / "test"


@pytest.fixture(scope="module")
def detector(made: tuple[Path, Path]) -> oodcli.Detector:
    return oodcli.load_run("tiny", store=made[0]).detector("energy", tpr=0.75, device="cpu")


def files(made: tuple[Path, Path]) -> list[Path]:
    return sorted(made[1].glob("*/*.png"))


def test_predictions_are_those_of_the_command_line(
    ood: Ood, made: tuple[Path, Path], detector: oodcli.Detector
) -> None:
    code, out, err = ood(
        "predict", *files(made), "--store", made[0], "--method", "energy", "--tpr", "0.75",
        "--format", "jsonl",
    )  # fmt: skip
    assert code == 0, err
    wanted = [row for row in map(json.loads, out.splitlines()) if "path" in row]
    got = detector.predict(files(made))
    assert len(got) == len(wanted) == 16
    assert list(got.names) == [row["path"] for row in wanted]
    assert list(got.classes) == [row["class"] for row in wanted]
    assert got.score.tolist() == [row["score"] for row in wanted]
    np.testing.assert_allclose(got.probability, [r["probability"] for r in wanted], atol=1e-6)
    np.testing.assert_allclose(got.percentile, [r["percentile"] for r in wanted], atol=1e-4)
    assert got.p_value.tolist() == [row["p_value"] for row in wanted]
    assert ["ood" if ood else "id" for ood in got.ood] == [row["verdict"] for row in wanted]
    assert {row["threshold"] for row in wanted} == {got.threshold.value}
    np.testing.assert_array_equal(detector.score(files(made)), got.score)
    assert [detector.classes[i] for i in got.class_indices] == list(got.classes)


def test_every_kind_of_image_gives_the_same_scores(
    made: tuple[Path, Path], detector: oodcli.Detector
) -> None:
    paths = files(made)[:5]
    wanted = detector.score(paths)
    array = np.stack([np.asarray(Image.open(path)) for path in paths])
    first = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    for images in (
        map(str, paths),
        array,
        first,
        list(array),
        [Image.open(path) for path in paths],
        torch.from_numpy(first),
        torch.from_numpy(first).float() / 255,
        [paths[0], array[1], torch.from_numpy(first[2]), Image.open(paths[3]), array[4:5]],
    ):
        np.testing.assert_allclose(detector.score(images), wanted, rtol=1e-6)
    data = [path.read_bytes() for path in paths]
    streams = [io.BytesIO(each) for each in data]
    for images in (data, streams, [bytearray(data[0]), memoryview(data[1]), *paths[2:]]):
        np.testing.assert_array_equal(detector.score(images), wanted)
    with paths[0].open("rb") as file:
        assert detector.predict([file, data[1]]).names == (str(paths[0]), "image 1")
    for one in (paths[0], str(paths[0]), array[0], first[0], Image.open(paths[0]), data[0]):
        np.testing.assert_allclose(detector.score(one), wanted[:1], rtol=1e-6)
    names = detector.predict([paths[0], array[1], array[2:4]]).names
    assert names == (str(paths[0]), "image 1", "image 2", "image 3")


def test_pillow_images_are_read_as_their_files_are(
    detector: oodcli.Detector, tmp_path: Path
) -> None:
    """Turned upright, narrowed from 16 bits, and without transparency, as files are."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (24, 40, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    Image.fromarray(rng.integers(0, 65536, (24, 40), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    paths = sorted(tmp_path.glob("*.png"))
    opened = [Image.open(path) for path in paths]
    np.testing.assert_array_equal(detector.score(opened), detector.score(paths))


def test_images_of_several_sizes_go_together(detector: oodcli.Detector) -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((9, 9), (64, 32))]
    images.append(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    together = detector.score(images)
    alone = [detector.score(image)[0] for image in images]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_no_images_are_no_predictions(detector: oodcli.Detector) -> None:
    for nothing in ([], np.empty((0, 8, 8, 3), np.uint8), torch.empty(0, 3, 8, 8)):
        found = detector.predict(nothing)
        assert len(found) == 0
        assert found.score.dtype == np.float64
        assert found.ood.dtype == np.bool_


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.zeros((2, 8, 8, 3)), "must be uint8 with pixels from 0 to 255, not float64"),
        (np.zeros((2, 8, 8), np.uint8), r"not \(2, 8, 8\); repeat grey pixels"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"\(n, h, w, 3\) or \(n, 3, h, w\)"),
        (torch.zeros(2, 8, 8, 3), r"\(n, 3, h, w\) or \(3, h, w\), not \(2, 8, 8, 3\)"),
        (torch.full((1, 3, 8, 8), -0.5), "do not normalise it"),
        (torch.full((1, 3, 8, 8), float("nan")), "do not normalise it"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "not torch.int64"),
        (np.zeros((2, 0, 5, 3), np.uint8), r"\(2, 0, 5, 3\) have no pixels"),
        (torch.zeros(3, 0, 5), r"\(3, 0, 5\) have no pixels"),
        ([3], "int is not an image type"),
        (7, "int is not an image type"),
        (io.StringIO("text"), r'returns str, not bytes; open it in binary mode: "rb"'),
        (Image.new("F", (8, 8), 2.0), "floating-point numbers from 2 to 2"),
    ],
)
def test_what_is_no_image_is_refused(detector: oodcli.Detector, images: object, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        detector.score(images)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_read_is_named(detector: oodcli.Detector, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        detector.score([tmp_path / "broken.png"])
    with pytest.raises(UnreadableImageError, match="gone"):
        detector.score(tmp_path / "gone.png")


def test_with_errors_as_rows_every_image_has_a_row(
    made: tuple[Path, Path], detector: oodcli.Detector, tmp_path: Path
) -> None:
    good = files(made)
    closed = io.BytesIO(good[0].read_bytes())
    closed.close()
    images = [
        tmp_path / "gone.png", good[0], b"no image", good[1].read_bytes(), b"",
        Image.new("F", (8, 8), 2.0), closed, np.asarray(Image.open(good[2])),
    ]  # fmt: skip
    found = detector.predict(images, errors="row")
    wanted = detector.predict(good[:3])
    read = np.array([False, True, False, True, False, False, False, True])
    assert [each is None for each in found.errors] == read.tolist()
    told = (
        "the file no longer exists",
        "not an image file",
        "the file is empty",
        "floating-point numbers from 2 to 2",
        "closed file",
    )
    for reason, text in zip([each for each in found.errors if each], told, strict=True):
        assert text in reason
    assert len(found) == 8
    assert found.names[2:4] == ("image 2", "image 3")
    np.testing.assert_array_equal(found.score[read], wanted.score)
    np.testing.assert_array_equal(found.ood[read], wanted.ood)
    for values in (found.score, found.probability, found.percentile, found.p_value):
        assert np.isnan(values[~read]).all()
        assert not np.isnan(values[read]).any()
    assert found.ood[~read].all()
    assert found.class_indices[~read].tolist() == [-1] * 5
    assert [each is None for each in found.classes] == (~read).tolist()
    assert found.p == pytest.approx(wanted.p)
    nothing = detector.predict([b"", b"x"], errors="row")
    assert nothing.p == 1
    assert (len(nothing), nothing.ood.tolist()) == (2, [True, True])
    with pytest.raises(
        UnreadableImageError, match=r'^cannot read image 1: .*a row with the reason: errors="row"'
    ):
        detector.predict([good[0], b"no image", good[1]])
    with pytest.raises(InvalidInputError, match="errors must be 'raise' or 'row', not 'skip'"):
        detector.predict(good, errors="skip")  # type: ignore[arg-type]


def test_rows_stand_where_they_belong_when_shards_are_many(
    made: tuple[Path, Path], detector: oodcli.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = files(made)
    wanted = detector.score(good)
    # Of images of 32×32 pixels three go through the network together.
    monkeypatch.setattr("oodcli.screening.judging._PIXELS", 3 * 32 * 32)
    images = [each for path in good for each in (path, b"no image")]
    found = detector.predict(iter(images), errors="row")
    np.testing.assert_allclose(found.score[::2], wanted, rtol=1e-5)
    assert found.errors[1::2] == ("not an image file",) * 16


def test_the_network_is_copied_once_for_a_detector(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import copy

    from torch import nn

    copied = []
    whole = copy.deepcopy

    def counting(value: object, *rest: object) -> object:
        copied.extend([type(value)] if isinstance(value, nn.Module) else [])
        return whole(value, *rest)

    monkeypatch.setattr("oodcli.models.extraction.copy.deepcopy", counting)
    detector = oodcli.load_run("tiny", store=made[0]).detector("energy", device="cpu")
    copied.clear()
    for _ in range(3):
        detector.score(files(made)[:2])
    assert len(copied) == 1


def test_one_image_starts_no_thread(
    made: tuple[Path, Path], detector: oodcli.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = detector.score(files(made)[0])
    started: list[object] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    assert detector.score(files(made)[0]) == wanted
    assert detector.score(files(made)[0].read_bytes()) == wanted
    assert started == []


def test_threads_that_share_a_detector_get_their_own_scores(
    made: tuple[Path, Path], detector: oodcli.Detector
) -> None:
    """Hooks belong to the module: without turns a thread would see the features of another."""
    good = files(made)
    wanted = [detector.score(path)[0] for path in good]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert [each[0] for each in pool.map(detector.score, good)] == wanted


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tpr": 2.0}, "tpr must be above 0 and at most 1, not 2"),
        ({"threshold": float("nan")}, "threshold must be a finite number, not nan"),
        ({"threshold": "high"}, "threshold must be a number, not 'high'"),
        ({"tpr": "95 %"}, "tpr must be a number, not '95 %'"),
        ({"tpr": 0.9, "threshold": 1.0}, "tpr and threshold both set the threshold; give one"),
        ({"device": "cuda"}, 'use device="cpu"'),
    ],
)
def test_errors_speak_of_arguments(
    made: tuple[Path, Path], wrong: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And come before anything is fitted."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("oodcli.scoring.open_run.RunData.of", None)
    with pytest.raises(InvalidInputError) as caught:
        oodcli.load_run("tiny", store=made[0]).detector("nci", **wrong)  # type: ignore[arg-type]
    assert told in str(caught.value)
    assert "--" not in str(caught.value)


def test_options_become_arguments_and_commands_stay() -> None:
    from oodcli.api import naming_arguments

    for text, told in (
        ("cpu has too little memory; use fewer images per forward pass: --score-batch-size N",
         "cpu has too little memory; use fewer images per forward pass: score_batch_size=N"),
        ("cannot read image a.png: gone; replace it, or skip such images: --skip-unreadable",
         "cannot read image a.png: gone; replace it, or skip such images: skip_unreadable=True"),
        ("hold some out: ood train --val-fraction 0.1; or name another: --store DIR",
         "hold some out: ood train --val-fraction 0.1; or name another: store=DIR"),
        ("train one: ood train --data digits --device cpu", None),
    ):  # fmt: skip
        with pytest.raises(UnknownNameError) as caught, naming_arguments():
            raise UnknownNameError(text)
        assert str(caught.value) == (told or text)


def test_runs_and_methods_that_are_not_there_are_refused(made: tuple[Path, Path]) -> None:
    with pytest.raises(UnknownNameError, match="tiny"):
        oodcli.load_run("tinny", store=made[0])
    run = oodcli.load_run(store=made[0])
    assert (run.name, run.classes) == ("tiny", ("blue", "red"))
    with pytest.raises(OodError, match="energy"):
        run.detector("enrgy")
    with pytest.raises(InvalidInputError, match="not 2"):
        run.detector("energy", tpr=2)
    with pytest.raises(InvalidInputError, match="no device"):
        run.detector("energy", device="tpu")


def test_without_a_method_nothing_long_is_begun(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oodcli.workflows.recommend.choose", None)
    assert oodcli.load_run("tiny", store=made[0]).detector(device="cpu").method == "msp"
    found = oodcli.predict(files(made), store=made[0], device="cpu")
    wanted = oodcli.predict(files(made), "msp", store=made[0], device="cpu")
    np.testing.assert_array_equal(found.score, wanted.score)


def test_a_threshold_of_ones_own(made: tuple[Path, Path]) -> None:
    run = oodcli.load_run("tiny", store=made[0])
    low = run.detector("energy", threshold=-1e9, device="cpu")
    high = run.detector("energy", threshold=1e9, device="cpu")
    assert not low.predict(files(made)).ood.any()
    assert high.predict(files(made)).ood.all()
    assert high.threshold.given


def test_a_stored_detector_needs_no_training_set(made: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "copy")
    wanted = oodcli.predict(files(made), "knn", store=tmp_path / "copy", device="cpu")
    shutil.rmtree(tmp_path / "copy" / "images")
    shutil.rmtree(tmp_path / "copy" / "activations")
    again = oodcli.predict(files(made), "knn", store=tmp_path / "copy", device="cpu")
    np.testing.assert_array_equal(again.score, wanted.score)


def test_importing_the_package_is_free_and_its_names_are_there() -> None:
    code = (
        "import sys, oodcli\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert set(oodcli.__all__) <= set(dir(oodcli))\n"
        "from oodcli import predict, load_run\n"
        "assert 'torch' not in sys.modules\n"
        "from oodcli import Detector\n"
        "assert 'torch' in sys.modules\n"
        "try:\n"
        "    oodcli.nothing\n"
        "except AttributeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "module 'oodcli' has no attribute 'nothing'\n"
    for name in oodcli.__all__:
        assert getattr(oodcli, name)
