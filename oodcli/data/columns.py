"""Which columns of a table, or arrays of a file, have what; written behind a path or an option."""

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
