"""What ``ood import`` takes for the images of a network, where from, and what it finds odd."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from tests.support.cli import Ood, tree

# A classifier of plain colours that needs no training: the largest of 2 c.x - |c| over the colours
# c, for the mean x of the channels.
COLOURS = {
    "blue": (0, 0, 1), "cyan": (0, 1, 1), "green": (0, 1, 0), "pink": (1, 0, 1), "red": (1, 0, 0),
    "yellow": (1, 1, 0),
}  # fmt: skip
NETWORK = """
import torch
from torch import nn

SIDES = []

class Colours(nn.Module):
    def __init__(self, classes, only=None):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU())
        self.head = nn.Linear(3, classes)
        self.only = only
        if only is not None:
            self.image_size = only

    def forward(self, x):
        SIDES.append(x.shape[-1])
        if self.only is not None:
            assert x.shape[-1] == self.only, f"wants {self.only}"
        return self.head(self.convs(x).mean(dim=(2, 3)))

def any_size(num_classes):
    return Colours(num_classes)

def only_48(num_classes):
    return Colours(num_classes, 48)

def small(num_classes):
    network = Colours(num_classes)
    network.pretrained_cfg = {
        "input_size": (3, 40, 40), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.8, "interpolation": "lanczos", "num_classes": num_classes,
    }
    return network

def nowhere(num_classes):
    class Nowhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(7, num_classes)

        def forward(self, x):
            if x.shape[-1] > 100:
                raise ValueError("too large")
            return self.head(x.flatten(1))

    return Nowhere()
"""


def photos(root: Path, *, height: int = 20, width: int = 24, n: int = 9) -> Path:
    """Write a test part of plain colours with some noise, a folder for each."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = root / "test" / name
        folder.mkdir(parents=True)
        for index in range(n):
            noise = rng.integers(0, 40, (height, width, 3))
            pixels = np.abs(255 * np.array(colour) - noise).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def colours_state(order: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Return the weights of the network above, its outputs in an order of the colours."""
    values = torch.tensor([COLOURS[name] for name in order or COLOURS], dtype=torch.float32)
    one = torch.eye(3)[:, :, None, None]
    return {
        "convs.0.weight": one, "convs.0.bias": torch.zeros(3), "convs.2.weight": one,
        "convs.2.bias": torch.zeros(3), "head.weight": 2 * values, "head.bias": -values.sum(dim=1),
    }  # fmt: skip


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the module of the network into the present folder, and its weights; return its name."""
    name = f"colours_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    torch.save(colours_state(), tmp_path / "colours.pt")
    return name


def record_of(ood: Ood, name: str) -> dict[str, object]:
    return json.loads(ood("runs", "show", name)[1])


# Where the size comes from


@pytest.mark.parametrize("folder", ["ilsvrc", "imagenet", "imagenet200", "cifar10"])
def test_the_size_does_not_depend_on_what_a_folder_is_called(
    ood: Ood, tmp_path: Path, colours: str, folder: str
) -> None:
    data = photos(tmp_path / folder, height=70, width=90, n=2)
    argv = ["import", "colours.pt", "--arch", f"{colours}:any_size", "--data", data]
    code, out, err = ood(*argv)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        f"error: the image size that {colours}:any_size was trained with is unknown, and the "
        f"images of {folder} are of 70 x 90 pixels; specify it: --image-size N, and --resize "
        "shorter-crop:SIDE if images were cropped after resizing"
    )
    code, out, err = ood(*argv, "--image-size", 64)
    assert code == 0, err
    record = record_of(ood, "colours")
    assert record["preprocess"]["size"] == [64, 64]
    assert record["preprocess"]["resize"] == "shorter-crop"
    assert record["imported"]["preprocess_from"]["size"] == "--image-size"


def test_small_images_keep_the_usual_size(ood: Ood, tmp_path: Path, colours: str) -> None:
    data = photos(tmp_path / "plain")
    code, _, err = ood("import", "colours.pt", "--arch", f"{colours}:any_size", "--data", data)
    assert code == 0, err
    lines = err.splitlines()
    assert "plain: images of 20 x 24 pixels" in lines
    assert "size 32 x 32: default for images of 20 x 24 pixels" in lines
    assert any(line.startswith("resize exact (") for line in lines)
    assert "filter bilinear: the default, because no other is specified" in lines
    assert (
        "mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5: not stated anywhere, so one half is assumed"
        in lines
    )
    assert "accuracy 100.00 % on 54 test images (chance 16.67 %)" in lines
    assert "warning" not in err


