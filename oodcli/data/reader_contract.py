"""What every reader must satisfy, as checks that its author can run on files of its kind.

::

    from oodcli.data.reader_contract import check

    def test_my_reader_keeps_the_contract(tmp_path):
        write_some_images(tmp_path / "a.acme")
        check(READER, tmp_path / "a.acme")

The tests of ``ood`` run the same checks over its own readers.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.data.dataset import Dataset, RandomAccess
from oodcli.data.reader import Columns, Place, Reader, Role
from oodcli.errors import InvalidInputError, OodError, UnreadableImageError
from oodcli.images import ImageSource, Part, key_in
from oodcli.store.store import Store

# To say whether it opens a path, a reader may look at names and first bytes.
_MAX_SECONDS = 1.0
_PARTS = {"train", "val", "test"}


@dataclass(frozen=True)
class Trial:
    """A reader and a path that it opens.

    Parameters
    ----------
    reader
        The reader.
    path
        A file or folder of its kind with images, all of which can be read.
    store
        What is handed to a reader that stores an index.
    columns
        What is handed to a reader of tables.
    """

    reader: Reader
    path: Path
    store: Store
    columns: Columns | None = None

    def open(self, role: Role) -> Dataset:
        """Open the path anew."""
        options: dict[str, Any] = {
            "store": self.store, "columns": self.columns, "labels": None, "root": None
        }  # fmt: skip
        taken = {name: value for name, value in options.items() if name in self.reader.options}
        return self.reader.open(self.path, name="trial", spec="trial=x", role=role, **taken)

    @cached_property
    def datasets(self) -> tuple[Dataset, ...]:
        """The path opened as ID and as OOD images; without the former if it has no classes."""
        try:
            return (self.open("ood"), self.open("id"))
        except InvalidInputError:
            return (self.open("ood"),)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts."""
        return tuple(part for dataset in self.datasets for part in dataset.parts.values())


