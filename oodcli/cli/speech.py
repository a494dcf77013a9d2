"""What is printed: the one place through which text from outside reaches a terminal.

Names of files, tensors, sets and classes, reasons of servers and options may hold anything, such as
sequences that colour, clear or retitle a terminal, or that make one line look like another. Errors,
notes and tables are rendered here or with :func:`oodcli.text.printable`; a rule of the linter
(``T201``) bans ``print`` from the rest of the command line.
"""

import sys

from oodcli.text import printable, printable_lines


class Drawn(str):
    """Text whose parts went through ``printable``, and that may have colours of ours."""

    __slots__ = ()


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
