"""Activations in one ``.npz`` file, as input for scoring and as export for other programs.

::

    weight                (k, d)  last layer: logits = features @ weight.T + bias
    bias                  (k,)
    tau                   ()      divisor of the features before it, 1 if absent
    logit_scale           ()      optional, of a zero-shot classifier: features are unit vectors,
                                  and rows of weight are unit text embeddings times this number
    kept_NAME_weight      (o, d)  optional, of a head that training has left beside the last layer;
    kept_NAME_bias        (o,)    NAME is rotation, confidence or divisor
    words                 (m, d)  unit text embeddings of negative words, optional
    word_counts           (l,)    words of each list of them; one list if absent
    SET/features          (n, d)  input of the last layer
    SET/logits            (n, k)  optional: otherwise computed by the last layer
    SET/labels            (n,)    classes from 0 to k - 1
    SET/block_norms       (n, b)  FeatureNorm of every block, optional
    SET/predictions       (n,)    optional: otherwise the classes of the largest logits

``SET`` is ``train`` (images for fitting), ``val`` (images for calibration; without it, a fixed
stratified tenth of ``train``), ``test`` (ID test images), or ``jigsaw`` (jigsaw puzzles of
``train``, row by row; block norms are sufficient). Every other set is an OOD set and needs no
labels. Numbers are float16, float32 or float64, and are converted to float32; labels are integers
of any width.

Arrays written by ``numpy.savez`` are memory-mapped; those of ``numpy.savez_compressed`` are read
into memory.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.activations import (
    CHUNK_ROWS,
    CONFIDENCE,
    DIVISOR,
    ROTATION,
    Activations,
    ActivationSet,
    ActivationShard,
    Head,
    Words,
)
from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.files import check_file, reading
from oodcli.npz import array_names, open_member, read_member
from oodcli.progress import Progress
from oodcli.store.store import open_output_file

TRAIN, VAL, TEST, JIGSAW = "train", "val", "test", "jigsaw"
RESERVED = (TRAIN, VAL, TEST, JIGSAW)
_ARRAYS = ("features", "logits", "labels", "block_norms", "predictions")
_WRITTEN = ("features", "logits", "block_norms", "predictions")
_KEPT = (ROTATION, CONFIDENCE, DIVISOR)
_HEAD = (
    "weight", "bias", "tau", "logit_scale", "words", "word_counts",
    *(f"kept_{name}_{leaf}" for name in _KEPT for leaf in ("weight", "bias")),
)  # fmt: skip
# Half precision rounds by 2⁻¹¹ of each value; this is the effect of two roundings on a logit.
_TOLERANCE = 1e-3
# Difference of a length from that of a unit vector, which may come from half precision.
_LENGTH_TOLERANCE = 1e-2
_CURE = "write it with numpy.savez"


@dataclass(frozen=True)
class _Member:
    """One array of the file, read row by row.

    Parameters
    ----------
    path
        The file.
    name
        Name of the array.
    shape, dtype
        Shape and data type of the array.
    offset
        Position of its first value in the file; None if it must be read into memory.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None

    @property
    def where(self) -> str:
        """Name of the array in messages."""
        return f"{self.path}: array {self.name!r}"

    @cached_property
    def values(self) -> NDArray[Any]:
        """All values, memory-mapped if possible."""
        with reading(self.where, cure=_CURE, error=InvalidInputError):
            if self.offset is not None and 0 not in self.shape:
                return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
            with zipfile.ZipFile(self.path) as archive:
                return read_member(archive, self.name)

    def floats(self, rows: slice | NDArray[np.int64]) -> Tensor:
        """Return the given rows as float32."""
        return torch.from_numpy(np.array(self.values[rows], dtype=np.float32))

    def integers(self, rows: slice | NDArray[np.int64]) -> Tensor:
        """Return the given rows as int64."""
        return torch.from_numpy(np.array(self.values[rows], dtype=np.int64))


