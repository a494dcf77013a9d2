"""How the images of a data set are divided."""

from dataclasses import replace

import numpy as np
import pytest

from oodcli.data.dataset import Dataset, stratified, take
from oodcli.data.formats.arrays import ArraySource
from oodcli.errors import InvalidInputError
from oodcli.images import Part


def part(count, classes=None, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    labels = None if classes is None else rng.integers(0, classes, count)
    return Part(ArraySource(images), labels)


def dataset(**parts):
    return Dataset("toy", parts, (), "here", "toy")


def test_stratified_takes_every_class_in_proportion():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    rows = stratified(np.random.default_rng(0).permutation(labels), 16, seed=0)
    assert len(rows) == 16
    assert np.all(np.diff(rows) > 0)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert np.bincount(shuffled[rows]).tolist() == [10, 5, 1]


def test_stratified_depends_on_the_seed_alone():
    labels = np.arange(1000) % 7
    np.testing.assert_array_equal(stratified(labels, 99, seed=3), stratified(labels, 99, seed=3))
    assert not np.array_equal(stratified(labels, 99, seed=3), stratified(labels, 99, seed=4))


def test_stratified_chooses_each_image_of_a_class_alike():
    labels = np.zeros(20, dtype=np.int64)
    chosen = np.concatenate([stratified(labels, 5, seed=seed) for seed in range(400)])
    counts = np.bincount(chosen, minlength=20)  # expected 100 each, spread about 9
    assert counts.min() > 60
    assert counts.max() < 140


def test_calibration_takes_the_val_part_where_test_is_apart():
    name, rows = dataset(train=part(50, 2), val=part(7, 2), test=part(9, 2)).calibration()
    assert name == "val"
    assert rows.tolist() == list(range(7))


def test_calibration_takes_a_tenth_of_train_where_val_is_tested_on():
    name, rows = dataset(train=part(200, 4), val=part(20, 4)).calibration()
    assert name == "train"
    assert len(rows) == 20


def test_calibration_takes_5000_images_at_most():
    name, rows = dataset(train=part(60_000, 10), test=part(1, 1)).calibration()
    assert name == "train"
    assert len(rows) == 5000
    assert len(dataset(train=part(100, 2), test=part(1, 1)).calibration(4)[1]) == 4


def test_calibration_is_fixed():
    first = dataset(train=part(500, 5), test=part(1, 1)).calibration()[1]
    np.testing.assert_array_equal(
        first, dataset(train=part(500, 5), test=part(1, 1)).calibration()[1]
    )


def test_calibration_never_uses_test_images():
    with pytest.raises(InvalidInputError) as caught:
        dataset(test=part(10, 2)).calibration()
    assert str(caught.value) == (
        "data set 'toy' has no train or val part to calibrate on; test images are never used"
    )


def test_id_test_is_the_test_part_else_val():
    parts = {"train": part(5), "val": part(3), "test": part(2)}
    assert dataset(**parts).id_test is parts["test"]
    del parts["test"]
    assert dataset(**parts).id_test is parts["val"]
    assert dataset(**parts).test_name == "val"
    del parts["val"]
    with pytest.raises(InvalidInputError, match="'toy' has no test part; add one to be scored"):
        _ = dataset(**parts).id_test


def test_ood_part_is_the_test_part_else_the_only_one():
    parts = {"train": part(5), "test": part(2)}
    assert dataset(**parts).ood_part is parts["test"]
    assert dataset(train=parts["train"]).ood_part is parts["train"]


def test_holding_out_divides_train_without_loss():
    whole = dataset(train=part(100, 4), test=part(3, 4))
    held = whole.holding_out(0.2)
    assert {name: len(content) for name, content in held.parts.items()} == {
        "train": 80,
        "val": 20,
        "test": 3,
    }
    pixels = [
        image.tobytes()
        for name in ("train", "val")
        for image in held.parts[name].source.read(0, len(held.parts[name]))
    ]
    assert sorted(pixels) == sorted(i.tobytes() for i in whole.parts["train"].source.images)
    assert (
        held.parts["val"].source.fingerprint
        == whole.holding_out(0.2).parts["val"].source.fingerprint
    )
    assert held.parts["val"].source.fingerprint != held.parts["train"].source.fingerprint


def test_holding_out_leaves_a_val_part_alone_that_is_not_what_is_tested_on():
    whole = dataset(train=part(10, 2), val=part(3, 2), test=part(3, 2))
    assert whole.holding_out(0.5) is whole
    assert not whole.takes_val
    assert dataset(train=part(10, 2)).holding_out(0).parts.keys() == {"train"}


def test_a_val_part_that_is_tested_on_is_the_test_part_of_what_is_held_out():
    whole = dataset(train=part(100, 4), val=part(12, 4))
    held = whole.holding_out(0.25)
    assert {name: len(content) for name, content in held.parts.items()} == {
        "train": 75,
        "val": 25,
        "test": 12,
    }
    assert held.parts["test"] is whole.parts["val"]
    assert held.id_test is whole.id_test
    assert held.calibration()[0] == "val"


def whole(n: int, classes: int = 4) -> Dataset:
    return replace(dataset(test=part(n, classes)), is_whole=True)


def test_a_whole_is_divided_by_class_and_always_alike():
    divided = whole(50, 4).with_test(0.2)
    assert {name: len(content) for name, content in divided.parts.items()} == {
        "train": 40,
        "test": 10,
    }
    wanted = 0.2 * np.bincount(whole(50, 4).parts["test"].labels)
    assert np.abs(np.bincount(divided.parts["test"].labels) - wanted).max() < 1
    pixels = [
        image.tobytes()
        for content in divided.parts.values()
        for image in content.source.read(0, len(content))
    ]
    assert sorted(pixels) == sorted(i.tobytes() for i in whole(50).parts["test"].source.images)
    again = whole(50, 4).with_test(0.2)
    assert again.division == divided.division
    assert again.parts["test"].source.fingerprint == divided.parts["test"].source.fingerprint
    assert not divided.takes_test
    assert divided.with_test(0.5) is divided


def test_what_is_left_of_a_whole_can_be_held_out_from():
    divided = whole(50, 2).with_test(0.2).holding_out(0.25)
    assert {name: len(content) for name, content in divided.parts.items()} == {
        "train": 30,
        "val": 10,
        "test": 10,
    }
    assert divided.division != whole(50, 2).with_test(0.2).division


@pytest.mark.parametrize("other", [whole(51, 2), whole(50, 5)])
def test_a_division_of_other_images_or_by_another_share_is_another(other):
    divided = whole(50, 2).with_test(0.2)
    assert divided.division
    assert other.with_test(0.2).division != divided.division
    assert whole(50, 2).with_test(0.3).division != divided.division


def test_training_images_alone_are_divided_and_other_parts_are_not():
    assert dataset(train=part(10, 2)).with_test(0.2).parts.keys() == {"train", "test"}
    for divided in (dataset(test=part(10, 2)), dataset(train=part(10, 2), val=part(5, 2))):
        assert divided.with_test(0.2) is divided


@pytest.mark.parametrize(("share", "message"), [
    (1.0, "a test share of 1.0 is out of range; give 0 or more, below 1"),
    (0.01, "a test share of 0.01 of 10 images leaves a part without images; give another share"),
])  # fmt: skip
def test_a_test_share_that_cannot_be(share, message):
    with pytest.raises(InvalidInputError) as caught:
        whole(10, 2).with_test(share)
    assert str(caught.value) == message


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_holding_out_refuses_a_share_out_of_range(fraction):
    with pytest.raises(InvalidInputError, match=r"share of .* is out of range; give 0 or more"):
        dataset(train=part(10, 2)).holding_out(fraction)


def test_holding_out_refuses_an_empty_part():
    with pytest.raises(InvalidInputError, match="of 10 train images leaves a part without images"):
        dataset(train=part(10, 2)).holding_out(0.01)


def test_holding_out_needs_a_train_part():
    with pytest.raises(InvalidInputError, match="has no train part to hold out from"):
        dataset(test=part(10, 2)).holding_out(0.1)


def test_taken_rows_read_like_the_rows_they_are():
    whole = part(30, 3)
    rows = np.array([2, 3, 11, 29])
    chosen = take(whole, rows)
    np.testing.assert_array_equal(chosen.labels, whole.labels[rows])
    np.testing.assert_array_equal(
        np.stack(list(chosen.source.read(1, 4))), whole.source.images[rows[1:]]
    )
    assert list(chosen.source.read(2, 2)) == []
