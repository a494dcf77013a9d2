"""Small networks as ONNX files."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block; the first of a stage has no shortcut."""

    def __init__(self, width: int, *, skip: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.bn1(self.conv1(x)).relu())
        return (y + x if self.skip else y).relu()


class Tiny(nn.Module):
    """A network with four residual blocks, the last one of them behind a plain one."""

    def __init__(self, classes: int = 2, *, channels: int = 3, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.layers = nn.Sequential(*(Block(width, skip=k != 2) for k in range(4)))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.stem(x).relu()).mean(dim=(2, 3)))


def tiny(seed: int = 0, **kinds: Any) -> nn.Module:
    """Return such a network with random weights, its normalisation with statistics of noise."""
    torch.manual_seed(seed)
    module = Tiny(**kinds)
    with torch.no_grad():
        module(torch.randn(16, kinds.get("channels", 3), 16, 16))
    return module.eval()


def write(
    module: nn.Module,
    path: Path,
    *,
    side: int = 16,
    channels: int = 3,
    batch: int | None = None,
    new: bool = False,
    opset: int = 13,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Path:
    """Write a network as an ONNX file.

    Parameters
    ----------
    batch
        The number of images in the graph; any if None.
    new
        Whether the exporter of torch.export writes it.
    """
    images = torch.zeros(batch or 2, channels, side, side, dtype=dtype)
    images = images.permute(0, 2, 3, 1) if channels_last else images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if new:
            rows = None if batch else ({0: torch.export.Dim("rows")},)
            torch.onnx.export(
                module, (images,), path, dynamo=True, dynamic_shapes=rows, verbose=False
            )
            return path
        stream = io.BytesIO()
        torch.onnx.export(
            module, (images,), stream, dynamo=False, opset_version=opset, input_names=["pixels"],
            dynamic_axes=None if batch else {"pixels": {0: "rows"}},
        )  # fmt: skip
    path.write_bytes(stream.getvalue())
    return path
