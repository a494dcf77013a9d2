"""Readers: one way to the images, whatever they lie in, of this package and of others."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from oodcli.data import open_dataset, readers
from oodcli.data.formats.archives import open_archive
from oodcli.data.formats.arrays import open_npy, open_npz
from oodcli.data.formats.folders import open_folder
from oodcli.data.formats.lists import open_list
from oodcli.data.incoming import items
from oodcli.data.reader import Columns, Place, Reader, matching, without_columns
from oodcli.data.reader_contract import check
from oodcli.data.readers import BUILT_IN, reader_of
from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.store.store import Store

NAMES = ("train/cat/0.bmp", "train/dog/1.bmp", "test/cat/2.bmp", "test/dog/3.bmp")
PIXELS = np.arange(4 * 4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 4, 3)


def bmp(value: int) -> bytes:
    """Return an image file of 4 x 4 pixels that no library writes otherwise one day."""
    rows = bytes((value, 3 * value % 256, 7)) * 16
    head = b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54)
    return (
        head + struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 24, 0, len(rows), 2835, 2835, 0, 0) + rows
    )


@pytest.fixture
def forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the same four images in every form, into a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    contents = {name: bmp(10 * row) for row, name in enumerate(NAMES)}
    for name, content in contents.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    with tarfile.open("a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    Path("a.txt").write_text("".join(f"set/{name} {k % 2}\n" for k, name in enumerate(NAMES)))
    np.save("a.npy", PIXELS)
    with zipfile.ZipFile("a.npz", "w") as archive:
        for key, value in {"images": PIXELS, "labels": np.array([0, 1, 0, 1])}.items():
            stream = io.BytesIO()
            np.save(stream, value)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), stream.getvalue())
    return tmp_path


# Written by version 0.1 before readers had a registry: images that are stored are found again.
FINGERPRINTS = {
    "folder": "b0b0fc978811528d7fb89146d3191e10",
    "folder, ood": "231b7712b1dfe137662fc8f072691b46",
    "zip": "902990c9b80eabb269e17b92bdef75a2",
    "tar": "a2937b4ec18e37e3d943e61a03a9bc31",
    "list": "4e3750afe52a3e019b8f4b63e9ab90a3",
    "npz": "1564eb12731bb520b5796f04cdc322a7",
    "npy": "32ad8ccb00d5426e797e571b857f718b",
}
DIVISIONS = {
    "folder": "46f10e6cc4b35f5812701f455edf2b91",
    "list": "937596aec2a9c866c7d7e447480c4eef",
    "npz": "4454d9860d6c6d5df8de0acdc32be0be",
}


def test_fingerprints_and_divisions_are_those_of_earlier_versions(forms: Path) -> None:
    def named(role: str) -> dict[str, str]:
        return {"name": "x", "spec": "x", "role": role}

    whole = open_folder(Path("set/train"), **named("id"))
    listed = open_list(Path("a.txt"), **named("id"))
    arrays = open_npz(Path("a.npz"), **named("id"))
    found = {
        "folder": whole.id_test,
        "folder, ood": open_folder(Path("set"), **named("ood")).ood_part,
        "zip": open_archive(Path("a.zip"), **named("ood")).ood_part,
        "tar": open_archive(Path("a.tar"), **named("ood")).ood_part,
        "list": listed.id_test,
        "npz": arrays.id_test,
        "npy": open_npy(Path("a.npy"), **named("ood")).ood_part,
    }
    assert {name: part.source.fingerprint for name, part in found.items()} == FINGERPRINTS
    divided = {"folder": whole, "list": listed, "npz": arrays}
    assert {name: each.with_test(0.5).division for name, each in divided.items()} == DIVISIONS


SPECS = {
    "folder": "set", "archive": "a.tar", "list": "a.txt", "npz": "a.npz", "npy": "a.npy",
}  # fmt: skip


def write_table() -> str:
    arrow = needed("pyarrow", "parquet")
    table = arrow.table({"image": [bmp(10 * k) for k in range(4)], "label": [0, 1, 0, 1]})
    needed("pyarrow.parquet", "parquet").write_table(table, "a.parquet", row_group_size=2)
    return "a.parquet"


def write_saved() -> str:
    arrow = needed("pyarrow", "parquet")
    table = arrow.table({"image": [bmp(10 * k) for k in range(4)], "label": [0, 1, 0, 1]})
    Path("saved").mkdir()
    Path("saved/state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    with (
        arrow.OSFile("saved/a.arrow", "wb") as file,
        arrow.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    return "saved"


def write_hdf5() -> str:
    with needed("h5py", "hdf5").File("a.h5", "w") as file:
        file["images"], file["labels"] = PIXELS, [0, 1, 0, 1]
    return "a.h5"


def write_shard() -> str:
    Path("shards").mkdir()
    with tarfile.open("shards/train-0.tar", "w") as tar:
        for row in range(4):
            for end, content in (("bmp", bmp(10 * row)), ("cls", b"%d" % (row % 2))):
                entry = tarfile.TarInfo(f"{row}.{end}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return "shards/train-0.tar"


def needed(module: str, extra: str) -> Any:
    return pytest.importorskip(module, reason=f"the extra {extra} is not installed")


# What is not among the forms.
OTHERS = {
    "parquet": write_table, "save_to_disk": write_saved, "hdf5": write_hdf5,
    "webdataset": write_shard,
}  # fmt: skip


@pytest.mark.parametrize("name", [*SPECS, *OTHERS])
def test_a_reader_keeps_the_contract(forms: Path, name: str) -> None:
    (reader,) = (each for each in BUILT_IN if each.name == name)
    path = Path(OTHERS[name]() if name in OTHERS else SPECS[name])
    check(reader, path)
    assert reader_of(path) is reader


def test_the_contract_finds_what_is_broken(forms: Path) -> None:
    def late(path: Path, **given: str):
        return open_npy(path, **{**given, "name": "other"})

    with pytest.raises(InvalidInputError, match="must hand on the name and the spec"):
        check(Reader("x", "x", ("", ""), late, suffixes=(".npy",)), Path("a.npy"))
    greedy = Reader("x", "x", ("", ""), open_npy, opens=lambda place: True)
    with pytest.raises(InvalidInputError, match=r"claims a file other\.zzz"):
        check(greedy, Path("a.npy"))
    with pytest.raises(InvalidInputError, match="it raises TypeError"):
        check(Reader("x", "x", ("", ""), lambda path: None, suffixes=(".npy",)), Path("a.npy"))


def test_what_is_scored_is_what_is_judged(forms: Path) -> None:
    store = Store(forms / "store")
    keys = {
        "a.zip": [f"a.zip/{name}" for name in sorted(NAMES)],
        "a.tar": [f"a.tar/{name}" for name in sorted(NAMES)],
        "a.npy": [f"a.npy[{row}]" for row in range(4)],
        "a.npz": [f"a.npz[{row}]" for row in range(4)],
    }
    for path, names in keys.items():
        found = list(items([path], store=store))
        assert [item.name for item in found] == names
        assert [item.name for item in items(["-"], [path], store=store)] == names
    (first, *_) = items(["a.zip"], store=store)
    assert first.data == bmp(20)
    assert first.relative == "a.zip/test/cat/2.bmp"
    assert all(item.as_published for item in items(["a.txt"], store=store))


def test_a_named_set_is_judged_where_no_path_has_the_name(forms: Path) -> None:
    store = Store(forms / "store")
    found = list(items(["photographs-grey"], store=store))
    assert (len(found), found[3].name) == (520, "photographs-grey[3]")
    parts = list(items(["x=train=set/train,test=a.npy"], store=store))
    assert [item.relative for item in parts] == [f"x[{row}].png" for row in range(4)]
    with pytest.raises(InvalidInputError, match="there is no file or folder photograph; check"):
        items(["photograph"], store=store)


def test_the_kinds_of_errors_come_from_the_readers(forms: Path) -> None:
    Path("notes.pdf").write_bytes(b"%PDF")
    with pytest.raises(InvalidInputError) as caught:
        open_dataset("notes.pdf", Store(forms), role="ood")
    assert all(reader.kind in str(caught.value) for reader in BUILT_IN)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that installs a package with a reader, as pip would leave it."""

    def put(text: str, value: str = "acme_reader:READER") -> None:
        (tmp_path / "acme_reader.py").write_text(dedent(text))
        folder = tmp_path / "acme_ood-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-ood\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text(f"[ood.readers]\nacme = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)
        readers.third_party.cache_clear()

    yield put
    import sys

    sys.modules.pop("acme_reader", None)
    readers.third_party.cache_clear()


