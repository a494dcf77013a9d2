"""What is printed: the one place through which text from outside reaches a terminal.

Names of files, tensors, sets and classes, reasons of servers and options may hold anything, such as
sequences that colour, clear or retitle a terminal, or that make one line look like another. Errors,
notes and tables are rendered here or with :func:`printable`; a rule of the linter (``T201``) bans
``print`` from the rest of the command line.
"""

import sys


class Drawn(str):
    """Text whose parts went through :func:`printable`, and that may have colours of ours."""

    __slots__ = ()


def printable(text: str) -> str:
    r"""Return text in one line, with escapes for what steers a terminal, hides, or is no character.

    White space of any kind becomes a blank, ``ESC`` becomes ``\\x1b``, the mark that turns the
    direction of writing becomes ``\\u202e``, and a byte of a file name that is no UTF-8 becomes
    ``\\xff``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else _escaped(ord(c)) for c in text)


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable_lines(text: str) -> str:
    """Return text of several lines, each as :func:`printable` gives it."""
    return "\n".join(map(printable, text.split("\n")))


def say(message: str) -> None:
    """Print one line on stderr."""
    print(printable(message), file=sys.stderr)


def interject(message: str) -> None:
    """Print an error on stderr at once, on a line of its own below any progress."""
    cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""
    print(f"{cursor}error: {printable(message)}", file=sys.stderr, flush=True)


def tell(text: object) -> None:
    """Print a line of a result on stdout; programs get it as it is, terminals made printable."""
    print(for_stdout(str(text)))


def for_stdout(text: str) -> str:
    """Return a result as it goes to stdout: made printable where that is a terminal."""
    if isinstance(text, Drawn) or not sys.stdout.isatty():
        return text
    return printable_lines(text)