@dataclass(frozen=True)
class FileSet:
    """Activations of one set of the file.

    Parameters
    ----------
    name
        Name of the set.
    members
        The arrays, by name.
    head
        The last layer, on the CPU.
    """

    name: str
    members: Mapping[str, _Member]
    head: Head

    def __len__(self) -> int:
        return next(iter(self.members.values())).shape[0]

    @property
    def labels(self) -> Tensor | None:
        """Class of every image, ``(n,)``, if the file has them."""
        found = self.members.get("labels")
        return None if found is None else found.integers(slice(None))

    def activations(
        self, device: torch.device, rows: NDArray[np.int64] | None = None
    ) -> ActivationSet:
        """Return the activations of all rows, or of the given ones.

        Parameters
        ----------
        device
            Device on which the activations are returned.
        rows
            Row numbers in ascending order, ``(m,)``.
        """
        if rows is None:
            rows = np.arange(len(self), dtype=np.int64)
        pieces = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)]
        return ActivationSet(
            [ActivationShard(len(piece), self._loader(piece)) for piece in pieces], device
        )

    def _loader(self, rows: NDArray[np.int64]) -> Callable[[], Activations]:
        # Consecutive rows are read as a slice, others by indexing.
        consecutive = len(rows) == rows[-1] - rows[0] + 1
        wanted = slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows
        return lambda: self.load(wanted)

    def load(self, rows: slice | NDArray[np.int64]) -> Activations:
        """Read the given rows."""
        n = len(range(len(self))[rows]) if isinstance(rows, slice) else len(rows)
        empty = torch.zeros(n, 0)
        features, logits, norms = (
            self.members[name].floats(rows) if name in self.members else None
            for name in ("features", "logits", "block_norms")
        )
        if logits is None:
            logits = empty if features is None else self.head(features)
        predictions = self.members.get("predictions")
        if predictions is not None:
            classes = predictions.integers(rows)
        elif logits.shape[1]:
            classes = logits.argmax(dim=1)
        else:
            classes = torch.zeros(n, dtype=torch.int64)
        return Activations(
            logits,
            empty if features is None else features,
            empty if norms is None else norms,
            classes,
        )


@dataclass(frozen=True)
class ActivationFile:
    """A file of activations whose content has been checked.

    Parameters
    ----------
    path
        The file.
    head
        The last layer, on the CPU.
    sets
        The sets by name, in the order of the file.
    n_blocks
        Number of blocks with norms; 0 if any set has no block norms.
    words
        Negative words of a zero-shot classifier, on the CPU; None if there are none.
    """

    path: Path
    head: Head
    sets: Mapping[str, FileSet]
    n_blocks: int
    words: Words | None = None

    @property
    def ood(self) -> list[str]:
        """Names of the OOD sets."""
        return [name for name in self.sets if name not in RESERVED]

    @property
    def without_norms(self) -> list[str]:
        """Names of the sets without block norms."""
        return [name for name, each in self.sets.items() if "block_norms" not in each.members]


def read_activations(path: Path, *, progress: Progress) -> ActivationFile:
    """Open a file and check its content.

    Parameters
    ----------
    path
        The file.
    progress
        Receives the progress of the check.

    Raises
    ------
    InvalidInputError
        If it is not a file of activations, or an array has a wrong shape or type, values that are
        not finite, labels that are not class indices, or logits that do not equal the last layer
        applied to the features.
    """
    members = _members(path)
    head = _head(path, members)
    sets: dict[str, FileSet] = {}
    for name in members:
        if name not in _HEAD:
            of = name.rpartition("/")[0]
            arrays = {a: members[f"{of}/{a}"] for a in _ARRAYS if f"{of}/{a}" in members}
            sets.setdefault(of, FileSet(of, arrays, head))
    widths = {
        each.members["block_norms"].shape[1:]
        for each in sets.values()
        if "block_norms" in each.members
    }
    for each in sets.values():
        _check_shapes(path, each)
    if len(widths) > 1:
        raise InvalidInputError(
            f"{path}: sets have block norms of different numbers of blocks: "
            f"{', '.join(str(width[0]) for width in sorted(widths))}; all must be of one network"
        )
    _check_sets(path, sets)
    rows = sum(map(len, sets.values()))
    with progress.task(f"checking {path.name}", total=rows, unit="images") as task:
        for each in sets.values():
            _check_labels(each)
            for start in range(0, len(each), CHUNK_ROWS):
                part = slice(start, min(start + CHUNK_ROWS, len(each)))
                _check_values(each, part)
                task.advance(part.stop - part.start)
    words = _words(path, members, head)
    file = ActivationFile(path, head, sets, widths.pop()[0] if widths else 0, words)
    return replace(file, n_blocks=0) if file.without_norms else file


