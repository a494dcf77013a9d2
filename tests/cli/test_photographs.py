"""Photographs to train on are not brought to 32 x 32 pixels without a word."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.data.dataset import Dataset
from oodcli.data.formats.arrays import ArraySource
from oodcli.images import Part
from oodcli.models import Pretrained
from oodcli.training.preprocessing import sizing_for
from tests.support.cli import Ood, tree


def photographs(root: Path, *, height: int, width: int, n: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(("day", "night")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(n):
                pixels = rng.integers(0, 60, (height, width, 3)) + 150 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


SMALL = ["--arch", "resnet18:width=2", "--epochs", 1, "--batch-size", 6]


def test_large_images_are_trained_at_64_and_that_is_said(ood: Ood, tmp_path: Path) -> None:
    data = photographs(tmp_path / "photos", height=90, width=120)
    code, _, err = ood("train", "--data", data, *SMALL, "--name", "large")
    assert code == 0, err
    preprocess = json.loads(ood("runs", "show", "large")[1])["preprocess"]
    assert preprocess["size"] == [64, 64]
    assert preprocess["resize"] == "shorter-crop"
    lines = err.splitlines()
    assert "photos: images of 90 x 120 pixels" in lines
    assert "size 64 x 64: from the size of the images; to change it: --image-size N" in lines
    assert (
        "resize shorter-crop (the shorter side to 64, then the centre): default for photographs; "
        "keeps the aspect ratio; this keeps 75 % of the area and 50 % of the pixels there"
    ) in lines
    # What is judged is resized as what was trained on.
    code, _, err = ood("score", "--method", "energy", "--ood", "uniform-noise")
    assert code == 0, err


def test_small_images_are_trained_at_32_as_before(ood: Ood, tmp_path: Path) -> None:
    data = tree(tmp_path / "colours", n=3)
    code, _, err = ood("train", "--data", data, *SMALL, "--name", "small")
    assert code == 0, err
    preprocess = json.loads(ood("runs", "show", "small")[1])["preprocess"]
    assert preprocess["size"] == [32, 32]
    assert preprocess["resize"] == "exact"
    assert "colours: images of 20 x 24 pixels" in err.splitlines()


def test_images_that_keep_their_size_and_published_sets_are_not_spoken_of(
    ood: Ood, tmp_path: Path
) -> None:
    data = photographs(tmp_path / "tiny", height=32, width=32)
    for spec in (data, "digits"):
        code, _, err = ood("train", "--data", spec, *SMALL)
        assert code == 0, err
        assert "images of" not in err.replace(" images of tiny", "").replace("images of digits", "")


@pytest.mark.parametrize(
    ("arch", "side", "published", "size"),
    [
        ("resnet18", 8, None, 32),
        ("resnet18", 32, None, 32),
        ("resnet18", 63, None, 32),
        ("resnet18", 64, None, 64),
        ("resnet18", 500, None, 64),
        ("torchvision:resnet18", 63, None, 32),
        ("torchvision:resnet18", 150, None, 128),
        ("torchvision:resnet18", 500, 224, 224),
        ("torchvision:resnet18", 200, 299, 128),
        ("torchvision:resnet18", 500, 299, 299),
    ],
)
def test_the_default_goes_by_images_and_network(
    arch: str, side: int, published: int | None, size: int
) -> None:
    part = Part(ArraySource(np.zeros((4, side, side), dtype=np.uint8)), np.arange(4))
    dataset = Dataset("imagenet", {"train": part}, tuple("abcd"), "here", "imagenet/")
    shown = Pretrained(
        "", {}, size=None if published is None else (published, published), resize="shorter-crop:9"
    )
    found = sizing_for(
        "training", dataset, arch, published=shown, certain=False, image_size=None, resize=None
    )
    assert found.size == (size, size)
    assert found.resize == "exact"  # they are square
