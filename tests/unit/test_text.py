"""Names of files as text in one line, and back."""

import json
import os

import numpy as np
import pytest

from oodcli.text import ASCII_FALLBACK, counted, escaped, json_text, unescaped


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("plain.png", "plain.png"),
        ("고양이 ß.png", "고양이 ß.png"),
        ("a\nb\r\t.png", r"a\nb\r\t.png"),
        (r"C:\new", r"C:\\new"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b2J", r"\xc2\x9b2J"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("left\u202eright", r"left\xe2\x80\xaeright"),
    ],
)
def test_what_is_written_is_one_line_and_can_be_read_back(name: str, written: str) -> None:
    assert escaped(name) == written
    assert unescaped(written) == name


def test_any_bytes_are_read_back() -> None:
    bits = np.random.default_rng(0)
    alphabet = np.frombuffer(b"\\nrtx09af\x1b\n\xff\xe9\xc3\xa9\xc2\x85\xed\xa0\x80a", np.uint8)
    for _ in range(3000):
        raw = bits.choice(alphabet, bits.integers(1, 12)).tobytes()
        line = escaped(os.fsdecode(raw))
        assert line.isprintable()
        assert os.fsencode(unescaped(line)) == raw


def test_json_keeps_characters_unless_one_cannot_be_written() -> None:
    assert json_text({"name": "고양이"}) == '{"name": "고양이"}'
    assert json_text({"name": "고양이"}, plain=True).isascii()
    for hostile in ("\udcff", "\x9b2J", "\x1b[2J", "\u202e"):
        line = json_text({"name": hostile}, indent=1)
        assert hostile not in line
        assert json.loads(line) == {"name": hostile}
    with pytest.raises(ValueError, match="Out of range"):
        json_text({"value": float("nan")})


def test_a_stream_that_lacks_a_character_gets_a_stand_in() -> None:
    assert "─▇ 0.5 ± 1 ↓".encode("ascii", ASCII_FALLBACK) == b"-# 0.5 +- 1 v"
    assert "0.5 ± 1 ↓".encode("latin-1", ASCII_FALLBACK) == "0.5 ± 1 v".encode("latin-1")
    assert "고".encode("cp1252", ASCII_FALLBACK) == rb"\uace0"


def test_one_of_a_kind_is_not_a_plural() -> None:
    assert counted(1, "unreadable image") == "1 unreadable image"
    assert counted(1200, "unreadable image") == "1,200 unreadable images"
    assert counted(2, "class", "classes") == "2 classes"