def write_activations(
    path: Path,
    head: Head,
    sets: Mapping[str, tuple[ActivationSet, NDArray[np.int64] | None]],
    words: Words | None = None,
) -> None:
    """Write activations array by array and shard by shard, without loading a complete array.

    Parameters
    ----------
    path
        The file.
    head
        The last layer.
    sets
        Activations and labels, by name of the set.
    words
        Negative words of a zero-shot classifier, if any.

    Raises
    ------
    InvalidInputError
        If the file cannot be written.
    """
    with (
        open_output_file(path) as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive,
    ):
        _write(archive, "weight", [head.weight], tuple(head.weight.shape))
        _write(archive, "bias", [head.bias], tuple(head.bias.shape))
        if head.tau != 1:
            _write(archive, "tau", [torch.tensor(head.tau)], ())
        if head.scale is not None:
            _write(archive, "logit_scale", [torch.tensor(head.scale)], ())
        for name, (own_weight, own_bias) in head.kept.items():
            _write(archive, f"kept_{name}_weight", [own_weight], tuple(own_weight.shape))
            _write(archive, f"kept_{name}_bias", [own_bias], tuple(own_bias.shape))
        if words is not None:
            counts = torch.tensor(words.counts)
            _write(archive, "words", [words.embeddings], tuple(words.embeddings.shape))
            _write(archive, "word_counts", [counts], tuple(counts.shape))
        for name, (rows, labels) in sets.items():
            first = next(rows.chunks(rows=1)).arrays()
            # Jigsaw puzzles have block norms only.
            written = _WRITTEN if first["features"].shape[1] else ("block_norms",)
            widths = {array: tuple(first[array].shape[1:]) for array in written}
            del first
            for array, width in widths.items():
                columns = (chunk.arrays()[array] for chunk in rows.chunks())
                _write(archive, f"{name}/{array}", columns, (len(rows), *width))
            if labels is not None:
                _write(archive, f"{name}/labels", [torch.from_numpy(labels)], labels.shape)


def check_names(names: Sequence[str]) -> None:
    """Check that no OOD set has a name that is reserved in files of activations.

    Raises
    ------
    InvalidInputError
        If one has.
    """
    for name in names:
        if name in RESERVED:
            raise InvalidInputError(
                f"the name {name!r} is reserved in files of activations; give the OOD set another "
                "name: --ood NAME=PATH"
            )


def _write(
    archive: zipfile.ZipFile,
    name: str,
    parts: Iterator[Tensor] | Sequence[Tensor],
    shape: tuple[int, ...],
) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        for index, part in enumerate(parts):
            values = np.ascontiguousarray(part.cpu().numpy())
            if index == 0:
                _write_header(stream, values.dtype, shape)
            stream.write(values.tobytes())


def _write_header(stream: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        stream,
        {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape},
    )


def _members(path: Path) -> dict[str, _Member]:
    """Return every array of the file by name."""
    check_file(path, "check the path")
    with path.open("rb") as raw:
        with reading(path, wrong="is not an .npz file", cure=_CURE, error=InvalidInputError):
            archive = zipfile.ZipFile(raw)
            names = array_names(archive)
        found = {name: _member(path, archive, name, raw) for name in names}
    for name in found:
        head, slash, array = name.rpartition("/")
        if not slash and name in _HEAD:
            continue
        if not head or array not in _ARRAYS:
            known = UnknownNameError.among("array", array, _ARRAYS if head else (*_HEAD, "SET/…"))
            raise InvalidInputError(
                f"{path}: array {name!r} is not one of {', '.join(_HEAD)} and "
                f"SET/{', SET/'.join(_ARRAYS)}: {known}"
            )
    return found


def _member(path: Path, archive: zipfile.ZipFile, name: str, raw: IO[bytes]) -> _Member:
    info = archive.getinfo(f"{name}.npy")
    where = f"{path}: array {name!r}"
    with (
        reading(where, cure=_CURE, error=InvalidInputError),
        open_member(archive, name) as (header, _),
    ):
        offset = None
        if info.compress_type == zipfile.ZIP_STORED and not header.is_fortran:
            # The local header is followed by the name and the extra field, then by the data.
            raw.seek(info.header_offset + 26)
            lengths = raw.read(4)
            extra = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            offset = info.header_offset + 30 + extra + header.length
    return _Member(path, name, header.shape, header.dtype, offset)


