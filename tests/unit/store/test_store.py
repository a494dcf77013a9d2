"""What is written is there whole or not at all, and nobody else's files are touched."""

import contextlib
import errno
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.store.store import (
    Store,
    atomic_write,
    check_free_space,
    check_output_file,
    check_output_folder,
    digest_of_bytes,
    digest_of_file,
    digest_of_json,
    free_bytes,
    read_arrays,
    read_json,
    remove_leftovers,
    scratch_file,
    size_of,
    write_arrays,
    write_json,
)


def _write_half(path: Path, error: BaseException) -> None:
    with atomic_write(path) as stream:
        stream.write(b"half")
        raise error


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError):
        _write_half(path, RuntimeError())
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _write_half(tmp_path / "new", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_damaged_json_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match="is damaged"):
        read_json(path)


def test_json_ends_with_a_seal_that_is_not_part_of_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"a": (1, 2.5), 3: None, "ö": float("nan"), "big": 2**70}
    write_json(path, content)
    written = json.loads(path.read_text())
    assert list(written)[-1] == "seal"
    back = read_json(path)
    assert list(back) == ["a", "3", "ö", "big"]
    assert (back["a"], back["3"], back["big"]) == ([1, 2.5], None, 2**70)
    write_json(tmp_path / "b.json", {"big": 2**70, "ö": float("nan"), "3": None, "a": [1, 2.5]})
    assert json.loads((tmp_path / "b.json").read_text())["seal"] == written["seal"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.945", "0.954"),
        ("near", "far"),
        ('"n": 7', '"n": 8'),
        ('"seal"', '"saal"'),
        ('"n": 7,', ""),
        ('"n": 7', '"n": 7, "n": 8'),
    ],
)
def test_an_edited_json_file_is_refused_by_name_with_its_cure(
    tmp_path: Path, old: str, new: str
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"accuracy": 0.945, "group": "near", "n": 7, "last": True})
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(CorruptArtifactError) as error:
        read_json(path, cure="score again")
    assert str(error.value) == (
        f"{path} is damaged or was edited: its content does not match its seal; score again"
    )


def test_every_flipped_bit_of_a_json_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"accuracy": 0.945, "group": "näher", "sets": [{"n": 7}, {"n": 12}], "x": None}
    write_json(path, content)
    written = path.read_bytes()
    for at in range(len(written)):
        for bit in range(8):
            damaged = bytearray(written)
            damaged[at] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            with contextlib.suppress(CorruptArtifactError):
                assert read_json(path) == content


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert digest_of_file(tmp_path / "x") == digest_of_bytes(b"abc" * 100_000)


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2])}
    digest = write_arrays(tmp_path / "x.safetensors", arrays)
    back = read_arrays(tmp_path / "x.safetensors", digest=digest)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_one_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    digest = write_arrays(path, {"a": np.zeros(4)})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match="digest"):
        read_arrays(path, digest=digest)


def test_a_cut_off_file_of_arrays_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_arrays(path, {"a": np.zeros(4)})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CorruptArtifactError, match="is damaged"):
        read_arrays(path)


def test_equal_content_has_equal_digests_whatever_the_order_of_keys() -> None:
    assert digest_of_json({"a": 1, "b": [2]}) == digest_of_json({"b": [2], "a": 1})
    assert digest_of_json({"a": 1}) != digest_of_json({"a": 2})


def test_the_store_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OOD_HOME", str(tmp_path / "named"))
    assert Store.at().root == tmp_path / "named"
    assert Store.at(tmp_path / "given").root == tmp_path / "given"
    monkeypatch.delenv("OOD_HOME")
    assert Store.at().root.name == "ood"


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="is not a folder; name another: --store DIR"):
        Store.at(tmp_path / "file")


def test_opening_a_store_makes_nothing(tmp_path: Path) -> None:
    Store.at(tmp_path / "store").usage()
    assert not (tmp_path / "store").exists()


def test_sizes_are_those_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "y").write_bytes(b"123")
    assert size_of(tmp_path) == 8
    assert size_of(tmp_path / "y") == 3
    assert size_of(tmp_path / "none") == 0


def test_free_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_only_old_leftovers_are_removed(tmp_path: Path) -> None:
    old, new, other = (tmp_path / n for n in (".ood-tmp-old", ".ood-tmp-new", "data"))
    for path in (old, new, other):
        path.write_text("x")
    past = time.time() - 10_000
    os.utime(old, (past, past))
    # As a file that another process has just renamed: it is listed, and no longer there.
    (tmp_path / ".ood-tmp-renamed").symlink_to(tmp_path / "nowhere")
    remove_leftovers(tmp_path)
    assert not old.exists()
    assert new.exists()
    assert other.exists()
    remove_leftovers(tmp_path / "none")


def _append(root: Path, letter: str) -> None:
    store = Store(root)
    for _ in range(20):
        with store.lock("shared"):
            text = (root / "log").read_text()
            time.sleep(0.001)
            (root / "log").write_text(text + letter)


def test_a_lock_keeps_two_processes_apart(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_append, args=(tmp_path, letter)) for letter in "ab"]
    for process in others:
        process.start()
    for process in others:
        process.join()
    text = (tmp_path / "log").read_text()
    assert sorted(text) == ["a"] * 20 + ["b"] * 20


