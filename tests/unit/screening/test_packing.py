"""A packed detector gives the verdicts of its run to the bit, and a file is never believed."""

import importlib.util
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oodcli
from oodcli.compute.compute import Compute
from oodcli.errors import InvalidInputError, MissingArtifactError, OodError
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.detector import Detector, detector_for
from oodcli.screening.packed import METADATA, SEAL, read_packed
from oodcli.screening.packing import load_packed, pack_detector
from oodcli.screening.thresholds import ThresholdRule
from oodcli.store.run_names import find_run
from oodcli.store.store import Store, digest_of_json
from oodcli.workflows.train import TrainRequest, train
from tests.support.cli import tree

CPU = Compute(torch.device("cpu"))
METHODS = ("msp", "featurenorm", "knn:k=3", "mds", "react", "odin", "ensemble:knn:k=2+energy")
NOISE = np.random.default_rng(3).integers(0, 256, (9, 40, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Train a tiny network once."""
    root = tmp_path_factory.mktemp("packing")
    images = tree(root / "colours", parts=("train", "val", "test"), n=10)
    store = Store(root / "store")
    train(
        store,
        TrainRequest(
            data=str(images), arch="resnet18:width=2", name="tiny", epochs=1, batch_size=8
        ),
    )
    return store


def of_run(store: Store, method: str, rule: ThresholdRule | None = None) -> Detector:
    run = OpenRun.of(store, find_run(store, "tiny"), CPU)
    return detector_for(run, method, rule or ThresholdRule())


@pytest.fixture(scope="module")
def packed(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a packed detector; tests copy it before they change it."""
    path = tmp_path_factory.mktemp("file") / "knn.safetensors"
    pack_detector(of_run(store, "knn:k=3", ThresholdRule(0.8)), path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_packed_detector_gives_the_verdicts_of_its_run(
    store: Store, tmp_path: Path, method: str
) -> None:
    own = of_run(store, method, ThresholdRule(0.75))
    wanted = own.predict(NOISE)
    pack_detector(own, tmp_path / "d")
    found = load_packed(tmp_path / "d", compute=CPU)
    got = found.predict(NOISE)
    for name in ("score", "probability", "percentile", "class_indices", "ood"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
    assert got.threshold == wanted.threshold
    assert found.origin() == own.origin()
    assert load_packed(tmp_path / "d", rule=ThresholdRule(0.5), compute=CPU).threshold == (
        ThresholdRule(0.5).on(own.id.values)
    )


def test_the_file_names_no_folder_of_the_user(store: Store, packed: Path) -> None:
    content = packed.read_bytes()
    assert str(store.root.parent).encode() not in content
    assert b"pickle" not in content


def test_a_pickle_refers_to_the_file_and_loads_it_once(packed: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(packed, tmp_path / "d"))
    detector = oodcli.load_detector(path, tpr=0.6, device="cpu")
    wanted = detector.predict(NOISE)
    raw = pickle.dumps(detector)
    assert len(raw) < 1000
    one, two = pickle.loads(raw), pickle.loads(raw)
    again = pickle.loads(pickle.dumps(one))  # still not loaded
    assert one.__dict__.keys() == again.__dict__.keys() == {"_pending"}
    np.testing.assert_array_equal(one.predict(NOISE).score, wanted.score)
    assert one.threshold == two.threshold == again.threshold == detector.threshold
    assert one.ready is two.ready is again.ready is detector.ready
    with pytest.raises(AttributeError, match="Detector has no attribute 'calibrate'"):
        _ = one.calibrate


def test_a_pickle_of_another_file_is_refused(store: Store, packed: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(packed, tmp_path / "d"))
    detector = pickle.loads(pickle.dumps(load_packed(path, compute=CPU)))
    pack_detector(of_run(store, "msp"), path)
    from oodcli.screening import packing

    packing._loaded.cache_clear()  # as in another process
    with pytest.raises(InvalidInputError, match="is not the file that it was when the detector"):
        detector.predict(NOISE)


def test_a_detector_of_a_run_is_pickled_by_reference_to_its_run(store: Store) -> None:
    detector = of_run(store, "energy", ThresholdRule(threshold=0.5))
    other = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(other.predict(NOISE).score, detector.predict(NOISE).score)
    assert other.threshold == detector.threshold
    pending = pickle.loads(pickle.dumps(of_run(store, "gen")))
    shutil.rmtree(find_run(store, "tiny").detector("gen", "float32"))
    with pytest.raises(MissingArtifactError, match="that was pickled is no longer stored in run"):
        pending.predict(NOISE)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object], *, seal: bool = True) -> None:
    """Change the description of a packed file, with a digest that fits unless ``seal`` is false."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    content = json.loads(header["__metadata__"][METADATA])
    digest = content.pop(SEAL)
    change(content)
    content[SEAL] = digest_of_json(content) if seal else digest
    header["__metadata__"][METADATA] = json.dumps(content)
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def put(*place: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Return a change of one field."""

    def change(content: dict[str, Any]) -> None:
        for name in place[:-1]:
            content = content[name]
        content[place[-1]] = value

    return change


def flipped(prefix: str) -> Callable[[Path], None]:
    """Return a change of one bit of the first array whose name begins so."""

    def change(path: Path) -> None:
        found = read_packed(path)
        start = found.places[found.names(prefix)[0]][0]
        raw = bytearray(path.read_bytes())
        raw[start] ^= 1
        path.write_bytes(raw)

    return change


def _run_code(content: dict[str, Any]) -> None:
    content["record"]["arch"] = "os:abort"


def _read_file(content: dict[str, Any]) -> None:
    content["record"]["arch"] = "timm:resnet18:checkpoint_path=/etc/passwd"


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: p.write_bytes(b""), "is not a packed detector; make one: ood detector pack"),
    (lambda p: p.write_bytes(b"PK\x03\x04" * 99), "is not a packed detector"),
    (lambda p: p.write_bytes(b"\x02" + bytes(7) + b"{}"), "is not a packed detector"),
    (lambda p: p.write_bytes(p.read_bytes()[:500]), "is incomplete"),
    (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is damaged or incomplete"),
    (lambda p: p.write_bytes(p.read_bytes() + b"0"), "is damaged or incomplete"),
    (flipped("weights/"), "the digest of weights/"),
    (flipped("method/"), "the digest of method/"),
    (flipped("id-scores"), "the digest of id-scores differs"),
    (lambda p: rewritten(p, put("threshold", "value", value=9.0), seal=False), "was edited"),
    (lambda p: rewritten(p, put("schema", value=2)), "has schema 2, not 1: ood 0.1.0 has packed"),
    (lambda p: rewritten(p, put("schema", value=2)), "update ood"),
    (lambda p: rewritten(p, put("digests", value={})), "arrays are missing"),
    (lambda p: rewritten(p, put("about", "preprocess", "size", value=[10**9, 1])), "preprocessing"),
    (lambda p: rewritten(p, put("about", "preprocess", "resize", value="x")), "is damaged"),
    (lambda p: rewritten(p, put("about", "classes", value=["blue"])), "is damaged"),
    (lambda p: rewritten(p, put("about", value=3)), "is damaged"),
    (lambda p: rewritten(p, put("record", value={"schema": 1})), "is damaged"),
    (lambda p: rewritten(p, put("record", "arch", value="nonsense")), "is damaged"),
    (lambda p: rewritten(p, put("record", "blocks", value=["1.1"])), "but its run has 1"),
    (lambda p: rewritten(p, put("method", value={"class": "os:system", "fields": {}})), "damaged"),
    (lambda p: rewritten(p, put("method", value={"tensor": "000"})), "is damaged"),
    (lambda p: rewritten(p, put("method", value=None)), "is damaged"),
    (lambda p: rewritten(p, put("method", "fields", "bank", value=1)), "cannot score"),
    (lambda p: rewritten(p, _run_code), "needs the Python code os:abort of its network"),
    (lambda p: rewritten(p, _read_file), "names a file to be read in its network"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGE)
def test_a_damaged_or_hostile_file_is_one_line(
    packed: Path, tmp_path: Path, damage: Callable[[Path], object], told: str
) -> None:
    path = Path(shutil.copy(packed, tmp_path / "d"))
    damage(path)
    with pytest.raises(OodError) as caught:
        load_packed(path, compute=CPU).predict(NOISE[:1])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nesting_without_end_is_one_line(packed: Path, tmp_path: Path) -> None:
    text = b'{"__metadata__":' + b"[" * 100_000
    (tmp_path / "d").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(OodError, match="is damaged"):
        read_packed(tmp_path / "d")


def test_a_package_that_is_not_installed_is_named(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(packed, tmp_path / "d"))

    def of_timm(content: dict[str, Any]) -> None:
        content["record"]["arch"] = "timm:resnet18"
        content["requires"]["packages"] = {"timm": "1.0.9"}

    rewritten(path, of_timm)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "timm" else find(name, *a)
    )
    with pytest.raises(MissingArtifactError) as caught:
        load_packed(path, compute=CPU)
    assert str(caught.value) == (
        f"{path} needs the package timm (version 1.0.9 when it was packed), which is not "
        'installed; pip install "oodcli[timm]"'
    )


def test_the_precision_is_that_of_fitting(packed: Path) -> None:
    with pytest.raises(InvalidInputError, match="was fitted in float32; omit --amp"):
        load_packed(packed, compute=Compute(torch.device("cpu"), "bfloat16"))


def test_a_method_of_others_cannot_be_packed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_pack.py").write_text(
        "class Mine:\n"
        "    @classmethod\n"
        "    def fit(cls, reference):\n"
        "        return cls()\n"
        "    def score(self, batch):\n"
        "        return batch.logits.amax(dim=1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    detector = of_run(store, "acme_pack:Mine")
    with pytest.raises(InvalidInputError, match="acme_pack:Mine cannot be packed"):
        pack_detector(detector, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    with pytest.raises(InvalidInputError, match="cannot be pickled, because the method cannot be"):
        pickle.dumps(detector)


def test_batches_of_other_programs_are_taken(packed: Path, tmp_path: Path) -> None:
    from PIL import Image

    detector = oodcli.load_detector(packed, device="cpu")
    wanted = detector.score(NOISE)
    files = []
    for row, pixels in enumerate(NOISE):
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        files.append((tmp_path / f"{row}.png").read_bytes())
    data = np.array(files, dtype=object)
    uneven = np.empty(2, dtype=object)
    uneven[:] = [NOISE[0], NOISE[1, :20]]
    both = np.array([wanted[0], detector.score(NOISE[1, :20])[0]])
    for batch in (
        {"image": NOISE, "label": np.arange(9)},
        {"bytes": data},
        {"content": files},
        data,
        {"img": [{"bytes": each, "path": None} for each in files]},
        {"images": [Image.fromarray(each) for each in NOISE]},
    ):
        np.testing.assert_array_equal(detector.score(batch), wanted)
    np.testing.assert_allclose(detector.score({"image": uneven}), both, rtol=2e-5)
    named = detector.predict({"bytes": data[:2], "path": np.array(["s3://a", "s3://b"])})
    assert named.names == ("s3://a", "s3://b")
    one = {"bytes": files[0], "path": "a.png"}
    assert detector.predict([one]).names == ("a.png",)
    for wrong, told in (
        ({"pixels": NOISE}, "its columns are: 'pixels'; rename them"),
        ({"image": NOISE, "bytes": data}, "its columns are: 'image', 'bytes'"),
        (np.array(files), "drops zeros at the end of files; use dtype=object"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            detector.score(wrong)  # type: ignore[arg-type]
        assert told in str(caught.value)


def test_a_screener_returns_the_rows_of_predict(packed: Path) -> None:
    screener = oodcli.Screener(packed, device="cpu")
    wanted = screener.detector.predict(NOISE)
    batch = {"image": np.array([*NOISE[:4], b"no image"], dtype=object), "id": np.arange(5)}
    found = pickle.loads(pickle.dumps(screener))(batch)
    names = [each.split()[0] for each in oodcli.Screener.SCHEMA.split(", ")]
    assert list(found) == ["id", *names]
    np.testing.assert_array_equal(found["score"][:4], wanted.score[:4])
    assert list(found["class"]) == [*wanted.classes[:4], None]
    assert list(found["verdict"]) == [*("ood" if x else "id" for x in wanted.ood[:4]), None]
    assert list(found["error"]) == [None] * 4 + ["not an image file"]
    assert list(screener(NOISE)) == names
    assert list(oodcli.Screener(screener.detector, column="id")({"id": NOISE})) == names
    with pytest.raises(InvalidInputError, match="has a column 'score', which is also a result"):
        screener({"image": NOISE, "score": np.arange(9)})
    with pytest.raises(InvalidInputError, match="has no column 'photo'; it has: 'image'"):
        oodcli.Screener(packed, column="photo", device="cpu")({"image": NOISE})
    with pytest.raises(InvalidInputError, match="device"):
        oodcli.Screener(packed, device="tpu")


_FORBIDDEN: list[str] = []


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Act as a file system that cannot be written, below the folders in ``_FORBIDDEN``."""
    if not _FORBIDDEN:
        return
    path = next((os.fsdecode(each) for each in arguments if isinstance(each, (str, bytes))), "")
    writes = event in ("os.mkdir", "os.remove", "os.rename", "os.utime", "os.chmod") or (
        event == "open"
        and isinstance(arguments[2], int)
        and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    if writes and path.startswith(tuple(_FORBIDDEN)):
        raise OSError(30, "Read-only file system", path)


sys.addaudithook(_refuse)


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Return a function that makes a folder read-only for this test."""
    yield lambda folder: _FORBIDDEN.append(str(folder))
    _FORBIDDEN.clear()


def test_a_read_only_store_suffices(
    store: Store,
    tmp_path: Path,
    read_only: Callable[[Path], None],
    ood: Callable[..., tuple[int, str, str]],
) -> None:
    of_run(store, "energy")
    images = store.root.parent / "colours" / "test"
    argv = ("predict", images, "--store", store.root, "--method", "energy")
    wanted = ood(*argv, "--format", "csv")[1]
    read_only(store.root)
    code, out, err = ood(*argv, "--format", "csv")
    assert (code, out) == (0, wanted), err
    code, _, err = ood(*argv, "--output", tmp_path / "v.csv")
    assert code == 0, err
    assert (tmp_path / "v.csv").read_text() == wanted
    code, _, err = ood(*argv[:-1], "maxlogit")
    assert code == 1
    assert (
        f"error: no fitted maxlogit is stored for run tiny, and the store {store.root} is not "
        "writable, so that it cannot be fitted now; run the command once where the store can be "
        "written\n"
    ) in err