def _head(path: Path, members: Mapping[str, _Member]) -> Head:
    for name in ("weight", "bias"):
        if name not in members:
            raise InvalidInputError(
                f"{path} has no array {name!r}; add weight (k, d) and bias (k,) of the last layer"
            )
        _check_floats(members[name])
    weight, bias = members["weight"], members["bias"]
    if len(weight.shape) != 2 or bias.shape != weight.shape[:1] or 0 in weight.shape:
        raise InvalidInputError(
            f"{path}: weight has shape {weight.shape} and bias {bias.shape}; they must be (k, d) "
            "and (k,)"
        )
    numbers: dict[str, float] = {}
    for name in ("tau", "logit_scale"):
        if name in members:
            _check_floats(members[name])
            numbers[name] = float(members[name].values)
    tau = numbers.get("tau", 1.0)
    head = Head(
        weight.floats(slice(None)),
        bias.floats(slice(None)),
        tau,
        numbers.get("logit_scale"),
        _kept(path, members, weight.shape[1]),
    )
    if not (head.weight.isfinite().all() and head.bias.isfinite().all() and 0 < tau < np.inf):
        raise InvalidInputError(
            f"{path}: weight and bias must be finite, and tau positive; write the file again"
        )
    if head.scale is not None:
        _check_units(f"{path}: a row of weight divided by logit_scale", head.texts)
    return head


