"""Images in shards: cut, picked and told apart by their pixels."""

import numpy as np
import pytest

from oodcli.images import SHARD_ROWS, ImageSet, ImageShard, digest_of, evenly_spaced


def image_set(n: int, *, rows: int = 10) -> tuple[ImageSet, np.ndarray]:
    """Make images whose every pixel is told from all others, in shards of ``rows``."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 2, 2), dtype=np.uint8)
    shards = [
        ImageShard(np.arange(at, min(at + rows, n)), lambda at=at: pixels[at : at + rows].copy())
        for at in range(0, n, rows)
    ]
    return ImageSet("set", tuple(shards), labels=np.arange(n) % 4), pixels


@pytest.mark.parametrize("rows", [1, 9, 10, 11, 24, 25, 99])
def test_the_first_images_are_a_prefix_of_all(rows: int) -> None:
    images, pixels = image_set(25)
    head = images.first(rows)
    np.testing.assert_array_equal(head.pixels(), pixels[:rows])
    assert head.labels is not None
    assert len(head.labels) == len(head) == min(rows, 25)


def test_whole_shards_of_a_prefix_keep_their_digest() -> None:
    images, _ = image_set(25)
    head = images.first(15)
    assert head.shards[0].digest == images.shards[0].digest
    assert head.shards[1].digest != images.shards[1].digest


def test_chosen_rows_come_from_wherever_they_are() -> None:
    images, pixels = image_set(3000, rows=700)
    rows = np.sort(np.random.default_rng(1).permutation(3000)[:2000])
    taken = images.take(rows)
    np.testing.assert_array_equal(taken.pixels(), pixels[rows])
    np.testing.assert_array_equal(np.concatenate([s.indices for s in taken.shards]), rows)
    assert [len(shard) for shard in taken.shards] == [SHARD_ROWS, 2000 - SHARD_ROWS]
    assert taken.labels is not None
    np.testing.assert_array_equal(taken.labels, rows % 4)


def test_rows_of_chosen_rows_keep_their_first_number() -> None:
    images, _ = image_set(100)
    twice = images.take(np.arange(50, 100)).take(np.array([0, 49]))
    assert twice.shards[0].indices.tolist() == [50, 99]


def test_equal_pixels_have_equal_digests_and_other_shapes_have_not() -> None:
    zeros = np.zeros((2, 3), np.uint8)
    assert digest_of(zeros) == digest_of(zeros.copy())
    assert digest_of(zeros) != digest_of(zeros.reshape(3, 2))
    assert digest_of(zeros) != digest_of(zeros.astype(np.int8))
    images, _ = image_set(25)
    assert images.digest == image_set(25)[0].digest
    assert images.digest != images.first(24).digest


@pytest.mark.parametrize(("total", "wanted"), [(10, 3), (10, 10), (10, 99), (50_000, 7), (1, 1)])
def test_evenly_spaced_rows_are_distinct_and_reach_over_all(total: int, wanted: int) -> None:
    rows = evenly_spaced(total, wanted)
    assert len(rows) == min(total, wanted) == len(set(rows.tolist()))
    assert rows[0] == 0
    assert total - rows[-1] <= -(-total // len(rows))
    assert (np.diff(rows) > 0).all()
