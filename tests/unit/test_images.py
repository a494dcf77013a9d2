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


def test_chosen_rows_name_the_shards_that_they_come_from() -> None:
    images, pixels = image_set(30)
    (shard,) = images.take(np.array([3, 8, 25])).shards
    assert [piece.shard.digest for piece in shard.pieces] == [
        images.shards[0].digest, images.shards[2].digest,
    ]  # fmt: skip
    assert [piece.rows.tolist() for piece in shard.pieces] == [[3, 8], [5]]
    np.testing.assert_array_equal(shard.load(), pixels[[3, 8, 25]])


def test_images_prepared_by_themselves_know_their_place_in_the_whole() -> None:
    images, pixels = image_set(30)
    rows = np.array([3, 8, 25])
    # The image in row 8 could not be read.
    alone = ImageSet("set", (ImageShard(np.array([0, 2]), lambda: pixels[[3, 25]]),))
    (shard,) = alone.chosen_from(rows, images).shards
    assert shard.indices.tolist() == [3, 25]
    assert [piece.rows.tolist() for piece in shard.pieces] == [[3], [5]]
    (shard,) = alone.chosen_from(rows, None).shards
    assert (shard.indices.tolist(), shard.pieces) == ([3, 25], ())
    without = ImageSet("set", images.shards[:2])
    assert alone.chosen_from(rows, without).shards[0].pieces == ()


def test_equal_pixels_have_equal_digests_and_other_shapes_have_not() -> None:
    zeros = np.zeros((2, 3), np.uint8)
    assert digest_of(zeros) == digest_of(zeros.copy())
    assert digest_of(zeros) != digest_of(zeros.reshape(3, 2))
    assert digest_of(zeros) != digest_of(zeros.astype(np.int8))
    images, _ = image_set(25)
    assert images.digest == image_set(25)[0].digest
    assert images.digest != images.take(np.arange(24)).digest


@pytest.mark.parametrize(("total", "wanted"), [(10, 3), (10, 10), (10, 99), (50_000, 7), (1, 1)])
def test_evenly_spaced_rows_are_distinct_and_reach_over_all(total: int, wanted: int) -> None:
    rows = evenly_spaced(total, wanted)
    assert len(rows) == min(total, wanted) == len(set(rows.tolist()))
    assert rows[0] == 0
    assert total - rows[-1] <= -(-total // len(rows))
    assert (np.diff(rows) > 0).all()
