"""Preprocessing, network and detector as one graph, and that graph as an ONNX model."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from oodcli.data.decoding.bilinear import Matrices
from oodcli.errors import InvalidInputError
from oodcli.methods._traced import TracedBatch, traced
from oodcli.models import Network
from oodcli.models.graph import ActivationsOf
from oodcli.screening.detector import Detector
from oodcli.version import __version__

Input = Literal["uint8", "float32"]

# Outputs of a file by name, with their meaning.
OUTPUTS: Mapping[str, str] = {
    "logits": "logits that are scored",
    "class": "index of the predicted class",
    "probability": "softmax of that class",
    "score": "higher: more in-distribution",
    "verdict": "1: OOD, score < threshold",
}


class Screening(nn.Module):
    """The exported graph: preprocessing, network and detector.

    Parameters
    ----------
    network
        Network of the run.
    detector
        The method and its threshold.
    kind
        Data type of the input pixels.
    matrices
        Matrices that resize the images; None if they already have the size of the network.
    """

    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        network: Network,
        detector: Detector,
        *,
        kind: Input,
        matrices: Matrices | None,
    ) -> None:
        super().__init__()
        pre = detector.record.preprocess
        self.activations = ActivationsOf(network)
        self._score = traced(detector.fitted.detector)
        self._threshold = detector.threshold.value
        self._kind = kind
        self._matrices = matrices
        self.register_buffer("mean", torch.tensor(pre.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(pre.std).view(3, 1, 1))
        if matrices is not None:
            self.register_buffer("rows", torch.from_numpy(matrices.rows))
            self.register_buffer("columns", torch.from_numpy(matrices.columns))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return all outputs for images ``(n, 3, h, w)``."""
        values = self._scaled(images)
        logits, features, norms, predictions = self.activations((values - self.mean) / self.std)
        score = self._score(TracedBatch(logits, features, norms, predictions))
        minimum = self._threshold
        if score.dtype == torch.float32:
            minimum = round_up_to_float32(minimum)
        verdict = (~(score >= minimum)).to(torch.int64)
        chances = logits.softmax(dim=1).gather(1, predictions[:, None])[:, 0]
        return logits, predictions, chances, score.float(), verdict

    def _scaled(self, images: Tensor) -> Tensor:
        """Return pixels from 0 to 1 at the size of the network."""
        if self._matrices is None:
            return images if self._kind == "float32" else images.float() / 255
        pixels = images.double()
        if self._kind == "float32":
            pixels = (pixels * 255).round()
        if self._matrices.columns_first:
            resized = self.rows @ _to_8_bits(pixels @ self.columns.T)
        else:
            resized = _to_8_bits(self.rows @ pixels) @ self.columns.T
        return _to_8_bits(resized).float() / 255


def _to_8_bits(values: Tensor) -> Tensor:
    """Return values rounded and clipped like 8-bit pixels."""
    return (values + 0.5).floor().clamp(0, 255)


def round_up_to_float32(value: float) -> float:
    """Return the smallest float32 that is not below a number, so that comparisons agree."""
    near = np.float32(value)
    # Compared as Python floats: NumPy would first round the number to float32.
    return float(near if float(near) >= value else np.nextafter(near, np.float32(np.inf)))


def export_onnx(screening: Screening, kind: Input, size: tuple[int, int], network: str) -> Any:  # noqa: ANN401
    """Return the graph as an ONNX model.

    Parameters
    ----------
    screening
        The graph.
    kind, size
        Data type of the pixels, and height and width of the images.
    network
        Name of the network, for messages.

    Raises
    ------
    InvalidInputError
        If the network has an operation that ONNX does not support.
    """
    dtype = torch.uint8 if kind == "uint8" else torch.float32
    example = torch.zeros(3, 3, *size, dtype=dtype)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                screening.eval(),
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().partition("\n")[0]
        raise InvalidInputError(
            f"{network} cannot be written as an ONNX file ({reason}); use another network"
        ) from None
    assert program is not None  # it is None with other options
    return program.model_proto


def annotate(onnx: Any, model: Any, description: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Add metadata to a model.

    Parameters
    ----------
    onnx
        The module ``onnx``.
    model
        The model, which is changed in place.
    description
        The content of ``model.json``.
    """
    model.producer_name = "ood"
    model.producer_version = __version__
    model.doc_string = (
        f"{description['arch']} of run {description['run']} with {description['method']}"
    )
    names = ("kind", "created", "run", "arch", "network", "data", "method", "params", "threshold",
             "classes", "blocks", "preprocess")  # fmt: skip
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in ((name, description[name]) for name in names)
    }
    onnx.helper.set_model_props(model, {f"ood.{name}": text for name, text in texts.items()})
