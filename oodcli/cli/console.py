"""Output to stdout and stderr, with external text made safe for terminals.

Names of files, tensors, sets and classes, messages of servers and options may contain anything,
such as escape sequences that colour or clear a terminal. Errors, notes and tables are printed by
this module or passed through :func:`oodcli.text.printable`; a rule of the linter (``T201``) bans
``print`` elsewhere in the command line.
"""

import os
import sys
from pathlib import Path

from oodcli.errors import InvalidInputError
from oodcli.text import printable, printable_lines


class StyledText(str):
    """Text whose parts are already printable, and that may contain colour codes of ood."""

    __slots__ = ()


def print_stderr(message: str) -> None:
    """Print one line on stderr."""
    print(printable(message), file=sys.stderr)


def print_error_now(message: str) -> None:
    """Print an error on stderr immediately, on a new line below any progress bar."""
    cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""
    print(f"{cursor}error: {printable(message)}", file=sys.stderr, flush=True)


def print_stdout(text: object) -> None:
    """Print a line of a result on stdout, made printable if stdout is a terminal."""
    print(for_stdout(str(text)))


def for_stdout(text: str) -> str:
    """Return a result as it is written to stdout: made printable if stdout is a terminal."""
    if isinstance(text, StyledText) or not sys.stdout.isatty():
        return text
    return printable_lines(text)


def write_result(text: str, output: Path | None) -> None:
    """Print a result on stdout or, if ``output`` is given, write it to that file atomically."""
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
        # The failed output must not be written again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InvalidInputError(f"cannot write to stdout: {error.strerror}") from None
