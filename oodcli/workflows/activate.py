"""Activations of images: read from the store where they are, computed once where they are not."""

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from oodcli.activations import CORE, Activations, ActivationSet, ActivationShard
from oodcli.data.views import View
from oodcli.errors import CorruptArtifactError
from oodcli.images import ImageSet, ImageShard, digest_of
from oodcli.models import Network, load_run_network
from oodcli.models.extraction import ReadyNetwork, read_ahead
from oodcli.probes import Learner, Probe
from oodcli.progress import Progress, Task
from oodcli.runs import Run, RunFolder
from oodcli.store import (
    Store,
    check_room,
    digest_of_bytes,
    digest_of_file,
    digest_of_json,
    remove_leftovers,
    replacing,
)
from oodcli.training.processes import Processes
from oodcli.workflows.activation_folder import NORMS, SUFFIX, ActivationFolder, digest_in, files_in
from oodcli.workflows.devices import enough_memory


@dataclass
class Passes:
    """How many images went through the network, and how many did not have to.

    Parameters
    ----------
    computed
        Images by name of their set.
    cached
        Images by name of their set.
    seconds
        Time in the network and around it.
    """

    computed: dict[str, int] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, name: str, *, computed: int, cached: int) -> None:
        """Add the images of one set."""
        self.computed[name] = self.computed.get(name, 0) + computed
        self.cached[name] = self.cached.get(name, 0) + cached


@dataclass(frozen=True)
class Plan:
    """What extraction of a set would have to do.

    Parameters
    ----------
    total
        Images in the set.
    missing
        Images that have to go through the network.
    """

    total: int
    missing: int


