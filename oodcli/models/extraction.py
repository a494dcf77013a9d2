"""The one place in which a network runs for scoring: pixels in, activations out.

A hook reduces the map of every block to its FeatureNorm while the map is there; no map is kept.
Probes may look at maps and run the network again, batch by batch.
"""

import contextlib
import copy
import math
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from oodcli.activations import Activations
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.models.heads import UnitFeatureLinear
from oodcli.models.layout import Layout
from oodcli.models.network import Network
from oodcli.probes import Edit, Learner, Output, Probe

PRECISIONS = ("float32", "bfloat16")

# Pixels of one batch: 64 images of 32 x 32 fill the caches of a CPU, and a GPU wants more.
_PIXELS_CPU = 64 * 32 * 32
_PIXELS_GPU = 512 * 32 * 32
_SMALLEST_BATCH = 8
# Multiplications that take a core some milliseconds. With several threads each layer ends with
# waiting for the slowest, which costs more than it saves, and a hundred times that where another
# program uses the same cores.
_LIGHT = 2**27


def feature_norm(maps: Tensor) -> Tensor:
    """Return the FeatureNorm of every map: the mean over channels of the L2 norm of its ReLU.

    Parameters
    ----------
    maps
        Output of a block, ``(n, c, h, w)``; left as it is.

    Returns
    -------
    Tensor
        float32, ``(n,)``.

    References
    ----------
    Yu, Shin, Lee, Jun, Lee. "Block Selection Method for Using Feature Norm in Out-of-Distribution
    Detection". CVPR 2023, arXiv:2212.02295.
    """
    # In float32 whatever the maps are: the sum of squares of a bfloat16 map would stop growing.
    squares = maps.clamp(min=0).float().square_()  # clamp made the copy that is squared in place
    return squares.sum(dim=(2, 3)).sqrt().mean(dim=1)


class ReadyNetwork:
    """A copy of a network on a device, in its memory layout, ready for any number of passes.

    The copy is what a pass hooks and moves, so that the caller's module is never changed; it is
    made once. Passes may come from several threads: each forward pass holds the copy for itself.

    Parameters
    ----------
    network
        The network.
    device
        Where to compute.
    precision
        ``float32``, or ``bfloat16`` for automatic mixed precision. FeatureNorms, and the logits of
        the features, are computed in float32 in both.

    Raises
    ------
    InvalidInputError
        If the precision is unknown.

    Notes
    -----
    Maps lie channels-last in memory on the CPU and in bfloat16, where that is faster than torch's
    ordinary layout by more than the hooks cost.
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
        self.network = network
        self.device = torch.device(device)
        self.half = precision == "bfloat16"
        channels_last = self.half or self.device.type == "cpu"
        channels_last &= network.spec.architecture.channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.head = network.head().to(self.device)
        self.module = copy.deepcopy(network.module).eval()
        self.module.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        # Hooks belong to a module, not to a thread: two passes at once would see each other's maps.
        self.alone = threading.RLock()
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
            Images at a time; None for what suits the device. It changes results by rounding only.
        probes
            What else to observe; each leaves an array under its key in ``extra``.
        advance
            Called with the number of images of every batch that is under way.
        to
            Device of the activations: the network's own to score them there, without a copy.
        rows
            Images of every shard, where a shard comes in several arrays, none of which has images
            of two; None if each array is a shard. Batches and results are the same either way.

        Yields
        ------
        Activations
            Of one shard each, in float32 on that device.

        Raises
        ------
        InvalidInputError
            If a standard deviation is not positive, the images are too small for the network, or
            it gives values that are not finite.
        ValueError
            If an array is not uint8 ``(n, 3, h, w)``, or shards have not so many images.

        Notes
        -----
        TensorFloat-32 is off. On a CPU, a batch of so little work that threads would wait for each
        other longer than they compute is computed by the calling thread alone.
        """
        forward = _Forward(self, mean=mean, std=std, batch_size=batch_size, advance=advance)
        return _extracted(forward, _shards(pixels_batches, rows), probes, torch.device(to))

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
        """Let a learner look at shards of images while the network runs over them.

        Parameters
        ----------
        pixels_batches, mean, std, batch_size, advance, rows
            As in :meth:`extract`.
        learner
            What draws a state from the images.

        Returns
        -------
        dict
            The state after the last batch, on the CPU.

        Raises
        ------
        InvalidInputError
            If a standard deviation is not positive, or the images are too small for the network.
        """
        forward = _Forward(self, mean=mean, std=std, batch_size=batch_size, advance=advance)
        state: Mapping[str, Tensor] = {}
        for _, arrays in _shards(pixels_batches, rows):
            with contextlib.closing(forward.looks(arrays, [learner])) as looks:
                for images, output, _ in looks:
                    with forward.again():
                        state = learner.update(state, forward, images, output)
        return {name: values.cpu().clone() for name, values in state.items()}

    def is_light(self, images: int, size: tuple[int, int]) -> bool:
        """Tell whether a batch is so little work that one thread computes it soonest.

        Parameters
        ----------
        images
            How many.
        size
            Height and width of each, in pixels; the network must take it.

        Notes
        -----
        What is counted are the multiplications of convolutions and linear layers. One black image
        goes through the network for it, once for every size, and no further than to the limit.
        """
        with self.alone:
            if size not in self._work:
                self._work[size] = self._multiplications(size)
            return images * self._work[size] <= _LIGHT

    def _multiplications(self, size: tuple[int, int]) -> float:
        """Return how many one image takes; infinite if they are too many for one thread."""
        found = 0

        def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
            nonlocal found
            assert isinstance(module.weight, Tensor)
            found += output.numel() * module.weight[0].numel()
            if found > _LIGHT:
                raise _EnoughError

        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(one_thread())
            for each in self.module.modules():
                if isinstance(each, (nn.Conv2d, nn.Linear)):
                    stack.callback(each.register_forward_hook(count).remove)
            try:
                self.module(torch.zeros(1, 3, *size, device=self.device))
            except _EnoughError:
                return math.inf
        return found


