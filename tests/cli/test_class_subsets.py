"""Networks of many classes on data that have some of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from oodcli.models import parse_architecture
from tests.support.cli import Ood, flat, tree

ARCH = "resnet18:width=2"
# The data have red and blue, in the order blue, red.
NAMES = ("n01 green", "n02 red", "n03 black", "n04 blue", "n05 white")


@pytest.fixture
def wide(tmp_path: Path) -> torch.nn.Module:
    """Write a network of five classes and their names; return the network."""
    torch.manual_seed(0)
    module = parse_architecture(ARCH).build(5).eval()
    torch.save(module.state_dict(), tmp_path / "wide.pt")
    (tmp_path / "names.txt").write_text("\n".join(name.split()[1] for name in NAMES))
    (tmp_path / "one").mkdir()
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one" / "1.png")
    return module


def logits_of(module: torch.nn.Module, image: Path) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(Image.open(image)).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        return module((pixels.float() / 255 - 0.5) / 0.5)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kept", ["data", "all"])
def test_logits_are_restricted_to_the_classes_of_the_data_or_not(
    ood: Ood, tmp_path: Path, wide: torch.nn.Module, kept: str
) -> None:
    data, odd = tree(tmp_path / "colours"), flat(tmp_path / "odd")
    more = [] if kept == "data" else ["--logits", "all"]
    code, out, err = ood(
        "import", tmp_path / "wide.pt", "--arch", ARCH, "--data", data, "--classes",
        tmp_path / "names.txt", "--name", kept, *more,
    )  # fmt: skip
    assert (code, out) == (0, f"{kept}\n"), err
    said = {
        "data": "restricted to the data's 2 of the network's 5 classes",
        "all": "all 5 of the network, of which the data have 2 classes",
    }[kept]
    assert f"logits: {said}" in " ".join(err.split())
    record = json.loads(ood("runs", "show", kept)[1])
    names = ["blue", "red"] if kept == "data" else [name.split()[1] for name in NAMES]
    assert record["class_names"] == names
    assert record["imported"]["logits"] == {"kept": kept, "classes": 2, "outputs": 5}
    weights = load_file(next(tmp_path.rglob(f"runs/{kept}/weights.safetensors")))
    own = wide.get_parameter("fc.weight")
    assert torch.equal(weights["fc.weight"], own[[3, 1]] if kept == "data" else own)
    # Labels and predictions are places among those names.
    logits = logits_of(wide, tmp_path / "one" / "1.png")
    logits = logits[:, [3, 1]] if kept == "data" else logits
    code, out, err = ood("predict", tmp_path / "one", "--method", "msp", "--format", "jsonl")
    assert code == 0, err
    verdict = json.loads(out)
    assert verdict["class"] == names[int(logits.argmax())]
    assert verdict["probability"] == pytest.approx(float(logits.softmax(1).max()), abs=1e-5)
    right = [
        names[int(where.argmax())] == name
        for name in ("blue", "red")
        for where in [predicted(wide, image, kept) for image in images(data / "test" / name)]
    ]
    code, out, err = ood("score", "--ood", odd, "--method", "msp", "--method", "knn")
    assert code == 0, err
    assert f"logits of run {kept}: {said}" in " ".join((out + err).split())
    assert f"accuracy {100 * np.mean(right):.2f} %" in " ".join((out + err).split())
    code, _, err = ood("export", "--method", "msp", "--output", tmp_path / "exported")
    assert code == 0, err


def images(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def predicted(module: torch.nn.Module, image: Path, kept: str) -> torch.Tensor:
    with Image.open(image) as opened:
        pixels = np.array(opened.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).float()
    with torch.no_grad():
        logits = module((tensor / 255 - 0.5) / 0.5)
    return logits[:, [3, 1]] if kept == "data" else logits  # type: ignore[no-any-return]


def test_the_first_words_of_names_may_be_the_classes(
    ood: Ood, tmp_path: Path, wide: torch.nn.Module
) -> None:
    data = tree(tmp_path / "colours")
    for old, new in (("blue", "n04"), ("red", "n02")):
        for part in ("train", "test"):
            (data / part / old).rename(data / part / new)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    code, _, err = ood(
        "import", tmp_path / "wide.pt", "--arch", ARCH, "--data", data, "--classes",
        tmp_path / "names.txt", "--name", "words",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(ood("runs", "show", "words")[1])["class_names"] == ["n02", "n04"]
    weights = load_file(next(tmp_path.rglob("runs/words/weights.safetensors")))
    assert torch.equal(weights["fc.weight"], wide.get_parameter("fc.weight")[[1, 3]])


def test_a_network_of_more_classes_than_are_named_is_refused(
    ood: Ood, tmp_path: Path, wide: torch.nn.Module
) -> None:
    assert wide.get_parameter("fc.weight").shape[0] == 5
    data = tree(tmp_path / "colours")
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    argv = ["import", tmp_path / "wide.pt", "--arch", ARCH, "--data", data]
    code, _, err = ood(*argv)
    assert code == 1
    assert "has 5 classes and colours has 2; name the data it was trained on: --data; or all" in (
        " ".join(err.split())
    )
    code, _, err = ood(*argv, "--classes", tmp_path / "names.txt")
    assert code == 1
    assert "has 5 classes and" in err
    assert "names.txt has 3; name" in " ".join(err.split())
