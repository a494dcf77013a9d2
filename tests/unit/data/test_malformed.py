"""Archives, images and lists made wrong on purpose end in one line, and nothing lands outside."""

import contextlib
import io
import json
import os
import random
import shutil
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from oodcli.data import open_dataset
from oodcli.data.decoding.files import decode
from oodcli.data.formats.archives import open_archive
from oodcli.data.formats.lists import parse_list
from oodcli.data.incoming import items
from oodcli.data.own_names import registered
from oodcli.data.unpack import unpack
from oodcli.errors import OodError
from oodcli.store.store import Store

HOSTILE = [
    "x", "a/b", "../x", "/x", "a/../../x", "./x", "", ".", "..", "x/", "a//b", "x" * 300, "ü",
    "\udc80", "\ud800", "a\nb", "C:/x", "a\\b", "A/B", "con", "-rf", "~", "\0",
    "a" * 90 + "/" + "b" * 120,
]  # fmt: skip
KINDS = [*b"01234567LKxgSDVNAM"]


def made_archive(chance):
    """Return a small archive with hostile names, links and sizes, sometimes damaged."""
    stream = io.BytesIO()
    if chance.random() < 0.3:
        with zipfile.ZipFile(stream, "w", chance.choice([0, 8, 12, 14])) as archive:
            for _ in range(chance.randrange(5)):
                info = zipfile.ZipInfo(chance.choice(HOSTILE[:18]) or "x")
                info.external_attr = chance.getrandbits(32) if chance.random() < 0.3 else 0
                with contextlib.suppress(UnicodeError):
                    archive.writestr(info, chance.randbytes(chance.randrange(200)))
    else:
        mode = chance.choice(["w", "w:gz", "w:bz2", "w:xz"])
        form = chance.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        with tarfile.open(
            fileobj=stream, mode=mode, format=form, errors="surrogatepass"
        ) as archive:
            for _ in range(chance.randrange(6)):
                content = chance.randbytes(chance.randrange(700))
                info = tarfile.TarInfo(chance.choice(HOSTILE))
                if chance.random() < 0.5:
                    info.type = bytes([chance.choice(KINDS)])
                    info.linkname = chance.choice([*HOSTILE, "/etc/passwd", "../../x"])
                info.mode = chance.getrandbits(12)
                info.size = len(content)
                if form == tarfile.PAX_FORMAT and chance.random() < 0.3:
                    info.pax_headers = {
                        chance.choice(
                            ["path", "size", "linkpath", "GNU.sparse.map", "hdrcharset"]
                        ): (chance.choice(["../x", "-1", "99999999999999", "0,1,2", "BINARY", "é"]))
                    }
                with contextlib.suppress(ValueError, UnicodeError):
                    archive.addfile(info, io.BytesIO(content))
    return damaged(stream.getvalue(), chance)


