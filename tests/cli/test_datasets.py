"""``ood datasets``, with two published sets that a server on this machine has."""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.cli.progress import TerminalProgress
from oodcli.data import BENCHMARKS, DATASETS, Download, KnownDataset, open_dataset, prepare
from oodcli.data.dataset import Dataset
from oodcli.data.formats.archives import open_archive
from oodcli.store.store import Store
from tests.cli.test_wrong import says
from tests.support.cli import Ood, flat, tree
from tests.support.server import Server, serving


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    """Return a tar archive of seven images."""
    flat(tmp_path / "published" / "images")
    with tarfile.open(tmp_path / "published.tar", "w") as packed:
        packed.add(tmp_path / "published", arcname=".")
    return (tmp_path / "published.tar").read_bytes()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, archive: bytes) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(archive) as running:
        yield running


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, server: Server) -> dict[str, KnownDataset]:
    """Make of the catalogue: digits, ``fog`` and ``haze`` on the server, ``mist`` on a Drive."""

    def opened(folder: Path, _store: Store) -> Dataset:
        return open_archive(folder / "a.tar", name="x", spec="x", role="ood")

    def published(name: str, source: Download) -> KnownDataset:
        return KnownDataset(name, f"a {name}", "ood", {"test": 7}, "none", opened, (source,))

    content = server.content
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    base = server.url.removesuffix("/file.bin")
    sets = {
        **{name: known for name, known in DATASETS.items() if not known.sources},
        "fog": published("fog", Download("a.tar", (f"{base}/fog.tar",), md5, len(content))),
        "haze": published("haze", Download("a.tar", (f"{base}/haze.tar",), md5, len(content))),
        "mist": published(
            "mist", Download("a.tar", (), None, 0, by_hand="https://drive.example/7")
        ),
    }
    benchmark = replace(
        BENCHMARKS["digits"], name="weather", near=("fog",), far=("haze", "digits-6-9"), title="w"
    )
    marks = {"digits": BENCHMARKS["digits"], "weather": benchmark}
    # All are imported before the first is changed, so that none begins with the changed sets.
    modules = [
        import_module(name)
        for name in (
            "oodcli.data.registry",
            "oodcli.data.opening",
            "oodcli.data.download",
            "oodcli.data.catalogue",
            "oodcli.workflows.datasets",
            "oodcli.data.verification",
        )
    ]
    for module in modules:
        monkeypatch.setattr(module, "DATASETS", sets)
        if hasattr(module, "BENCHMARKS"):
            monkeypatch.setattr(module, "BENCHMARKS", marks)
    return sets


Known = dict[str, KnownDataset]


def test_download_prints_the_folder_of_each_set(ood: Ood, known: Known, store: Store) -> None:
    code, out, err = ood("datasets", "download", "fog", "digits", "haze")
    assert code == 0
    assert out == f"{store.datasets / 'fog'}\n{store.datasets / 'haze'}\n"
    lines = err.splitlines()
    assert "digits comes with ood: nothing to download" in lines
    assert any(line.startswith("fog/a.tar: ") and line.endswith("B/s") for line in lines)


def test_download_of_a_benchmark_brings_what_it_lacks(ood: Ood, known: Known, store: Store) -> None:
    code, out, _ = ood("datasets", "download", "--benchmark", "weather")
    assert code == 0
    assert out.split() == [str(store.datasets / "fog"), str(store.datasets / "haze")]


def test_what_cannot_be_had_is_reported_at_the_end(
    ood: Ood, known: Known, store: Store, server: Server
) -> None:
    server.statuses = [404]
    code, out, err = ood("datasets", "download", "fog", "haze", "mist", "--jobs", "1")
    assert code == 1
    assert out == f"{store.datasets / 'haze'}\n"
    address = server.url.replace("file.bin", "fog.tar")
    assert err.splitlines()[-9:] == [
        "fog: no a.tar",
        f"  why:      {address}: the server answers 404 Not Found",
        f"  get it:   {address}",
        f"  put it:   {store.datasets / 'fog' / 'a.tar'}",
        "mist: no a.tar",
        "  why:      it must be downloaded by hand",
        "  get it:   https://drive.example/7",
        f"  put it:   {store.datasets / 'mist' / 'a.tar'}",
        "error: incomplete: fog, mist; put the missing files into these places, or run the "
        "same command again",
    ]


