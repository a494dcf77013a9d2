"""Images given in Python: paths, bytes, file objects, arrays, Pillow images and tensors."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodcli.data.decoding.files import rgb_of
from oodcli.data.incoming import Item
from oodcli.errors import InvalidInputError
from oodcli.remote.addresses import without_credentials

if TYPE_CHECKING:
    import torch

OneImage: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | NDArray[np.uint8]"
    " | Image.Image | torch.Tensor"
)
Images: TypeAlias = "OneImage | Iterable[OneImage] | Mapping[str, Any]"
# Names of the column with images in batches of other programs, and of that with their names.
COLUMNS = ("image", "images", "img", "bytes", "content")
_PATH = "path"
# Types that are one argument, although some of them are iterable.
_ONE = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image.Image)


def items_of(images: Images) -> Iterator[Item]:
    """Yield every image; images without a name are numbered.

    Parameters
    ----------
    images
        As for :meth:`oodcli.Detector.predict`.

    Raises
    ------
    InvalidInputError
        If an object is not an image. An image that cannot be read is an item with the reason.

    Examples
    --------
    >>> [item.name for item in items_of(np.zeros((2, 8, 8, 3), np.uint8))]
    ['image 0', 'image 1']
    >>> [item.name for item in items_of(["a.png", b"..."])]
    ['a.png', 'image 1']
    """
    if isinstance(images, Mapping) and not _is_file(images):
        yield from _of_columns(images)
        return
    single = (
        isinstance(images, (*_ONE, Mapping))
        or _is_tensor(images)
        or hasattr(images, "read")
        or not isinstance(images, Iterable)
    )
    number = 0
    for each in [images] if single else images:  # type: ignore[union-attr]
        for item in _items_in(each, number):
            yield item
            number += 1


def _items_in(image: object, number: int) -> Iterator[Item]:
    """Yield the images of one object; ``number`` is that of the first."""
    name = f"image {number}"
    if isinstance(image, (str, os.PathLike)):
        path = without_credentials(os.fsdecode(image))
        yield Item(path, path, "")
    elif isinstance(image, (bytes, bytearray, memoryview)):
        yield Item(name, "", "", data=bytes(image))
    elif hasattr(image, "read") and not isinstance(image, Image.Image):
        yield _read(image, name)
    elif isinstance(image, Mapping) and _is_file(image):
        yield _of_file(image, name)
    elif _is_array_of_objects(image):
        for row, each in enumerate(image):
            yield from _items_in(each, number + row)
    elif isinstance(image, Image.Image):
        try:
            yield Item(name, "", "", pixels=rgb_of(image))
        except InvalidInputError as error:
            yield Item(name, "", "", error=str(error))
    else:
        for row, pixels in enumerate(_pixels(image)):
            yield Item(f"image {number + row}", "", "", pixels=pixels)


def image_column(columns: Mapping[str, Any]) -> str:
    """Return the name of the column with the images of a batch.

    Parameters
    ----------
    columns
        The columns by name.

    Raises
    ------
    InvalidInputError
        If there is none of the usual names, or several.
    """
    found = [name for name in COLUMNS if name in columns]
    if len(found) != 1:
        named = ", ".join(map(repr, columns)) or "none"
        raise InvalidInputError(
            f"a batch must have one column with images, {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]};"
            f" its columns are: {named}; rename them"
        )
    return found[0]


def _of_columns(columns: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the images of a batch as Ray, Spark and Hugging Face give it, named by its paths."""
    images = columns[image_column(columns)]
    names = columns.get(_PATH)
    for row, item in enumerate(items_of(images)):
        named = None if names is None or row >= len(names) else names[row]
        is_named = isinstance(named, str) and item.name == f"image {row}"
        yield replace(item, name=str(named)) if is_named else item


def _is_file(image: Mapping[Any, Any]) -> bool:
    """Return whether a mapping is one undecoded image of Hugging Face: bytes, path or both."""
    data, path = image.get("bytes"), image.get("path")
    return (
        set(image) <= {"bytes", "path"}
        and isinstance(data, bytes | None)
        and isinstance(path, str | None)
        and not (data is None and path is None)
    )


