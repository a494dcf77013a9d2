"""Shell completion: names of runs, methods, sets, benchmarks, architectures and recipes.

For fast responses, this module imports no torch. Names defined in modules that do are repeated
here; a test checks that both lists are equal.
"""

import contextlib
import glob
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from oodcli.cli.console import print_stdout
from oodcli.manual import TOPICS

METHODS = (
    "msp", "maxlogit", "energy", "entropy", "tempscale", "gen", "klm", "doctor", "logitgap",
    "igeood", "featurenorm", "norm", "react", "vra", "bats", "ash-p", "ash-b", "ash-s", "scale",
    "lts", "dice", "optfs", "weiper", "t2fnorm", "gradnorm", "graduncertainty", "dml",
    "objectosphere", "nan-norm", "fdbd", "ora", "nci", "knn", "cfood", "nnguide", "relation", "mds",
    "rmds", "mds++", "rmds++", "mfs-mds", "mfs-mds++", "mfs-knn", "wdiscood", "vim", "residual",
    "pca-fusion", "cop", "corp", "neco", "she", "maxcosine", "caref", "cadref", "gmm", "pnml",
    "openmax", "csd", "multi-mahalanobis", "multi-knn", "odin", "iodin", "pro", "mcdropout", "gram",
    "rankfeat", "nac", "adascale", "rotpred", "conf-branch", "background", "g-odin", "mcm", "glmcm",
    "neglabel",
)  # fmt: skip
# Values of --method that are not methods: the recommended method, and all methods.
METHOD_WORDS = ("auto", "all")
ARCHITECTURES = (
    "resnet18", "resnet34", "wrn-28-10", "wrn-40-2", "vgg11", "vgg16-bn", "vgg16-bn-mlp",
    "densenet100", "resnet20", "resnet32", "resnet44", "resnet56",
)  # fmt: skip
OBJECTIVES = (
    "cross-entropy", "t2fnorm", "logitnorm", "ish", "rotpred", "conf-branch", "g-odin", "vos",
    "supcon", "cider", "palm", "reweightood", "alpa", "ascood", "oe", "energy-regularised",
    "entropic", "objectosphere", "background", "mixoe",
)  # fmt: skip
# Outliers that are made from the training images.
OUTLIERS = ("jigsaw", "pixel-shuffle", "noise", "rotation", "patch-mix")


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a run in the store."""
    from oodcli.errors import OodError
    from oodcli.store.run_names import run_folders
    from oodcli.store.store import Store

    try:
        named = [folder.name for folder in run_folders(Store.at(context.params.get("store")))]
    except (OodError, OSError):
        return []
    return _starting_with(named, incomplete)


def methods(incomplete: str) -> list[str]:
    """Complete the name of a method, and of each part of ``react+msp`` or an ensemble."""
    from importlib.metadata import entry_points

    third_party = [point.name for point in entry_points(group="ood.methods")]
    at = max(incomplete.rfind("+"), len("ensemble") if incomplete.startswith("ensemble:") else -1)
    head, rest = incomplete[: at + 1], incomplete[at + 1 :]
    words = () if head else (*METHOD_WORDS, "ensemble:")
    return [head + name for name in _starting_with([*METHODS, *third_party, *words], rest)]


def architectures(incomplete: str) -> list[str]:
    """Complete the name of an architecture."""
    return _starting_with(
        [*ARCHITECTURES, "torchvision:", "timm:", "hf:", "open_clip:"], incomplete
    )


def objectives(incomplete: str) -> list[str]:
    """Complete the name of an objective."""
    return _starting_with(OBJECTIVES, incomplete)


def outliers(context: typer.Context, incomplete: str) -> list[str]:
    """Complete a kind of outliers, or what :func:`images` completes."""
    return [*_starting_with(OUTLIERS, incomplete), *images(context, incomplete)]


def recipes(incomplete: str) -> list[str]:
    """Complete the name of a recipe."""
    from oodcli.training.recipes import RECIPES

    return _starting_with(RECIPES, incomplete)


def datasets(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a known or registered set."""
    from oodcli.data.own_names import registered
    from oodcli.data.registry import DATASETS
    from oodcli.errors import OodError
    from oodcli.store.store import Store

    own: Iterable[str] = ()
    with contextlib.suppress(OodError, OSError):
        own = registered(Store.at(context.params.get("store")))
    return _starting_with([*DATASETS, *own], incomplete)