ACME = """
    from oodcli.data.formats.arrays import open_npy
    from oodcli.data.reader import Reader

    READER = Reader("acme", "an .acme file", ("", ""), open_npy, suffixes=(".acme",))
"""


def test_a_package_adds_a_reader(forms: Path, install: Callable[..., None]) -> None:
    Path("a.npy").rename("b.acme")
    store = Store(forms / "store")
    with pytest.raises(InvalidInputError, match="is none of"):
        open_dataset("b.acme", store, role="ood")
    install(ACME)
    part = open_dataset("mine=b.acme", store, role="ood").ood_part
    np.testing.assert_array_equal(np.stack(list(part.source.read(0, 4))), PIXELS)
    assert [item.name for item in items(["b.acme"], store=store)][2] == "b.acme[2]"
    with pytest.raises(UnknownNameError):  # a name of nothing, and not one of a file
        open_dataset("b", store)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_of_acme", "does not load: ModuleNotFoundError: No module named"),
        ("READER = 3", "is a int, not a Reader"),
        (ACME.replace('"acme"', '"npz"'), "a name that is taken"),
    ],
)
def test_a_reader_that_does_not_load_is_said_where_no_other_opens(
    forms: Path, install: Callable[..., None], text: str, reason: str
) -> None:
    install(text)
    store = Store(forms / "store")
    assert len(open_dataset("set", store, role="ood").ood_part) == 2
    Path("b.acme").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="is none of") as caught:
        open_dataset("b.acme", store, role="ood")
    assert reason in str(caught.value)


