"""Files of verdicts read together: shards of one screening, checked and merged.

Everything is read as a stream, twice: the first pass checks every row and sees all values, the
second one writes. Memory does not depend on the number of rows.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from oodcli.data.reader import has_pattern, matching
from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.files import expanded, reading, regular
from oodcli.progress import SILENT, Progress
from oodcli.screening.verdict_file import (
    COLUMNS,
    RowParser,
    Verdict,
    as_lines,
    different_setting,
    header,
    not_a_row,
    path_digest,
    settings_path,
    short,
)
from oodcli.screening.verdict_parquet import ParquetRows, parquet_rows
from oodcli.store.store import open_output_file, read_json, scratch_file, write_json
from oodcli.text import counted

MergedFormat = Literal["csv", "jsonl", "parquet"]
# Settings that differ between the shards of one screening.
OF_SHARD = frozenset({"shard", "shards", "copy_ood", "csv_safe", "format", "merged"})
_SETTINGS_ENDING = ".ood.json"
_ROWS = 4096
# So many digests are compared at a time; more need several rounds over them.
_ROUND = 2**22
_NAMED = 5


@dataclass(frozen=True)
class VerdictPart:
    """A file of verdicts with its settings.

    Parameters
    ----------
    path
        The file.
    settings
        The settings beside it: detector, threshold, shard.
    """

    path: Path
    settings: Mapping[str, Any]

    @property
    def shard(self) -> int | None:
        """Number of the shard, from 1; None for a file of all images."""
        return self.settings.get("shard")

    @property
    def shards(self) -> int | None:
        """Number of shards of the screening; None for a file of all images."""
        return self.settings.get("shards")

    @property
    def finished(self) -> bool:
        """Whether the command that wrote it has judged all of its images."""
        return self.settings.get("finished") is True

    @property
    def cure(self) -> str:
        """The command that completes the file."""
        command = self.settings.get("command")
        return f"resume it with: {command}" if command else "run its command again"

    @contextlib.contextmanager
    def opened(self) -> Iterator[Iterator[list[Verdict]]]:
        """Open the file; all its verdicts come in groups.

        Raises
        ------
        InvalidInputError
            If the file cannot be read, or a line is no row of verdicts.
        """
        path = expanded(self.path)
        with reading(self.path, cure="check the disk", error=InvalidInputError):
            if self.settings["format"] == "parquet":
                with parquet_rows(path) as rows:
                    yield rows
            else:
                with path.open("rb") as stream:
                    yield self._of_lines(stream)

    def _of_lines(self, stream: IO[bytes]) -> Iterator[list[Verdict]]:
        kind = self.settings["format"]
        before = 0
        columns: Sequence[str] = COLUMNS
        if kind == "csv":
            columns = stream.readline().decode("utf-8", "replace").rstrip().split(",")
            before = 1
        parser = RowParser(kind, columns, csv_safe=self.settings.get("csv_safe") is True)
        while lines := list(itertools.islice(stream, _ROWS)):
            if not lines[-1].endswith(b"\n"):
                if not self.finished:  # the command that writes it resumes after this line
                    lines.pop()
                else:
                    raise not_a_row(self.path, before + len(lines))
            try:
                found = parser.verdicts([line.decode() for line in lines])
            except Exception:  # noqa: BLE001 - a malformed line makes its readers raise anything
                raise not_a_row(self.path, before + self._first_bad(parser, lines)) from None
            yield found
            before += len(lines)

    @staticmethod
    def _first_bad(parser: RowParser, lines: Sequence[bytes]) -> int:
        """Return the number of the first line that is no row, from 1."""
        for number, line in enumerate(lines, start=1):
            try:
                parser.verdicts([line.decode()])
            except Exception:  # noqa: BLE001 - as above
                return number
        return len(lines)


class Revision(Protocol):
    """New values of rows that depend on all rows of a merge, such as adjusted p-values.

    The first pass over the rows calls :meth:`see`, the second one, in the same order,
    :meth:`revise`.
    """

    def see(self, verdicts: Sequence[Verdict]) -> None:
        """Take note of some rows."""

    def revise(self, verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
        """Return the same rows with their new values."""

    def settings(self) -> Mapping[str, Any]:
        """Return settings that are written beside the merged file."""


def open_part(path: Path) -> VerdictPart:
    """Return a file of verdicts with its settings.

    Raises
    ------
    InvalidInputError
        If the file or its settings do not exist, or are damaged.
    """
    target = expanded(path)
    beside = settings_path(target)
    try:
        regular(target)
        settings = read_json(beside)
    except FileNotFoundError:
        missing = path if not target.exists() else beside
        raise InvalidInputError(
            f"there is no file {missing}; give files that ood predict --output wrote, with their "
            f"{_SETTINGS_ENDING} files beside them"
        ) from None
    except CorruptArtifactError as error:
        raise InvalidInputError(f"{error}, and run ood predict again") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}; give files") from None
    if settings.get("kind") != "ood-verdicts":
        raise InvalidInputError(f"{beside} has no settings of verdicts; give another file")
    return VerdictPart(path, settings)


def find_parts(paths: Sequence[Path], *, output: Path | None = None) -> list[VerdictPart]:
    """Return the files of verdicts that paths stand for, in order; none twice.

    Parameters
    ----------
    paths
        Files; folders, of which all files with settings beside them count; and patterns.
    output
        A file to be written, which no folder or pattern stands for.

    Raises
    ------
    InvalidInputError
        If there is no such file, or ``output`` is given itself.
    """
    own = None if output is None else expanded(output).resolve()
    found: dict[Path, VerdictPart] = {}
    for path in paths:
        target = expanded(path)
        if target.is_dir():
            files = _in_folder(target, path)
        elif not target.exists() and has_pattern(target):
            files = [each for each in matching(target) if not each.name.endswith(_SETTINGS_ENDING)]
        else:
            files = [path]
            if target.resolve() == own:
                raise InvalidInputError(
                    f"{path} is both read and written; choose another file: --output FILE"
                )
        for file in files:
            place = expanded(file).resolve()
            if place != own and place not in found:
                found[place] = open_part(file)
    if not found:
        raise InvalidInputError("there is no file of verdicts; give files, folders or patterns")
    return list(found.values())


def _in_folder(folder: Path, given: Path) -> list[Path]:
    settings = sorted(folder.glob(f"*{_SETTINGS_ENDING}"))
    files = [each.with_name(each.name.removesuffix(_SETTINGS_ENDING)) for each in settings]
    if not files:
        raise InvalidInputError(
            f"folder {given} has no files of verdicts; give a folder with files that "
            "ood predict --output wrote"
        )
    return files


def in_order(parts: Sequence[VerdictPart]) -> list[VerdictPart]:
    """Return the parts of one complete screening, by the number of their shard.

    Parameters
    ----------
    parts
        The files, in the order in which they are given; the order of files without shards.

    Raises
    ------
    InvalidInputError
        If settings differ, a shard is missing or given twice, or a file is not finished.
    """
    first = parts[0]
    for other in parts[1:]:
        key = different_setting(first.settings, other.settings, ignored=OF_SHARD)
        if key is not None:
            one, two = first.settings.get(key), other.settings.get(key)
            raise InvalidInputError(
                f"{first.path} and {other.path} have another {key.replace('_', ' ')} "
                f"({short(one)} and {short(two)}); merge files of the same run, method and "
                "threshold"
            )
        if first.shards != other.shards:
            raise InvalidInputError(
                f"{first.path} is {_share(first)}, and {other.path} is {_share(other)}; merge "
                "files of one screening"
            )
    _check_finished(parts)
    if first.shards is None:
        return list(parts)
    _check_complete(parts, first.shards)
    return sorted(parts, key=lambda part: part.shard or 0)


def _share(part: VerdictPart) -> str:
    return "no shard" if part.shards is None else f"shard {part.shard} of {part.shards}"


def _check_complete(parts: Sequence[VerdictPart], shards: int) -> None:
    by_shard: dict[int, VerdictPart] = {}
    for part in parts:
        assert part.shard is not None  # it stands beside the number of shards
        same = by_shard.setdefault(part.shard, part)
        if same is not part:
            raise InvalidInputError(
                f"{same.path} and {part.path} are both {_share(part)}; give one of them"
            )
    missing = [number for number in range(1, shards + 1) if number not in by_shard]
    if missing:
        named = ", ".join(f"{number:,}" for number in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        raise InvalidInputError(
            f"{counted(len(missing), 'shard')} of {shards:,} missing: {named}{more}; give their "
            f"files, or run them: ood predict … --shard {missing[0]}/{shards}"
        )


def _check_finished(parts: Sequence[VerdictPart]) -> None:
    unfinished = [part for part in parts if not part.finished]
    if unfinished:
        named = "; ".join(f"{part.path}: {part.cure}" for part in unfinished[:_NAMED])
        more = f"; and {len(unfinished) - _NAMED:,} more" if len(unfinished) > _NAMED else ""
        raise InvalidInputError(
            f"{counted(len(unfinished), 'file')} of {len(parts):,} not finished: {named}{more}"
        )


def check_rows(
    parts: Sequence[VerdictPart],
    *,
    revision: Revision | None = None,
    progress: Progress = SILENT,
) -> int:
    """Read every row once: check it, and that no image has rows in two files; return their number.

    Parameters
    ----------
    parts
        The files.
    revision
        Sees all rows.
    progress
        Receives the progress.

    Raises
    ------
    InvalidInputError
        If a line is no row, or an image has rows in two files.

    Notes
    -----
    Images are compared by digests of 8 bytes, kept on disk; the names of equal ones are then
    compared themselves.
    """
    ends: list[int] = []
    with (
        scratch_file(Path(tempfile.gettempdir()), size=0) as digests,
        progress.task("checking", total=None, unit="rows") as task,
    ):
        total = 0
        for part in parts:
            with part.opened() as groups:
                for verdicts in groups:
                    if len(parts) > 1:
                        rows = (path_digest(each.path).tobytes() for each in verdicts)
                        digests.write(b"".join(rows))
                    if revision is not None:
                        revision.see(verdicts)
                    total += len(verdicts)
                    task.advance(len(verdicts))
            ends.append(total)
        if len(parts) > 1:
            _check_distinct(parts, _in_two_files(digests, ends))
    return total


def _in_two_files(digests: IO[bytes], ends: Sequence[int]) -> set[int]:
    """Return digests, uint64, that occur in two files; the first file ends at row ``ends[0]``."""
    rounds = max(1, -(-ends[-1] // _ROUND))
    found: set[int] = set()
    for turn in range(rounds):
        digests.seek(0)
        chosen, files = [], []
        start = 0
        while block := digests.read(8 * _ROUND):
            values = np.frombuffer(block, np.uint64)
            mine = values % np.uint64(rounds) == turn
            rows = start + np.flatnonzero(mine)
            chosen.append(values[mine])
            files.append(np.searchsorted(ends, rows, side="right").astype(np.int32))
            start += len(values)
        if chosen:
            found |= _repeated(np.concatenate(chosen), np.concatenate(files))
    return found


def _repeated(digests: NDArray[np.uint64], files: NDArray[np.int32]) -> set[int]:
    order = np.argsort(digests, kind="stable")
    digests, files = digests[order], files[order]
    twice = (digests[1:] == digests[:-1]) & (files[1:] != files[:-1])
    return set(digests[1:][twice].tolist())


def _check_distinct(parts: Sequence[VerdictPart], digests: set[int]) -> None:
    """Check that rows with equal digests have different names."""
    if not digests:
        return
    first: dict[str, VerdictPart] = {}
    for part in parts:
        with part.opened() as groups:
            for verdict in itertools.chain.from_iterable(groups):
                if int(path_digest(verdict.path)) not in digests:
                    continue
                same = first.setdefault(verdict.path, part)
                if same is not part:
                    more = f" (and about {len(digests) - 1:,} others)" if len(digests) > 1 else ""
                    raise InvalidInputError(
                        f"{verdict.path}{more} has a row in {same.path} and in {part.path}; merge "
                        "files of different images"
                    )


def pass_on(
    parts: Sequence[VerdictPart],
    *takers: Callable[[Sequence[Verdict]], object],
    revision: Revision | None = None,
) -> None:
    """Give all rows to functions, in order, in groups, with their new values: the second pass."""
    for part in parts:
        with part.opened() as groups:
            for verdicts in groups:
                revised = verdicts if revision is None else revision.revise(verdicts)
                for take in takers:
                    take(revised)


@contextlib.contextmanager
def merged_file(
    path: Path, kind: MergedFormat, settings: Mapping[str, Any]
) -> Iterator["MergedRows"]:
    """Open a file for merged rows, which appears with its settings when all are written.

    Parameters
    ----------
    path
        The file; an existing one is replaced.
    kind
        Format of its rows.
    settings
        What stands beside it.
    """
    target = expanded(path).resolve()
    with open_output_file(path) as stream:
        if kind == "parquet":
            with ParquetRows(stream) as rows:
                yield rows
        else:
            stream.write(header(kind).encode())
            yield _Lines(stream, kind, csv_safe=settings.get("csv_safe") is True)
        # Rows without settings are refused; rows with those of other rows would not be.
        settings_path(target).unlink(missing_ok=True)
    write_json(settings_path(target), settings, cure="choose another file")


class MergedRows(Protocol):
    """Takes merged rows."""

    def write(self, verdicts: Sequence[Verdict]) -> None:
        """Add rows."""


@dataclass(frozen=True)
class _Lines:
    stream: IO[bytes]
    kind: Literal["csv", "jsonl"]
    csv_safe: bool

    def write(self, verdicts: Sequence[Verdict]) -> None:
        self.stream.write(as_lines(verdicts, self.kind, csv_safe=self.csv_safe).encode())
