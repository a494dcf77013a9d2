"""``ood train --outliers``: what is refused, what is recorded, and what tables say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from oodcli.training import streaming
from tests.support.cli import Ood, flat, tree

TRAIN = (
    "train", "--arch", "resnet18:width=2", "--recipe", "featurenorm-resnet18", "--image-size", 16,
    "--epochs", 2, "--batch-size", 12,
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tree(tmp_path / "colours")


def test_what_cannot_be_trained_is_refused_before_anything_is_stored(
    ood: Ood, data: Path, tmp_path: Path
) -> None:
    noise = flat(tmp_path / "noise")
    for options, message in (
        (("--objective", "oe"), "objective oe is trained with outliers; give images that belong"),
        (
            ("--outliers", noise),
            "--outliers: objective cross-entropy is not trained with outliers",
        ),
        (
            ("--objective", "t2fnorm", "--outlier-batch-size", 4),
            "--outlier-batch-size: objective t2fnorm is not trained with outliers",
        ),
        (
            ("--objective", "mixoe", "--outliers", noise, "--outlier-batch-size", 4),
            "objective mixoe mixes every outlier with an ID image",
        ),
        (
            ("--objective", "ascood", "--outliers", "jigsaw"),
            "--outliers: objective ascood makes one outlier of every training image of a step",
        ),
        (
            ("--objective", "ascood:share=0.001"),
            "ascood:share=0.001 of 16 x 16 pixels is fewer than two",
        ),
        (("--objective", "oe", "--outliers", tmp_path / "gone"), "no folder or file"),
        (
            ("--objective", "oe", "--outliers", data / "train"),
            "all 24 images of the outliers train are training images of colours train",
        ),
    ):
        code, out, err = ood(*TRAIN, "--data", data, *options)
        assert (code, out) == (1, "")
        assert message in err
        assert len(err.strip().splitlines()[-1]) < 400
    runs = tmp_path / "store" / "runs"
    assert not runs.exists() or not list(runs.iterdir())


def test_outliers_are_recorded_and_named_in_every_table(
    ood: Ood, data: Path, tmp_path: Path
) -> None:
    noise = flat(tmp_path / "noise")
    Image.open(data / "train" / "red" / "03.png").save(noise / "red.png")
    code, out, err = ood(
        *TRAIN, "--data", data, "--objective", "oe", "--outliers", noise, "--name", "set",
        "--outlier-batch-size", 5,
    )  # fmt: skip
    assert (code, out.strip()) == (0, "set"), err
    assert "1 image of the 8 outliers noise is also among the training images" in err
    code, out, _ = ood(*TRAIN, "--data", data, "--objective", "mixoe", "--outliers", "jigsaw")
    assert code == 0
    made = out.strip()
    (facts,) = [json.loads(ood("runs", "show", "set")[1])]
    outliers = facts["training"]["outliers"]
    assert outliers["images"] == 8
    assert outliers["source"] == str(noise)
    assert len(outliers["digest"]) == 32
    assert facts["training"]["outliers_in_training"] == 1
    assert facts["recipe"]["outlier_batch_size"] == 5

    code, out, _ = ood("runs", "list")
    assert "Outliers" in out
    assert "mixoe" in out
    other = flat(tmp_path / "far", n=3)
    for run, text in (
        ("set", "run set was trained with outliers: noise test, 8 images, digest of pixels"),
        (made, f"run {made} was trained with outliers: jigsaw, made from its training images (an"),
    ):
        code, out, err = ood(
            "score", "--run", run, "--ood", noise, "--ood", other, "--method", "msp"
        )
        assert code == 0, err
        plain = " ".join(out.split())
        assert text in plain
        exposed = "noise: 8 images also among the outliers of the training" in plain
        assert exposed == (run == "set")
        report = json.loads(ood("report", "--run", run, "--format", "json")[1])
        assert report["runs"][0]["outliers"]["name"] == ("noise" if run == "set" else "jigsaw")

    code, out, err = ood(
        "score", "--run", "set", "--run", made, "--ensemble", "--ood", other, "--method", "msp"
    )
    assert code == 0, err
    assert "member set of set-ensemble was trained with outliers: noise" in " ".join(out.split())


def test_a_resumed_run_ends_as_if_it_had_not_been_interrupted(
    ood: Ood, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodcli.training.loop import Trainer

    noise = flat(tmp_path / "noise")
    job = (*TRAIN, "--data", data, "--objective", "oe", "--outliers", noise)
    assert ood(*job, "--name", "whole")[0] == 0
    train, calls = Trainer._epoch, []

    def cut(self: Trainer, epoch: int, *others: object) -> object:
        calls.append(epoch)
        if epoch == 2 and len(calls) == 2:
            raise KeyboardInterrupt
        return train(self, epoch, *others)

    monkeypatch.setattr(Trainer, "_epoch", cut)
    assert ood(*job, "--name", "cut")[0] != 0
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(noise / "0.png")
    code, _, err = ood("train", "--resume", "--run", "cut")
    assert code == 1
    assert "are not those that this run was started with" in err
    flat_again = flat(tmp_path / "again")
    (flat_again / "0.png").replace(noise / "0.png")
    assert ood("train", "--resume", "--run", "cut")[0] == 0
    assert calls == [1, 2, 2]
    first, second = (
        load_file(tmp_path / "store" / "runs" / name / "weights.safetensors")
        for name in ("whole", "cut")
    )
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


def test_streamed_outliers_give_the_same_weights(
    ood: Ood, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = flat(tmp_path / "noise")
    job = (*TRAIN, "--data", data, "--objective", "oe", "--outliers", noise, "--data-workers", 0)
    assert ood(*job, "--name", "held")[0] == 0
    monkeypatch.setattr(streaming, "MAX_BYTES_IN_MEMORY", 0)
    code, _, err = ood(*job, "--name", "streamed")
    assert code == 0
    assert "decoded on the fly" in err
    first, second = (
        load_file(tmp_path / "store" / "runs" / name / "weights.safetensors")
        for name in ("held", "streamed")
    )
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


def test_outliers_of_a_recipe_with_random_crops_are_cropped_from_their_originals(
    ood: Ood, data: Path, tmp_path: Path
) -> None:
    code, _, err = ood(
        "train", "--data", data, "--arch", "resnet18:width=2", "--recipe", "oe-imagenet200",
        "--image-size", 16, "--epochs", 1, "--batch-size", 12, "--set", "keep=last",
        "--outliers", flat(tmp_path / "noise"), "--outlier-batch-size", 5, "--data-workers", 0,
    )  # fmt: skip
    assert code == 0, err
    assert "outliers: noise test, 7 images" in err
