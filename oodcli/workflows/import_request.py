"""What ``ood import`` is asked for, and which outputs of a network are the classes of the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oodcli.data.class_order import among, in_order, places_among
from oodcli.data.dataset import Dataset
from oodcli.store.runs import Run

Three = tuple[float, float, float]


@dataclass(frozen=True)
class ImportRequest:
    """What to import, and what its images looked like in training.

    Parameters
    ----------
    checkpoint
        The file; None for the published weights of a network from torchvision or timm, and for
        those in the folder that ``arch`` names.
    key
        Where in the file the state dict lies; the most likely place if None.
    by_order
        Whether tensors are matched by their order and shape, whatever their names.
    arch
        Architecture with parameters.
    data
        The data set it was trained on.
    output
        Which output of a network with several heads the logits are; found out if None.
    name
        Name of the run; that of the file or network if None.
    mean, std
        Normalisation it was trained with; that of published weights of the network, else 0.5, if
        None.
    image_size
        Height and width of images in pixels; by :mod:`oodcli.training.preprocessing` if None.
    resize
        How images get there: ``exact``, ``shorter-crop`` or ``shorter-crop:SIDE``.
    val_fraction
        Share of the training images to hold out for calibration.
    test_fraction
        Share of the images to test on where the data set is one whole, so that methods learn from
        the others; all of them are test images if None.
    classes
        A file with the name of a class on each line, in the order of the logits; the order of the
        data set if None. It may name more classes than the data have.
    logits
        Which logits of a network with more classes than the data count: of the ``data``'s classes
        alone, or ``all``.
    probe
        Whether the last layer is a linear probe, fitted on the training images.
    device
        Where the network is tried.
    skip_unreadable
        Whether every later command leaves out images of the data that cannot be read.
    download
        Whether a folder of Hugging Face's hub that is not in its cache may be downloaded.
    """

    # Flat: a field for every option of the command, under its name and with its default.
    checkpoint: Path | None
    arch: str
    data: str
    output: str | None = None
    key: str | None = None
    by_order: bool = False
    name: str | None = None
    mean: Three | None = None
    std: Three | None = None
    image_size: int | None = None
    resize: str | None = None
    val_fraction: float = 0.0
    test_fraction: float | None = None
    classes: Path | None = None
    logits: Literal["data", "all"] = "data"
    probe: bool = False
    device: str = "auto"
    skip_unreadable: bool = False
    download: bool = False


@dataclass(frozen=True)
class ImportResult:
    """What an import made.

    Parameters
    ----------
    run
        Name of the run.
    record
        Its record.
    """

    run: str
    record: Run


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network, and the classes of the data among them.

    Parameters
    ----------
    count
        How many there are.
    places
        Where the classes of the data stand among them, in the order of the data; empty where they
        are all outputs.
    """

    count: int
    places: tuple[int, ...] = ()


def arranged(
    dataset: Dataset, names: Sequence[str], *, where: str, logits: str
) -> tuple[Dataset, Outputs]:
    """Return the data with their classes in the order of a network's outputs, and these outputs.

    Parameters
    ----------
    dataset
        The data.
    names
        Names of all outputs in order.
    where
        How to call the list of names in an error.
    logits
        As in :class:`ImportRequest`.

    Raises
    ------
    InvalidInputError
        If the classes of the data are not among them.
    """
    places = places_among(dataset, names)
    if not places:
        ordered = in_order(dataset, names, where=where)
        return ordered, Outputs(len(names))
    kept = among(dataset, names) if logits == "all" else dataset
    return kept, Outputs(len(names), places)
