"""Rules that hold for the whole project."""

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
