"""Activations of images: read from the store, or computed and stored if they are missing."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from oodcli.activations import CORE, Activations, ActivationSet, ActivationShard
from oodcli.compute.compute import Compute, Precision
from oodcli.compute.devices import explain_out_of_memory
from oodcli.compute.processes import Processes
from oodcli.data.views import View
from oodcli.errors import CorruptArtifactError
from oodcli.images import ImageSet, ImageShard
from oodcli.methods._blocks import BLOCK_MEANS
from oodcli.models import Network, load_run_network
from oodcli.models.extraction import ReadyNetwork
from oodcli.pools import read_ahead, shared_pools
from oodcli.probes import Learner, Probe
from oodcli.progress import Progress, Task
from oodcli.store.activations import ActivationFolder, ArrayFolder, MissingArrays
from oodcli.store.runs import Run, RunFolder
from oodcli.store.store import Store, check_free_space, remove_leftovers
from oodcli.text import counted


@dataclass
class Passes:
    """Numbers of computed and of cached images.

    Parameters
    ----------
    computed
        Number of images that went through the network, by name of their set.
    cached
        Number of images whose activations were stored, by name of their set.
    seconds
        Duration of all forward passes, with reading and writing, in seconds.
    """

    computed: dict[str, int] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, name: str, *, computed: int, cached: int) -> None:
        """Add the images of one set."""
        self.computed[name] = self.computed.get(name, 0) + computed
        self.cached[name] = self.cached.get(name, 0) + cached


@dataclass(frozen=True)
class Pending:
    """The pending computation for a set.

    Parameters
    ----------
    total
        Number of images in the set.
    missing
        Number of images that must go through the network.
    """

    total: int
    missing: int


class Activator:
    """Provides the activations of a run's network for any images.

    Parameters
    ----------
    store
        The store for activations.
    folder, run
        The run.
    compute
        Device, precision and batch size for missing activations.
    progress
        Receives the progress of every forward pass.
    """

    def __init__(
        self,
        store: Store,
        folder: RunFolder,
        run: Run,
        compute: Compute,
        *,
        progress: Progress,
    ) -> None:
        folder.check_weights(run)
        self._store = store
        self._folder = folder
        self._run = run
        self._how = compute
        self._progress = progress
        self.passes = Passes()
        # Files whose digest has been verified. They are memory-mapped without further
        # verification, so that a bank larger than memory can be read repeatedly.
        self._verified: set[Path] = set()

    @property
    def device(self) -> torch.device:
        """The device."""
        return self._how.device

    @property
    def precision(self) -> Precision:
        """``float32`` or ``bfloat16``."""
        return self._how.precision

    @cached_property
    def network(self) -> Network:
        """The network of the run, loaded when first needed."""
        run = self._run
        return load_run_network(
            self._folder.weights,
            run.arch,
            run.outputs,
            size=run.preprocess.size,
            blocks=run.blocks,
        )

    @cached_property
    def _ready(self) -> ReadyNetwork:
        """The network on its device, created on first use."""
        for line in self.network.placement(self.device):
            self._progress.note(line)
        return ReadyNetwork(self.network, device=self.device, precision=self.precision)

    def activations(
        self,
        images: ImageSet,
        *,
        view: View | None = None,
        normalise: bool = True,
        probes: Sequence[Probe] = (),
        norms_only: bool = False,
    ) -> ActivationSet:
        """Return the activations of images, computing the shards that are not stored.

        Parameters
        ----------
        images
            The images, at the input size of the run.
        view
            Transformation applied to each image first; none by default.
        normalise
            Whether pixel values are normalised with the mean and standard deviation of the run.
        probes
            Probes to run in the same pass; the array of each is stored under its own key.
        norms_only
            Whether only block norms are stored and returned; features and logits are then
            ``(n, 0)``, and predictions are zeros.

        Raises
        ------
        InvalidInputError
            If the disk has too little space, or the network gives values that are not finite.
        """
        shown = self._shown(view or View(), normalise=normalise, norms_only=norms_only)
        if shown.missing(images.shards, probes):
            with self._writing(images, shown):
                self._compute(images, shown, images.shards, probes)
        else:
            self.passes.count(images.name, computed=0, cached=len(images))
        return self._open(images, shown, probes)

    def while_decoding(
        self, name: str, views: Mapping[View, bool], *, normalise: bool = True
    ) -> Callable[[ImageShard], None]:
        """Return a consumer that stores activations of shards whose pixels are not cached.

        Parameters
        ----------
        name
            Name of the image set.
        views
            Transformations applied to each image first, each with whether only block norms are
            stored.
        normalise
            As for :meth:`activations`.
        """

        def see(shard: ImageShard) -> None:
            images = ImageSet(name, (shard,))
            for view, norms_only in views.items():
                shown = self._shown(view, normalise=normalise, norms_only=norms_only)
                if shown.missing(images.shards):
                    with self._writing(images, shown):
                        self._compute(images, shown, [shard], (), of=len(shard), passing=True)

        return see

    def compute_together(
        self,
        images: ImageSet,
        processes: Processes,
        *,
        view: View | None = None,
        normalise: bool = True,
        probes: Sequence[Probe] = (),
        norms_only: bool = False,
    ) -> None:
        """Compute and store the activations of images together with other processes.

        Each process computes whole shards, so that batches, and therefore activations, are the same
        as with one process. All processes must call this method with the same images.

        Parameters
        ----------
        images, view, normalise, probes, norms_only
            As for :meth:`activations`.
        processes
            The processes; they share the store.

        Raises
        ------
        InvalidInputError
            As for :meth:`activations`.
        """
        shown = self._shown(view or View(), normalise=normalise, norms_only=norms_only)
        one_writer = self._writing(images, shown) if processes.first else contextlib.nullcontext()
        with one_writer:
            # No process writes before the first one has determined what is missing.
            keys = {shown.key_of(each.shard) for each in shown.missing(images.shards, probes)}
            keys = processes.broadcast(keys)
            missing = [shard for shard in images.shards if shown.key_of(shard) in keys]
            mine = missing[processes.rank :: processes.size]
            self._compute(images, shown, mine, probes, of=sum(map(len, missing)))
            processes.barrier()

    def learned(self, images: ImageSet, learner: Learner) -> Mapping[str, Tensor]:
        """Return the state of a learner over images, computing it if it is not stored.

        Parameters
        ----------
        images
            The images, at the input size of the run.
        learner
            The learner.

        Raises
        ------
        InvalidInputError
            If the network cannot be run on the images.
        """
        folder = self._shown(View()).folder
        states, key = folder.states, folder.state_key(learner.key, images)
        with self._store.lock(folder.state_lock(key), progress=self._progress):
            try:
                return _read(states, key)
            except CorruptArtifactError:
                states.remove(key)
            except FileNotFoundError:
                pass
            pre = self._run.preprocess
            label = f"{learner.key.partition('(')[0]} on {images.name}"
            started = time.perf_counter()
            with (
                self._progress.task(label, total=len(images), unit="images") as task,
                self._chunks(images.shards, View()) as chunks,
            ):
                state = self._ready.learn(
                    chunks,
                    learner,
                    mean=pre.mean,
                    std=pre.std,
                    batch_size=self._how.batch_size,
                    advance=task.advance,
                    rows=[len(shard) for shard in images.shards],
                )
            self.passes.count(images.name, computed=len(images), cached=0)
            self.passes.seconds += time.perf_counter() - started
            _write(states, key, state)
        return state

    def plan(
        self,
        images: ImageSet,
        *,
        view: View | None = None,
        norms_only: bool = False,
        probes: Sequence[Probe] = (),
    ) -> Pending:
        """Return what :meth:`activations` would compute, without computing it."""
        shown = self._shown(view or View(), norms_only=norms_only)
        missing = shown.missing(images.shards, probes)
        return Pending(total=len(images), missing=sum(len(each.shard) for each in missing))

    def bytes_per_image(self, *, norms_only: bool = False) -> int:
        """Return the size on disk of one image's activations (or block norms), in bytes."""
        norms = 4 * len(self.network.blocks)
        if norms_only:
            return norms
        classes, width = self.network.head().weight.shape
        return norms + 4 * (classes + width) + 8

    def bytes_of_blocks(self) -> int:
        """Return the size on disk of one image's pooled maps of all blocks, in bytes."""
        return 4 * sum(self.block_widths)

    def rate(self) -> float | None:
        """Return the speed of the last pass on this device, in images per second, if known."""
        return self._shown(View()).folder.rates().get(str(self.device))

    def timed_rate(self) -> float:
        """Measure the speed on batches of noise after a warm-up batch, in images per second."""
        times = [time.perf_counter() for _ in self._on_noise(64, turns=3)]
        return 64 * 2 / (times[2] - times[0])

    def try_probes(self, probes: Sequence[Probe]) -> None:
        """Run probes on two images of noise.

        Raises
        ------
        UndefinedMethodError
            If one is not defined for this network.
        """
        for _ in self._on_noise(2, turns=1, probes=probes):
            pass

    def of_pixels(
        self, pixels: NDArray[np.uint8], probes: Sequence[Probe], *, normalise: bool = True
    ) -> Activations:
        """Return the activations of a few images, which are not stored.

        Parameters
        ----------
        pixels
            Images, ``(n, 3, h, w)``.
        probes
            Further observations.
        normalise
            Whether the images are normalised with the mean and standard deviation of the run.
        """
        pre = self._run.preprocess
        (found,) = self._ready.extract(
            [pixels],
            mean=pre.mean if normalise else (0.0, 0.0, 0.0),
            std=pre.std if normalise else (1.0, 1.0, 1.0),
            batch_size=self._how.batch_size,
            probes=probes,
        )
        return found

    def _on_noise(
        self, n: int, *, turns: int, probes: Sequence[Probe] = ()
    ) -> Iterator[Activations]:
        noise = np.random.default_rng(0).integers(
            0, 256, (n, 3, *self._run.preprocess.size), dtype=np.uint8
        )
        return self._ready.extract(
            itertools.repeat(noise, turns),
            mean=self._run.preprocess.mean,
            std=self._run.preprocess.std,
            batch_size=self._how.batch_size,
            probes=probes,
        )

    @cached_property
    def block_widths(self) -> tuple[int, ...]:
        """Number of channels of the output of every block, in forward order."""
        return tuple(channels for channels, _, _ in self.block_shapes().values())

    def block_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Return channels, height and width of the output of every block, by name."""
        return self.network.block_shapes(self._run.preprocess.size)

    def _shown(
        self, view: View, *, normalise: bool = True, norms_only: bool = False
    ) -> "_StoredView":
        folder = ActivationFolder.of(
            self._store,
            self._run,
            precision=self.precision,
            view=view,
            normalise=normalise,
            norms_only=norms_only,
            verified=self._verified,
        )
        return _StoredView(folder, view)

    def _writing(
        self, images: ImageSet, shown: "_StoredView"
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the lock for writing and removing activations of images."""
        return self._store.lock(shown.folder.lock_name(images.name), progress=self._progress)

    def _compute(
        self,
        images: ImageSet,
        shown: "_StoredView",
        shards: Sequence[ImageShard],
        probes: Sequence[Probe],
        *,
        of: int | None = None,
        passing: bool = False,
    ) -> None:
        """Compute the missing activations, possibly only this process's share of them."""
        missing = shown.missing(shards, probes)  # again: another process may have computed them
        own = sum(len(each.shard) for each in missing)
        count = own if of is None else of
        # Shards shared among processes are read later, and then counted as cached.
        cached = len(images) - count if of is None else -count
        self.passes.count(images.name, computed=count, cached=cached)
        if not missing:
            return
        folder = shown.folder
        needed = count * self.bytes_per_image(norms_only=folder.norms_only)
        if BLOCK_MEANS in probes:
            needed += count * self.bytes_of_blocks()
        check_free_space(self._store.root, needed, f"activations of {counted(count, 'image')}")
        remove_leftovers(folder.path)
        folder.write_manifest()
        started = time.perf_counter()
        with self._progress.task(
            f"forward pass: {images.name}", total=count, unit="images", passing=passing
        ) as task:
            pace = _SharedProgress(task, own, count)
            # Usually one group; more if earlier passes had fewer probes or were interrupted.
            for keys in dict.fromkeys(each.probes for each in missing):
                group = [each for each in missing if each.probes == keys]
                self._pass(shown, group, [p for p in probes if p.key in keys], pace.advance)
        seconds = time.perf_counter() - started
        self.passes.seconds += seconds
        if all(each.core and not each.probes for each in missing):
            folder.write_manifest(str(self.device), own / seconds)

    @contextlib.contextmanager
    def _chunks(
        self, shards: Sequence[ImageShard], view: View
    ) -> Iterator[Iterator[NDArray[np.uint8]]]:
        """Yield the pixels of shards in chunks, reading the next chunk ahead.

        Decoding uses the pools of the command, or pools that end with this context.
        """
        with (
            explain_out_of_memory(
                self.device, "use fewer images per forward pass: --score-batch-size N"
            ),
            shared_pools(),
            read_ahead(_views(shards, view)) as chunks,
        ):
            yield chunks

    def _pass(
        self,
        shown: "_StoredView",
        group: Sequence[MissingArrays],
        probes: Sequence[Probe],
        advance: Callable[[int], None],
    ) -> None:
        """Run the network over shards with the same missing arrays, and store these."""
        with self._chunks([each.shard for each in group], shown.view) as chunks:
            outputs = self._ready.extract(
                chunks,
                mean=shown.folder.key["mean"],
                std=shown.folder.key["std"],
                batch_size=self._how.batch_size,
                probes=probes,
                advance=advance,
                rows=[len(each.shard) for each in group],
            )
            for each, activations in zip(group, outputs, strict=True):
                shown.write(each, activations)

    def _open(
        self, images: ImageSet, shown: "_StoredView", probes: Sequence[Probe]
    ) -> ActivationSet:
        def loader(shard: ImageShard) -> ActivationShard:
            def load() -> Activations:
                with contextlib.suppress(CorruptArtifactError, FileNotFoundError):
                    return shown.read(shard, probes)
                with self._writing(images, shown):
                    # Another process may have recomputed it while this one waited.
                    with contextlib.suppress(CorruptArtifactError, FileNotFoundError):
                        return shown.read(shard, probes)
                    self._progress.note(
                        f"a stored shard of activations of {images.name} is damaged: recomputing it"
                    )
                    shown.folder.remove(shard, [probe.key for probe in probes])
                    self._compute(images, shown, [shard], probes)
                    return shown.read(shard, probes)

            return ActivationShard(len(shard), load)

        return ActivationSet([loader(shard) for shard in images.shards], self.device)


