"""Conformal p-values against their definition and their promise."""

import numpy as np
import pytest
from scipy.stats import binom

from oodcli.screening.conformal import conformal_p_values


def test_p_values_count_id_scores_that_are_not_larger() -> None:
    rng = np.random.default_rng(0)
    known, scores = np.sort(rng.normal(size=50).round(1)), rng.normal(size=40).round(1)
    wanted = [(1 + sum(one <= score for one in known)) / 51 for score in scores]
    assert conformal_p_values(known, scores).tolist() == wanted
    assert conformal_p_values(known, [-9, 9]).tolist() == [1 / 51, 1.0]


@pytest.mark.parametrize("decimals", [9, 1])  # without and with ties
def test_p_values_of_id_images_are_small_as_rarely_as_they_say(decimals: int) -> None:
    rng = np.random.default_rng(1)
    draws = 20_000
    known = np.sort(rng.normal(size=(draws, 99)).round(decimals), axis=1)
    new = rng.normal(size=draws).round(decimals)
    found = np.array([conformal_p_values(*pair) for pair in zip(known, new, strict=True)])
    for level in (0.01, 0.05, 0.25):
        hits = int((found <= level).sum())
        assert hits <= binom.ppf(0.9999, draws, level)
        if decimals == 9:  # without ties the promise is exact at multiples of 1 / 100
            assert hits >= binom.ppf(0.0001, draws, level)
