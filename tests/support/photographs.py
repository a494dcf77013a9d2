"""JPEG files for tests: smooth pictures, so that decoding at a reduced size changes little."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def photograph(
    width: int, height: int, *, seed: int = 0, mode: str = "RGB", turn: int = 1, **options: Any
) -> bytes:
    """Return the bytes of a JPEG file (or of another ``format``) of smooth noise."""
    few = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    stream = io.BytesIO()
    if options.get("format") == "MPO":
        options |= {"append_images": [image.rotate(180)], "save_all": True}
    image.save(stream, **{"format": "JPEG", "quality": 90, "exif": exif, **options})
    return stream.getvalue()


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder; return it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root
