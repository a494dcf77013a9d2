"""What the shell completes: names of runs, methods, sets, benchmarks, architectures and recipes.

Somebody waits for every answer, so nothing here imports torch. Names that stand in modules which
do are repeated here; a test holds the two equal.
"""

import contextlib
import glob
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from oodcli.cli.speech import tell
from oodcli.manual import TOPICS

METHODS = (
    "msp", "maxlogit", "energy", "entropy", "tempscale", "gen", "klm", "doctor", "featurenorm",
    "norm", "react", "vra", "ash-p", "ash-b", "ash-s", "scale", "lts", "dice", "optfs", "weiper",
    "t2fnorm", "gradnorm", "fdbd", "nci", "knn", "nnguide", "relation", "mds", "rmds", "mds++",
    "rmds++", "vim", "residual", "neco", "she", "maxcosine", "caref", "cadref", "gmm", "pnml",
    "openmax", "csd", "odin", "gram", "rankfeat", "nac", "adascale",
)  # fmt: skip
# Words that stand where a method may: the recommended one, and all.
METHOD_WORDS = ("auto", "all")
ARCHITECTURES = (
    "resnet18", "resnet34", "wrn-28-10", "wrn-40-2", "vgg11", "vgg16-bn", "vgg16-bn-mlp",
    "densenet100", "resnet20", "resnet32", "resnet44", "resnet56",
)  # fmt: skip
OBJECTIVES = ("cross-entropy", "t2fnorm", "logitnorm", "ish", "supcon", "alpa")


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a run of the store."""
    from oodcli.errors import OodError
    from oodcli.store.runs import run_folders
    from oodcli.store.store import Store

    try:
        named = [folder.name for folder in run_folders(Store.at(context.params.get("store")))]
    except (OodError, OSError):
        return []
    return _beginning(named, incomplete)


def methods(incomplete: str) -> list[str]:
    """Complete the name of a method, and of each part of ``react+msp`` or an ensemble."""
    from importlib.metadata import entry_points

    joined = [point.name for point in entry_points(group="ood.methods")]
    at = max(incomplete.rfind("+"), len("ensemble") if incomplete.startswith("ensemble:") else -1)
    head, rest = incomplete[: at + 1], incomplete[at + 1 :]
    words = () if head else (*METHOD_WORDS, "ensemble:")
    return [head + name for name in _beginning([*METHODS, *joined, *words], rest)]


def architectures(incomplete: str) -> list[str]:
    """Complete the name of an architecture."""
    return _beginning([*ARCHITECTURES, "torchvision:", "timm:", "hf:"], incomplete)


def objectives(incomplete: str) -> list[str]:
    """Complete the name of an objective."""
    return _beginning(OBJECTIVES, incomplete)


def recipes(incomplete: str) -> list[str]:
    """Complete the name of a recipe."""
    from oodcli.training.recipes import RECIPES

    return _beginning(RECIPES, incomplete)


def datasets(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a known or registered set."""
    from oodcli.data.own_names import registered
    from oodcli.data.registry import DATASETS
    from oodcli.errors import OodError
    from oodcli.store.store import Store

    own: Iterable[str] = ()
    with contextlib.suppress(OodError, OSError):
        own = registered(Store.at(context.params.get("store")))
    return _beginning([*DATASETS, *own], incomplete)


def scored_sets(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of an OOD set that the run of the line has scores on."""
    from oodcli.errors import OodError
    from oodcli.store.runs import find_run
    from oodcli.store.scores import read_scorings
    from oodcli.store.store import Store

    try:
        folder = find_run(Store.at(context.params.get("store")), context.params.get("run"))
        scorings = read_scorings(folder.scores)
    except (OodError, OSError):
        return []
    return _beginning((entry.name for each in scorings for entry in each.sets), incomplete)


def images(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a set, a path to images, or the path in ``NAME=PATH``."""
    name, equals, path = incomplete.rpartition("=")
    named = [f"{name}={each}" for each in _paths(path)] if equals else []
    return [*datasets(context, incomplete), *_paths(incomplete), *named]


def topics(incomplete: str) -> list[str]:
    """Complete the name of a page of the manual."""
    return _beginning(TOPICS, incomplete)


def commands_and_topics(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a command, or of a page of the manual."""
    commands = getattr(context.find_root().command, "commands", ())
    return _beginning([*commands, *TOPICS], incomplete)


def benchmarks(incomplete: str) -> list[str]:
    """Complete the name of a benchmark."""
    from oodcli.data.benchmarks import BENCHMARKS

    return _beginning(BENCHMARKS, incomplete)


def in_bash(program: Callable[[], None]) -> None:
    """Complete what bash asks for; it cuts words at ``:`` and ``=``, and replaces the last piece.

    Parameters
    ----------
    program
        Prints what completes the words in the environment, one a line, and exits.
    """
    words = os.environ.get("COMP_WORDS", "").split("\n")
    at = int(os.environ.get("COMP_CWORD", "0"))
    whole, at, before = rejoined(words, at)
    os.environ.update(COMP_WORDS="\n".join(whole), COMP_CWORD=str(at))
    offered = io.StringIO()
    try:
        with contextlib.redirect_stdout(offered):
            program()
    finally:
        lines = [line.removeprefix(before) for line in offered.getvalue().splitlines()]
        folders = any(line.endswith(os.sep) for line in lines)
        # Paths alone are left to bash, which goes on in a folder and quotes names with spaces.
        if not (folders and all(Path(line).exists() for line in lines)):
            for line in lines:
                tell(line)


def rejoined(words: list[str], at: int) -> tuple[list[str], int, str]:
    """Join the pieces into which bash cut the words of a line.

    Parameters
    ----------
    words
        The pieces; ``:`` and ``=`` are pieces of their own.
    at
        Index of the piece that is completed.

    Returns
    -------
    tuple
        The words; the index of the one that is completed; and how much of the beginning of its
        value (without ``--option=``) is not in that piece.
    """
    whole: list[str] = []
    position, before, glued = at, "", False
    for index, piece in enumerate(words):
        cut = piece != "" and not piece.strip(":=")
        if whole and (cut or glued):
            whole[-1] += piece
        else:
            whole.append(piece)
        if index == at:
            position = len(whole) - 1
            before = whole[-1] if cut else whole[-1][: len(whole[-1]) - len(piece)]
        glued = cut
    if before.startswith("-"):
        before = before.partition("=")[2]
    return whole, position, before


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _paths(incomplete: str) -> list[str]:
    """Return what is on the disk under this beginning; folders end in a separator."""
    found = sorted(glob.glob(f"{glob.escape(incomplete)}*"))  # noqa: PTH207 - as it was typed
    return [f"{path}{os.sep}" if Path(path).is_dir() else path for path in found]