class Activator:
    """Gives the activations of a run's network on any images.

    Parameters
    ----------
    store
        Where activations are kept.
    folder, run
        The run.
    device
        Where to compute what is missing.
    amp
        Whether to compute in bfloat16; such activations are kept apart.
    batch_size
        Images at a time; None for the default of the device.
    progress
        Told of every forward pass.
    """

    def __init__(
        self,
        store: Store,
        folder: RunFolder,
        run: Run,
        *,
        device: torch.device,
        amp: bool,
        batch_size: int | None,
        progress: Progress,
    ) -> None:
        folder.check_weights(run)
        self._store = store
        self._folder = folder
        self._run = run
        self.device = device
        self._precision = "bfloat16" if amp else "float32"
        self._batch_size = batch_size
        self._progress = progress
        self.passes = Passes()
        # Files that were found whole; from then on they are mapped, so that a bank larger than
        # memory can be read again and again.
        self._whole: set[Path] = set()

    @property
    def precision(self) -> str:
        """``float32`` or ``bfloat16``."""
        return self._precision

    @cached_property
    def network(self) -> Network:
        """The network of the run, loaded when first needed."""
        run = self._run
        return load_run_network(
            self._folder.weights,
            run.arch,
            len(run.class_names),
            size=run.preprocess.size,
            blocks=run.blocks,
        )

    @cached_property
    def _ready(self) -> ReadyNetwork:
        """The network on its device, made when a pass first needs it."""
        return ReadyNetwork(self.network, device=self.device, precision=self._precision)

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
            The images, at the size of the run.
        view
            What is done to each image first; plain by default.
        normalise
            Whether pixel values are normalised with the constants of the run.
        probes
            What else to observe in the same pass; what each leaves is stored under its own key.
        norms_only
            Whether block norms are all that is stored and returned: features and logits are then
            ``(n, 0)``, and predictions are zeros.

        Raises
        ------
        InvalidInputError
            If the disk has no room for them, or the network gives values that are not finite.
        """
        variant = self._variant(view or View(), normalise=normalise, norms_only=norms_only)
        wanted = variant.wanted(images)
        if variant.missing(wanted, probes):
            with self._writing(images, variant):
                self._compute(images, variant, wanted, probes)
        else:
            self.passes.count(images.name, computed=0, cached=len(images))
        return self._open(images, variant, wanted, probes)

    def as_decoded(self, name: str, views: Mapping[View, bool]) -> Callable[[ImageShard], None]:
        """Return what computes and stores activations of shards whose pixels will not be kept.

        Parameters
        ----------
        name
            Name of the image set.
        views
            What is done to each image first, and whether block norms are all that is stored.
        """

        def see(shard: ImageShard) -> None:
            images = ImageSet(name, (shard,))
            for view, norms_only in views.items():
                variant = self._variant(view, normalise=True, norms_only=norms_only)
                wanted = variant.wanted(images)
                if variant.missing(wanted, ()):
                    with self._writing(images, variant):
                        self._compute(images, variant, wanted, (), of=len(shard), passing=True)

        return see

    def share_out(
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

        Each process takes whole shards, so that batches, and with them activations, are those of
        one process. Every process calls this with the same images at the same time.

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
        variant = self._variant(view or View(), normalise=normalise, norms_only=norms_only)
        wanted = variant.wanted(images)
        one_writer = self._writing(images, variant) if processes.first else contextlib.nullcontext()
        with one_writer:
            # Nobody writes before all have seen what is missing.
            missing = {each.key for each in variant.missing(wanted, probes)}
            missing = processes.agreed(missing)
            mine = [each for each in wanted if each[0] in missing]
            mine = mine[processes.rank :: processes.size]
            count = sum(len(shard) for key, shard in wanted if key in missing)
            self._compute(images, variant, mine, probes, of=count)
            processes.meet()

    def learned(self, images: ImageSet, learner: Learner) -> Mapping[str, Tensor]:
        """Return the state that a learner draws from images, computing it where it is not stored.

        Parameters
        ----------
        images
            The images, at the size of the run.
        learner
            What to draw.

        Raises
        ------
        InvalidInputError
            If the network cannot be run on the images.
        """
        variant = self._variant(View(), normalise=True)
        states = variant.states
        key = digest_of_json([learner.key, images.digest])
        with self._store.lock(f"state {key}", progress=self._progress):
            if key in states.stored():
                with contextlib.suppress(CorruptArtifactError):
                    return states.read(key)
                states.forget(key)
            pre = self._run.preprocess
            label = f"{learner.key.partition('(')[0]} learns from {images.name}"
            started = time.perf_counter()
            with (
                self._progress.task(label, total=len(images), unit="images") as task,
                enough_memory(self.device, "take fewer images at a time: --score-batch-size N"),
                read_ahead(shard.load() for shard in images.shards) as shards,
            ):
                state = self._ready.learn(
                    shards,
                    learner,
                    mean=pre.mean,
                    std=pre.std,
                    batch_size=self._batch_size,
                    advance=task.advance,
                )
            self.passes.count(images.name, computed=len(images), cached=0)
            self.passes.seconds += time.perf_counter() - started
            states.write(key, state)
        return state

    def plan(self, images: ImageSet, *, view: View | None = None, norms_only: bool = False) -> Plan:
        """Say what :meth:`activations` would compute, without computing it."""
        variant = self._variant(view or View(), normalise=True, norms_only=norms_only)
        missing = variant.missing(variant.wanted(images), ())
        return Plan(total=len(images), missing=sum(len(each.shard) for each in missing))

    def bytes_per_image(self, *, norms_only: bool = False) -> int:
        """Return the room that the activations of one image take on disk, or its block norms."""
        norms = 4 * len(self.network.blocks)
        if norms_only:
            return norms
        classes, width = self.network.head().weight.shape
        return norms + 4 * (classes + width) + 8

    def rate(self) -> float | None:
        """Return images a second of the last pass of this network on this device, if known."""
        return self._variant(View(), normalise=True).folder.rates().get(str(self.device))

    def timed_rate(self) -> float:
        """Return images a second of a few batches of noise, the first of which does not count."""
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
            batch_size=self._batch_size,
            probes=probes,
        )

    def block_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Return channels, height and width of the map of every block, by name."""
        return self.network.block_shapes(self._run.preprocess.size)

    def _variant(self, view: View, *, normalise: bool, norms_only: bool = False) -> "_Variant":
        folder = ActivationFolder.of(
            self._store, self._run, precision=self._precision, view=view, normalise=normalise
        )
        return _Variant(folder, view, self._whole, norms_only=norms_only)

    def _writing(
        self, images: ImageSet, variant: "_Variant"
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the lock without which no activations of images are written or removed."""
        return self._store.lock(variant.folder.lock_name(images.name), progress=self._progress)

    def _compute(
        self,
        images: ImageSet,
        variant: "_Variant",
        wanted: Sequence[tuple[str, ImageShard]],
        probes: Sequence[Probe],
        *,
        of: int | None = None,
        passing: bool = False,
    ) -> None:
        """Compute what is missing; it may be this process's part of all there is to compute."""
        missing = variant.missing(wanted, probes)  # again: another process may have been at it
        own = sum(len(each.shard) for each in missing)
        count = own if of is None else of
        # What is shared out is read later, and counted as stored then.
        left = len(images) - count if of is None else -count
        self.passes.count(images.name, computed=count, cached=left)
        if not missing:
            return
        needed = count * self.bytes_per_image(norms_only=variant.norms_only)
        check_room(self._store.root, needed, f"activations of {count:,} images")
        remove_leftovers(variant.folder.path)
        variant.folder.write_manifest()
        started = time.perf_counter()
        with self._progress.task(
            f"forward pass: {images.name}", total=count, unit="images", passing=passing
        ) as task:
            pace = _Pace(task, own, count)
            # Usually one group; more where a pass for fewer probes was cut off or came before.
            for lacking in dict.fromkeys(each.probes for each in missing):
                group = [each for each in missing if each.probes == lacking]
                loaded = (
                    variant.view.apply(each.shard.load(), each.shard.indices) for each in group
                )
                with (
                    enough_memory(self.device, "take fewer images at a time: --score-batch-size N"),
                    read_ahead(loaded) as shards,
                ):
                    outputs = self._ready.extract(
                        shards,
                        mean=variant.folder.key["mean"],
                        std=variant.folder.key["std"],
                        batch_size=self._batch_size,
                        probes=lacking,
                        advance=pace.advance,
                    )
                    for each, activations in zip(group, outputs, strict=True):
                        variant.write(each, activations)
        seconds = time.perf_counter() - started
        self.passes.seconds += seconds
        if all(each.core and not each.probes for each in missing):
            variant.folder.write_manifest(str(self.device), own / seconds)

    def _open(
        self,
        images: ImageSet,
        variant: "_Variant",
        wanted: Sequence[tuple[str, ImageShard]],
        probes: Sequence[Probe],
    ) -> ActivationSet:
        def loader(key: str, shard: ImageShard) -> ActivationShard:
            def load() -> Activations:
                with contextlib.suppress(CorruptArtifactError, FileNotFoundError):
                    return variant.read(shard, probes)
                with self._writing(images, variant):
                    # Another process may have made it again while this one waited.
                    with contextlib.suppress(CorruptArtifactError, FileNotFoundError):
                        return variant.read(shard, probes)
                    self._progress.note(
                        f"a stored shard of activations of {images.name} is damaged: made again"
                    )
                    variant.forget(shard, probes)
                    self._compute(images, variant, [(key, shard)], probes)
                    return variant.read(shard, probes)

            return ActivationShard(len(shard), load)

        return ActivationSet([loader(key, shard) for key, shard in wanted], self.device)


class _Pace:
    """Shows the work of all processes by the part of it that this one has done.

    Parameters
    ----------
    task
        Shows it.
    own, total
        Images of this process, and of all.
    """

    def __init__(self, task: Task, own: int, total: int) -> None:
        self._task = task
        self._own = own
        self._total = total
        self._done = 0
        self._shown = 0

    def advance(self, images: int) -> None:
        """Count images of this process."""
        self._done += images
        now = self._done * self._total // self._own
        self._task.advance(now - self._shown)
        self._shown = now


@dataclass(frozen=True)
class _Missing:
    """What is not stored of one shard."""

    key: str
    shard: ImageShard
    core: bool
    probes: tuple[Probe, ...]


class _Kept:
    """A folder of arrays: a file ``<key>.<digest>.safetensors`` each.

    The key says what they are of, the digest what was written.

    Parameters
    ----------
    folder
        The folder.
    whole
        Files that were found whole before; they are not checked again.
    """

    def __init__(self, folder: Path, whole: set[Path]) -> None:
        self.folder = folder
        self._whole = whole

    def stored(self) -> dict[str, Path]:
        """Return the file of every key that is there."""
        return files_in(self.folder)

    def write(self, key: str, arrays: Mapping[str, Tensor]) -> None:
        """Store arrays."""
        content = safetensors.torch.save({n: array.contiguous() for n, array in arrays.items()})
        path = self.folder / f"{key}.{digest_of_bytes(content)}{SUFFIX}"
        with replacing(path, size=len(content)) as stream:
            stream.write(content)

    def read(self, key: str) -> dict[str, Tensor]:
        """Read arrays, which stay on the disk until they are touched.

        Raises
        ------
        FileNotFoundError
            If they are not there.
        CorruptArtifactError
            If they are not what was written.
        """
        path = self.stored().get(key)
        if path is None:
            raise FileNotFoundError(key)
        if path not in self._whole:
            if digest_of_file(path) != digest_in(path):
                raise CorruptArtifactError(f"{path} is damaged; remove it")
            self._whole.add(path)
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise CorruptArtifactError(f"{path} is damaged: {error}; remove it") from None

    def forget(self, key: str) -> None:
        """Remove arrays."""
        path = self.stored().get(key)
        if path is not None:
            self._whole.discard(path)
            path.unlink(missing_ok=True)


class _Variant:
    """One network's activations under one way to present images to it.

    A shard is named by its pixels. What each probe left has a folder of its own, and so have block
    norms of which nothing else is wanted.
    """

    def __init__(
        self, folder: ActivationFolder, view: View, whole: set[Path], *, norms_only: bool = False
    ) -> None:
        self.view = view
        self.folder = folder
        self.norms_only = norms_only
        self.states = _Kept(folder.path / "states", whole)
        self._whole = whole
        core = _Kept(folder.path, whole)
        # Where what is wanted of every image may be; what is computed goes to the first.
        self._core = (_Kept(folder.path / NORMS, whole), core) if norms_only else (core,)
        self._names = ("block_norms",) if norms_only else CORE

    def wanted(self, images: ImageSet) -> list[tuple[str, ImageShard]]:
        """Return every shard of images with its key."""
        return [(self._key_of(shard), shard) for shard in images.shards]

    def _key_of(self, shard: ImageShard) -> str:
        if self.view.kind != "plain":
            return digest_of_json([shard.digest, digest_of(shard.indices)])
        return shard.digest

    def missing(
        self, wanted: Sequence[tuple[str, ImageShard]], probes: Sequence[Probe]
    ) -> list[_Missing]:
        """Return the shards of which something is not stored."""
        core = {key for place in self._core for key in place.stored()}
        observed = {probe: self._observed(probe).stored() for probe in probes}
        each = [
            _Missing(
                key,
                shard,
                core=not self._has(core, shard),
                probes=tuple(probe for probe in probes if not self._has(observed[probe], shard)),
            )
            for key, shard in wanted
        ]
        return [one for one in each if one.core or one.probes]

    def _has(self, stored: Collection[str], shard: ImageShard) -> bool:
        """Return whether a shard, or else every shard that its images come from, is stored."""
        return self._key_of(shard) in stored or (
            bool(shard.pieces) and all(self._has(stored, piece.shard) for piece in shard.pieces)
        )

    def write(self, missing: _Missing, activations: Activations) -> None:
        """Store what was missing of one shard."""
        arrays = activations.arrays()
        if missing.core:
            self._core[0].write(missing.key, {name: arrays[name] for name in self._names})
        for probe in missing.probes:
            self._observed(probe).write(missing.key, {probe.key: arrays[probe.key]})

    def read(self, shard: ImageShard, probes: Sequence[Probe]) -> Activations:
        """Read one shard, from the shards that its images come from where it is not stored itself.

        Raises
        ------
        FileNotFoundError
            If it, or what a probe left, is not there.
        CorruptArtifactError
            If it is not what was written.
        """
        key = self._key_of(shard)
        try:
            arrays = self._arrays(self._core, self._names, shard)
            for probe in probes:
                arrays |= self._arrays([self._observed(probe)], [probe.key], shard)
            activations = Activations.of(_padded(arrays) if self.norms_only else arrays)
        except (KeyError, ValueError) as error:
            raise CorruptArtifactError(
                f"shard {key} in {self.folder.path} is not whole: {error}; remove it"
            ) from None
        if len(activations) != len(shard):
            raise CorruptArtifactError(
                f"shard {key} in {self.folder.path} has {len(activations)} rows, not {len(shard)}; "
                "remove it"
            )
        return activations

    def _arrays(
        self, places: Sequence[_Kept], names: Sequence[str], shard: ImageShard
    ) -> dict[str, Tensor]:
        for place in places:
            with contextlib.suppress(FileNotFoundError):
                stored = place.read(self._key_of(shard))
                return {name: stored[name] for name in names}
        if not shard.pieces:
            raise FileNotFoundError(self._key_of(shard))
        parts = []
        for piece in shard.pieces:
            arrays = self._arrays(places, names, piece.shard)
            parts.append({name: values[piece.rows] for name, values in arrays.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def forget(self, shard: ImageShard, probes: Sequence[Probe]) -> None:
        """Remove one shard, what probes left of it, and what is damaged of where it comes from."""
        for kept in (*self._core, *(self._observed(probe) for probe in probes)):
            kept.forget(self._key_of(shard))
            for piece in shard.pieces:
                try:
                    self._arrays([kept], (), piece.shard)
                except (CorruptArtifactError, FileNotFoundError):
                    kept.forget(self._key_of(piece.shard))

    def _observed(self, probe: Probe) -> _Kept:
        return _Kept(self.folder.path / f"probe-{digest_of_json(probe.key)[:16]}", self._whole)


def _padded(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return arrays with block norms as activations of which nothing else is known."""
    rows = len(arrays["block_norms"])
    nothing = {"logits": torch.zeros(rows, 0), "features": torch.zeros(rows, 0)}
    return {**nothing, "predictions": torch.zeros(rows, dtype=torch.int64), **arrays}