def check(
    reader: Reader, path: Path, *, columns: Columns | None = None, store: Store | None = None
) -> None:
    """Check a reader on a file or folder of its kind; it must satisfy every requirement.

    Parameters
    ----------
    reader
        The reader.
    path
        What it opens, with images that can be read.
    columns
        For a reader of tables.
    store
        For a reader that stores an index; a temporary one if None.

    Raises
    ------
    InvalidInputError
        If it violates a requirement.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(reader, path, store or Store(Path(folder)), columns)
        for what, each in CHECKS.items():
            try:
                each(trial)
            except InvalidInputError as error:
                raise InvalidInputError(f"reader {reader.name!r} must {what}: {error}") from error
            except Exception as error:
                raise InvalidInputError(
                    f"reader {reader.name!r} must {what}: it raises {type(error).__name__}: {error}"
                ) from error


def _claims(trial: Trial) -> None:
    begun = time.process_time()
    claimed = trial.reader.claims(Place(trial.path))
    if time.process_time() - begun > _MAX_SECONDS:
        raise InvalidInputError("it takes more than a second to decide; look at the first bytes")
    if not claimed:
        raise InvalidInputError(f"it does not claim {trial.path}")
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other.zzz"
        other.write_bytes(b"hello")
        if trial.reader.claims(Place(other)):
            raise InvalidInputError("it claims a file other.zzz with the text hello")


def _names(trial: Trial) -> None:
    for dataset in trial.datasets:
        if (dataset.name, dataset.spec) != ("trial", "trial=x"):
            raise InvalidInputError(f"they are {dataset.name!r} and {dataset.spec!r}")


def _has_parts(trial: Trial) -> None:
    for dataset in trial.datasets:
        if not dataset.parts or not set(dataset.parts) <= _PARTS:
            raise InvalidInputError(f"the parts are {', '.join(dataset.parts) or 'none'}")
        for name, part in dataset.parts.items():
            if not len(part):
                raise InvalidInputError(f"part {name} has no images")
    if len(trial.datasets[0].parts) != 1:
        raise InvalidInputError("as OOD images there is more than one part")


def _labels(trial: Trial) -> None:
    for dataset in trial.datasets[1:]:
        for name, part in dataset.parts.items():
            labels = part.labels
            if labels is None:
                continue
            if labels.dtype != np.int64 or labels.shape != (len(part),):
                raise InvalidInputError(f"those of {name} are {labels.dtype} {labels.shape}")
            if labels.min() < 0 or labels.max() >= len(dataset.class_names):
                raise InvalidInputError(
                    f"those of {name} go from {labels.min()} to {labels.max()}, and there are "
                    f"{len(dataset.class_names)} classes"
                )


def _images(trial: Trial) -> None:
    for part in trial.parts:
        images = list(part.source.read(0, len(part)))
        if len(images) != len(part):
            raise InvalidInputError(f"it yields {len(images)} images of {len(part)}")
        for row, image in enumerate(images):
            if isinstance(image, UnreadableImageError):
                raise InvalidInputError(f"row {row} cannot be read: {image.reason}")
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise InvalidInputError(f"row {row} is {image.dtype} {image.shape}")


def _ranges(trial: Trial) -> None:
    for part in trial.parts:
        whole = list(part.source.read(0, len(part)))
        for start, stop in ((0, 1), (len(part) - 1, len(part)), (len(part) // 2, len(part))):
            _compare(part.source.read(start, stop), whole[start:stop], f"{start} to {stop - 1}")


def _taken(trial: Trial) -> None:
    for part in trial.parts:
        if not isinstance(part.source, RandomAccess):
            continue
        whole = list(part.source.read(0, len(part)))
        rows = np.array([len(part) - 1, 0] * 2, dtype=np.int64)
        # As it is sent to a process that decodes.
        chosen = ForkingPickler.loads(ForkingPickler.dumps(part.source.take(rows)))
        if len(chosen) != len(rows):
            raise InvalidInputError(f"take gives {len(chosen)} of {len(rows)} rows")
        _compare(chosen.read(0, len(rows)), [whole[row] for row in rows], f"{rows.tolist()}")
        keys = [_key(trial, part.source, row) for row in rows.tolist()]
        if any(hasattr(part.source, each) for each in ("key_of", "name_of")):
            found = [_key(trial, chosen, at) for at in range(len(rows))]
            if found != keys:
                raise InvalidInputError(f"the keys of {rows.tolist()} are {found}, not {keys}")


def _keys(trial: Trial) -> None:
    for part in trial.parts:
        keys = [_key(trial, part.source, row) for row in range(len(part))]
        if len(set(keys)) < len(keys):
            raise InvalidInputError("two rows have the same key")


def _fingerprint(trial: Trial) -> None:
    first, again = (
        [part.source.fingerprint for part in trial.open("ood").parts.values()] for _ in range(2)
    )
    if first != again:
        raise InvalidInputError("it is another one when the same path is opened again")
    for part in trial.parts:
        if isinstance(part.source, RandomAccess) and len(part) > 1:
            one, other = (
                part.source.take(np.array([row], dtype=np.int64)).fingerprint for row in (0, 1)
            )
            if one == other:
                raise InvalidInputError("rows 0 and 1 alone have the same one")


def _damage(trial: Trial) -> None:
    if not trial.path.is_file():
        return
    content = trial.path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / trial.path.name
        broken = Trial(trial.reader, path, trial.store, trial.columns)
        for keep in (0, 1, len(content) // 3, len(content) - 1):
            path.write_bytes(content[:keep])
            try:
                dataset = broken.open("ood")
                list(dataset.ood_part.source.read(0, len(dataset.ood_part)))
            except OodError as error:
                if "\n" in str(error):
                    raise InvalidInputError("an error has several lines") from None


def _key(trial: Trial, source: ImageSource, row: int) -> str:
    return key_in(source, row, path=str(trial.path))


def _compare(
    found: Iterable[NDArray[np.uint8] | UnreadableImageError],
    wanted: list[NDArray[np.uint8] | UnreadableImageError],
    rows: str,
) -> None:
    images = list(found)
    if len(images) != len(wanted) or not all(map(np.array_equal, images, wanted)):  # type: ignore[arg-type]
        raise InvalidInputError(f"rows {rows} are not the images that reading all gives")


CHECKS: Mapping[str, Callable[[Trial], None]] = MappingProxyType(
    {
        "claim what it opens and nothing else, quickly": _claims,
        "hand on the name and the spec that it is given": _names,
        "return parts among train, val and test that have images, one as OOD images": _has_parts,
        "give labels from 0, below the number of classes": _labels,
        "yield images (h, w, 3) of uint8, as many as it has": _images,
        "yield the same images whatever range is read": _ranges,
        "give chosen rows, in any order, that can be pickled": _taken,
        "give each row a key of its own": _keys,
        "have a fingerprint that stays, and depends on the rows": _fingerprint,
        "refuse a file that is cut short in one line": _damage,
    }
)
