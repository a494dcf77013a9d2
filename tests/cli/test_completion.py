"""What the shell is offered after the Tab key."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def completed(words: str) -> list[str]:
    """Return what a shell is offered for the last word of a line."""
    asked = {"_OOD_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(len(words.split(" ")) - 1)
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
    from oodcli.training.registry import OBJECTIVES

    assert tuple(METHODS) == completion.METHODS
    assert tuple(ARCHITECTURES) == completion.ARCHITECTURES
    assert tuple(OBJECTIVES) == completion.OBJECTIVES


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ood rec", ["recommend", "recipes"]),
        ("ood score --method featu", ["featurenorm"]),
        ("ood score --method react+max", ["react+maxlogit", "react+maxcosine"]),
        ("ood train --arch wrn", ["wrn-28-10", "wrn-40-2"]),
        ("ood train --objective log", ["logitnorm"]),
        ("ood recipes show mode-t", ["mode-train"]),
        ("ood datasets path svhn", ["svhn", "svhn-10000"]),
        ("ood report --benchmark openood-cifar", ["openood-cifar10", "openood-cifar100"]),
    ],
)
def test_names_are_completed_without_torch(words: str, offered: list[str]) -> None:
    assert set(offered) <= set(completed(words))
    last = words.rsplit(" ", maxsplit=1)[-1]
    assert all(name.startswith(last) for name in completed(words))


def test_runs_and_folders_are_completed(tiny: Path) -> None:
    assert completed("ood report --run t") == ["tiny"]
    assert completed("ood runs show ") == ["tiny"]
    assert completed(f"ood score --ood {tiny}"[:-2]) == [f"{tiny}{os.sep}"]
    assert completed("ood runs show none") == []


def test_a_store_that_cannot_be_read_offers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OOD_HOME", str(tmp_path / "file"))
    assert completed("ood report --run t") == []
