"""The reference network on real images: what published code computed, computed again.

Takes some minutes; run on request: ``python -m pytest -m slow tests/e2e/test_reference.py``.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Ood = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.slow

# FPR95 / AUROC in percent; ID: the first 200 test images of each class of CIFAR-10.
TABLE = {
    "msp": ((71.5, 88.83), (74.0, 81.53), (82.0, 79.68), (75.1, 81.30)),
    "maxlogit": ((66.5, 90.42), (73.7, 84.03), (70.7, 83.89), (71.2, 83.78)),
    "energy": ((67.1, 90.08), (75.1, 83.94), (67.3, 84.35), (68.8, 83.88)),
    "featurenorm:block=5": ((11.7, 97.46), (23.6, 93.74), (74.5, 78.31), (84.3, 65.84)),
    "featurenorm:block=6": ((6.3, 98.78), (23.7, 93.85), (63.1, 82.29), (80.0, 70.19)),
    "featurenorm:block=7": ((5.1, 98.91), (29.2, 92.69), (74.7, 77.84), (76.7, 75.22)),
}
SETS = ("svhn_crops", "dtd10_32", "sun_resize32", "cifar100")
# MSP / Energy AUROC of ResNet-20 with ID = all 10,000 test images of CIFAR-10.
RESNET20 = {
    "svhn_crops": (88.94, 88.39),
    "dtd10_32": (87.79, 89.91),
    "sun_resize32": (87.81, 92.08),
}


def tiles(path: Path) -> np.ndarray:
    """Cut a grid of 32×32 images, row by row."""
    from PIL import Image

    grid = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = grid.shape[0] // 32, grid.shape[1] // 32
    parts = grid.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2)
    return parts.reshape(-1, 32, 32, 3)


@pytest.fixture(scope="module")
def images(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the image sets of the reference's README as arrays."""
    root = tmp_path_factory.mktemp("images")
    folder = shared / "data" / "cifar10"
    train = np.concatenate([tiles(p) for p in sorted(folder.glob("train_*.webp"))])
    train = train.reshape(10, 5000, 32, 32, 3)  # class after class
    test = tiles(folder / "test.webp")
    np.savez(
        root / "cifar10-part.npz",
        train_images=train[:, :500].reshape(-1, 32, 32, 3),
        train_labels=np.repeat(np.arange(10), 500),
        val_images=train[:, 500:600].reshape(-1, 32, 32, 3),
        val_labels=np.repeat(np.arange(10), 100),
        test_images=test.reshape(10, 1000, 32, 32, 3)[:, :200].reshape(-1, 32, 32, 3),
        test_labels=np.repeat(np.arange(10), 200),
    )
    np.savez(
        root / "cifar10-test.npz", test_images=test, test_labels=np.repeat(np.arange(10), 1000)
    )
    for name in SETS[:3]:
        with np.load(shared / "data" / f"{name}.npz") as stored:
            np.savez(root / f"{name}.npz", images=stored["images"][:1000])
    np.savez(root / "cifar100.npz", images=tiles(shared / "data" / "cifar100" / "test.webp")[::10])
    return root


def test_the_reference_network_gives_the_published_table(
    ood: Ood, shared: Path, images: Path, tmp_path: Path
) -> None:
    checkpoint = shared / "reference" / "resnet18_cifar10.pt"
    data = images / "cifar10-part.npz"
    argv = ["import", checkpoint, "--arch", "resnet18:stem_padding=2", "--data", data]
    assert ood(*argv, "--name", "reference")[0] == 0
    chosen = json.loads(ood("normratio", "--format", "json")[1])
    assert chosen["selected"] == 6
    assert chosen["clear"] is True
    assert chosen["n_images"] == 5000

    export = tmp_path / "scores.npz"
    names = (*TABLE, "msp:scale=probability")
    methods = [piece for name in names for piece in ("--method", name)]
    sets = [piece for name in SETS for piece in ("--ood", images / f"{name}.npz")]
    code, out, err = ood("score", *methods, *sets, "--format", "json", "--export", export)
    assert code == 0, err
    rows = {(row["method"], row["dataset"]): row for row in json.loads(out)["rows"]}
    for method, cells in TABLE.items():
        for name, (fpr95, auroc) in zip(SETS, cells, strict=True):
            got = rows[method, name]
            assert (round(100 * got["fpr95"], 1), round(100 * got["auroc"], 2)) == (fpr95, auroc)
    assert rows["msp", "svhn_crops"]["id_accuracy"] == 0.877

    with np.load(export) as ours, np.load(shared / "reference" / "scores.npz") as theirs:
        for method in ("msp:scale=probability", "maxlogit", "energy"):
            published = method.partition(":")[0]
            for ours_name, name in (("cifar10-part", "test"), *((n, n) for n in SETS[:2])):
                np.testing.assert_allclose(
                    ours[f"{method}/{ours_name}"], theirs[f"{published}/{name}"], rtol=1e-4
                )
        with np.load(shared / "reference" / "activations.npz") as stored:
            for block in (5, 6, 7):
                for name in SETS:
                    wanted = stored[f"{name}/block_norms"][:, block]
                    got = ours[f"featurenorm:block={block}/{name}"]
                    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_incoming_images_get_the_published_scores(
    ood: Ood, shared: Path, images: Path, tmp_path: Path
) -> None:
    checkpoint = shared / "reference" / "resnet18_cifar10.pt"
    data = images / "cifar10-part.npz"
    argv = ["import", checkpoint, "--arch", "resnet18:stem_padding=2", "--data", data]
    assert ood(*argv, "--name", "reference")[0] == 0
    code, out, err = ood(
        "predict", images / "svhn_crops.npz", "--method", "energy", "--format", "jsonl",
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "of 1,000 val images of cifar10-part" in err
    rows = [json.loads(line) for line in out.splitlines()]
    with np.load(shared / "reference" / "scores.npz") as theirs:
        np.testing.assert_allclose(
            [row["score"] for row in rows], theirs["energy/svhn_crops"], rtol=1e-4
        )
    with np.load(shared / "reference" / "activations.npz") as stored:
        labels = stored["svhn_crops/logits"].argmax(axis=1)
    assert np.mean([int(row["class"]) for row in rows] == labels) >= 0.999


def test_a_published_resnet20_gives_its_accuracy_and_areas(
    ood: Ood, shared: Path, images: Path
) -> None:
    """The areas were measured on all images of a set; here on its first 1,000."""
    checkpoint = next((shared / "data" / "checkpoints").glob("resnet20-*.th"))
    code, _, err = ood(
        "import", checkpoint, "--arch", "resnet20", "--data", images / "cifar10-test.npz",
        "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225",
    )  # fmt: skip
    assert code == 0, err
    sets = [piece for name in RESNET20 for piece in ("--ood", images / f"{name}.npz")]
    code, out, err = ood(
        "score", "--method", "msp", "--method", "energy", *sets, "--format", "json"
    )
    assert code == 0, err
    rows = {(row["method"], row["dataset"]): row for row in json.loads(out)["rows"]}
    assert rows["msp", "svhn_crops"]["id_accuracy"] == 0.9173
    for name, areas in RESNET20.items():
        for method, area in zip(("msp", "energy"), areas, strict=True):
            assert 100 * rows[method, name]["auroc"] == pytest.approx(area, abs=1.0)
