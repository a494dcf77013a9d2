"""Medical images in a data set: a row for each frame or slice, read through one window."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from oodcli.data.dataset import Dataset
from oodcli.data.decoding.encoded import EncodedSource, Windowed
from oodcli.data.decoding.files import FileSource, is_medical_name
from oodcli.images import ImageSource, Part
from oodcli.medical import frame_count, may_be_unnamed
from oodcli.remote.addresses import is_address
from oodcli.text import counted
from oodcli.windows import Window, axis_of


def with_window(dataset: Dataset, window: Window | None) -> Dataset:
    """Return a data set whose medical images are read through a window, frame by frame.

    Parameters
    ----------
    dataset
        As a reader opened it, before it is divided.
    window
        Which values are black and white, and how volumes are sliced; None if none was given.

    Notes
    -----
    Of a folder, a file of several frames or slices becomes as many rows, ``FILE[NUMBER]`` from 0
    on, with the label of the file. A row of a list or table is one image, and names its frame.
    """
    divided = {name: _by_frame(part, window) for name, part in dataset.parts.items()}
    parts = {
        name: Part(_windowed(part.source, window), part.labels) for name, part in divided.items()
    }
    before, after = (sum(map(len, each.values())) for each in (dataset.parts, parts))
    if before == after:
        return replace(dataset, parts=parts)
    note = (
        f"{dataset.name} has files of several frames or slices: {after:,} images in "
        f"{counted(before, 'file')} (slices of volumes: {axis_of(window)})"
    )
    if dataset.is_whole:
        note += (
            "; images of one file may become training and test images, unless folders train and "
            "test say which are which"
        )
    return replace(dataset, parts=parts, notes=(*dataset.notes, note))


def frames_in(path: str, window: Window | None) -> int:
    """Return how many images a file holds; only files named as medical images are opened.

    Parameters
    ----------
    path
        The file.
    window
        How volumes are sliced.
    """
    named = is_medical_name(path) or may_be_unnamed(os.path.splitext(path)[1])  # noqa: PTH122
    return frame_count(Path(path), window) if named and not is_address(path) else 1


def _by_frame(part: Part, window: Window | None) -> Part:
    """Return a part with a row for every frame of its files."""
    source = part.source
    if not isinstance(source, FileSource) or not source.is_folder:
        return part
    counts = [frames_in(os.path.join(source.root, file), window) for file in source.files]  # noqa: PTH118
    if max(counts, default=1) == 1:
        return part
    files = [
        file if count == 1 else f"{file}[{frame}]"
        for file, count in zip(source.files, counts, strict=True)
        for frame in range(count)
    ]
    labels = None if part.labels is None else np.repeat(part.labels, counts)
    return Part(replace(source, files=files), labels)


def _windowed(source: ImageSource, window: Window | None) -> ImageSource:
    """Return a source that reads medical images through a window."""
    if window is None:
        return source
    if isinstance(source, FileSource):
        return replace(source, window=window)
    return Windowed(source, window) if isinstance(source, EncodedSource) else source
