"""Packed detectors: one safetensors file with all that verdicts need, read without torch.

::

    weights/<name>   weights of the network
    method/<number>  arrays of the fitted method
    id-scores        scores of ID images, ascending, float64
    id-classes       the classes that the network predicts for them, int64
    id-features      features of a sample of them, float32
    onnx             network and method as an ONNX graph, uint8

The metadata has one entry, ``ood.detector``: a JSON object that describes the content, with the
digest of every array and, as its last field, its own. There is no code in the file. Digests are
verified when an array is first read, so that one engine does not read the arrays of the other.
"""

import json
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import check_file, expanded, reading
from oodcli.resizing import Resize
from oodcli.screening.base import About, IdScores
from oodcli.screening.thresholds import Threshold, ThresholdRule
from oodcli.store.preprocess import Preprocess
from oodcli.store.store import digest_of_json
from oodcli.text import printable
from oodcli.windows import canonical

PACKED_SCHEMA = 1
KIND = "ood-packed-detector"
METADATA = "ood.detector"
SEAL = "seal"
WEIGHTS = "weights/"
METHOD = "method/"
ID_SCORES = "id-scores"
ID_CLASSES = "id-classes"
ID_FEATURES = "id-features"
GRAPH = "onnx"
GAP = "gap-"  # padding between arrays
AGAIN = "get the file again, or pack the detector again: ood detector pack"

_MAX_HEADER = 100_000_000  # the limit of safetensors
_MAX_SIDE = 16384


@dataclass(frozen=True)
class PackedFile:
    """A packed detector whose description has been read and verified.

    Parameters
    ----------
    path
        The file.
    content
        The description, without its digest.
    digest
        Digest of the description, and so of all arrays.
    places
        First byte and end of every array in the file, by name.
    """

    path: Path
    content: Mapping[str, Any]
    digest: str
    places: Mapping[str, tuple[int, int]]

    @cached_property
    def about(self) -> About:
        """Network and method.

        Raises
        ------
        CorruptArtifactError
            If the description is damaged; so for the following properties.
        """
        with self.parsing():
            about = dict(self.content["about"])
            preprocess = preprocess_of(about.pop("preprocess"))
            classes = tuple(map(str, about.pop("classes")))
            return About(**about, classes=classes, preprocess=preprocess)

    @cached_property
    def id(self) -> IdScores:
        """Scores of ID images."""
        with self.parsing():
            known = self.content["id"]
            return checked_scores(
                IdScores(
                    self.array(ID_SCORES), known["part"], known["data"], known["digest"],
                    self.array(ID_CLASSES), self.array(ID_FEATURES),
                )
            )  # fmt: skip

    def threshold(self, rule: ThresholdRule | None) -> Threshold:
        """Return the threshold of a rule; without one, that of packing."""
        if rule is not None:
            return rule.on(self.id.values, self.id.classes, self.about.classes)
        with self.parsing():
            return checked_threshold(self.content["threshold"], self.about.classes)

    @property
    def engines(self) -> tuple[str, ...]:
        """What can run it: ``torch``, ``onnx`` or both."""
        has = {name.partition("/")[0] for name in self.places}
        return tuple(name for name, part in (("torch", "weights"), ("onnx", GRAPH)) if part in has)

    def check_engine(self, name: str) -> None:
        """Check that the file can be used with an engine.

        Raises
        ------
        InvalidInputError
            If it was packed without it.
        """
        if name not in self.engines:
            raise InvalidInputError(
                f"{self.path} was packed for --engine {' and '.join(self.engines)} alone; pack the "
                f"detector again for both (ood detector pack --engine both), or use --engine "
                f"{self.engines[0]}"
            )

    def parsing(self) -> Any:  # noqa: ANN401 - a context manager
        """Convert any exception on a malformed description into one line, while it lasts."""
        return reading(self.path, wrong="is damaged", cure=AGAIN)

    def names(self, *prefixes: str) -> Sequence[str]:
        """Return the names of arrays that begin with one of these texts; all without any."""
        return [name for name in self.places if name.startswith(prefixes or "")]

    def bytes_of(self, prefix: str) -> int:
        """Return the size of all arrays whose names begin with a text."""
        places = (self.places[name] for name in self.names(prefix))
        return sum(end - start for start, end in places)

    def verify(self, names: Iterable[str]) -> None:
        """Verify the digests of arrays.

        Raises
        ------
        CorruptArtifactError
            If one differs.
        """
        with (
            self.path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw,
            memoryview(raw) as view,
        ):
            for name in names:
                start, end = self.places[name]
                with view[start:end] as part:
                    digest = blake2b(part, digest_size=16).hexdigest()
                if digest != self.content["digests"][name]:
                    raise CorruptArtifactError(
                        f"{self.path} is damaged: the digest of {printable(name)} differs; {AGAIN}"
                    )

    def array(self, name: str) -> NDArray[Any]:
        """Return a verified array.

        Raises
        ------
        CorruptArtifactError
            If there is none, or its digest differs.
        """
        if name not in self.places:
            raise CorruptArtifactError(f"{self.path} is damaged: it has no {name}; {AGAIN}")
        self.verify([name])
        with self.parsing(), safe_open(self.path, framework="np") as tensors:
            found: NDArray[Any] = tensors.get_tensor(name)
            return found


