"""Names of files that hold anything, and streams that cannot hold everything."""

import csv
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oodcli.text import unescaped
from tests.support.cli import Ood, flat

HOSTILE = (b"caf\xe9", b"a\nb", b"\x1b[2J", b"\xc2\x9b31m", b"back\\slash", "고양이".encode())


@pytest.fixture
def hostile(tiny: Path, tmp_path: Path) -> Path:
    """Return a folder of images whose names hold what names may hold."""
    source = next((tiny / "test").rglob("*.png"))
    folder = tmp_path / "incoming"
    folder.mkdir()
    for name in HOSTILE:
        shutil.copy(source, os.fsencode(folder) + b"/" + name + b".png")
    return folder


def names(text: str, kind: str) -> list[bytes]:
    """Return the names of files in rows of verdicts."""
    if kind == "jsonl":
        return [os.fsencode(json.loads(line)["path"]) for line in text.splitlines()]
    return [os.fsencode(unescaped(row["path"])) for row in csv.DictReader(text.splitlines())]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_every_name_can_be_read_back_and_is_resumed_by(
    ood: Ood, hostile: Path, tmp_path: Path, kind: str
) -> None:
    output = tmp_path / f"verdicts.{kind}"
    command = ("predict", hostile, "--method", "msp", "--output", output)
    assert ood(*command)[0] == 0
    text = output.read_text()
    assert all(line.isprintable() for line in text.splitlines())
    wanted = sorted(os.fsencode(hostile) + b"/" + name + b".png" for name in HOSTILE)
    assert sorted(names(text, kind)) == wanted
    # Nothing is judged again, and a row that is lost is.
    lines = text.splitlines(keepends=True)
    output.write_text("".join(lines[:-1]))
    assert ood(*command)[0] == 0
    assert sorted(names(output.read_text(), kind)) == wanted


def test_no_name_reaches_the_screen_as_it_is(ood: Ood, hostile: Path) -> None:
    for form in ("table", "csv", "jsonl"):
        code, out, err = ood("predict", hostile, "--method", "msp", "--format", form)
        assert code == 0
        assert all(line.isprintable() for line in (out + err).splitlines())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_result_is_printed_whatever_stdout_can_hold(
    ood: Ood, tiny: Path, tmp_path: Path, encoding: str
) -> None:
    assert ood("score", "--method", "msp", "--ood", f"고양이={flat(tmp_path / 'odd')}")[0] == 0
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    line = [sys.executable, "-m", "oodcli", "report", "--format"]

    def printed(form: str) -> str:
        done = subprocess.run([*line, form], check=True, capture_output=True, env=environment)
        return done.stdout.decode(encoding)

    table = printed("table")
    assert r"\uace0\uc591\uc774" in table
    assert "-----" in table
    assert "FPR95 v" in table
    rows = json.loads(printed("json"))["rows"]
    assert {row["dataset"] for row in rows} >= {"고양이"}


def test_rows_are_not_wrapped_at_the_width_of_a_terminal(ood: Ood, tiny: Path) -> None:
    command = [sys.executable, "-m", "oodcli", "predict", str(tiny / "test"), "--method", "msp"]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*command, "--format", "csv"],
        stdout=slave,
        stderr=slave,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "40", "TERM": "xterm"},
    )
    os.close(slave)
    raw = bytearray()
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        raw += piece
    os.close(master)
    assert process.wait() == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode())
    _, plain, _ = ood("predict", tiny / "test", "--method", "msp", "--format", "csv")
    assert len(plain.splitlines()) == 25
    on_screen = {line.split("\r")[-1] for line in shown.replace("\r\n", "\n").splitlines()}
    assert set(plain.splitlines()) <= on_screen
