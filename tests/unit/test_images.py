"""Images in shards: cut, picked and told apart by their pixels."""

from collections.abc import Iterator

import numpy as np
import pytest

from oodcli.errors import CorruptArtifactError
from oodcli.images import SHARD_ROWS, Digest, ImageSet, ImageShard, digest_of, evenly_spaced


def image_set(n: int, *, rows: int = 10) -> tuple[ImageSet, np.ndarray]:
    """Make images whose every pixel is told from all others, in shards of ``rows``."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 2, 2), dtype=np.uint8)
    shards = [
        ImageShard(np.arange(at, min(at + rows, n)), lambda at=at: [pixels[at : at + rows].copy()])
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
    alone = ImageSet("set", (ImageShard(np.array([0, 2]), lambda: [pixels[[3, 25]]]),))
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


def test_a_shard_in_chunks_has_the_pixels_and_the_digest_of_the_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 2, 2), dtype=np.uint8)
    shard = ImageShard(np.arange(10), lambda: iter(np.split(pixels, [1, 4, 9])))
    np.testing.assert_array_equal(shard.load(), pixels)
    assert shard.digest == digest_of(pixels)
    whole = ImageSet("set", (shard, shard))
    np.testing.assert_array_equal(whole.pixels(), np.concatenate([pixels, pixels]))
    digest = Digest(pixels.dtype, pixels.shape)
    digest.update(pixels[:, :, :, ::-1][:, :, :, ::-1])
    assert digest.hexdigest() == digest_of(pixels)


def test_chosen_rows_of_chunks_are_complete_only_when_their_shard_has_been_checked() -> None:
    pixels = np.arange(10 * 12, dtype=np.uint8).reshape(10, 3, 2, 2)
    given = []

    def chunks() -> Iterator[np.ndarray]:
        for at in range(0, 10, 2):
            given.append(at)
            yield pixels[at : at + 2]
        raise CorruptArtifactError("not what it was")

    rows = np.array([0, 1, 3, 4])
    chosen = ImageSet("set", (ImageShard(np.arange(10), chunks),)).take(rows).shards[0].chunks()
    chosen = iter(chosen)
    np.testing.assert_array_equal(np.concatenate([next(chosen), next(chosen)]), pixels[[0, 1, 3]])
    with pytest.raises(CorruptArtifactError):
        next(chosen)
    assert given == [0, 2, 4, 6, 8]