def _kept(
    path: Path, members: Mapping[str, _Member], width: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight and bias of the kept heads in the file, for features of a length."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    for name in _KEPT:
        both = [members.get(f"kept_{name}_{leaf}") for leaf in ("weight", "bias")]
        weight, bias = both
        if weight is None or bias is None:
            if weight is not bias:
                raise InvalidInputError(
                    f"{path} has one of kept_{name}_weight and kept_{name}_bias; add the other"
                )
            continue
        _check_floats(weight)
        _check_floats(bias)
        if len(weight.shape) != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise InvalidInputError(
                f"{path}: kept_{name}_weight has shape {weight.shape} and its bias {bias.shape}; "
                f"they must be (o, {width}) and (o,)"
            )
        kept[name] = weight.floats(slice(None)), bias.floats(slice(None))
        if not all(values.isfinite().all() for values in kept[name]):
            raise InvalidInputError(f"{path}: kept_{name}_weight and its bias must be finite")
    return kept


def _words(path: Path, members: Mapping[str, _Member], head: Head) -> Words | None:
    """Return the negative words of the file; None if it has none."""
    if "words" not in members:
        return None
    member = members["words"]
    _check_floats(member)
    if len(member.shape) != 2 or member.shape[1] != head.weight.shape[1] or not member.shape[0]:
        raise InvalidInputError(
            f"{member.where} has shape {member.shape}, not (m, {head.weight.shape[1]})"
        )
    embeddings = member.floats(slice(None))
    _check_units(f"{member.where}: a row", embeddings)
    counts = (len(embeddings),)
    if "word_counts" in members:
        counts = tuple(members["word_counts"].integers(slice(None)).tolist())
    if sum(counts) != len(embeddings) or min(counts) < 1:
        raise InvalidInputError(
            f"{path}: word_counts {counts} are not those of {len(embeddings)} words; they are the "
            "numbers of words of each list"
        )
    return Words(embeddings, counts)


def _check_units(what: str, rows: Tensor) -> None:
    """Refuse rows that are no unit vectors."""
    lengths = rows.norm(dim=1)
    worst = float(lengths[(lengths - 1).abs().argmax()])
    if not abs(worst - 1) <= _LENGTH_TOLERANCE:
        raise InvalidInputError(
            f"{what} has length {worst:.3g}, not 1; a zero-shot classifier has unit vectors"
        )


def _check_floats(member: _Member) -> None:
    if member.dtype.kind != "f":
        raise InvalidInputError(f"{member.where} is {member.dtype}; store float32")


def _check_shapes(path: Path, each: FileSet) -> None:
    classes, width = each.head.weight.shape
    wanted = {"features": (width,), "logits": (classes,), "labels": (), "predictions": ()}
    if "features" not in each.members and not (
        each.name == JIGSAW and "block_norms" in each.members
    ):
        raise InvalidInputError(f"{path} has no array '{each.name}/features'; every set needs one")
    for name, member in each.members.items():
        if name in ("labels", "predictions"):
            if member.dtype.kind not in "iu":
                raise InvalidInputError(f"{member.where} is {member.dtype}; store integers")
        else:
            _check_floats(member)
        right = (
            len(member.shape) == 2 if name == "block_norms" else member.shape[1:] == wanted[name]
        )
        if not right or len(member.shape) < 1:
            columns = (
                "(n, b)" if name == "block_norms" else f"(n, {', '.join(map(str, wanted[name]))})"
            )
            raise InvalidInputError(
                f"{member.where} has shape {member.shape}, not {columns.replace(', )', ',)')}; "
                f"the last layer has weight ({classes}, {width})"
            )
        if member.shape[0] != len(each):
            first = next(iter(each.members.values()))
            raise InvalidInputError(
                f"{member.where} has {member.shape[0]} rows and {first.name!r} has {len(each)}; "
                "all arrays of a set have one row per image"
            )
    if len(each) == 0:
        raise InvalidInputError(f"{path}: set {each.name!r} has no images; remove it")


def _check_sets(path: Path, sets: Mapping[str, FileSet]) -> None:
    if TEST not in sets:
        raise InvalidInputError(f"{path} has no set {TEST!r}: the ID test images")
    if all(name in RESERVED for name in sets):
        raise InvalidInputError(
            f"{path} has no OOD set; add one, with a name other than {', '.join(RESERVED)}"
        )
    for name in (TRAIN, VAL):
        if name in sets and "labels" not in sets[name].members:
            raise InvalidInputError(
                f"{path} has no array '{name}/labels'; methods are fitted with labels"
            )
    if JIGSAW in sets and len(sets[JIGSAW]) != len(sets.get(TRAIN, ())):
        raise InvalidInputError(
            f"{path}: jigsaw has {len(sets[JIGSAW])} rows and train {len(sets.get(TRAIN, ()))}; "
            "row i of jigsaw is the puzzle of row i of train"
        )


def _check_labels(each: FileSet) -> None:
    """Check that labels of ID images and predictions are class indices; OOD labels are ignored."""
    classes = len(each.head.bias)
    wanted = ["labels", "predictions"] if each.name in (TRAIN, VAL, TEST) else ["predictions"]
    for name in wanted:
        if name not in each.members:
            continue
        member = each.members[name]
        values = member.values
        bad = np.flatnonzero((values < 0) | (values >= classes))
        if len(bad):
            raise InvalidInputError(
                f"{member.where} has {values[bad[0]]} in row {bad[0]}; with {classes} classes they "
                f"are numbered 0 to {classes - 1}"
            )


def _check_values(each: FileSet, part: slice) -> None:
    """Check that values are finite, and that logits equal the last layer of the features."""
    for name in ("features", "logits", "block_norms"):
        if name not in each.members:
            continue
        values = each.members[name].floats(part)
        bad = (~values.isfinite()).any(dim=1).nonzero().flatten()
        if len(bad):
            raise InvalidInputError(
                f"{each.members[name].where} has values that are not finite in row "
                f"{part.start + int(bad[0])}; remove the image from all arrays of its set"
            )
    if each.head.scale is not None and "features" in each.members:
        _check_units(f"{each.members['features'].where}: a row", each.load(part).features)
    if "logits" not in each.members or "features" not in each.members:
        return
    rows = each.load(part)
    expected = each.head(rows.features)
    # Sum of the absolute values of all terms: the scale of their rounding errors.
    scale = rows.features.abs() @ each.head.weight.abs().T + each.head.bias.abs()
    off = (expected - rows.logits).abs()
    wrong = (off > _TOLERANCE * scale + 1e-6).any(dim=1).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise InvalidInputError(
            f"{each.members['logits'].where} is not features @ weight.T + bias: in row "
            f"{part.start + row} it is off by {float(off[row].max()):.3g}; store the input of the "
            "last layer as features, or omit the logits"
        )
