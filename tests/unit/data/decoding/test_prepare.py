"""Images are decoded and resized once, and what is stored is checked."""

import errno
import json
import os
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from oodcli.data import open_dataset, places_of, prepare
from oodcli.data.decoding.files import FileSource
from oodcli.data.decoding.kept import KeptPixels
from oodcli.data.decoding.prepare import prepare_some
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.formats.arrays import ArraySource
from oodcli.errors import CorruptArtifactError, InvalidInputError, UnreadableImageError
from oodcli.images import SHARD_ROWS, ImageSet, ImageShard, Part, digest_of, image_digest
from oodcli.resizing import FILTERS

ROWS = 2 * SHARD_ROWS + 300


class Counting:
    """A source that counts what is read, and may break off."""

    def __init__(self, images, breaks_at=None):
        self.source = ArraySource(images)
        self.breaks_at = breaks_at
        self.read_rows = []

    @property
    def fingerprint(self):
        return self.source.fingerprint

    def __len__(self):
        return len(self.source)

    def read(self, start, stop, /):
        for row, image in enumerate(self.source.read(start, stop), start=start):
            if row == self.breaks_at:
                raise KeyboardInterrupt
            self.read_rows.append(row)
            yield image


@pytest.fixture
def images(random_images):
    return random_images(ROWS, 8, 8, 3)


@pytest.fixture
def source(images):
    return Counting(images)


@pytest.fixture
def prepared(store, recorder):
    """Return a function that prepares a source at 8 x 8 pixels."""

    def make(source, *, labels=None, **options):
        return prepare(
            Part(source, labels), store, name="toy", size=(8, 8), progress=recorder, **options
        )

    return make


def shard_files(store):
    return sorted(store.images.glob("*/*.npy"))


def test_pixels_are_channels_first_in_shards(prepared, source, images, recorder):
    labels = np.arange(ROWS)
    prepared_images = prepared(source, labels=labels)
    assert [len(shard) for shard in prepared_images.shards] == [SHARD_ROWS, SHARD_ROWS, 300]
    np.testing.assert_array_equal(prepared_images.pixels(), images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(prepared_images.labels, labels)
    np.testing.assert_array_equal(
        np.concatenate([shard.indices for shard in prepared_images.shards]), np.arange(ROWS)
    )
    assert recorder.tasks == [("reading toy", ROWS, "images")]
    assert recorder.advanced == ROWS


def test_second_time_reads_nothing(prepared, source, images, recorder):
    first = prepared(source)
    again = Counting(images)
    second = prepared(again)
    assert again.read_rows == []
    assert len(recorder.tasks) == 1
    assert [s.known_digest for s in second.shards] == [s.known_digest for s in first.shards]
    np.testing.assert_array_equal(second.pixels(), first.pixels())
    assert again.read_rows == []


def test_two_at_once_read_the_images_once(images, store):
    sources = [Counting(images), Counting(images)]

    def work(source):
        return prepare(Part(source), store, name="toy", size=(8, 8)).digest

    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(work, sources))
    assert digests[0] == digests[1]
    assert sum(len(source.read_rows) for source in sources) == ROWS


def test_digests_are_those_of_the_pixels(prepared, source):
    for shard in prepared(source).shards:
        assert type(shard)(shard.indices, shard.chunks).digest == shard.known_digest


def test_resumes_at_the_first_missing_shard(prepared, source, images, recorder):
    with pytest.raises(KeyboardInterrupt):
        prepared(Counting(images, breaks_at=SHARD_ROWS + 700))
    prepared_images = prepared(source)
    assert source.read_rows == list(range(SHARD_ROWS, ROWS))
    assert recorder.advanced == ROWS
    np.testing.assert_array_equal(prepared_images.pixels(), images.transpose(0, 3, 1, 2))
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    digests = [int.from_bytes(image_digest(plane), "little") for plane in planes]
    assert prepared_images.image_digests().tolist() == digests


