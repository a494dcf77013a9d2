r"""Text from outside in one line, for files and for screens: names may hold any character.

The name of a file on Linux is any bytes but ``/`` and NUL. Python represents bytes that are not
UTF-8 by U+DC80 to U+DCFF (PEP 383); such text cannot be encoded, and a line break or an escape
character would break the lines of a CSV file or drive the terminal that shows it. :func:`escaped`
writes what is not printable as its UTF-8 bytes, and :func:`unescaped` gives back the same name.
:func:`printable` is for people: it escapes what they would not see, and no backslash.
"""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

_NAMED = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_NAMES = {written: character.encode() for character, written in _NAMED.items()}
_BEYOND_ASCII = re.compile(r"[^\n -~]")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|[\\nrt])")


def escaped(text: str) -> str:
    r"""Return text in one line of printable characters.

    Parameters
    ----------
    text
        Any text, also with the stand-ins of undecodable bytes.

    Returns
    -------
    str
        ``\\``, ``\n``, ``\r`` and ``\t`` for the backslash, line breaks and tabs; ``\xNN`` for each
        UTF-8 byte of any other character that is not printable; all else as it is.

    Examples
    --------
    >>> print(escaped("a\x1b[2J\n.png"))
    a\x1b[2J\n.png
    >>> print(escaped("caf\udce9.png"))
    caf\xe9.png
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_NAMED.get(c) or (c if c.isprintable() else _bytes(c)) for c in text)


def unescaped(text: str) -> str:
    r"""Return the text that :func:`escaped` was given.

    Parameters
    ----------
    text
        What it returned. A backslash that begins no escape stands for itself.

    Examples
    --------
    >>> unescaped(escaped("caf\udce9\n.png")) == "caf\udce9\n.png"
    True
    """
    if "\\" not in text:
        return text
    raw = text.encode("utf-8", "surrogatepass")
    return _ESCAPE.sub(_byte, raw).decode("utf-8", "surrogateescape")


def counted(number: int, thing: str, plural: str | None = None) -> str:
    """Return a number with what it counts.

    Examples
    --------
    >>> counted(1, "class", "classes"), counted(3000, "image")
    ('1 class', '3,000 images')
    """
    return f"{number:,} {thing if number == 1 else plural or f'{thing}s'}"


def printable(text: str) -> str:
    r"""Return text for a screen: in one line, with escapes for what steers a terminal or hides.

    Unlike :func:`escaped`, of what is printable nothing is changed, which cannot be read back.

    White space of any kind becomes a blank, ``ESC`` becomes ``\\x1b``, the mark that turns the
    direction of writing becomes ``\\u202e``, and a byte of a file name that is no UTF-8 becomes
    ``\\xff``.

    Examples
    --------
    >>> printable("a\tb\x1b[2J.png")
    'a b\\x1b[2J.png'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else _code(ord(c)) for c in text)


def _code(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable_lines(text: str) -> str:
    """Return text of several lines, each as :func:`printable` gives it."""
    return "\n".join(map(printable, text.split("\n")))


def json_text(
    content: Mapping[str, Any],
    *,
    indent: int | None = None,
    plain: bool = False,
    finite: bool = True,
) -> str:
    r"""Return one JSON object; NaN is not JSON.

    Parameters
    ----------
    content
        The object.
    indent
        Spaces a level; None for one line.
    plain
        Whether the text is to be plain ASCII.
    finite
        Whether numbers must be finite; False for what Python alone reads back.

    Returns
    -------
    str
        Characters as they are, but ``\uNNNN`` for those that cannot be written, hide, or drive a
        terminal, and with ``plain`` for all beyond ASCII.

    Raises
    ------
    ValueError
        If a number is not finite and must be.

    Examples
    --------
    >>> print(json_text({"path": "café\x1b"}))
    {"path": "café\u001b"}
    """
    text = json.dumps(content, indent=indent, ensure_ascii=plain, allow_nan=not finite)
    return text if plain else _BEYOND_ASCII.sub(_in_json, text)


def _in_json(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


# What tables are drawn with, for streams that have ASCII alone.
_DRAWN = {
    "─": "-", "━": "-", "▇": "#", "↑": "^", "↓": "v", "…": "...", "×": "x", "±": "+-", "≥": ">=",
    "≤": "<=", "·": ".", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{MINUS SIGN}": "-",
}  # fmt: skip
LEGIBLE = "ood-legible"


def _legible(error: UnicodeError) -> tuple[str, int]:
    r"""Stand in for a character that a stream cannot have: a look-alike, or ``\uNNNN``."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if character in _DRAWN:
        return _DRAWN[character], error.start + 1
    return character.encode("ascii", "backslashreplace").decode(), error.start + 1


codecs.register_error(LEGIBLE, _legible)


def _bytes(character: str) -> str:
    """Write a character by its bytes; a lone surrogate that stands for no byte as UTF-8 would."""
    try:
        raw = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _byte(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode()) if match[1] else _NAMES[match[0].decode()]