def test_files_fetched_by_hand_are_taken(
    ood: Ood, known: Known, store: Store, server: Server, tmp_path: Path
) -> None:
    for name in ("fog", "mist"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "a.tar").write_bytes(server.content)
    code, out, _ = ood("datasets", "download", "fog", "mist", "--from", tmp_path / "mine")
    assert code == 0
    assert out.split() == [str(store.datasets / "fog"), str(store.datasets / "mist")]
    assert (tmp_path / "mine" / "fog" / "a.tar").read_bytes() == server.content
    assert server.paths == []


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["fogg"], "no data set 'fogg'; did you mean 'fog'?"),
        (["weather"], "weather is a benchmark; write --benchmark weather"),
        (["--benchmark", "wether"], "no benchmark 'wether'; did you mean 'weather'?"),
        (
            [],
            "no data set is given; name data sets (ood datasets list shows them) or --benchmark "
            "NAME",
        ),
        (["fog", "--from", "/no/such"], "--from /no/such is not a folder; check the path"),
    ],
)
def test_wrong_name_downloads_nothing(
    ood: Ood, known: Known, server: Server, argv: list[str], line: str
) -> None:
    assert says(ood, "datasets", "download", *argv) == line
    assert server.paths == []


def test_list_says_what_is_here_and_what_benchmarks_lack(ood: Ood, known: Known) -> None:
    ood("datasets", "download", "fog")
    code, out, _ = ood("datasets", "list")
    assert code == 0
    sets, benchmarks = out.split("benchmarks;")
    for name, here in (("fog", "yes"), ("haze", "no"), ("mist", "no"), ("digits-6-9", "yes")):
        (row,) = [line.split() for line in sets.splitlines() if line.split()[:1] == [name]]
        assert {"yes", "no"} & set(row) == {here}
    lines = [line.split() for line in benchmarks.splitlines()]
    (weather,) = [line for line in lines if line[:1] == ["weather"]]
    (digits,) = [line for line in lines if line[:1] == ["digits"]]
    assert weather[1] == "4"
    assert "haze" in weather
    assert "fog" not in weather
    assert "nothing" in digits


def test_list_as_json_is_versioned_and_whole(
    ood: Ood, known: Known, store: Store, server: Server
) -> None:
    ood("datasets", "download", "fog")
    code, out, _ = ood("datasets", "list", "--format", "json")
    content = json.loads(out)
    size = len(server.content)
    assert (code, content["schema"], content["folder"]) == (0, 1, str(store.datasets))
    sets = {entry["name"]: entry for entry in content["datasets"]}
    assert sets["fog"] == {
        "name": "fog", "title": "a fog", "role": "ood", "licence": "none", "images": {"test": 7},
        "download_bytes": size, "disk_bytes": size, "present": True, "location": None,
        "benchmarks": ["weather"],
        "files": [{
            "file": "a.tar", "urls": [server.url.replace("file.bin", "fog.tar")], "by_hand": "",
            "md5": hashlib.md5(server.content, usedforsecurity=False).hexdigest(),
            "bytes": size, "present": True,
        }],
    }  # fmt: skip
    assert content["benchmarks"][1] == {
        "name": "weather", "title": "w", "convention": "neutral",
        "datasets": ["digits", "fog", "haze", "digits-6-9"], "missing": ["haze"],
        "missing_bytes": size,
    }  # fmt: skip


def test_list_of_addresses_names_every_one(ood: Ood, known: Known, server: Server) -> None:
    _, out, _ = ood("datasets", "list", "--urls", "--format", "csv")
    assert out.splitlines()[0] == "name,file,md5,url"
    assert f"{server.url.replace('file.bin', 'haze.tar')}" in out
    assert "mist,a.tar,none published,by hand: https://drive.example/7" in out


def test_the_whole_catalogue_is_listed_in_every_format(ood: Ood) -> None:
    for form in ("table", "markdown", "csv", "json"):
        code, out, _ = ood("datasets", "list", "--format", form)
        assert code == 0
        assert all(name in out for name in DATASETS)
    _, out, _ = ood("datasets", "list")
    assert all(name in out for name in BENCHMARKS)