def test_resumes_before_a_damaged_record(prepared, source, images, store):
    with pytest.raises(KeyboardInterrupt):
        prepared(Counting(images, breaks_at=2 * SHARD_ROWS + 1))
    (record,) = store.images.glob("*/00001.json")
    record.write_text("{}")
    prepared(source)
    assert source.read_rows[0] == SHARD_ROWS


def test_nothing_but_pixels_and_manifest_stays_behind(prepared, source, images, store):
    with pytest.raises(KeyboardInterrupt):
        prepared(Counting(images, breaks_at=SHARD_ROWS + 700))
    (folder,) = store.images.iterdir()
    (folder / ".ood-tmp-123").touch()
    prepared(source)
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000.npy", "00001.npy", "00002.npy", "digests.bin", "manifest.json",
    ]  # fmt: skip


def test_manifest_says_what_is_there(prepared, source, store):
    prepared_images = prepared(source)
    (path,) = store.images.glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    assert manifest["key"] == {
        "source": source.fingerprint,
        "size": [8, 8],
        "resize": "bilinear",
        "schema": 3,
    }
    assert (manifest["name"], manifest["rows"], manifest["stored"]) == ("toy", ROWS, True)
    assert manifest["shards"] == [
        {"digest": shard.digest, "skipped": []} for shard in prepared_images.shards
    ]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove", "text", "zip", "other"])
