"""Published training schedules, and user settings that change their values."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from math import cos, pi
from types import MappingProxyType
from typing import Any

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.records import as_json
from oodcli.training.augmentations.words import AUGMENTATIONS, MIXTURES, check_steps

# Objectives that are trained with outliers.
OUTLIER_OBJECTIVES = (
    "oe", "energy-regularised", "entropic", "objectosphere", "background", "mixoe",
)  # fmt: skip
# Steps that mix several images, which outliers are spared.
NEVER_OF_OUTLIERS = ("pixmix", *MIXTURES)
# Outliers are augmented as training images are.
SAME = ("same",)
# The method that the paper of an objective scores images with, if it is one of its own.
SCORERS: Mapping[str, str] = MappingProxyType(
    {
        "t2fnorm": "t2fnorm",
        "ish": "scale",
        "supcon": "knn",
        "alpa": "csd",
        "rotpred": "rotpred",
        "conf-branch": "conf-branch",
        "g-odin": "g-odin",
        "vos": "energy",
        "cider": "knn",
        "palm": "mds++",
        "reweightood": "mds++",
        "ascood": "scale",
        "oe": "msp",
        "energy-regularised": "energy",
        "entropic": "msp",
        "objectosphere": "objectosphere",
        "background": "background",
        "mixoe": "msp",
    }
)
SCHEDULES = ("step", "cosine", "warm-cosine")
_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "schedule": SCHEDULES,
        "per": ("step", "epoch"),
        "keep": ("last", "best"),
        "start": ("random", "trained"),
    }
)


_RANGES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "randaugment_magnitude": (0, 30),
        "augmix_severity": (1, 10),
        "augmix_width": (1, 10),
        "pixmix_severity": (1, 10),
    }
)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of training with stochastic gradient descent.

    Parameters
    ----------
    name
        Name of the recipe.
    source
        Publication of the schedule.
    epochs
        Passes over the training images.
    batch_size
        Images per step; the last batch of an epoch may be smaller.
    lr
        Largest learning rate; that of the first epoch unless there is a warm-up.
    momentum
        Momentum coefficient, from 0 to below 1.
    weight_decay
        Coefficient of the L2 penalty on all parameters.
    nesterov
        Whether Nesterov momentum is used; without momentum it has no effect.
    schedule
        ``step``: the learning rate is divided by ten after each milestone; ``cosine``: it decays
        along half a cosine to ``lr_min``; ``warm-cosine``: it rises from zero in the first tenth of
        the steps, then decays along half a cosine to zero.
    milestones
        Fractions of all epochs after which the learning rate decays, for ``step``.
    mean, std
        Normalisation of the three channels, for pixels from 0 to 1.
    objective
        Objective with parameters, such as ``t2fnorm:tau=0.1``.
    arch
        Architecture that the recipe is published for; the default if the user names none.
    start
        ``random`` weights, or those of a ``trained`` network.
    keep
        Checkpoint that is used after training: the ``last``, or the ``best`` on validation images
        (the later one of equally good checkpoints).
    lr_min
        Final learning rate of ``cosine``.
    per
        For ``cosine``: the learning rate changes with every ``step``, starting at ``lr``, or with
        every ``epoch``, ending at ``lr_min``.
    warm_up
        Fraction of all steps in which the learning rate rises linearly from ``warm_up_lr`` to its
        value in the schedule; ignored for ``warm-cosine``, which has a warm-up of its own.
    warm_up_lr
        Learning rate at the start of the warm-up.
    warm_up_above
        The warm-up is skipped unless the batch size is larger than this.
    head_weight_decay
        L2 penalty on weight and bias of the last layer; None: the value of ``weight_decay``.
    head_lr_factor
        Factor of the learning rate for weight and bias of the last layer.
    augmentation
        Augmentation steps in their order; see
        :data:`oodcli.training.augmentations.words.AUGMENTATIONS`.
    crop_padding
        Zero padding in pixels on every side for ``crop``.
    crop_scale
        Smallest and largest area of the crop as a fraction of the image, for ``resized-crop``.
    jitter
        Largest change of brightness, contrast, saturation and hue.
    jitter_chance, grey_chance
        Probability that an image is jittered, or converted to grey.
    randaugment_operations, randaugment_magnitude
        Number of operations of ``randaugment`` per image, and their strength, from 0 to 30.
    augmix_severity, augmix_width, augmix_depth
        Number of strengths of the operations of ``augmix`` that are possible, from 1 to 10; number
        of its chains; and operations per chain, where 0 is one to three at random.
    jsd_weight
        Weight of the consistency loss of ``augmix``: the Jensen-Shannon divergence of the
        predictions for each image and for two mixtures of it; the objective then sees the image
        itself. 0: there is no such loss, and the objective sees one mixture.
    pixmix_rounds, pixmix_beta, pixmix_severity
        Largest number of rounds of ``pixmix``; parameter of the weights of images in their
        mixtures; and largest strength of the operations on copies, from 1 to 10.
    cutout_size, cutout_holes
        Side of the holes of ``cutout`` in pixels, and their number per image. Their centres are
        within the image, and they are clipped to it.
    mixup_alpha, cutmix_alpha, regmixup_alpha
        Parameter of the distribution Beta(alpha, alpha) of the weight of an image in its mixture;
        for ``cutmix`` of the part of the image that remains.
    cutmix_chance
        Probability that ``cutmix`` changes a batch.
    outlier_batch_size
        Outliers per step, of objectives that are trained with outliers; 0: as many as ID images.
    outlier_augmentation
        Augmentation steps of outliers; ``same``: those of training images.
    threads
        CPU threads of training; 0: the default of torch. The number of threads affects rounding,
        so a fixed number makes the weights independent of the number of cores of the machine.

    Notes
    -----
    Milestones and the warm-up are fractions, so that they scale with the number of epochs. A
    ``resized-crop`` that comes first, or after ``flip``, is taken from the original image if its
    size differs from that of the run, as for ImageNet; all other steps apply to images of the size
    of the run. Changing ``lr`` does not change ``lr_min``, although MODE sets it to a thousandth of
    ``lr``.
    """

    # Flat: --set KEY=VALUE, the JSON of runs and the tables use one name for each value, and most
    # recipes are copies of another one with a few values changed.
    name: str
    source: str
    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: str = "step"
    milestones: tuple[float, ...] = (0.5, 0.75, 0.9)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    objective: str = "cross-entropy"
    arch: str = "resnet18"
    start: str = "random"
    keep: str = "last"
    lr_min: float = 0.0
    per: str = "step"
    warm_up: float = 0.0
    warm_up_lr: float = 0.0
    warm_up_above: int = 0
    head_weight_decay: float | None = None
    head_lr_factor: float = 1.0
    augmentation: tuple[str, ...] = ("flip", "crop")
    crop_padding: int = 4
    crop_scale: tuple[float, float] = (0.08, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_chance: float = 0.8
    grey_chance: float = 0.2
    randaugment_operations: int = 1
    randaugment_magnitude: int = 14
    augmix_severity: int = 1
    augmix_width: int = 3
    augmix_depth: int = 0
    jsd_weight: float = 12.0
    pixmix_rounds: int = 4
    pixmix_beta: float = 3.0
    pixmix_severity: float = 3.0
    cutout_size: int = 16
    cutout_holes: int = 1
    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0
    cutmix_chance: float = 1.0
    regmixup_alpha: float = 20.0
    outlier_batch_size: int = 0
    outlier_augmentation: tuple[str, ...] = SAME
    threads: int = 0

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_words()
        self._check_lists()

    def _check_numbers(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise InvalidInputError(f"{_option(name)} must be at least 1, not {value}")
        if not 0 < self.lr < float("inf"):
            raise InvalidInputError(f"--lr must be a positive number, not {self.lr}")
        for name in (
            "weight_decay", "momentum", "lr_min", "warm_up_lr", "crop_padding", "warm_up_above",
            "head_weight_decay", "outlier_batch_size", "threads", "cutout_size", "cutout_holes",
            "randaugment_operations", "augmix_depth", "jsd_weight", "pixmix_rounds",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InvalidInputError(f"{_option(name)} must be finite and not negative: {value}")
        if self.momentum >= 1:
            raise InvalidInputError(f"--momentum must be below 1, not {self.momentum:g}")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InvalidInputError(
                    f"{_option(name)} must be from {low} to {high}, not {getattr(self, name)}"
                )
        for name in (
            "pixmix_beta", "mixup_alpha", "cutmix_alpha", "regmixup_alpha", "head_lr_factor",
        ):  # fmt: skip
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidInputError(f"{_option(name)} must be positive and finite")
        for name in ("warm_up", "jitter_chance", "grey_chance", "cutmix_chance"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{_option(name)} must be from 0 to 1")

    def _check_words(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InvalidInputError(
                    f"{_option(name)} must be {' or '.join(allowed)}, not {getattr(self, name)!r}"
                )
        check_steps(self.augmentation)
        if self.compares_views and self.augmentation[-1] != "augmix":
            raise InvalidInputError(
                "the consistency loss of augmix compares the image itself with its mixtures, so "
                f"that {self.augmentation[-1]} cannot follow it; write augmix last, or omit the "
                "loss: --set jsd_weight=0"
            )
        check_steps(self.outlier_steps)
        for step in self.outlier_steps:
            if step in NEVER_OF_OUTLIERS:
                raise InvalidInputError(
                    f"outliers are not mixed with other images: remove {step} from "
                    "--set outlier_augmentation"
                )

    def _check_lists(self) -> None:
        if not all(0 < share <= 1 for share in self.milestones):
            raise InvalidInputError("--set milestones must be fractions of all epochs, from 0 to 1")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InvalidInputError(
                "--set crop_scale must be two increasing fractions, such as 0.2,1"
            )
        if len(self.jitter) != 4 or not all(0 <= value <= 1 for value in self.jitter):
            raise InvalidInputError("--set jitter must be four fractions, such as 0.4,0.4,0.4,0.1")
        if self.jitter[3] > 0.5:
            raise InvalidInputError("the last number of --set jitter must be at most 0.5")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise InvalidInputError(f"--set {name} must be three numbers")
        if min(self.std) <= 0:
            raise InvalidInputError("--set std must be positive")

    def changed(self, **changes: float | None) -> "Recipe":
        """Return the recipe with new values; those that are None are ignored."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]

    def with_settings(self, pairs: Iterable[str]) -> "Recipe":
        """Return the recipe with new values from texts ``KEY=VALUE``.

        Raises
        ------
        UnknownNameError
            If a recipe has no such key, or an augmentation step is unknown.
        InvalidInputError
            If a text is not ``KEY=VALUE``, or a value cannot be parsed or is out of range.
        """
        known = [each.name for each in fields(self) if each.name not in ("name", "source")]
        changes: dict[str, Any] = {}
        for pair in pairs:
            key, equals, text = pair.partition("=")
            key = key.strip().replace("-", "_")
            if not equals:
                raise InvalidInputError(f"--set {pair!r} is not KEY=VALUE")
            if key not in known:
                raise UnknownNameError.among("value of a recipe", key, known)
            changes[key] = _parse(key, text.strip(), getattr(self, key))
        return replace(self, **changes)

    @property
    def compares_views(self) -> bool:
        """Whether training has the consistency loss of AugMix."""
        return "augmix" in self.augmentation and self.jsd_weight > 0

    @property
    def outlier_steps(self) -> tuple[str, ...]:
        """Augmentation steps of outliers in their order.

        If they are those of training images, without steps that mix several images; and without
        AugMix if the objective sees training images without it, beside its consistency loss.
        """
        if self.outlier_augmentation != SAME:
            return self.outlier_augmentation
        left_out = (*NEVER_OF_OUTLIERS, *(("augmix",) if self.compares_views else ()))
        return tuple(step for step in self.augmentation if step not in left_out)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as it is stored with a run."""
        return as_json(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Recipe":
        """Read a stored recipe.

        Raises
        ------
        TypeError
            If the content has unknown fields.
        InvalidInputError
            If a value is out of range.
        """
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        return cls(**values)

    @property
    def scorer(self) -> str:
        """The method that the paper of its objective scores with; empty if it has none."""
        return SCORERS.get(self.objective.partition(":")[0], "")

    def learning_rate(self, epoch: int, progress: float) -> float:
        """Return the learning rate of a step.

        Parameters
        ----------
        epoch
            Number of finished epochs.
        progress
            Fraction of all steps that are finished, from 0 to 1.
        """
        if self.schedule == "warm-cosine":
            return self.lr * _warm_cosine(progress)
        if progress < self.warm_up and self.batch_size > self.warm_up_above:
            top = self._scheduled(round(self.warm_up * self.epochs), self.warm_up)
            return self.warm_up_lr + (top - self.warm_up_lr) * progress / self.warm_up
        return self._scheduled(
            epoch, (epoch + 1) / self.epochs if self.per == "epoch" else progress
        )

    def _scheduled(self, epoch: int, progress: float) -> float:
        if self.schedule == "cosine":
            return self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + cos(pi * progress))
        passed = sum(epoch >= round(share * self.epochs) for share in self.milestones)
        return self.lr * 0.1**passed


def _option(name: str) -> str:
    own = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "outlier_batch_size")
    return f"--{name.replace('_', '-')}" if name in own else f"--set {name}"


def _parse(key: str, text: str, present: object) -> object:
    """Parse a value of the same type as the present one."""
    if isinstance(present, str):
        return text
    if key in ("augmentation", "outlier_augmentation"):
        return tuple(step.strip() for step in text.split(",") if step.strip())
    if key == "head_weight_decay" and text.lower() == "none":
        return None
    with contextlib.suppress(ValueError, KeyError):
        return _number(key, text, present)
    kinds: dict[type, str] = {
        bool: "true or false",
        tuple: "numbers with commas",
        int: "an integer",
    }
    raise InvalidInputError(
        f"--set {key} must be {kinds.get(type(present), 'a number')}, not {text!r}"
    )


def _number(key: str, text: str, present: object) -> object:
    if isinstance(present, bool):
        return {"true": True, "false": False}[text.lower()]
    if isinstance(present, tuple):
        numbers = tuple(float(piece) for piece in text.split(",") if piece.strip())
        return numbers * 3 if key in ("mean", "std") and len(numbers) == 1 else numbers
    return int(text) if isinstance(present, int) else float(text)


def _warm_cosine(progress: float) -> float:
    warm_up = 0.1
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + cos(pi * (progress - warm_up) / (1 - warm_up)))


_FEATURENORM = "Yu et al., CVPR 2023"
_OPENOOD = "Zhang et al., OpenOOD v1.5"
_T2FNORM = "Regmi et al., CVPRW 2024"
_LOGITNORM = "Wei et al., ICML 2022, by OpenOOD v1.5"
_OE = "Hendrycks et al., ICLR 2019, by OpenOOD v1.5"
_AGNOSTOPHOBIA = "Dhamija et al., NeurIPS 2018; schedule of OpenOOD v1.5"
_ISH = "Xu et al., ICLR 2024"
_MODE = "Zhang et al., IEEE TIP 2023"

_DIGITS = Recipe(
    "digits",
    "this tool; small images on a processor in under a minute",
    epochs=10,
    batch_size=32,
    lr=0.1,
    nesterov=True,
    schedule="warm-cosine",
    arch="resnet18:width=8",
    # With few images of equal brightness, the response to other images depends on the seed; jitter
    # of brightness and contrast, and strong weight decay, make the results similar for all seeds.
    weight_decay=5e-3,
    augmentation=("crop", "jitter"),
    crop_padding=2,
    jitter=(0.6, 0.6, 0.0, 0.0),
    jitter_chance=1.0,
    threads=1,
)
_RESNET18 = Recipe("featurenorm-resnet18", _FEATURENORM, epochs=100)
_WRN = replace(
    _RESNET18, name="featurenorm-wrn28-10", arch="wrn-28-10", epochs=200, milestones=(0.5, 0.75)
)
_VGG11 = replace(_RESNET18, name="featurenorm-vgg11", arch="vgg11", lr=0.05)

_OPENOOD_CIFAR = Recipe(
    "openood-cifar",
    _OPENOOD,
    epochs=100,
    nesterov=True,
    schedule="cosine",
    lr_min=1e-6,
    keep="best",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
_T2FNORM_CIFAR = replace(_OPENOOD_CIFAR, name="t2fnorm-cifar", source=_T2FNORM, objective="t2fnorm")
_LOGITNORM_CIFAR = replace(
    _OPENOOD_CIFAR, name="logitnorm-cifar", source=_LOGITNORM, objective="logitnorm"
)
_OE_CIFAR = replace(
    _OPENOOD_CIFAR, name="oe-cifar", source=_OE, objective="oe", outlier_batch_size=256
)
_ENERGY_FINETUNE = replace(
    _OE_CIFAR,
    name="energy-finetune",
    source="Liu et al., NeurIPS 2020",
    objective="energy-regularised:inner=-23,outer=-5",
    start="trained",
    epochs=10,
    lr=0.001,
    keep="last",
)
_MIXOE_FINETUNE = replace(
    _ENERGY_FINETUNE,
    name="mixoe-finetune",
    source="Zhang et al., WACV 2023, by OpenOOD v1.5",
    objective="mixoe",
    outlier_batch_size=0,
    keep="best",
)
# The paper has no schedule for CIFAR; these are its losses by the schedule of OpenOOD.
_ENTROPIC_CIFAR = replace(
    _OPENOOD_CIFAR, name="entropic-cifar", source=_AGNOSTOPHOBIA, objective="entropic"
)
_BACKGROUND_CIFAR = replace(_ENTROPIC_CIFAR, name="background-cifar", objective="background")
_OBJECTOSPHERE_CIFAR = replace(
    _ENTROPIC_CIFAR,
    name="objectosphere-cifar",
    objective="objectosphere:length=50,weight=0.0001",
)
_ROTPRED_CIFAR = replace(
    _OPENOOD_CIFAR,
    name="rotpred-cifar",
    source="Hendrycks et al., NeurIPS 2019, by OpenOOD v1.5",
    objective="rotpred",
)
_CONF_BRANCH_CIFAR = replace(
    _OPENOOD_CIFAR,
    name="conf-branch-cifar",
    source="DeVries and Taylor, 2018, by OpenOOD v1.5",
    objective="conf-branch",
)
_GODIN_CIFAR = replace(
    _OPENOOD_CIFAR,
    name="g-odin-cifar",
    source="Hsu et al., CVPR 2020, by OpenOOD v1.5",
    objective="g-odin",
)
_VOS_CIFAR = replace(
    _OPENOOD_CIFAR,
    name="vos-cifar",
    source="Du et al., ICLR 2022",
    objective="vos",
    keep="last",
)
_ASCOOD_CIFAR = replace(
    _OPENOOD_CIFAR,
    name="ascood-cifar",
    source="Regmi, arXiv 2024, by OpenOOD v1.5",
    objective="ascood",
)
_OPENOOD_IMAGENET200 = replace(
    _OPENOOD_CIFAR,
    name="openood-imagenet200",
    arch="torchvision:resnet18",
    epochs=90,
    batch_size=256,
    augmentation=("resized-crop", "flip"),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
_OE_IMAGENET200 = replace(
    _OPENOOD_IMAGENET200,
    name="oe-imagenet200",
    source=_OE,
    objective="oe",
    outlier_batch_size=512,
)
_T2FNORM_IMAGENET200 = replace(
    _OPENOOD_IMAGENET200, name="t2fnorm-imagenet200", source=_T2FNORM, objective="t2fnorm"
)
_T2FNORM_IMAGENET = replace(
    _T2FNORM_IMAGENET200,
    name="t2fnorm-imagenet",
    arch="torchvision:resnet50",
    start="trained",
    objective="t2fnorm:scoring=omitted",
    epochs=30,
    lr=0.001,
)
_ISH_IMAGENET = replace(
    _T2FNORM_IMAGENET,
    name="ish-imagenet",
    source=_ISH,
    objective="ish",
    epochs=10,
    batch_size=512,
    lr=0.003,
    head_weight_decay=5e-5,
    keep="last",
)
_MODE_BASE = Recipe(
    "mode-base",
    _MODE,
    objective="supcon",
    epochs=500,
    batch_size=512,
    lr=0.5,
    lr_min=0.5e-3,
    weight_decay=1e-4,
    schedule="cosine",
    per="epoch",
    warm_up=0.02,
    warm_up_lr=0.01,
    warm_up_above=256,
    augmentation=("resized-crop", "flip", "jitter", "grey"),
    crop_scale=(0.2, 1.0),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)
_CIDER_CIFAR = replace(
    _MODE_BASE,
    name="cider-cifar",
    source="Ming et al., ICLR 2023, by OpenOOD v1.5",
    objective="cider",
    epochs=100,
    nesterov=True,
    warm_up=0.1,
    warm_up_lr=0.001,
    warm_up_above=0,
    std=_OPENOOD_CIFAR.std,
)
_PALM_CIFAR = replace(
    _CIDER_CIFAR,
    name="palm-cifar",
    source="Lu et al., ICLR 2024, by OpenOOD v1.5",
    objective="palm:momentum=0.9",
    batch_size=16,
    lr=0.1,
    lr_min=0.1e-3,
)
_REWEIGHTOOD_CIFAR = replace(
    _CIDER_CIFAR,
    name="reweightood-cifar",
    source="Regmi et al., CVPRW 2024, by OpenOOD v1.5",
    objective="reweightood",
    lr=0.1,
    lr_min=0.1e-3,
)
_MODE_TRAIN = replace(_MODE_BASE, name="mode-train", objective="alpa", batch_size=128)
_MODE_FINETUNE = replace(
    _MODE_TRAIN,
    name="mode-finetune",
    objective="alpa:base=none",
    start="trained",
    lr=0.1,
    lr_min=0.1e-3,
)
_MODE_CE = replace(
    _MODE_BASE,
    name="mode-cross-entropy",
    objective="cross-entropy",
    batch_size=256,
    lr=0.2,
    lr_min=0.0,
    schedule="step",
    milestones=(0.7, 0.8, 0.9),
    augmentation=("resized-crop", "flip"),
)

# OpenOOD trains with every augmentation by its recipe for cross-entropy.
_AUGMENTED = (
    *(
        replace(
            _OPENOOD_CIFAR,
            name=f"{step}-cifar",
            source=f"{AUGMENTATIONS[step].paper}, by OpenOOD v1.5",
            # RandAugment comes first there for small images, and last for ImageNet.
            augmentation=(step, "flip", "crop")
            if step == "randaugment"
            else ("flip", "crop", step),
        )
        for step in ("cutout", "randaugment", "augmix", "pixmix", "mixup", "cutmix", "regmixup")
    ),
    *(
        replace(
            _OPENOOD_IMAGENET200,
            name=f"{step}-imagenet200",
            source=f"{AUGMENTATIONS[step].paper}, by OpenOOD v1.5",
            augmentation=("resized-crop", "flip", step),
            regmixup_alpha=10.0 if step == "regmixup" else _OPENOOD_IMAGENET200.regmixup_alpha,
        )
        for step in ("randaugment", "augmix", "pixmix", "regmixup")
    ),
    # The best rows of its CIFAR-10 table without other data.
    *(
        replace(
            recipe,
            name=f"pixmix-{recipe.name}",
            source="combination of the leaderboard of OpenOOD v1.5",
            augmentation=("flip", "crop", "pixmix"),
        )
        for recipe in (_LOGITNORM_CIFAR, _ROTPRED_CIFAR)
    ),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            _RESNET18, _WRN, _VGG11, _OPENOOD_CIFAR, _OPENOOD_IMAGENET200, _T2FNORM_CIFAR,
            _T2FNORM_IMAGENET200, _T2FNORM_IMAGENET, _LOGITNORM_CIFAR, _ROTPRED_CIFAR,
            _CONF_BRANCH_CIFAR, _GODIN_CIFAR, _VOS_CIFAR, _CIDER_CIFAR, _PALM_CIFAR,
            _REWEIGHTOOD_CIFAR, _ASCOOD_CIFAR, _ISH_IMAGENET, _MODE_BASE, _MODE_CE, _MODE_TRAIN,
            _MODE_FINETUNE, *_AUGMENTED, _OE_CIFAR, _OE_IMAGENET200, _ENERGY_FINETUNE,
            _MIXOE_FINETUNE, _ENTROPIC_CIFAR, _OBJECTOSPHERE_CIFAR, _BACKGROUND_CIFAR, _DIGITS,
        )
    }
)  # fmt: skip