def test_verify_counts_and_hashes_what_is_here(ood: Ood, known: Known, store: Store) -> None:
    ood("datasets", "download", "fog")
    prepare(DATASETS["digits"].open(store).parts["val"], store, name="digits val")
    code, out, _ = ood("datasets", "verify", "--format", "csv")
    assert code == 0
    assert [line.split(",")[:3] for line in out.splitlines()] == [
        ["dataset", "what", "state"],
        ["fog", "a.tar", "ok"],
        ["fog", "test", "ok"],
        ["digits val", f"images/{next(store.images.iterdir()).name}", "ok"],
    ]


def rows_of(ood: Ood, *argv: object) -> list[dict[str, str]]:
    """Verify what is not as it should be; return the rows."""
    code, out, _ = ood("datasets", "verify", *argv, "--format", "json")
    assert code == 1
    content = json.loads(out)
    assert content["schema"] == 1
    rows: list[dict[str, str]] = content["checks"]
    return rows


def test_verify_finds_a_file_with_another_checksum(
    ood: Ood, known: Known, store: Store, server: Server
) -> None:
    ood("datasets", "download", "fog", "haze")
    (store.datasets / "fog" / "a.tar").write_bytes(b"x")
    first, *others = rows_of(ood)
    wrong, right = (
        hashlib.md5(content, usedforsecurity=False).hexdigest()
        for content in (b"x", server.content)
    )
    assert first == {
        "dataset": "fog", "what": "a.tar", "state": "wrong",
        "detail": f"md5 {wrong}, not {right}; download it again",
    }  # fmt: skip
    assert {row["state"] for row in others} == {"ok"}


def test_verify_finds_what_is_missing_of_a_named_set_and_of_one_begun(
    ood: Ood, known: Known, store: Store
) -> None:
    (row,) = rows_of(ood, "haze")
    assert (row["state"], row["detail"]) == ("missing", "the rest can be downloaded")
    (store.datasets / "haze").mkdir(parents=True)
    (store.datasets / "haze" / "a.tar.part").write_bytes(b"half")
    (row,) = rows_of(ood)
    assert row["detail"] == "4 bytes are here; the rest can be downloaded"
    (row,) = rows_of(ood, "mist")
    assert row["detail"] == f"put it at {store.datasets / 'mist' / 'a.tar'}"


def test_file_of_two_sets_is_hashed_once(ood: Ood, known: Known, store: Store) -> None:
    known["thick-fog"] = replace(known["fog"], name="thick-fog", home="fog")
    ood("datasets", "download", "fog")
    _, out, err = ood("datasets", "verify", "--format", "csv")
    assert [line.split(",")[:2] for line in out.splitlines()[1:]] == [
        ["fog", "a.tar"], ["fog", "test"], ["thick-fog", "test"],
    ]  # fmt: skip
    assert err.count("checking") == 1
    (store.datasets / "fog" / "a.tar").rename(store.datasets / "fog" / "a.tar.part")
    assert [row["dataset"] for row in rows_of(ood)] == ["fog"]
    assert [row["dataset"] for row in rows_of(ood, "thick-fog")] == ["thick-fog"]


def test_verify_finds_another_number_of_images(ood: Ood, known: Known) -> None:
    known["fog"] = replace(known["fog"], counts={"test": 8})
    ood("datasets", "download", "fog")
    assert rows_of(ood)[1] == {
        "dataset": "fog", "what": "test", "state": "wrong", "detail": "7 images, not 8",
    }  # fmt: skip


def test_verify_finds_an_archive_that_cannot_be_read(ood: Ood, known: Known, store: Store) -> None:
    (store.datasets / "mist").mkdir(parents=True)
    (store.datasets / "mist" / "a.tar").write_bytes(b"<html>" * 200)
    first, second = rows_of(ood)
    assert (first["state"], first["detail"]) == ("ok", "1,200 bytes; no checksum is published")
    assert (second["what"], second["state"]) == ("images", "wrong")


