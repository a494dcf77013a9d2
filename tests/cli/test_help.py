"""``ood help``: the help of commands, and pages of the manual."""

import re

import pytest

from oodcli.cli.render.manual import write_page
from oodcli.manual import TOPICS, page
from tests.support.cli import Ood


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_is_printed_as_it_is_where_stdout_is_no_terminal(ood: Ood, topic: str) -> None:
    assert ood("help", "--page", topic) == (0, page(topic), "")
    command = ood(topic, "--help")
    assert ood("help", topic) == (command if command[0] == 0 else (0, page(topic), ""))


def test_a_page_that_is_named_as_a_command_is_reached_and_said_so(ood: Ood) -> None:
    _, shown, _ = ood("help", "methods")
    assert shown.startswith("Usage: ood methods")
    assert shown.rstrip().endswith("Manual: ood help --page methods")


def test_the_list_gives_a_command_for_every_page_that_shows_it(ood: Ood) -> None:
    code, out, err = ood("help", "--list")
    assert (code, err) == (0, "")
    commands = [re.split(r" {2,}", line)[0].split() for line in out.splitlines()]
    assert [words[-1] for words in commands] == list(TOPICS)
    for words in commands:
        assert ood(*words[1:]) == (0, page(words[-1]), "")


def test_the_help_of_every_command_names_a_page_of_the_manual(ood: Ood) -> None:
    import typer

    from oodcli.cli.app import app

    for name, command in typer.main.get_command(app).commands.items():
        if name != "help":
            words = command.epilog.removeprefix("Manual: ood ").split()
            assert ood(*words) == (0, page(words[-1]), ""), name


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sreening"], "No such command or topic 'sreening'. Did you mean 'screening'"),
        (["scor"], "Did you mean 'score'"),
        (["--page", "score"], "No such command or topic 'score'."),
        (["data", "all"], "unexpected extra argument (all)"),
        (["data", "--list"], "one of COMMAND, TOPIC, --page and --list"),
    ],
)
def test_wrong_usage_is_refused(ood: Ood, argv: list[str], said: str) -> None:
    code, out, err = ood("help", *argv)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_is_drawn_on_a_terminal(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", write_page(topic))
    assert page(topic).startswith("# ")
    assert drawn.strip().startswith(page(topic).splitlines()[0][2:])
    assert max(map(len, drawn.splitlines())) <= 100
    for mark in ("```", "<!--", "](", "|---", "\n## "):
        assert mark not in drawn, mark
    first = re.search(r"^```sh\n(?:.*\n)*?(ood \S+)", page(topic), flags=re.MULTILINE)
    assert first is None or first[1] in drawn


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (
            ("--format", "json", "--format", "csv"),
            "note: --format is given 2 times; the last counts",
        ),
        (("--format", "csv", "--format=json", "--format", "csv"), "--format is given 3 times"),
    ],
)
def test_a_note_says_that_the_last_of_several_values_counts(
    ood: Ood, given: tuple[str, ...], note: str
) -> None:
    code, out, err = ood("runs", "list", *given)
    assert code == 0
    assert out.startswith("name,")
    assert note in err


def test_options_for_several_values_and_switches_are_given_twice(ood: Ood) -> None:
    code, _, err = ood("report", "--run", "a", "--run", "b", "--full", "--full")
    assert code == 1
    assert "given" not in err


def test_help_is_shown_whatever_is_given_twice(ood: Ood) -> None:
    code, out, err = ood("predict", "x.png", "--run", "a", "--run", "b", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: ood predict")
