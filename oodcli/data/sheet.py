"""Contact sheets: a picture of many small images with what they are called."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 10

_SHORTEST_SIDE = 96
_GAP = 8
_MARGIN = 16
_TEXT = 13
_TITLE = 18
_WHITE = (255, 255, 255)
_INK = (30, 30, 30)


def contact_sheet(
    pixels: NDArray[np.uint8], captions: Sequence[str], *, title: Sequence[str]
) -> Image.Image:
    """Draw images side by side, each with its caption below it.

    Parameters
    ----------
    pixels
        Images, ``(n, 3, h, w)``. Small ones are enlarged by a whole number, pixel by pixel.
    captions
        What to write below each image, ``n`` texts; cut to the width of an image.
    title
        Lines above all images.

    Returns
    -------
    sheet
        An RGB picture.
    """
    count, _, height, width = pixels.shape
    scale = max(1, -(-_SHORTEST_SIDE // min(height, width)))
    cell_h, cell_w = scale * height, scale * width
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    text, large = ImageFont.load_default(_TEXT), ImageFont.load_default(_TITLE)
    # Descenders of the largest letters reach a quarter below the line.
    text_h, title_h = _TEXT + _TEXT // 2, _TITLE + _TITLE // 3
    top = _MARGIN + len(title) * title_h + _GAP
    widest = max((large.getlength(line) for line in title), default=0.0)
    sheet = Image.new(
        "RGB",
        (
            max(2 * _MARGIN + columns * (cell_w + _GAP) - _GAP, 2 * _MARGIN + int(widest) + 1),
            top + rows * (cell_h + text_h + _GAP) + _MARGIN - _GAP,
        ),
        _WHITE,
    )
    draw = ImageDraw.Draw(sheet)
    for at, line in enumerate(title):
        draw.text((_MARGIN, _MARGIN + at * title_h), line, fill=_INK, font=large)
    for at, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        row, column = divmod(at, columns)
        left, upper = _MARGIN + column * (cell_w + _GAP), top + row * (cell_h + text_h + _GAP)
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        sheet.paste(picture.resize((cell_w, cell_h), Image.Resampling.NEAREST), (left, upper))
        shown = _cut(caption, text, cell_w)
        draw.text((left, upper + cell_h + 2), shown, fill=_INK, font=text)
    return sheet


def _cut(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shorten a caption to a width in pixels."""
    line = " ".join(caption.split())[:width]
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
