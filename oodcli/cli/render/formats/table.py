"""Tables independent of the output format, and numbers as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    key
        Key of its cells in the rows, and heading in CSV.
    heading
        Heading in tables.
    right
        Whether it is right-aligned, as numbers are.
    over
        Heading shared with adjacent columns, or empty.
    bar
        Whether its cells are bars, for formats that can draw them.
    """

    key: str
    heading: str
    right: bool = False
    over: str = ""
    bar: bool = False

    @property
    def full(self) -> str:
        """Shared heading and heading in one line."""
        return f"{self.over} {self.heading}".strip()


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Parameters
    ----------
    text
        Text of the cell.
    bold
        Whether the value is the best, or the row is selected.
    second
        Whether the value is the second best.
    value
        The number represented by the text, for sorting; the length of a bar, from 0 to 1.
    link
        Relative address of a page that the text links to, in HTML; its characters are quoted.
    png
        A small PNG file before the text, in HTML.
    """

    text: str
    bold: bool = False
    second: bool = False
    value: float | None = None
    link: str = ""
    png: bytes | None = None


@dataclass(frozen=True)
class Table:
    """A table, independent of the output format.

    Parameters
    ----------
    title
        Lines above the table.
    columns
        The columns.
    rows
        The rows; each has a cell for every column, by key.
    sections
        Indices of rows that are followed by a rule.
    notes
        Lines below the table.
    droppable
        Keys of columns that may be hidden if the terminal is too narrow, in order; the keys of one
        entry are hidden together.
    lead
        The result in words: lines above the title, the first in bold.
    """

    title: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Cell]]
    sections: frozenset[int] = frozenset()
    notes: Sequence[str] = ()
    droppable: Sequence[str | tuple[str, ...]] = ()
    lead: Sequence[str] = ()

    @property
    def texts(self) -> list[Column]:
        """The columns that are not bars."""
        return [column for column in self.columns if not column.bar]


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture embedded into an HTML page.

    Parameters
    ----------
    title
        Caption of the picture.
    alt
        Text alternative of the picture.
    content
        Content of its file.
    kind
        Format of the file: ``png``, ``webp`` or ``svg``.
    """

    title: str
    alt: str
    content: bytes
    kind: Literal["png", "webp", "svg"] = "png"


@dataclass(frozen=True)
class EmbeddedApp:
    """An interactive part of an HTML page, shown above its tables if scripts run.

    Parameters
    ----------
    name
        The page has an empty, hidden element with this ``id``, which the scripts fill and show, and
        the data in an element ``NAME-data``.
    data
        JSON without any ``<``.
    style
        Style sheet, in addition to that of the page.
    scripts
        Scripts, run in this order after the page is complete.
    styles_of_scripts
        Style sheets that the scripts add.
    """

    name: str
    data: str
    style: str
    scripts: Sequence[str]
    styles_of_scripts: Sequence[str] = ()


def percent(fraction: float, digits: int = 2) -> str:
    """Return a fraction as a percentage, without the sign; two decimals as in papers."""
    return f"{100 * fraction:.{digits}f}"


def human_bytes(size: float) -> str:
    """Return a size in bytes as text with a suitable decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
