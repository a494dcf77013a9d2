"""Error messages that name arguments of the Python API instead of command-line options."""

import contextlib
import re
from collections.abc import Iterator

from oodcli.errors import OodError

_COMMAND = re.compile(r"ood [a-z]+( [^;,:()]*)?")
# Options that are also arguments; a flag becomes NAME=True in messages.
SWITCHES = frozenset(
    {
        "allow-code",
        "allow-missing",
        "amp",
        "ci",
        "keep-blocks",
        "overwrite",
        "per-class",
        "skip-unreadable",
    }
)
OPTIONS = SWITCHES | {
    "benchmark", "blocks-limit", "compare", "convention", "dataset", "device", "engine",
    "ensemble", "export", "export-activations", "false-alarms", "far", "fdr", "input",
    "input-size", "limit", "max-images", "method", "near", "ood", "output", "run", "resize",
    "score-batch-size", "seed", "shifted-id", "store", "threshold", "tpr", "tune", "tune-ood",
}  # fmt: skip
_NAMES = "|".join(sorted(OPTIONS, key=len, reverse=True))
# A value is a placeholder in capitals, or one of the values that messages suggest.
_VALUES = r"[A-Z][A-Z|=]*\b|(?:auto|benchmark|cpu|cuda|network|openood|pseudo)\b"
_OPTION = re.compile(rf"(?<![\w-])--(?P<name>{_NAMES})(?![\w-])(?: (?P<value>{_VALUES}))?")


@contextlib.contextmanager
def naming_arguments() -> Iterator[None]:
    """Make errors name the arguments of the Python API instead of the command-line options.

    Commands within a message are not changed.

    Examples
    --------
    >>> from oodcli.errors import InvalidInputError
    >>> try:
    ...     with naming_arguments():
    ...         raise InvalidInputError("--tpr must be above 0 and at most 1, not 2")
    ... except InvalidInputError as error:
    ...     print(error)
    tpr must be above 0 and at most 1, not 2
    """
    try:
        yield
    except OodError as error:
        error.args = (_of_arguments(str(error)),)
        raise


def _of_arguments(text: str) -> str:
    pieces, at = [], 0
    for command in _COMMAND.finditer(text):
        pieces += [_OPTION.sub(_argument, text[at : command.start()]), command.group()]
        at = command.end()
    return "".join([*pieces, _OPTION.sub(_argument, text[at:])])


def _argument(option: re.Match[str]) -> str:
    name, value = option["name"], option["value"]
    argument = name.replace("-", "_")
    if name in SWITCHES:
        return f"{argument}=True"
    if value is None:
        return argument
    return f"{argument}={value}" if re.fullmatch("[A-Z|]+", value) else f'{argument}="{value}"'
