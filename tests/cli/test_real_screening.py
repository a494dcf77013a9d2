"""Explanations and clusters of real images by a published network."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.cli import Ood


@pytest.fixture
def resnet20(ood: Ood, shared: Path, tmp_path: Path) -> Path:
    """Import ResNet-20 with 500 test images of CIFAR-10 and no training images."""
    tiles = np.asarray(Image.open(shared / "data" / "cifar10" / "test.webp"))
    side = tiles.shape[1] // 32
    images = tiles.reshape(-1, 32, side, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)[::20]
    labels = np.repeat(np.arange(10), 1000)[::20]
    np.savez(tmp_path / "some.npz", test_images=images, test_labels=labels)
    checkpoint = next((shared / "data" / "checkpoints").glob("resnet20-*.th"))
    argv = ["import", checkpoint, "--arch", "resnet20", "--data", tmp_path / "some.npz"]
    code, _, err = ood(*argv, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
    assert code == 0, err
    return shared / "data"


def test_without_training_images_what_needs_none_is_explained(
    ood: Ood, resnet20: Path, tmp_path: Path
) -> None:
    digits = np.load(resnet20 / "svhn_crops.npz")["images"]
    Image.fromarray(digits[3]).save(tmp_path / "digit.png")
    argv = ("explain", tmp_path / "digit.png", "--method", "msp", "--output", tmp_path / "why")
    code, out, err = ood(*argv, "--format", "json")
    assert code == 0, err
    (image,) = json.loads(out)["images"]
    assert [each["method"] for each in image["methods"]] == ["msp", "energy"]
    assert image["neighbours"] == []
    assert image["region"] is None
    assert image["block"]["selected_by"] == "last"
    assert image["block"]["id_images"] == 50
    assert np.shape(image["block"]["energy"]) == (8, 8)
    assert image["typical"]["class"] == image["class"]
    for name in ("knn", "vim", "featurenorm", "regions"):
        assert any(each.startswith(f"{name}:") for each in image["missing"]), name
    assert (tmp_path / "why" / "digit.png").is_file()


def test_clusters_of_real_images_match_their_sources(
    ood: Ood, resnet20: Path, tmp_path: Path
) -> None:
    from sklearn.metrics import adjusted_rand_score

    files = []
    for name in ("svhn_crops", "dtd10_32", "sun_resize32"):
        images = np.load(resnet20 / f"{name}.npz")["images"]
        np.savez(tmp_path / f"{name}.npz", images=images[:: len(images) // 200][:200])
        files.append(tmp_path / f"{name}.npz")
    argv = ("--method", "msp", "--threshold", 1e9, "--output", tmp_path / "mixed.csv")
    assert ood("predict", *files, *argv)[0] == 0
    code, out, err = ood("cluster", tmp_path / "mixed.csv", "--clusters", 3, "--format", "json")
    assert code == 0, err
    images = json.loads(out)["images"]
    sources = [Path(image["path"].split("[")[0]).stem for image in images]
    assert len(images) == 600
    # 0.47 with all images of the three sets.
    assert adjusted_rand_score(sources, [image["cluster"] for image in images]) > 0.35
