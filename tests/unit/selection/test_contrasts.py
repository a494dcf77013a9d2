"""Choosing: AUROC by placement, families of equal weight, draws of images and families."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from oodcli.selection.contrasts import (
    Contrast,
    aurocs,
    bootstrap_merits,
    family_weights,
    greedy_ensemble,
    merits,
)


def contrast(kind: str, family: str, gaps: list[float], n: int = 300, seed: int = 1) -> Contrast:
    """Return candidates whose scores of spoilt images lie lower by so many deviations."""
    rng = np.random.default_rng(seed)
    ids = rng.normal(size=(n, len(gaps)))
    return Contrast(kind, family, ids, rng.normal(size=(n, len(gaps))) - np.array(gaps))


def test_auroc_counts_ties_half() -> None:
    rng = np.random.default_rng(7)
    ids = rng.integers(0, 6, (80, 3)).astype(float)
    pseudo = rng.integers(0, 5, (80, 3)).astype(float)
    found, influence = aurocs(ids, pseudo)
    truth = np.r_[np.ones(80), np.zeros(80)]
    for column in range(3):
        theirs = roc_auc_score(truth, np.r_[ids[:, column], pseudo[:, column]])
        assert found[column] == pytest.approx(theirs)
    np.testing.assert_allclose(influence.mean(axis=0), 0, atol=1e-12)


def test_the_influence_of_images_gives_the_spread_of_auroc() -> None:
    each = contrast("blur", "blur", [1.0], n=400)
    first_order = bootstrap_merits([each], draws=400, seed=0)[:, 0]
    generator = np.random.default_rng(5)
    drawn = []
    for _ in range(400):
        rows = generator.integers(0, 400, 400)
        drawn.append(aurocs(each.id_scores[rows], each.pseudo_scores[rows])[0][0])
    assert first_order.mean() == pytest.approx(each.auroc[0], abs=0.003)
    assert first_order.std() == pytest.approx(np.std(drawn), rel=0.15)


def test_every_family_counts_the_same() -> None:
    families = ["jigsaw", "jigsaw", "blur", "jigsaw"]
    np.testing.assert_allclose(family_weights(families), [1 / 6, 1 / 6, 1 / 2, 1 / 6])
    table = np.array([[0.6], [0.9], [1.0], [0.9]])
    assert merits(table, families)[0] == pytest.approx((0.8 + 1.0) / 2)


def test_bootstrap_samples_omit_each_family_in_turn() -> None:
    # The first candidate is right about blur alone, the second about noise alone.
    parts = [
        contrast("blur", "blur", [3.0, 0.0]),
        contrast("noise", "noise", [0.0, 3.0], seed=2),
    ]
    draws = bootstrap_merits(parts, draws=100, seed=3)
    assert draws.shape == (100, 2)
    assert (draws[0::2].argmax(axis=1) == 1).all()  # without blur
    assert (draws[1::2].argmax(axis=1) == 0).all()  # without noise
    np.testing.assert_array_equal(draws, bootstrap_merits(parts, draws=100, seed=3))
    assert (draws != bootstrap_merits(parts, draws=100, seed=4)).any()


def test_candidates_that_help_each_other_are_joined() -> None:
    # The two see different halves of what is spoilt; the third sees nothing.
    parts = [
        contrast("blur", "blur", [2.0, 0.3, 0.0], n=800),
        contrast("noise", "noise", [0.3, 1.9, 0.0], n=800, seed=2),
    ]
    assert set(greedy_ensemble(parts)) == {0, 1}
    assert greedy_ensemble(parts, max_members=1) == (greedy_ensemble(parts)[0],)
    assert greedy_ensemble(parts, min_gain=0.5) == (greedy_ensemble(parts)[0],)
    twice = [0, 0]
    same = [
        Contrast("b", "b", each.id_scores[:, twice], each.pseudo_scores[:, twice]) for each in parts
    ]
    assert greedy_ensemble(same) == (0,)
