"""Rules that hold for the whole project."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOW = ("torch", "torchvision", "sklearn", "scipy")


def commands() -> list[str]:
    """Return every command and group of the program, such as ``runs`` and ``runs list``."""
    import typer

    from oodcli.cli.app import app

    def walk(command: object, path: tuple[str, ...]) -> list[str]:
        inner = getattr(command, "commands", {})
        return [" ".join(path)] * bool(path) + [
            name for key, each in inner.items() for name in walk(each, (*path, key))
        ]

    return walk(typer.main.get_command(app), ())


def loaded_by(*lines: str) -> set[str]:
    """Run commands in one fresh interpreter and return the slow packages that they loaded."""
    code = (
        "import sys\n"
        "from oodcli.cli.app import main\n"
        f"for line in {lines!r}:\n"
        "    try:\n"
        "        main(line.split())\n"
        "    except SystemExit as end:\n"
        "        assert end.code in (None, 0, 1), line\n"
        f"    print('LOADED', *[f'{{m}} by ood {{line}}' for m in {SLOW!r} if m in sys.modules])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert out.returncode == 0, out.stderr
    return set(re.findall(r"^LOADED (.+)$", out.stdout, flags=re.MULTILINE))


def test_the_walk_finds_commands_inside_groups_and_alone() -> None:
    assert {"predict", "runs", "runs list", "datasets add"} <= set(commands())


def test_help_loads_nothing_slow() -> None:
    assert loaded_by(*(f"{command} --help" for command in commands())) == set()


def test_the_program_itself_loads_neither_rich_nor_workflows_for_its_help() -> None:
    code = (
        "import sys\n"
        "from oodcli.cli.app import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('LOADED', *[m for m in sys.modules if m.startswith(('rich', 'numpy', 'oodcli.w'))])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert out.stdout.rsplit("LOADED", 1)[1].split() == []


def test_commands_that_only_read_load_nothing_slow() -> None:
    reading = (
        "runs list", "report", "datasets list", "datasets path cifar10", "recipes list",
        "recipes show mode-base",
    )  # fmt: skip
    assert loaded_by(*reading) == set()


def test_the_command_line_offers_every_convention_and_no_other() -> None:
    """It lists them itself, so that help needs no NumPy."""
    from oodcli.cli.options import Convention
    from oodcli.metrics import CONVENTIONS

    assert {convention.value for convention in Convention} == set(CONVENTIONS)


def test_the_readme_names_every_command_and_method() -> None:
    from oodcli.methods import METHODS

    readme = (ROOT / "README.md").read_text()
    for command in commands():
        assert f"ood {command}" in readme, command
    for name in METHODS:
        assert f"`{name}`" in readme, name


def test_the_readme_gives_a_reason_for_every_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(d for e in project["optional-dependencies"].values() for d in e),
    ]
    readme = (ROOT / "README.md").read_text()
    for dependency in listed:
        name = re.split(r"[<>=!~\[; ]", dependency)[0]
        if name != "oodcli":  # an extra that takes in another one
            assert f"| `{name}` |" in readme, name


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"^pip install .*$", readme, flags=re.MULTILINE) == [
        "pip install . && ood run",
        'pip install ".[test]" && python -m pytest',
    ]


def test_only_the_agreed_names_stand_at_the_top() -> None:
    agreed = {"oodcli", "tests", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
    tracked = subprocess.run(
        ["git", "ls-files"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert {name for name in tops if not name.startswith(".")} <= agreed


# Generators that hold something while they wait for their reader, and why nothing waits for
# anything where the garbage collector closes one that was left unfinished.
HELD = {
    ("oodcli/data/arrays.py", "read"): "an open file",
    ("oodcli/data/cifar.py", "_files"): "an open file",
    ("oodcli/data/incoming.py", "_walk"): "an open folder",
    ("oodcli/data/unpack.py", "entries"): "no more than the name of the archive",
    ("oodcli/data/unpack.py", "_tar_entries"): "an open file",
    ("oodcli/data/unpack.py", "_zip_entries"): "an open file",
    ("oodcli/models/checkpoint.py", "_candidates"): "nothing",
    ("oodcli/models/extraction.py", "looks"): "settings of torch; both its callers close it",
}


def test_no_generator_owns_what_has_to_be_waited_for() -> None:
    """The collector closes it at any moment, in any thread: what owns is a context manager."""
    found = {
        (str(path.relative_to(ROOT)), function.name)
        for path in (ROOT / "oodcli").rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        and not any("contextmanager" in ast.unparse(each) for each in function.decorator_list)
        and any(yields_within(block) for block in holders(function))
    }
    assert found == set(HELD)


def holders(function: ast.FunctionDef) -> list[ast.stmt]:
    """Return the statements of a function itself that do something when they are left."""
    return [
        each
        for each in own_nodes(function)
        if isinstance(each, ast.With) or (isinstance(each, ast.Try) and each.finalbody)
    ]


def yields_within(block: ast.stmt) -> bool:
    return any(isinstance(each, (ast.Yield, ast.YieldFrom)) for each in own_nodes(block))


def own_nodes(parent: ast.AST) -> list[ast.AST]:
    """Return all nodes below one, but for those of functions in it."""
    found: list[ast.AST] = []
    for each in ast.iter_child_nodes(parent):
        if not isinstance(each, (ast.FunctionDef, ast.Lambda, ast.GeneratorExp)):
            found += [each, *own_nodes(each)]
    return found


def test_threads_and_processes_are_started_where_something_ends_them() -> None:
    """One module has the pools for images; the others end theirs in the function they start in."""
    starting = re.compile(r"\b(ThreadPoolExecutor|ProcessPoolExecutor|threading\.Thread)\(")
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "oodcli").rglob("*.py")
        if starting.search(path.read_text())
    }
    assert found == {
        "oodcli/pools.py",
        "oodcli/data/download.py",  # joins its threads
        "oodcli/models/extraction.py",  # read_ahead, a context manager
        "oodcli/training/processes.py",  # a context manager
        "oodcli/workflows/evaluate.py",  # a with statement
    }
