"""The parts of the manual that come from registries and records.

They stand between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import typer

from oodcli.cli.app import app
from oodcli.data.benchmarks import BENCHMARKS
from oodcli.data.readers import BUILT_IN
from oodcli.data.registry import DATASETS
from oodcli.manual.contract import contract, table
from oodcli.methods import METHODS
from oodcli.methods.members import ENSEMBLE_METHODS
from oodcli.methods.pages import docstring, show_method
from oodcli.metrics import CONVENTIONS
from oodcli.models.registry import ARCHITECTURES
from oodcli.reporting.results import COLUMNS
from oodcli.training.augmentations.words import AUGMENTATIONS, STAGES
from oodcli.training.objectives.registry import OBJECTIVES
from oodcli.training.recipes import RECIPES, SCORERS, Recipe

_BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def refreshed(page: str) -> str:
    """Return a page with all its generated parts as they are now.

    Parameters
    ----------
    page
        Markdown.

    Raises
    ------
    KeyError
        If there is no part of a name.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", page)


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _with_values(values: Mapping[str, object]) -> str:
    """Return names and values; None is what something else decides."""
    shown = {name: "" if value is None else f" {_word(value)}" for name, value in values.items()}
    return ", ".join(f"`{name}`{value}" for name, value in shown.items())


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _methods() -> str:
    rows = []
    for name, method in METHODS.items():
        parameters = {key: each.default for key, each in method.parameters().items()}
        summary = show_method(name).parts[0].summary.rstrip(".")
        rows.append(
            (
                f"`{name}`",
                summary + (" (shaper)" if method.is_shaper else ""),
                _with_values(parameters),
                "yes" if method.exportable else "",
                method.paper,
            )
        )
    heads = ("method", "score", "parameters", "ONNX", "paper")
    return table(heads, rows)


def _ensemble_methods() -> str:
    rows = (
        (f"`{name}`", show_method(name).parts[0].summary.rstrip("."), method.paper)
        for name, method in ENSEMBLE_METHODS.items()
    )
    return table(("method", "score", "paper"), rows)


def _objectives() -> str:
    rows = []
    for name, entry in OBJECTIVES.items():
        recipes = [r.name for r in RECIPES.values() if r.objective.partition(":")[0] == name]
        defaults = {each.name: each.default for each in fields(entry.type)}
        summary = docstring(entry.type).partition("\n\n")[0].rstrip(".")
        scorer = _codes([SCORERS[name]] if name in SCORERS else [])
        rows.append(
            (f"`{name}`", summary, _with_values(defaults), _codes(recipes), scorer, entry.paper)
        )
    heads = ("objective", "loss", "parameters", "recipes", "scored with", "paper")
    return table(heads, rows)


def _recipes() -> str:
    rows = [
        (f"`{r.name}`", f"`{r.arch}`", str(r.epochs), str(r.batch_size), f"{r.lr:g}", r.schedule,
         f"`{r.objective}`", r.keep, r.start, r.source)
        for r in RECIPES.values()
    ]  # fmt: skip
    heads = ("recipe", "network", "epochs", "batch", "learning rate", "schedule", "objective",
             "checkpoint", "start", "source")  # fmt: skip
    return table(heads, rows)


def _augmentations() -> str:
    values = {each.name: each.default for each in fields(Recipe)}
    rows = [
        (f"`{name}`", entry.text, STAGES[entry.stage],
         _with_values({setting: values[setting] for setting in entry.settings}), entry.paper)
        for name, entry in AUGMENTATIONS.items()
    ]  # fmt: skip
    soft = _codes(name for name, each in OBJECTIVES.items() if each.type.accepts_soft_labels)
    heads = ("word", "every image is", "acts on", "settings", "paper")
    return f"{table(heads, rows)}\n\nObjectives that take mixed labels: {soft}."


def _datasets() -> str:
    rows = []
    for name, known in DATASETS.items():
        parts = ", ".join(f"{count:,} {part}" for part, count in known.counts.items())
        manual = any(source.is_manual for source in known.sources)
        how = "by hand" if manual else "included" if not (known.sources or known.home) else "yes"
        rows.append((f"`{name}`", known.title, parts, how, known.licence))
    return table(("data set", "what it shows", "images", "download", "licence"), rows)


def _readers() -> str:
    return table(("what you have", "how it is read"), (reader.layout for reader in BUILT_IN))


def _benchmarks() -> str:
    rows = []
    for name, b in BENCHMARKS.items():
        far = _codes((*b.far, *b.ood))
        size = "×".join(map(str, b.size))
        rows.append((f"`{name}`", f"`{b.id_set}`" if b.id_set else "", _codes(b.near), far,
                     _codes(b.shifted), f"{size}, `{b.resize}`", f"`{b.convention}`"))  # fmt: skip
    heads = ("benchmark", "ID", "near OOD", "far OOD, or all", "shifted ID", "size", "convention")
    return table(heads, rows)


def _architectures() -> str:
    rows = []
    for name, architecture in ARCHITECTURES.items():
        with torch.device("meta"):  # shapes alone
            module = architecture.spec({}).build(10)
        count = sum(each.numel() for each in module.parameters())
        parameters = [
            f"`{p.name}` {p.default} ({p.allowed})" for p in architecture.parameters.values()
        ]
        blocks = len(architecture.blocks(module))
        rows.append((f"`{name}`", str(blocks), f"{count / 1e6:.2f} M", "; ".join(parameters)))
    return table(("architecture", "blocks", "weights, 10 classes", "parameters"), rows)


def _conventions() -> str:
    return table(
        ("convention", "meaning"),
        ((f"`{c.name}`", c.description) for c in CONVENTIONS.values()),
    )


def _commands() -> str:
    rows: list[tuple[str, str]] = []

    def walk(command: Any, name: str) -> None:  # noqa: ANN401 - of Typer
        inner = getattr(command, "commands", {})
        for key, each in inner.items():
            walk(each, f"{name} {key}")
        if not inner:
            text = command.help.partition("\n\n")[0].replace("\n", " ").replace("``", "`")
            rows.append((f"`{name}`", text.strip()))

    walk(typer.main.get_command(app), "ood")
    return table(("command", "what it does"), rows)


def _rooms() -> str:
    """Return every package, and every module beside them at the top, with its first line."""
    root = Path(__file__).resolve().parents[1]
    packages = {path.parent: path for path in root.glob("*/**/__init__.py")}
    modules = {path: path for path in root.glob("*.py") if not path.name.startswith("__")}
    rows = []
    for place, path in sorted(packages.items()) + sorted(modules.items()):
        text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[
            0
        ]
        name = place.relative_to(root.parent).as_posix() + "/" * (place in packages)
        rows.append((f"`{name}`", text.replace("``", "`").replace("\n", " ")))
    return table(("room", "what is in it"), rows)


def _columns() -> str:
    return table(("column", "meaning"), ((f"`{n}`", text) for n, text in COLUMNS.items()))


PARTS: Mapping[str, Callable[[], str]] = {
    "commands": _commands,
    "methods": _methods,
    "ensemble-methods": _ensemble_methods,
    "rooms": _rooms,
    "objectives": _objectives,
    "recipes": _recipes,
    "augmentations": _augmentations,
    "datasets": _datasets,
    "readers": _readers,
    "benchmarks": _benchmarks,
    "architectures": _architectures,
    "conventions": _conventions,
    "columns": _columns,
    "json": contract,
}
