"""Verdicts as rows of Parquet files, by the extra ``oodcli[parquet]``."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from oodcli.data.formats.arrow_tables import arrow_package
from oodcli.screening.verdict_file import COLUMNS, NUMBERS, Verdict, as_object, verdict_of
from oodcli.text import escaped, unescaped

_GROUP = 65_536
_BATCH = 4096


def check_parquet() -> None:
    """Check, before any work, that Parquet files can be written.

    Raises
    ------
    InvalidInputError
        If the extra is not installed.
    """
    arrow_package("pyarrow.parquet")


class ParquetRows:
    """Writes verdicts into a Parquet file, with one row group for every 65,536 rows.

    Text is escaped by :func:`oodcli.text.escaped`, as in CSV, since text in Parquet is UTF-8, and
    names of files need not be.

    Parameters
    ----------
    stream
        The file.

    Raises
    ------
    InvalidInputError
        If the extra is not installed.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        arrow = arrow_package("pyarrow")
        parquet = arrow_package("pyarrow.parquet")
        self._schema = arrow.schema(
            [(name, arrow.float64() if name in NUMBERS else arrow.string()) for name in COLUMNS]
        )
        self._arrow = arrow
        self._writer = parquet.ParquetWriter(stream, self._schema)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush()
        self._writer.close()

    def write(self, verdicts: Sequence[Verdict]) -> None:
        """Add rows."""
        for each in verdicts:
            row = as_object(each)
            self._rows.append(
                {
                    name: escaped(row[name]) if isinstance(row[name], str) else row[name]
                    for name in COLUMNS
                }
            )
        if len(self._rows) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        table = self._arrow.Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(table)
        self._rows = []


@contextlib.contextmanager
def parquet_rows(path: Path) -> Iterator[Iterator[list[Verdict]]]:
    """Open a file that :class:`ParquetRows` wrote; all its verdicts come in groups.

    Raises
    ------
    InvalidInputError
        If the extra is not installed.
    """
    with arrow_package("pyarrow.parquet").ParquetFile(path) as file:
        batches = file.iter_batches(_BATCH)
        yield ([_verdict(row) for row in batch.to_pylist()] for batch in batches)


def _verdict(row: Mapping[str, Any]) -> Verdict:
    return verdict_of(
        {name: unescaped(value) if isinstance(value, str) else value for name, value in row.items()}
    )