def made_image(chance):
    """Return a small image file, damaged."""
    stream = io.BytesIO()
    mode = chance.choice(["L", "RGB", "RGBA", "P", "1", "I;16"])
    kind = chance.choice(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
    image = Image.new(mode, (chance.randrange(1, 20), chance.randrange(1, 20)), chance.randrange(2))
    try:
        image.save(stream, kind)
    except (OSError, ValueError, KeyError):
        image.convert("RGB").save(stream, kind)
    return damaged(stream.getvalue(), chance)


def made_album(chance):
    """Return a small archive of images, hostile names among them, damaged."""
    picture = io.BytesIO()
    Image.new("RGB", (3, 3)).save(picture, "PNG")
    names = [chance.choice(["a.png", "b/c.png", "../d.png", "/e.jpg", "f.txt"]) for _ in range(3)]
    stream = io.BytesIO()
    if chance.random() < 0.5:
        with zipfile.ZipFile(stream, "w", chance.choice([0, 8, 12, 14])) as archive:
            for name in names:
                archive.writestr(name, picture.getvalue())
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(picture.getvalue())
                archive.addfile(info, io.BytesIO(picture.getvalue()))
    return damaged(stream.getvalue(), chance)


LINES = [
    "a.png 0", "a b.png 3", "../a.png 1", "/a.png 1", "a.png", "a.png x", "a.png -1", "a.png --5",
    "a.png 99999999999999999999", "# no", "", " ", "a.png \u0663", "a.png 1.5", "a.png \u00b2",
    "\0 1", "\u2028", "a.png\t4", "-1", "a.png -0",
]  # fmt: skip
TABLES = [
    "[fog]", "path = '/x'", "path = 3", "labels = 'x'", "[b.c]", "['b/c']", "path = ''", "# no",
    "path = [1, 2]", "root = '~nobody/x'", "fog = 1", "path = '\\0'", 'path = "\\u0000"',
]  # fmt: skip


def made_list(chance):
    """Return a list of images, damaged."""
    lines = chance.choices(LINES[: chance.choice([2, 7, 20])], k=chance.randrange(1, 9))
    return damaged(chance.choice(["\n", "\r\n", "\r"]).join(lines).encode(), chance)


CELLS = [
    "a.png", "../a.png", "/etc/passwd", "", "a b.png", '"a.png"', '"a', 'a"b', "a.png\0", "1", "-1",
    "cat", "99999999999999999999", "1.5", "train", "test", "fold", "\ufeff", "ü", "x" * 3000, ".",
    "/dev/zero", "/dev/stdin", "~", "$HOME", "\u2028", "\x1b[2J",
]  # fmt: skip
HEADS = ["path", "label", "split", "file_name", "class", "x", "", "PATH", "image"]
VALUES = [
    "a.png", "../a.png", 1, -1, 1.5, None, True, [], {}, {"path": "a.png"}, "\0", "train", "test",
    10**30, float("nan"), "\ud800",
]  # fmt: skip


def made_csv(chance):
    """Return something like a table of images, damaged."""
    if chance.random() < 0.3:
        row = f"a.png,{chance.choice(CELLS)},b\n" * 2
        return damaged(f"path,label,x\n{row}a.png,1,c\n".encode(), chance)
    width = chance.randrange(1, 5)
    between = chance.choice([",", ",", ";", "\t", "|"])
    rows = [
        chance.choices(CELLS[: chance.choice([5, 20, 30])], k=chance.choice([width] * 4 + [3]))
        for _ in range(chance.randrange(6))
    ]
    head = ["path", *chance.choices(HEADS, k=width - 1)]
    text = chance.choice(["\n", "\r\n", "\r"]).join(between.join(row) for row in [head, *rows])
    encoding = chance.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin-1"])
    return damaged(text.encode(encoding, "replace"), chance)


def made_json(chance):
    """Return something like JSON lines of images, damaged."""
    lines = ['{"path": "a.png", "label": 1}'] * chance.randrange(2)
    for _ in range(chance.randrange(1, 6)):
        keys = ["path", *chance.choices(HEADS, k=chance.randrange(4))]
        lines.append(json.dumps({key: chance.choice(VALUES) for key in keys}))
    if chance.random() < 0.1:
        lines.append("[" * 50_000)
    return damaged("\n".join(lines).encode(), chance)


def made_folders(chance):
    """Return an archive with images in class folders, or in archives in it, damaged."""
    picture = io.BytesIO()
    Image.new("RGB", (3, 3)).save(picture, "PNG")
    names = ["train/a/0.png", "train/b/0.png", "test/a/0.png", "a/0.png", "../a/0.png", "/b/c.png",
             "a/b/c/d.png", "training/a/0.png", "x.png"]  # fmt: skip
    if chance.random() < 0.5:
        names = names[:3]
    files = dict.fromkeys(chance.choices(names, k=4), picture.getvalue())
    for _ in range(chance.randrange(3)):
        inner = packed(chance, files)
        name = chance.choice(["a.zip", "train/a.tar", "b.tar", "../c.zip", "d.tar.gz"])
        files = {**files, name: damaged(inner, chance) if chance.random() < 0.3 else inner}
    return damaged(packed(chance, files), chance)


def packed(chance, files):
    stream = io.BytesIO()
    if chance.random() < 0.5:
        with zipfile.ZipFile(stream, "w", chance.choice([0, 0, 0, 8])) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return stream.getvalue()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def made_table(chance):
    """Return something like datasets.toml, damaged."""
    lines = chance.choices(TABLES, k=chance.randrange(4))
    if chance.random() < 0.3:
        return "\n".join(["[fog]", "path = '/x'", "[haze]", "path = 'y'", "#"]).encode()
    return damaged("\n".join(["[fog]", "path = '/x'", *lines]).encode(), chance)


def damaged(content, chance):
    """Change, cut, repeat or keep some bytes."""
    content = bytearray(content)
    for _ in range(chance.choice([0, 1, 1, 3, 20])):
        at = chance.randrange(len(content) + 1)
        what = chance.randrange(5)
        if what == 0 and at < len(content):
            content[at] = chance.randrange(256)
        elif what == 1:
            del content[at : at + chance.randrange(600)]
        elif what == 2:
            content[at:at] = chance.randbytes(chance.randrange(20))
        elif what == 3:
            content[at:at] = content[: chance.randrange(600)]
        elif at + 8 <= len(content):
            content[at : at + 8] = chance.choice([b"\xff" * 8, bytes(8), b"77777777", b"-1-1-1-1"])
    return bytes(content)


def everything_below(folder):
    """Return names and sizes of all that lies below a folder, links not followed."""
    return sorted(
        (f"{at}/{name}", os.lstat(f"{at}/{name}").st_size)
        for at, folders, names in os.walk(folder)
        for name in (*folders, *names)
    )


MAKERS = {
    "archive": made_archive,
    "in place": made_album,
    "image": made_image,
    "list": made_list,
    "toml": made_table,
    "csv": made_csv,
    "jsonl": made_json,
    "folders": made_folders,
}


def read(kind: str, file: Path, inside: Path) -> None:
    """Do with a file what is done with files of its kind."""
    if kind == "archive":
        unpack(file, inside / "set")
    elif kind == "in place":
        dataset = open_archive(file, name="x", spec="x", role="ood")
        for image in dataset.ood_part.source.read(0, len(dataset.ood_part)):
            if isinstance(image, OodError):
                raise image
    elif kind in {"csv", "jsonl", "folders"}:
        named = inside / f"x.{'zip' if kind == 'folders' else kind}"
        shutil.copyfile(file, named)
        every_role(named, Store(inside / "store"))
    elif kind == "image":
        decode(file)
    elif kind == "list":
        parse_list(file.read_bytes(), where=str(file))
    else:
        shutil.copyfile(file, inside / "datasets.toml")
        registered(Store(inside))


def every_role(path: Path, store: Store) -> None:
    """Open a file as OOD images, as incoming images, and as a data set; read all images."""
    opened = [open_dataset(str(path), store, role="ood")]
    assert sum(1 for _ in items([str(path)], store=store)) == len(opened[0].ood_part)
    opened.append(open_dataset(str(path), store, role="id"))
    for part in (part for dataset in opened for part in dataset.parts.values()):
        for image in part.source.read(0, len(part)):
            if isinstance(image, OodError):
                assert "\n" not in str(image)
        assert part.labels is None or part.labels.min() >= 0
        assert len(part.source.fingerprint) == 32


def campaign(tmp_path: Path, cases: int, seed: int) -> dict[str, int]:
    """Read malformed files; return how often each end came."""
    ends: dict[str, int] = {}
    (tmp_path / "canary").write_bytes(b"canary")
    inside = tmp_path / "in" / "side"
    file = tmp_path / "file"
    for case in range(cases):
        chance = random.Random(f"{seed}-{case}")  # noqa: S311 - chance, not secrets
        inside.mkdir(parents=True)
        kind = chance.choice([*MAKERS, "archive", "archive"])
        with warnings.catch_warnings():
            # zipfile warns of the equal names that are meant here.
            warnings.simplefilter("ignore", UserWarning)
            file.write_bytes(MAKERS[kind](chance))
        before = everything_below(tmp_path)
        end = "accepted"
        try:
            read(kind, file, inside)
        except OodError as error:
            end = "refused" if "\n" not in str(error) else "said in several lines"
        changed = {name for name, _ in set(before) ^ set(everything_below(tmp_path))}
        assert all(name.startswith(f"{inside}/") for name in changed), (seed, case)
        for path in inside.rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_ISDIR(mode) or stat.S_ISREG(mode), (seed, case)
        if kind == "archive":
            assert (inside / "set").exists() == (end == "accepted"), (seed, case)
        ends[f"{kind} {end}"] = ends.get(f"{kind} {end}", 0) + 1
        shutil.rmtree(inside.parent)
    return ends


ENDS = {f"{kind} {end}" for kind in MAKERS for end in ("accepted", "refused")}


def test_hundreds_of_malformed_files_end_in_one_line_each_and_nothing_outside(tmp_path):
    ends = campaign(tmp_path, 400, seed=1)
    assert ends.keys() == ENDS
    assert min(ends.values()) > 3


@pytest.mark.slow
def test_ten_thousand_malformed_files_end_in_one_line_each_and_nothing_outside(tmp_path, capsys):
    ends = campaign(tmp_path, 10_000, seed=2)
    assert ends.keys() == ENDS
    with capsys.disabled():
        print(f"\n{dict(sorted(ends.items()))}")  # noqa: T201 - the numbers of the campaign
