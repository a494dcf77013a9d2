"""Ensembles average ranks among calibration images, and rank what lies beyond them too."""

import pytest
import torch
from scipy.stats import rankdata

from oodcli.activations import Activations, ActivationSet, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError, UnknownNameError
from oodcli.methods import parse_method
from oodcli.methods.ensemble import RankScale
from oodcli.scoring.tune import parameter_settings


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("ensemble:knn+energy", "ensemble:knn+energy"),
        ("ensemble: knn:k=50 + energy:temperature=2.0", "ensemble:knn+energy:temperature=2"),
        ("ensemble:norm+energy+mds++", "ensemble:norm+energy+mds++"),
        ("ensemble:scale:percentile=65+knn+knn:k=5", "ensemble:scale:percentile=65+knn+knn:k=5"),
    ],
)
def test_the_canonical_name_is_read_again(written: str, canonical: str) -> None:
    spec = parse_method(written)
    assert spec.canonical == canonical
    assert parse_method(canonical) == spec
    assert "calibration" in spec.inputs
    assert parameter_settings(spec) == [spec]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("ensemble", "has no members"),
        ("ensemble:", "has no members"),
        ("ensemble:knn", "has 1 member, and an ensemble needs two or more"),
        ("ensemble:knn+knn:k=50", "'knn:k=50' appears twice"),
        ("ensemble:norm+norm", "'norm' appears twice"),
        ("ensemble:knn+ensemble:energy+msp", "contains an ensemble"),
        ("ensemble:knn+auto", "there is no run here"),
        ("auto", "there is no run here; name a method"),
    ],
)
def test_what_is_no_ensemble_is_reported(written: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_method(written)


def test_an_unknown_member_is_reported() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'knn'"):
        parse_method("ensemble:energy+knm")


def test_the_score_is_the_mean_rank_among_calibration_images(reference: Reference) -> None:
    names = ("energy", "knn:k=5", "norm+energy")
    fitted = parse_method("ensemble:energy+knn:k=5+norm").fit(reference)
    members = [parse_method(name).fit(reference).detector for name in names]
    (batch,) = reference.calibration.chunks(10**6)
    ranks = [(rankdata(m.score(batch)) - 0.5) / len(batch) for m in members]
    torch.testing.assert_close(fitted.detector.score(batch), torch.tensor(sum(ranks) / 3))
    assert fitted.params["knn.k"] == 5
    assert fitted.params["energy.temperature"] == 1
    assert fitted.params["norm.energy.temperature"] == 1
    assert isinstance(fitted.params["norm.block"], int)


def test_members_of_one_name_have_parameters_of_their_own(reference: Reference) -> None:
    params = parse_method("ensemble:knn:k=3+knn:k=7").fit(reference).params
    assert (params["knn.k"], params["knn-2.k"]) == (3, 7)


def test_calibration_images_are_scored_once(reference: Reference) -> None:
    loads = []
    whole = reference.calibration

    def counted() -> ActivationSet:
        loads.append(1)
        return whole

    again = Reference(
        head=reference.head,
        load_train=lambda: reference.train,
        load_calibration=counted,
        n_blocks=reference.n_blocks,
    )
    first = parse_method("ensemble:energy+knn:k=3").fit(again).detector
    second = parse_method("ensemble:knn:k=3+energy").fit(again).detector
    assert len(loads) == 1
    assert first.scales[0] is second.scales[1]


def test_ranks_rise_everywhere_and_far_images_do_not_tie() -> None:
    scale = RankScale.of(torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0, 9.0]))
    values = torch.cat([-torch.logspace(12, -3, 90), torch.linspace(0, 10, 400),
                        torch.logspace(1.01, 12, 90)])  # fmt: skip
    ranks = scale.ranks(values)
    assert (ranks.diff() > 0).all()
    assert ranks.isfinite().all()
    # Two of six share the middle of ranks 2 and 3; between 3 and 5 the way is straight.
    expected = torch.tensor([0.5, 2.0, 3.5, 4.0, 4.5, 5.5], dtype=torch.float64) / 6
    torch.testing.assert_close(scale.ranks(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])), expected)


def test_the_continuation_starts_as_steep_as_the_outer_tenth() -> None:
    values = torch.linspace(0, 1, 101, dtype=torch.float64)
    scale = RankScale.of(values)
    step = 1e-7
    for end, sign in ((0.0, -1), (1.0, 1)):
        at = scale.ranks(torch.tensor([end, end + sign * step], dtype=torch.float64))
        slope = float((at[1] - at[0]) / (sign * step))
        assert slope == pytest.approx(100 / 101, rel=1e-3)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0, 1.0], "all calibration images have the same"), ([1.0, float("inf")], "not finite")],
)
def test_scores_that_rank_nothing_are_refused(scores: list[float], message: str) -> None:
    with pytest.raises(UndefinedMethodError, match=message):
        RankScale.of(torch.tensor(scores))


def test_a_member_that_ranks_nothing_is_named(reference: Reference) -> None:
    (batch,) = reference.calibration.chunks(10**6)
    flat = Activations(
        torch.zeros_like(batch.logits), batch.features, batch.block_norms, batch.predictions
    )
    same = Reference(
        head=reference.head,
        load_train=lambda: reference.train,
        load_calibration=lambda: ActivationSet.of(flat),
    )
    with pytest.raises(UndefinedMethodError, match="msp cannot be ranked: all calibration"):
        parse_method("ensemble:msp+knn").fit(same)
