"""No command decodes an image twice, and training begins without a pass over its images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from oodcli.data.decoding import kept, prepare
from oodcli.data.decoding.gathering import Gathering
from oodcli.training import streaming
from tests.support.cli import Ood, flat, tree
from tests.support.decodes import Decodes

ONCE, TWICE, NEVER = {1}, {2}, {0}
CROPPING = ("--set", "augmentation=resized-crop,flip")


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Decodes:
    return Decodes(monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    # Noise, so that no two images are equal.
    return tree(tmp_path / "data")


def train(data: Path, *more: object) -> tuple[object, ...]:
    return (
        "train", "--data", data, "--arch", "resnet18:width=2", "--image-size", 16, "--epochs", 2,
        "--batch-size", 8, "--data-workers", 0, "--name", "m", *more,
    )  # fmt: skip


def stored(store: Path) -> dict[str, bytes]:
    """Return the files of all prepared images."""
    files = [file for file in (store / "images").rglob("*") if file.is_file()]
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


def test_random_crops_decode_once_an_epoch_and_the_images_are_stored_on_the_way(
    ood: Ood, tmp_path: Path, data: Path, decodes: Decodes
) -> None:
    far = flat(tmp_path / "far")
    code, _, err = ood(*train(data, *CROPPING))
    assert code == 0, err
    assert "reading data train" not in err
    assert decodes.of(data / "train") == TWICE
    assert decodes.of(data / "test") == ONCE
    gathered = stored(tmp_path / "store")
    assert len(gathered) == 6  # manifest, digests and pixels of training and test images
    decodes.clear()
    code, _, err = ood("score", "--method", "knn", "--method", "norm", "--ood", far)
    assert code == 0, err
    assert decodes.of(data) == NEVER
    assert decodes.of(far) == ONCE
    code, _, err = ood(*train(data, *CROPPING, "--check-images", "--store", tmp_path / "other"))
    assert code == 0, err
    assert "reading data train: 24 images" in err
    assert stored(tmp_path / "other") == gathered
    first, second = (
        load_file(tmp_path / store / "runs" / "m" / "weights.safetensors")
        for store in ("store", "other")
    )
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, second[name])


def test_images_that_do_not_fit_in_memory_are_decoded_once_and_then_read_from_the_store(
    ood: Ood, tmp_path: Path, data: Path, decodes: Decodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = train(data, "--val-fraction", 0.25, "--set", "augmentation=flip", "--set", "keep=best")
    code, _, err = ood(*line, "--store", tmp_path / "held")
    assert code == 0, err
    assert decodes.of(data) == ONCE
    decodes.clear()
    monkeypatch.setattr(streaming, "MAX_BYTES_IN_MEMORY", 100)
    code, _, err = ood(*line, "--objective", "supcon")
    assert code == 0, err
    assert "decoded on the fly" in err
    assert decodes.of(data) == ONCE
    assert stored(tmp_path / "store") == stored(tmp_path / "held")


def test_test_images_that_are_not_stored_are_decoded_once(
    ood: Ood, data: Path, decodes: Decodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "MAX_PIXELS_BYTES", 0)
    monkeypatch.setattr(streaming, "MAX_BYTES_IN_MEMORY", 100)
    code, _, err = ood(*train(data))
    assert code == 0, err
    assert "accuracy on 24 test images" in err
    assert decodes.of(data / "train") == TWICE  # once an epoch
    assert decodes.of(data / "test") == ONCE


def test_a_broken_image_is_named_in_the_first_epoch_or_before_it(
    ood: Ood, tmp_path: Path, data: Path
) -> None:
    broken = data / "train" / "red" / "07.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-40])
    line = train(data, *CROPPING)
    code, out, err = ood(*line)
    assert (code, out) == (1, "")
    assert "recipe" in err  # training had begun
    assert err.splitlines()[-1].endswith(
        "; replace it, or skip such images: --skip-unreadable; to check all images before "
        "training: --check-images"
    )
    assert "red/07.png: " in err
    assert not list((tmp_path / "store" / "runs").iterdir())
    assert len(list((tmp_path / "store" / "images").rglob("manifest.json"))) == 1  # of test images
    assert not list((tmp_path / "store" / "images").rglob(".*"))
    code, _, err = ood(*line, "--check-images")
    assert code == 1
    assert "recipe" not in err
    assert "red/07.png: " in err
    code, _, err = ood(*line, "--skip-unreadable")
    assert code == 0, err
    assert "training resnet18" in err
    assert "on 23 images" in err


def test_training_that_is_cut_in_its_first_epoch_resumes_and_gathers_again(
    ood: Ood, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    code, _, err = ood(*train(data, *CROPPING), "--store", whole)
    assert code == 0, err
    add: Callable[..., None] = Gathering.add
    calls = []

    def cut(self: Gathering, *batch: object) -> None:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, *batch)

    monkeypatch.setattr(Gathering, "add", cut)
    assert ood(*train(data, *CROPPING))[0] == 130
    assert not any("m/state" in str(file) for file in (tmp_path / "store").rglob("*"))
    code, _, err = ood("train", "--resume", "--run", "m", "--data-workers", 0)
    assert code == 0, err
    assert stored(tmp_path / "store") == stored(whole)
    wanted, found = (
        load_file(store / "runs" / "m" / "weights.safetensors")
        for store in (whole, tmp_path / "store")
    )
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_sets_of_the_same_images_are_decoded_once_by_score_and_run(
    ood: Ood, tmp_path: Path, data: Path, decodes: Decodes
) -> None:
    far = flat(tmp_path / "far")
    assert ood(*train(data))[0] == 0
    decodes.clear()
    sets = (far, f"again={far}", f"same={data / 'test'}")
    code, _, err = ood("score", "--method", "msp", *(x for each in sets for x in ("--ood", each)))
    assert code == 0, err
    assert decodes.of(far) == ONCE
    assert decodes.of(data) == NEVER
    decodes.clear()
    code, _, err = ood(
        "run", "--data", data, "--arch", "resnet18:width=2", "--epochs", 1, "--batch-size", 8,
        "--store", tmp_path / "third",
    )  # fmt: skip
    assert code == 0, err
    assert decodes.of(data / "train") == ONCE
    # One image of a sample tells that the images have colours, before those of other sets are read.
    assert sum(decodes.each(data / "test")) == 25


def test_importing_a_network_decodes_images_once(
    ood: Ood, tmp_path: Path, data: Path, decodes: Decodes
) -> None:
    assert ood(*train(data))[0] == 0
    weights = tmp_path / "store" / "runs" / "m" / "weights.safetensors"
    line = ("import", weights, "--data", data, "--arch", "resnet18:width=2", "--image-size", 16)
    decodes.clear()
    code, _, err = ood(*line, "--store", tmp_path / "imported")
    assert code == 0, err
    assert max(decodes.each(data)) == 1


def test_a_path_that_is_given_twice_is_decoded_and_judged_once(
    ood: Ood, tmp_path: Path, data: Path, decodes: Decodes
) -> None:
    assert ood(*train(data))[0] == 0
    far = flat(tmp_path / "far")
    line = ("--method", "msp", "--format", "csv")
    code, once, _ = ood("predict", far, data / "test", *line)
    decodes.clear()
    code, out, err = ood("predict", far, data / "test", f"{far}/", far, *line)
    assert code in (0, 3), err
    assert decodes.of(far) == decodes.of(data / "test") == ONCE
    assert out == once
    assert err.count(f"given more than once, and read once: {far}/, {far}\n") == 1
    code, out, err = ood("explain", far, far, "--method", "msp", "--format", "json")
    assert code == 0, err
    assert len(json.loads(out)["images"]) == 7


@pytest.fixture
def held_out(ood: Ood, data: Path) -> None:
    """Train a run with validation images."""
    assert ood(*train(data, "--val-fraction", 0.25))[0] == 0


SCORE = (
    "score", "--method", "odin", "--method", "gram", "--method", "rankfeat+energy",
    "--method", "featurenorm", "--method", "knn", "--method", "react", "--format", "json",
)  # fmt: skip
RECOMMEND = (
    "recommend", "--method", "msp", "--method", "knn", "--method", "featurenorm",
    "--format", "json",
)  # fmt: skip
PREDICT = ("predict", "--method", "iodin", "--format", "csv")


@pytest.mark.usefixtures("held_out")
@pytest.mark.parametrize("line", [SCORE, RECOMMEND, PREDICT], ids=lambda line: line[0])
def test_images_of_several_passes_that_are_not_stored_are_decoded_once(
    ood: Ood, tmp_path: Path, decodes: Decodes, monkeypatch: pytest.MonkeyPatch, line: tuple[str]
) -> None:
    data, far = tmp_path / "data", flat(tmp_path / "far")
    more = {"score": ("--ood", far), "recommend": (), "predict": (far,)}[line[0]]
    results = []
    for limit, share in ((10**9, 1.0), (0, 1.0), (0, 0.0)):
        for name in ("images", "activations", "runs/m/detectors"):
            shutil.rmtree(tmp_path / "store" / name, ignore_errors=True)
        monkeypatch.setattr(prepare, "MAX_PIXELS_BYTES", limit)
        monkeypatch.setattr(kept, "SHARE_OF_FREE", share)
        decodes.clear()
        code, out, err = ood(*line, *more)
        assert code in (0, 3), err
        parsed = json.loads(out) if line[-1] == "json" else {"rows": out}
        results.append([parsed.get("rows"), parsed.get("candidates")])
        counts = {*decodes.each(data), *decodes.each(far)}
        assert (max(counts) == 1) == (share == 1)
        assert ("more than half of the" in err) == (share == 0)
        assert ("are decoded again for each further pass" in err) == (share == 0)
        assert bool(list((tmp_path / "store" / "images").rglob("*.npy"))) == (limit > 0)
    assert any(results[0])
    assert results[1] == results[2] == results[0]