def test_a_network_that_names_its_size_gets_it(ood: Ood, tmp_path: Path, colours: str) -> None:
    data = photos(tmp_path / "plain", height=70, width=90, n=2)
    code, _, err = ood("import", "colours.pt", "--arch", f"{colours}:only_48", "--data", data)
    assert code == 0, err
    assert f"size 48 x 48: the network that {colours}:only_48 builds" in err
    assert record_of(ood, "colours")["preprocess"]["size"] == [48, 48]


def test_a_configuration_that_a_network_carries_is_read(
    ood: Ood, tmp_path: Path, colours: str
) -> None:
    data = photos(tmp_path / "plain", height=70, width=90, n=2)
    code, _, err = ood("import", "colours.pt", "--arch", f"{colours}:small", "--data", data)
    assert code == 0, err
    source = f"timm's configuration of the network that {colours}:small builds"
    record = record_of(ood, "colours")
    assert record["preprocess"] == {
        "size": [40, 40], "resize": "shorter-crop:50:lanczos", "filter": "lanczos",
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    }  # fmt: skip
    assert f"size 40 x 40: {source}" in err
    assert f"filter lanczos: {source}" in err
    came_from = record["imported"]["preprocess_from"]
    assert set(came_from) == {"size", "resize", "filter", "mean", "std"}
    assert set(came_from.values()) == {source}
    assert record["imported"]["as_published"] is True
    # At another size its margin means nothing, and is not said to be taken.
    argv = ["import", "colours.pt", "--arch", f"{colours}:small", "--data", data]
    code, _, err = ood(*argv, "--image-size", 48, "--name", "other")
    assert code == 0, err
    assert record_of(ood, "other")["preprocess"]["resize"] == "shorter-crop:lanczos"
    assert (
        f"{source}, without the side of shorter-crop:50, which applies to its own image size only"
        in err
    )


def test_a_mean_of_pixels_to_255_is_refused(ood: Ood, colours: str, tmp_path: Path) -> None:
    data = photos(tmp_path / "plain", height=70, width=90, n=2)
    argv = ["import", "colours.pt", "--arch", f"{colours}:small", "--data", data]
    code, out, err = ood(*argv, "--mean", "123.7,116.3,103.5", "--std", 58)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: --mean 123.7,116.3,103.5 is not between 0 and 1, the range of pixel values in "
        "ood; divide values for pixels from 0 to 255 by 255, also those of --std"
    )


@pytest.mark.parametrize(("side", "size"), [(20, [32, 32]), (100, [224, 224])])
def test_a_file_for_a_network_of_torchvision_is_used_as_its_published_weights_are(
    ood: Ood, tmp_path: Path, side: int, size: list[int]
) -> None:
    """With other classes it was trained further, or on small images from the start."""
    data = photos(tmp_path / "plain", height=side, width=side, n=2)
    torch.manual_seed(0)
    torch.save(models.resnet18(num_classes=6).state_dict(), tmp_path / "mine.pt")
    argv = ["import", tmp_path / "mine.pt", "--arch", "torchvision:resnet18", "--data", data]
    code, _, err = ood(*argv)
    assert code == 0, err
    preprocess = record_of(ood, "mine")["preprocess"]
    assert preprocess["size"] == size
    assert preprocess["resize"] == ("shorter-crop:256" if side == 100 else "exact")
    assert preprocess["mean"] == [0.485, 0.456, 0.406]
    assert preprocess["std"] == [0.229, 0.224, 0.225]
    source = "torchvision's configuration of resnet18 IMAGENET1K_V1"
    default = "the default, because no other is specified"
    assert f"filter bilinear: {source if side == 100 else default}" in err
    assert f"mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225: {source}" in err
    assert ood(*argv, "--mean", 0.4, "--name", "other")[0] == 0
    other = record_of(ood, "other")
    assert other["preprocess"]["mean"] == [0.4, 0.4, 0.4]
    assert other["preprocess"]["std"] == [0.229, 0.224, 0.225]
    assert other["imported"]["preprocess_from"]["mean"] == "--mean"


