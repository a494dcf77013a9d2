"""Networks of other packages and of the user's own, from a checkpoint to scores."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
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
    assert "NormRatio selected block" in err
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
    assert "small_vits:small does not accept images of 32 x 32 pixels" in err
    code, out, err = ood(*argv, "--image-size", 64)
    assert (code, out) == (0, "vit\n"), err
    shown = " ".join(err.split())
    assert "3 blocks (EncoderBlock) from encoder.layers.encoder_layer_0" in shown
    assert "with tokens as positions, the first 1 skipped; last layer heads.head" in shown
    code, out, err = ood("score", "--ood", odd, "--format", "json")
    assert code == 0, err
    assert "featurenorm" in {row["method"] for row in json.loads(out)["rows"]}


ENDS = """
import torch
import torch.nn.functional as F
from torch import nn

class Body(nn.Module):
    def __init__(self, classes=2, channels=3):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.fc = nn.Linear(8, classes)
        self.other = nn.Linear(8, classes)

    def features(self, x):
        return self.convs(x).mean(dim=(2, 3))

class Cosine(nn.Linear):
    def forward(self, x):
        return 9 * F.linear(F.normalize(x), F.normalize(self.weight))

class Unit(Body):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.fc = Cosine(8, num_classes, bias=False)

    def forward(self, x):
        return self.fc(self.features(x))

class Heads(Body):
    def forward(self, x):
        x = self.features(x)
        return {"a": self.fc(x), "b": self.other(x)}

class One(Body):
    def __init__(self):
        super().__init__(classes=1, channels=1)

    def forward(self, x):
        return {"prob": self.fc(self.features(x)).squeeze(1).sigmoid()}
"""


@pytest.mark.parametrize(
    ("built", "more"),
    [("Unit", ()), ("Heads", ("--output", "b")), ("One", ("--mean", 0.4, "--std", 0.3))],
)
def test_networks_with_other_ends_are_imported_scored_used_and_exported(
    ood: Ood,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    built: str,
    more: tuple[object, ...],
) -> None:
    ort = pytest.importorskip("onnxruntime")
    name = f"other_ends_{built.lower()}"
    (tmp_path / f"{name}.py").write_text(ENDS)
    monkeypatch.syspath_prepend(tmp_path)
    made = getattr(importlib.import_module(name), built)
    torch.manual_seed(0)
    module = (made() if built == "One" else made(2)).eval()
    torch.save(module.state_dict(), tmp_path / "ends.pt")
    data, odd = tree(tmp_path / "colours"), flat(tmp_path / "odd")
    argv = ["import", tmp_path / "ends.pt", "--arch", f"{name}:{built}", "--data", data]
    code, out, err = ood(*argv, *more)
    assert (code, out) == (0, "ends\n"), err
    code, out, err = ood(
        "score", "--ood", odd, "--method", "msp", "--method", "featurenorm", "--method", "knn",
        "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    assert {row["method"] for row in json.loads(out)["rows"]} == {"msp", "featurenorm", "knn"}
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (tmp_path / "one").mkdir()
    Image.fromarray(pixels).save(tmp_path / "one" / "1.png")
    seen = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).float() / 255
    seen = (seen - 0.4) / 0.3 if built == "One" else (seen - 0.5) / 0.5
    with torch.no_grad():
        if built == "One":
            luma = 0.299 * seen[:, :1] + 0.587 * seen[:, 1:2] + 0.114 * seen[:, 2:]
            second = module(luma)["prob"]
            own = torch.stack([1 - second, second], dim=1)
        else:
            own = (module(seen)["b"] if built == "Heads" else module(seen)).softmax(dim=1)
    code, out, err = ood("predict", tmp_path / "one", "--method", "msp", "--format", "jsonl")
    assert code == 0, err
    verdict = json.loads(out)
    assert (
        verdict["class"] == sorted(each.name for each in (data / "train").iterdir())[own.argmax()]
    )
    assert verdict["probability"] == pytest.approx(float(own.max()), abs=1e-5)
    code, _, err = ood("export", "--method", "msp", "--output", tmp_path / "exported")
    assert code == 0, err
    session = ort.InferenceSession(
        tmp_path / "exported" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (probability,) = session.run(["probability"], {"images": pixels.transpose(2, 0, 1)[None]})
    assert probability[0] == pytest.approx(float(own.max()), abs=1e-5)


def test_a_network_that_cannot_be_read_safely_is_refused(ood: Ood, tmp_path: Path) -> None:
    data = tree(tmp_path / "colours")
    torch.save(models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / "x.pt")
    code, _, err = ood(
        "import", tmp_path / "x.pt", "--arch", "torchvision:squeezenet1_1", "--data", data
    )
    assert code == 1
    assert "are not the output of a linear layer" in " ".join(err.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "Missing argument 'CHECKPOINT': give a checkpoint, --pretrained or --arch hf:FOLDER."),
        (["x.pt", "--pretrained"], "give either a checkpoint or --pretrained, not both"),
    ],
)
def test_an_import_needs_a_checkpoint_or_published_weights(
    ood: Ood, more: list[str], message: str
) -> None:
    code, _, err = ood("import", *more, "--arch", "torchvision:resnet18", "--data", "digits")
    assert code == 2
    assert message in err


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
    assert "is already finished" in err


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
        (["--arch", "resnet18"], "resnet18 has no published weights; give a file"),
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
    assert "no runs yet" in ood("runs", "list")[1]  # nothing is left behind