@pytest.mark.parametrize("damage", ["gone", "changed", "cut"])
def test_verify_finds_damaged_decoded_images(ood: Ood, store: Store, damage: str) -> None:
    prepare(DATASETS["digits"].open(store).parts["val"], store, name="digits val")
    (file,) = store.images.rglob("*.npy")
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(content[:-1] + (b"\7" if damage == "changed" else b""))
    (row,) = rows_of(ood)
    assert row["dataset"] == "digits val"
    assert row["detail"] == "1 of 1 files damaged; they are decoded again when needed"
    assert rows_of(ood, "digits")[-1] == row
    assert ood("datasets", "verify", "digits-6-9")[0] == 0


def test_verify_of_nothing_says_so(ood: Ood) -> None:
    code, out, _ = ood("datasets", "verify")
    assert code == 0
    assert "nothing is downloaded, registered or decoded yet" in out


def test_verify_of_an_unknown_set(ood: Ood, tmp_path: Path) -> None:
    ood("datasets", "add", "clouds", flat(tmp_path / "clouds"))
    assert says(ood, "datasets", "verify", "cloud") == "no data set 'cloud'; did you mean 'clouds'?"


# -- Sets of the user's own --------------------------------------------------------------------


def npy(path: Path, array: object) -> Path:
    np.save(path, np.asarray(array))
    return path


def test_folder_gets_a_name_that_every_command_knows(ood: Ood, tmp_path: Path) -> None:
    folder = flat(tmp_path / "clouds")
    code, out, err = ood("datasets", "add", "clouds", folder)
    assert (code, out, err) == (0, f"{folder}\n", "clouds: test 7 images, no classes\n")
    assert ood("datasets", "path", "clouds")[1] == f"{folder}\n"
    assert "clouds" in ood("datasets", "list")[1]
    assert ood("datasets", "show", "clouds", "--output", tmp_path / "a.png")[0] == 0
    assert ood("datasets", "verify")[0] == 0


def test_folder_with_classes_keeps_them(ood: Ood, tmp_path: Path) -> None:
    _, _, err = ood("datasets", "add", "colours", tree(tmp_path / "colours"))
    assert err == "colours: train 24, test 24 images in 2 classes\n"


def test_list_is_read_from_its_root_and_arrays_with_their_labels(ood: Ood, tmp_path: Path) -> None:
    folder = flat(tmp_path / "images")
    (tmp_path / "list.txt").write_text("0.png 1\n1.png 0\n2.png 1\n")
    expected = "3: test 3 images in 2 classes\n"
    for argv in (
        [tmp_path / "list.txt", "--root", folder],
        [folder, "--labels", tmp_path / "list.txt"],
    ):
        assert ood("datasets", "add", "3", *argv)[2] == expected
    images = npy(tmp_path / "x.npy", np.zeros((3, 8, 8, 3), np.uint8))
    labels = npy(tmp_path / "y.npy", [0, 1, 1])
    assert ood("datasets", "add", "3", images, "--labels", labels)[2] == expected
    assert ood("datasets", "add", "4", images)[2] == "4: test 3 images, no classes\n"
    np.savez(tmp_path / "z.npz", images=np.load(images))
    assert ood("datasets", "add", "5", tmp_path / "z.npz")[2] == "5: test 3 images, no classes\n"


