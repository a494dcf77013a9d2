"""KL matching by hand."""

from decimal import Context, Decimal, localcontext
from math import log

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods.klm import KLMatching


def activations(probabilities: list[list[float]]) -> Activations:
    """Make activations of images with these class probabilities."""
    logits = torch.tensor(probabilities).log()
    n = len(logits)
    return Activations(logits, torch.zeros(n, 1), torch.zeros(n, 1), logits.argmax(dim=1))


def reference(calibration: Activations) -> Reference:
    """Make a reference that has nothing but calibration images."""
    head = Head(torch.zeros(3, 1), torch.zeros(3))
    return Reference(head, load_calibration=lambda: ActivationSet.of(calibration))


def test_the_nearest_mean_prediction_counts() -> None:
    seen = activations([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    fitted = KLMatching.fit(reference(seen))
    # The typical predictions are (0.7, 0.2, 0.1) and (0.1, 0.8, 0.1); of class 2 there is none.
    got = fitted.score(activations([[0.5, 0.25, 0.25], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    first = 0.5 * log(0.5 / 0.7) + 0.25 * log(0.25 / 0.2) + 0.25 * log(0.25 / 0.1)
    third = 0.1 * log(0.1 / 0.7) + 0.1 * log(0.1 / 0.2) + 0.8 * log(0.8 / 0.1)
    assert got.tolist() == pytest.approx([-first, 0.0, -third], abs=1e-6)


def test_a_certain_prediction_among_calibration_images_leaves_distances_finite() -> None:
    certain = Activations(
        torch.tensor([[2000.0, 0.0, 0.0]]), torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0])
    )
    fitted = KLMatching.fit(reference(certain))
    far, near = fitted.score(activations([[0.1, 0.8, 0.1], [0.98, 0.01, 0.01]])).tolist()
    # The typical prediction is (1, e^-2000, e^-2000).
    own = 0.2 * log(0.1) + 0.8 * log(0.8)
    assert far == pytest.approx(-(own + 0.9 * 2000))
    assert near == pytest.approx(-(0.98 * log(0.98) + 0.02 * log(0.01) + 0.02 * 2000))
    assert fitted.score(certain).tolist() == [0.0]


def exact_distances(calibration: torch.Tensor, scored: torch.Tensor) -> list[Decimal]:
    """Return the distances by the formula; the digits are those of the context."""

    def softmax(row: list[float]) -> list[Decimal]:
        powers = [Decimal(z - max(row)).exp() for z in row]
        return [each / sum(powers) for each in powers]

    groups: dict[int, list[list[Decimal]]] = {}
    for row in calibration.tolist():
        groups.setdefault(row.index(max(row)), []).append(softmax(row))
    typical = [
        [(sum(column) / len(rows)).ln() for column in zip(*rows, strict=True)]
        for rows in groups.values()
    ]
    return [
        min(sum(p * (p.ln() - q) for p, q in zip(ps, logs, strict=True)) for logs in typical)
        for ps in map(softmax, scored.tolist())
    ]


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_distances_are_exact_and_tie_only_where_no_float64_tells_them_apart(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    seen, new = (4 * scale * torch.randn(n, 3, generator=generator) for n in (12, 20))
    zeros = torch.zeros(20, 1)
    calibration = Activations(seen, zeros[:12], zeros[:12], seen.argmax(dim=1))
    fitted = KLMatching.fit(reference(calibration))
    got = fitted.score(Activations(new, zeros, zeros, new.argmax(dim=1))).tolist()
    with localcontext(Context(prec=700, Emin=-(10**6), Emax=10**6)):
        wanted = exact_distances(seen, new)
        assert got == pytest.approx([-float(each) for each in wanted], rel=1e-13)
        first_of: dict[float, Decimal] = {}
        for score, exact in zip(got, wanted, strict=True):
            assert abs(first_of.setdefault(score, exact) - exact) <= Decimal("1e-15") * exact