def test_what_a_third_party_reader_raises_is_one_line(
    forms: Path, install: Callable[..., None]
) -> None:
    install(ACME.replace("open_npy, s", "lambda path, **_: 1 / 0, s"))
    Path("b.acme").write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"'acme' cannot open .*division by zero"):
        open_dataset("b.acme", Store(forms / "store"), role="ood")


def test_columns_follow_a_path() -> None:
    spec = "/x/faults.csv:path=image name,label=kind"
    path, columns = without_columns(spec)
    assert (path, columns) == ("/x/faults.csv", Columns(path="image name", label="kind"))
    assert f"{path}:{columns}" == spec
    assert without_columns("a.parquet:image=jpg") == ("a.parquet", Columns(path="jpg"))
    for text in ("C:/x.csv", "x.csv:", "x.csv:kind=3", "x.csv:label"):
        assert without_columns(text) == (text, None)
    for text in ("path", "path=", "kind=3", "path=a,path=b"):
        with pytest.raises(InvalidInputError):
            Columns.of(text)


def test_a_pattern_lists_its_files(tmp_path: Path) -> None:
    for number in (8, 9, 10):
        (tmp_path / f"s-{number:03d}.tar").touch()
    names = [path.name for path in matching(tmp_path / "s-{008..010}.tar")]
    assert names == ["s-008.tar", "s-009.tar", "s-010.tar"]
    assert [path.name for path in matching(tmp_path / "s-*.tar")] == names
    assert Place(tmp_path / "s-008.TAR").ends_with(".tar")
    for pattern, reason in {
        "s-{008..011}.tar": "s-011.tar, which does not exist",
        "t-*.tar": "no file matches",
        "s-{9..8}.tar": "not a range",
        "s-{0..9999999}.tar": "not a range",
        "{0..9999}{0..9999}": "not a range",
    }.items():
        with pytest.raises(InvalidInputError, match=reason):
            matching(tmp_path / pattern)
