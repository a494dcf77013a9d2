"""The work of a call of ``ood score``, and its expected cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oodcli.data.decoding.shards import UNDECODED
from oodcli.data.views import View
from oodcli.errors import InvalidInputError
from oodcli.images import ImageSet
from oodcli.methods import MethodSpec
from oodcli.methods._blocks import BLOCK_MEANS
from oodcli.progress import format_duration
from oodcli.records import as_json
from oodcli.scoring.fitting import learns_from_train, puzzle_views, selects_block
from oodcli.scoring.open_run import OpenRun
from oodcli.scoring.sets import WantedSet
from oodcli.store.searches import Tuning
from oodcli.store.store import check_free_space, format_bytes
from oodcli.text import counted

SCORE_SCHEMA = 1
# Largest size of the pooled maps of all blocks that are computed without being asked again.
BLOCKS_LIMIT_GB = 20.0


@dataclass(frozen=True)
class PlannedPass:
    """The planned forward pass over one image set.

    Parameters
    ----------
    dataset
        Name of the set.
    images
        Number of images.
    missing
        Number of images that must go through the network.
    seconds
        Expected time in seconds; None if the speed of the network is not known.
    bytes
        Size of the new activations on disk, in bytes.
    undecoded
        Number of images that must be decoded first; until then they count as missing.
    """

    dataset: str
    images: int
    missing: int
    seconds: float | None
    bytes: int
    undecoded: int = 0


@dataclass(frozen=True)
class Plan:
    """The result of a dry run.

    Parameters
    ----------
    run
        Name of the run.
    device
        Device that would be used.
    methods
        Canonical names of the methods.
    images_per_s
        Assumed speed, in images per second.
    passes
        The required forward passes.
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
        The sets to score in addition to the ID test images.
    specs
        The methods.
    auto
        Canonical name of the recommended method among them, if ``auto`` was requested.
    tune
        How parameters are tuned: ``openood``, ``pseudo``, or both; not at all if empty.
    tune_ood
        OOD validation images instead of those of the benchmark, if given.
    exports
        Whether activations, including those of the training images, are exported to a file.
    skipped
        Why methods of a group are not used, by canonical name.
    keep_blocks
        Whether the pooled maps of all blocks are stored, also where no method needs them.
    blocks_limit
        Largest size of pooled maps that are computed, in GB.
    """

    run: OpenRun
    sets: tuple[WantedSet, ...]
    specs: tuple[MethodSpec, ...]
    auto: str | None
    tune: tuple[Tuning, ...] = ()
    tune_ood: str | None = None
    exports: bool = False
    skipped: Mapping[str, str] = field(default_factory=dict)
    keep_blocks: bool = False
    blocks_limit: float = BLOCKS_LIMIT_GB

    @property
    def observes(self) -> bool:
        """Whether probes are needed; their pass also gives the ordinary activations."""
        return self.keep_blocks or any(spec.needs_network for spec in self.specs)

    @property
    def needs_blocks(self) -> bool:
        """Whether the pooled maps of all blocks are computed and stored."""
        return self.keep_blocks or any("blocks" in spec.inputs for spec in self.specs)

    @property
    def needs_jigsaw_features(self) -> bool:
        """Whether the features of jigsaw puzzles are stored, and not only their block norms."""
        return any("jigsaw features" in spec.inputs for spec in self.specs)

    @property
    def puzzles(self) -> Mapping[View, bool]:
        """The view of the training images as puzzles; see :func:`puzzle_views`."""
        return puzzle_views(self.specs)

    @property
    def calibrates(self) -> bool:
        """Whether a method is fitted on calibration images."""
        return any(spec.needs_calibration for spec in self.specs)

    @property
    def needs_block(self) -> bool:
        """Whether a method uses the block selected by NormRatio."""
        return selects_block(self.specs)

    @property
    def needs_train(self) -> bool:
        """Whether a method is fitted on the training images."""
        return learns_from_train(self.specs)

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration images need a pass of their own (they may be training images)."""
        if not any("calibration" in spec.inputs for spec in self.specs):
            return False
        return not (self.needs_train and self.run.calibration_part == "train")

    def limit(self) -> int | None:
        """Return the limit if a set used for scoring, fitting or export has more images."""
        dataset = self.run.data.dataset
        used = [dataset.id_test, *(each.dataset.ood_part for each in self.sets)]
        if "train" in dataset.parts and (self.needs_train or self.needs_block or self.exports):
            used.append(dataset.parts["train"])
        return self.run.limit if self.run.limits(*used) else None

    def report_cost(self, sets: Sequence[ImageSet]) -> None:
        """Report the cost of pooled maps, and of methods that need more than one forward pass.

        Parameters
        ----------
        sets
            The images that are scored.

        Raises
        ------
        InvalidInputError
            If pooled maps need more than the limit, or more than is free on the disk.
        """
        if self.needs_blocks:
            self._price_blocks(sets)
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

    def _price_blocks(self, sets: Sequence[ImageSet]) -> None:
        run, activator = self.run, self.run.activator
        every = list(sets)
        if "train" in run.data.dataset.parts:
            every.append(run.train())
        if run.calibration_part != "train":  # otherwise they are some of the training images
            every.append(run.calibration())
        plans = [activator.plan(images, probes=[BLOCK_MEANS]) for images in every]
        missing, widths = sum(each.missing for each in plans), activator.block_widths
        needed = missing * activator.bytes_of_blocks()
        what = (
            f"pooled maps of {counted(len(widths), 'block')} ({sum(widths):,} numbers per image) "
            f"of {counted(missing, 'image')}"
        )
        if needed > self.blocks_limit * 1e9:
            raise InvalidInputError(
                f"{what} need {format_bytes(needed)}, more than the limit of "
                f"{self.blocks_limit:g} GB; use fewer images (--limit N), or raise the limit: "
                "--blocks-limit GB"
            )
        check_free_space(run.store.root, needed, what)
        stored = sum(each.total for each in plans) - missing
        run.progress.note(
            f"{what} take {format_bytes(needed)} in the store; those of "
            f"{counted(stored, 'image')} are stored"
        )