def test_waiting_for_a_lock_is_said_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    said: list[str] = []

    class Listener:
        def note(self, message: str, /) -> None:
            said.append(message)
            holder.release()

        task = None

    from filelock import FileLock

    with store.lock("thing"):
        path = next((tmp_path / "locks").iterdir())
    holder = FileLock(path)
    holder.acquire()
    with store.lock("thing", progress=Listener()):
        pass
    assert said == ["waiting for another ood process that is creating thing"]


def test_a_full_disk_names_the_file_the_room_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    monkeypatch.setattr("oodcli.store.store.free_bytes", lambda path: 1_000_000)
    path = tmp_path / "a" / "x.npy"

    def fill(**known: object) -> str:
        def write() -> None:
            with atomic_write(path, **known) as stream:  # type: ignore[arg-type]
                stream.write(bytes(300_000))
                stream.flush()
                with Path("/dev/full").open("wb", buffering=0) as full:
                    full.write(b"x")

        with pytest.raises(InvalidInputError) as error:
            write()
        assert list(path.parent.iterdir()) == []
        return str(error.value)

    assert fill(size=2_500_000) == (
        f"cannot write {path}: the disk is full: it needs 2.5 MB, and 1.0 MB are free; free some "
        "space, or use another store: --store DIR"
    )
    # Little is written as bytes, not as "0.0 MB".
    assert "the disk is full: it needs 24 bytes, and 1.0 MB are free" in fill(size=24)
    assert fill(cure="name another") == (
        f"cannot write {path}: the disk is full: it needs more than 0.3 MB, and 1.0 MB are free; "
        "free some space, or name another"
    )


def test_a_scratch_file_is_gone_afterwards_whatever_its_size(tmp_path: Path) -> None:
    for size in (10, 2**24 + 1):
        with scratch_file(tmp_path / "a", size=size) as stream:
            stream.write(bytes(size - 1) + b"x")
            stream.seek(size - 1)
            assert stream.read() == b"x"
        assert list((tmp_path / "a").iterdir()) == []

    def fail() -> None:
        with scratch_file(tmp_path / "a", size=2**25) as stream:
            stream.write(bytes(2**25))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_disk_too_full_for_a_scratch_file_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oodcli.store.store.free_bytes", lambda path: 1_000_000)

    def fill() -> None:
        with (
            scratch_file(tmp_path, size=2_500_000),
            Path("/dev/full").open("wb", buffering=0) as full,
        ):
            full.write(b"x")

    with pytest.raises(InvalidInputError) as error:
        fill()
    assert str(error.value) == (
        f"cannot write {tmp_path}: the disk is full: it needs 2.5 MB, and 1.0 MB are free; free "
        "some space, or use another store: --store DIR"
    )


def test_an_error_of_the_system_names_the_file_unless_it_is_of_another(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large") as error, atomic_write(tmp_path / "x"):
        raise OSError(errno.EFBIG, "File too large")
    assert error.value.filename == str(tmp_path / "x")
    with pytest.raises(FileNotFoundError) as error, atomic_write(tmp_path / "x"):
        (tmp_path / "other").open()
    assert error.value.filename == str(tmp_path / "other")


def test_room_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodcli.store.store.free_bytes", lambda path: 1_500_000)
    check_free_space(tmp_path, 1_500_000, "images of x")
    with pytest.raises(InvalidInputError) as error:
        check_free_space(tmp_path, 1_600_000, "images of x")
    assert str(error.value) == (
        f"images of x need 1.6 MB, and the disk of {tmp_path} has 1.5 MB free; free some space, "
        "or use another store: --store DIR"
    )


def test_outputs_that_cannot_be_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "locked").mkdir()
    made = tempfile.TemporaryFile

    def locked(*, dir: Path, prefix: str) -> IO[bytes]:  # noqa: A002 - its name there
        if dir.name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))
        return made(dir=dir, prefix=prefix)

    monkeypatch.setattr(tempfile, "TemporaryFile", locked)
    check_output_file(tmp_path / "new.csv")
    check_output_folder(tmp_path / "a", option="--plots")
    check_output_folder(tmp_path / "a" / "b", option="--plots", parents=True)
    check_output_file(Path("/dev/null"))
    for refused, said in (
        (lambda: check_output_file(tmp_path), f"{tmp_path} is a folder; name a file in it"),
        (
            lambda: check_output_file(tmp_path / "locked" / "x"),
            f"cannot write {tmp_path}/locked/x: the folder {tmp_path}/locked is not writable "
            "(Permission denied); change its permissions, or name another",
        ),
        (
            lambda: check_output_folder(tmp_path / "a" / "b", option="--plots"),
            f"there is no folder {tmp_path}/a; create it first",
        ),
        (
            lambda: check_output_folder(
                tmp_path / "locked" / "a" / "b", option="--plots", parents=True
            ),
            f"cannot write {tmp_path}/locked/a/b: the folder {tmp_path}/locked is not writable "
            "(Permission denied); change its permissions, or name another",
        ),
        (
            lambda: check_output_folder(tmp_path / "file", option="--plots"),
            f"{tmp_path}/file is not a folder; name one: --plots DIR",
        ),
        (
            lambda: check_output_folder(tmp_path / "file" / "b", option="--plots"),
            f"{tmp_path}/file is not a folder; name one: --plots DIR",
        ),
    ):
        with pytest.raises(InvalidInputError) as error:
            refused()
        assert str(error.value) == said
