"""Rules that hold for the whole project."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOW = ("torch", "torchvision", "sklearn", "scipy", "urllib.request", "ssl", "asyncio")


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


def test_the_readme_or_the_manual_names_every_command_and_method() -> None:
    from oodcli.manual import TOPICS, page
    from oodcli.methods import METHODS

    manual = "\n".join([(ROOT / "README.md").read_text(), *map(page, TOPICS)])
    for command in commands():
        assert f"ood {command}" in manual, command
    for name in METHODS:
        assert f"`{name}`" in page("methods"), name


def test_the_readme_is_a_front_door() -> None:
    from oodcli.manual import TOPICS

    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 220
    for topic in TOPICS:
        assert f"[{topic}](oodcli/manual/{topic}.md)" in readme, topic


def test_every_link_within_readme_and_manual_leads_to_a_file() -> None:
    texts = [ROOT / "README.md", *(ROOT / "oodcli" / "manual").glob("*.md")]
    links = [
        (text.parent / target.partition("#")[0])
        for text in texts
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text.read_text())
    ]
    assert len(links) > 20
    assert [str(link) for link in links if not link.is_file()] == []


def test_a_reason_stands_beside_every_dependency() -> None:
    import tomllib

    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    for dependency in [*project["dependencies"], *extras]:
        if not dependency.startswith("oodcli["):  # an extra that takes in another one
            reason = rf'^  "{re.escape(dependency)}",? +# \S.+$'
            assert re.search(reason, text, flags=re.MULTILINE), dependency


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
    ("oodcli/data/formats/archives.py", "contents"): "an open file",
    ("oodcli/data/formats/arrays.py", "read"): "an open file",
    ("oodcli/data/formats/cifar.py", "_files"): "an open file",
    ("oodcli/data/formats/hdf5.py", "_blocks"): "an open file",
    ("oodcli/data/formats/hdf5.py", "_one_by_one"): "an open file",
    ("oodcli/data/formats/tars.py", "entries_in"): "an open file",
    ("oodcli/data/formats/tars.py", "entries_of"): "an open file",
    ("oodcli/data/incoming.py", "_walk"): "an open folder",
    ("oodcli/data/decoding/files.py", "_entries"): "an open folder",
    ("oodcli/data/formats/archives.py", "members_of"): "an open file",
    ("oodcli/data/formats/archives.py", "_members_within"): "an open file",
    ("oodcli/data/decoding/extents.py", "contents"): "an open file",
    ("oodcli/data/decoding/shards.py", "chunks"): "an open file",
    ("oodcli/data/decoding/shards.py", "read"): "an open file",
    ("oodcli/training/streaming.py", "_epoch"): "a temporary file without a name",
    ("oodcli/data/unpack.py", "entries"): "no more than the name of the archive",
    ("oodcli/data/unpack.py", "_tar_entries"): "an open file",
    ("oodcli/data/unpack.py", "_zip_entries"): "an open file",
    ("oodcli/models/fitting.py", "_candidates"): "nothing",
    ("oodcli/models/extraction.py", "batches"): "settings of torch; both its callers close it",
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
        "oodcli/compute/processes.py",  # a context manager
        "oodcli/reporting/evaluate.py",  # a with statement
        "oodcli/data/formats/tars.py",  # a with statement
    }
