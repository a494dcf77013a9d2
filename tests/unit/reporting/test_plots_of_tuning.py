"""Pictures of tuning: a line per method with one numeric parameter, and the choice marked."""

import math

import pytest

from oodcli.reporting.plots import COLUMN
from oodcli.reporting.plots_of_tuning import TuningLine, tuning_curves, tuning_lines
from oodcli.store.searches import Candidate, Search
from tests.support.pictures import LONG, overlaps, smallest_text, texts


def search(method: str, *candidates: Candidate, chosen: int = 0, name: str = "val") -> Search:
    return Search(
        method, "pseudo", name, f"jigsaws of {name}", 12, 12, candidates[chosen].method, candidates
    )


def candidate(
    name: str, auroc: float | None, fpr95: float | None = None, **parameters: object
) -> Candidate:
    return Candidate(name, auroc, "", fpr95, {f"scale.{key}": v for key, v in parameters.items()})


SCALE = search(
    "scale+energy",
    candidate("c", 0.75, 0.5, percentile=85),
    candidate("a", 0.9, 0.25, percentile=65.0),
    candidate("b", None, percentile=70.0),
    chosen=1,
)


def test_a_line_has_the_defined_values_in_order() -> None:
    assert tuning_lines([SCALE]) == {
        "percentile": [TuningLine("scale", (65.0, 85.0), (0.9, 0.75), (0.25, 0.5), 65.0)]
    }


def test_settings_without_one_numeric_parameter_have_no_line() -> None:
    two = [candidate(str(at), 0.5, high=90.0, low=float(at)) for at in range(3)]
    flags = [candidate(str(at), 0.5, normalised=bool(at)) for at in range(2)]
    older = [Candidate(str(at), 0.5) for at in range(2)]
    alone = [candidate("x", 0.5, percentile=65.0), candidate("y", None, percentile=70.0)]
    default = [candidate("x", 0.5, percentile=None), candidate("y", 0.5, percentile=70.0)]
    for each in (two, flags, older, alone, default):
        assert tuning_lines([search("m", *each)]) == {}


def test_searches_of_older_versions_have_no_fpr95() -> None:
    lines = tuning_lines([search("m", candidate("x", 0.5, p=1), candidate("y", 0.6, p=2))])
    assert math.isnan(lines["p"][0].fpr95[0])


def test_metrics_are_drawn_and_the_choice_is_marked() -> None:
    picture = tuning_curves("run", SCALE, "percentile", tuning_lines([SCALE])["percentile"])
    auroc, fpr95 = picture.figure.axes
    for axes, values, best in ((auroc, [90, 75], 90), (fpr95, [25, 50], 25)):
        line, ring = axes.lines
        assert list(line.get_xdata()) == [65, 85]
        assert list(line.get_ydata()) == pytest.approx(values)
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (65, pytest.approx(best))
    assert {"AUROC (%)", "FPR95 (%)", "percentile (%)"} <= set(texts(picture))
    assert picture.name == "tuning-pseudo-percentile"
    assert picture.alt.endswith("chosen: scale 65")


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow), 20])
def test_there_is_room_for_every_name(count: int) -> None:
    searches = [
        search(
            f"{LONG}{at}" if count > 1 else "scale",
            *(candidate(str(v), 0.5 + v / 200, 0.5, temperature=v) for v in (1, 10, 1000)),
            name=LONG,
        )
        for at in range(count)
    ]
    (lines,) = tuning_lines([*searches[:1], *searches[1:]]).values()
    picture = tuning_curves(LONG, searches[0], "temperature", lines)
    assert overlaps(picture) == []
    assert smallest_text(picture) >= 8
    assert picture.figure.get_figwidth() == COLUMN
    looks = {(each.get_color(), each.get_marker(), str(each._dash_pattern))
             for each in picture.figure.axes[0].lines[:count]}  # fmt: skip
    assert len(looks) == count
