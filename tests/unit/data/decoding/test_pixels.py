"""Files of pixels: the bytes of numpy.save, written image by image and read in chunks."""

import io

import numpy as np
import pytest

from oodcli import images as module
from oodcli.data.decoding.pixels import PixelFile, PixelWriter
from oodcli.errors import CorruptArtifactError
from oodcli.images import digest_of


def written(images):
    file = io.BytesIO()
    writer = PixelWriter(file, images.shape[1:3])
    for image in images:
        writer.add(image)
    return file, writer.finished()


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file


@pytest.mark.parametrize("count", [0, 1, 9, 10, 1024])
def test_the_file_is_what_numpy_saves(random_images, count):
    images = random_images(1024, 5, 4, 3)[:count]
    file, pixels = written(images)
    array = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    assert file.getvalue() == saved(array).getvalue()
    assert pixels.digest == PixelFile.of(file).digest == digest_of(array)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_chunks_are_the_pixels_in_order_and_no_larger_than_they_should_be(
    random_images, monkeypatch, rows
):
    images = random_images(20, 5, 4, 3)
    monkeypatch.setattr(module, "CHUNK_BYTES", rows * 60 + 59)
    _, pixels = written(images)
    chunks = list(pixels.chunks())
    assert [len(chunk) for chunk in chunks[:-1]] == [rows] * (len(chunks) - 1)
    assert 0 < len(chunks[-1]) <= rows
    np.testing.assert_array_equal(np.concatenate(chunks), images.transpose(0, 3, 1, 2))
    assert all(chunk.flags.writeable for chunk in chunks)  # torch warns of others


def test_an_image_larger_than_a_chunk_is_a_chunk(random_images, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 10)
    _, pixels = written(random_images(3, 5, 4, 3))
    assert [len(chunk) for chunk in pixels.chunks()] == [1, 1, 1]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        saved(np.zeros((2, 3, 4, 5), np.int8)).getvalue(),
        saved(np.zeros((2, 3, 4), np.uint8)).getvalue(),
        saved(np.zeros((2, 3, 0, 5), np.uint8)).getvalue(),
        saved(np.asfortranarray(np.zeros((2, 3, 4, 5), np.uint8))).getvalue(),
        saved(np.zeros((2, 3, 4, 5), np.uint8)).getvalue()[:-1],
        saved(np.zeros((2, 3, 4, 5), np.uint8)).getvalue() + b"x",
        saved(np.zeros((2, 3, 4, 5), np.uint8)).getvalue().replace(b"(2, 3", b"(2, 9" + b"9" * 12),
    ],
)
def test_what_is_no_whole_file_of_pixels_is_refused(content):
    with pytest.raises(CorruptArtifactError):
        PixelFile.of(io.BytesIO(content))
