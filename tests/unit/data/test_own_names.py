"""datasets.toml is read strictly and written with care."""

from pathlib import Path

import pytest

from oodcli.data.own_names import RegisteredDataset, forget, register, registered
from oodcli.errors import InvalidInputError, UnknownNameError


@pytest.fixture
def file(store):
    store.root.mkdir(parents=True, exist_ok=True)
    return store.root / "datasets.toml"


def test_without_a_file_there_are_none(store):
    assert registered(store) == {}


def test_entries_are_read_in_their_order(store, file):
    file.write_text(
        '# mine\n[fog]\npath = "/data/fog"\n[a.b]\n'.replace("[a.b]", '["a.b"]')
        + 'path = "lists/a.txt"\nroot = "~/images"\n[scans]\npath="s.npy"\nlabels="l.npy"\n'
    )
    assert registered(store) == {
        "fog": RegisteredDataset("fog", Path("/data/fog")),
        "a.b": RegisteredDataset(
            "a.b", store.root / "lists/a.txt", root=Path("~/images").expanduser()
        ),
        "scans": RegisteredDataset("scans", store.root / "s.npy", labels=store.root / "l.npy"),
    }
    assert list(registered(store)) == ["fog", "a.b", "scans"]


def test_what_is_registered_is_found_again(store):
    entries = [
        RegisteredDataset("fog", Path("/data/with \"quotes\" and 'more' \\ é")),
        RegisteredDataset("a.b", Path("/a.txt"), root=Path("/images")),
        RegisteredDataset("scans", Path("/s.npy"), labels=Path("/l.npy")),
    ]
    for entry in entries:
        register(entry, store)
    assert list(registered(store).values()) == entries


def test_hand_written_comments_and_order_survive(store, file):
    text = '# keep me\n[fog]   # and me\npath = "/old"  # gone with the entry\n\n[z]\npath = "/z"\n'
    file.write_text(text)
    register(RegisteredDataset("new", Path("/new")), store)
    assert file.read_text() == text + '\n[new]\npath = "/new"\n'
    forget("new", store)
    assert file.read_text() == text


def test_name_registered_again_stands_for_the_new_path(store):
    register(RegisteredDataset("fog", Path("/one"), root=Path("/r")), store)
    register(RegisteredDataset("fog", Path("/two")), store)
    assert registered(store) == {"fog": RegisteredDataset("fog", Path("/two"))}


def test_forgetting_leaves_the_others_and_the_images(store, tmp_path):
    (tmp_path / "fog").mkdir()
    register(RegisteredDataset("fog", tmp_path / "fog"), store)
    register(RegisteredDataset("haze", Path("/haze")), store)
    assert forget("fog", store).path == tmp_path / "fog"
    assert list(registered(store)) == ["haze"]
    assert (tmp_path / "fog").is_dir()


def test_forgetting_what_is_not_there_names_the_nearest(store):
    register(RegisteredDataset("fog", Path("/fog")), store)
    with pytest.raises(UnknownNameError) as caught:
        forget("fogg", store)
    assert str(caught.value) == "no registered data set 'fogg'; did you mean 'fog'?"


@pytest.mark.parametrize("name", ["", "a/b", "-x", ".x", "a=b", "a b", "é", "x\n"])
def test_impossible_name_is_refused(store, file, name):
    with pytest.raises(InvalidInputError) as caught:
        register(RegisteredDataset(name, Path("/x")), store)
    assert str(caught.value) == (
        f"{name!r} cannot name a data set; use letters, digits, '-', '_' and '.'"
    )
    assert not file.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[fog\n", "cannot be read: Expected ']' at the end of a table declaration (at line 1, "
         "column 5); correct it"),
        (b"\xff", "cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid "
         "start byte; correct it"),
        (b"[fog]\n", ': fog has no path; write [fog] and path = "…"'),
        (b"fog = '/x'\n", ': fog has no path; write [fog] and path = "…"'),
        (b"[fog]\npath = 3\n", ": path of fog is not a path in quotes; write one"),
        (b"[fog]\npath = ''\n", ": path of fog is not a path in quotes; write one"),
        (b'[fog]\npath = "a\\u0000b"\n', ": path of fog is not a path in quotes; write one"),
        (b"[fog]\npath='x'\npaht='y'\n", ": fog has a key 'paht'; there are: path, labels, "
         "root, columns"),
        (b"['a/b']\npath='x'\n", ": 'a/b' cannot name a data set; use letters, digits, '-', '_' "
         "and '.'"),
    ],
)  # fmt: skip
def test_wrong_file_is_one_line_and_stays_as_it_is(store, file, content, reason):
    file.write_bytes(content)
    for act in (
        lambda: registered(store),
        lambda: register(RegisteredDataset("new", Path("/new")), store),
        lambda: forget("fog", store),
    ):
        with pytest.raises(InvalidInputError) as caught:
            act()
        assert str(caught.value) == f"{file}{' ' if reason[0] != ':' else ''}{reason}"
    assert file.read_bytes() == content
