"""Why an image is out of distribution: one forward pass, seen by methods of different kinds."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.activations import Activations
from oodcli.compute.devices import explain_out_of_memory
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.incoming import Item, decoded
from oodcli.errors import OodError
from oodcli.methods._class_means import directions
from oodcli.methods.csd import CSD, Regions
from oodcli.methods.knn import KNN
from oodcli.metrics import check_finite
from oodcli.pools import open_pools
from oodcli.probes import Probe
from oodcli.regions import REGIONS, region_box
from oodcli.reporting.explanations import (
    BlockView,
    Box,
    Explanation,
    ExplanationPixels,
    MethodView,
    Neighbour,
    RegionMatch,
    TypicalImage,
)
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.detector import Detector, chances_of, detector_or_reason, is_stored
from oodcli.screening.energy_map import EnergyMap
from oodcli.screening.id_images import IdImages, ShownTraining
from oodcli.screening.thresholds import ThresholdRule
from oodcli.windows import Window

# What methods look at, each with those that do, the first defined of which is taken.
KINDS: Mapping[str, tuple[str, ...]] = {
    "softmax": ("msp",),
    "logits": ("energy",),
    "neighbours": ("knn",),
    "subspace": ("vim", "residual"),
    "block norm": ("featurenorm",),
    "class means": ("mds",),
    "density": ("gmm",),
}
N_KINDS = 5
CHOSEN = "chosen"
# The regions of training images are compared without being asked for up to this size.
_REGION_BYTES = 2 * 2**30


@dataclass(frozen=True)
class ExplainSettings:
    """What an explanation consists of.

    Parameters
    ----------
    neighbours
        Number of training images to show, at least 1.
    regions
        Whether regions are compared; None: if they are stored, or need at most 2 GiB.
    """

    neighbours: int = 6
    regions: bool | None = None


@dataclass(frozen=True, eq=False)
class Explainer:
    """Explains images with a detector and methods of other kinds; created by :meth:`of`.

    Parameters
    ----------
    run
        The run.
    main
        The detector of the verdict.
    others
        Detectors of other kinds, by kind.
    regions
        The detector of regions; None if they are not compared.
    settings
        What an explanation consists of.
    missing
        Parts that are missing in every explanation, with the reason.
    """

    run: OpenRun
    main: Detector
    others: Mapping[str, Detector]
    regions: Detector | None
    settings: ExplainSettings
    missing: tuple[str, ...] = ()
    _id_images: dict[int, IdImages | str] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, run: OpenRun, main: Detector, settings: ExplainSettings) -> "Explainer":
        """Return an explainer; methods without a stored detector are fitted and stored now.

        Parameters
        ----------
        run
            The run.
        main
            The detector of the verdict.
        settings
            What an explanation consists of.
        """
        missing: list[str] = []
        # First, because its pass over the training images also gives their ordinary activations.
        regions = _regions(run, settings, missing)
        others = _others(run, main, missing)
        return cls(run, main, others, regions, settings, tuple(missing))

    @cached_property
    def _detectors(self) -> list[tuple[str, Detector]]:
        """The detector of the verdict and the others, with their kinds."""
        return [(CHOSEN, self.main), *self.others.items()]

    @cached_property
    def _block(self) -> tuple[int, Literal["method", "normratio", "last"]] | None:
        """Index of the shown block, and why it is this one; None for a network without blocks."""
        blocks = self.run.record.blocks
        if not blocks:
            return None
        for detector in (self.main, self.others.get("block norm")):
            block = None if detector is None else _block_of(detector)
            if detector is not None and block is not None:
                return block, "method" if "block=" in detector.method else "normratio"
        return len(blocks) - 1, "last"

    @cached_property
    def _energy(self) -> EnergyMap | None:
        block = self._block
        return None if block is None else EnergyMap(self.run.record.blocks[block[0]])

    @cached_property
    def _probes(self) -> tuple[Probe, ...]:
        """The probes of all parts, without duplicates: one forward pass serves all."""
        every = [each for _, detector in self._detectors for each in detector.fitted.probes]
        every += [] if self.regions is None else list(self.regions.fitted.probes)
        every += [] if self._energy is None else [self._energy]
        return tuple({probe.key: probe for probe in every}.values())

    @cached_property
    def _training(self) -> ShownTraining:
        return ShownTraining(self.run, self._extract)

    def _extract(self, pixels: NDArray[np.uint8], probes: Sequence[Probe]) -> Activations:
        """Run the network on images ``(n, 3, h, w)``; activations stay on the device."""
        pre, compute = self.run.record.preprocess, self.run.compute
        with explain_out_of_memory(compute.device, "use another device: --device cpu"):
            passes = self.main.ready.extract(
                [pixels],
                mean=pre.mean,
                std=pre.std,
                batch_size=compute.batch_size,
                probes=probes,
                to=compute.device,
            )
            return next(passes)

    @contextlib.contextmanager
    def explain(
        self, images: Iterable[Item], window: Window | None = None
    ) -> Iterator[Iterator[tuple[Explanation, ExplanationPixels | None]]]:
        """Explain images, in order; they are read while the context lasts.

        Parameters
        ----------
        images
            The images.
        window
            Which values of medical images are black and white.

        Yields
        ------
        Iterator of (Explanation, ExplanationPixels or None)
            The explanation and the pixels of its picture; of an unreadable image, its path and the
            reason, without pixels.

        Raises
        ------
        OodError
            If a score is not finite, or the device has too little memory.
        """
        pre = self.run.record.preprocess
        resizing = Resizing(pre.size, pre.resize)
        with open_pools() as pools:
            yield (
                (Explanation(item.name, error=image), None)
                if isinstance(image, str)
                else self._explained(item.name, image)
                for item, image in decoded(images, resizing, pools.threads(), window)
            )

    def _explained(
        self, name: str, image: NDArray[np.uint8]
    ) -> tuple[Explanation, ExplanationPixels]:
        batch = self._extract(np.ascontiguousarray(image.transpose(2, 0, 1)[None]), self._probes)
        predicted = int(batch.predictions[0])
        chance = float(chances_of(batch.logits.double(), batch.predictions)[0])
        views = tuple(_view(kind, each, batch) for kind, each in self._detectors)
        missing = list(self.missing)
        near, near_pixels = self._neighbours(batch, missing)
        region, region_pixels = self._region(batch, image.shape[:2], missing)
        explanation = Explanation(
            path=name,
            predicted=self.main.classes[predicted] if predicted >= 0 else None,
            probability=round(chance, 6) if predicted >= 0 else None,
            verdict=views[0].verdict,
            methods=views,
            flagged=sum(each.verdict == "ood" for each in views),
            neighbours=near,
            region=region,
        )
        pixels = ExplanationPixels(image, near_pixels, region_pixels)
        explanation, pixels = self._beside_id(explanation, pixels, batch, predicted, missing)
        return replace(explanation, missing=tuple(missing)), pixels

    def _neighbours(
        self, batch: Activations, missing: list[str]
    ) -> tuple[tuple[Neighbour, ...], tuple[NDArray[np.uint8] | None, ...]]:
        """Return the nearest training images by their features."""
        knn = self._fitted(KNN)
        if knn is None:
            return (), ()
        distances, rows = knn.bank.neighbours(directions(batch.features), self.settings.neighbours)
        near, at = distances[0].tolist(), rows[0].tolist()
        try:
            places = self._training.rows(at, of=knn.bank.size)
            images = [self._training.pixels(int(row)) for row in places]
            self._training.check(images, knn.bank, at, lambda few: directions(few.features))
        except OodError as error:
            missing.append(f"names and pixels of training images: {error}")
            found = [
                Neighbour(f"training image {row}", None, d, row)
                for d, row in zip(near, at, strict=True)
            ]
            return tuple(found), (None,) * len(found)
        return tuple(
            Neighbour(self._training.name(int(place)), self._training.label(int(place)), d, row)
            for place, d, row in zip(places, near, at, strict=True)
        ), tuple(images)

    def _region(
        self, batch: Activations, size: tuple[int, ...], missing: list[str]
    ) -> tuple[RegionMatch | None, tuple[NDArray[np.uint8] | None, ...]]:
        """Return the region of an image that comes nearest, and its neighbours."""
        if self.regions is None:
            return None, ()
        csd = self.regions.fitted.detector
        assert isinstance(csd, CSD)  # as it was parsed
        found = csd.matches(batch, self.settings.neighbours)
        region = int(found.regions[0])
        if region < 0:
            missing.append("regions: the last map of this image is zero everywhere")
            return None, ()
        near, at = found.distances[0].tolist(), found.rows[0].tolist()
        try:
            places = self._training.rows(
                [row // len(REGIONS) for row in at], of=csd.bank.size // len(REGIONS)
            )
            images = [self._training.pixels(int(row)) for row in places]
            self._training.check(
                images, csd.bank, at, lambda few: _region_vectors(few, at, images), [Regions()]
            )
            names = [self._training.name(int(row)) for row in places]
            labels = [self._training.label(int(row)) for row in places]
        except OodError as error:
            reason = f"names and pixels of training images: {error}"
            missing += [] if reason in missing else [reason]
            images, labels = [None] * len(at), [None] * len(at)
            names = [f"training image {row // len(REGIONS)}" for row in at]
        neighbours = tuple(
            Neighbour(
                name, label, distance, row // len(REGIONS),
                REGIONS[row % len(REGIONS)], self._box(row % len(REGIONS), size),
            )
            for name, label, distance, row in zip(names, labels, near, at, strict=True)
        )  # fmt: skip
        return RegionMatch(REGIONS[region], self._box(region, size), neighbours), tuple(images)

    def _box(self, region: int, size: tuple[int, ...]) -> Box:
        """Return left, top, right and bottom of a region in pixels of the network's input."""
        _, rows, columns = self._last_map
        height, width = size
        return region_box(region, (rows, columns), (height, width))

    @cached_property
    def _last_map(self) -> tuple[int, int, int]:
        """Channels, height and width of the output of the last block."""
        shapes = self.main.ready.network.block_shapes(self.run.record.preprocess.size)
        return list(shapes.values())[-1]

    def _beside_id(
        self,
        explanation: Explanation,
        pixels: ExplanationPixels,
        batch: Activations,
        predicted: int,
        missing: list[str],
    ) -> tuple[Explanation, ExplanationPixels]:
        """Add energies of the block and a typical ID image of the predicted class."""
        beside = self._id_images_of(predicted)
        energy = None if self._energy is None else _first(batch.extra[self._energy.key])
        if isinstance(beside, str):
            missing.append(f"ID images: {beside}")
            explanation = replace(explanation, block=self._block_view(energy, None, 0))
            return explanation, replace(pixels, energy=energy)
        scores = self.main.scores_of(beside.activations)
        at = int(np.argsort(scores, kind="stable")[(len(scores) - 1) // 2])
        mean = typical = None
        if self._energy is not None:
            maps = beside.activations.extra[self._energy.key].cpu().numpy()
            mean, typical = maps.mean(axis=0), maps[at]
        explanation = replace(
            explanation,
            compared_with=beside.label,
            block=self._block_view(energy, mean, len(scores)),
            typical=TypicalImage(
                beside.name(at),
                beside.label_of(at),
                float(scores[at]),
                round(float(self.main.percentile(scores[at])), 4),
                len(scores),
            ),
        )
        return explanation, replace(
            pixels,
            energy=energy,
            id_energy=mean,
            typical_energy=typical,
            typical=beside.pixels(at),
        )

    def _id_images_of(self, predicted: int) -> IdImages | str:
        """Return ID images of the predicted class, or why there are none."""
        if predicted not in self._id_images:
            probes = [*self.main.fitted.probes, *([] if self._energy is None else [self._energy])]
            try:
                self._id_images[predicted] = IdImages.of(
                    self.run, self.main.id.part, predicted if predicted >= 0 else None, probes
                )
            except OodError as error:
                self._id_images[predicted] = str(error)
        return self._id_images[predicted]

    def _block_view(
        self, energy: NDArray[np.float32] | None, mean: NDArray[np.float32] | None, n: int
    ) -> BlockView | None:
        block = self._block
        if block is None or energy is None:
            return None
        name = self.run.record.blocks[block[0]]
        return BlockView(
            block[0], name, block[1], _rows(energy), () if mean is None else _rows(mean), n
        )

    def _fitted(self, kind: type[KNN]) -> KNN | None:
        """Return the fitted method of a type, if there is one."""
        return next(
            (
                each.fitted.detector
                for _, each in self._detectors
                if isinstance(each.fitted.detector, kind)
            ),
            None,
        )


def _others(run: OpenRun, main: Detector, missing: list[str]) -> dict[str, Detector]:
    """Return detectors of other kinds than the one of the verdict, and say which are missing."""
    own = re.split(r"[:+@]", main.method)[0]
    kinds = {kind: names for kind, names in KINDS.items() if own not in names}
    wanted = N_KINDS - (len(KINDS) - len(kinds))
    rule = ThresholdRule(tpr=main.threshold.tpr or None)
    found: dict[str, Detector] = {}
    reasons: list[str] = []
    for kind, names in kinds.items():
        for name in names:
            if len(found) == wanted or kind in found:
                break
            try:
                detector = detector_or_reason(run, name, rule)
            except OodError as error:
                detector = str(error)
            if isinstance(detector, str):
                reasons.append(f"{name}: {detector}")
            else:
                found[kind] = detector
    if len(found) < wanted:
        missing += reasons
    return found


def _regions(run: OpenRun, settings: ExplainSettings, missing: list[str]) -> Detector | None:
    """Return the detector of regions, or say in ``missing`` why there is none."""
    if settings.regions is False:
        return None
    try:
        if settings.regions is None and not is_stored(run, "csd"):
            needed = _region_bytes(run)
            if needed > _REGION_BYTES:
                missing.append(
                    f"regions: those of all training images need {needed / 1e9:.1f} GB; to "
                    "compare them: --regions"
                )
                return None
        found = detector_or_reason(run, "csd")
    except OodError as error:
        found = str(error)
    if isinstance(found, str):
        missing.append(f"regions: {found}")
        return None
    return found


def _region_bytes(run: OpenRun) -> int:
    """Return the size of the region vectors of all training images."""
    shapes = list(run.activator.block_shapes().values())
    parts = run.data.dataset.parts
    n = len(parts["train"]) if "train" in parts else 0
    return 4 * len(REGIONS) * n * (shapes[-1][0] if shapes else 0)


def _block_of(detector: Detector) -> int | None:
    """Return the block that a method reads, if it reads one."""
    fitted = detector.fitted.detector
    found = getattr(fitted, "block", getattr(getattr(fitted, "shaper", None), "block", None))
    return found if isinstance(found, int) else None


def _view(kind: str, detector: Detector, batch: Activations) -> MethodView:
    (score,) = detector.scores_of(batch)
    check_finite(detector.method, np.array([score]))
    return MethodView(
        method=detector.method,
        kind=kind,
        score=float(score),
        threshold=detector.threshold.value,
        percentile=round(float(detector.percentile(score)), 4),
        p_value=float(detector.p_value(score)),
        verdict="id" if bool(detector.accepts(score)) else "ood",
        id_images=len(detector.id.values),
        threshold_percentile=round(float(detector.percentile(detector.threshold.value)), 4),
    )


def _region_vectors(
    batch: Activations, rows: Sequence[int], images: Sequence[NDArray[np.uint8] | None]
) -> Tensor:
    """Return the unit vector of one region of every image, ``(m, c)``."""
    kept = [
        row % len(REGIONS) for row, image in zip(rows, images, strict=True) if image is not None
    ]
    regions = batch.extra[Regions().key]
    at = torch.arange(len(kept), device=regions.device)
    return directions(regions[at, torch.tensor(kept, device=regions.device)])


def _first(values: Tensor) -> NDArray[np.float32]:
    return values[0].cpu().numpy()


def _rows(values: NDArray[np.float32]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(each), 5) for each in row) for row in values)