def _views(shards: Sequence[ImageShard], view: View) -> Iterator[NDArray[np.uint8]]:
    """Yield the transformed pixels of shards, chunk by chunk."""
    for shard in shards:
        at = 0
        for pixels in shard.chunks():
            yield view.apply(pixels, shard.indices[at : at + len(pixels)])
            at += len(pixels)


class _SharedProgress:
    """Estimates the progress of all processes from that of this process.

    Parameters
    ----------
    task
        The task to advance.
    own, total
        Numbers of images of this process and of all processes.
    """

    def __init__(self, task: Task, own: int, total: int) -> None:
        self._task = task
        self._own = own
        self._total = total
        self._done = 0
        self._shown = 0

    def advance(self, images: int) -> None:
        """Add finished images of this process."""
        self._done += images
        now = self._done * self._total // self._own
        self._task.advance(now - self._shown)
        self._shown = now


@dataclass(frozen=True)
class _StoredView:
    """Stored activations under one view of the images, as tensors.

    Parameters
    ----------
    folder
        The folder of the activations.
    view
        Transformation applied to each image first.
    """

    folder: ActivationFolder
    view: View

    def key_of(self, shard: ImageShard) -> str:
        """Return the key of a shard's stored activations."""
        return self.folder.shard_key(shard)

    def missing(
        self, shards: Sequence[ImageShard], probes: Sequence[Probe] = ()
    ) -> list[MissingArrays]:
        """Return the missing arrays of the shards that are not completely stored."""
        return self.folder.missing(shards, [probe.key for probe in probes])

    @property
    def _names(self) -> tuple[str, ...]:
        return ("block_norms",) if self.folder.norms_only else CORE

    def write(self, missing: MissingArrays, activations: Activations) -> None:
        """Store the missing arrays of one shard."""
        arrays, key = activations.arrays(), self.key_of(missing.shard)
        if missing.core:
            _write(self.folder.places[0], key, {name: arrays[name] for name in self._names})
        for probe in missing.probes:
            _write(self.folder.probe_arrays(probe), key, {probe: arrays[probe]})

    def read(self, shard: ImageShard, probes: Sequence[Probe]) -> Activations:
        """Read one shard, or assemble it from the shards its images come from.

        Raises
        ------
        FileNotFoundError
            If an array is not stored.
        CorruptArtifactError
            If an array is damaged.
        """
        where = f"shard {self.key_of(shard)} in {self.folder.path}"
        try:
            arrays = self._arrays(self.folder.places, self._names, shard)
            for probe in probes:
                arrays |= self._arrays([self.folder.probe_arrays(probe.key)], [probe.key], shard)
            activations = Activations.of(_padded(arrays) if self.folder.norms_only else arrays)
        except (KeyError, ValueError) as error:
            raise CorruptArtifactError(f"{where} is incomplete: {error}; remove it") from None
        if len(activations) != len(shard):
            raise CorruptArtifactError(
                f"{where} has {len(activations)} rows, not {len(shard)}; remove it"
            )
        return activations

    def _arrays(
        self, places: Sequence[ArrayFolder], names: Sequence[str], shard: ImageShard
    ) -> dict[str, Tensor]:
        def read(key: str) -> dict[str, Tensor]:
            for place in places:
                with contextlib.suppress(FileNotFoundError):
                    stored = _read(place, key)
                    return {name: stored[name] for name in names}
            raise FileNotFoundError(key)

        return self.folder.rows_of(shard, read, torch.cat)


def _write(place: ArrayFolder, key: str, arrays: Mapping[str, Tensor]) -> None:
    """Store tensors under a key."""
    content = safetensors.torch.save({n: array.contiguous() for n, array in arrays.items()})
    place.write(key, content)


def _read(place: ArrayFolder, key: str) -> dict[str, Tensor]:
    """Return the memory-mapped tensors of a key.

    Raises
    ------
    FileNotFoundError
        If there are none.
    CorruptArtifactError
        If the file is damaged.
    """
    path = place.checked(key)
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}; remove it") from None


def _padded(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add empty arrays to block norms, so that they form valid activations."""
    rows = len(arrays["block_norms"])
    nothing = {"logits": torch.zeros(rows, 0), "features": torch.zeros(rows, 0)}
    return {**nothing, "predictions": torch.zeros(rows, dtype=torch.int64), **arrays}
