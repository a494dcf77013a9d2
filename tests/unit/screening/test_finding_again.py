"""Images of rows of verdicts, found again by their names."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from oodcli.data.incoming import items
from oodcli.screening.finding_again import found_again
from oodcli.store.store import Store


def test_every_form_is_found_by_the_name_that_items_gave_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    pixels = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    np.savez(tmp_path / "a[1]:b.npz", images=pixels)
    (tmp_path / "in").mkdir()
    for at in range(3):
        Image.fromarray(pixels[at]).save(tmp_path / "in" / f"x{at}:1.png")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "in" / "x0:1.png", "deep/x.png")
        archive.write(tmp_path / "in" / "x1:1.png", "deep/y.png")
    (tmp_path / "list.csv").write_text("path\nin/x2:1.png\n")
    given = [str(tmp_path / name) for name in ("a[1]:b.npz", "in", "z.zip", "list.csv")]
    names = [item.name for item in items(given, store=store)]
    assert len(names) == 5 + 3 + 2 + 1
    found = list(found_again(names[::-1], store, None))
    assert sorted(item.name for item in found) == sorted(names)
    assert [item.error for item in found] == [None] * 11
    arrays = {item.name: item.pixels for item in found if item.pixels is not None}
    for at in range(5):
        np.testing.assert_array_equal(arrays[f"{given[0]}[{at}]"], pixels[at])


def test_a_name_comes_as_often_as_it_is_given_and_what_is_gone_has_a_reason(
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    row = f"{tmp_path}/a.npz[1]"
    names = [row, f"{tmp_path}/gone.png", row, f"{tmp_path}/a.npz[7]", "far/away.zip/b.png"]
    found = [(item.name, item.error) for item in found_again(names, Store(tmp_path / "s"), None)]
    assert [name for name, error in found if error is None] == [row, row]
    reasons = {name: error for name, error in found if error is not None}
    assert reasons[f"{tmp_path}/a.npz[7]"] == f"{tmp_path}/a.npz has no such image any more"
    for name in (f"{tmp_path}/gone.png", "far/away.zip/b.png"):
        assert str(reasons[name]).startswith("it no longer exists; relative paths start at")


def test_a_file_that_cannot_be_opened_any_more_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no archive")
    (item,) = found_again([f"{tmp_path}/a.npz[0]"], Store(tmp_path / "s"), None)
    assert item.error is not None
    assert "a.npz" in item.error
