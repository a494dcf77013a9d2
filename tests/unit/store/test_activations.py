"""Keys, file names and lookups of stored activations, without torch and without a network."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from oodcli.data.views import View
from oodcli.errors import CorruptArtifactError
from oodcli.images import ImageSet, ImageShard, digest_of
from oodcli.store.activations import ActivationFolder, ArrayFolder
from oodcli.store.store import digest_of_bytes, digest_of_json


def stored(place: ArrayFolder, key: str, values: list[float]) -> Path:
    """Store one array under a key and return its file."""
    place.write(key, save({"x": np.array(values, dtype=np.float32)}))
    return place.stored()[key]


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def folder_at(
    path: Path, view: View | None = None, *, norms_only: bool = False
) -> ActivationFolder:
    return ActivationFolder(path, {"view": (view or View()).key()}, norms_only)


@pytest.fixture
def images() -> ImageSet:
    """Nine images in shards of 4, 4 and 1."""
    pixels = np.arange(9 * 12, dtype=np.uint8).reshape(9, 3, 2, 2)
    cuts = (slice(0, 4), slice(4, 8), slice(8, 9))
    return ImageSet(
        "set", [ImageShard(np.arange(9)[cut], lambda cut=cut: [pixels[cut]]) for cut in cuts]
    )


def test_a_file_is_named_by_its_key_and_its_content(tmp_path: Path) -> None:
    place = ArrayFolder(tmp_path / "a")
    assert place.stored() == {}
    path = stored(place, "k", [1, 2])
    assert path == tmp_path / "a" / f"k.{digest_of_bytes(path.read_bytes())}.safetensors"
    assert place.checked("k") == path
    np.testing.assert_array_equal(place.arrays("k")["x"], [1, 2])
    (tmp_path / "a" / "other.txt").touch()
    assert place.stored() == {"k": path}
    place.remove("k")
    place.remove("k")
    assert place.stored() == {}
    for read in (place.checked, place.arrays):
        with pytest.raises(FileNotFoundError):
            read("k")


def test_what_was_not_written_is_not_read_but_what_was_found_whole_is_not_checked_again(
    tmp_path: Path,
) -> None:
    place = ArrayFolder(tmp_path)
    known, other = stored(place, "known", [1]), stored(place, "other", [2])
    place.checked("known")
    for path in (known, other):
        damage(path)
    assert place.checked("known") == known
    with pytest.raises(CorruptArtifactError, match="is damaged; remove it"):
        place.checked("other")
    place.remove("known")
    assert place.verified == set()


def test_the_rows_of_images_are_part_of_the_key_where_a_view_depends_on_them(
    tmp_path: Path, images: ImageSet
) -> None:
    shard = images.shards[0]
    assert folder_at(tmp_path).shard_key(shard) == shard.digest
    assert folder_at(tmp_path, View("jigsaw")).shard_key(shard) == digest_of_json(
        [shard.digest, digest_of(shard.indices)]
    )


def test_what_is_missing_is_named_shard_by_shard(tmp_path: Path, images: ImageSet) -> None:
    folder = folder_at(tmp_path)
    first, second, third = images.shards
    stored(folder.places[0], first.digest, [0] * 4)
    stored(folder.places[0], second.digest, [0] * 4)
    stored(folder.probe_arrays("p"), second.digest, [0] * 4)
    found = folder.missing(images.shards, ["p"])
    assert [(each.shard, each.core, each.probes) for each in found] == [
        (first, False, ("p",)),
        (third, True, ("p",)),
    ]
    assert [each.shard for each in folder.missing(images.shards)] == [third]
    # Images of stored shards are stored.
    assert folder.missing(images.take(np.array([0, 3, 5])).shards) == []
    assert len(folder.missing(images.take(np.array([0, 8])).shards)) == 1


def test_whole_activations_stand_in_for_block_norms_but_not_the_other_way_round(
    tmp_path: Path, images: ImageSet
) -> None:
    alone, every = folder_at(tmp_path, norms_only=True), folder_at(tmp_path)
    first, second, third = images.shards
    stored(alone.places[0], first.digest, [0] * 4)
    stored(every.places[0], second.digest, [0] * 4)
    assert [each.shard for each in alone.missing(images.shards)] == [third]
    assert [each.shard for each in every.missing(images.shards)] == [first, third]
    assert (tmp_path / "norms").is_dir()


def test_rows_are_found_in_the_shards_that_images_come_from(
    tmp_path: Path, images: ImageSet
) -> None:
    folder = folder_at(tmp_path)
    for shard, values in zip(images.shards, ([0, 1, 2, 3], [4, 5, 6, 7], [8]), strict=True):
        stored(folder.places[0], shard.digest, values)
    some = images.take(np.array([1, 2, 6, 8]))
    again = some.take(np.array([0, 2, 3]))  # images of images of shards
    for chosen, wanted in ((images, [0, 1, 2, 3]), (some, [1, 2, 6, 8]), (again, [1, 6, 8])):
        found = folder.rows_of(chosen.shards[0], folder.places[0].arrays, np.concatenate)
        np.testing.assert_array_equal(found["x"], wanted)
    folder.places[0].remove(images.shards[2].digest)
    with pytest.raises(FileNotFoundError):
        folder.rows_of(again.shards[0], folder.places[0].arrays, np.concatenate)


def test_to_forget_images_removes_only_what_is_damaged_of_where_they_come_from(
    tmp_path: Path, images: ImageSet
) -> None:
    folder = folder_at(tmp_path)
    files = [stored(folder.places[0], shard.digest, [0]) for shard in images.shards]
    observed = [stored(folder.probe_arrays("p"), shard.digest, [0]) for shard in images.shards]
    damage(files[1])
    damage(observed[2])
    folder.remove(images.take(np.array([1, 6, 8])).take(np.array([0, 1, 2])).shards[0], ["p"])
    assert [path.exists() for path in files] == [True, False, True]
    assert [path.exists() for path in observed] == [True, True, False]
    folder.remove(images.shards[0])
    assert not files[0].exists()
    assert observed[0].exists()
