"""What a call of ``ood score`` has to compute, and what that costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oodcli.data.decoding.prepare import UNDECODED
from oodcli.data.views import View
from oodcli.images import ImageSet
from oodcli.methods import MethodSpec
from oodcli.progress import format_duration
from oodcli.records import as_json
from oodcli.scoring.fitting import learns_from_train
from oodcli.scoring.open_run import OpenRun
from oodcli.scoring.sets import WantedSet
from oodcli.store.searches import Tuning
from oodcli.text import counted

SCORE_SCHEMA = 1


@dataclass(frozen=True)
class PlannedPass:
    """What a dry run says of one image set.

    Parameters
    ----------
    dataset
        Name of the set.
    images
        Its images.
    missing
        Images that have to go through the network.
    seconds
        Expected time; None if the rate of the network is not known.
    bytes
        Size of the new activations on disk.
    undecoded
        Images that have to be decoded first; until then they count as missing.
    """

    dataset: str
    images: int
    missing: int
    seconds: float | None
    bytes: int
    undecoded: int = 0


@dataclass(frozen=True)
class Plan:
    """What a dry run found.

    Parameters
    ----------
    run
        Name of the run.
    device
        Device that would be used.
    methods
        Canonical names of the methods.
    images_per_s
        Rate used for the expected times.
    passes
        The forward passes that are needed.
    """

    run: str
    device: str
    methods: tuple[str, ...]
    images_per_s: float
    passes: tuple[PlannedPass, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {"schema": SCORE_SCHEMA, **as_json(self)}


@dataclass(frozen=True)
class Work:
    """The data sets to score and the methods.

    Parameters
    ----------
    run
        The run, on its benchmark if it is scored on one.
    sets
        The sets to score beside the ID test images.
    specs
        The methods.
    auto
        Canonical name of the one among them that was recommended, if that was asked for.
    tune
        How parameters are chosen: ``openood``, ``pseudo``, or both; defaults if empty.
    tune_ood
        OOD validation images in place of the benchmark's, if any were named.
    exports
        Whether activations go to a file, those of the training images among them.
    """

    run: OpenRun
    sets: tuple[WantedSet, ...]
    specs: tuple[MethodSpec, ...]
    auto: str | None
    tune: tuple[Tuning, ...] = ()
    tune_ood: str | None = None
    exports: bool = False

    @property
    def observes(self) -> bool:
        """Whether methods observe images in a pass that gives the ordinary activations too."""
        return any(spec.needs_network for spec in self.specs)

    @property
    def calibrates(self) -> bool:
        """Whether a method learns from calibration images."""
        return any(spec.needs_calibration for spec in self.specs)

    @property
    def needs_block(self) -> bool:
        """Whether a method leaves the choice of the block to NormRatio."""
        return any(
            "jigsaw" in part.method.inputs and "block" not in part.given
            for spec in self.specs
            for part in spec.parts
        )

    @property
    def needs_train(self) -> bool:
        """Whether a method learns from the training images."""
        return learns_from_train(self.specs)

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration images are computed for themselves, not as training images."""
        if not any("calibration" in spec.inputs for spec in self.specs):
            return False
        return not (self.needs_train and self.run.calibration_part == "train")

    def limit(self) -> int | None:
        """Return the limit if a set that is scored, learned from or exported has more images."""
        dataset = self.run.data.dataset
        used = [dataset.id_test, *(each.dataset.ood_part for each in self.sets)]
        if "train" in dataset.parts and (self.needs_train or self.needs_block or self.exports):
            used.append(dataset.parts["train"])
        return self.run.limit if self.run.limits(*used) else None

    def tell_cost(self, sets: Sequence[ImageSet]) -> None:
        """Say what the methods cost that need more than one forward pass, if there are any."""
        costly = [spec for spec in self.specs if spec.passes or spec.train_passes]
        if not costly:
            return
        scored = sum(map(len, sets))
        train = len(self.run.train()) if any(spec.train_passes for spec in costly) else 0
        passes = sum(spec.passes * scored + spec.train_passes * train for spec in costly)
        each = ", ".join(f"{spec.canonical} {_times(spec)}" for spec in costly)
        rate = self.run.activator.rate() or self.run.activator.timed_rate()
        count = counted(scored, "image") + (
            f" and {counted(train, 'training image')}" if train else ""
        )
        self.run.progress.note(
            f"these methods need more than one forward pass: {each}; for {count} about "
            f"{format_duration(passes / rate)} at {rate:,.0f} images/s, minus what is stored"
        )


def planned(work: Work) -> Plan:
    """Return the forward passes that work would take, without any over data."""
    run = work.run
    views: list[tuple[ImageSet, View]] = [(run.test(), View())]
    views += [(each.images(run), View()) for each in work.sets]
    work.tell_cost([images for images, _ in views])
    if work.needs_train:
        views.append((run.train(), View()))
    if work.needs_block:
        views.append((run.train(), View("jigsaw")))
    if work.needs_calibration:
        views.append((run.calibration(), View()))
    rate = run.activator.rate() or run.activator.timed_rate()
    return Plan(
        run=run.name,
        device=str(run.compute.device),
        methods=tuple(spec.canonical for spec in work.specs),
        passes=tuple(_planned_pass(run, images, view, rate) for images, view in views),
        images_per_s=rate,
    )


def _planned_pass(run: OpenRun, images: ImageSet, view: View, rate: float) -> PlannedPass:
    puzzles = view.kind == "jigsaw"
    found = run.activator.plan(images, view=view, norms_only=puzzles)
    return PlannedPass(
        dataset=f"{images.name} (jigsaw)" if puzzles else images.name,
        images=found.total,
        missing=found.missing,
        seconds=found.missing / rate,
        bytes=found.missing * run.activator.bytes_per_image(norms_only=puzzles),
        # Puzzles are made of images that another pass has decoded.
        undecoded=0 if puzzles else _undecoded(images),
    )


def _undecoded(images: ImageSet) -> int:
    """Return how many images have to be decoded for some: all of the shards that they are in."""
    shards = {
        id(each): each
        for shard in images.shards
        for each in ([shard] if shard.known_digest else [piece.shard for piece in shard.pieces])
    }
    return sum(len(each) for each in shards.values() if each.known_digest == UNDECODED)


def _times(spec: MethodSpec) -> str:
    parts = [f"{spec.passes:g} times"] if spec.passes else []
    parts += [f"{spec.train_passes:g} over training images"] if spec.train_passes else []
    return " and ".join(parts)
