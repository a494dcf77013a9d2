"""A network that exists only as an ONNX graph, as one module of torch.

Features and maps are computed in ONNX Runtime; the last layer is an ordinary linear layer, and an
empty module stands for each block, through which its map goes. So a pass of scoring hooks it like
every other network; what it cannot do is to change a map, or to give gradients.
"""

import copy
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import reason_of
from oodcli.models.architecture import Architecture
from oodcli.models.layout import Layout
from oodcli.models.onnx_anatomy import OnnxAnatomy
from oodcli.models.onnx_files import MAX_BYTES, onnx_package
from oodcli.models.onnx_graph import new_session
from oodcli.models.outputs import convert_input_to_grey
from oodcli.text import printable

ONNX = "onnx"
HEAD = "head"
GRAPH = "graph"
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_REASON_LETTERS = 200


@dataclass(frozen=True)
class OnnxBlock:
    """A block of a graph.

    Parameters
    ----------
    name
        Its name.
    value
        The value of the graph that is its map.
    kind, prefix
        As in :class:`oodcli.models.layout.Layout`.
    """

    name: str
    value: str
    kind: Any
    prefix: int


@dataclass(frozen=True)
class OnnxForm:
    """What has to be known of a graph to run it; it is stored with the weights.

    Parameters
    ----------
    image
        Name of its input.
    dtype
        Type of the numbers that it takes.
    batch
        How many images it takes at a time; None for any number.
    channels
        3, or 1 where it takes the luma of images.
    channels_last
        Whether channels come last in its input.
    side
        Height and width of the images that it was tried with, in pixels.
    features
        The value that the last layer reads.
    width
        Length of a feature.
    size
        Bytes of the graph.
    blocks
        Its blocks in forward order.
    """

    # Flat: the fields of a JSON object.
    image: str
    dtype: str
    batch: int | None
    channels: int
    channels_last: bool
    side: int
    features: str
    width: int
    size: int
    blocks: tuple[OnnxBlock, ...]

    @classmethod
    def of(cls, anatomy: OnnxAnatomy, size: int) -> Self:
        """Return what was found in a graph of so many bytes."""
        given, plain = anatomy.given, Layout()
        layouts = {name: anatomy.layouts.get(name, plain) for name in anatomy.blocks}
        return cls(
            given.name,
            given.kind,
            anatomy.batch,
            given.channels,
            given.channels_last,
            anatomy.side,
            anatomy.end.features,
            anatomy.end.weight.shape[1],
            size,
            tuple(
                OnnxBlock(name, value, layouts[name].kind, layouts[name].prefix)
                for name, value in anatomy.blocks.items()
            ),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        CorruptArtifactError
            If it is something else.
        """
        try:
            content = json.loads(text)
            blocks = tuple(OnnxBlock(**each) for each in content.pop("blocks"))
            return cls(**content, blocks=blocks)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise CorruptArtifactError(
                "the description of its ONNX graph is damaged; remove the run and import it again"
            ) from None

    def to_json(self) -> str:
        """Return it as JSON text, always the same."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def values(self) -> Sequence[str]:
        """The values that a pass needs, each once."""
        return list(dict.fromkeys((self.features, *(each.value for each in self.blocks))))


class OnnxNetwork(nn.Module):
    """An ONNX graph with a last layer of torch.

    Parameters
    ----------
    form
        What has to be known of the graph.
    num_classes
        Rows of the last layer.

    Notes
    -----
    The graph is a buffer, so that it is stored, sealed and told apart like weights. It stays on the
    CPU; copies share it, and the sessions of ONNX Runtime that it runs in.
    """

    graph: Tensor

    def __init__(self, form: OnnxForm, num_classes: int) -> None:
        super().__init__()
        self.form = form
        self.taps = nn.ModuleList(nn.Identity() for _ in form.blocks)
        self.head = nn.Linear(form.width, num_classes)
        self.register_buffer(GRAPH, torch.zeros(form.size, dtype=torch.uint8))
        self._runners: dict[str, _Runner] = {}
        self._making = _Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        for shared in (self.graph, self._runners, self._making):
            memo[id(shared)] = shared
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's
        graph = self._buffers.pop(GRAPH)
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._buffers[GRAPH] = graph

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, k)`` of normalised images ``(n, c, h, w)``."""
        values = self.values(images)
        for tap, block in zip(self.taps, self.form.blocks, strict=True):
            tap(values[block.value])
        logits: Tensor = self.head(values[self.form.features])
        return logits

    def values(self, images: Tensor) -> dict[str, Tensor]:
        """Return features ``(n, d)`` and maps of images by name, float32 on their device."""
        values = self.as_computed(images)
        features = values[self.form.features]
        if features.dim() == 4:
            values[self.form.features] = features.mean(dim=(2, 3))
        return values

    def as_computed(self, images: Tensor) -> dict[str, Tensor]:
        """Return the values of the graph for images by name, float32 on their device."""
        runner = self._runner(images.device)
        size = self.form.batch or len(images)
        parts = [runner.run(part) for part in _in_parts(images, size)]
        return {
            name: torch.cat([part[name] for part in parts])[: len(images)].to(images.device)
            for name in self.form.values
        }

    def _runner(self, device: torch.device) -> "_Runner":
        with self._making.lock:
            place = str(device) if runs_on(device) else "cpu"
            if place not in self._runners:
                content = self.graph.numpy().tobytes()
                self._runners[place] = _Runner(content, self.form, torch.device(place))
            return self._runners[place]


class _Lock:
    """A lock that copies of its owner share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def _in_parts(images: Tensor, size: int) -> Sequence[Tensor]:
    """Return images in parts of one size; the last is filled up with its first image."""
    parts = list(images.split(max(size, 1)))
    lacking = size - len(parts[-1])
    if lacking > 0:
        parts[-1] = torch.cat([parts[-1], parts[-1][:1].expand(lacking, -1, -1, -1)])
    return parts


