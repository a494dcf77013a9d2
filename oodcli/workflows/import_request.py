"""The request and result of ``ood import``, and the mapping of classes to outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oodcli.data.class_order import among, in_order, places_among
from oodcli.data.dataset import Dataset
from oodcli.store.runs import Run

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImportRequest:
    """What to import, and the preprocessing that the network was trained with.

    Parameters
    ----------
    checkpoint
        The file of weights; None for the published weights of a network from torchvision or timm,
        and for those in the folder given by ``arch``.
    key
        Key of the state dict within the file; the most likely one if None.
    by_order
        Whether tensors are matched by order and shape instead of by name.
    arch
        Architecture with parameters; empty for a file that holds a network with its forward pass:
        ONNX, a program of ``torch.export``, TorchScript.
    data
        The data set that the network was trained on.
    output
        Which output of a network with several outputs is the logits; detected if None.
    name
        Name of the run; that of the file or network if None.
    mean, std
        Normalisation used in training; if None, that of the published weights, or 0.5.
    image_size
        Height and width of the input images in pixels; if None, see
        :mod:`oodcli.training.preprocessing`.
    resize
        How images are resized: ``exact``, ``shorter-crop`` or ``shorter-crop:SIDE``.
    jpeg_draft
        Whether JPEG files are decoded at a reduced size, see :class:`oodcli.resizing.Resize`.
    window
        Which values of medical images are black and white; see :mod:`oodcli.windows`.
    val_fraction
        Share of the training images to hold out for calibration.
    test_fraction
        Share of the images to use for testing if the data set has no parts of its own, so that
        methods are fitted on the others; if None, all of them are test images.
    classes
        A file with one class name per line, in the order of the logits, or ``imagenet``; if None,
        the order that the network states, else that of the data. It may have more classes than the
        data.
    logits
        Which logits of a network with more classes than the data are used: those of the classes of
        the ``data``, or ``all``.
    probe
        Whether the last layer is replaced by a linear probe, fitted on the training images.
    features_only
        Whether the last layer is ignored; it is also absent if the weights have none.
    class_names
        A file with what classes are called in the prompts of a zero-shot classifier; as in the data
        if None.
    prompts
        A file with a template on each line, one template, or ``imagenet80``; the usual one if None.
    negative_words
        Files with a word on each line that names no class, for NegLabel.
    negative_prompts
        Templates for these words: one, or one for each file; that of the classes if empty.
    device
        Device on which the network is checked.
    skip_unreadable
        Whether all later commands skip images of the data that cannot be read.
    download
        Whether a model of the Hugging Face hub that is not in the local cache may be downloaded.
    """

    # One field per option of the command, with its name and default.
    checkpoint: Path | None
    arch: str
    data: str
    output: str | None = None
    key: str | None = None
    by_order: bool = False
    name: str | None = None
    mean: Triple | None = None
    std: Triple | None = None
    image_size: int | None = None
    resize: str | None = None
    jpeg_draft: bool = False
    window: str | None = None
    val_fraction: float = 0.0
    test_fraction: float | None = None
    classes: Path | None = None
    logits: Literal["data", "all"] = "data"
    probe: bool = False
    features_only: bool = False
    class_names: Path | None = None
    prompts: str | None = None
    negative_words: tuple[Path, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    device: str = "auto"
    skip_unreadable: bool = False
    download: bool = False


@dataclass(frozen=True)
class ImportResult:
    """The result of an import.

    Parameters
    ----------
    run
        Name of the run.
    record
        Record of the run.
    """

    run: str
    record: Run


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network, and which of them are the classes of the data.

    Parameters
    ----------
    count
        Number of outputs.
    places
        Index of the output of each class of the data, in the order of the data; empty if the
        classes are all outputs.
    """

    count: int
    places: tuple[int, ...] = ()


def in_output_order(
    dataset: Dataset, names: Sequence[str], *, where: str, logits: str
) -> tuple[Dataset, Outputs]:
    """Return the data with their classes in the order of a network's outputs, and these outputs.

    Parameters
    ----------
    dataset
        The data.
    names
        Class names of all outputs, in order.
    where
        Source of the names, for messages.
    logits
        As in :class:`ImportRequest`.

    Raises
    ------
    InvalidInputError
        If a class of the data is not among the names.
    """
    places = places_among(dataset, names)
    if not places:
        ordered = in_order(dataset, names, where=where)
        return ordered, Outputs(len(names))
    extended = among(dataset, names) if logits == "all" else dataset
    return extended, Outputs(len(names), places)
