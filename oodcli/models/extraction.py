"""The forward pass for scoring, from pixels to activations; scoring runs networks only here.

A hook reduces the feature map of every block to its FeatureNorm during the pass; feature maps are
not stored. Probes may read feature maps, and run the network again on each batch.
"""

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from oodcli.activations import Activations, predicted
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.models.clip_tower import ImageTower
from oodcli.models.heads import NormalisedLinear
from oodcli.models.hooks import apply_edit, record_input, record_map, record_norm
from oodcli.models.layout import Layout
from oodcli.models.network import Network
from oodcli.probes import Edit, Learner, Output, Probe

PRECISIONS = ("float32", "bfloat16")

# Pixels of one batch: 64 images of 32 x 32 fill the caches of a CPU; a GPU needs more.
_PIXELS_CPU = 64 * 32 * 32
_PIXELS_GPU = 512 * 32 * 32
_SMALLEST_BATCH = 8
# Multiplications that a core computes in some milliseconds. With several threads every layer waits
# for the slowest thread, which costs more than the threads save, and a hundred times more if
# another program uses the same cores.
_SINGLE_THREAD_WORK = 2**27


class ReadyNetwork:
    """A copy of a network on a device, in a suitable memory format, for any number of passes.

    Hooks are registered on the copy, so that the module of the caller is never changed; the copy is
    made once. Several threads may run passes: a lock admits one forward pass at a time.

    Parameters
    ----------
    network
        The network.
    device
        The device that computes.
    precision
        ``float32``, or ``bfloat16`` for automatic mixed precision. In both, FeatureNorms and the
        logits of the features are computed in float32.

    Raises
    ------
    InvalidInputError
        If the precision is unknown.

    Notes
    -----
    Feature maps are channels-last on the CPU and in bfloat16, where this is faster than the default
    memory format of torch by more than the hooks cost.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device | str = "cpu",
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            raise InvalidInputError(
                f"no precision {precision!r}; there are: {', '.join(PRECISIONS)}"
            )
        if precision != "float32" and network.spec.architecture.closed:
            raise InvalidInputError(
                f"{network.spec} computes in the precision of its graph; omit --amp"
            )
        self.network = network
        self.device = torch.device(device)
        self.mixed_precision = precision == "bfloat16"
        channels_last = self.mixed_precision or self.device.type == "cpu"
        channels_last &= network.spec.architecture.channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.head = network.head().to(self.device)
        self.module = copy.deepcopy(network.module).eval()
        self.module.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        # Hooks belong to a module, not to a thread: concurrent passes would record each other's
        # feature maps.
        self.lock = threading.RLock()
        self._work: dict[tuple[int, int], float] = {}

    def extract(
        self,
        pixels_batches: Iterable[NDArray[np.uint8]],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int | None = None,
        probes: Sequence[Probe] = (),
        advance: Callable[[int], None] | None = None,
        to: torch.device | str = "cpu",
        rows: Sequence[int] | None = None,
    ) -> Iterator[Activations]:
        """Run the network over shards of images.

        Parameters
        ----------
        pixels_batches
            Shards of images, uint8 ``(n, 3, h, w)``; :func:`read_ahead` reads them while the
            network computes.
        mean, std
            Normalisation of the three channels, for pixel values from 0 to 1.
        batch_size
            Images per forward pass; None: chosen for the device. It affects results only by
            rounding.
        probes
            Further observations; each adds an array under its key in ``extra``.
        advance
            Called with the number of images of every computed batch.
        to
            Device of the activations; the device of the network avoids a copy if they are scored
            there.
        rows
            Number of images of every shard, if a shard may consist of several arrays; no array may
            contain images of two shards. None: each array is a shard. Batches and results are the
            same in both cases.

        Yields
        ------
        Activations
            Activations of one shard, in float32 on the device ``to``.

        Raises
        ------
        InvalidInputError
            If a standard deviation is not positive, the images are too small for the network, or
            an output is not finite.
        ValueError
            If an array is not uint8 ``(n, 3, h, w)``, or the arrays do not match ``rows``.

        Notes
        -----
        TensorFloat-32 is off. On a CPU, a small batch, for which threads would wait for each other
        longer than they compute, is computed by the calling thread only.
        """
        forward = _Forward(self, mean=mean, std=std, batch_size=batch_size, advance=advance)
        return _activations(forward, _shards(pixels_batches, rows), probes, torch.device(to))

    def learn(
        self,
        pixels_batches: Iterable[NDArray[np.uint8]],
        learner: Learner,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int | None = None,
        advance: Callable[[int], None] | None = None,
        rows: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the state of a learner from shards of images in one pass.

        Parameters
        ----------
        pixels_batches, mean, std, batch_size, advance, rows
            As in :meth:`extract`.
        learner
            Updates its state with every batch.

        Returns
        -------
        dict
            Tensors of the state after the last batch, by name, on the CPU.

        Raises
        ------
        InvalidInputError
            If a standard deviation is not positive, or the images are too small for the network.
        """
        forward = _Forward(self, mean=mean, std=std, batch_size=batch_size, advance=advance)
        state: Mapping[str, Tensor] = {}
        for _, arrays in _shards(pixels_batches, rows):
            with contextlib.closing(forward.batches(arrays, [learner])) as batches:
                for images, output, _ in batches:
                    with forward.probe_context():
                        state = learner.update(state, forward, images, output)
        return {name: values.cpu().clone() for name, values in state.items()}

    def suits_one_thread(self, images: int, size: tuple[int, int]) -> bool:
        """Return whether a batch needs so little work that a single thread is fastest.

        Parameters
        ----------
        images
            Number of images of the batch.
        size
            Height and width of the images in pixels; the network must accept it.

        Notes
        -----
        The multiplications of convolutions and linear layers are counted in a forward pass of one
        black image, once per size; the pass stops when the limit is exceeded.
        """
        with self.lock:
            if size not in self._work:
                self._work[size] = self._multiplications(size)
            return images * self._work[size] <= _SINGLE_THREAD_WORK

    def _multiplications(self, size: tuple[int, int]) -> float:
        """Count the multiplications for one image; infinite if they exceed the limit."""
        if self.network.spec.architecture.closed:
            return math.inf  # it has threads of its own
        found = 0

        def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
            nonlocal found
            assert isinstance(module.weight, Tensor)
            found += output.numel() * module.weight.shape[1:].numel()
            if found > _SINGLE_THREAD_WORK:
                raise _LimitExceededError

        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(single_thread())
            for each in self.module.modules():
                if isinstance(each, (nn.Conv2d, nn.Linear)):
                    stack.callback(each.register_forward_hook(count).remove)
            try:
                self.module(torch.zeros(1, 3, *size, device=self.device))
            except _LimitExceededError:
                return math.inf
        return found


