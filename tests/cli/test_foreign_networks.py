"""Networks of other packages and of the user's own, from a checkpoint to scores."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision import models

from tests.support.cli import Ood, flat, tree

VIT = """
from torchvision.models import VisionTransformer

def small(num_classes, *, width=16):
    return VisionTransformer(
        image_size=64, patch_size=16, num_layers=3, num_heads=2, hidden_dim=width,
        mlp_dim=2 * width, num_classes=num_classes,
    )
"""


def test_a_resnet_of_torchvision_is_imported_and_scored(ood: Ood, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.resnet18(num_classes=2)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "mine.pt")
    data, odd = tree(tmp_path / "colours"), flat(tmp_path / "odd")
    code, out, err = ood(
        "import", tmp_path / "mine.pt", "--arch", "torchvision:resnet18", "--data", data,
        "--image-size", 64, "--resize", "shorter-crop:72",
    )  # fmt: skip
    assert (code, out) == (0, "mine\n"), err
    record = json.loads(ood("runs", "show", "mine")[1])
    assert record["arch"] == "torchvision:resnet18"
    assert record["preprocess"]["size"] == [64, 64]
    assert record["preprocess"]["resize"] == "shorter-crop:72"
    assert record["blocks"] == ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2", "4.1", "4.2"]
    argv = ["score", "--method", "featurenorm", "--method", "energy", "--ood", odd]
    code, out, err = ood(*argv, "--format", "json")
    assert code == 0, err
    assert {row["method"] for row in json.loads(out)["rows"]} == {"energy", "featurenorm"}
    assert "NormRatio chose block" in err
    code, _, err = ood(*argv, "--format", "json")
    assert "no forward pass" in err


def test_a_small_transformer_of_the_users_own_is_imported_and_scored(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small_vits.py").write_text(VIT)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = models.VisionTransformer(64, 16, 3, 2, 16, 32, num_classes=2)
    torch.save(module.state_dict(), tmp_path / "vit.pt")
    data, odd = tree(tmp_path / "colours"), flat(tmp_path / "odd")
    argv = ["import", tmp_path / "vit.pt", "--arch", "small_vits:small", "--data", data]
    code, _, err = ood(*argv, "--image-size", 32)
    assert code == 1
    assert "small_vits:small takes no images of 32 x 32 pixels" in err
    code, out, err = ood(*argv, "--image-size", 64)
    assert (code, out) == (0, "vit\n"), err
    shown = " ".join(err.split())
    assert "3 blocks (EncoderBlock) from encoder.layers.encoder_layer_0" in shown
    assert "with tokens as positions, the first 1 left out; last layer heads.head" in shown
    code, out, err = ood("score", "--ood", odd, "--format", "json")
    assert code == 0, err
    assert "featurenorm" in {row["method"] for row in json.loads(out)["rows"]}


def test_a_network_that_cannot_be_read_safely_is_refused(ood: Ood, tmp_path: Path) -> None:
    data = tree(tmp_path / "colours")
    torch.save(models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / "x.pt")
    code, _, err = ood(
        "import", tmp_path / "x.pt", "--arch", "torchvision:squeezenet1_1", "--data", data
    )
    assert code == 1
    assert "are not the output of a linear layer" in " ".join(err.split())


@pytest.mark.parametrize("more", [[], ["x.pt", "--pretrained"]])
def test_an_import_wants_a_checkpoint_or_published_weights(
    ood: Ood, tmp_path: Path, more: list[str]
) -> None:
    code, _, err = ood("import", *more, "--arch", "torchvision:resnet18", "--data", "digits")
    assert code == 2
    assert "name a checkpoint, or else --pretrained" in err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--image-size", "0", "--image-size must be from 1 to 4096, not 0"),
        (
            "--resize",
            "wide",
            "--resize must be exact, shorter-crop or shorter-crop:SIDE, not 'wide'",
        ),
        ("--std", "0", "--std must be positive"),
    ],
)
def test_an_import_refuses_images_that_cannot_be(
    ood: Ood, tmp_path: Path, option: str, value: str, message: str
) -> None:
    data = tree(tmp_path / "colours", n=2)
    torch.save(models.resnet18(num_classes=2).state_dict(), tmp_path / "mine.pt")
    argv = ["import", tmp_path / "mine.pt", "--arch", "torchvision:resnet18", "--data", data]
    code, _, err = ood(*argv, option, value)
    assert code == 1
    assert message in " ".join(err.split())


def published_file(path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = models.resnet18(num_classes=4).state_dict()
    torch.save(state, path)
    return state


# A learning rate that moves no weight, so that those at the end are those at the start.
STILL = ["--epochs", 1, "--lr", 1e-30, "--weight-decay", 0, "--batch-size", 16]


def test_training_starts_from_a_file_of_published_weights(ood: Ood, tmp_path: Path) -> None:
    published = published_file(tmp_path / "published.pth")
    data = tree(tmp_path / "colours")
    argv = ["train", "--data", data, "--arch", "torchvision:resnet18", "--pretrained", *STILL]
    argv += ["--init", tmp_path / "published.pth", "--image-size", 64, "--name", "tuned"]
    code, out, err = ood(*argv)
    assert (code, out) == (0, "tuned\n"), err
    record = json.loads(ood("runs", "show", "tuned")[1])
    assert record["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    assert record["preprocess"]["std"] == [0.229, 0.224, 0.225]
    assert record["preprocess"]["size"] == [64, 64]
    assert record["training"]["init"]["source"] == str(tmp_path / "published.pth")
    assert record["training"]["init"]["pretrained"] is True
    weights = load_file(next(tmp_path.rglob("runs/tuned/weights.safetensors")))
    assert weights["fc.weight"].shape == (2, 512)  # other classes, other last layer
    name = "layer4.1.conv2.weight"
    torch.testing.assert_close(weights[name], published[name], rtol=0, atol=1e-12)
    # The same command finds what it made.
    code, out, err = ood(*argv, "--resume")
    assert (code, out) == (0, "tuned\n"), err
    assert "is finished already" in err


def test_the_normalisation_of_published_weights_can_be_set(ood: Ood, tmp_path: Path) -> None:
    published_file(tmp_path / "published.pth")
    data = tree(tmp_path / "colours", n=4)
    code, _, err = ood(
        "train", "--data", data, "--arch", "torchvision:resnet18", "--pretrained", *STILL,
        "--init", tmp_path / "published.pth", "--image-size", 32, "--name", "own",
        "--set", "mean=0.1,0.2,0.3",
    )  # fmt: skip
    assert code == 0, err
    preprocess = json.loads(ood("runs", "show", "own")[1])["preprocess"]
    assert preprocess["mean"] == [0.1, 0.2, 0.3]
    assert preprocess["std"] == [0.229, 0.224, 0.225]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--pretrained needs a network that has published weights"),
        (["--arch", "resnet18"], "resnet18 has no published weights; name a file"),
        (["--arch", "resnet18", "--init", "gone.pt"], "there is no file gone.pt"),
        (
            ["--arch", "torchvision:resnet18", "--init", "IMAGENET1K_V3"],
            "no file or weights of torchvision:resnet18 'IMAGENET1K_V3'",
        ),
    ],
)
def test_training_refuses_published_weights_that_there_are_not(
    ood: Ood, tmp_path: Path, more: list[str], message: str
) -> None:
    data = tree(tmp_path / "colours", n=2)
    code, _, err = ood("train", "--data", data, "--pretrained", *more)
    assert code == 1
    assert message in " ".join(err.split())
    assert "no run yet" in ood("runs", "list")[1]  # nothing is left behind