def _of_file(image: Mapping[str, Any], name: str) -> Item:
    data, path = image.get("bytes"), image.get("path")
    path = path and without_credentials(path)
    if data is None:
        return Item(str(path), str(path), "")
    return Item(path or name, "", "", data=data)


def _is_array_of_objects(image: object) -> "TypeGuard[NDArray[Any]]":
    return isinstance(image, np.ndarray) and image.dtype == object and image.ndim == 1


def _read(file: Any, name: str) -> Item:  # noqa: ANN401 - whatever can be read
    """Read a file object to its end; the item gets the name of the file, if it has one."""
    named = getattr(file, "name", None)
    name = named if isinstance(named, str) else name
    try:
        data = file.read()
    except (OSError, ValueError) as error:
        return Item(name, "", "", error=f"the file object cannot be read: {error}")
    if not isinstance(data, bytes):
        raise InvalidInputError(
            f"the file object {name} returns {type(data).__name__}, not bytes; open it in binary "
            'mode: "rb"'
        )
    return Item(name, "", "", data=data)


def _pixels(image: object) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels ``(h, w, 3)`` of one image or several.

    Raises
    ------
    InvalidInputError
        If the object is not an image.
    """
    if _is_tensor(image):
        yield from _of_tensor(image)
    elif isinstance(image, np.ndarray):
        yield from _of_array(image)
    else:
        raise InvalidInputError(
            f"{type(image).__name__} is not an image type; give a path, bytes, a binary file "
            "object, a uint8 array, a Pillow image or a tensor"
        )


def _of_array(array: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    if array.dtype.kind == "S":
        raise InvalidInputError(
            "an array of NumPy's bytes type drops zeros at the end of files; use dtype=object"
        )
    if array.dtype != np.uint8:
        raise InvalidInputError(
            f"an array of images must be uint8 with pixels from 0 to 255, not {array.dtype}; "
            "convert it"
        )
    _check_size(array.shape)
    if array.ndim in (3, 4) and array.shape[-1] == 3:
        yield from array if array.ndim == 4 else array[None]
    elif array.ndim in (3, 4) and array.shape[-3] == 3:
        yield from np.moveaxis(array if array.ndim == 4 else array[None], 1, 3)
    else:
        raise InvalidInputError(
            f"an array of images must be (n, h, w, 3) or (n, 3, h, w), not {array.shape}; "
            "repeat grey pixels for all three channels"
        )


def _is_tensor(image: object) -> "TypeGuard[torch.Tensor]":
    """Return whether an object is a tensor; if torch is not imported, there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _of_tensor(tensor: "torch.Tensor") -> Iterator[NDArray[np.uint8]]:
    torch: Any = sys.modules["torch"]  # it has made the tensor
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3:
        raise InvalidInputError(
            f"a tensor of images must be (n, 3, h, w) or (3, h, w), not {tuple(tensor.shape)}"
        )
    _check_size(tensor.shape)
    values = tensor.detach().cpu()
    if values.is_floating_point():
        low, high = (float(f(values)) for f in (torch.amin, torch.amax)) if len(values) else (0, 0)
        if not (low >= 0 and high <= 1):
            raise InvalidInputError(
                f"a floating-point tensor of images must have pixels from 0 to 1, not from {low:g} "
                f"to {high:g}; do not normalise it"
            )
        values = (values.double() * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        raise InvalidInputError(
            f"a tensor of images must be uint8, or floating-point from 0 to 1, not {tensor.dtype}"
        )
    yield from (values if values.ndim == 4 else values[None]).permute(0, 2, 3, 1).numpy()


def _check_size(shape: Sequence[int]) -> None:
    """Raise an error for images without pixels; an empty sequence of images is allowed."""
    if 0 in shape[-3:]:
        raise InvalidInputError(f"images of shape {tuple(shape)} have no pixels; remove them")
