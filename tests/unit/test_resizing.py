"""The grammar of ``--resize``."""

import pytest

from oodcli.errors import InvalidInputError
from oodcli.resizing import FILTERS, Resize


@pytest.mark.parametrize(
    ("text", "wanted", "written"),
    [
        ("exact", Resize(crops=False), "exact"),
        ("exact:bilinear", Resize(crops=False, filter="bilinear"), "exact"),
        ("exact:nearest", Resize(crops=False, filter="nearest"), "exact:nearest"),
        ("shorter-crop", Resize(crops=True), "shorter-crop"),
        ("shorter-crop:lanczos", Resize(crops=True, filter="lanczos"), "shorter-crop:lanczos"),
        ("shorter-crop:256", Resize(crops=True, side=256), "shorter-crop:256"),
        (
            "shorter-crop:256:bicubic-torchvision",
            Resize(crops=True, side=256, filter="bicubic-torchvision"),
            "shorter-crop:256:bicubic-torchvision",
        ),
        ("exact:draft", Resize(crops=False, draft=True), "exact:draft"),
        (
            "shorter-crop:bilinear:draft",
            Resize(crops=True, filter="bilinear", draft=True),
            "shorter-crop:draft",
        ),
        (
            "shorter-crop:256:bicubic:draft",
            Resize(crops=True, side=256, filter="bicubic", draft=True),
            "shorter-crop:256:bicubic:draft",
        ),
    ],
)
def test_what_is_written_is_read_and_written_again(text: str, wanted: Resize, written: str) -> None:
    found = Resize.of(text)
    assert found == wanted
    assert str(found) == written
    assert Resize.of(str(found)).used == found.used


@pytest.mark.parametrize(
    "text",
    ["", "bicubic", "exact:", "exact:256", "exact:cubic", "shorter-crop:0", "exact:bicubic:8",
     "exact:bicubic:bicubic", "shorter-crop:256:", "EXACT", "exact:draft:bicubic",
     "exact:draft:draft", "draft"],
)  # fmt: skip
def test_anything_else_is_refused_with_all_that_there_is(text: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Resize.of(text)
    assert str(refused.value) == (
        f"--resize must be exact, shorter-crop or shorter-crop:SIDE, not {text!r}; a filter may "
        f"follow, as in exact:bicubic: {', '.join(FILTERS)}"
    )