def make_plan(work: Work) -> Plan:
    """Return the forward passes required by the work, without a forward pass over data."""
    run = work.run
    views: list[tuple[ImageSet, View]] = [(run.test(), View())]
    views += [(each.images(run), View()) for each in work.sets]
    work.report_cost([images for images, _ in views])
    if work.needs_train or (work.keep_blocks and "train" in run.data.dataset.parts):
        views.append((run.train(), View()))
    views += [(run.train(), view) for view in work.puzzles]
    if work.needs_calibration or (work.keep_blocks and run.calibration_part != "train"):
        views.append((run.calibration(), View()))
    rate = run.activator.rate() or run.activator.timed_rate()
    return Plan(
        run=run.name,
        device=str(run.compute.device),
        methods=tuple(spec.canonical for spec in work.specs),
        passes=tuple(_planned_pass(work, images, view, rate) for images, view in views),
        images_per_s=rate,
    )


def _planned_pass(work: Work, images: ImageSet, view: View, rate: float) -> PlannedPass:
    run, puzzles = work.run, view.kind == "jigsaw"
    norms_only = work.puzzles.get(view, False)
    probes = [BLOCK_MEANS] if work.needs_blocks and not puzzles else []
    found = run.activator.plan(images, view=view, norms_only=norms_only, probes=probes)
    ordinary = run.activator.plan(images, view=view, norms_only=norms_only).missing
    needed = ordinary * run.activator.bytes_per_image(norms_only=norms_only)
    needed += found.missing * run.activator.bytes_of_blocks() if probes else 0
    return PlannedPass(
        dataset=f"{images.name} (jigsaw)" if puzzles else images.name,
        images=found.total,
        missing=found.missing,
        seconds=found.missing / rate,
        bytes=needed,
        # Puzzles are made of images that another pass has decoded.
        undecoded=0 if puzzles else _undecoded(images),
    )


def _undecoded(images: ImageSet) -> int:
    """Return the number of images to decode: all images of the shards that contain these."""
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
