"""What is printed: the one place through which text from outside reaches a terminal.

Names of files, tensors, sets and classes, reasons of servers and options may hold anything, such as
sequences that colour, clear or retitle a terminal, or that make one line look like another. Errors,
notes and tables are rendered here or with :func:`oodcli.text.printable`; a rule of the linter
(``T201``) bans ``print`` from the rest of the command line.
"""

import os
import sys
from pathlib import Path

from oodcli.errors import InvalidInputError
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


def deliver(text: str, output: Path | None) -> None:
    """Print a result, or write it to a file in one step."""
    if output is not None:
        from oodcli.store.store import open_output_file

        with open_output_file(output) as stream:
            stream.write(text.encode())
        return
    try:
        sys.stdout.write(for_stdout(text))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What could not be written must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InvalidInputError(f"cannot write to stdout: {error.strerror}") from None
