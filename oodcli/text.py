r"""One-line forms of external text, such as file names, for files and terminals.

A file name on Linux may contain any bytes except ``/`` and NUL. Python represents bytes that are
not UTF-8 as U+DC80 to U+DCFF (PEP 383); such text cannot be encoded, and a line break or an escape
character would break the lines of a CSV file or control the terminal. :func:`escaped` writes
characters that are not printable as their UTF-8 bytes, and :func:`unescaped` restores the original
text. :func:`printable` is for display only: it escapes what is not printable, but no backslash.
"""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

_NAMED = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_NAMES = {written: character.encode() for character, written in _NAMED.items()}
_FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
_BEYOND_ASCII = re.compile(r"[^\n -~]")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|[\\nrt])")


def escaped(text: str) -> str:
    r"""Return text in one line of printable characters.

    Parameters
    ----------
    text
        Any text; it may contain surrogates for undecodable bytes (PEP 383).

    Returns
    -------
    str
        ``\\``, ``\n``, ``\r`` and ``\t`` for the backslash, line breaks and tabs; ``\xNN`` for each
        UTF-8 byte of any other character that is not printable; other characters unchanged.

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
    r"""Return the original text; the inverse of :func:`escaped`.

    Parameters
    ----------
    text
        Escaped text. A backslash that begins no escape sequence is kept as a backslash.

    Examples
    --------
    >>> unescaped(escaped("caf\udce9\n.png")) == "caf\udce9\n.png"
    True
    """
    if "\\" not in text:
        return text
    raw = text.encode("utf-8", "surrogatepass")
    return _ESCAPE.sub(_byte, raw).decode("utf-8", "surrogateescape")


def as_cell(text: str) -> str:
    """Return text that a spreadsheet does not take for a formula.

    Parameters
    ----------
    text
        Any text.

    Returns
    -------
    str
        The text with an apostrophe before it, if it begins, after spaces, with ``=``, ``+``, ``-``
        or ``@`` (also in their full-width forms), or with an apostrophe; else unchanged.

    Examples
    --------
    >>> as_cell("=1+1"), as_cell("'a"), as_cell("a=1")
    ("'=1+1", "''a", 'a=1')
    """
    return f"'{text}" if text.lstrip(" ")[:1] in _FORMULA or text[:1] == "'" else text


def of_cell(text: str) -> str:
    """Return the original text; the inverse of :func:`as_cell`.

    Examples
    --------
    >>> [of_cell(as_cell(text)) for text in ("=1+1", "'a", "a=1", "")]
    ['=1+1', "'a", 'a=1', '']
    """
    return text.removeprefix("'")


def counted(number: int, thing: str, plural: str | None = None) -> str:
    """Return a number with its noun in the singular or plural.

    Examples
    --------
    >>> counted(1, "class", "classes"), counted(3000, "image")
    ('1 class', '3,000 images')
    """
    return f"{number:,} {thing if number == 1 else plural or f'{thing}s'}"


def printable(text: str) -> str:
    r"""Return text for display in one line, with control and invisible characters escaped.

    Unlike :func:`escaped`, it changes no printable character (backslashes included), so it cannot
    be inverted.

    White space of any kind becomes a space, ``ESC`` becomes ``\\x1b``, the right-to-left override
    becomes ``\\u202e``, and a byte of a file name that is not UTF-8 becomes, for instance,
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
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte that is not UTF-8
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable_lines(text: str) -> str:
    """Apply :func:`printable` to each line of a text."""
    return "\n".join(map(printable, text.split("\n")))


def json_text(
    content: Mapping[str, Any],
    *,
    indent: int | None = None,
    plain: bool = False,
    finite: bool = True,
) -> str:
    r"""Return one object as JSON text.

    Parameters
    ----------
    content
        The object.
    indent
        Spaces per indentation level; None for a single line.
    plain
        Whether to write ASCII characters only.
    finite
        Whether to refuse NaN and infinities, which are not valid JSON; False only for files that
        only Python reads.

    Returns
    -------
    str
        The JSON text, with ``\uNNNN`` for characters that are not printable and, with ``plain``,
        for every character outside ASCII.

    Raises
    ------
    ValueError
        If a number is not finite although ``finite`` is set.

    Examples
    --------
    >>> print(json_text({"path": "café\x1b"}))
    {"path": "café\u001b"}
    """
    text = json.dumps(content, indent=indent, ensure_ascii=plain, allow_nan=not finite)
    return text if plain else _BEYOND_ASCII.sub(_in_json, text)


def _in_json(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


# Replacements for the characters of tables, for streams that can encode ASCII only.
_ASCII_FALLBACKS = {
    "─": "-", "━": "-", "▇": "#", "↑": "^", "↓": "v", "…": "...", "×": "x", "±": "+-", "≥": ">=",
    "≤": "<=", "·": ".", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{MINUS SIGN}": "-",
}  # fmt: skip
ASCII_FALLBACK = "ood-legible"


def _ascii_fallback(error: UnicodeError) -> tuple[str, int]:
    r"""Replace a character that a stream cannot encode, by a similar one or by ``\uNNNN``."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if character in _ASCII_FALLBACKS:
        return _ASCII_FALLBACKS[character], error.start + 1
    return character.encode("ascii", "backslashreplace").decode(), error.start + 1


codecs.register_error(ASCII_FALLBACK, _ascii_fallback)


def _bytes(character: str) -> str:
    """Return the UTF-8 bytes of a character as escapes; a surrogate of PEP 383 is one byte."""
    try:
        raw = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _byte(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode()) if match[1] else _NAMES[match[0].decode()]