def test_relative_path_is_found_again_from_elsewhere(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat(tmp_path / "clouds")
    monkeypatch.chdir(tmp_path)
    ood("datasets", "add", "clouds", "clouds")
    monkeypatch.chdir("/")
    assert ood("datasets", "verify", "clouds")[0] == 0


def test_forgotten_name_leaves_the_images(ood: Ood, tmp_path: Path) -> None:
    folder = flat(tmp_path / "clouds")
    ood("datasets", "add", "clouds", folder)
    code, out, err = ood("datasets", "remove", "clouds")
    assert (code, out, err) == (0, "", f"removed the name clouds; its images remain at {folder}\n")
    assert len(list(folder.iterdir())) == 7
    assert "clouds" not in ood("datasets", "list")[1]
    assert says(ood, "datasets", "remove", "clouds") == (
        "no registered data set 'clouds'; none exists yet"
    )


def test_what_cannot_be_opened_is_not_registered(ood: Ood, tmp_path: Path, store: Store) -> None:
    (tmp_path / "empty").mkdir()
    folder = flat(tmp_path / "clouds")
    ood("datasets", "add", "clouds", folder)
    for name in ("new", "clouds"):
        assert "has no images" in says(ood, "datasets", "add", name, tmp_path / "empty")
    assert ood("datasets", "path", "clouds")[1] == f"{folder}\n"
    assert says(ood, "datasets", "path", "new").startswith("no data set 'new'")


def test_name_that_cannot_be_given_is_refused(ood: Ood, tmp_path: Path, store: Store) -> None:
    folder = flat(tmp_path / "clouds")
    assert says(ood, "datasets", "add", "openood-cifar10", folder) == (
        "'openood-cifar10' is the name of a benchmark; give yours another"
    )
    assert says(ood, "datasets", "add", "digits", folder) == (
        "'digits' comes with ood; give yours another name"
    )


def test_copy_of_a_known_set_takes_its_place(ood: Ood, tmp_path: Path, store: Store) -> None:
    folder = flat(tmp_path / "inat")
    code, out, err = ood("datasets", "add", "inaturalist", folder)
    assert (code, out) == (0, f"{folder}\n")
    assert err == (
        "inaturalist: test 7 images, no classes\n"
        "warning: inaturalist has test 7 images here and test 10,000 as published: results on it "
        "are not comparable with published ones\n"
    )
    listed = {
        e["name"]: e for e in json.loads(ood("datasets", "list", "--format", "json")[1])["datasets"]
    }
    assert (listed["inaturalist"]["present"], listed["inaturalist"]["location"]) == (
        True, str(folder),
    )  # fmt: skip
    assert len(open_dataset("inaturalist", store, role="ood").ood_part) == 7
    assert ood("datasets", "path", "qqq")[2].count(" inaturalist,") == 1
    assert ood("datasets", "remove", "inaturalist")[0] == 0
    assert not DATASETS["inaturalist"].is_present(store)


def test_copy_that_does_not_hold_a_known_set_is_refused(
    ood: Ood, tmp_path: Path, store: Store
) -> None:
    folder = flat(tmp_path / "clouds")
    assert says(ood, "datasets", "add", "cifar10", folder) == (
        f"{folder} does not hold cifar10 as published; name a folder that does, or give your "
        "images another name: NAME=PATH"
    )
    assert not DATASETS["cifar10"].is_present(store)


@pytest.mark.parametrize("option", ["PATH", "--labels", "--root"])
def test_missing_path_is_named(ood: Ood, tmp_path: Path, option: str) -> None:
    none = tmp_path / "none"
    folder = flat(tmp_path / "clouds")
    argv = [none] if option == "PATH" else [folder, option, none]
    assert says(ood, "datasets", "add", "clouds", *argv) == (
        f"no folder or file {none}; check the path"
    )


def test_labels_that_do_not_go_with_the_images(ood: Ood, tmp_path: Path) -> None:
    np.savez(tmp_path / "z.npz", images=np.zeros((3, 8, 8), np.uint8))
    labels = npy(tmp_path / "y.npy", [0, 1])
    assert says(ood, "datasets", "add", "z", tmp_path / "z.npz", "--labels", labels) == (
        f"labels of z do not fit {tmp_path / 'z.npz'}; they are for an .npy array"
    )


def test_known_name_may_lie_elsewhere(
    ood: Ood, known: Known, store: Store, server: Server, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a.tar").write_bytes(server.content)
    store.root.mkdir()
    (store.root / "datasets.toml").write_text(f'[fog]\npath = "{mine}"\n')
    _, out, err = ood("datasets", "download", "fog")
    assert (out, err) == ("", f"fog is your own data set, at {mine}: nothing to download\n")
    assert server.paths == []
    assert ood("datasets", "path", "fog")[1] == f"{mine}\n"
    listed = {
        e["name"]: e for e in json.loads(ood("datasets", "list", "--format", "json")[1])["datasets"]
    }
    assert (listed["fog"]["present"], listed["fog"]["location"]) == (True, str(mine))
    code, out, _ = ood("datasets", "verify", "--format", "csv")
    assert (code, out.splitlines()[1]) == (0, "fog,test,ok,7 images")


def test_name_whose_path_is_gone_is_reported(ood: Ood, tmp_path: Path, store: Store) -> None:
    folder = flat(tmp_path / "clouds")
    ood("datasets", "add", "clouds", folder)
    folder.rename(tmp_path / "moved")
    assert "gone" in ood("datasets", "list")[1]
    assert says(ood, "datasets", "show", "clouds") == (
        f"clouds is registered at {folder}, which does not exist; correct datasets.toml in the "
        "store, or forget it: ood datasets remove clouds"
    )
    (row,) = rows_of(ood)
    assert row["state"] == "wrong"


def test_wrong_datasets_toml_is_one_line_in_every_command(ood: Ood, store: Store) -> None:
    store.root.mkdir()
    (store.root / "datasets.toml").write_text("[fog\n")
    for argv in (
        ["list"], ["path", "digits"], ["verify"], ["download", "digits"], ["show", "digits"],
        ["remove", "fog"],
    ):  # fmt: skip
        assert says(ood, "datasets", *argv).startswith(
            f"{store.root / 'datasets.toml'} cannot be read: Expected ']'"
        )


# -- Pictures ----------------------------------------------------------------------------------


def picture(ood: Ood, *argv: object) -> np.ndarray:
    code, out, err = ood("datasets", "show", *argv)
    assert (code, err) == (0, "")
    with Image.open(out.strip()) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_sheet_of_the_digits_shows_what_the_network_sees(
    ood: Ood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.chdir(tmp_path)
    sheet = picture(ood, "digits")
    assert (tmp_path / "digits.png").exists()
    images = prepare(DATASETS["digits"].open(store).parts["test"], store, name="x").pixels()
    top = 16 + 2 * 24 + 8
    shown = sheet[top : top + 96 : 3, 16 : 16 + 96 : 3].transpose(2, 0, 1)
    np.testing.assert_array_equal(shown, images[0])
    shuffled = picture(ood, "digits", "--view", "jigsaw")
    assert (tmp_path / "digits-jigsaw.png").exists()
    tiles = shuffled[top : top + 96 : 3, 16 : 16 + 96 : 3]
    assert (tiles[30:] == 0).all()
    assert sorted(tiles[:30, :30].ravel()) == sorted(images[0, :, :30, :30].ravel())
    assert not (shuffled == sheet).all()


def test_sheet_has_the_size_of_its_benchmark(ood: Ood, tmp_path: Path) -> None:
    folder = flat(tmp_path / "clouds", n=3)
    small = picture(ood, folder, "--output", tmp_path / "a.png")
    large = picture(ood, folder, "--output", tmp_path / "b.png", "--benchmark", "mos-imagenet")
    assert large.shape[0] - small.shape[0] == 224 - 96


def test_image_that_cannot_be_read_is_skipped(ood: Ood, tmp_path: Path) -> None:
    folder = flat(tmp_path / "clouds", n=3)
    (folder / "0.png").write_bytes(b"no image")
    assert picture(ood, folder, "--output", tmp_path / "a.png").shape[1] > 200


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["digit"], "no data set 'digit'; did you mean 'digits'?"),
        (["digits", "--benchmark", "digit"], "no benchmark 'digit'; did you mean 'digits'?"),
        (["digits", "--output", "a.jpg"], "--output a.jpg does not end in .png; name a .png file"),
    ],
)
def test_impossible_sheet_is_one_line(ood: Ood, argv: list[str], line: str) -> None:
    assert says(ood, "datasets", "show", *argv).startswith(line)


def test_bars_of_several_threads_share_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = TerminalProgress()
    with (
        progress.task("one.tar", total=2_000_000, unit="bytes") as one,
        progress.task("two.tar", total=10, unit="images") as two,
    ):
        one.advance(0)
        one.advance(2_000_000)
        two.advance(10)
    with progress.task("three.tar", total=1, unit="images") as three:
        three.advance(1)
    text = screen.getvalue()
    assert all(name in text for name in ("one.tar", "two.tar", "three.tar"))
    assert "B/s" in text
