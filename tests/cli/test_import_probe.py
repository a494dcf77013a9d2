"""Encoders without a classifier, whose last layer is a linear probe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from oodcli.models import parse_architecture
from oodcli.training.linear_probe import fit_probe
from tests.support.cli import Ood, flat, tree

ARCH = "resnet18:width=2"


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return parse_architecture(ARCH).build(7).eval()


def features(module: nn.Module, folder: Path) -> Tensor:
    """Return what the last layer is given of all images, by the network's own forward pass."""
    rows: list[Tensor] = []
    last = module.get_submodule("fc")
    handle = last.register_forward_pre_hook(lambda _module, inputs: rows.append(inputs[0]))
    for image in sorted(folder.iterdir()):
        with Image.open(image) as opened:
            pixels = np.array(opened.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
        tensor = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).float()
        with torch.no_grad():
            module((tensor / 255 - 0.5) / 0.5)
    handle.remove()
    return torch.cat(rows)


@pytest.mark.parametrize("whole", [False, True])
def test_an_encoder_gets_a_probe_of_its_features(ood: Ood, tmp_path: Path, whole: bool) -> None:
    """With a projection head, as SupCon's files are, or with a classifier for other classes."""
    module = encoder()
    state = module.state_dict()
    if not whole:
        state = {f"encoder.module.{n}": t for n, t in state.items() if not n.startswith("fc.")}
        state |= {"head.0.weight": torch.randn(4, 16), "head.0.bias": torch.randn(4)}
    torch.save({"model": state}, tmp_path / "encoder.pth")
    data, odd = tree(tmp_path / "colours"), flat(tmp_path / "odd")
    argv = ["import", tmp_path / "encoder.pth", "--arch", ARCH, "--data", data]
    code, out, err = ood(*argv, "--probe")
    assert (code, out) == (0, "encoder\n"), err
    assert "fitting a linear probe, which becomes the last layer" in " ".join(err.split())
    assert json.loads(ood("runs", "show", "encoder")[1])["imported"]["last_layer"] == "linear probe"
    seen = [features(module, data / "train" / name) for name in ("blue", "red")]
    labels = torch.tensor([0] * len(seen[0]) + [1] * len(seen[1]))
    weight, bias = fit_probe(torch.cat(seen), labels, 2)
    weights = load_file(next(tmp_path.rglob("runs/encoder/weights.safetensors")))
    every = torch.cat(seen)
    torch.testing.assert_close(
        every @ weights["fc.weight"].T + weights["fc.bias"],
        every @ weight.T + bias,
        rtol=1e-2,
        atol=1e-2,
    )
    assert torch.equal(weights["conv1.weight"], module.get_parameter("conv1.weight"))
    code, out, err = ood("score", "--ood", odd, "--method", "msp", "--method", "knn")
    assert code == 0, err
    assert "the last layer of run encoder is a linear probe" in " ".join((out + err).split())


def test_a_probe_needs_training_images(ood: Ood, tmp_path: Path) -> None:
    torch.save(encoder().state_dict(), tmp_path / "encoder.pth")
    data = tree(tmp_path / "colours", parts=("test",))
    code, _, err = ood(
        "import", tmp_path / "encoder.pth", "--arch", ARCH, "--data", data, "--probe"
    )
    assert code == 1
    assert "has no training images to fit a linear probe on" in " ".join(err.split())
