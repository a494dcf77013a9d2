"""Every reader of files from outside takes damage for what it is: one line, or the content.

Each file is flipped, cut or made longer in a few places; 50 times for each reader by default, and
2,000 times with the slow tests. Images, archives, lists and ``datasets.toml`` have a campaign of
their own in ``tests/unit/data/test_malformed.py``.
"""

import gzip
import io
import pickle
import random
import resource
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from oodcli import pillow
from oodcli.data.class_order import read_class_names
from oodcli.data.decoding.files import decode
from oodcli.data.formats.archives import open_archive
from oodcli.data.formats.arrays import open_npy, open_npz
from oodcli.data.formats.arrow import open_saved
from oodcli.data.formats.cifar import CIFAR10, find_release, open_cifar
from oodcli.data.formats.hdf5 import open_hdf5
from oodcli.data.formats.lists import open_list
from oodcli.data.formats.mnist import read_idx
from oodcli.data.formats.parquet import open_parquet
from oodcli.data.formats.svhn import open_svhn
from oodcli.data.formats.webdataset import open_webdataset
from oodcli.data.own_names import registered
from oodcli.data.readers import open_path
from oodcli.errors import OodError
from oodcli.methods._stored import read_tensors as read_detector
from oodcli.models.checkpoint import load_weights
from oodcli.models.state_dicts import read_checkpoint
from oodcli.progress import Silent
from oodcli.reporting.score_files import read_score_file
from oodcli.scoring.activation_file import read_activations
from oodcli.screening.verdict_file import Verdict, verdict_file
from oodcli.store.store import Store, read_arrays, read_json, write_arrays, write_json

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(6) % 3
SCORES = RNG.normal(size=(2, 6))


