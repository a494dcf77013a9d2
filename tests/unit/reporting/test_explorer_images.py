"""Images of the explorer: which ones are chosen, their pictures, neighbours, and norms."""

import base64
import io
import re
from dataclasses import replace
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from oodcli.metrics import Curve
from oodcli.reporting.explorer.extremes import Extremes, ScoredSets
from oodcli.reporting.explorer.image_payload import Sheets
from oodcli.reporting.explorer.images import Notes, pixels_of
from oodcli.reporting.explorer.maps import NORM_BINS, norms_of, on_grid
from oodcli.reporting.explorer.packing import unpacked
from oodcli.reporting.explorer.thumbnails import sheets
from oodcli.reporting.neighbours import nearest


def scored() -> ScoredSets:
    """Return scores of two methods on 20 ID images and two OOD sets, one of them by one method."""
    id_scores = np.arange(20.0)
    return ScoredSets(
        ["a", "b"],
        [20, 3, 2],
        {
            ("a", 0): id_scores,
            ("b", 0): np.r_[id_scores[1:], 0.0],  # rejects the last image, and not the first
            ("a", 1): np.array([5.0, 30.0, 7.5]),
            ("b", 1): np.array([1.0, 0.0, 1.0]),
            ("a", 2): np.array([0.0, -1.0]),
        },
    )


def test_the_worst_images_of_each_method_and_set_are_chosen() -> None:
    found = Extremes.of(scored(), 2)
    assert [rows.tolist() for rows in found.id_rows] == [[0, 1], [19, 0]]
    assert [[rows.tolist() for rows in sets] for sets in found.ood_rows] == [
        [[1, 2], [0, 1]],
        [[0, 2], []],  # equal scores in the order of their rows
    ]
    assert [*found.places] == sorted([(0, 0), (0, 1), (0, 19), (1, 0), (1, 1), (1, 2),
                                      (2, 0), (2, 1)])  # fmt: skip
    assert found.numbers(1, found.ood_rows[0][0]).tolist() == [4, 5]
    assert [rows.tolist() for rows in found.first(1).id_rows] == [[0], [19]]
    # Four times as many odd images: methods reject their lowest score, of 20 images one each.
    assert sorted(found.odd) == [0, 19]
    many = replace(scored(), scores={("a", 0): np.arange(200.0), ("b", 0): np.arange(200.0)})
    few = Extremes.of(replace(many, sizes=[200]), 2)
    assert few.odd.tolist() == [*range(8)]
    assert few.first(1).odd.tolist() == [*range(4)]


def test_percentiles_are_shares_of_id_images_below() -> None:
    values = scored().of([(0, 0), (1, 1), (1, 2), (2, 0)])
    np.testing.assert_array_equal(values.percentiles[:, 0], [0.0, 1.0, 0.4, 0.0])
    np.testing.assert_array_equal(values.percentiles[:, 1], [0.05, 0.0, 0.05, np.nan])
    np.testing.assert_array_equal(values.scores[:, 0], [0.0, 30.0, 7.5, 0.0])


def test_odd_images_are_those_that_most_methods_reject() -> None:
    draw = np.random.default_rng(0)
    methods = [f"m{at}" for at in range(7)]
    known = {(method, 0): draw.integers(0, 15, 60).astype(float) for method in methods}
    sets = ScoredSets(methods, [60], known)
    assert sets.thresholds["m0"] == np.sort(known["m0", 0])[3]
    rejected = sum((known[m, 0] < sets.thresholds[m]).astype(int) for m in methods)
    np.testing.assert_array_equal(sets.rejected_by(), rejected)
    odd = sets.odd(5)
    np.testing.assert_array_equal(rejected[odd], np.sort(rejected)[::-1][:5])
    assert len(sets.odd(60)) == np.count_nonzero(rejected)
    means = sets.of([(0, row) for row in range(60)]).percentiles.mean(axis=1)
    keys = [(-rejected[row], means[row]) for row in sets.odd(60)]
    assert keys == sorted(keys)


def test_the_best_methods_keep_their_order() -> None:
    sets = scored()
    assert sets.best(2) is sets
    aurocs = [
        np.mean([Curve.of(sets.scores["a", 0], sets.scores["a", at]).auroc() for at in (1, 2)]),
        Curve.of(sets.scores["b", 0], sets.scores["b", 1]).auroc(),
    ]
    assert sets.best(1).methods == [["a", "b"][int(np.argmax(aurocs))]]