class _LimitExceededError(Exception):
    """Ends the forward pass that counts multiplications."""


@lru_cache(maxsize=1)
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Limit computation of the calling thread to a single thread in the body of the context.

    Notes
    -----
    ``torch.set_num_threads`` would affect the whole process: other computing threads would be
    limited too, and two overlapping contexts would restore the limit of each other.
    """
    torch.get_num_threads()  # the first call in a thread applies the number set for the process
    with _thread_pools().limit(limits=1, user_api="openmp"):
        yield


def extract(
    network: Network,
    pixels_batches: Iterable[NDArray[np.uint8]],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    precision: str = "float32",
    batch_size: int | None = None,
    probes: Sequence[Probe] = (),
    advance: Callable[[int], None] | None = None,
    to: torch.device | str = "cpu",
) -> Iterator[Activations]:
    """Run a network over shards of images in one pass.

    Parameters
    ----------
    network, device, precision
        As for :class:`ReadyNetwork`.
    pixels_batches, mean, std, batch_size, probes, advance, to
        As for :meth:`ReadyNetwork.extract`.

    Yields
    ------
    Activations
        As for :meth:`ReadyNetwork.extract`, with the same errors.
    """
    ready = ReadyNetwork(network, device=device, precision=precision)
    return ready.extract(
        pixels_batches,
        mean=mean,
        std=std,
        batch_size=batch_size,
        probes=probes,
        advance=advance,
        to=to,
    )


def _shards(
    pixels_batches: Iterable[NDArray[np.uint8]], rows: Sequence[int] | None
) -> Iterator[tuple[int, Iterator[NDArray[np.uint8]]]]:
    """Yield the number of images of every shard, and its arrays, to be read before the next shard.

    Parameters
    ----------
    pixels_batches, rows
        As for :meth:`ReadyNetwork.extract`.
    """
    if rows is None:
        for pixels in pixels_batches:
            yield len(pixels), iter((pixels,))
        return
    arrays = iter(pixels_batches)
    for count in rows:
        yield count, _arrays_of_shard(arrays, count)


def _arrays_of_shard(
    arrays: Iterator[NDArray[np.uint8]], count: int
) -> Iterator[NDArray[np.uint8]]:
    left = count
    while left:
        pixels = next(arrays, None)
        if pixels is None or not 0 < len(pixels) <= left:
            raise ValueError(f"the arrays of a shard do not add up to {count} images")
        left -= len(pixels)
        yield pixels


def _batches(
    arrays: Iterable[NDArray[np.uint8]], size: Callable[[int, int], int]
) -> Iterator[NDArray[np.uint8]]:
    """Split the images of a shard into batches; the last one may be smaller.

    Parameters
    ----------
    arrays
        The images, uint8 ``(n, 3, h, w)`` each.
    size
        Returns the batch size for a height and width.
    """
    waiting: list[NDArray[np.uint8]] = []
    count = 0
    for pixels in arrays:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"not uint8 (n, 3, h, w) but {pixels.dtype} {pixels.shape}")
        full, at = size(*pixels.shape[2:]), 0
        while count + len(pixels) - at >= full:
            stop = at + full - count
            yield _concatenated([*waiting, pixels[at:stop]])
            waiting, count, at = [], 0, stop
        if at < len(pixels) or not len(pixels):
            waiting.append(pixels[at:])
            count += len(pixels) - at
    if waiting:
        yield _concatenated(waiting)


def _concatenated(arrays: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _activations(
    forward: "_Forward",
    shards: Iterable[tuple[int, Iterator[NDArray[np.uint8]]]],
    probes: Sequence[Probe],
    to: torch.device,
) -> Iterator[Activations]:
    first = 0
    for count, arrays in shards:
        activations = forward.activations(count, arrays, probes, to)
        _check_finite(activations, first=first)
        yield activations
        first += len(activations)


class _Forward:
    """A forward pass; probes use it as their ``ProbedNetwork``."""

    def __init__(
        self,
        ready: ReadyNetwork,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int | None,
        advance: Callable[[int], None] | None,
    ) -> None:
        if not all(value > 0 for value in std):
            raise InvalidInputError(f"a standard deviation must be positive, not {min(std):g}")
        if batch_size is not None and batch_size < 1:
            raise InvalidInputError(f"the batch size must be at least 1, not {batch_size}")
        self._ready = ready
        self._network = ready.network
        self._module = ready.module
        self._head = ready.head
        self._device = device = ready.device
        self._mixed_precision = ready.mixed_precision
        self._layout = ready.memory_format
        self._batch_size = batch_size
        self._advance = advance
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=device).view(3, 1, 1)

    @property
    def blocks(self) -> Mapping[str, str]:
        """Paths of the blocks in forward order, by name."""
        return self._network.blocks

    @property
    def std(self) -> Tensor:
        """Standard deviation of the normalisation, for pixels from 0 to 1, ``(3, 1, 1)``."""
        return self._std

    @property
    def weight(self) -> Tensor:
        """Weight of the last layer for scoring, ``(k, d)``."""
        return self._head.weight

    @property
    def kept(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Weight and bias of the kept heads of the network, by name."""
        return self._head.kept

    @property
    def local_path(self) -> str:
        """Path of the module whose feature map gives local embeddings; empty if there are none."""
        return self._module.local_path if isinstance(self._module, ImageTower) else ""

    def local_embeddings(self, maps: Tensor) -> Tensor:
        """Return one embedding per position of a feature map of that module, ``(n, p, d)``."""
        assert isinstance(self._module, ImageTower)  # for other networks local_path is empty
        return self._module.local_embeddings(maps)

    def modules_of(self, *kinds: type[nn.Module]) -> Sequence[str]:
        """Return the paths of all modules of these types."""
        self._check_open()
        return [path for path, each in self._module.named_modules() if isinstance(each, kinds)]

    def dropout_rates(self) -> Mapping[str, float]:
        """Return the rate of every dropout layer, by path."""
        paths = self.modules_of(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
        return {path: float(self._module.get_submodule(path).p) for path in paths}  # type: ignore[arg-type]

    def run(
        self, images: Tensor, *, keep: Sequence[str] = (), edit: Mapping[str, Edit] | None = None
    ) -> Output:
        """Run the network on normalised images ``(n, 3, h, w)``.

        Parameters
        ----------
        images
            Normalised images, on the device.
        keep
            Paths of modules whose feature maps are returned.
        edit
            Changes of module outputs during the pass, by path.

        Raises
        ------
        UndefinedMethodError
            If a map to edit, or to differentiate, is not ``(n, c, h, w)`` in the network, or the
            network runs outside of torch.
        """
        if edit or (torch.is_grad_enabled() and images.requires_grad):
            self._check_open()
        return self._run(images, keep=keep, edit=edit or {}, norms=None)

    def _check_open(self) -> None:
        """Refuse gradients, layers and edits for a network that runs outside of torch."""
        if self._network.spec.architecture.closed:
            raise UndefinedMethodError(
                "methods that need gradients, layers inside the network or changes to its maps are "
                f"not defined for a network that runs outside of torch ({self._network.spec}); "
                "omit them, or import the network from its weights in PyTorch"
            )

    def probe_context(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of a probe: gradients off, and no autocast cache of the weights.

        A probe that needs gradients enables them itself; weights that were cast and cached with
        gradients off would have none.
        """
        stack = contextlib.ExitStack()
        stack.enter_context(torch.no_grad())
        stack.enter_context(
            torch.autocast(
                self._device.type,
                torch.bfloat16,
                enabled=self._mixed_precision,
                cache_enabled=False,
            )
        )
        return stack

    def activations(
        self,
        count: int,
        arrays: Iterable[NDArray[np.uint8]],
        probes: Sequence[Probe],
        to: torch.device,
    ) -> Activations:
        """Return the activations of one shard of ``count`` images, on the device ``to``."""
        features, norms, size = [], [], (0, 0)
        observed: dict[str, list[Tensor]] = {probe.key: [] for probe in probes}
        # Closed in any case, because the generator holds contexts with settings of torch.
        with contextlib.closing(self.batches(arrays, probes)) as batches:
            for images, output, block_norms in batches:
                size = (images.shape[2], images.shape[3])
                features.append(output.features)
                norms.append(block_norms)
                for probe in probes:
                    with self.probe_context():
                        values = probe.observe(self, images, output).detach()
                    observed[probe.key].append(values)
        with self._threads(count, *size), _no_tf32(), torch.no_grad():
            every = torch.cat(features)  # (n, d)
            logits = self._head(every)  # (n, k)
            # Concatenated outside inference mode they are normal tensors, which autograd can use.
            return Activations(
                logits,
                every,
                torch.cat(norms),  # (n, b)
                self._predicted(every, logits),
                extra={key: torch.cat(parts).float() for key, parts in observed.items()},
            ).map(lambda values: values.to(to))

    def _predicted(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the classes ``(n,)`` that the network itself predicts."""
        last = self._module.get_submodule(self._network.head_path)
        if isinstance(last, NormalisedLinear):
            with self._ready.lock:
                logits = last(features)
        return predicted(logits)

    def batches(
        self, arrays: Iterable[NDArray[np.uint8]], probes: Sequence[Probe | Learner]
    ) -> Generator[tuple[Tensor, Output, Tensor]]:
        """Yield the normalised images, output and block norms of every batch of a shard."""
        keep = list(dict.fromkeys(path for probe in probes for path in probe.maps(self)))
        if probes:
            self._disable_inplace()
        # Probes cannot differentiate tensors that were computed in inference mode.
        mode = torch.no_grad if probes else torch.inference_mode
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed_precision)
        # One context for all batches, so that weights are cast once.
        with _no_tf32(), autocast:
            for pixels in _batches(arrays, self._batch_size_for):
                batch = self._as_tensor(pixels)
                with self._threads(len(batch), *pixels.shape[2:]), mode():
                    normalised = self._normalised(batch)
                    norms: dict[str, Tensor] = {}
                    output = self._run(normalised, keep=keep, edit={}, norms=norms)
                    block_norms = torch.stack([norms[block] for block in self.blocks], dim=1)
                yield normalised, output, block_norms
                if self._advance is not None:
                    self._advance(len(batch))

    def _as_tensor(self, pixels: NDArray[np.uint8]) -> Tensor:
        # torch requires writable memory; a memory-mapped file is read-only.
        images = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        return images.pin_memory() if self._device.type == "cuda" else images

    def _threads(self, images: int, *size: int) -> contextlib.AbstractContextManager[object]:
        """Return the context for a batch: a single thread if the batch is small, on a CPU."""
        if self._device.type != "cpu" or torch.get_num_threads() == 1:
            return contextlib.nullcontext()
        height, width = size
        small = self._ready.suits_one_thread(images, (height, width))
        return single_thread() if small else contextlib.nullcontext()

    def _disable_inplace(self) -> None:
        """Prevent modules from overwriting the output of another module."""
        for module in self._module.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]

    def _run(
        self,
        images: Tensor,
        *,
        keep: Sequence[str],
        edit: Mapping[str, Edit],
        norms: dict[str, Tensor] | None,
    ) -> Output:
        maps: dict[str, Tensor] = {}
        features: list[Tensor] = []
        with self._ready.lock, contextlib.ExitStack() as hooks:

            def hook(path: str, see: Callable[..., Tensor | None]) -> None:
                module = self._module.get_submodule(path)
                hooks.callback(module.register_forward_hook(see).remove)

            for path, change in edit.items():
                self._check_nchw(path)
                hook(path, partial(apply_edit, change))
            for path in keep:
                if torch.is_grad_enabled():
                    self._check_nchw(path)
                hook(path, partial(record_map, maps, path, self._layout_at(path)))
            if norms is not None:
                for name, path in self.blocks.items():
                    hook(path, partial(record_norm, norms, name, self._network.layout(name)))
            head = self._module.get_submodule(self._network.head_path)
            hooks.callback(head.register_forward_pre_hook(partial(record_input, features)).remove)
            self._module(images)
        with torch.autocast(self._device.type, enabled=False):
            rows = features[0].float()  # (n, d)
            return Output(self._head(rows), rows, maps)

    def _layout_at(self, path: str) -> Layout:
        """Return the layout of the output of a module."""
        name = next((name for name, block in self.blocks.items() if block == path), "")
        return self._network.layout(name)

    def _check_nchw(self, path: str) -> None:
        """Refuse to edit or differentiate an output that is not ``(n, c, h, w)`` in the network."""
        kind = self._layout_at(path).kind
        if kind != "nchw":
            raise UndefinedMethodError(
                f"methods that change the feature map of {path}, or use its gradient, are not "
                f"defined for {'tokens' if kind == 'tokens' else 'channels-last maps'}; omit them"
            )

    def _batch_size_for(self, height: int, width: int) -> int:
        self._network.check_image_size(height, width)
        pixels = _PIXELS_CPU if self._device.type == "cpu" else _PIXELS_GPU
        return self._batch_size or max(pixels // (height * width), _SMALLEST_BATCH)

    def _normalised(self, batch: Tensor) -> Tensor:
        """Scale pixels to 0 to 1 and normalise them, in float32 on the device."""
        batch = batch.to(self._device, non_blocking=True).contiguous(memory_format=self._layout)
        return batch.float().div_(255).sub_(self._mean).div_(self._std)


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """Turn off TensorFloat-32 in the body of the context, and restore the settings afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _check_finite(activations: Activations, *, first: int) -> None:
    for name, values in activations.arrays().items():
        if values.isfinite().all():
            continue
        bad = ~values.isfinite().flatten(1).all(dim=1)
        kind = "NaN" if values.isnan().any() else "infinity"
        raise InvalidInputError(
            f"the network outputs {kind} for {int(bad.sum())} of images {first} to "
            f"{first + len(activations) - 1} ({name.replace('_', ' ')}); use other weights, or "
            "train with a smaller learning rate"
        )