def test_the_file_names_of_torchvision_tell_its_sets_apart(tmp_path: Path) -> None:
    from oodcli.models import published_configuration

    found = published_configuration("torchvision:resnet50", tmp_path / "resnet50-11ad3fa6.pth")
    assert found is not None
    assert found.configuration.endswith("resnet50 IMAGENET1K_V2")
    assert found.resize == "shorter-crop:232"
    assert found.classes == 1000


@pytest.mark.parametrize(
    ("arch", "file", "size", "resize"),
    [
        ("swin_t", "swin_t-704ceda3.pth", 224, "shorter-crop:232"),
        ("regnet_y_16gf", "regnet_y_16gf_swag-43afe44d.pth", 384, "shorter-crop:384"),
    ],
)
def test_networks_of_the_literature_are_read_as_their_weights_want(
    tmp_path: Path, arch: str, file: str, size: int, resize: str
) -> None:
    from oodcli.models import published_configuration

    found = published_configuration(f"torchvision:{arch}", tmp_path / file)
    assert found is not None
    assert (found.size, found.resize, found.filter) == ((size, size), resize, "bicubic")


@pytest.mark.parametrize(
    ("option", "resize"),
    [
        ("shorter-crop:48", "shorter-crop:48:lanczos"),
        ("shorter-crop:48:bicubic", "shorter-crop:48:bicubic"),
        ("exact:bilinear", "exact"),
    ],
)
def test_a_filter_that_is_not_named_is_that_of_the_weights(
    ood: Ood, tmp_path: Path, colours: str, option: str, resize: str
) -> None:
    data = photos(tmp_path / "plain", height=70, width=90, n=2)
    argv = ["import", "colours.pt", "--arch", f"{colours}:small", "--data", data]
    code, _, err = ood(*argv, "--resize", option)
    assert code == 0, err
    record = record_of(ood, "colours")
    assert record["preprocess"]["resize"] == resize
    assert record["imported"]["as_published"] is False
    came_from = record["imported"]["preprocess_from"]
    assert came_from["resize"] == "--resize"
    configuration = f"timm's configuration of the network that {colours}:small builds"
    named = option != "shorter-crop:48"
    assert came_from["filter"] == ("--resize" if named else configuration)


