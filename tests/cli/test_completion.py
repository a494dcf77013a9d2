"""What the shell is offered after the Tab key."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oodcli.cli.app import app

Ood = Callable[..., tuple[int, str, str]]


def completed(words: str) -> list[str]:
    """Return what bash is offered for the last word of a line, which it cuts into pieces."""
    pieces = [piece for word in words.split(" ") for piece in re.split("([:=])", word)]
    pieces = [piece for piece in pieces if piece] + [""] * words.endswith(" ")
    asked = {"_OOD_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(pieces)}
    asked["COMP_CWORD"] = str(len(pieces) - 1)
    code = (
        "import sys\n"
        "from oodcli.cli.app import main\n"
        "try:\n"
        "    main([])\n"
        "finally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | asked,
    )
    assert done.stderr == "False\n", done.stderr
    return done.stdout.split()


def test_the_lists_are_those_of_the_registries() -> None:
    from oodcli.cli import completion
    from oodcli.methods import METHODS
    from oodcli.models.registry import ARCHITECTURES
    from oodcli.training.objectives.registry import OBJECTIVES
    from oodcli.training.outliers import MADE

    assert tuple(METHODS) == completion.METHODS
    assert tuple(ARCHITECTURES) == completion.ARCHITECTURES
    assert tuple(OBJECTIVES) == completion.OBJECTIVES
    assert tuple(MADE) == completion.OUTLIERS


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ood rec", ["recommend", "recipes"]),
        ("ood score --method featu", ["featurenorm"]),
        ("ood score --method react+max", ["react+maxlogit", "react+maxcosine"]),
        ("ood tuning sca", ["scale"]),
        ("ood report --compare featu", ["featurenorm"]),
        ("ood report --compare msp featu", ["featurenorm"]),
        ("ood train --arch wrn", ["wrn-28-10", "wrn-40-2"]),
        ("ood train --objective log", ["logitnorm"]),
        ("ood recipes show mode-t", ["mode-train"]),
        ("ood datasets path svhn", ["svhn", "svhn-10000"]),
        ("ood report --benchmark openood-cifar", ["openood-cifar10", "openood-cifar100"]),
    ],
)
def test_names_are_completed_without_torch(words: str, offered: list[str]) -> None:
    names = completed(words)
    assert set(offered) <= set(names)
    last = words.rsplit(" ", maxsplit=1)[-1]
    assert all(name.startswith(last) for name in names)


def test_runs_and_folders_are_completed(tiny: Path) -> None:
    assert completed("ood report --run t") == ["tiny"]
    assert completed("ood runs show ") == ["tiny"]
    assert completed("ood report --run=t") == ["tiny"]
    # Folders alone are left to bash; beside a file they are offered.
    assert completed(f"ood score --ood {tiny}"[:-2]) == []
    assert completed("ood runs show none") == []


def test_scored_sets_of_the_run_are_completed(tiny: Path, ood: Ood) -> None:
    assert completed("ood runs drop ") == []
    ood("score", "--method", "msp", "--ood", "digits-6-9", "--limit", 5)
    assert completed("ood runs drop dig") == ["digits-6-9"]
    assert completed("ood runs drop --run tiny dig") == ["digits-6-9"]
    assert completed("ood runs drop --run none dig") == []
    assert "screening" in completed("ood help scr")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ood score --method ensemble:msp+kn", ["msp+knn"]),
        ("ood score --method=ensemble:msp+kn", ["msp+knn"]),
        ("ood score --method=react+ms", ["react+msp"]),
        ("ood import --arch torchvision:", [""]),
        ("ood score --ood=places", ["places365"]),
    ],
)
def test_bash_is_offered_the_rest_of_a_word_that_it_cuts(words: str, offered: list[str]) -> None:
    names = completed(words)
    assert set(filter(None, offered)) <= set(names)
    assert not [each for each in names if ":" in each or "=" in each]


@pytest.mark.parametrize(
    ("words", "at", "whole", "before"),
    [
        (["ood", "x", "a", ":", "b"], 4, (["ood", "x", "a:b"], 2), "a:"),
        (["ood", "x", "a", ":"], 3, (["ood", "x", "a:"], 2), "a:"),
        (["ood", "--run", "=", "r"], 3, (["ood", "--run=r"], 1), ""),
        (["ood", "--m", "=", "a", ":", "b"], 5, (["ood", "--m=a:b"], 1), "a:"),
        (["ood", "k", ":", "k", "=", "5", "x"], 6, (["ood", "k:k=5", "x"], 2), ""),
        (["ood", "a:b"], 1, (["ood", "a:b"], 1), ""),  # bash without these word breaks
        (["ood", "x", ""], 2, (["ood", "x", ""], 2), ""),
    ],
)
def test_pieces_of_a_line_are_joined_to_words(
    words: list[str], at: int, whole: tuple[list[str], int], before: str
) -> None:
    from oodcli.cli.completion import join_words

    assert join_words(words, at) == (*whole, before)


def test_a_path_after_the_name_of_a_set_is_completed(tmp_path: Path) -> None:
    import typer

    from oodcli.cli.completion import images

    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.npz").write_bytes(b"")
    context = typer.Context(typer.main.get_command(app))
    context.params["store"] = tmp_path / "store"
    assert images(context, f"crops={tmp_path}/ph") == [
        f"crops={tmp_path}/photo.npz",
        f"crops={tmp_path}/photos{os.sep}",
    ]


def test_a_store_that_cannot_be_read_offers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OOD_HOME", str(tmp_path / "file"))
    assert completed("ood report --run t") == []
