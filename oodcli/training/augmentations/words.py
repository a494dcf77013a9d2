"""The augmentation steps of recipes: their names, what they do, and the order in which they act."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from types import MappingProxyType

from oodcli.errors import InvalidInputError, UnknownNameError


class Stage(IntEnum):
    """What a step acts on; steps of an earlier stage come first."""

    PIXELS = 0
    PICTURES = 1
    HOLES = 2
    MIXTURES = 3


# Continues "acts on".
STAGES: Mapping[Stage, str] = MappingProxyType(
    {
        Stage.PIXELS: "8-bit pixels",
        Stage.PICTURES: "8-bit pixels; gives real ones, which are not rounded before normalisation",
        Stage.HOLES: "real pixels; what is filled is zero after normalisation",
        Stage.MIXTURES: "all images of a batch and their labels; equal before and after "
        "normalisation",
    }
)


@dataclass(frozen=True)
class Augmentation:
    """An augmentation step.

    Parameters
    ----------
    text
        Description that continues "every image is".
    settings
        Values of a recipe that belong to the step.
    stage
        What it acts on.
    paper
        Authors, venue and year.
    """

    text: str
    settings: tuple[str, ...] = ()
    stage: Stage = Stage.PIXELS
    paper: str = ""


AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {
        "flip": Augmentation("mirrored with probability one half"),
        "crop": Augmentation(
            "padded with zeros on every side, and cropped to their size", ("crop_padding",)
        ),
        "resized-crop": Augmentation(
            "cropped to a random part of their area, which is resized to their size",
            ("crop_scale",),
        ),
        "jitter": Augmentation(
            "changed in brightness, contrast, saturation and hue, in random order",
            ("jitter", "jitter_chance"),
        ),
        "grey": Augmentation("made grey", ("grey_chance",)),
        "randaugment": Augmentation(
            "changed by random operations on its colours or its shape",
            ("randaugment_operations", "randaugment_magnitude"),
            paper="Cubuk et al., CVPRW 2020",
        ),
        "augmix": Augmentation(
            "mixed with chains of random operations on it",
            ("augmix_severity", "augmix_width", "augmix_depth", "jsd_weight"),
            paper="Hendrycks et al., ICLR 2020",
        ),
        "pixmix": Augmentation(
            "mixed with a picture of the mixing set, or with changed copies of itself",
            ("pixmix_rounds", "pixmix_beta", "pixmix_severity"),
            Stage.PICTURES,
            "Hendrycks et al., CVPR 2022",
        ),
        "cutout": Augmentation(
            "covered by square holes of the mean colour of the normalisation",
            ("cutout_size", "cutout_holes"),
            Stage.HOLES,
            "DeVries and Taylor, 2017",
        ),
        "mixup": Augmentation(
            "mixed with another image of the batch, as are their labels",
            ("mixup_alpha",),
            Stage.MIXTURES,
            "Zhang et al., ICLR 2018",
        ),
        "cutmix": Augmentation(
            "given a box of another image of the batch, and as much of its label",
            ("cutmix_alpha", "cutmix_chance"),
            Stage.MIXTURES,
            "Yun et al., ICCV 2019",
        ),
        "regmixup": Augmentation(
            "trained on together with a mixture of it and another image of the batch",
            ("regmixup_alpha",),
            Stage.MIXTURES,
            "Pinto et al., NeurIPS 2022",
        ),
    }
)
# Steps that mix images together with their labels.
MIXTURES = tuple(name for name, entry in AUGMENTATIONS.items() if entry.stage is Stage.MIXTURES)


def check_steps(steps: Sequence[str]) -> None:
    """Refuse unknown steps, and steps that cannot be combined in this order.

    Parameters
    ----------
    steps
        Names of the steps in their order.

    Raises
    ------
    UnknownNameError
        If there is no such step.
    InvalidInputError
        If a step follows one of a later stage, or images are mixed twice.
    """
    for step in steps:
        if step not in AUGMENTATIONS:
            raise UnknownNameError.among("augmentation", step, AUGMENTATIONS)
    for one, other in pairwise(steps):
        if AUGMENTATIONS[other].stage < AUGMENTATIONS[one].stage:
            raise InvalidInputError(
                f"{other} acts before {one}; write it first: --set augmentation=…,{other},{one}"
            )
    mixtures = [step for step in steps if step in MIXTURES]
    if len(mixtures) > 1:
        raise InvalidInputError(
            f"images are mixed once per step: use {mixtures[0]} or {mixtures[1]}"
        )