def test_the_configuration_of_timm_is_read_for_a_file(ood: Ood, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    data = photos(tmp_path / "plain", height=70, width=90, n=1)
    torch.manual_seed(0)
    module = timm.create_model("test_efficientnet", num_classes=6)
    torch.save(module.state_dict(), tmp_path / "mine.pt")
    code, _, err = ood(
        "import", tmp_path / "mine.pt", "--arch", "timm:test_efficientnet", "--data", data
    )
    assert code == 0, err
    shown = module.pretrained_cfg
    preprocess = record_of(ood, "mine")["preprocess"]
    assert preprocess["size"] == list(shown["input_size"][1:])
    assert preprocess["mean"] == list(shown["mean"])
    assert preprocess["std"] == list(shown["std"])
    assert preprocess["filter"] == shown["interpolation"] == "bicubic"
    assert "filter bicubic: timm's configuration of test_efficientnet" in err


@pytest.mark.parametrize(
    ("content", "side"),
    [
        (
            {
                "architecture": "test_efficientnet", "num_classes": 6,
                "pretrained_cfg": {
                    "input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
                    "crop_pct": 0.75, "interpolation": "bilinear",
                },
            },
            96,
        ),
        ({"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 96, 96]}}, 160),
        ({"architecture": "test_efficientnet", "pretrained_cfg": {"input_size": "x"}}, 160),
        ([1, 2], 160),
    ],
)  # fmt: skip
def test_the_configuration_beside_a_file_of_timm_goes_first(
    tmp_path: Path, content: object, side: int
) -> None:
    pytest.importorskip("timm")
    from oodcli.models import published_configuration

    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(content))
    found = published_configuration("timm:test_efficientnet", tmp_path / "model.safetensors")
    assert found is not None
    assert found.size == (side, side)
    (tmp_path / "config.json").write_text("[" * 200_000)  # deeper than JSON is read
    other = published_configuration("timm:test_efficientnet", tmp_path / "model.safetensors")
    assert other is not None
    assert other.size == (160, 160)
    if side == 96:
        assert found.configuration == str(tmp_path / "config.json")
        assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert (found.resize, found.classes) == ("shorter-crop:128", 6)


# The network is followed at the size that it is used at


def test_a_network_is_followed_at_its_own_size_alone(
    ood: Ood, tmp_path: Path, colours: str
) -> None:
    data = photos(tmp_path / "plain")
    argv = ["import", "colours.pt", "--arch", f"{colours}:any_size", "--data", data]
    assert ood(*argv, "--image-size", 72)[0] == 0
    assert ood("score", "--method", "energy", "--ood", "uniform-noise")[0] == 0
    assert set(sys.modules[colours].SIDES) == {72}


def test_a_size_that_a_network_refuses_is_named(ood: Ood, tmp_path: Path, colours: str) -> None:
    data = photos(tmp_path / "plain")
    argv = ["import", "colours.pt", "--arch", f"{colours}:only_48", "--data", data]
    code, _, err = ood(*argv, "--image-size", 50)
    assert code == 1
    assert err.splitlines()[-1] == (
        f"error: {colours}:only_48 does not accept images of 50 x 50 pixels (wants 48); "
        "specify the size that it was trained with: --image-size N"
    )


def test_every_size_that_was_tried_is_named(colours: str) -> None:
    from oodcli.errors import InvalidInputError
    from oodcli.models import parse_architecture

    with pytest.raises(InvalidInputError) as error:
        parse_architecture(f"{colours}:nowhere")
    message = str(error.value)
    for side in (64, 224, 32, 28, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512):
        assert f"{side} x {side}" in message
    assert "224 x 224, 128 x 128, 160 x 160, 192 x 192, 240 x 240" in message
    assert "512 x 512: too large" in message
    assert "64 x 64: mat1 and mat2 shapes cannot be multiplied (2x12288 and 7x7)" in message


# The order of the classes


def rolled(names: list[str]) -> list[str]:
    return [*names[-1:], *names[:-1]]


def test_outputs_in_another_order_are_seen_and_named(
    ood: Ood, tmp_path: Path, colours: str
) -> None:
    data = photos(tmp_path / "plain")
    order = rolled(list(COLOURS))
    torch.save({"state_dict": colours_state(order), "best_acc": 99.5}, tmp_path / "rolled.pt")
    argv = ["import", "rolled.pt", "--arch", f"{colours}:any_size", "--data", data]
    code, _, err = ood(*argv)
    assert code == 0, err
    assert (
        "accuracy 0.00 % on 54 test images (chance 16.67 %; best_acc in the file: 99.50 %)" in err
    )
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: accuracy was 0.00 %, but best_acc in the file is 99.50 %: check normalisation, "
        "image size, and the order of the classes",
        "warning: accuracy was 0.00 %, no better than chance (16.67 %): the network, the size "
        "or normalisation of its images, or the order of its classes is wrong",
        "warning: accuracy was 0.00 %, but 100.00 % with the classes in another order (the outputs "
        "are shifted by 1; output 0, here 'blue', is 'yellow'): list them in the order of the "
        "outputs, one per line: --classes FILE",
    ]
    assert record_of(ood, "rolled")["imported"]["plausibility"] == {
        "part": "test", "images": 54, "accuracy": 0.0, "chance": pytest.approx(1 / 6),
        "stored": 0.995, "stored_name": "best_acc",
        "warnings": [line.removeprefix("warning: ") for line in warnings],
    }  # fmt: skip
    # Every command that judges by this network says so again.
    image = data / "test" / "red" / "0.png"
    code, _, err = ood("predict", image, "--method", "msp", "--run", "rolled")
    assert code == 0, err
    for line in warnings:
        again = line.removeprefix("warning: ")
        assert f"warning: when run rolled was imported, {again}" in err


def test_the_order_of_the_outputs_can_be_given(ood: Ood, tmp_path: Path, colours: str) -> None:
    data = photos(tmp_path / "plain")
    order = rolled(list(COLOURS))
    torch.save(colours_state(order), tmp_path / "rolled.pt")
    (tmp_path / "order.txt").write_text("\n".join(order))
    argv = ["import", "rolled.pt", "--arch", f"{colours}:any_size", "--data", data]
    code, _, err = ood(*argv, "--classes", "order.txt")
    assert code == 0, err
    assert "accuracy 100.00 % on 54 test images" in err
    assert "warning" not in err
    assert record_of(ood, "rolled")["class_names"] == order
    # The data are opened in that order again.
    code, out, err = ood("score", "--method", "msp", "--ood", "uniform-noise", "--format", "json")
    assert code == 0, err
    assert json.loads(out)["rows"][0]["id_accuracy"] == 1.0
    code, out, err = ood(
        "predict", data / "test" / "red" / "0.png", "--method", "msp", "--format", "jsonl"
    )
    assert code == 0, err
    assert json.loads(out)["class"] == "red"


def test_a_network_hardly_above_chance_is_said_to_be() -> None:
    from oodcli.training.plausibility import _near_chance

    assert "no better than chance" in next(_near_chance(0.0, 256, 0.001), "")
    # 5 of 500 images in 1,000 classes are more than chance, and yet nothing.
    assert "hardly better than chance (0.10 %)" in next(_near_chance(0.01, 500, 0.001), "")
    assert list(_near_chance(0.2, 500, 0.1)) == []
    assert list(_near_chance(0.6, 500, 0.5)) == []
    # Nothing is better than always naming the only class that the images are of.
    assert list(_near_chance(1.0, 500, 1.0)) == []
    assert list(_near_chance(0.9, 500, 1.0)) == []


def test_a_network_at_chance_is_said_to_be(ood: Ood, tmp_path: Path, colours: str) -> None:
    data = photos(tmp_path / "plain")
    state = colours_state()
    state["head.bias"] = torch.tensor([9.0, 0, 0, 0, 0, 0])
    torch.save(state, tmp_path / "one.pt")
    code, _, err = ood("import", "one.pt", "--arch", f"{colours}:any_size", "--data", data)
    assert code == 0, err
    assert "warning: accuracy was 16.67 %, no better than chance (16.67 %)" in err


def test_chance_is_that_of_all_images_where_only_some_are_tried(
    ood: Ood, tmp_path: Path, colours: str
) -> None:
    """Of 800 classes with one image each, 500 images are tried: 0.2 % of those are of one class."""
    generator = torch.Generator().manual_seed(0)
    state = colours_state()
    state["head.weight"] = torch.randn(800, 3, generator=generator)
    state["head.bias"] = torch.zeros(800)
    torch.save(state, tmp_path / "many.pt")
    images = np.random.default_rng(0).integers(0, 255, (800, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", test_images=images, test_labels=np.arange(800))
    code, _, err = ood(
        "import", "many.pt", "--arch", f"{colours}:any_size", "--data", tmp_path / "many.npz",
        "--name", "many",
    )  # fmt: skip
    assert code == 0, err
    found = record_of(ood, "many")["imported"]["plausibility"]
    assert found["images"] == 500
    assert found["chance"] == pytest.approx(1 / 800)
    assert "on 500 test images (chance 0.12 %)" in err


def test_wrong_normalisation_of_a_published_network_is_seen(
    ood: Ood, shared: Path, tmp_path: Path
) -> None:
    """ResNet-20 with 91.73 % on all test images, by the constants of ImageNet."""
    tiles = np.asarray(Image.open(shared / "data" / "cifar10" / "test.webp"))
    side = tiles.shape[1] // 32
    images = tiles.reshape(-1, 32, side, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)[::20]
    labels = np.repeat(np.arange(10), 1000)[::20]
    np.savez(tmp_path / "some.npz", test_images=images, test_labels=labels)
    checkpoint = next((shared / "data" / "checkpoints").glob("resnet20-*.th"))
    argv = ["import", checkpoint, "--arch", "resnet20", "--data", tmp_path / "some.npz"]
    code, _, err = ood(*argv, "--name", "half")
    assert code == 0, err
    found = record_of(ood, "half")["imported"]["plausibility"]
    assert found["images"] == 500
    assert found["stored"] == pytest.approx(0.9178, abs=1e-4)
    assert 0.78 < found["accuracy"] < 0.88
    assert len(found["warnings"]) == 2
    assert "but best_prec1 in the file is 91.78 %" in found["warnings"][0]
    assert "of ImageNet (--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)" in found["warnings"][1]
    code, _, err = ood(
        *argv, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--name", "right"
    )
    assert code == 0, err
    found = record_of(ood, "right")["imported"]["plausibility"]
    assert found["accuracy"] > 0.89
    assert found["warnings"] == []


# What can be refused first is refused first


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "nosuch"], "no data set 'nosuch'"),
        (["--data", "digits", "--std", "0"], "--std must be positive"),
        (["--data", "digits", "--image-size", "0"], "--image-size must be from 1 to 4096"),
        (["--data", "digits", "--resize", "wide"], "--resize must be exact"),
        (["--data", "digits", "--classes", "gone.txt"], "there is no file gone.txt"),
        (["--data", "digits", "--classes", "two.txt"], "two.txt does not name the 6 classes"),
        (["--data", "digits", "--val-fraction", "2"], "--val-fraction must be from 0"),
        (["--data", "digits", "--name", "a/b"], "'a/b' is not a valid name of a run"),
        (["--data", "uniform-noise"], "has no labels"),
    ],
)
def test_data_and_options_are_refused_before_torch_is_loaded(
    tmp_path: Path, more: list[str], message: str
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    (tmp_path / "two.txt").write_text("a\nb\n")
    script = (
        "import sys\n"
        "class Never:\n"
        "    def find_spec(self, name, *_):\n"
        "        assert name != 'torch', 'torch is loaded'\n"
        "sys.meta_path.insert(0, Never())\n"
        "from oodcli.cli.app import main\n"
        "main(sys.argv[1:])\n"
    )
    argv = ["import", "x.pt", "--arch", "timm:resnet18", "--store", "store", *more]
    done = subprocess.run(
        [sys.executable, "-c", script, *argv],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_weights_without_the_classes_are_refused_before_the_network_is_built(
    ood: Ood, tmp_path: Path, colours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tree(tmp_path / "colours", n=2)

    def never(*_args: object, **_more: object) -> None:
        raise AssertionError("the network is followed")

    monkeypatch.setattr("oodcli.models.external.find_structure", never)
    code, _, err = ood("import", "colours.pt", "--arch", f"{colours}:any_size", "--data", data)
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: the checkpoint colours.pt has no layer with an output for each of the 2 classes of "
        "colours; name the data it was trained on: --data; or all classes of the network, one per "
        "line in the order of its outputs: --classes FILE; or else, fit a linear layer (--probe), "
        "or use its features alone (--features-only)"
    )
    code, _, err = ood("import", "--pretrained", "--arch", "torchvision:resnet18", "--data", data)
    assert code == 1
    assert "the published weights of torchvision:resnet18 have 1000 classes" in err


def test_a_checkpoint_as_it_lies_about_is_imported_and_what_was_taken_is_said(
    ood: Ood, tmp_path: Path, colours: str
) -> None:
    data = photos(tmp_path / "colours")
    state = {f"net.{name}": tensor for name, tensor in colours_state().items()}
    other = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": other, "epoch": 3}, "best.pth.tar")
    argv = ("best.pth.tar", "--arch", f"{colours}:any_size", "--data", data)
    code, out, err = ood("import", *argv)
    assert (code, out) == (0, "best\n")
    assert "weights: state_dict; also present: state_dict_ema; to use another: --key" in err
    assert "names: 'net' removed from 6 tensors" in err
    assert "accuracy 100.00 %" in err
    code, _, err = ood("import", *argv, "--key", "optimizer")
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: best.pth.tar contains no state dict under 'optimizer'; possible --key: state_dict, "
        "state_dict_ema"
    )
    named = {f"p{number}": tensor for number, tensor in enumerate(colours_state().values())}
    torch.save(named, "plain")
    code, out, err = ood("import", "plain", *argv[1:], "--keys", "by-order")
    assert (code, out) == (0, "plain\n")
    assert "names: by order, 6 tensors of the same shapes: p0 as convs.0.weight" in err
    code, _, err = ood(
        "import", "--pretrained", "--arch", "torchvision:resnet18", "--data", data, "--key", "a"
    )
    assert code == 1
    assert "--key and --keys need a checkpoint file; give its path" in err
