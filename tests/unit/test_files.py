"""What may be named as a file, and how damage is said."""

import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from oodcli.data.decoding.files import decode
from oodcli.data.formats.archives import members_of
from oodcli.data.formats.arrays import NpySource, open_npz, read_npy
from oodcli.data.formats.lists import open_list
from oodcli.data.opening import open_dataset
from oodcli.errors import (
    CorruptArtifactError,
    InvalidInputError,
    OodError,
    UnreadableImageError,
)
from oodcli.files import check_file, expanded, reading, regular
from oodcli.models.state_dicts import read_state
from oodcli.reporting.score_files import read_score_file
from oodcli.store import store as stores
from oodcli.store.store import Store, open_output_file


def test_a_regular_file_and_a_link_to_one_may_be_named(tmp_path):
    file, link = tmp_path / "a", tmp_path / "b"
    file.write_text("x")
    link.symlink_to(file)
    assert [regular(file), regular(link)] == [file, link]
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match="it is a folder, not a file"):
        regular(tmp_path)


def test_pipes_sockets_and_devices_are_no_files(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    for path, what in (("pipe", "a pipe"), ("socket", "a socket"), ("/dev/null", "a device")):
        with pytest.raises(OSError, match=f"it is {what}, not a file"):
            regular(Path(path))


READERS = {
    "a.png": decode,
    "a.npz": lambda path: open_npz(path, name="a", spec="a", role="ood"),
    "b.npz": read_score_file,
    "a.npy": NpySource,
    "b.npy": read_npy,
    "a.txt": lambda path: open_list(path, name="a", spec="a", role="ood"),
    "a.csv": read_score_file,
    "a.pkl": read_score_file,
    "a.zip": lambda path: list(members_of(path)),
    "a.tar": lambda path: list(members_of(path)),
    "a.pt": read_state,
    "a.safetensors": read_state,
    "c.npz": lambda path: open_dataset(str(path), Store(path.parent), role="ood"),
    "c.tar": lambda path: open_dataset(str(path), Store(path.parent), role="ood"),
}


@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_pipe(tmp_path, name):
    """A thread, since a reader that waits cannot be interrupted from within."""
    os.mkfifo(tmp_path / name)
    said: list[Exception] = []

    def read():
        try:
            READERS[name](tmp_path / name)
        except (OodError, OSError) as error:
            said.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    if thread.is_alive():  # let it go, so that the tests end
        os.close(os.open(tmp_path / name, os.O_RDWR | os.O_NONBLOCK))
    assert [str(error) for error in said] != []
    assert "it is a pipe, not a file" in str(said[0])


def test_a_pipe_to_write_to_is_waited_for_and_then_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "PIPE_WAIT_S", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        pytest.raises(
            InvalidInputError, match=f"no process reads the pipe {pipe}; start its reader"
        ),
        open_output_file(pipe),
    ):
        pass
    monkeypatch.setattr(stores, "PIPE_WAIT_S", 20)
    got: list[bytes] = []

    def late():
        time.sleep(0.3)
        got.append(pipe.read_bytes())

    thread = threading.Thread(target=late)
    thread.start()
    with open_output_file(pipe) as stream:
        stream.write(b"x" * 2**18)  # more than a pipe holds
    thread.join()
    assert got == [b"x" * 2**18]
    assert pipe.is_fifo()


def test_a_device_is_written_as_it_is():
    with open_output_file(Path("/dev/null")) as stream:
        stream.write(b"x")
    assert not Path("/dev/null").is_file()


def test_home_folders_of_users_that_are_not_there_are_refused(tmp_path, monkeypatch):
    told = (
        "cannot use ~nobody-is-called-so/x: there is no user 'nobody-is-called-so'; write the "
        "whole path, or ./~nobody-is-called-so/x for a file of this name"
    )
    with pytest.raises(InvalidInputError) as caught:
        expanded(Path("~nobody-is-called-so/x"))
    assert str(caught.value) == told
    for call in (
        lambda: Store.at(Path("~nobody-is-called-so")),
        lambda: stores.check_output_file(Path("~nobody-is-called-so/x.csv")),
        lambda: open_dataset("~nobody-is-called-so/x.npz", Store(tmp_path)),
    ):
        with pytest.raises(InvalidInputError, match="there is no user 'nobody-is-called-so'"):
            call()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded(Path("~/x")) == tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    Path("~file").write_text("x")
    assert expanded(Path("~file")) == Path("~file")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ValueError("two\n lines"), "x is bad: two lines; do it"),
        (ValueError(), "x is bad: ValueError; do it"),
        (KeyError("name"), "x is bad: KeyError 'name'; do it"),
        (MemoryError(), "x is bad: MemoryError; do it"),
        (RecursionError("deep"), "x is bad: deep; do it"),
        (OSError(22, "Invalid argument", "x"), "x is bad: Invalid argument; do it"),
        (struct.error("short"), "x is bad: short; do it"),
    ],
)
def test_whatever_a_library_raises_is_one_line(raised, said):
    with (
        pytest.raises(CorruptArtifactError) as caught,
        reading("x", wrong="is bad", cure="do it", disk=True),
    ):
        raise raised
    assert str(caught.value) == said


def test_errors_of_ours_and_of_the_disk_stay():
    with (
        pytest.raises(UnreadableImageError, match="cannot read image y: no"),
        reading("x", cure="do it"),
    ):
        raise UnreadableImageError("y", "no")
    with pytest.raises(OSError, match="full"), reading("x", cure="do it", disk=True):
        raise OSError(28, "disk full")
    with (
        pytest.raises(InvalidInputError, match="x cannot be read: disk full; do it"),
        reading("x", cure="do it", error=InvalidInputError),
    ):
        raise OSError(28, "disk full")


def test_what_is_no_file_is_refused_as_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    said = {"pipe": "it is a pipe, not a file; name another", ".": "it is a folder, not a file"}
    for name, reason in said.items():
        with pytest.raises(InvalidInputError, match=reason):
            check_file(tmp_path / name, "name another")
    with pytest.raises(InvalidInputError, match=r"there is no file .*none; name another"):
        check_file(tmp_path / "none", "name another")