def test_damaged_shard_is_made_again(prepared, images, store, recorder, damage):
    source = Counting(images)
    prepared_images = prepared(source)
    path = shard_files(store)[1]
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:9000] + bytes([content[9000] ^ 1]) + content[9001:])
    elif damage == "cut":
        path.write_bytes(content[:5000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "remove":
        path.unlink()
    elif damage == "text":
        path.write_text("hello")
    elif damage == "zip":
        with path.open("wb") as file:
            np.savez(file, a=np.zeros(3))
    else:
        path.write_bytes(shard_files(store)[2].read_bytes())
    source.read_rows.clear()
    pixels = prepared_images.shards[1].load()
    np.testing.assert_array_equal(pixels, images[SHARD_ROWS : 2 * SHARD_ROWS].transpose(0, 3, 1, 2))
    assert source.read_rows == list(range(SHARD_ROWS, 2 * SHARD_ROWS))
    assert recorder.notes == [
        f"stored images of toy are missing or damaged ({path}); reading them again"
    ]
    assert path.read_bytes() == content
    prepared_images.shards[1].load()
    assert len(recorder.notes) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"shards": [{}], "key": 1}', "\x00"])
def test_damaged_manifest_is_made_again(prepared, source, store, recorder, content):
    digest = prepared(source).digest
    (path,) = store.images.glob("*/manifest.json")
    path.write_text(content)
    assert prepared(source).digest == digest
    assert recorder.notes == ["the stored images of toy are damaged; reading them again"]
    assert json.loads(path.read_text())["rows"] == ROWS


def test_images_that_changed_unseen_do_not_pass_for_the_old_ones(prepared, source, images, store):
    """Results are stored under digests; other pixels under an old digest would falsify them."""
    prepared_images = prepared(source)
    shard_files(store)[0].unlink()
    images[5] ^= 1  # the fingerprint was taken before
    with pytest.raises(CorruptArtifactError) as caught:
        prepared_images.shards[0].load()
    assert str(caught.value) == (
        f"images 0 to {SHARD_ROWS - 1} of toy have changed since they were read; run the same "
        "command again"
    )
    np.testing.assert_array_equal(
        prepared(source).shards[0].load(), images[:SHARD_ROWS].transpose(0, 3, 1, 2)
    )


def test_too_many_pixels_are_not_stored(prepared, source, images, store):
    expected = prepared(Counting(images.copy())).digest
    for path in store.images.rglob("*"):
        if path.is_file():
            path.unlink()
    prepared_images = prepared(source, max_pixels_bytes=ROWS * 3 * 64 - 1)
    assert shard_files(store) == []
    assert prepared_images.digest == expected
    source.read_rows.clear()
    np.testing.assert_array_equal(
        prepared_images.shards[2].load(), images[2 * SHARD_ROWS :].transpose(0, 3, 1, 2)
    )
    assert source.read_rows == list(range(2 * SHARD_ROWS, ROWS))
    assert prepared(source).digest == expected


def test_pixels_that_are_not_stored_are_kept_for_further_passes(
    prepared, source, images, store, monkeypatch
):
    expected = images.transpose(0, 3, 1, 2)
    kept = KeptPixels()
    of_first_pass = prepared(source, max_pixels_bytes=0, kept=kept)
    assert sorted(source.read_rows) == list(range(ROWS))
    source.read_rows.clear()
    for _ in range(2):
        np.testing.assert_array_equal(of_first_pass.pixels(), expected)
    np.testing.assert_array_equal(prepared(source, kept=kept).shards[2].load(), expected[-300:])
    assert source.read_rows == []
    # What was decoded before is kept when it is decoded again, and not if that stops early.
    again = prepared(source, kept=KeptPixels())
    monkeypatch.setattr("oodcli.images.CHUNK_BYTES", 3 * 64 * 100)
    next(iter(again.shards[1].chunks()))
    source.read_rows.clear()
    for _ in range(2):
        np.testing.assert_array_equal(again.shards[1].load(), expected[SHARD_ROWS : 2 * SHARD_ROWS])
    assert source.read_rows == list(range(SHARD_ROWS, 2 * SHARD_ROWS))
    assert not list(store.images.rglob("*.npy"))
    assert len(list(store.images.rglob("*"))) == 3  # a folder with a manifest and digests


def test_kept_pixels_of_a_full_disk_are_decoded_again(prepared, source, images, monkeypatch):
    expected = images.transpose(0, 3, 1, 2)
    again = prepared(source, max_pixels_bytes=0, kept=KeptPixels())
    write = os.pwrite

    def full(file, content, at):
        if at >= SHARD_ROWS * 3 * 64:
            raise OSError(errno.ENOSPC, "full")
        return write(file, content, at)

    monkeypatch.setattr("os.pwrite", full)
    again = prepared(source, kept=KeptPixels())
    for _ in range(2):
        source.read_rows.clear()
        np.testing.assert_array_equal(again.pixels(), expected)
    assert source.read_rows == list(range(SHARD_ROWS, ROWS))


def test_images_that_changed_do_not_pass_for_kept_ones(prepared, source, images):
    prepared(source, max_pixels_bytes=0)
    images[5] ^= 1
    changed = prepared(source, kept=KeptPixels())
    for _ in range(2):
        with pytest.raises(CorruptArtifactError, match=r"images 0 to \d+ of toy have changed"):
            changed.shards[0].load()


def test_sizes_and_sources_are_kept_apart(store, images):
    small = Part(ArraySource(images[:3]))
    digests = {
        prepare(small, store, name="a", size=(8, 8)).digest,
        prepare(small, store, name="a", size=(8, 9)).digest,
        prepare(Part(ArraySource(images[:4])), store, name="a", size=(8, 8)).digest,
    }
    assert len(digests) == len(list(store.images.iterdir())) == 3


def test_resizes_as_pillow_does(store, random_images):
    images = random_images(3, 50, 41, 3)
    pixels = prepare(Part(ArraySource(images)), store, name="a", size=(16, 24)).pixels()
    assert pixels.shape == (3, 3, 16, 24)
    for image, resized in zip(images, pixels, strict=True):
        expected = Image.fromarray(image).resize((24, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resized.transpose(1, 2, 0), np.asarray(expected))


def test_folder_and_npz_of_equal_pixels_have_equal_digests(
    tmp_path, store, random_images, write_images
):
    images = random_images(9, 5, 5, 3)
    write_images(tmp_path / "folder", images)
    np.savez_compressed(tmp_path / "file.npz", images=images)
    digests = {
        prepare(
            open_dataset(str(tmp_path / name), store, role="ood").ood_part, store, name=name
        ).digest
        for name in ("folder", "file.npz")
    }
    assert len(digests) == 1


@pytest.fixture
def files(tmp_path, random_images, write_images):
    """Return a source of ten files of which the third and the last cannot be read."""
    paths = write_images(tmp_path / "files", random_images(10, 8, 8, 3))
    paths[2].write_bytes(b"no image")
    paths[9].write_bytes(b"")
    return FileSource(tmp_path / "files", [path.name for path in paths])


def test_unreadable_image_stops_and_is_named(prepared, files):
    for _ in range(2):
        with pytest.raises(UnreadableImageError) as caught:
            prepared(files)
        assert caught.value.where == str(files.root / "00002.png")
        assert caught.value.reason == "not an image file"


def test_unreadable_images_are_skipped_on_request(prepared, files, random_images):
    prepared_images = prepared(files, labels=np.arange(10) * 10, skip_unreadable=True)
    kept = [0, 1, 3, 4, 5, 6, 7, 8]
    assert len(prepared_images) == 8
    assert prepared_images.labels.tolist() == [row * 10 for row in kept]
    assert prepared_images.shards[0].indices.tolist() == kept
    assert list(prepared_images.skipped) == [
        str(files.root / "00002.png"),
        str(files.root / "00009.png"),
    ]
    np.testing.assert_array_equal(
        prepared_images.pixels(), random_images(10, 8, 8, 3)[kept].transpose(0, 3, 1, 2)
    )


def test_images_skipped_once_are_not_passed_over_without_request(prepared, files):
    first = prepared(files, skip_unreadable=True)
    with pytest.raises(UnreadableImageError, match=r"00002\.png: not an image file"):
        prepared(files)
    assert prepared(files, skip_unreadable=True).digest == first.digest


def test_damaged_shard_with_images_skipped_is_made_again(prepared, files, store, recorder):
    prepared_images = prepared(files, skip_unreadable=True)
    before = prepared_images.pixels()
    shard_files(store)[0].unlink()
    np.testing.assert_array_equal(prepared_images.pixels(), before)
    assert len(recorder.notes) == 1


def test_shard_without_a_readable_image_is_passed_over(
    prepared, tmp_path, random_images, write_images
):
    paths = write_images(tmp_path / "many", random_images(SHARD_ROWS + 2, 2, 2, 3))
    names = [path.name for path in paths]
    names[:SHARD_ROWS] = ["gone.png"] * SHARD_ROWS
    prepared_images = prepared(FileSource(tmp_path / "many", names), skip_unreadable=True)
    assert [shard.indices.tolist() for shard in prepared_images.shards] == [
        [SHARD_ROWS, SHARD_ROWS + 1]
    ]


def test_no_readable_image_at_all_is_an_error(prepared, tmp_path):
    source = FileSource(tmp_path, ["gone.png", "lost.png"])
    for _ in range(2):
        with pytest.raises(InvalidInputError) as caught:
            prepared(source, skip_unreadable=True)
        assert str(caught.value) == (
            "none of the 2 images of toy can be read; the first is "
            f"{tmp_path / 'gone.png'}: the file no longer exists"
        )


def test_places_of_rows_follow_what_was_skipped(prepared, files):
    prepared_images = prepared(files, skip_unreadable=True)
    assert places_of(prepared_images, np.array([0, 2, 3, 8, 9])).tolist() == [0, 2, 7]


OF_PILLOW = [name for name in FILTERS if name != "bicubic-torchvision"]
SIZES = [(28, 28), (32, 32), (5, 90), (640, 301), (33, 32), (300, 300), (97, 613), (64, 64)]


@pytest.fixture(scope="module")
def photographs():
    """Return the photographs that scikit-learn brings, as they are and twice as large."""
    images = [Image.fromarray(image) for image in load_sample_images().images]
    larger = [each.resize((2 * each.width, 2 * each.height)) for each in images]
    return [np.asarray(each) for each in (*images, *larger)]


def by_torchvision(size, side, filter_):
    """Return how torchvision prepares an image of Pillow; ``exact`` without a side."""
    how = transforms.InterpolationMode(filter_)
    if side is None:
        return transforms.Resize((size, size), how)
    return transforms.Compose([transforms.Resize(side, how), transforms.CenterCrop(size)])


@pytest.mark.parametrize("filter_", OF_PILLOW)
@pytest.mark.parametrize(
    ("size", "resize"),
    [
        (32, "exact"),
        (224, "exact"),
        (32, "shorter-crop"),
        (32, "shorter-crop:40"),
        (224, "shorter-crop:232"),
        (224, "shorter-crop:256"),
    ],
)
def test_pixels_are_those_of_torchvision(random_images, photographs, size, resize, filter_):
    side = int(resize.partition(":")[2] or size) if resize != "exact" else None
    wanted = by_torchvision(size, side, filter_)
    resizing = Resizing((size, size), f"{resize}:{filter_}")
    for image in (*(random_images(*each, 3) for each in SIZES), *photographs):
        np.testing.assert_array_equal(
            resizing.apply(image), np.asarray(wanted(Image.fromarray(image)))
        )


@pytest.mark.parametrize("filter_", OF_PILLOW)
def test_pixels_of_imagenet_photographs_are_those_of_torchvision(shared, filter_):
    wanted = by_torchvision(224, 232, filter_)
    resizing = Resizing((224, 224), f"shorter-crop:232:{filter_}")
    with tarfile.open(shared / "data" / "imagenet_samples_256.tar") as archive:
        members = [each for each in archive.getmembers() if each.isfile()][:1000:40]
        images = [Image.open(archive.extractfile(each)).convert("RGB") for each in members]
    assert len(images) == 25
    for image in (*images, *(each.resize((640, 480)) for each in images)):
        np.testing.assert_array_equal(resizing.apply(np.asarray(image)), np.asarray(wanted(image)))


@pytest.mark.parametrize("side", [232, 512])
def test_the_filter_of_torch_is_met_but_for_sums_near_a_half(random_images, photographs, side):
    """Torch's weights are in float32: a few values of 10,000 come out one level off."""
    how = transforms.InterpolationMode.BICUBIC
    wanted = transforms.Compose([transforms.Resize(side, how), transforms.CenterCrop(224)])
    resizing = Resizing((224, 224), f"shorter-crop:{side}:bicubic-torchvision")
    plain = Resizing((224, 224), f"shorter-crop:{side}:bicubic")
    off, other, count = 0, 0, 0
    for image in (random_images(300, 400, 3), *photographs):
        tensor = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
        theirs = wanted(tensor).clamp(0, 255).round().numpy().transpose(1, 2, 0)
        ours = resizing.apply(image).astype(np.float32)
        assert abs(ours - theirs).max() <= 1
        off, count = off + (ours != theirs).sum(), count + theirs.size
        other += (plain.apply(image) != theirs).sum()
    assert 0 < off / count < 5e-4
    assert other / count > 1e-2  # it is another filter than Pillow's


def test_the_names_of_stored_pixels_stay_as_they_were():
    """Pixels that were stored before there were filters are found again."""
    assert Resizing((32, 32)).key == "bilinear"
    assert Resizing((32, 32), "exact:bilinear").key == "bilinear"
    assert Resizing((32, 32), "shorter-crop").key == "bilinear, shorter-crop"
    assert Resizing((32, 32), "shorter-crop:40").key == "bilinear, shorter-crop:40"
    assert Resizing((32, 32), "shorter-crop:40:bicubic").key == "bicubic, shorter-crop:40"
    assert Resizing((32, 32), "exact:lanczos").key == "lanczos"


def test_ways_to_resize_are_kept_apart_in_the_store(store, random_images):
    part = Part(ArraySource(random_images(3, 20, 40, 3)))
    exact = prepare(part, store, name="a", size=(16, 16))
    cut = prepare(part, store, name="a", size=(16, 16), resize="shorter-crop")
    assert exact.digest != cut.digest
    again = prepare(part, store, name="a", size=(16, 16))
    assert again.digest == exact.digest
    np.testing.assert_array_equal(again.pixels(), exact.pixels())


@pytest.mark.parametrize(
    "resize", ["crop", "", "shorter-crop:", "shorter-crop:x", "shorter-crop:0", "exact:32", "EXACT"]
)
def test_unknown_way_to_resize_is_refused(store, random_images, resize):
    part = Part(ArraySource(random_images(1, 20, 20, 3)))
    with pytest.raises(InvalidInputError) as refused:
        prepare(part, store, name="a", size=(16, 16), resize=resize)
    assert str(refused.value) == (
        f"--resize must be exact, shorter-crop or shorter-crop:SIDE, not {resize!r}; a filter "
        "may follow, as in exact:bicubic: bilinear, bicubic, lanczos, nearest, bicubic-torchvision"
    )


def test_a_side_shorter_than_the_images_is_refused():
    assert Resizing((16, 12), "shorter-crop:16").how == "shorter-crop:16"
    with pytest.raises(InvalidInputError) as refused:
        Resizing((16, 12), "shorter-crop:15")
    assert str(refused.value) == (
        "--resize shorter-crop:15 leaves images smaller than 16 x 12, the size of the network; "
        "give a side from 16 on, or another --image-size"
    )


def test_images_that_do_not_fit_on_the_disk_are_refused_before_the_first_is_decoded(
    source, prepared, monkeypatch
):
    monkeypatch.setattr("oodcli.store.store.free_bytes", lambda path: ROWS * 3 * 64 - 1)
    with pytest.raises(InvalidInputError, match=r"the 2,348 images of toy need 0.5 MB, and the"):
        prepared(source)
    assert source.read_rows == []
    # What is above the limit is not stored, and needs no room.
    prepared(source, max_pixels_bytes=1000)
    assert len(source.read_rows) == ROWS


def test_stored_pixels_are_a_npy_file(source, prepared, store, images):
    prepared(source)
    first = np.load(next(iter(sorted(store.images.rglob("*.npy")))), allow_pickle=False)
    np.testing.assert_array_equal(first, images[:SHARD_ROWS].transpose(0, 3, 1, 2))


# Memory, and passes over images while they are decoded


@pytest.fixture
def small_chunks(monkeypatch):
    """Read 16 images of 32 x 32 at a time, and hold next to nothing of a scratch file."""
    monkeypatch.setattr("oodcli.images.CHUNK_BYTES", 16 * 3 * 32 * 32)
    monkeypatch.setattr("oodcli.store.store._SCRATCH_IN_MEMORY", 1000)


class Drawn:
    """Images that are drawn as they are read, and held by nobody."""

    def __init__(self, count):
        self.count = count
        self.read_rows = 0
        self.fingerprint = f"drawn {count}"

    def __len__(self):
        return self.count

    def read(self, start, stop, /):
        for row in range(start, stop):
            self.read_rows += 1
            yield np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def peak_of(work):
    """Return the most bytes that were allocated while something worked."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("limit", [10**9, 0])
def test_no_shard_is_in_memory_as_a_whole(store, limit):
    shard = SHARD_ROWS * 3 * 32 * 32
    peaks = []
    for count in (SHARD_ROWS, 3 * SHARD_ROWS):
        rows = []

        def read(images, rows=rows):
            for each in images.shards:
                for chunk in each.chunks():
                    rows.append(len(chunk))

        def work(count=count, read=read):
            images = prepare(
                Part(Drawn(count)), store, name="x", max_pixels_bytes=limit,
                seen=lambda shard: read(ImageSet("x", (shard,))),
            )  # fmt: skip
            read(images)

        peaks.append(peak_of(work))
        # Those above the limit were seen, too, while they were decoded.
        assert rows == [16] * (count // 16 * (1 if limit else 2))
    assert peaks[0] < shard / 8
    assert peaks[1] < peaks[0] + shard / 16


@pytest.mark.usefixtures("small_chunks")
def test_what_changed_unseen_is_found_before_its_last_chunk_is_given(store, random_images):
    images = random_images(40, 32, 32, 3)
    (shard,) = prepare(Part(ArraySource(images)), store, name="x", max_pixels_bytes=0).shards
    np.testing.assert_array_equal(shard.load(), images.transpose(0, 3, 1, 2))
    images[0] ^= 1
    chunks = iter(shard.chunks())
    assert [len(next(chunks)), len(next(chunks))] == [16, 16]
    with pytest.raises(
        CorruptArtifactError, match="images 0 to 39 of x have changed since they were"
    ):
        next(chunks)
    assert not list(store.images.glob("*/manifest.json"))


@pytest.mark.parametrize("limit", [10**9, 0])
def test_rows_of_unreadable_images_are_skipped_while_decoding_and_after(
    files, store, random_images, monkeypatch, limit
):
    monkeypatch.setattr("oodcli.images.CHUNK_BYTES", 3 * 3 * 8 * 8)
    kept = [0, 1, 3, 4, 5, 6, 7, 8]
    saw = []
    images = prepare(
        Part(files), store, name="x", size=(8, 8), skip_unreadable=True, max_pixels_bytes=limit,
        seen=lambda shard: saw.append((shard.indices.tolist(), shard.load(), shard.digest)),
    )  # fmt: skip
    expected = random_images(10, 8, 8, 3)[kept].transpose(0, 3, 1, 2)
    assert [len(chunk) for chunk in images.shards[0].chunks()] == [3, 3, 2]
    np.testing.assert_array_equal(images.pixels(), expected)
    assert images.shards[0].digest == digest_of(np.ascontiguousarray(expected))
    if limit == 0:
        ((rows, pixels, digest),) = saw
        assert (rows, digest) == (kept, images.shards[0].digest)
        np.testing.assert_array_equal(pixels, expected)


def test_chosen_images_above_the_limit_are_decoded_once_for_who_sees_them(store, monkeypatch):
    monkeypatch.setattr("oodcli.data.decoding.prepare.MAX_PIXELS_BYTES", 0)
    read_rows, saw = [], []
    source, rows = Chosen(range(40), read_rows), np.array([3, 8, 25])
    images = prepare_some(Part(source), rows, store, name="x", seen=saw.append)
    assert sorted(read_rows) == [3, 8, 25]
    (shard,) = saw
    assert shard.indices.tolist() == images.shards[0].indices.tolist() == [3, 8, 25]
    assert shard.digest == images.shards[0].digest
    assert shard.pieces == ()
    # Where all of the part is known, what is stored of it is found for these, too.
    whole = prepare(Part(source), store, name="x")
    others: list[ImageShard] = []
    prepare_some(Part(source), np.array([4, 9]), store, name="x", seen=others.append)
    assert [piece.shard.digest for piece in others[0].pieces] == [whole.shards[0].digest]
    assert [piece.rows.tolist() for piece in others[0].pieces] == [[4, 9]]


class Chosen(Drawn):
    """Images of which some may be chosen; the rows that are read of any are noted in one place."""

    def __init__(self, rows, read_rows):
        super().__init__(len(rows))
        self.rows = np.asarray(rows)
        self.read_rows = read_rows
        self.fingerprint = f"chosen {self.rows.tolist()}"

    def take(self, rows, /):
        return Chosen(self.rows[rows], self.read_rows)

    def read(self, start, stop, /):
        for row in self.rows[start:stop]:
            self.read_rows.append(int(row))
            yield np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
