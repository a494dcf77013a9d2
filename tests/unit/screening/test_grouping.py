"""Groups of incoming images: days, folders and columns, never guessed."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from oodcli.data.incoming import Item, items
from oodcli.errors import InvalidInputError
from oodcli.screening.grouping import grouping
from oodcli.store.store import Store


def photograph(path: Path, taken: str | None = None) -> Path:
    """Write an image, with the time at which it was taken."""
    exif = Image.Exif()
    if taken is not None:
        exif.get_ifd(0x8769)[0x9003] = taken
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


def groups(way: str, *paths: Path) -> list[str | None]:
    given = [str(path) for path in paths]
    group = grouping(way, given)
    return [group(item) for item in items(given, store=Store(Path("store")))]


def test_days_are_those_of_the_files(tmp_path: Path) -> None:
    first, second = photograph(tmp_path / "a.jpg"), photograph(tmp_path / "b.jpg")
    os.utime(first, (0, 86_399))
    os.utime(second, (0, 86_400))
    assert groups("day", tmp_path) == ["1970-01-01", "1970-01-02"]
    second.unlink()
    second.symlink_to("nowhere")
    assert groups("day", tmp_path) == ["1970-01-01", None]


def test_days_of_photographs_come_from_exif_alone(tmp_path: Path) -> None:
    photograph(tmp_path / "a.jpg", "2024:02:29 23:59:59")
    photograph(tmp_path / "b.jpg", "0000:00:00 00:00:00")
    photograph(tmp_path / "c.jpg")
    (tmp_path / "d.jpg").write_bytes(b"no image")
    assert groups("exif-day", tmp_path) == ["2024-02-29", None, None, None]
    data = (tmp_path / "a.jpg").read_bytes()
    assert grouping("exif-day", [])(Item("x", "", "", data=data)) == "2024-02-29"


def test_folders_are_relative_to_what_was_given(tmp_path: Path) -> None:
    for name in ("a.jpg", "cam1/b.jpg", "cam2/night/c.jpg"):
        photograph(tmp_path / name)
    assert groups("folder", tmp_path) == [".", "cam1", "cam2/night"]
    assert groups("folder", tmp_path / "cam1", tmp_path / "cam2") == ["cam1", "cam2/night"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_columns_are_those_of_the_table(tmp_path: Path, ending: str) -> None:
    for name in ("a", "b", "c"):
        photograph(tmp_path / f"{name}.jpg")
    table = tmp_path / f"list.{ending}"
    if ending == "csv":
        table.write_text('path,note,camera\na.jpg,"two\nlines",7\n\nb.jpg,,\nc.jpg,x,"8,b"\n')
    else:
        table.write_text(
            '{"path": "a.jpg", "camera": 7}\n\n{"path": "b.jpg"}\n'
            '{"path": "c.jpg", "camera": "8,b"}\n'
        )
    assert groups("camera", table) == ["7", None, "8,b"]
    with pytest.raises(InvalidInputError, match=r"list.* has no column 'kamera'; it has path, "):
        grouping("kamera", [str(table)])
    with pytest.raises(InvalidInputError, match=r"--group-by camera: .* is no table .* with this"):
        grouping("camera", [str(table), str(tmp_path)])


def test_an_array_has_the_day_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(io.BytesIO(b"x").getvalue())
    os.utime(path, (0, 0))
    assert grouping("day", [])(Item("x.npz[3]", f"{path}[3]", "x.npz[3].png")) == "1970-01-01"