class _EnoughError(Exception):
    """Ends a forward pass of which enough is known."""


@lru_cache(maxsize=1)
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let the calling thread compute alone while the context lasts.

    Notes
    -----
    ``torch.set_num_threads`` would do it for the whole process: other threads that compute
    meanwhile would change with it, and two such contexts would restore each other's one.
    """
    torch.get_num_threads()  # a thread takes the number that was set for all at its first question
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
    """Run a network over shards of images once, as :meth:`ReadyNetwork.extract` does.

    Parameters
    ----------
    network, device, precision
        As for :class:`ReadyNetwork`.
    pixels_batches, mean, std, batch_size, probes, advance, to
        As for :meth:`ReadyNetwork.extract`.
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
    """Yield the number of images of every shard, and its arrays, which are taken before the next.

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
        yield count, _of_shard(arrays, count)


def _of_shard(arrays: Iterator[NDArray[np.uint8]], count: int) -> Iterator[NDArray[np.uint8]]:
    left = count
    while left:
        pixels = next(arrays, None)
        if pixels is None or not 0 < len(pixels) <= left:
            raise ValueError(f"the arrays of a shard have not {count} images together")
        left -= len(pixels)
        yield pixels


def _batches(
    arrays: Iterable[NDArray[np.uint8]], size: Callable[[int, int], int]
) -> Iterator[NDArray[np.uint8]]:
    """Cut the images of a shard into batches, of which the last may be smaller.

    Parameters
    ----------
    arrays
        The images, uint8 ``(n, 3, h, w)`` each.
    size
        Returns how many make a batch, from their height and width.
    """
    waiting: list[NDArray[np.uint8]] = []
    count = 0
    for pixels in arrays:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"not uint8 (n, 3, h, w) but {pixels.dtype} {pixels.shape}")
        full, at = size(*pixels.shape[2:]), 0
        while count + len(pixels) - at >= full:
            stop = at + full - count
            yield _one([*waiting, pixels[at:stop]])
            waiting, count, at = [], 0, stop
        if at < len(pixels) or not len(pixels):
            waiting.append(pixels[at:])
            count += len(pixels) - at
    if waiting:
        yield _one(waiting)


def _one(arrays: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _extracted(
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
    """A pass of a network; what probes know as a ``ProbedNetwork``."""

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
            raise InvalidInputError(f"the batch size is at least 1, not {batch_size}")
        self._ready = ready
        self._network = ready.network
        self._module = ready.module
        self._head = ready.head
        self._device = device = ready.device
        self._half = ready.half
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
        """Standard deviation by which pixel values are divided, ``(3, 1, 1)``."""
        return self._std

    def modules_of(self, *kinds: type[nn.Module]) -> Sequence[str]:
        """Return the paths of all modules of these types."""
        return [path for path, each in self._module.named_modules() if isinstance(each, kinds)]

    def run(
        self, images: Tensor, *, keep: Sequence[str] = (), edit: Mapping[str, Edit] | None = None
    ) -> Output:
        """Run the network on normalised images."""
        return self._look(images, keep=keep, edit=edit or {}, norms=None)

    def again(self) -> contextlib.AbstractContextManager[object]:
        """Let a probe run: no gradients unless it asks, and no weights that were cast without."""
        stack = contextlib.ExitStack()
        stack.enter_context(torch.no_grad())
        stack.enter_context(
            torch.autocast(
                self._device.type, torch.bfloat16, enabled=self._half, cache_enabled=False
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
        """Return the activations of one shard of so many images, on a device."""
        features, norms, size = [], [], (0, 0)
        observed: dict[str, list[Tensor]] = {probe.key: [] for probe in probes}
        # Closed whatever happens, for it holds the settings of the pass.
        with contextlib.closing(self.looks(arrays, probes)) as looks:
            for images, output, block_norms in looks:
                size = (images.shape[2], images.shape[3])
                features.append(output.features)
                norms.append(block_norms)
                for probe in probes:
                    with self.again():
                        values = probe.observe(self, images, output).detach()
                    observed[probe.key].append(values)
        with self._threads(count, *size), _no_tf32(), torch.no_grad():
            every = torch.cat(features)  # (n, d)
            logits = self._head(every)  # (n, k)
            # Joined out here they are ordinary tensors, which autograd may use.
            return Activations(
                logits,
                every,
                torch.cat(norms),  # (n, b)
                self._predicted(every, logits),
                extra={key: torch.cat(parts).float() for key, parts in observed.items()},
            ).map(lambda values: values.to(to))

    def _predicted(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return the classes ``(n,)`` of the network's own forward pass."""
        last = self._module.get_submodule(self._network.head_path)
        if isinstance(last, UnitFeatureLinear):
            with self._ready.alone:
                logits = last(features)
        return logits.argmax(dim=1)

    def looks(
        self, arrays: Iterable[NDArray[np.uint8]], probes: Sequence[Probe | Learner]
    ) -> Generator[tuple[Tensor, Output, Tensor]]:
        """Yield the normalised images, output and block norms of every batch of a shard."""
        keep = list(dict.fromkeys(path for probe in probes for path in probe.maps(self)))
        if probes:
            self._keep_maps_whole()
        # What probes differentiate must not have been made in inference mode.
        mode = torch.no_grad if probes else torch.inference_mode
        # One context for all batches, so that weights are cast once.
        with _no_tf32(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            for pixels in _batches(arrays, self._batch):
                batch = self._as_tensor(pixels)
                with self._threads(len(batch), *pixels.shape[2:]), mode():
                    normalised = self._normalised(batch)
                    norms: dict[str, Tensor] = {}
                    output = self._look(normalised, keep=keep, edit={}, norms=norms)
                    block_norms = torch.stack([norms[block] for block in self.blocks], dim=1)
                yield normalised, output, block_norms
                if self._advance is not None:
                    self._advance(len(batch))

    def _as_tensor(self, pixels: NDArray[np.uint8]) -> Tensor:
        # torch wants memory that it may write to, which a mapped file is not.
        images = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        return images.pin_memory() if self._device.type == "cuda" else images

    def _threads(self, images: int, *size: int) -> contextlib.AbstractContextManager[object]:
        """Return the context in which a batch is computed."""
        if self._device.type != "cpu" or torch.get_num_threads() == 1:
            return contextlib.nullcontext()
        height, width = size
        light = self._ready.is_light(images, (height, width))
        return one_thread() if light else contextlib.nullcontext()

    def _keep_maps_whole(self) -> None:
        """Let no module write over the map that another one gave."""
        for module in self._module.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]

    def _look(
        self,
        images: Tensor,
        *,
        keep: Sequence[str],
        edit: Mapping[str, Edit],
        norms: dict[str, Tensor] | None,
    ) -> Output:
        maps: dict[str, Tensor] = {}
        features: list[Tensor] = []
        with self._ready.alone, contextlib.ExitStack() as hooks:

            def hook(path: str, see: Callable[..., Tensor | None]) -> None:
                module = self._module.get_submodule(path)
                hooks.callback(module.register_forward_hook(see).remove)

            for path, change in edit.items():
                self._check_plain(path)
                hook(path, partial(_edited, change))
            for path in keep:
                if torch.is_grad_enabled():
                    self._check_plain(path)
                hook(path, partial(_kept, maps, path, self._layout_at(path)))
            if norms is not None:
                for name, path in self.blocks.items():
                    hook(path, partial(keep_norm, norms, name, self._network.layout(name)))
            head = self._module.get_submodule(self._network.head_path)
            hooks.callback(head.register_forward_pre_hook(partial(keep_input, features)).remove)
            self._module(images)
        with torch.autocast(self._device.type, enabled=False):
            rows = features[0].float()  # (n, d)
            return Output(self._head(rows), rows, maps)

    def _layout_at(self, path: str) -> Layout:
        """Return how the output of a module is read as maps."""
        name = next((name for name, block in self.blocks.items() if block == path), "")
        return self._network.layout(name)

    def _check_plain(self, path: str) -> None:
        """Refuse to change, or to differentiate by, what is a map only when it is read as one."""
        kind = self._layout_at(path).kind
        if kind != "nchw":
            raise UndefinedMethodError(
                f"methods that change the map of {path}, or its gradient, are not defined for "
                f"{'tokens' if kind == 'tokens' else 'maps with channels last'}; omit them"
            )

    def _batch(self, height: int, width: int) -> int:
        self._network.check_image_size(height, width)
        pixels = _PIXELS_CPU if self._device.type == "cpu" else _PIXELS_GPU
        return self._batch_size or max(pixels // (height * width), _SMALLEST_BATCH)

    def _normalised(self, batch: Tensor) -> Tensor:
        """Return what to-tensor and normalise make of a batch, in float32 on the device."""
        batch = batch.to(self._device, non_blocking=True).contiguous(memory_format=self._layout)
        return batch.float().div_(255).sub_(self._mean).div_(self._std)


def _edited(change: Edit, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return change(output)


def _kept(
    maps: dict[str, Tensor],
    path: str,
    layout: Layout,
    _module: nn.Module,
    _inputs: object,
    output: Tensor,
) -> None:
    maps[path] = layout.maps(output)


def keep_norm(
    norms: dict[str, Tensor],
    name: str,
    layout: Layout,
    _module: nn.Module,
    _inputs: object,
    output: Tensor,
) -> None:
    """Keep the FeatureNorm of a block's output, as a forward hook."""
    norms[name] = feature_norm(layout.maps(output))


def keep_input(features: list[Tensor], _module: nn.Module, inputs: tuple[Tensor]) -> None:
    """Keep the input of the last layer, as a hook before it."""
    features.append(inputs[0])


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """Multiply float32 numbers with all their digits, and restore the settings."""
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
            f"the network gives {kind} for {int(bad.sum())} of images {first} to "
            f"{first + len(activations) - 1} ({name.replace('_', ' ')}); use other weights, or "
            "train with a smaller learning rate"
        )


@contextlib.contextmanager
def read_ahead(shards: Iterable[NDArray[np.uint8]]) -> Iterator[Iterator[NDArray[np.uint8]]]:
    """Give shards, the next of which is read in a thread meanwhile; the thread ends with this.

    The thread reads only when told to, and puts each answer where there is always room, so that
    neither side can wait for one that has gone.

    Parameters
    ----------
    shards
        What is read.
    """
    wanted = threading.Semaphore(1)
    stop = threading.Event()
    answers: queue.SimpleQueue[NDArray[np.uint8] | BaseException] = queue.SimpleQueue()

    def read() -> None:
        try:
            iterator = iter(shards)
            while wanted.acquire() and not stop.is_set():
                answers.put(next(iterator))
        except BaseException as error:  # noqa: BLE001 - raised again where the shard is waited for
            answers.put(error)
        finally:
            if isinstance(shards, Generator):
                shards.close()  # here, where what it holds was opened

    def arriving() -> Iterator[NDArray[np.uint8]]:
        while not isinstance(answer := answers.get(), StopIteration):
            if isinstance(answer, BaseException):
                raise answer
            wanted.release()
            yield answer

    # A daemon, so that a disk that does not answer cannot hold up the end of the program.
    thread = threading.Thread(target=read, name="ood-read-ahead", daemon=True)
    thread.start()
    try:
        yield arriving()
    finally:
        stop.set()
        wanted.release()
        # Let a read that is under way finish, but do not wait for one that hangs.
        thread.join(timeout=1.0)
