"""The data sets known by name, and the one door through which every data set is opened."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from oodcli.data import builtin, cifar
from oodcli.data.arrays import open_npz
from oodcli.data.dataset import Dataset
from oodcli.data.folders import open_folder
from oodcli.errors import InvalidInputError, MissingArtifactError, UnknownNameError
from oodcli.store import Store


@dataclass(frozen=True, slots=True)
class Source:
    """A file to download.

    Parameters
    ----------
    file
        Its name in the store.
    urls
        Where it is to be had, the first choice first.
    md5
        Checksum of the file.
    size_bytes
        Its size, to be shown before it is fetched.
    """

    file: str
    urls: tuple[str, ...]
    md5: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class KnownDataset:
    """A data set known by name, opened or not.

    Parameters
    ----------
    name
        Its key.
    title
        What it shows.
    role
        ``id`` for a set with classes to train on, ``ood`` for one to be told from others.
    counts
        Number of images in each part.
    licence
        Under which terms it may be used.
    open
        Opens it from the store.
    sources
        Files to download; none for what comes with the tool.
    """

    name: str
    title: str
    role: Literal["id", "ood"]
    counts: Mapping[str, int]
    licence: str
    open: Callable[[Store], Dataset]
    sources: tuple[Source, ...] = ()

    @property
    def download_bytes(self) -> int:
        """Size of all files to download."""
        return sum(source.size_bytes for source in self.sources)

    def is_present(self, store: Store) -> bool:
        """Tell whether nothing has to be downloaded: all files are in the store, or none is needed.

        Parameters
        ----------
        store
            Where downloads are kept.
        """
        folder = store.datasets / self.name
        return all((folder / source.file).is_file() for source in self.sources)


_SCIKIT_LEARN_DIGITS = "CC BY 4.0 (UCI, Alpaydin and Kaynak 1998)"
_SCIKIT_LEARN_PHOTOGRAPHS = "CC BY 2.0 (flickr: danielbuechele, vultilion)"
_GENERATED = "none needed"

DATASETS: Mapping[str, KnownDataset] = MappingProxyType(
    {
        known.name: known
        for known in (
            KnownDataset(
                name="digits",
                title="handwritten digits 0 to 5, 8x8 pixels",
                role="id",
                counts={"train": 758, "val": 108, "test": 217},
                licence=_SCIKIT_LEARN_DIGITS,
                open=builtin.open_digits,
            ),
            KnownDataset(
                name="cifar10",
                title="CIFAR-10, objects of 10 classes, 32x32 pixels",
                role="id",
                counts={"train": 50_000, "test": 10_000},
                licence="no explicit licence; cite Krizhevsky 2009",
                open=cifar.open_stored_cifar10,
                sources=(
                    Source(
                        file=cifar.ARCHIVE,
                        urls=("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
                        md5="c58f30108f718f92721af3b95e74349a",
                        size_bytes=170_498_071,
                    ),
                ),
            ),
            KnownDataset(
                name="digits-6-9",
                title="handwritten digits 6 to 9, 8x8 pixels",
                role="ood",
                counts={"test": 714},
                licence=_SCIKIT_LEARN_DIGITS,
                open=builtin.open_other_digits,
            ),
            KnownDataset(
                name="photographs",
                title="crops of two colour photographs, 32x32 pixels",
                role="ood",
                counts={"test": 520},
                licence=_SCIKIT_LEARN_PHOTOGRAPHS,
                open=builtin.open_photographs,
            ),
            KnownDataset(
                name="photographs-grey",
                title="crops of two photographs without colour, 32x32 pixels",
                role="ood",
                counts={"test": 520},
                licence=_SCIKIT_LEARN_PHOTOGRAPHS,
                open=builtin.open_grey_photographs,
            ),
            KnownDataset(
                name="gaussian-noise",
                title="values from N(0.5, 1) clipped to [0, 1], 32x32 pixels",
                role="ood",
                counts={"test": 1000},
                licence=_GENERATED,
                open=builtin.open_gaussian_noise,
            ),
            KnownDataset(
                name="uniform-noise",
                title="values uniform on [0, 1], 32x32 pixels",
                role="ood",
                counts={"test": 1000},
                licence=_GENERATED,
                open=builtin.open_uniform_noise,
            ),
        )
    }
)


def open_dataset(
    spec: str, store: Store, *, role: Literal["id", "ood"] = "id", val_fraction: float = 0.0
) -> Dataset:
    """Find a data set and understand its parts; images are decoded later.

    Parameters
    ----------
    spec
        A name of the registry, a folder, an .npz file, or ``NAME=PATH``, which gives a folder or
        file a name. ``cifar10=FOLDER`` is CIFAR-10 as published.
    store
        Holds what was downloaded.
    role
        ``id`` wants images with classes; ``ood`` takes the images to be told from them.
    val_fraction
        Share of the train part to hold out as ``val`` where the set has none.

    Raises
    ------
    UnknownNameError
        If no data set has the name.
    MissingArtifactError
        If there is no such folder or file, or the data set was not downloaded.
    InvalidInputError
        If the folder or file is not laid out as a data set, or ``val_fraction`` does not fit.
    CorruptArtifactError
        If a published file is damaged.
    """
    if spec in DATASETS:
        return DATASETS[spec].open(store).holding_out(val_fraction)
    name, path = _named_path(spec)
    if not spec or not os.path.exists(path):  # noqa: PTH110 - Path.exists raises on names that are too long
        if _is_bare_name(spec):
            unknown = UnknownNameError.among("data set", spec, DATASETS)
            raise UnknownNameError(f"{unknown} (a folder, an .npz file or NAME=PATH will do too)")
        raise MissingArtifactError(f"no folder or file {path}; check the path")
    published = cifar.find_cifar10(path)
    if published is not None:
        name = name or "cifar10"
        opened = cifar.open_cifar10(published, store, name=name, spec=f"{name}={path}")
    elif name == "cifar10" and path.is_dir():
        raise MissingArtifactError(
            f"{path} holds neither {cifar.ARCHIVE} nor {cifar.FOLDER}; "
            "name a folder that does, or give your images another name: NAME=PATH"
        )
    else:
        again = str(path) if name is None else f"{name}={path}"
        if path.is_dir():
            opened = open_folder(path, name=name or path.name, spec=again, role=role)
        elif path.suffix.lower() == ".npz":
            opened = open_npz(path, name=name or path.stem, spec=again, role=role)
        else:
            raise InvalidInputError(f"{path} is neither a folder nor an .npz file; name one")
    return opened.holding_out(val_fraction)


def _named_path(spec: str) -> tuple[str | None, Path]:
    """Divide ``NAME=PATH``; a path that exists as it stands has no name."""
    whole = _absolute(spec)
    name, equals, path = spec.partition("=")
    if os.path.exists(whole) or not (name and equals and path) or "/" in name:  # noqa: PTH110
        return None, whole
    return name, _absolute(path)


def _absolute(path: str) -> Path:
    # Without "." and "..", but with the links in it: a folder goes by the name it was given.
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100


def _is_bare_name(spec: str) -> bool:
    return not ("/" in spec or "=" in spec or spec.startswith(("~", ".")) or spec.endswith(".npz"))
