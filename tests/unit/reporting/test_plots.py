"""Pictures are drawn from any names and scores, and their bytes depend on nothing else."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.reporting.drift_plot import GroupPoint, drift_picture
from oodcli.reporting.plots import (
    COLUMN,
    FORMATS,
    MAX_LINES,
    PAGE,
    Picture,
    block_auroc,
    curves,
    encoded,
    fallback_fonts,
    histograms,
    normratio_bars,
    training_history,
    without_glyphs,
)
from oodcli.reporting.sheets import Thumbnail, picture_sheet
from tests.support.pictures import LONG, overlaps, smallest_text, texts

RNG = np.random.default_rng(0)
ID = RNG.normal(1, 1, 200)
OOD = {"svhn": RNG.normal(0, 1, 300), "a $name$ <of> & \u65e5\u672c": RNG.normal(-1, 1, 50)}
HISTORY = [
    {"epoch": e, "loss": 1 / e, "train_accuracy": 1 - 1 / e, "val_accuracy": None, "lr": 0.1}
    for e in range(1, 6)
]


def drawn() -> list[Picture]:
    return [
        histograms("msp", "cifar10", ID, OOD),
        curves("roc", "cifar10", {"msp": (ID, OOD), "energy": (ID, {"svhn": OOD["svhn"]})}),
        curves("pr", "cifar10", {"msp": (ID, OOD)}),
        normratio_bars(
            "run", ["1.1", "1.2"], [1.1, float("nan")], [0.01, float("nan")], selected=0
        ),
        block_auroc("run", {"svhn": [0.5, 0.9], "dtd": [0.4, float("nan")]}, selected=1),
        training_history("run", HISTORY),
        picture_sheet(
            "msp",
            {
                "svhn": [Thumbnail(np.zeros((8, 8, 3), np.uint8), "0.5")] * 3,
                "dtd": [Thumbnail(np.full((224, 224, 3), 255, np.uint8), "a.png\nis x$1$\n0.1")],
                "none": [],
            },
        ),
    ]


@pytest.mark.parametrize("how", FORMATS)
def test_every_picture_is_written_twice_alike(how):
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for picture, again in zip(drawn(), drawn(), strict=True):
        content = encoded(picture, how)
        assert content.startswith(starts[how])
        assert content == encoded(again, how), picture.name
        assert len(content) < 400_000
        if how == "svg":
            ET.fromstring(content)  # noqa: S314 - our own
            assert content == encoded(picture, how), picture.name  # drawing leaves it as it was


def test_an_unknown_format_is_refused():
    with pytest.raises(UnknownNameError, match="no picture format 'jpg'; did you mean 'png'"):
        encoded(histograms("msp", "cifar10", ID, OOD), "jpg")


def test_every_axis_says_what_it_shows():
    for picture in drawn()[:-1]:
        axes = picture.figure.axes
        assert any(a.get_xlabel() for a in axes), picture.name
        assert any(a.get_ylabel() for a in axes), picture.name
        assert picture.title.split(":")[0] in " ".join(texts(picture))


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_no_text_lies_on_another():
    for picture in drawn():
        assert overlaps(picture) == [], picture.name


def many(count: int) -> list[Picture]:
    """Return every picture with ``count`` OOD sets of long names."""
    names = [f"{LONG}{at}" for at in range(count)]
    ood = dict.fromkeys(names, RNG.normal(0, 1, 30))
    scores = {f"{LONG[:60]}{at}": (ID, ood) for at in range(2)}
    image = Thumbnail(np.zeros((8, 8, 3), np.uint8), "…long-name.png\nis automobile\n-123.4")
    points = [GroupPoint(name, 0.1, (0.05, 0.2), (0.0, 0.1), {"scores": 0.1}, True)
              for name in names]  # fmt: skip
    blocks = [f"layer{at}.a-very-long-name" for at in range(2 * count)]
    return [
        histograms(LONG[:60], LONG, ID, ood),
        curves("roc", LONG, scores),
        normratio_bars(LONG, blocks, [1.5] * len(blocks), [0.1] * len(blocks), selected=1),
        block_auroc(LONG, {name: [0.5] * len(blocks) for name in names}, selected=1),
        training_history(LONG, HISTORY),
        picture_sheet("msp", {f"{name} (OOD): 1 of 2 misjudged": [image] * 7 for name in names}),
        drift_picture(points, LONG),
    ]


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow), 20])
def test_there_is_room_for_every_name_at_the_width_of_a_page(count):
    for picture in many(count):
        assert overlaps(picture) == [], picture.name
        assert smallest_text(picture) >= 8
        assert picture.figure.get_figwidth() in (COLUMN, PAGE)


def test_names_without_glyphs_are_known():
    assert without_glyphs(["cifar10", "Größe", "ж", "\ue000 private"]) == ["\ue000 private"]
    if not fallback_fonts():
        assert without_glyphs(["\u65e5\u672c"]) == ["\u65e5\u672c"]


def test_characters_are_drawn_with_a_font_that_has_them(monkeypatch):
    arc = "\u2312 set"  # in STIX, which Matplotlib brings, and not in DejaVu Sans
    monkeypatch.setattr("oodcli.reporting.plots.fallback_fonts", lambda: ())
    assert without_glyphs([arc]) == [arc]
    assert b"STIXGeneral" not in encoded(histograms("msp", "cifar10", ID, {arc: ID}), "pdf")
    monkeypatch.setattr("oodcli.reporting.plots.fallback_fonts", lambda: ("STIXGeneral",))
    assert without_glyphs([arc]) == []
    assert b"STIXGeneral" in encoded(histograms("msp", "cifar10", ID, {arc: ID}), "pdf")


def test_fonts_of_a_pdf_are_embedded_whole():
    content = encoded(histograms("msp", "cifar10", ID, OOD), "pdf")
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_a_histogram_marks_the_threshold_and_what_it_lets_pass():
    id_scores, ood_scores = np.arange(100.0), np.array([4.0, 5.0, 6.0, 7.0])
    picture = histograms("msp", "cifar10", id_scores, {"svhn": ood_scores})
    assert "svhn\n75.0 % of OOD accepted" in texts(picture)
    assert [line.get_xdata()[0] for line in picture.figure.axes[0].lines] == [5.0]
    assert "with the threshold 5 that 95 % of cifar10 reach" in picture.alt


def test_scores_of_one_value_have_a_histogram():
    encoded(histograms("msp", "cifar10", np.zeros(4), {"svhn": np.zeros(3)}), "png")


def test_a_roc_curve_passes_through_its_points():
    picture = curves("roc", "id", {"m": (np.array([3.0, 1.0]), {"o": np.array([2.0, 0.0])})})
    line = picture.figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0, 0, 50, 50, 100])
    np.testing.assert_allclose(line.get_ydata(), [0, 50, 50, 100, 100])


def test_the_selected_block_is_marked():
    picture = normratio_bars("run", ["a", "b", "c"], [1.0, 1.4, 1.2], [0.01] * 3, selected=1)
    assert [bar.get_width() for bar in picture.figure.axes[0].patches[:3]] == [1.0, 1.4, 1.2]
    assert [bar.get_hatch() for bar in picture.figure.axes[0].patches[:3]] == [None, "//", None]
    assert "selected" in texts(picture)
    assert "block 1 (b) is selected with 1.400" in picture.alt


def test_lines_of_one_picture_differ_in_more_than_colour():
    sets = {f"set{at}": [0.5, 0.6] for at in range(14)}
    lines = block_auroc("run", sets).figure.axes[0].lines[:14]
    kinds = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(kinds) == 14
    many = {f"m{at}": (ID, OOD) for at in range(MAX_LINES)}
    lines = curves("roc", "id", many).figure.axes[0].lines[:MAX_LINES]
    assert len({str(line._dash_pattern) for line in lines}) == MAX_LINES
    with pytest.raises(InvalidInputError, match="7 methods are too many for one plot"):
        curves("roc", "id", {**many, "one more": (ID, OOD)})


def test_the_users_own_settings_change_nothing():
    import matplotlib as mpl

    before = encoded(histograms("msp", "cifar10", ID, OOD), "svg")
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "text.parse_math": True}):
        assert encoded(histograms("msp", "cifar10", ID, OOD), "svg") == before
        assert mpl.rcParams["font.size"] == 30


def test_matplotlib_is_loaded_only_to_draw():
    code = (
        "import sys, oodcli.reporting.pictures, oodcli.reporting.plots\n"
        "print([m for m in ('matplotlib', 'torch', 'scipy', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert out.stdout.strip() == "[]"
