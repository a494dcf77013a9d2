"""What is written around the paths of images: columns of tables behind them, parts before them."""

import re
from dataclasses import dataclass

from oodcli.errors import InvalidInputError

_COLUMN_KEYS = ("path", "label", "split")
# Other words for these; where images are no paths, "path" is an odd one.
_ALIASES = {"image": "path"}


@dataclass(frozen=True)
class Columns:
    """Which columns of a table, or arrays of a file, have what.

    Parameters
    ----------
    path
        The paths of the images, or the images themselves; found by its name if None.
    label
        The classes; found by its name if None.
    split
        The parts (``train``, ``val``, ``test``); found by its name if None.
    """

    path: str | None = None
    label: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, text: str) -> "Columns":
        """Read ``path=NAME,label=NAME,split=NAME``, any of them; ``image`` is another ``path``.

        Raises
        ------
        InvalidInputError
            If the text is anything else.
        """
        found: dict[str, str] = {}
        for piece in text.split(","):
            word, equals, name = piece.partition("=")
            key = _ALIASES.get(word.strip(), word)
            if not (equals and name.strip()) or key.strip() not in _COLUMN_KEYS:
                raise InvalidInputError(
                    f"columns {text!r}: {piece!r} does not name one; write "
                    "path=NAME,label=NAME,split=NAME, or some of them"
                )
            if key.strip() in found:
                raise InvalidInputError(
                    f"columns {text!r} name the {key.strip()} twice; name it once"
                )
            found[key.strip()] = name.strip()
        return cls(**found)

    def __str__(self) -> str:
        """Return the text that :meth:`of` reads."""
        named = ((key, getattr(self, key)) for key in _COLUMN_KEYS)
        return ",".join(f"{key}={name}" for key, name in named if name is not None)


_WORDS = "|".join([*_COLUMN_KEYS, *_ALIASES])
_WITH_COLUMNS = re.compile(
    rf"(?P<path>.+?):(?P<columns>(?:{_WORDS})=[^,]+"
    rf"(?:,(?:{_WORDS})=[^,]+)*)",
    re.DOTALL,
)


def without_columns(spec: str) -> tuple[str, Columns | None]:
    """Divide ``PATH:path=NAME,label=NAME`` into the path and the columns, if any are named.

    Examples
    --------
    >>> without_columns("faults.csv:path=image,label=kind")
    ('faults.csv', Columns(path='image', label='kind', split=None))
    >>> without_columns("faults.csv")
    ('faults.csv', None)
    """
    found = _WITH_COLUMNS.fullmatch(spec)
    return (found["path"], Columns.of(found["columns"])) if found else (spec, None)


_PARTS = re.compile(r"(?:(?P<name>[^/=,]+)=)?(?P<parts>(?:train|val|test)=.+)", re.DOTALL)
_NEXT_PART = re.compile(r",(?=(?:train|val|test)=)")


def divided_parts(spec: str) -> tuple[str | None, dict[str, str]] | None:
    """Divide ``NAME=train=PATH,test=PATH`` into the name, if there is one, and the parts.

    Parameters
    ----------
    spec
        The text. One part alone is the name of a data set and its path.

    Returns
    -------
    tuple
        None if the text is anything else.

    Raises
    ------
    InvalidInputError
        If a part is named twice.

    Examples
    --------
    >>> divided_parts("pets=train=a.txt,test=b.csv:label=kind")
    ('pets', {'train': 'a.txt', 'test': 'b.csv:label=kind'})
    >>> divided_parts("train=a.txt")
    """
    found = _PARTS.fullmatch(spec)
    pieces = [] if found is None else _NEXT_PART.split(found["parts"])
    if found is None or len(pieces) < 2:
        return None
    parts = {part: path for part, _, path in (piece.partition("=") for piece in pieces)}
    if len(parts) < len(pieces):
        raise InvalidInputError(f"{spec} names a part twice; name each of train, val, test once")
    return found["name"], parts