def runs_on(device: torch.device) -> bool:
    """Tell whether the ONNX Runtime that is installed computes on a device."""
    if device.type == "cpu":
        return True
    return device.type == "cuda" and _CUDA in onnx_package("onnxruntime").get_available_providers()


def placement(device: torch.device) -> tuple[str, ...]:
    """Return a line for the user where a graph does not run on the device that was asked for."""
    if runs_on(device):
        return ()
    cure = "; for a GPU of NVIDIA: pip install onnxruntime-gpu" if device.type == "cuda" else ""
    return (
        f"the network runs on the CPU, and methods on {device}: the ONNX Runtime that is installed "
        f"does not compute there{cure}",
    )


class _Runner:
    """A graph in ONNX Runtime on one device.

    Parameters
    ----------
    content
        The graph.
    form
        What has to be known of it.
    device
        ``cpu``, or a CUDA device.
    """

    def __init__(self, content: bytes, form: OnnxForm, device: torch.device) -> None:
        self._form = form
        self._device = device
        self._index = device.index or 0
        gpu = (_CUDA, {"device_id": self._index, "use_tf32": 0})
        providers = [gpu, _CPU] if device.type == "cuda" else [_CPU]
        self._session = new_session(
            content, "the graph", providers, threads=torch.get_num_threads()
        )
        self._dtype: torch.dtype = getattr(torch, form.dtype)
        # Of the values for images of one size: what follows the number of rows, and the type.
        self._known: dict[torch.Size, Mapping[str, tuple[tuple[int, ...], torch.dtype]]] = {}

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """Return the values of images as the graph takes them, in float32.

        Raises
        ------
        InvalidInputError
            If ONNX Runtime cannot compute them.
        """
        turned = images.permute(0, 2, 3, 1) if self._form.channels_last else images
        given = turned.detach().to(self._device, self._dtype).contiguous()
        try:
            known = self._known.get(given.shape[1:])
            values = self._first(given) if known is None else self._bound(given, known)
        except Exception as error:  # noqa: BLE001 - of its C++ code
            reason = printable(reason_of(error).rpartition(" : ")[2][:_REASON_LETTERS])
            raise InvalidInputError(
                f"ONNX Runtime cannot compute {len(images)} images of {images.shape[2]} x "
                f"{images.shape[3]} pixels: {reason}"
            ) from None
        return {name: value.float() for name, value in values.items()}

    def _first(self, given: Tensor) -> dict[str, Tensor]:
        """Run without knowing what comes out, and note it."""
        names = list(self._form.values)
        arrays = self._session.run(names, {self._form.image: given.cpu().numpy()})
        values = {n: torch.from_numpy(array) for n, array in zip(names, arrays, strict=True)}
        for value in values.values():
            if len(value) != len(given):
                raise ValueError(f"it gives {len(value)} rows for {len(given)} images")
        self._known[given.shape[1:]] = {
            name: (tuple(value.shape[1:]), value.dtype) for name, value in values.items()
        }
        return {name: value.to(self._device) for name, value in values.items()}

    def _bound(
        self, given: Tensor, known: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    ) -> dict[str, Tensor]:
        """Run with memory of torch's, so that nothing is copied."""
        binding = self._session.io_binding()
        values: dict[str, Tensor] = {}
        kind = self._device.type
        binding.bind_input(
            self._form.image, kind, self._index, _numpy(given), given.shape, given.data_ptr()
        )
        for name, (shape, dtype) in known.items():
            value = torch.empty((len(given), *shape), dtype=dtype, device=self._device)
            binding.bind_output(
                name, kind, self._index, _numpy(value), value.shape, value.data_ptr()
            )
            values[name] = value
        if kind == "cuda":  # ONNX Runtime computes in a stream of its own
            torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return values