def read_packed(path: Path) -> PackedFile:
    """Read the description of a packed detector.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InvalidInputError
        If there is no such file, it is no packed detector, or a newer version of ood has packed it.
    CorruptArtifactError
        If it is damaged or incomplete.
    """
    place = expanded(path).absolute()
    check_file(place, "name a file of: ood detector pack")
    header, start = _header(place)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(METADATA), str):
        raise _no_detector(place)
    with reading(place, wrong="is damaged", cure=AGAIN):
        content = json.loads(metadata[METADATA])
        if content["kind"] != KIND:
            raise _no_detector(place)
        _check_schema(place, content)
        seal = content.pop(SEAL, None)
        if seal != digest_of_json(content):
            raise CorruptArtifactError(
                f"{place} is damaged or was edited: its description does not match its digest; "
                f"{AGAIN}"
            )
        try:
            with safe_open(place, framework="np") as tensors:  # verifies all positions
                names = [name for name in tensors.keys() if not name.startswith(GAP)]  # noqa: SIM118
        except SafetensorError as error:
            raise CorruptArtifactError(
                f"{place} is damaged or incomplete: {error}; {AGAIN}"
            ) from None
        if set(names) != set(content["digests"]):
            raise CorruptArtifactError(f"{place} is damaged: arrays are missing; {AGAIN}")
        offsets = {name: header[name]["data_offsets"] for name in names}
        places = {name: (start + low, start + high) for name, (low, high) in offsets.items()}
    return PackedFile(place, content, seal, places)


def is_packed(path: Path) -> bool:
    """Return whether a file begins as a packed detector does; a damaged one may, as well."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return 2 <= length <= _MAX_HEADER and stream.read(1) == b"{"


def _no_detector(path: Path) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is not a packed detector; make one: ood detector pack --run RUN --method NAME "
        "--output FILE"
    )


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and the position of its data."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= _MAX_HEADER or stream.read(1) != b"{":
            raise _no_detector(path)
        if 8 + length > size:
            raise CorruptArtifactError(f"{path} is incomplete; {AGAIN}")
        raw = b"{" + stream.read(length - 1)
    with reading(path, wrong="is damaged", cure=AGAIN):
        header = json.loads(raw)
        if not isinstance(header, dict):
            raise _no_detector(path)
        return header, 8 + length


def _check_schema(path: Path, content: Mapping[str, Any]) -> None:
    schema = content["schema"]
    if schema != PACKED_SCHEMA:
        version = printable(str(content["versions"]["ood"]))
        newer = isinstance(schema, int) and schema > PACKED_SCHEMA
        raise InvalidInputError(
            f"{path} has schema {printable(str(schema))}, not {PACKED_SCHEMA}: ood {version} has "
            f"packed it; {'update ood' if newer else 'pack the detector again'}"
        )


def checked_scores(found: IdScores) -> IdScores:
    """Return scores of ID images after checking that they can be such.

    Raises
    ------
    ValueError
        If they are not finite or not ascending, or classes or features do not fit.
    """
    values, classes, features = found.values, found.classes, found.features
    sound = (
        values.dtype == np.float64 and classes.dtype == np.int64 and features.dtype == np.float32
        and values.ndim == 1 and classes.shape == values.shape and features.ndim == 2
        and len(values) > 0 and np.isfinite(values).all() and (np.diff(values) >= 0).all()
    )  # fmt: skip
    if not sound:
        raise ValueError("ID scores")
    return found


def checked_threshold(content: Mapping[str, Any], classes: Sequence[str]) -> Threshold:
    """Return a threshold after checking that it can be one of these classes.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it cannot.
    """
    found = Threshold.from_json(content)
    named = [name for each in found.by_class for name in each.classes]
    values = [found.value, *(each.value for each in found.by_class)]
    numbers = all(isinstance(value, float) and math.isfinite(value) for value in values)
    if not (numbers or found.fdr is not None) or (named and set(named) != set(classes)):
        raise ValueError("threshold")
    return found


def preprocess_of(content: Mapping[str, Any]) -> Preprocess:
    """Return a preprocessing after checking that its numbers are possible.

    Raises
    ------
    ValueError
        If they are not.
    """
    height, width = content["size"]
    mean, std = (tuple(map(float, content[name])) for name in ("mean", "std"))
    sides = all(isinstance(side, int) and 0 < side <= _MAX_SIDE for side in (height, width))
    if not sides or len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise ValueError("preprocessing")
    try:
        side = Resize.of(content["resize"]).side
    except InvalidInputError:
        raise ValueError("resizing") from None
    if side is not None and not 0 < side <= _MAX_SIDE:
        raise ValueError("resizing")
    window = canonical(content.get("window"))
    return Preprocess((height, width), content["resize"], mean, std, window)
