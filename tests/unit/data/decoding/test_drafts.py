"""JPEG files decoded at a reduced size: the pixels of Pillow's own draft, wherever they lie."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from oodcli.data import prepare
from oodcli.data.compact import Texts
from oodcli.data.dataset import joined, take
from oodcli.data.decoding import workers
from oodcli.data.decoding.bilinear import resizing_matrices
from oodcli.data.decoding.drafts import drafted
from oodcli.data.decoding.files import FileSource, decode_stream
from oodcli.data.decoding.random_access import Decoders, Originals, Prepared
from oodcli.data.decoding.remote import RemoteFiles
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.incoming import Item, decoded, items
from oodcli.data.opening import open_dataset
from oodcli.errors import InvalidInputError
from oodcli.images import Part
from oodcli.pools import open_pools
from tests.support.photographs import folder_of, photograph

SIZE = (12, 12)
DRAFT = Resizing(SIZE, "shorter-crop:draft")
# Width, height, and what else the file is: its EXIF orientation, mode, form.
FILES = {
    "blue/a.jpg": photograph(200, 140, seed=1),
    "blue/b.jpg": photograph(100, 260, seed=2, turn=6, progressive=True),
    "red/c.jpg": photograph(96, 96, seed=3, mode="L"),
    "red/d.jpg": photograph(60, 47, seed=4),  # too small to be reduced
    "red/e.png": photograph(200, 140, seed=5, format="PNG"),
}


def content_decoded(content, to, **more):
    return decode_stream(io.BytesIO(content), where="x", to=to, **more)


def by_pillow(content, width, height, upright=None):
    """Return what Pillow gives of a file drafted at twice the size, scaled to it, ``(h, w, 3)``."""
    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, (2 * width, 2 * height) if upright is None else (2 * height, 2 * width))
        rgb = image.convert("RGB")
    if upright is not None:
        rgb = rgb.transpose(upright)
    return np.asarray(rgb.resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(192, 192, 8), (1000, 192, 8), (191, 192, 4), (97, 201, 4), (95, 96, 2), (48, 49, 2),
     (47, 300, 1), (24, 24, 1), (12, 12, 1), (5, 7, 1)],
)  # fmt: skip
def test_a_file_is_decoded_at_the_smallest_size_of_which_the_filter_leaves_half(
    width, height, scale
):
    exact = Resizing(SIZE, "exact:draft")
    content = photograph(width, height)
    image = content_decoded(content, exact)
    assert image.shape == (-(-height // scale), -(-width // scale), 3)
    np.testing.assert_array_equal(exact.apply(image), by_pillow(content, *SIZE))
    whole = content_decoded(content, Resizing(SIZE))
    assert whole.shape == (height, width, 3)
    np.testing.assert_array_equal(whole, content_decoded(content, None))
    if scale == 1:
        np.testing.assert_array_equal(image, whole)


@pytest.mark.parametrize(
    "options",
    [{"mode": "CMYK"}, {"mode": "CMYK", "progressive": True}, {"mode": "L"},
     {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"format": "MPO"}],
    ids=str,
)  # fmt: skip
def test_every_form_of_jpeg_has_the_pixels_of_pillows_draft(options):
    content = photograph(200, 140, **options)
    image = content_decoded(content, Resizing(SIZE, "exact:draft"))
    assert image.shape == (35, 50, 3)
    np.testing.assert_array_equal(Resizing(SIZE).apply(image), by_pillow(content, *SIZE))


def test_a_draft_is_asked_for_in_the_orientation_of_the_file():
    content = photograph(100, 200, turn=6)
    wide = Resizing((12, 20), "exact:draft")
    image = content_decoded(content, wide)
    assert image.shape == (25, 50, 3)  # upright, 100 x 200 pixels: 1/4; lying, it would be 1/2
    wanted = by_pillow(content, 20, 12, upright=Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(wide.apply(image), wanted)
    assert content_decoded(content, wide, as_published=True).shape == (100, 50, 3)


def test_the_shorter_side_before_the_crop_counts():
    content = photograph(200, 140)
    assert content_decoded(content, Resizing(SIZE, "shorter-crop:12:draft")).shape == (35, 50, 3)
    assert content_decoded(content, Resizing(SIZE, "shorter-crop:35:draft")).shape == (70, 100, 3)
    assert content_decoded(content, Resizing(SIZE, "shorter-crop:36:draft")).shape == (140, 200, 3)


def test_other_formats_are_decoded_whole():
    for name in ("PNG", "WEBP", "TIFF"):
        content = photograph(200, 140, format=name)
        image = content_decoded(content, DRAFT)
        np.testing.assert_array_equal(image, content_decoded(content, None))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Write the files as a folder, a table, a zip archive and WebDataset shards."""
    root = tmp_path_factory.mktemp("photos")
    folder_of(root / "set", FILES)
    lines = [f"set/{name},{name.partition('/')[0]}" for name in FILES]
    (root / "table.csv").write_text("\n".join(["path,label", *lines]))
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    with tarfile.open(root / "set-000000.tar", "w") as shard:
        for at, (name, content) in enumerate(FILES.items()):
            for ending, data in ((name.rpartition(".")[2], content), ("cls", b"0")):
                member = tarfile.TarInfo(f"{at}.{ending}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return root


@pytest.fixture(scope="module")
def wanted():
    """Return the prepared images, ``(n, 3, h, w)``, by Pillow alone where that is drafted."""
    images = [DRAFT.apply(content_decoded(content, DRAFT)) for content in FILES.values()]
    with Image.open(io.BytesIO(FILES["blue/a.jpg"])) as image:
        image.draft(None, (34, 24))
        assert image.size == (50, 35)
        scaled = image.resize((17, 12), Image.Resampling.BILINEAR).crop((2, 0, 14, 12))
    np.testing.assert_array_equal(images[0], np.asarray(scaled))
    return np.stack(images).transpose(0, 3, 1, 2)


FORMS = ("set", "table.csv", "set.zip", "set-000000.tar")


@pytest.mark.parametrize("form", FORMS)
def test_wherever_files_lie_they_have_the_same_pixels(photos, store, wanted, form):
    part = open_dataset(str(photos / form), store, role="ood").ood_part

    def pixels(resize, part=part):
        return prepare(part, store, name="x", size=SIZE, resize=resize).pixels()

    np.testing.assert_array_equal(pixels("shorter-crop:draft"), wanted)
    whole = pixels("shorter-crop")  # stored beside, under another key
    assert not np.array_equal(whole, wanted)
    np.testing.assert_array_equal(whole[3:], wanted[3:])
    assert len(list(store.images.glob("*/manifest.json"))) == 2
    some = take(joined(take(part, np.array([1, 2])), part), np.array([0, 2, 6]))
    np.testing.assert_array_equal(pixels("shorter-crop:draft", some), wanted[[1, 0, 4]])
    with open_pools() as pools:
        found = decoded(items([str(photos / form)], store=store), DRAFT, pools.threads(), None)
        screened = np.stack([image for _, image in found])
    np.testing.assert_array_equal(screened.transpose(0, 3, 1, 2), wanted)
    source = pickle.loads(pickle.dumps(drafted(part.source, DRAFT)))
    assert source.fingerprint == part.source.fingerprint
    (image,) = workers._work(DRAFT.apply, source.take(np.array([1]))).images
    np.testing.assert_array_equal(image.transpose(2, 0, 1), wanted[1])
    with Decoders(0) as decoders:
        batches = decoders.batches(Originals(source), [np.array([4, 0])], Prepared(DRAFT))
        np.testing.assert_array_equal(next(batches)[0], wanted[[4, 0]])


def test_remote_files_and_bytes_have_the_same_pixels(photos, store, wanted):
    source = RemoteFiles(photos / "set", Texts.of(FILES))
    made = prepare(Part(source), store, name="x", size=SIZE, resize=DRAFT.how)
    np.testing.assert_array_equal(made.pixels(), wanted)
    (found,) = decoded([Item("x", "x", "x", data=FILES["blue/a.jpg"])], DRAFT, None, None)
    np.testing.assert_array_equal(found[1].transpose(2, 0, 1), wanted[0])


def test_without_drafts_a_source_and_its_key_are_as_they_were(photos):
    source = FileSource(photos / "set", tuple(FILES))
    assert drafted(source, Resizing(SIZE)) is source
    assert Resizing(SIZE).key == "bilinear"
    assert Resizing(SIZE, "shorter-crop:256:bicubic").key == "bicubic, shorter-crop:256"
    assert Resizing(SIZE, "shorter-crop:256:bicubic:draft").key == (
        "bicubic, shorter-crop:256, draft"
    )


def test_no_graph_resizes_for_a_run_with_drafts():
    with pytest.raises(InvalidInputError, match=r"at a reduced size \(--jpeg-draft\)"):
        resizing_matrices(DRAFT, (140, 200))