def _numpy(tensor: Tensor) -> Any:  # noqa: ANN401 - a type of NumPy
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype.type


def onnx_architecture(config: str, text: str = "") -> Architecture:
    """Return the architecture of one graph.

    Parameters
    ----------
    config
        An :class:`OnnxForm` as JSON text.
    text
        What was found in the graph, in a line for the user.

    Raises
    ------
    CorruptArtifactError
        If it is none.
    """
    form = OnnxForm.from_json(config)

    def build(num_classes: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            module = OnnxNetwork(form, num_classes)
        if form.channels == 1:
            convert_input_to_grey(module)
        return module

    return Architecture(
        ONNX,
        build,
        lambda _module: {each.name: f"taps.{place}" for place, each in enumerate(form.blocks)},
        head=HEAD,
        layouts={
            each.name: Layout(each.kind, each.prefix)
            for each in form.blocks
            if (each.kind, each.prefix) != ("nchw", 0)
        },
        channels_last=False,
        any_image=False,
        traced_side=form.side,
        text=text,
        channels=form.channels,
        config=config,
        closed=True,
        placement=placement,
    )


def onnx_state(anatomy: OnnxAnatomy, where: str) -> tuple[Architecture, dict[str, Tensor]]:
    """Return the architecture of a graph, and its weights.

    Parameters
    ----------
    anatomy
        What was found in the graph.
    where
        What it is called in messages.

    Raises
    ------
    InvalidInputError
        If the graph is too large to be stored.
    """
    if anatomy.model.ByteSize() > MAX_BYTES:
        raise InvalidInputError(f"{where} has more than 2 GiB; use a smaller network")
    content = bytearray(anatomy.model.SerializeToString(deterministic=True))
    state = {
        GRAPH: torch.frombuffer(content, dtype=torch.uint8),
        f"{HEAD}.weight": torch.tensor(anatomy.end.weight),
        f"{HEAD}.bias": torch.tensor(anatomy.end.bias),
    }
    form = OnnxForm.of(anatomy, len(content))
    return onnx_architecture(form.to_json(), anatomy.text), state
