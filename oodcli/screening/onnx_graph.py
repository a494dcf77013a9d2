"""Preprocessing, network and detector as one graph, and that graph as an ONNX model."""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from oodcli.data.decoding.bilinear import Matrices
from oodcli.errors import InvalidInputError
from oodcli.methods._traced import TracedBatch, traced
from oodcli.models import Network
from oodcli.models.graph import ActivationsOf, ActivationsOfMaps
from oodcli.models.onnx_network import OnnxForm, OnnxNetwork
from oodcli.models.outputs import luma
from oodcli.screening.detector import Detector
from oodcli.screening.onnx_merging import LEAST_OPSET, Link, merged, opset_of, with_opset
from oodcli.store.runs import Run
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


# Those that need a classifier.
_OF_CLASSIFIER = ("logits", "class", "probability")


def outputs_of(record: Run) -> Mapping[str, str]:
    """Return what the file of a run gives, by name: without a classifier, score and verdict alone.

    Parameters
    ----------
    record
        Of the run.
    """
    kept = {name: text for name, text in OUTPUTS.items() if name not in _OF_CLASSIFIER}
    return OUTPUTS if record.outputs else kept


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
        closed = network.spec.architecture.closed
        self.network = network
        self._classifies = detector.record.outputs > 0
        self.outputs = list(outputs_of(detector.record))
        self.activations = (ActivationsOfMaps if closed else ActivationsOf)(network)
        self._score = traced(detector.fitted.detector)
        self._threshold = detector.threshold.value
        self._kind = kind
        self._matrices = matrices
        self.register_buffer("mean", torch.tensor(pre.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(pre.std).view(3, 1, 1))
        if matrices is not None:
            self.register_buffer("rows", torch.from_numpy(matrices.rows))
            self.register_buffer("columns", torch.from_numpy(matrices.columns))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return all outputs for images ``(n, 3, h, w)``, in the order of :func:`outputs_of`."""
        return self.judged(*self.activations(self.normalised(images)))

    def normalised(self, images: Tensor) -> Tensor:
        """Return what the network is given of images."""
        return (self._scaled(images) - self.mean) / self.std

    def judged(
        self, logits: Tensor, features: Tensor, norms: Tensor, predictions: Tensor
    ) -> tuple[Tensor, ...]:
        """Return all outputs from the activations of images."""
        score = self._score(TracedBatch(logits, features, norms, predictions))
        minimum = self._threshold
        if score.dtype == torch.float32:
            minimum = round_up_to_float32(minimum)
        verdict = (~(score >= minimum)).to(torch.int64)
        if not self._classifies:
            return score.float(), verdict
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
    screening.eval()
    if screening.network.spec.architecture.closed:
        return _around_graph(screening, example, network)
    return _exported(screening, (example,), ["images"], screening.outputs, network)


def _exported(
    module: nn.Module,
    examples: Sequence[Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    network: str,
    *,
    opset: int | None = None,
) -> Any:  # noqa: ANN401 - a ModelProto
    """Return a module as an ONNX model that takes rows in any number."""
    batch = torch.export.Dim("batch")
    shapes: Any = tuple({0: batch} for _ in examples)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # All rows are as many, which is what is wanted.
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            program = torch.onnx.export(
                module,
                tuple(examples),
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes if len(examples) == 1 else (shapes[0], shapes[1:]),
                opset_version=opset,
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


class _Before(nn.Module):
    """Images as a graph takes them."""

    def __init__(self, screening: Screening, form: OnnxForm) -> None:
        super().__init__()
        self._screening = screening
        self._form = form

    def forward(self, images: Tensor) -> Tensor:
        ready = self._screening.normalised(images)
        ready = luma(ready) if self._form.channels == 1 else ready
        return ready.permute(0, 2, 3, 1) if self._form.channels_last else ready


class _After(nn.Module):
    """All outputs from what a graph gives."""

    def __init__(self, screening: Screening) -> None:
        super().__init__()
        self._screening = screening

    def forward(self, features: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        return self._screening.judged(*self._screening.activations(features, *maps))


def _around_graph(screening: Screening, example: Tensor, name: str) -> Any:  # noqa: ANN401
    """Return the network's own graph with all that goes before and after it."""
    import onnx

    module = screening.network.module
    assert isinstance(module, OnnxNetwork)  # no other network is closed
    form = module.form
    graph = onnx.load_model_from_string(module.graph.numpy().tobytes())
    opset = max(LEAST_OPSET, opset_of(graph))
    before, after = _Before(screening, form).eval(), _After(screening).eval()
    with torch.no_grad():
        ready = before(example)
        values = module.as_computed(ready.permute(0, 3, 1, 2) if form.channels_last else ready)
    blocks = [each.value for each in form.blocks]
    names = ["features", *(f"map{place}" for place in range(len(blocks)))]
    made = [values[value] for value in (form.features, *blocks)]
    parts = {
        "before": _exported(before, (example,), ["images"], ["ready"], name, opset=opset),
        "network": with_opset(graph, opset, where=name),
        "after": _exported(after, made, names, screening.outputs, name, opset=opset),
    }
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
    links = [
        Link("images", "before/images", None),
        Link("before/ready", f"network/{form.image}", kind),
        *(
            Link(f"network/{value}", f"after/{read}")
            for value, read in zip((form.features, *blocks), names, strict=True)
        ),
        *(Link(f"after/{output}", output, None) for output in screening.outputs),
    ]
    batch: int | str = form.batch or "batch"
    given = onnx.helper.make_tensor_value_info(
        "images",
        onnx.helper.np_dtype_to_tensor_dtype(np.dtype(str(example.dtype).partition(".")[2])),
        [batch, *example.shape[1:]],
    )
    outputs = []
    for each in parts["after"].graph.output:
        each.type.tensor_type.shape.dim[0].Clear()
        outputs.append(each)
    return merged(onnx, parts, links, [given], outputs)


def batch_of(network: Network) -> int | None:
    """Return how many images a file takes at a time; None for any number."""
    module = network.module
    return module.form.batch if isinstance(module, OnnxNetwork) else None


def is_half(network: Network) -> bool:
    """Return whether a network computes in float16."""
    module = network.module
    return isinstance(module, OnnxNetwork) and module.form.dtype == "float16"


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
