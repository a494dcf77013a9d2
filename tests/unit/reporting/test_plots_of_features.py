"""Pictures of features: the values behind them, worked by hand, and room for all names."""

from pathlib import Path

import numpy as np
import pytest

from oodcli.errors import CorruptArtifactError, InvalidInputError
from oodcli.reporting.embedding import Embedding, shown_rows, stored_embedding
from oodcli.reporting.plots import PAGE, Picture
from oodcli.reporting.plots_of_features import Classes, TopSums, sums_scatter, tsne_map
from oodcli.store.store import Store
from tests.support.pictures import LONG, overlaps, smallest_text


def embedding(*names: str, n: int = 3) -> Embedding:
    points = {
        name: np.arange(2 * n, dtype=np.float32).reshape(n, 2) + 10 * at
        for at, name in enumerate(names)
    }
    return Embedding({name: np.arange(n) for name in names}, points)


def test_half_of_the_places_are_id_and_sets_share_the_others() -> None:
    counts = {"id": 10_000, "a": 10_000, "b": 40, "c": 10_000}
    rows = shown_rows(counts, np.arange(10_000) % 10)
    assert [len(at) for at in rows.values()] == [2_500, 1_230, 40, 1_230]
    assert np.bincount(rows["id"] % 10).tolist() == [250] * 10
    assert [len(at) for at in shown_rows({"id": 30, "a": 20}, None).values()] == [30, 20]
    assert [len(at) for at in shown_rows({"id": 90, "a": 2}, None, 50).values()] == [48, 2]


def test_points_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    rng = np.random.default_rng(0)
    features = {name: rng.random((8, 3), dtype=np.float32) for name in ("id", "a")}
    first = stored_embedding(store, tmp_path / "e", features)
    monkeypatch.setattr(
        "oodcli.reporting.embedding.neighbour_map", lambda *_, **__: pytest.fail("twice")
    )
    again = stored_embedding(store, tmp_path / "e", features)
    assert list(again.points) == ["id", "a"]
    assert again.points["id"].shape == (8, 2)
    for name in features:
        np.testing.assert_array_equal(again.points[name], first.points[name])
        np.testing.assert_array_equal(again.rows[name], first.rows[name])
    features["a"] = features["a"][::-1]
    with pytest.raises(pytest.fail.Exception, match="twice"):
        stored_embedding(store, tmp_path / "e", features)
    next((tmp_path / "e").iterdir()).write_bytes(b"")
    features["a"] = features["a"][::-1]
    with pytest.raises(CorruptArtifactError, match="damaged"):
        stored_embedding(store, tmp_path / "e", features)


def test_too_few_images_and_infinite_features_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(InvalidInputError, match="t-SNE needs at least four images, not 3"):
        stored_embedding(store, tmp_path, {"id": np.zeros((3, 2), np.float32)})
    with pytest.raises(InvalidInputError, match="features that are finite"):
        stored_embedding(store, tmp_path, {"id": np.full((12, 2), np.inf, np.float32)})


def test_images_are_drawn_by_class_and_ood_sets_over_them() -> None:
    classes = Classes(np.array([1, 0, 1]), ("cat", "dog"))
    picture = tsne_map("run", embedding("cifar10", "svhn"), classes)
    by_class, pair = picture.figure.axes
    drawn = {each.get_label(): each.get_offsets().tolist() for each in by_class.collections}
    assert drawn == {"cat": [[2, 3]], "dog": [[0, 1], [4, 5]]}
    drawn = {each.get_label(): each.get_offsets().tolist() for each in pair.collections}
    assert drawn == {
        "in distribution, all classes": [[0, 1], [2, 3], [4, 5]],
        "out of distribution": [[10, 11], [12, 13], [14, 15]],
    }
    assert by_class.get_xlim() == pair.get_xlim()
    assert picture.alt == "t-SNE of features: 3 of cifar10, 3 of svhn"
    unknown = tsne_map("run", embedding("cifar10", "svhn"), None).figure.axes[0]
    assert len(unknown.collections) == 1


def test_classes_of_one_picture_differ() -> None:
    names = tuple(f"class {at}" for at in range(21))
    found = tsne_map("run", embedding("id", "a", n=21), Classes(np.arange(21), names))
    looks = {
        (str(each.get_facecolor()), str(each.get_paths()[0].vertices.tolist()))
        for each in found.figure.axes[0].collections
    }
    assert len(looks) == 21


def test_sums_are_of_the_largest_features() -> None:
    features = np.array([[4, 0, 2, 2], [0, 0, 0, 0]], np.float32)
    found = TopSums.of(features, 75)
    assert (found.total.tolist(), found.top.tolist()) == ([8.0, 0.0], [4.0, 0.0])
    assert found.ratio.tolist() == [2.0, 1.0]
    # round(4 x 0.625) is 2, halves to even; and one feature counts at least.
    assert TopSums.of(features, 62.5).top[0] == 6.0
    assert TopSums.of(features, 100).top[0] == 4.0


def test_the_ratio_is_that_of_scale() -> None:
    import torch

    from oodcli.activations import Activations
    from oodcli.methods._descending import descending, kept_count

    features = np.random.default_rng(0).gamma(1, 1, (5, 64)).astype(np.float32)
    batch = Activations(
        torch.zeros(5, 2), torch.from_numpy(features), torch.zeros(5, 1), torch.zeros(5).long()
    )
    expected = descending(batch).ratio(kept_count(64, 85))
    np.testing.assert_allclose(TopSums.of(features, 85).ratio, expected.numpy(), rtol=1e-5)


def test_sums_are_drawn_with_auroc_of_their_ratio() -> None:
    sums = {
        "cifar10": TopSums(np.array([8.0, 6.0]), np.array([2.0, 2.0])),  # ratios 4 and 3
        "svhn": TopSums(np.array([7.0, 4.0]), np.array([2.0, 2.0])),  # 3.5 and 2
    }
    picture = sums_scatter("run", sums, 85.0)
    (axes,) = picture.figure.axes
    drawn = {each.get_label(): each.get_offsets().tolist() for each in axes.collections}
    assert drawn == {
        "in distribution": [[8, 2], [6, 2]],
        "out of distribution": [[7, 2], [4, 2]],
    }
    assert axes.get_title() == "svhn\nAUROC 75.0 %"
    x, y = axes.lines[0].get_data()
    np.testing.assert_allclose(np.asarray(x) / np.asarray(y), 3.5)


def many(count: int) -> list[Picture]:
    rng = np.random.default_rng(0)
    names = ["cifar10", *(f"{LONG}{at}" if count > 1 else "svhn" for at in range(count))]
    classes = Classes(np.arange(3), [f"{LONG}{at}" for at in range(10)])
    features = {name: rng.gamma(1, 1, (9, 16)).astype(np.float32) for name in names}
    sums = {name: TopSums.of(values, 85) for name, values in features.items()}
    return [tsne_map(LONG, embedding(*names), classes), sums_scatter(LONG, sums, 85)]


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow), 20])
def test_there_is_room_for_every_name(count: int) -> None:
    for picture in many(count):
        assert overlaps(picture) == [], picture.name
        assert smallest_text(picture) >= 8
        assert picture.figure.get_figwidth() <= PAGE
