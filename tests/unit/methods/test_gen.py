"""GEN by hand."""

from math import log

import pytest
import torch

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method
from oodcli.methods.base import score_many
from oodcli.methods.gen import GEN

LOGITS = torch.tensor([[log(0.2), log(0.5), log(0.3)]])


def test_gen_is_the_negative_sum_of_powers() -> None:
    wanted = -(0.25**0.5 + 0.21**0.5 + 0.16**0.5)
    assert GEN(gamma=0.5, scale="linear").score_logits(LOGITS).tolist() == pytest.approx([wanted])
    assert GEN(gamma=0.5).score_logits(LOGITS).tolist() == pytest.approx([-log(-wanted)])


def test_only_the_m_largest_probabilities_count() -> None:
    wanted = -(0.25**0.1 + 0.21**0.1)
    assert GEN(m=2, scale="linear").score_logits(LOGITS).tolist() == pytest.approx([wanted])
    assert GEN(m=3).score_logits(LOGITS).tolist() == GEN(m=1000).score_logits(LOGITS).tolist()


@pytest.mark.parametrize("m", [1, 2])
def test_what_a_very_confident_image_leaves_is_not_rounded_away(m: int) -> None:
    """In float32 ``1 - p`` would be 0 from a logit of 17 on."""
    got = GEN(m=m, scale="linear").score_logits(torch.tensor([[20.0, 0.0], [30.0, 0.0]]))
    rest = [torch.tensor(-20.0).exp().item(), torch.tensor(-30.0).exp().item()]
    assert got.tolist() == pytest.approx([-m * each**0.1 for each in rest], rel=1e-5)


def test_a_certain_prediction_scores_zero() -> None:
    certain = torch.tensor([[1000.0, 0.0]])
    assert GEN(gamma=1, scale="linear").score_logits(certain).tolist() == [0.0]
    assert GEN(gamma=10).score_logits(certain).tolist() == pytest.approx([10_000 - log(2)])


@pytest.mark.parametrize("counts", [(1, 2, 5), (5, 100), (2,)])
def test_settings_scored_together_score_as_alone(counts: tuple[int, ...]) -> None:
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    batch = Activations(logits, torch.zeros(9, 1), torch.zeros(9, 1), logits.argmax(dim=1))
    detectors = [
        GEN(gamma, m, scale) for gamma in (0.1, 2.0) for m in counts for scale in ("log", "linear")
    ]
    alone = torch.stack([each.score(batch) for each in detectors], dim=1)
    torch.testing.assert_close(score_many(detectors, batch), alone.double())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("gen:gamma=0", "gen:gamma must be a positive number, not 0"),
        ("gen:m=0", "gen:m must be at least 1, not 0"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(written: str, message: str) -> None:
    bare = Reference(Head(torch.zeros(2, 2), torch.zeros(2)))
    with pytest.raises(InvalidInputError, match=message):
        parse_method(written).fit(bare)
