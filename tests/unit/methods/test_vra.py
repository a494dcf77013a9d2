"""VRA by hand."""

import numpy as np
import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method
from oodcli.methods.vra import VRA

HEAD = Head(torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 0.0]]), torch.tensor([0.5, 0.0]))


def activations(features: list[list[float]]) -> Activations:
    """Make activations with these features."""
    f = torch.tensor(features)
    logits = HEAD(f)
    return Activations(logits, f, torch.zeros(len(f), 1), logits.argmax(dim=1))


@pytest.fixture
def reference() -> Reference:
    """Return a reference whose six calibration features are 0 to 5."""
    calibration = activations([[0.0, 5.0, 1.0], [3.0, 4.0, 2.0]])
    return Reference(HEAD, load_calibration=lambda: ActivationSet.of(calibration))


def test_features_are_clipped_from_both_sides() -> None:
    # (0.2, 9, 2) becomes (1, 3, 2).
    got = VRA(HEAD, 1.0, 3.0).logits(activations([[0.2, 9.0, 2.0]]))
    assert got.tolist() == [[6.5, 6.0]]


def test_low_features_become_zero_in_the_form_of_the_paper() -> None:
    # (0.2, 9, 1) becomes (0, 3, 1): what is not below the threshold stays.
    got = VRA(HEAD, 1.0, 3.0, "zero").logits(activations([[0.2, 9.0, 1.0]]))
    assert got.tolist() == [[4.5, 6.0]]


def test_both_thresholds_are_percentiles_of_all_calibration_features(reference: Reference) -> None:
    fitted = VRA.fit(reference)
    wanted = np.percentile(range(6), [10, 90])
    assert (fitted.low_threshold, fitted.high_threshold) == pytest.approx(tuple(wanted))
    assert fitted.floor == "low"
    params = parse_method("vra").fit(reference).params
    assert (params["vra.low"], params["vra.high"]) == (10.0, 90.0)
    assert params["vra.low_threshold"] == pytest.approx(wanted[0])
    assert params["vra.high_threshold"] == pytest.approx(wanted[1])


def test_the_parameters_are_written_as_words_and_numbers(reference: Reference) -> None:
    fitted = parse_method("vra:low=20,high=80,floor=zero+maxlogit").fit(reference)
    assert fitted.canonical == "vra:floor=zero,high=80,low=20+maxlogit"
    # Thresholds 1 and 4: (0.5, 9, 2) becomes (0, 4, 2).
    assert fitted.detector.score(activations([[0.5, 9.0, 2.0]])).tolist() == [8.0]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("vra:low=90", "vra:low must be less than vra:high, not 90 and 90"),
        ("vra:low=100", "vra:low must be at least 0 and less than 100, not 100"),
        ("vra:high=-1", "vra:high must be at least 0 and less than 100, not -1"),
        ("vra:floor=top", "vra:floor must be low or zero, not 'top'"),
    ],
)
def test_thresholds_that_mean_nothing_are_refused(
    reference: Reference, written: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_method(written).fit(reference)
