"""Conditions on the network and the fitting data for a method to be defined.

A :class:`Need` describes a condition and checks it before the method is fitted; if it does not
hold, the error message contains the numbers. This module has the needs of several methods; a need
of a single method is in the module of that method.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oodcli.activations import BACKGROUND, CONFIDENCE, DIVISOR, ROTATION, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import class_means
from oodcli.methods._moments import Spectrum, moments, within_classes, within_spectrum
from oodcli.text import counted

Arguments = Mapping[str, object]

# Rows that are compared first.
_FEW_ROWS = 16
# Relative difference that is attributed to rounding to float32.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Need:
    """A condition on the fitting data of a method.

    Parameters
    ----------
    description
        The condition, in the form that follows "it needs".
    check
        Function of the reference and of the value of every parameter of the method (None if chosen
        in fitting). It returns the actual state, with numbers, or None if the condition holds. It
        uses only the declared inputs of the method.
    cure
        What the user can do.
    """

    description: str
    check: Callable[[Reference, Arguments], str | None]
    cure: str = "use another method"

    def refusal(self, reference: Reference, arguments: Arguments) -> str | None:
        """Return why a method with this need is undefined; None if the condition holds."""
        state = self.check(reference, arguments)
        return None if state is None else f"it needs {self.description}, but {state}; {self.cure}"


def _network_classes(reference: Reference, _arguments: Arguments) -> str | None:
    number = len(reference.head.weight)
    return None if number > 1 else f"the network has {number}"


def _logits(reference: Reference, _arguments: Arguments) -> str | None:
    return None if len(reference.head.weight) else "the network has no classifier"


# Required by every method that uses logits or the last layer.
CLASSIFIER = Need("logits", _logits, "fit a linear layer: ood import --probe")

# With one class, every probability is 1, and there is no other class to compare with.
CLASSES = Need("at least 2 classes", _network_classes, "use a method that does not compare classes")


def _trained(reference: Reference, _arguments: Arguments) -> str | None:
    if reference.head.scale is not None:
        return None
    rows, width = reference.head.weight.shape
    return f"the one of this network was trained ({rows:,} x {width:,} weights)"


ZERO_SHOT = Need(
    "a last layer of text embeddings",
    _trained,
    "import a zero-shot classifier: ood import --arch open_clip:MODEL:TAG",
)


def kept_head(name: str, objective: str) -> Need:
    """Return the need of a kept head, which only one objective leaves in the weights.

    Parameters
    ----------
    name
        Name of the head.
    objective
        The objective.
    """

    def lacking(reference: Reference, _arguments: Arguments) -> str | None:
        return None if name in reference.head.kept else "the weights have none"

    return Need(
        f"the {name} head of networks that were trained with {objective}",
        lacking,
        f"train one: ood train --objective {objective}",
    )


# By the name of the head.
KEPT_HEADS = {
    ROTATION: kept_head(ROTATION, "rotpred"),
    CONFIDENCE: kept_head(CONFIDENCE, "conf-branch"),
    DIVISOR: kept_head(DIVISOR, "g-odin"),
    BACKGROUND: kept_head(BACKGROUND, "background"),
}


def _without_words(reference: Reference, _arguments: Arguments) -> str | None:
    return "the run has 0" if reference.words is None else None


NEGATIVE_WORDS = Need(
    "negative words",
    _without_words,
    "import the network with a list of them: ood import --negative-words FILE",
)


def _classes_with_images(reference: Reference, _arguments: Arguments) -> str | None:
    labels = torch.unique(reference.labels)
    return (
        None if len(labels) > 1 else f"they are all of {counted(len(labels), 'class', 'classes')}"
    )


CLASSES_WITH_IMAGES = Need("training images of at least 2 classes", _classes_with_images)


def _right(reference: Reference, _arguments: Arguments) -> str | None:
    try:
        class_means(reference, by="hits")
    except UndefinedMethodError:
        return f"none of {len(reference.train):,} is"
    return None


CLASSIFIED_RIGHT = Need(
    "training images that the network classifies correctly",
    _right,
    "check that classes and normalisation match the network",
)


def alike(chunks: Iterable[Tensor]) -> bool:
    """Return whether all rows are the same up to rounding; the first few usually decide.

    Parameters
    ----------
    chunks
        Of any number of rows each, ``(n, …)``.
    """
    first: Tensor | None = None
    for chunk in chunks:
        first = chunk[:1] if first is None else first
        for rows in chunk.tensor_split([_FEW_ROWS]):
            if bool(((rows - first).abs() > _ROUNDING * first.abs()).any()):
                return False
    return True


def _all_alike(reference: Reference, _arguments: Arguments) -> str | None:
    if not alike(chunk.features for chunk in reference.train.chunks()):
        return None
    return f"those of {counted(len(reference.train), 'image')} do not"


DIFFERENT_FEATURES = Need(
    "training features that differ from image to image",
    _all_alike,
    "train on more images, or check the weights",
)


def varied(*, normalised: bool = False) -> Need:
    """Return the need that training features vary in fewer directions than the images allow.

    Parameters
    ----------
    normalised
        Whether features are divided by their lengths first.

    Notes
    -----
    N images vary about their mean in at most N - 1 directions. If they vary in that many, every
    image has a direction of its own: variances are those of single images, and directions without
    variance are only due to the small number of images.
    """

    def lacking(reference: Reference, _arguments: Arguments) -> str | None:
        everything = moments(reference, normalised=normalised)
        if everything.count - 1 > len(everything.mean):
            return None
        rank = Spectrum.of(everything.covariance).rank(everything.power)
        if rank < everything.count - 1:
            return None
        return f"{counted(everything.count, 'image')} vary in {rank:,} of {len(everything.mean):,}"

    return Need(
        "more training images, less one, than directions in which their features vary",
        lacking,
        "train on more images, or use a method without covariances, such as knn",
    )


def varied_within_classes(*, normalised: bool = False) -> Need:
    """Return the need that features vary within classes, in fewer directions than images allow.

    Parameters
    ----------
    normalised
        Whether features are divided by their lengths first.

    Notes
    -----
    N images vary about the means of their C classes in at most N - C directions; see
    :func:`varied`.
    """

    def lacking(reference: Reference, _arguments: Arguments) -> str | None:
        everything = moments(reference, normalised=normalised)
        counts = class_means(reference, normalised=normalised).counts
        classes, width = int((counts > 0).sum()), len(everything.mean)
        images = f"{counted(everything.count, 'image')} of {counted(classes, 'class', 'classes')}"
        free = everything.count - classes
        if free == 0:
            return f"there is 1 of each of {counted(classes, 'class', 'classes')}"
        spread = within_classes(reference, normalised=normalised).diagonal().amax()
        if float(spread) <= _ROUNDING**2 * everything.power:
            return f"the features of {images} do not vary within a class"
        if free > width:
            return None
        rank = within_spectrum(reference, normalised=normalised).rank(everything.power)
        return None if rank < free else f"{images} vary in {rank:,} of {width:,} within classes"

    return Need(
        "more training images, less one of each class, than directions in which features vary "
        "within classes",
        lacking,
        "train on more images, or use a method without covariances, such as knn",
    )