def scored_sets(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of an OOD set with scores in the run of the command line."""
    from oodcli.errors import OodError
    from oodcli.store.run_names import find_run
    from oodcli.store.scores import read_scorings
    from oodcli.store.store import Store

    try:
        folder = find_run(Store.at(context.params.get("store")), context.params.get("run"))
        scorings = read_scorings(folder.scores)
    except (OodError, OSError):
        return []
    return _starting_with((entry.name for each in scorings for entry in each.sets), incomplete)


def images(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a set, a path to images, or the path in ``NAME=PATH``."""
    name, equals, path = incomplete.rpartition("=")
    named = [f"{name}={each}" for each in _paths(path)] if equals else []
    return [*datasets(context, incomplete), *_paths(incomplete), *named]


def topics(incomplete: str) -> list[str]:
    """Complete the name of a page of the manual."""
    return _starting_with(TOPICS, incomplete)


def commands_and_topics(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a command, or of a page of the manual."""
    commands = getattr(context.find_root().command, "commands", ())
    return _starting_with([*commands, *TOPICS], incomplete)


def benchmarks(incomplete: str) -> list[str]:
    """Complete the name of a benchmark."""
    from oodcli.data.benchmarks import BENCHMARKS

    return _starting_with(BENCHMARKS, incomplete)


def complete_in_bash(program: Callable[[], None]) -> None:
    """Complete a word for bash, which splits words at ``:`` and ``=`` and replaces the last piece.

    Parameters
    ----------
    program
        Function that prints the completions of the words in the environment, one per line, and
        exits.
    """
    pieces = os.environ.get("COMP_WORDS", "").split("\n")
    at = int(os.environ.get("COMP_CWORD", "0"))
    words, at, before = join_words(pieces, at)
    os.environ.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(at))
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            program()
    finally:
        lines = [line.removeprefix(before) for line in output.getvalue().splitlines()]
        folders = any(line.endswith(os.sep) for line in lines)
        # If all completions are paths, bash completes them: it enters folders and quotes spaces.
        if not (folders and all(Path(line).exists() for line in lines)):
            for line in lines:
                print_stdout(line)


def join_words(pieces: list[str], at: int) -> tuple[list[str], int, str]:
    """Join the pieces into which bash has split the words of a command line.

    Parameters
    ----------
    pieces
        The pieces; ``:`` and ``=`` are separate pieces.
    at
        Index of the piece to complete.

    Returns
    -------
    tuple
        The words; the index of the word to complete; and the beginning of its value (without
        ``--option=``) that is not in that piece.
    """
    words: list[str] = []
    position, before, attach = at, "", False
    for index, piece in enumerate(pieces):
        is_separator = piece != "" and not piece.strip(":=")
        if words and (is_separator or attach):
            words[-1] += piece
        else:
            words.append(piece)
        if index == at:
            position = len(words) - 1
            before = words[-1] if is_separator else words[-1][: len(words[-1]) - len(piece)]
        attach = is_separator
    if before.startswith("-"):
        before = before.partition("=")[2]
    return words, position, before


def _starting_with(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _paths(incomplete: str) -> list[str]:
    """Return the existing paths with this prefix; folders end in a separator."""
    paths = sorted(glob.glob(f"{glob.escape(incomplete)}*"))  # noqa: PTH207 - keeps "./"
    return [f"{path}{os.sep}" if Path(path).is_dir() else path for path in paths]
