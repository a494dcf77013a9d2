"""Whatever comes from outside reaches a terminal without steering it."""

import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import oodcli
from oodcli.cli.console import StyledText, for_stdout, print_error_now
from oodcli.cli.render.formats.plain import write_json
from oodcli.errors import OodError, UnknownNameError
from oodcli.text import printable, printable_lines
from tests.support.cli import Ood
from tests.support.server import serving

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ROOT / "oodcli" / "reporting" / "explorer" / "web" / "vendor"
# A colour, a title, C1's own introducer, a bell, a backspace, the direction of writing, a new line,
# a zero-width blank, a byte that is no UTF-8, and the end of a page of a terminal.
HOSTILE = "a\x1b[31mb\x1b]0;t\x07\x9b2Jc\x08\u202ed\ne\u200bf\udcffg\x7f\u2028h"
SHOWN = r"a\x1b[31mb\x1b]0;t\x07\x9b2Jc\x08\u202ed e\u200bf\xffg\x7f h"


def check(text: str) -> None:
    """Assert that nothing but lines of printable characters is there."""
    assert [line for line in text.split("\n") if not line.isprintable()] == []


def errors() -> list[type[OodError]]:
    """Return every class of error of the package."""
    for module in pkgutil.walk_packages(oodcli.__path__, "oodcli."):
        # The adapter alone needs an extra at once; it defines no errors.
        if not module.name.endswith(("__main__", ".pytorch_ood")):
            importlib.import_module(module.name)
    found: list[type[OodError]] = []
    waiting: list[type[OodError]] = [OodError]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.append(each)
            waiting += each.__subclasses__()
    return found


def made(kind: type[OodError]) -> OodError:
    """Return an error of a class, with hostile text wherever it takes text."""
    if "__init__" not in vars(kind):
        return kind(HOSTILE)
    texts, others = [], {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            texts.append(HOSTILE)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            others[name] = HOSTILE if parameter.annotation in (str, "str") else 1
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            texts.append(HOSTILE)
    return kind(*texts, **others)


def test_text_is_made_printable_in_one_line() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("Ünïcödé 图像 🎉 é") == "Ünïcödé 图像 🎉 é"
    assert printable("\U000e0041") == r"\U000e0041"
    assert printable_lines("a\nb\x1b\n") == "a\nb\\x1b\n"


def test_every_error_of_the_program_is_printed_so(
    ood: Ood, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Exception] = [
        UnknownNameError.among(HOSTILE, HOSTILE, [HOSTILE + "x"]),
        UnknownNameError.among("set", "q", [HOSTILE]),
        OSError(28, HOSTILE, HOSTILE),
        OSError(HOSTILE),
    ]
    raised += map(made, errors())
    assert len(raised) >= 12
    for error in raised:

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("oodcli.methods.pages.list_methods", fail)
        code, out, err = ood("methods")
        assert (code, out) == (1, "")
        check(err)
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        assert SHOWN.lower() in err.lower()


def test_options_are_repeated_so(ood: Ood) -> None:
    for argv in (
        (f"--{HOSTILE}",),
        (HOSTILE,),
        ("report", f"--{HOSTILE}"),
        ("report", "--format", HOSTILE),
        ("methods", "show", "msp", HOSTILE),
    ):
        code, out, err = ood(*argv)
        assert (code, out) == (2, ""), argv
        check(err)
        assert r"\x1b[31m" in err, argv


def test_names_of_sets_and_methods_and_pickles_are_printed_so(ood: Ood, tmp_path: Path) -> None:
    name = HOSTILE.replace("\udcff", "").replace("\n", "")
    table = tmp_path / "a.csv"
    rows = "".join(f'"{name}",{score}\n' for score in range(3))
    table.write_text(f"dataset,score\nid,5\nid,6\n{rows}", encoding="utf-8")
    for format_ in ("table", "markdown", "latex", "html"):
        code, out, err = ood("report", "--scores", table, "--id", "id", "--format", format_)
        assert code == 0
        for library in LIBRARIES.iterdir():  # of the explorer, as they were published
            out = out.replace(library.read_text(encoding="utf-8"), "")
        check(out.replace("\t", " "))
        check(err)
    assert r"\x1b[31mb" in ood("report", "--scores", table, "--id", "id")[1]
    code, out, err = ood("report", "--scores", table)
    assert code == 1
    check(err)

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[()]]:
            return len, ()

    content = pickle.dumps(Hostile(), protocol=0).replace(b"len", b"l\x1b[31mn")
    (tmp_path / "b.pkl").write_bytes(content)
    code, _, err = ood("report", "--scores", tmp_path / "b.pkl")
    assert code == 1
    check(err)
    assert r"l\x1b[31mn" in err


def test_names_of_tensors_are_printed_so(ood: Ood, tmp_path: Path) -> None:
    name = HOSTILE.replace("\udcff", "")
    for content in ({name: torch.ones(2)}, {name: "text"}, {name: torch.ones(2).to_sparse()}):
        torch.save(content, tmp_path / "a.pt")
        code, _, err = ood("import", tmp_path / "a.pt", "--arch", "resnet20", "--data", "digits")
        assert code == 1
        check(err)
        assert r"a\x1b[31mb" in err


def test_members_of_archives_and_files_are_printed_so(ood: Ood, tiny: Path, tmp_path: Path) -> None:
    name = "a\x1b[31mb\x9bc.png"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"no image")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).write_bytes(b"no image")
    for spec in ("a.zip", "b.tar", "c"):
        code, _, err = ood("score", "--method", "msp", "--ood", tmp_path / spec)
        assert code == 1
        check(err)
        assert r"a\x1b[31mb\x9bc.png" in err


def test_reasons_of_servers_are_printed_so(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(b"") as server:
        server.reason = "Gone\x1b[31m\x9b2J"
        server.statuses = [404, 404]
        origin = server.url.rpartition("/")[0]
        code, _, err = ood("datasets", "download", "svhn", "--from", origin)
    assert code == 1
    check(err)
    assert r"404 Gone\x1b[31m\x9b2J" in err


def test_results_are_made_printable_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "name,1\nb\x1b[31m,2\n"
    assert for_stdout(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert for_stdout(text) == "name,1\nb\\x1b[31m,2\n"
    assert for_stdout(StyledText("\x1b[1mbold\x1b[0m")) == "\x1b[1mbold\x1b[0m"


def test_json_is_printable_and_says_the_same() -> None:
    import json

    text = write_json({HOSTILE: [HOSTILE, "é图"]})
    check(text)
    assert json.loads(text) == {HOSTILE: [HOSTILE, "é图"]}
    assert "é图" in text


def test_errors_amid_progress_are_printed_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_error_now(HOSTILE)
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


@pytest.mark.parametrize("code", ["print(1)", "import sys\n\nprint(1, file=sys.stderr)"])
def test_the_linter_bans_every_other_print(code: str) -> None:
    argv = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "T201"]
    told = subprocess.run(
        [*argv, "--stdin-filename", "oodcli/cli/other.py", "-"],
        input=code, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert told.returncode == 1
    assert "T201" in told.stdout


def test_progress_is_printed_so(capsys: pytest.CaptureFixture[str]) -> None:
    from oodcli.cli.progress import TerminalProgress

    progress = TerminalProgress()
    progress.note(HOSTILE)
    with progress.task(HOSTILE, total=2, unit="images") as task:
        task.advance(1, loss=HOSTILE)
    err = capsys.readouterr().err
    check(err)
    assert err.count(SHOWN) == 4
