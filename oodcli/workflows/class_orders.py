"""The order of the outputs of an imported network, where something besides the user states it."""

from collections import Counter
from collections.abc import Sequence

from oodcli.data.dataset import Dataset
from oodcli.data.formats.ilsvrc2012 import wnids
from oodcli.models import Pretrained, folder_class_names
from oodcli.text import printable
from oodcli.workflows.import_request import ImportRequest, Outputs, in_output_order


def in_network_order(
    request: ImportRequest, dataset: Dataset, outputs: Outputs, published: Pretrained | None
) -> tuple[Dataset, Outputs, tuple[str, ...]]:
    """Bring the classes of the data into the order that a network states; the last value is a note.

    Parameters
    ----------
    request
        What to import; with ``classes`` or without a last layer nothing changes.
    dataset
        The data.
    outputs
        The outputs of the network as far as they are known.
    published
        Published weights of the network; None if not known.

    Raises
    ------
    OodError
        If the folder of the network cannot be used.

    Notes
    -----
    Class names stand in the folder of a network of the Hugging Face hub. The outputs of weights
    that torchvision and timm publish for 1,000 classes are ImageNet's, in the order of wnids. The
    comparison of names ignores case, the difference between spaces, hyphens and underscores, and
    text after a comma, as in ``tench, Tinca tinca``.
    """
    if request.classes is not None or request.probe or request.features_only:
        return dataset, outputs, ()
    stated = _stated(request, published)
    for names, source in stated:
        listed = _as_in_data(dataset, names)
        if listed:
            ordered, found = in_output_order(
                dataset, listed, where=request.arch, logits=request.logits
            )
            moved = ordered.class_names != dataset.class_names or found.places
            said = names != wnids() or moved
            return ordered, found, (f"classes in the order of {source}",) if said else ()
    if not stated:
        return dataset, outputs, _unlike_imagenet(dataset)
    names, source = stated[0]
    numbers = all(name.isdecimal() for name in dataset.class_names)
    if source != _FOLDER and (numbers or len(names) != len(dataset.class_names)):
        return dataset, outputs, ()  # another number of classes is refused
    line = (
        f"classes in the order of {dataset.name}, since its class names do not match those of "
        f"{source} ({_unmatched(dataset, names)}); if the outputs have another order: "
        "--classes FILE"
    )
    return dataset, outputs, (line,)


_FOLDER = "the network's folder"
_IMAGENET = "ImageNet's wnids"


def _stated(
    request: ImportRequest, published: Pretrained | None
) -> list[tuple[tuple[str, ...], str]]:
    """Return the names of all outputs and their source, in every form that is known."""
    names = folder_class_names(request.arch)
    if names:
        return [(names, _FOLDER)]
    if request.checkpoint is not None or published is None or published.classes != len(wnids()):
        return []
    words = published.class_names
    return [(wnids(), _IMAGENET), *([(words, published.configuration)] if words else [])]


def _as_in_data(dataset: Dataset, names: Sequence[str]) -> list[str]:
    """Return the names of outputs as the data have them; none if a class is not among them."""
    own = {_normalised(name): name for name in dataset.class_names}
    theirs = [_normalised(name) for name in names]
    twice = {name for name, count in Counter(theirs).items() if count > 1}
    if len(own) < len(dataset.class_names) or not own.keys() <= set(theirs) - twice:
        return []
    return [
        f"{name} ({at})" if plain in twice else own.get(plain, name)
        for at, (plain, name) in enumerate(zip(theirs, names, strict=True))
    ]


def _unmatched(dataset: Dataset, names: Sequence[str]) -> str:
    theirs = {_normalised(name) for name in names}
    missing = [name for name in dataset.class_names if _normalised(name) not in theirs]
    rest = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
    return f"{printable(missing[0])}{rest}" if missing else "some names occur twice"


def _unlike_imagenet(dataset: Dataset) -> tuple[str, ...]:
    """Say where the data have ImageNet's classes in another order than networks have them."""
    own = dataset.class_names
    if own == wnids() or set(own) != set(wnids()):
        return ()
    at = next(at for at, (one, other) in enumerate(zip(own, wnids(), strict=True)) if one != other)
    return (
        f"classes in the order of {dataset.name}, which is not that of {_IMAGENET} (class {at} is "
        f"{own[at]}, not {wnids()[at]}); if the outputs have that: --classes imagenet",
    )


def hint(dataset: Dataset, count: int | None) -> str:
    """Return how to name all classes of a network that has more than the data.

    Parameters
    ----------
    dataset
        The data.
    count
        Number of outputs of the network; None if not known.
    """
    if count in (None, len(wnids())) and set(dataset.class_names) <= set(wnids()):
        return "if it has ImageNet's 1,000 classes: --classes imagenet"
    return "or all classes of the network, one per line in the order of its outputs: --classes FILE"


def _normalised(name: str) -> str:
    first = name.partition(",")[0].strip() or name
    return first.casefold().replace("_", " ").replace("-", " ")