def saved(write: Callable[..., Any], *arguments: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    write(stream, *arguments, **options)
    return stream.getvalue()


def zipped(method: int, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, values in arrays.items():
            archive.writestr(f"{name}.npy", saved(np.save, values))
    return stream.getvalue()


def openood() -> dict[str, Any]:
    one = [LABELS, SCORES[0], LABELS]
    return {
        "id": {"test": one},
        "ood": {"near": {"tin": one}, "far": {"svhn": one}},
        "csid": {"c": one},
        "id_preds": LABELS,
        "id_labels": LABELS,
    }


def activations() -> dict[str, Any]:
    weight, bias = RNG.normal(size=(3, 4)).astype("f4"), np.zeros(3, "f4")
    arrays = {"weight": weight, "bias": bias}
    for name in ("train", "test", "near"):
        features = RNG.normal(size=(6, 4)).astype("f4")
        arrays[f"{name}/features"] = features
        arrays[f"{name}/labels"] = LABELS
    return arrays


def state() -> dict[str, Any]:
    tensors = {"conv.weight": torch.ones(2, 3), "fc.weight": torch.rand(3, 2), "n": torch.tensor(3)}
    return {"state_dict": tensors, "best_prec1": np.float64(91.7), "epoch": 3}


def mat() -> bytes:
    from scipy.io import savemat

    return saved(savemat, {"X": PIXELS.transpose(1, 2, 3, 0), "y": LABELS[:, None] + 1})


def all_of(dataset: Any) -> None:
    for part in dataset.parts.values():
        for image in part.source.read(0, len(part)):
            if isinstance(image, OodError):
                raise image


def encoded(kind: str = "PNG") -> list[bytes]:
    return [saved(lambda f, each: Image.fromarray(each).save(f, kind), each) for each in PIXELS]


def of_parquet(_folder: Path) -> bytes:
    arrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    images = [{"bytes": each, "path": "a.png"} for each in encoded()]
    metadata = {
        "huggingface": '{"info": {"features": {"image": {"_type": "Image"}, "label": '
        '{"_type": "ClassLabel", "names": ["a", "b", "c"]}}}}'
    }
    table = arrow.table({"image": images, "label": LABELS, "split": ["train", "test"] * 3})
    return saved(
        lambda f, t: parquet.write_table(t, f, row_group_size=4),
        table.replace_schema_metadata(metadata),
    )


def of_arrow(folder: Path) -> bytes:
    arrow = needed("pyarrow")
    table = arrow.table({"image": encoded(), "label": ["a", "b", "c"] * 2})
    (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')

    def write(stream: Any, _nothing: object) -> None:
        with arrow.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)

    return saved(write, None)


def of_shard(_folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for row, image in enumerate(encoded("JPEG")):
            for end, content in (("jpg", image), ("cls", b"1"), ("json", b'{"label": 2}')):
                info = tarfile.TarInfo(f"{row}.{end}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def of_hdf5(folder: Path) -> bytes:
    h5py = needed("h5py")
    with h5py.File(folder / "made", "w") as file:
        file.create_dataset("images", data=PIXELS, chunks=(2, 8, 8, 3), compression="gzip")
        file["labels"], file["class_names"] = LABELS, ["a", "b", "c"]
    return (folder / "made").read_bytes()


def needed(module: str) -> Any:
    return pytest.importorskip(module, reason="an extra is not installed")


def of_image(kind: str, module: str | None = None) -> Callable[[Path], bytes]:
    def make(_folder: Path) -> bytes:
        if module is not None:
            needed(module)
            pillow._load(kind)
        return encoded(kind)[0]

    return make


def table(path: Path) -> None:
    all_of(open_parquet(path, name="x", spec="x", role="id"))


def shard(path: Path) -> None:
    store = Store(path.parent / "store")
    all_of(open_webdataset(path, name="x", spec="x", role="id", store=store))


def verdicts(path: Path) -> None:
    with verdict_file(path, "csv", {}):
        pass


def of_verdicts(folder: Path) -> bytes:
    path = folder / "made.csv"
    with verdict_file(path, "csv", {}) as file:
        file.write([Verdict(path=f"{n}.png", error="no") for n in range(4)])
    (folder / "a.csv.ood.json").write_bytes((folder / "made.csv.ood.json").read_bytes())
    return path.read_bytes()


def of_json(folder: Path) -> bytes:
    write_json(folder / "made", {"a": [1, {"b": None}], "c": "text"})
    return (folder / "made").read_bytes()


def of_arrays(folder: Path) -> bytes:
    write_arrays(folder / "made", {"a": SCORES})
    return (folder / "made").read_bytes()


def of_cifar(_folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for member in CIFAR10.members:
            content = pickle.dumps({b"data": PIXELS, b"labels": [1, 2]}, protocol=2)
            info = tarfile.TarInfo(f"{CIFAR10.folder}/{member}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def read_cifar(path: Path) -> None:
    found = find_release(path)
    if found is not None:
        release, location = found
        open_cifar(location, Store(path.parent), release=release, name="x", spec="x")


def read_toml(path: Path) -> None:
    registered(Store(path.parent))


def of_table(text: str) -> Callable[[Path], bytes]:
    """Return what writes three images, and a table of them."""

    def write(folder: Path) -> bytes:
        for row in range(3):
            Image.fromarray(PIXELS[row]).save(folder / f"{row}.bmp")
        return text.encode()

    return write


def listed(path: Path) -> None:
    all_of(open_path(path, Store(path.parent / "store"), name="x", spec="x", role="id"))


def of_album(mode: str) -> Callable[[Path], bytes]:
    """Return what writes an archive of class folders, and of an archive of more."""

    def write(_folder: Path) -> bytes:
        image = saved(lambda f, v: Image.fromarray(v).save(f, "BMP"), PIXELS[0])
        inner = packed("tar", {"a/1.bmp": image, "b/1.bmp": image})
        return packed(mode, {"train/a/0.bmp": image, "train/b/0.bmp": image, "test.tar": inner,
                             "test/a/0.bmp": image})  # fmt: skip

    return write


def packed(mode: str, files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    if mode == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return stream.getvalue()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def album(path: Path) -> None:
    all_of(open_archive(path, name="x", spec="x", role="ood"))
    all_of(open_archive(path, name="x", spec="x", role="id"))


CSV = 'path,label,split\n0.bmp,a,train\n1.bmp,b,train\n"2.bmp",a,test\n'
JSON_LINES = '{"file": "0.bmp", "label": 0}\n{"file": "1.bmp", "label": 1}\n'


@dataclass(frozen=True)
class Reader:
    """A reader, and a file that it reads."""

    name: str
    content: Callable[[Path], bytes]
    read: Callable[[Path], object]


def fixed(make: Callable[[], bytes]) -> Callable[[Path], bytes]:
    return lambda _folder: make()


def npz(path: Path) -> None:
    all_of(open_npz(path, name="x", spec="x", role="id"))


def scores(path: Path) -> object:
    return read_score_file(path, id_name=None if path.suffix == ".pkl" else "id")


def hdf5(path: Path) -> None:
    all_of(open_hdf5(path, name="x", spec="x", role="id"))


def saved_to_disk(path: Path) -> None:
    all_of(open_saved(path.parent, name="x", spec="x", role="id"))


TOML = b'[fog]\npath = "/x"\n[birds]\npath = "y"\nroot = "z"\n'
IMAGES = {"images": PIXELS, "labels": LABELS, "class_names": np.array(["a", "b", "c"])}
BY_METHOD = {"msp/id": SCORES[0], "msp/svhn": SCORES[1], "@labels/id": LABELS}
READERS = {
    "images, stored": Reader("a.npz", fixed(lambda: zipped(0, **IMAGES)), npz),
    "images, deflated": Reader("a.npz", fixed(lambda: zipped(8, **IMAGES)), npz),
    "images, bzip2": Reader("a.npz", fixed(lambda: zipped(12, **IMAGES)), npz),
    "images, lzma": Reader("a.npz", fixed(lambda: zipped(14, **IMAGES)), npz),
    "images, npy": Reader(
        "a.npy",
        fixed(lambda: saved(np.save, PIXELS)),
        lambda p: all_of(open_npy(p, name="x", spec="x", role="ood")),
    ),
    "labels, npy": Reader(
        "a.npy",
        fixed(lambda: saved(np.save, PIXELS)),
        lambda p: all_of(open_npy(p, name="x", spec="x", role="id", labels=p)),
    ),
    "list": Reader(
        "a.txt",
        fixed(lambda: b"a.png 1\nb c.png 0\n# no\nd.png\n"),
        lambda p: open_list(p, name="x", spec="x", role="ood"),
    ),
    "table": Reader("a.csv", of_table(CSV), listed),
    "table, semicolons": Reader("a.csv", of_table(CSV.replace(",", ";")), listed),
    "table, json": Reader("a.jsonl", of_table(JSON_LINES), listed),
    "list, tabs": Reader("a.txt", of_table("0.bmp\ta\n1.bmp\tb\n"), listed),
    "class folders, tar": Reader("a.tar", of_album("tar"), album),
    "class folders, zip": Reader("a.zip", of_album("zip"), album),
    "archive": Reader(
        "a.zip",
        fixed(lambda: zipped(8, **{"a.png": PIXELS, "b.jpg": PIXELS}).replace(b".npy", b".png")),
        lambda p: all_of(open_archive(p, name="x", spec="x", role="ood")),
    ),
    "parquet": Reader("a.parquet", of_parquet, table),
    "arrow": Reader("a.arrow", of_arrow, saved_to_disk),
    "webdataset": Reader("a.tar", of_shard, shard),
    "hdf5": Reader("a.h5", of_hdf5, hdf5),
    "tiff": Reader("a.tif", of_image("TIFF"), decode),
    "avif": Reader("a.avif", of_image("AVIF"), decode),
    "heif": Reader("a.heic", of_image("HEIF", "pillow_heif"), decode),
    "jpeg xl": Reader("a.jxl", of_image("JXL", "pillow_jxl"), decode),
    "names of classes": Reader("a.txt", fixed(lambda: b"a\nb\n\xc3\xa4\n"), read_class_names),
    "datasets.toml": Reader(
        "datasets.toml",
        fixed(lambda: b'[fog]\npath = "/x"\n[b]\npath = "y"\nroot="z"\n'),
        read_toml,
    ),
    "scores, stored": Reader("a.npz", fixed(lambda: zipped(0, **BY_METHOD)), scores),
    "scores, deflated": Reader("a.npz", fixed(lambda: zipped(8, **BY_METHOD)), scores),
    "scores, lzma": Reader("a.npz", fixed(lambda: zipped(14, **BY_METHOD)), scores),
    "scores, pickle 2": Reader("a.pkl", fixed(lambda: pickle.dumps(openood(), 2)), scores),
    "scores, pickle 5": Reader("a.pkl", fixed(lambda: pickle.dumps(openood(), 5)), scores),
    "scores, tensors": Reader(
        "a.pkl",
        fixed(lambda: pickle.dumps({**openood(), "id_preds": torch.tensor([0, 1] * 3)}, 2)),
        scores,
    ),
    "scores, csv": Reader(
        "a.csv",
        fixed(lambda: b'dataset,score,label,prediction\nid,1,0,1\n"id",2,1,1\nsvhn,-.5,,\n'),
        scores,
    ),
    "activations": Reader(
        "a.npz",
        fixed(lambda: zipped(0, **activations())),
        lambda p: read_activations(p, progress=Silent()),
    ),
    "activations, deflated": Reader(
        "a.npz",
        fixed(lambda: zipped(8, **activations())),
        lambda p: read_activations(p, progress=Silent()),
    ),
    "checkpoint": Reader(
        "a.pt", fixed(lambda: saved(lambda f, v: torch.save(v, f), state())), read_checkpoint
    ),
    "checkpoint, old": Reader(
        "a.pth",
        fixed(
            lambda: saved(
                lambda f, v: torch.save(v, f, _use_new_zipfile_serialization=False), state()
            )
        ),
        read_checkpoint,
    ),
    "checkpoint, safetensors": Reader(
        "a.safetensors",
        fixed(lambda: safetensors.torch.save(state()["state_dict"])),
        read_checkpoint,
    ),
    "weights": Reader(
        "a.safetensors", fixed(lambda: safetensors.torch.save(state()["state_dict"])), load_weights
    ),
    "detector": Reader(
        "a.safetensors", fixed(lambda: safetensors.torch.save(state()["state_dict"])), read_detector
    ),
    "cifar": Reader("cifar-10-python.tar.gz", of_cifar, read_cifar),
    "mnist": Reader(
        "a.gz",
        fixed(lambda: gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", 2, 4, 4) + bytes(32))),
        lambda p: read_idx(p, dimensions=3),
    ),
    "svhn": Reader(
        "test_32x32.mat", fixed(mat), lambda p: all_of(open_svhn(p.parent, Store(p.parent)))
    ),
    "json": Reader("a.json", of_json, read_json),
    "arrays": Reader("a.safetensors", of_arrays, read_arrays),
    "verdicts": Reader("a.csv", of_verdicts, verdicts),
}

# Pixels that stand for labels, for a published archive, and for images in an archive.
NEVER_RIGHT = ("labels, npy", "cifar", "archive")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Flip, cut or lengthen a file in a few places."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5, 30])):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + chance.randrange(40)]
            case 4:
                changed[at:at] = changed[: chance.randrange(400)]
            case 5:
                word = chance.choice([b"\xff" * 8, bytes(8), b"99999999", b"-1", b"\n", b"{[(\"'"])
                changed[at : at + chance.choice([0, len(word)])] = word
    return bytes(changed)


def outcome(reader: Reader, path: Path) -> OodError | None:
    """Read a file; return the error of ours that it ends in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of equal names in an archive, and the like
        try:
            reader.read(path)
        except OodError as error:
            return error
    return None


def campaign(name: str, folder: Path, cases: int) -> int:
    """Read damaged files of a kind; return how many were refused."""
    reader = READERS[name]
    content = reader.content(folder)
    path = folder / reader.name
    path.write_bytes(content)
    if name not in NEVER_RIGHT:
        assert outcome(reader, path) is None
    refused = 0
    for case in range(cases):
        path.write_bytes(damaged(content, random.Random(f"{name}-{case}")))  # noqa: S311 - no secrets
        try:
            error = outcome(reader, path)
        except Exception as other:
            raise AssertionError(f"case {case} of {name}: {other!r}") from other
        if error is not None:
            refused += 1
            assert "\n" not in str(error), (name, case)
            assert path.stem in str(error) or str(path) in str(error), (name, case)
    return refused


@pytest.mark.parametrize("name", READERS)
def test_fifty_damaged_files_of_each_kind_end_in_one_line_each(tmp_path: Path, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert campaign(name, tmp_path, 50) > 3
    # In kB: nothing is allocated for what a damaged header claims.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_two_thousand_damaged_files_of_each_kind_end_in_one_line_each(
    tmp_path: Path, name: str
) -> None:
    assert campaign(name, tmp_path, 2000) > 100
