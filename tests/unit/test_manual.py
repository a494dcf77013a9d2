"""The manual agrees with the registries and records that it describes."""

import pkgutil
import re
import shlex
from pathlib import Path

import pytest

from oodcli.manual import TOPICS, page
from oodcli.manual.contract import OBJECTS
from oodcli.manual.generate import PARTS, refreshed
from oodcli.reporting.results import COLUMNS

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# The object in the contract that a golden file holds the form of.
HELD = {
    "datasets-list": "ood datasets list --format json",
    "doctor": "ood doctor --format json",
    "file-runs-tiny-normratio-normalised-all": "ood normratio --format json",
    "file-runs-tiny-recommendation": "ood recommend --format json",
    "file-runs-tiny-run": "ood runs show",
    "file-runs-tiny-scores-scoring": "runs/NAME/scores/KEY/scoring.json",
    "methods-list": "ood methods list --format json",
    "methods-show": "ood methods show --format json",
    "normratio": "ood normratio --format json",
    "predict-summary": "ood predict --summary FILE.json",
    "recipes-list": "ood recipes list --format json",
    "recipes-show": "ood recipes show --format json",
    "recommend": "ood recommend --format json",
    "report": "ood report --format json",
    "report-full": "ood report --format json",
    "runs-list": "ood runs list --format json",
    "runs-show": "ood runs show",
    "score": "ood score --format json",
    "score-plan": "ood score --dry-run --format json",
    "tuning": "ood tuning --format json",
    "verdict": "ood predict --format jsonl",
    "verdict-settings": "FILE.ood.json",
}
# Files of the store that other programs do not read, or that are parts of an object.
INTERNAL = {
    "file-activations-manifest",
    "file-images-manifest",
    "file-runs-tiny-detectors-detector",
    "file-runs-tiny-scores-searches-",
}
# What has no record of its own stands on the page as a whole.
OPEN = re.compile(r"\bany\b")


@pytest.mark.parametrize("topic", TOPICS)
def test_the_generated_parts_of_a_page_are_fresh(topic: str) -> None:
    assert refreshed(page(topic)) == page(topic), "stale; run: python -m oodcli.manual"


def test_every_generated_part_stands_on_one_page() -> None:
    names = [
        name for topic in TOPICS for name in re.findall(r"<!-- generated: (\S+) -->", page(topic))
    ]
    assert sorted(names) == sorted(PARTS)


def test_a_stale_part_is_written_anew_and_an_unknown_one_refused() -> None:
    old = "# Page\n\n<!-- generated: conventions -->\n\n| old |\n\n<!-- end -->\n\nText.\n"
    new = refreshed(old)
    assert "| old |" not in new
    assert "| `neutral` | ID positive" in new
    assert new.endswith("<!-- end -->\n\nText.\n")
    assert refreshed(new) == new
    with pytest.raises(KeyError):
        refreshed(old.replace("conventions", "conversions"))


def test_every_golden_object_is_part_of_the_contract() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(HELD) | INTERNAL


@pytest.mark.parametrize("name", HELD)
def test_every_field_of_a_golden_object_is_in_the_contract(name: str) -> None:
    objects = {each.title: list(each.fields()) for each in OBJECTS}
    documented = {field.path: field for field in objects[HELD[name]]}
    if name == "score":
        documented |= {field.path: field for field in objects["ood report --format json"]}
    missing = []
    for line in (GOLDEN / f"{name}.txt").read_text().splitlines():
        path = re.sub(r"(\[\])+$", "", line.partition(": ")[0].removeprefix("$").lstrip("."))
        above = [path[: found.start()] for found in re.finditer(r"[.\[]", path)]
        opened = any(OPEN.search(documented[each].type) for each in above if each in documented)
        parts_alone = any(each.startswith((f"{path}.", f"{path}[")) for each in documented)
        parent = documented.get(path.rpartition(".")[0])
        of_a_map = parent is not None and parent.type.startswith("object of")
        known = opened or parts_alone or of_a_map or path in ("", "seal", *documented)
        if not known:
            missing.append(path)
    assert missing == []


def test_the_columns_of_a_report_are_those_that_the_manual_explains() -> None:
    from oodcli.cli.render import report_table

    assert set(COLUMNS) == set(report_table._NAMES)


def test_papers_call_methods_as_the_registry_does() -> None:
    """Tables import no torch, and so cannot ask it."""
    from oodcli.cli.render import papers
    from oodcli.methods import METHODS

    own = {"ash-b": "ASH", "csd": "MODE"}  # what tables of papers have instead
    single = {name: title for name, title in papers._COMMON_NAMES.items() if name in METHODS}
    assert len(single) >= 15
    assert single == {name: own.get(name, METHODS[name].title) for name in single}


def test_every_field_of_the_contract_has_a_meaning() -> None:
    for each in OBJECTS:
        for field in each.fields():
            assert field.meaning, (each.title, field.path)


@pytest.mark.parametrize("topic", TOPICS)
def test_every_part_of_the_code_that_a_page_names_is_there(topic: str) -> None:
    names = set(re.findall(r"`(oodcli(?:\.\w+)+)`", page(topic)))
    assert len(names) > 30 or topic != "architecture"
    for name in names:
        pkgutil.resolve_name(name)
    for path in re.findall(r"`((?:oodcli|tests)/[\w./]+)`", page(topic)):
        assert (GOLDEN.parents[1] / path).exists() or "NAME" in path, path


def written_commands() -> list[tuple[str, list[str]]]:
    """Return every command in README and manual as its words, with the page it stands on."""
    found = []
    texts = {topic: page(topic) for topic in TOPICS}
    texts["README.md"] = (GOLDEN.parents[1] / "README.md").read_text()
    for name, text in texts.items():
        lines = [
            line.partition("   #")[0].partition(" # ")[0]
            for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
            for line in block.splitlines()
        ]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        lines += re.findall(r"`([^`\n]+)`", prose)
        for line in lines:
            piece = re.search(r"(?:^|\| |&& |-- )(?:ood|oodcli) (.+)$", line)
            if piece is not None and "…" not in line:
                found.append((name, shlex.split(piece[1])))
    return found


def test_every_command_in_readme_and_manual_has_its_options() -> None:
    import typer

    from oodcli.cli.app import app

    program = typer.main.get_command(app)
    commands = written_commands()
    assert len(commands) > 100
    for name, words in commands:
        command, rest = program, words
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        assert command is not program or rest[0].startswith("-") or rest[0].isupper(), (name, words)
        options = {
            option for each in command.params for option in (*each.opts, *each.secondary_opts)
        }
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert given <= options | {"--help"} | {"--install-completion"}, (name, words)
