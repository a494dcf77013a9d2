"""Images with the same pixels, counted from the digests of decoded images."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from oodcli.data import Dataset, open_dataset, prepare
from oodcli.data.formats.arrays import ArraySource
from oodcli.data.run_data import RunData
from oodcli.images import ImageSet, Part
from oodcli.scoring.duplicates import duplicates
from oodcli.store.preprocess import Preprocess
from oodcli.store.runs import Job
from oodcli.store.store import Store

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


def part(rows: list[int], labels: list[int] | None = None) -> Part:
    return Part(ArraySource(PIXELS[rows]), None if labels is None else np.array(labels))


def prepared(images: Part, store: Store, name: str) -> ImageSet:
    return prepare(images, store, name=name, size=(8, 8))


def run_data(
    store: Store, train: Part, test: Part, outliers: dict[str, Any] | None = None
) -> RunData:
    dataset = Dataset("pets", {"train": train, "test": test}, ("cat", "dog"), "here", "pets")
    preprocess = Preprocess(size=(8, 8), mean=(0.5,), std=(0.5,))
    job = Job("pets", "resnet18", preprocess=preprocess, outliers=outliers)
    record: Any = SimpleNamespace(preprocess=preprocess, job=job)
    return RunData(store, dataset, record, skip_unreadable=False, progress=cast("Any", None))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_images_are_counted_that_stand_twice_or_in_another_set(store: Store) -> None:
    train = part([0, 1, 2, 3, 4, 0], [0, 0, 0, 1, 1, 1])
    tested = part([10, 11, 10, 2, 3, 11], [0, 1, 1, 0, 1, 1])
    data = run_data(store, train, tested)
    test = prepared(tested, store, "pets")
    odd = prepared(part([20, 20, 20, 11, 0]), store, "odd")
    clean = prepared(part([30, 31]), store, "clean")
    # Training images that were not decoded before are not decoded for this.
    first = duplicates(data, test, (odd, clean))
    assert first["pets"] == {"itself": 2, "labels": 1}
    prepared(train, store, "train")
    assert duplicates(data, test, (odd, clean)) == {
        "pets": {"itself": 2, "labels": 1, "train": 2, "train_itself": 1, "train_labels": 1},
        "odd": {"itself": 2, "test": 1},
        "clean": {},
    }


def test_images_are_counted_that_the_run_was_trained_with_as_outliers(store, tmp_path) -> None:
    np.savez(tmp_path / "out.npz", images=PIXELS[20:26])
    source = f"{tmp_path}/out.npz"
    outliers = {"source": source, "name": "out", "part": "test", "images": 6, "digest": "d"}
    train, tested = part([0, 1], [0, 1]), part([2, 3, 22], [0, 1, 0])
    data = run_data(store, train, tested, outliers)
    test = prepared(tested, store, "pets")
    odd = prepared(part([25, 24, 30]), store, "odd")
    assert duplicates(data, test, (odd,)) == {"pets": {}, "odd": {}}  # not decoded yet
    prepare(open_dataset(source, store, role="ood").ood_part, store, name="out", size=(8, 8))
    assert duplicates(data, test, (odd,)) == {"pets": {"outliers": 1}, "odd": {"outliers": 2}}
    made = {"source": "jigsaw", "name": "jigsaw", "made": True}
    assert duplicates(run_data(store, train, tested, made), test, (odd,))["odd"] == {}
    gone = run_data(store, train, tested, {**outliers, "source": f"{tmp_path}/gone.npz"})
    assert duplicates(gone, test, (odd,))["odd"] == {}


def test_chosen_images_have_the_digests_of_all(store: Store) -> None:
    whole = prepared(part([5, 6, 7, 8]), store, "whole")
    digests = whole.image_digests()
    assert digests is not None
    assert len(set(digests.tolist())) == 4
    rows: NDArray[np.int64] = np.array([1, 3])
    chosen = whole.take(rows).image_digests()
    assert chosen is not None
    assert chosen.tolist() == digests[rows].tolist()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damaged_digests_count_nothing(store: Store, damage: str) -> None:
    tested = part([10, 10], [0, 0])
    prepared(tested, store, "pets")
    (path,) = store.images.glob("*/digests.bin")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(16))
    assert duplicates(run_data(store, tested, tested), prepared(tested, store, "pets"), ()) == {}
