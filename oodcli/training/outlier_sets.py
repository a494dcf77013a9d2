"""The outliers of a run: chosen with its job, and opened when it is trained."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from oodcli.compute.processes import Processes
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.prepare import are_stored, prepare, stored_pixels
from oodcli.data.decoding.random_access import Decoders
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.opening import is_named
from oodcli.data.originals import OriginalSizes
from oodcli.data.run_data import find_dataset, say_which
from oodcli.data.views import tile_shape
from oodcli.errors import InvalidInputError
from oodcli.images import ImageSet, Part
from oodcli.progress import SILENT, Progress
from oodcli.store.outlier_source import OutlierSource
from oodcli.store.preprocess import Preprocess
from oodcli.store.store import Store, digest_of_json
from oodcli.text import counted
from oodcli.training.loop import LabelledPixels
from oodcli.training.objectives.base import ObjectiveSpec, OutlierObjective, SynthesisObjective
from oodcli.training.objectives.registry import OBJECTIVES
from oodcli.training.outliers import (
    MADE,
    TILES,
    MadeOutliers,
    Outliers,
    SetOutliers,
    augmentation_of,
)
from oodcli.training.recipes import Recipe
from oodcli.training.streaming import StreamedImages, TrainingImages, crops_originals, fits


@dataclass(frozen=True)
class OutlierSets:
    """Opens sets of outliers at the size of a run.

    Parameters
    ----------
    store
        Where prepared images are stored.
    preprocess
        Size of the images, and how they are resized to it.
    skip_unreadable
        Whether images that cannot be decoded are skipped.
    progress
        Reports what is downloaded, decoded and skipped.
    kind
        What the images of the sets are, for a message.
    """

    store: Store
    preprocess: Preprocess
    skip_unreadable: bool
    progress: Progress
    kind: str = "outliers"

    def plan(self, spec: str) -> OutlierSource:
        """Open a set, and describe it for the record of a run.

        Parameters
        ----------
        spec
            The set: whatever ``--ood`` of ``ood score`` takes.

        Raises
        ------
        OodError
            If it cannot be opened, or an image cannot be decoded.
        """
        say_which(spec, self.store, self.progress)
        return self._described(self._dataset(spec, self.progress))

    def reopened(self, source: OutlierSource) -> tuple[Part, ImageSet]:
        """Open the set of a run again.

        Returns
        -------
        part
            The original images.
        images
            The prepared images; not decoded if they are too many to be stored.

        Raises
        ------
        InvalidInputError
            If it has other images than when the run was started.
        OodError
            If it cannot be opened.
        """
        dataset = self._dataset(source.source, SILENT)
        if self._described(dataset) != source:
            raise InvalidInputError(
                f"the {self.kind} {source.name} ({source.source}) are not those that this run was "
                "started with; restore the original images, or start another run"
            )
        images = self.images(dataset, source.part, decode=not source.of_files)
        return dataset.parts[source.part], images

    def _described(self, dataset: Dataset) -> OutlierSource:
        part = _part_of(dataset)
        source = OutlierSource(dataset.spec, dataset.name, part=part)
        if are_stored(len(dataset.parts[part]), self.preprocess.size):
            images = self.images(dataset, part)
            return replace(source, images=len(images), digest=images.digest)
        # Too many to be stored: decoding them all once more would take too long.
        identity = [
            dataset.parts[part].source.fingerprint,
            [*self.preprocess.size],
            self.preprocess.resize,
        ]
        return replace(
            source,
            images=len(dataset.parts[part]),
            digest=digest_of_json(identity),
            of_files=True,
        )

    def images(self, dataset: Dataset, part: str, *, decode: bool = True) -> ImageSet:
        """Return the prepared images of a part of a set.

        Parameters
        ----------
        dataset
            The set.
        part
            Name of the part.
        decode
            As for :func:`oodcli.data.decoding.prepare.prepare`.
        """
        return prepare(
            dataset.parts[part],
            self.store,
            name=f"{dataset.name} {part}",
            size=self.preprocess.size,
            resize=self.preprocess.resize,
            progress=self.progress,
            skip_unreadable=self.skip_unreadable,
            decode=decode,
        )

    def _dataset(self, spec: str, progress: Progress) -> Dataset:
        window = self.preprocess.medical
        return find_dataset(spec, self.store, role="ood", window=window, progress=progress)


def _part_of(dataset: Dataset) -> str:
    """Return the part that serves as outliers: the training images, so that test images do not."""
    if "train" in dataset.parts:
        return "train"
    return next(iter(dataset.parts)) if len(dataset.parts) == 1 else dataset.test_name


def plan_outliers(
    sets: OutlierSets,
    wanted: str | None,
    objective: ObjectiveSpec,
    recipe: Recipe,
    *,
    batch_size: int | None,
    processes: Processes,
) -> OutlierSource | None:
    """Choose the outliers of a run, and refuse what is incompatible.

    Parameters
    ----------
    sets
        Opens sets.
    wanted
        A set, or a kind of outliers that are made from the training images; None for none.
    objective
        The objective.
    recipe
        The recipe.
    batch_size
        Requested number of outliers per step, if any.
    processes
        The processes that train together.

    Raises
    ------
    OodError
        If the objective is trained with outliers and there are none, or the other way round; or
        if the set cannot be opened.
    """
    trained_with = objective.objective
    if not isinstance(trained_with, OutlierObjective):
        option = "--outliers" if wanted is not None else "--outlier-batch-size"
        given = wanted is not None or batch_size is not None
        if given and isinstance(trained_with, SynthesisObjective):
            raise InvalidInputError(
                f"{option}: objective {objective.name} makes one outlier of every training image "
                "of a step; omit it"
            )
        if given:
            others = [k for k, e in OBJECTIVES.items() if issubclass(e.type, OutlierObjective)]
            raise InvalidInputError(
                f"{option}: objective {objective.name} is not trained with outliers; omit it, or "
                f"choose one that is: --objective {', '.join(others)}"
            )
        return None
    if wanted is None:
        raise InvalidInputError(
            f"objective {objective.name} is trained with outliers; give images that belong to no "
            "class: --outliers NAME|FOLDER|FILE, or have them made from the training images: "
            "--outliers jigsaw"
        )
    if trained_with.paired and recipe.outlier_batch_size:
        raise InvalidInputError(
            f"objective {objective.name} mixes every outlier with an ID image, so that a step has "
            f"as many of both, not {recipe.outlier_batch_size} outliers; omit --outlier-batch-size"
        )
    if wanted not in MADE or is_named(wanted, sets.store):
        return processes.in_turn(partial(sets.plan, wanted))
    if wanted in ("jigsaw", "patch-mix"):
        tile_shape(*sets.preprocess.size, TILES)
    if wanted == "patch-mix" and processes.distributed and crops_originals(recipe):
        raise InvalidInputError(
            "--outliers patch-mix needs every image of a batch in each process, which decodes only "
            "its own share of random crops; use another kind, or one process"
        )
    return OutlierSource(wanted, wanted, made=True)


@dataclass(frozen=True)
class OutlierPlacement:
    """Opens the outliers of a run for its training.

    Parameters
    ----------
    sets
        Opens sets.
    recipe
        The recipe.
    seed
        Seed of the run.
    device
        The device that trains.
    decoders
        The processes that decode streamed images.
    free
        Memory in bytes that training images leave free; None if unknown.
    """

    sets: OutlierSets
    recipe: Recipe
    seed: int
    device: torch.device
    decoders: Decoders
    free: int | None

    def opened(
        self, source: OutlierSource, train: TrainingImages, id_images: ImageSet
    ) -> tuple[Outliers, int | None]:
        """Return the outliers, and how many of them are also training images.

        Parameters
        ----------
        source
            Where they come from.
        train
            The training images, for training.
        id_images
            The training images, prepared.

        Returns
        -------
        outliers
            The outliers.
        shared
            Number of outliers with the pixels of a training image; None if that is not known.

        Raises
        ------
        OodError
            If the outliers cannot be opened, or all of them are training images.
        """
        if source.made:
            made = MadeOutliers(source.source, self.recipe, self.seed, cropped=train.cropped)
            return made, None
        part, images = self.sets.reopened(source)
        shared = _shared(images, id_images)
        if shared == len(images):
            raise InvalidInputError(
                f"all {counted(shared, 'image')} of the outliers {source.name} are training images "
                f"of {id_images.name}; give images that belong to no class: --outliers NAME|FOLDER"
            )
        if shared:
            self.sets.progress.note(
                f"warning: {counted(shared, 'image')} of the {len(images):,} outliers "
                f"{source.name} {'is' if shared == 1 else 'are'} also among the training images"
            )
        return SetOutliers(self._placed(part, images), self.recipe, self.seed), shared

    def _placed(self, part: Part, images: ImageSet) -> TrainingImages:
        """Hold outliers on the device if they fit, and stream them otherwise."""
        preprocess = self.sets.preprocess
        labels = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        recipe = augmentation_of(self.recipe, cropped=False)
        cropped = crops_originals(recipe) and OriginalSizes.of(part.source).differ_from(
            preprocess.size
        )
        if not cropped and fits(len(images), preprocess.size, self.free):
            pixels = torch.from_numpy(np.ascontiguousarray(images.pixels()))
            return LabelledPixels(pixels.to(self.device), labels)
        resizing = Resizing(preprocess.size, preprocess.resize)
        return StreamedImages(
            part.source,
            np.concatenate([shard.indices for shard in images.shards]),
            labels,
            resizing=resizing,
            decoders=self.decoders,
            crop_scale=self.recipe.crop_scale if cropped else None,
            seed=self.seed,
            stored=partial(
                stored_pixels,
                part,
                self.sets.store,
                name=images.name,
                resizing=resizing,
                progress=self.sets.progress,
            ),
        )


def _shared(images: ImageSet, others: ImageSet) -> int | None:
    """Return how many images have the pixels of one of the others; None if that is not known."""
    digests, rivals = images.image_digests(), others.image_digests()
    if digests is None or rivals is None:
        return None
    return int(np.isin(digests, rivals).sum())