def tile(made: Sheets, number: int) -> np.ndarray:
    """Return a picture of a sheet as the page cuts it out."""
    file = made.files[number // made.per_sheet]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))
    at = number % made.per_sheet
    top, left = at // made.columns * made.height, at % made.columns * made.width
    return sheet[top : top + made.height, left : left + made.width]


def plain(count: int, shape: tuple[int, int] = (24, 40)) -> list[np.ndarray]:
    """Return images of one colour each, which survive compression."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return list(np.broadcast_to(colours, (count, *shape, 3)))


def test_every_picture_is_found_in_its_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodcli.reporting.explorer.thumbnails.SHEET_PIXELS", 10_000)
    images = plain(30)
    made = sheets(images, (20,), 10**6)
    assert (made.width, made.height, made.columns, made.per_sheet) == (20, 12, 5, 40)
    large = sheets(images, (400,), 10**6)
    assert (large.width, large.height, large.columns, large.per_sheet) == (40, 24, 2, 8)
    assert len(large.files) == 4
    for found in (made, large):
        for number, image in enumerate(images):
            difference = tile(found, number).astype(int) - image[0, 0]
            assert np.abs(difference[4:-4, 4:-4]).max() <= 12


def test_pictures_take_no_more_room_than_there_is() -> None:
    draw = np.random.default_rng(1)
    images = list(draw.integers(0, 256, (40, 32, 32, 3), np.uint8))
    whole = sheets(images, (32, 16), 10**6)
    room = len(whole.files[0])
    assert (whole.width, whole.count) == (32, 40)
    assert sheets(images, (32, 16), room).width == 32
    smaller = sheets(images, (32, 16), room - 1)
    assert (smaller.width, smaller.count) == (16, 40)
    few = sheets(images, (32, 16), len(smaller.files[0]) // 2)
    assert few.width == 16
    assert 10 <= few.count < 40
    assert len(few.files[0]) <= len(smaller.files[0]) // 2
    assert sheets(images, (16,), 10).count == 0
    assert sheets([], (16,), 10).count == 0


def test_pixels_of_several_sets_are_in_the_given_order() -> None:
    sets = [SimpleNamespace(pixels=lambda rows, at=at: [(at, int(row)) for row in rows])
            for at in range(3)]  # fmt: skip
    places = [(2, 5), (0, 1), (2, 0), (0, 7)]
    assert pixels_of(sets, places) == places


def test_neighbours_are_the_nearest_directions() -> None:
    draw = np.random.default_rng(0)
    training, queries = draw.standard_normal((50, 6)), draw.standard_normal((9, 6))
    training[17] = 0
    queries[3] = 0
    units = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-30)
             for each in (queries, training)]  # fmt: skip
    distances = np.square(units[0][:, None] - units[1]).sum(axis=2)
    found = nearest(queries, np.array_split(training, 4), 3)
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :3], atol=1e-6)
    others = np.arange(9) != 3  # all training images but one are equally far from a zero
    expected = np.argsort(distances, axis=1)[:, :3]
    np.testing.assert_array_equal(found.rows[others], expected[others])
    assert found.rows[3, 0] == 17
    assert nearest(queries, [training[:2]], 3).rows.shape == (9, 2)


def test_both_axes_of_a_map_have_one_scale() -> None:
    grid = unpacked(on_grid(np.array([[0.0, 1.0], [10.0, 1.0], [5.0, 3.5]]))).reshape(3, 2)
    assert grid[:, 0].tolist() == [0, 65_535, round(65_535 / 2)]
    assert grid[2, 1] - grid[0, 1] == pytest.approx(65_535 / 4, abs=1)
    assert grid[0, 1] + grid[2, 1] == pytest.approx(65_535, abs=1)
    assert len(set(unpacked(on_grid(np.ones((3, 2)))).tolist())) == 1


def test_norms_are_counted_and_separate_as_scores_do() -> None:
    draw = np.random.default_rng(0)
    features = {"own": 2 + draw.random((300, 4)), "other": draw.random((200, 4))}
    names = [SimpleNamespace(entry=SimpleNamespace(name=name)) for name in (*features, "gone")]
    found = norms_of(SimpleNamespace(network=1, sets=names, features=features))
    assert [each.name for each in found.sets] == ["own", "other"]
    lengths = [np.linalg.norm(each, axis=1) for each in features.values()]
    assert found.sets[0].auroc is None
    assert found.sets[1].auroc == Curve.of(*lengths).auroc()
    for each, own in zip(found.sets, lengths, strict=True):
        counts = unpacked(each.counts)
        assert each.mean == pytest.approx(own.mean())
        assert (len(counts), counts.sum()) == (NORM_BINS, len(own))
    assert norms_of(SimpleNamespace(network=0, sets=names[::-1], features=features)) is None


def test_a_note_is_kept_once() -> None:
    notes = Notes()
    for line in ("one", "two", "one"):
        notes.note(line)
    assert notes.lines == ["one", "two"]


# What protanopes and deuteranopes see (Machado, Oliveira, Fernandes 2009), of linear RGB.
SIGHTS = {
    "normal": np.eye(3),
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
TO_LMS = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.63]]
TO_LAB = [[0.2105, 0.7936, -0.0041], [1.978, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_no_two_classes_of_a_map_look_alike(scheme: int) -> None:
    css = (resources.files("oodcli") / "reporting/explorer/web/images.css").read_text()
    found = re.findall(r"--cat-(\d+): #(\w{6})", css)
    names, codes = zip(*found[12 * scheme : 12 * (scheme + 1)], strict=True)
    assert names == tuple(map(str, range(12)))
    rgb = np.array([[int(code[at : at + 2], 16) for at in (0, 2, 4)] for code in codes]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    first, second = np.triu_indices(12, 1)
    least = {}
    for sight, matrix in SIGHTS.items():
        seen = np.clip(linear @ np.transpose(matrix), 0, 1)
        lab = np.cbrt(seen @ np.transpose(TO_LMS)) @ np.transpose(TO_LAB)
        distances = np.linalg.norm(lab[first] - lab[second], axis=1)
        same_mark = (second - first) % 7 == 0
        least[sight] = (distances.min(), distances[same_mark].min())
    # In units of Oklab; black and white are at 1. Classes of one mark differ the most.
    assert least["normal"][0] >= 0.15, least
    assert min(each for each, _ in least.values()) >= 0.08, least
    assert min(each for _, each in least.values()) >= 0.2, least
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    ground = [1.0, 0.013][scheme]
    contrast = (np.maximum(luminance, ground) + 0.05) / (np.minimum(luminance, ground) + 0.05)
    assert contrast.min() >= 3, contrast
