"""A table before it is drawn, and numbers as text: what all formats have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    key
        What it is called in this module.
    heading
        What it is called in print.
    right
        Whether it is set flush right, as numbers are.
    over
        Heading that it shares with its neighbours, or empty.
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
        """Both headings in one line."""
        return f"{self.over} {self.heading}".strip()


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Parameters
    ----------
    text
        What it says.
    bold
        Whether it is the best of its kind.
    second
        Whether it is the second best of its kind.
    value
        The number behind the text, to sort by; of a bar its length, from 0 to 1.
    """

    text: str
    bold: bool = False
    second: bool = False
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table before it is drawn.

    Parameters
    ----------
    title
        Lines above it.
    columns
        Its columns.
    rows
        Its rows, a cell a column.
    sections
        Indices of rows that a rule comes after.
    notes
        Lines below it.
    droppable
        Keys of columns that may be left out, in the order in which they go; those of one entry go
        together.
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
        """The columns that are no bars."""
        return [column for column in self.columns if not column.bar]


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture that goes into a page.

    Parameters
    ----------
    title
        What it shows, in a few words.
    alt
        What there is to see, for those who do not.
    png
        Its bytes.
    """

    title: str
    alt: str
    png: bytes


def percent(fraction: float, digits: int = 2) -> str:
    """Return a fraction in percent with two decimals, as the papers print it, or as told."""
    return f"{100 * fraction:.{digits}f}"


def human_bytes(size: float) -> str:
    """Return a size in the unit that keeps it short."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
