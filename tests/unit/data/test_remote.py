"""Images on servers and in object stores: the same as on the disk, read in ranges."""

import base64
import contextlib
import csv
import io
import json
import multiprocessing
import os
import pickle
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.encoded import pieces
from oodcli.data.incoming import full_size, items
from oodcli.data.opening import open_dataset
from oodcli.data.own_names import registered
from oodcli.data.sharding import Shard
from oodcli.errors import DownloadError, InvalidInputError, OodError, UnreadableImageError
from oodcli.remote import files, transport
from oodcli.remote.files import RemotePath, path_of, use_cache
from oodcli.screening.copies import Copies
from oodcli.store.store import Store
from oodcli.windows import Window
from oodcli.workflows.datasets import add_dataset
from tests.support.medical import write_dicom
from tests.support.server import Server, serving

pytest.importorskip("fsspec", reason="remote files need the extra oodcli[remote]")
pytest.importorskip("aiohttp", reason="remote files need the extra oodcli[remote]")

CLASSES = ("ant", "bee")
PER_CLASS = 6


@pytest.fixture(scope="module")
def content() -> dict[str, bytes]:
    """Return the same twelve images in every layout, by path."""
    rng = np.random.default_rng(0)
    images, arrays = {}, []
    for name in CLASSES:
        for n in range(PER_CLASS):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            images[f"{name}/{n}.png"] = stream.getvalue()
            arrays.append(pixels)
    found = {f"photos/{name}": image for name, image in images.items()}
    for name in ("new.png", "test/a.png", "test/b.png", "val/c.png"):  # of no data set
        found[f"incoming/{name}"] = images["ant/0.png"]
    labels = [name.partition("/")[0] for name in images]
    numbers = np.repeat([0, 1], PER_CLASS)
    found["photos.zip"] = zipped(images)
    found["photos.tar"] = tarred(images)
    halves = [{}, {}]
    for n, (name, image) in enumerate(images.items()):
        halves[n // PER_CLASS] |= {f"{n:03d}.png": image, f"{n:03d}.cls": labels[n].encode()}
        assert name.startswith(labels[n])
    for at, half in enumerate(halves):
        found[f"shards/s-{at:03d}.tar"] = tarred(half)
    rows = [(f"photos/{name}", label) for name, label in zip(images, labels, strict=True)]
    text = io.StringIO()
    csv.writer(text).writerows([("path", "label"), *rows])
    found["list.csv"] = text.getvalue().encode()
    found["list.tsv"] = text.getvalue().replace(",", "\t").encode()
    lines = (json.dumps({"file_name": path, "label": label}) for path, label in rows)
    found["list.jsonl"] = "\n".join(lines).encode()
    found["list.txt"] = "\n".join(f"{path} {n // PER_CLASS}" for n, (path, _) in
                                  enumerate(rows)).encode()  # fmt: skip
    found["photos.npz"] = saved(np.savez, images=np.stack(arrays), labels=numbers)
    found["photos.npy"] = saved(np.save, np.stack(arrays))
    return found | tables(images, labels, np.stack(arrays), numbers)


def tables(
    images: dict[str, bytes], labels: list[str], arrays: np.ndarray, numbers: np.ndarray
) -> dict[str, bytes]:
    """Return the layouts whose packages need not be there."""
    found = {}
    with contextlib.suppress(ImportError):
        import pyarrow as pa
        from pyarrow import parquet

        column = [{"bytes": image, "path": name} for name, image in images.items()]
        stream = io.BytesIO()
        table = pa.table({"image": column, "label": labels})
        parquet.write_table(table, stream, row_group_size=4)
        found["photos.parquet"] = stream.getvalue()
    with contextlib.suppress(ImportError):
        import h5py

        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            file.create_dataset("images", data=arrays, chunks=(1, *arrays.shape[1:]))
            file["labels"] = numbers
        found["photos.h5"] = stream.getvalue()
    return found


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, each in files.items():
            archive.writestr(name, each)
    return stream.getvalue()


def tarred(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, each in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(each)
            archive.addfile(info, io.BytesIO(each))
    return stream.getvalue()


def saved(save: Any, *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()


@pytest.fixture(scope="module")
def local(content: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with everything."""
    root = tmp_path_factory.mktemp("local")
    for name, each in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each)
    return root


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every test begin with nothing known, and wait for nothing."""
    monkeypatch.setattr(transport, "WAIT_S", 0.001)
    yield
    use_cache(None)


@pytest.fixture
def server(content: dict[str, bytes]) -> Iterator[Server]:
    with serving(b"") as running:
        running.files = {f"/{name}": each for name, each in content.items()}
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def bucket(content: dict[str, bytes]) -> Iterator[str]:
    """Return the address of an S3 server with everything in a bucket."""
    pytest.importorskip("s3fs", reason="s3:// addresses need s3fs")
    moto = pytest.importorskip("moto.server", reason="the S3 server of these tests is moto")
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION":
            "us-east-1"}  # fmt: skip
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for name, each in content.items():
            client.put_object(Bucket="bucket", Key=f"all/{name}", Body=each)
        yield "s3://bucket/all"
    running.stop()


def pixels(opened: Dataset, part: str = "test") -> list[np.ndarray]:
    source = opened.parts[part].source
    found = list(source.read(0, len(source)))
    assert not [each for each in found if isinstance(each, UnreadableImageError)]
    return found  # type: ignore[return-value]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


FORMS = [
    "photos.zip", "photos.tar", "list.csv", "list.tsv", "list.jsonl", "list.txt", "photos.npz",
    "photos.npy", "photos.parquet", "photos.h5", "shards/s-{000..001}.tar",
]  # fmt: skip
NEEDED = {"photos.parquet": "pyarrow", "photos.h5": "h5py"}


def compare(local: str, remote: str, store: Store) -> Dataset:
    """Open images in both places and in both roles; return the remote ones with their classes."""
    role = "ood" if local.endswith(".npy") else "id"
    one, other = (open_dataset(each, store, role=role) for each in (local, remote))
    assert same(pixels(one), pixels(other))
    assert one.class_names == other.class_names
    labels = one.parts["test"].labels
    assert labels is None or np.array_equal(labels, other.parts["test"].labels)
    alone = open_dataset(remote, store, role="ood")
    assert same(pixels(alone), pixels(one))
    source = alone.parts["test"].source
    if hasattr(source, "take"):
        chosen = source.take(np.array([7, 2, 11]))
        whole = pixels(one)
        assert same(list(chosen.read(0, 3)), [whole[7], whole[2], whole[11]])
    return other


@pytest.mark.parametrize("form", FORMS)
def test_images_on_a_web_server_are_those_of_the_disk(
    form: str, server: Server, local: Path, store: Store
) -> None:
    pytest.importorskip(NEEDED.get(form, "numpy"))
    opened = compare(str(local / form), f"{server.root}/{form}", store)
    assert opened.spec == f"{server.root}/{form}"


@pytest.mark.parametrize("form", [*FORMS, "photos", "shards", "shards/s-*.tar"])
def test_images_in_an_object_store_are_those_of_the_disk(
    form: str, bucket: str, local: Path, store: Store
) -> None:
    pytest.importorskip(NEEDED.get(form, "numpy"))
    opened = compare(str(local / form), f"{bucket}/{form}", store)
    assert opened.spec == f"{bucket}/{form}"


def test_predict_takes_all_of_a_folder_and_divides_it_by_name(
    bucket: str, local: Path, store: Store
) -> None:
    def below(folder: str, shard: Shard | None) -> list[str]:
        return [each.relative for each in items([folder], store=store, shard=shard)]

    every = ["new.png", "test/a.png", "test/b.png", "val/c.png"]
    assert below(f"{bucket}/incoming/", None) == every
    shards = [Shard(index, 2) for index in (1, 2)]
    found = [below(f"{bucket}/incoming", shard) for shard in shards]
    assert found == [below(f"{local}/incoming", shard) for shard in shards]
    assert sorted(found[0] + found[1]) == every


@pytest.mark.parametrize("scheme", ["gs", "hf"])
def test_other_object_stores_go_through_the_same_door(
    scheme: str, content: dict[str, bytes], local: Path, store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In place of their own packages, a file system in memory answers for them."""
    from fsspec.implementations.memory import MemoryFileSystem

    class Stub(MemoryFileSystem):
        protocol = scheme
        store: dict[str, Any] = {}  # noqa: RUF012 - as in the base class
        pseudo_dirs = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol("/" + path.removeprefix(f"{scheme}://").lstrip("/"))

    monkeypatch.setattr(files, "_door", None)
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, Stub)
    held = Stub(skip_instance_cache=True)
    for name, each in content.items():
        held.pipe_file(f"{scheme}://owner/all/{name}", each)
    for form in ("photos", "photos.zip", "list.csv", "shards"):
        compare(str(local / form), f"{scheme}://owner/all/{form}", store)
    # A long listing is no silent server; one that never answers is not asked for ever.
    calls: list[int] = []

    def slow(*_given: object, **_more: object) -> dict[str, Any]:
        calls.append(1)
        time.sleep(0.3)
        return {}

    monkeypatch.setattr(transport, "TIMEOUT_S", 0.1)
    door = transport.Transport()
    monkeypatch.setattr(Stub, "find", slow)
    assert door.listing(f"{scheme}://owner/all") == {}
    monkeypatch.setattr(Stub, "info", slow)
    with pytest.raises(DownloadError, match="the server sent nothing in time"):
        door.state(f"{scheme}://owner/all/photos.zip")
    assert len(calls) == 2


def test_rows_have_the_keys_of_their_addresses(server: Server, store: Store) -> None:
    def key(form: str) -> str:
        return str(
            open_dataset(f"{server.root}/{form}", store, role="ood").ood_part.source.key_of(8)
        )

    root = server.root
    assert key("photos.zip") == f"{root}/photos.zip/bee/2.png"
    assert key("photos.tar") == f"{root}/photos.tar/bee/2.png"
    assert key("shards/s-{000..001}.tar") == f"{root}/shards/s-001.tar/008"
    assert key("list.csv") == f"{root}/list.csv:10"
    if "/photos.parquet" in server.files:
        assert key("photos.parquet") == f"{root}/photos.parquet[8]"


def test_few_images_of_a_large_archive_are_few_bytes(server: Server, store: Store) -> None:
    rng = np.random.default_rng(1)
    images = {f"{n:04d}.png": rng.bytes(30_000) for n in range(160)}
    labelled = {}
    for name, each in images.items():
        labelled |= {name: each, name.replace("png", "cls"): b"7"}
    each = {"/a.zip": zipped(images), "/b.tar": tarred(images, tarfile.USTAR_FORMAT),
            "/c.tar": tarred(labelled, tarfile.GNU_FORMAT)}  # fmt: skip
    server.files |= each
    for name, size in zip(each, map(len, each.values()), strict=True):
        server.sent = 0
        source = open_dataset(f"{server.root}{name}", store, role="ood").ood_part.source
        assert len(source) == 160
        found = list(source.take(np.arange(0, 160, 10)).contents(0, 16))
        assert found == list(images.values())[::10]
        assert 16 * 30_000 < server.sent < 0.35 * size, name
        # Blocks that are here are not asked for again, by another process either.
        server.sent = 0
        use_cache(None)
        use_cache(store.remote)
        again = open_dataset(f"{server.root}{name}", store, role="ood").ood_part.source
        assert list(again.take(np.arange(0, 160, 10)).contents(0, 16)) == found
        assert server.sent < 0.02 * size


def test_headers_inside_of_files_of_a_tar_archive_are_no_headers(
    server: Server, store: Store
) -> None:
    """A remote archive is followed from many places; an archive in it must not lead astray."""
    rng = np.random.default_rng(2)
    files: dict[str, bytes] = {}
    for n in range(40):
        if n % 3 == 0:  # an archive under another name
            files[f"{n}.bin"] = tarred({f"in{m}.png": rng.bytes(9_000) for m in range(30)})
        files[f"{'long/' * 40 if n % 4 == 0 else ''}{n}.png"] = rng.bytes(50_000)
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        server.files["/a.tar"] = tarred(files, kind)
        use_cache(None)
        source = open_dataset(f"{server.root}/a.tar", store, role="ood").ood_part.source
        wanted = {name: each for name, each in files.items() if name.endswith(".png")}
        found = list(source.contents(0, len(source)))
        assert dict(zip(map(source.name_of, range(len(source))), found, strict=True)) == wanted


def test_a_changed_file_is_another_one(
    server: Server, store: Store, bucket: str, content: dict[str, bytes]
) -> None:
    import boto3

    rng = np.random.default_rng(5)
    images = {f"{n}.png": rng.bytes(40_000) for n in range(8)}
    changed = {**images, "0.png": rng.bytes(40_000)}
    client = boto3.client("s3")

    def put(files: dict[str, bytes]) -> None:
        server.files["/a.zip"] = zipped(files)
        client.put_object(Bucket="bucket", Key="a.zip", Body=server.files["/a.zip"])

    put(images)
    addresses = (f"{server.root}/a.zip", "s3://bucket/a.zip")
    opened = [open_dataset(each, store, role="ood").ood_part.source for each in addresses]
    prints = [source.fingerprint for source in opened]
    put(changed)
    for source in opened:
        with pytest.raises(DownloadError, match="it has changed while it was read; run the same"):
            list(source.contents(0, 8))
    use_cache(None)
    for address, before in zip(addresses, prints, strict=True):
        after = open_dataset(address, store, role="ood").ood_part.source
        assert after.fingerprint != before
        assert list(after.contents(0, 8)) == list(changed.values())


def test_a_server_that_names_no_version_is_believed_for_one_command(
    server: Server, store: Store
) -> None:
    server.headers = {"ETag": None}
    address = f"{server.root}/photos.zip"
    first = open_dataset(address, store, role="ood").ood_part.source.fingerprint
    assert open_dataset(address, store, role="ood").ood_part.source.fingerprint == first
    use_cache(None)
    assert open_dataset(address, store, role="ood").ood_part.source.fingerprint != first


SECRET = "s3cret"  # noqa: S105 - of no one


def test_credentials_reach_the_server_and_nothing_else(server: Server, store: Store) -> None:
    server.query = f"?sig={SECRET}"
    server.login = "Basic " + base64.b64encode(b"ann:s3cret").decode()
    where = server.root.replace("//", f"//ann:{SECRET}@")
    for form in ("photos.zip", "list.csv", "shards/s-{000..001}.tar"):
        opened = open_dataset(f"odd={where}/{form}?sig={SECRET}", store, role="ood")
        assert len(pixels(opened)) == 12
        source = opened.ood_part.source
        shown = [opened.spec, opened.location, opened.name, source.fingerprint, repr(source)]
        assert SECRET not in "".join([*shown, *(source.key_of(row) for row in range(12))])
    (item, *_) = items([f"{where}/photos/ant/0.png?sig={SECRET}"], store=store)
    assert item.name == f"{server.root}/photos/ant/0.png"
    assert item.data == server.files["/photos/ant/0.png"]
    for folder, _, names in os.walk(store.root):
        for name in names:
            assert SECRET.encode() not in Path(folder, name).read_bytes()
    server.login = "another"
    with pytest.raises(DownloadError) as caught:
        open_dataset(f"{where}/photos.tar?sig={SECRET}", store, role="ood")
    assert str(caught.value) == (
        f"cannot read {server.root}/photos.tar: the server answers 403 Forbidden; give credentials "
        "that may read it: ood help data"
    )


def test_worker_processes_get_the_credentials(server: Server, store: Store) -> None:
    server.query = f"?sig={SECRET}"
    opened = open_dataset(f"{server.root}/photos.tar?sig={SECRET}", store, role="ood")
    source = opened.ood_part.source.take(np.array([3, 9]))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read_all, (source,)) == list(source.contents(0, 2))
    # A process that was forked has no loop of its own until it asks for one.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_read_all, (source,)) == list(source.contents(0, 2))
    assert str(pickle.loads(pickle.dumps(source.path))) == f"{server.root}/photos.tar"


def _read_all(source: Any) -> list[bytes]:
    return list(source.contents(0, len(source)))


def test_threads_read_one_file_at_once(server: Server, store: Store) -> None:
    rng = np.random.default_rng(3)
    images = {f"{n:03d}.png": rng.bytes(50_000) for n in range(64)}
    server.files["/a.tar"] = tarred(images)
    source = open_dataset(f"{server.root}/a.tar", store, role="ood").ood_part.source
    parts = [source.take(np.arange(at, 64, 8)) for at in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(_read_all, parts))
    assert found == [list(images.values())[at::8] for at in range(8)]


def line(server: Server, name: str, store: Store) -> str:
    with pytest.raises(OodError) as caught:
        open_dataset(f"{server.root}/{name}", store, role="ood")
    return str(caught.value).replace(server.root, "ROOT")


def test_what_is_wrong_with_a_server_is_one_line(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line(server, "none.zip", store) == "no folder or file ROOT/none.zip; check the path"
    assert line(server, "photos", store).startswith("no folder or file ROOT/photos;")
    server.files["/photos"] = b"<a href='ant/'>ant</a>"
    use_cache(None)
    assert line(server, "photos", store).endswith("a folder on a web server cannot be listed")
    assert line(server, "s-*.tar", store).startswith("cannot list ROOT: a web server has no list")
    server.redirects_to = "ftp://127.0.0.1:1/photos.zip?sig=s3cret"
    assert line(server, "photos.zip", store) == (
        "cannot read ROOT/photos.zip: it redirects to ftp://127.0.0.1:1/photos.zip, which has "
        "another scheme; give that address"
    )
    server.redirects_to = ""
    server.statuses = [500] * 9
    assert "the server answers 500 Internal Server Error" in line(server, "photos.zip", store)
    assert len(server.statuses) == 9 - transport.TRIES
    server.statuses = [503, 502]  # once more is enough
    use_cache(None)
    assert len(open_dataset(f"{server.root}/photos.zip", store, role="ood").ood_part) == 12
    server.understands_range = False
    server.files["/large.zip"] = bytes(transport.MAX_WHOLE_BYTES + 1)
    assert line(server, "large.zip", store) == (
        "cannot read ROOT/large.zip: the server sends no ranges, and the file has more than 16 "
        "MiB; download it, or use a server that answers range requests"
    )
    # What is small is read as a whole.
    assert len(pixels(open_dataset(f"{server.root}/photos.tar", store, role="ood"))) == 12


def test_a_server_that_does_not_answer_stops_the_command(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(files, "_door", None)
    server.stalls_after = 0
    assert "resumes" in line(server, "photos.zip", store)
    server.released.set()
    server.stalls_after = None
    source = open_dataset(f"{server.root}/list.csv", store, role="ood").ood_part.source
    server.server_close()
    server.shutdown()
    with pytest.raises(DownloadError, match="check the address and the network"):
        list(source.contents(0, 12))


def test_an_image_that_is_cut_short_is_an_unreadable_row_that_is_tried_again(
    server: Server, store: Store
) -> None:
    server.broken = {"/photos/ant/3.png"}
    address = f"{server.root}/list.csv"
    source = open_dataset(address, store, role="ood").ood_part.source
    first = source.fingerprint
    before = len(server.paths)
    found = list(source.read(0, 12))
    bad = [each for each in found if isinstance(each, UnreadableImageError)]
    assert [each.where for each in bad] == [f"{address}:5 (photos/ant/3.png)"]
    assert server.paths[before:].count("/photos/ant/3.png") == transport.TRIES
    server.broken = set()
    use_cache(None)
    again = open_dataset(address, store, role="ood").ood_part.source
    assert again.fingerprint != first
    assert len(pixels(open_dataset(address, store, role="ood"))) == 12


def test_rows_of_a_remote_table_lead_to_its_server_alone(
    server: Server, store: Store, local: Path, tmp_path: Path
) -> None:
    other = f"{server.root}/photos/bee/1.png"
    rows = [f"{local}/photos/ant/0.png", "../photos/ant/0.png", "photos/none.png",
            "ftp://h/a.png", other, "photos/ant/1.png"]  # fmt: skip
    server.files["/in/list.csv"] = "\n".join(["path", *rows]).encode()
    server.files["/in/photos/ant/1.png"] = server.files["/photos/ant/1.png"]
    source = open_dataset(f"{server.root}/in/list.csv", store, role="ood").ood_part.source
    found = list(source.contents(0, 6))
    reasons = [each.reason for each in found if isinstance(each, UnreadableImageError)]
    leads = "its path does not lead below the folder of the table"
    assert reasons == [leads, leads, "the server answers 404 Not Found", reasons[3]]
    assert reasons[3].startswith("cannot read ftp://h/a.png: the schemes that are read")
    assert found[4:] == [server.files["/photos/bee/1.png"], server.files["/photos/ant/1.png"]]
    # A table on the disk may name images on servers beside its own.
    table = tmp_path / "list.csv"
    table.write_text(f"path\n{local}/photos/ant/0.png\n{other}\n")
    mixed = open_dataset(str(table), store, role="ood").ood_part.source
    assert list(mixed.contents(0, 2)) == [server.files["/photos/ant/0.png"], found[4]]


def test_frames_of_medical_images_are_rows_that_a_table_names(
    server: Server, store: Store, tmp_path: Path
) -> None:
    pytest.importorskip("pydicom", reason="DICOM needs the extra oodcli[medical]")
    values = np.arange(2 * 4 * 5, dtype=np.int16).reshape(2, 4, 5)
    scan = write_dicom(tmp_path / "scan.dcm", values, RescaleSlope=1, RescaleIntercept=0)
    server.files["/scan.dcm"] = scan.read_bytes()
    text = "path\nscan.dcm[1]\nscan.dcm\nscan.dcm[2]\n"
    server.files["/scans.csv"] = text.encode()
    here, mixed = tmp_path / "scans.csv", tmp_path / "mixed.csv"
    here.write_text(text)
    mixed.write_text(f"{text}{server.root}/scan.dcm[0]\n")
    window = Window.of("0..39")
    grey = np.rint(values * (255 / 39)).astype(np.uint8)
    for table in (here, mixed, f"{server.root}/scans.csv"):
        source = open_dataset(str(table), store, role="ood", window=window).ood_part.source
        first, whole, none, *rest = source.read(0, len(source))
        assert (np.asarray(first)[..., 0] == grey[1]).all()
        assert "it has 2 frames; name one in a list or table" in str(whole)
        assert "it has no frame 2: frames are numbered from 0 to 1" in str(none)
        assert all((np.asarray(each)[..., 0] == grey[0]).all() for each in rest)
        halves = pieces(source.take(np.array([0])), 0, 1, 1) if table is not here else ()
        for half in halves:  # as worker processes get them
            assert (np.asarray(*half.read(0, 1))[..., 0] == grey[1]).all()
    # The set of one file, and single frames for predict.
    one = open_dataset(f"{server.root}/scan.dcm", store, role="ood", window=window)
    (image,) = one.ood_part.source.read(0, 1)
    assert "it has 2 frames; name one in a list or table" in str(image)
    names = [f"{scan}[1]", f"{server.root}/scan.dcm[1]", f"{server.root}/scan.dcm"]
    found = list(items(names, store=store, window=window))
    assert [each.name for each in found] == names
    assert all((full_size(each, window)[..., 0] == grey[1]).all() for each in found[:2])
    copies = Copies(tmp_path / "copies", window)
    copies.add(found[1])
    assert [each.name for each in copies.folder.iterdir()] == ["scan.dcm[1].png"]


def test_a_missing_package_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = transport.importlib.import_module

    def without(name: str) -> Any:
        if name.startswith(("fsspec", "aiohttp")):
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(transport.importlib, "import_module", without)
    monkeypatch.setattr(files, "_door", None)
    with pytest.raises(InvalidInputError) as caught:
        open_dataset("https://127.0.0.1/a.zip", store)
    assert str(caught.value) == (
        'remote addresses need the package fsspec; install it: pip install "oodcli[remote]"'
    )
    monkeypatch.undo()

    def no_google(scheme: str, **_options: object) -> None:
        raise ImportError("gcsfs")

    monkeypatch.setattr("fsspec.filesystem", no_google)
    monkeypatch.setattr(files, "_door", None)
    with pytest.raises(InvalidInputError) as caught:
        open_dataset("gs://b/a.zip", store)
    assert str(caught.value) == (
        'gs:// addresses need the package gcsfs; install it: pip install "oodcli[remote]" gcsfs'
    )


def test_addresses_get_names(server: Server, store: Store) -> None:
    add_dataset(store, "odd", Path(f"{server.root}/list.csv"))
    entry = registered(store)["odd"]
    assert entry.path == path_of(f"{server.root}/list.csv")
    assert isinstance(entry.path, RemotePath)
    assert len(open_dataset("odd", store).parts["test"]) == 12
    parts = f"pets=train={server.root}/list.csv,test={server.root}/list.tsv"
    assert set(open_dataset(parts, store).parts) == {"train", "test"}


def test_streams_read_as_files_do(server: Server, store: Store) -> None:
    rng = np.random.default_rng(4)
    server.files["/a.bin"] = whole = rng.bytes(300_000)
    use_cache(store.remote)
    path = path_of(f"{server.root}/a.bin")
    assert path.read_bytes() == whole
    with path.open("rb") as stream, io.BytesIO(whole) as memory:
        for _ in range(200):
            place, size = int(rng.integers(0, 310_000)), int(rng.integers(0, 40_000))
            assert stream.seek(place) == memory.seek(place)
            assert stream.read(size) == memory.read(size)
    server.files["/empty.csv"] = b""
    assert path_of(f"{server.root}/empty.csv").read_bytes() == b""
    assert files.KNOWN_S == 30
