"""Names and places of images in arrays, and the list of a zip file, in few bytes a row."""

import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oodcli.data.compact import Numbers, Texts, chosen_texts, narrow
from oodcli.data.formats.central_directory import entries_of_zip
from oodcli.data.opening import open_dataset
from oodcli.store.store import Store

WORDS = ["a/b", "", "ü", "\udcff", "x" * 300, *(f"class/{n}.jpg" for n in range(5000))]


def test_texts_are_a_sequence_of_what_was_packed() -> None:
    texts = Texts.of(iter(WORDS))
    assert texts == WORDS
    assert texts != WORDS[:-1]
    assert len(texts) == len(WORDS)
    assert [texts[0], texts[-1], texts[3]] == ["a/b", "class/4999.jpg", "\udcff"]
    for at in (slice(2, 5), slice(0, 0), slice(None, None, -7), slice(4000, 9000), slice(1)):
        assert texts[at] == WORDS[at]
    rows = np.array([4, 0, 4, 5001])
    assert chosen_texts(texts, rows) == chosen_texts(WORDS, rows) == [WORDS[row] for row in rows]
    assert Texts.joined([texts[:3], texts[3:]]) == WORDS
    with pytest.raises(IndexError):
        texts[len(WORDS)]


def test_numbers_stay_whole_numbers_of_the_smallest_type() -> None:
    for values in ([0, -128, 127], [300], [-(2**31), 5], [2**40, -1], [2**63 - 1], []):
        assert narrow(np.array(values, dtype=np.int64)).tolist() == values
        numbers = Numbers()
        for value in values * 3000:
            numbers.append(value)
        assert numbers.array().tolist() == values * 3000
        assert len(numbers) == 3000 * len(values)
    assert narrow(np.array([2**40])).dtype == np.int64
    assert narrow(np.array([-128, 127])).dtype == np.int8
    assert narrow(np.array([128])).dtype == np.int16


def zipped(prefix: bytes = b"", *, wide: bool = False) -> io.BytesIO:
    stream = io.BytesIO(prefix)
    stream.seek(len(prefix))
    with zipfile.ZipFile(stream, "a" if prefix else "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        for name in ("folder/é.txt", "folder/b.jpg"):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=wide) as file:
                file.write(name.encode() * 50)
        archive.comment = b"PK\x05 is no end"
    return stream


@pytest.mark.parametrize("prefix", [b"", b"#!/bin/sh\n" * 40])
def test_a_zip_file_is_listed_as_by_zipfile(prefix: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for wide in (False, True):
        if wide:  # the end and all places and sizes in their fields of 64 bits
            monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 0)
            monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
        stream = zipped(prefix, wide=wide)
        with zipfile.ZipFile(stream) as archive:
            wanted = [
                (e.filename, e.flag_bits, e.compress_type, e.CRC, e.compress_size, e.file_size,
                 e.header_offset)
                for e in archive.infolist()
            ]  # fmt: skip
        found = [
            (e.name, e.flags, e.method, e.crc, e.packed, e.size, e.offset)
            for e in entries_of_zip(stream)
        ]
        assert found == wanted
        assert len(found) == 3


def test_a_damaged_list_of_a_zip_file_is_an_error() -> None:
    whole = zipped().getvalue()
    start = whole.index(b"PK\x01\x02")
    for content in (b"", whole[:start], whole.replace(b"PK\x01\x02", b"PK\x01\x03"),
                    whole[start + 5 :]):  # fmt: skip
        with pytest.raises(ValueError, match="list of files"):
            list(entries_of_zip(io.BytesIO(content)))


def as_tar(path: Path, rows: int) -> Path:
    with tarfile.open(path / "a.tar", "w") as archive:
        for row in range(rows):
            entry = tarfile.TarInfo(f"class{10 * row // rows}/{row:07d}.jpg")
            archive.addfile(entry)
    return path / "a.tar"


def as_zip(path: Path, rows: int) -> Path:
    with zipfile.ZipFile(path / "a.zip", "w") as archive:
        for row in range(rows):
            archive.writestr(f"class{10 * row // rows}/{row:07d}.jpg", b"")
    return path / "a.zip"


def as_table(path: Path, rows: int) -> Path:
    lines = (f"class{10 * row // rows}/{row:07d}.jpg" for row in range(rows))
    (path / "a.csv").write_text("path\n" + "\n".join(lines))
    return path / "a.csv"


@pytest.mark.parametrize("write", [as_tar, as_zip, as_table])
def test_an_image_takes_few_bytes_before_it_is_read(
    tmp_path: Path, write: Callable[[Path, int], Path]
) -> None:
    rows, length = 4000, len("class0/0000000.jpg")
    path, store = write(tmp_path, rows), Store(tmp_path / "store")
    open_dataset(str(path), store, role="ood")  # whatever is loaded once
    tracemalloc.start()
    try:
        dataset = open_dataset(str(path), store, role="ood")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset.ood_part) == rows
    assert held / rows < length + 25
    assert (peak - held) / rows < 150
