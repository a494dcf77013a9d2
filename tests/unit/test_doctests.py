"""Every example in a docstring is true, and public functions have some."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Its examples are about a run, which tests/cli/test_python.py gives them.
ABOUT_A_RUN = {"oodcli.api"}


def with_examples() -> list[str]:
    """Return the modules that have examples."""
    found = []
    for path in sorted((ROOT / "oodcli").rglob("*.py")):
        if "    >>> " in path.read_text():
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(part for part in parts if part != "__init__"))
    return [name for name in found if name not in ABOUT_A_RUN]


def examples(module: str) -> list[doctest.DocTest]:
    """Return the docstrings of a module that have examples."""
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
    return [each for each in found if each.examples]


@pytest.mark.parametrize("module", with_examples())
def test_the_examples_of_a_module_are_true(module: str) -> None:
    tests = examples(module)
    assert tests, f"the examples of {module} are not found"
    runner = doctest.DocTestRunner(verbose=False)
    for each in tests:
        assert runner.run(each).failed == 0, each.name


def test_public_functions_have_examples() -> None:
    names = {each.name for module in with_examples() for each in examples(module)}
    assert len([name for name in names if not name.rpartition(".")[2].startswith("_")]) >= 30
