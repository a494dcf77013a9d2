"""pNML."""

import math
from decimal import Context, Decimal, localcontext

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.pnml import PNML


def batch_of(features: torch.Tensor, head: Head) -> Activations:
    """Return activations of features."""
    logits = head(features)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


def reference_of(features: torch.Tensor, labels: list[int], head: Head) -> Reference:
    """Return a reference of training features."""
    train = batch_of(features, head)
    return Reference(
        head,
        load_train=lambda: ActivationSet.of(train),
        load_labels=lambda: torch.tensor(labels, dtype=torch.int64),
    )


HEAD = Head(torch.eye(2), torch.zeros(2))
# Three directions (1, 0) and one (0, 1): the second moments are 3 and 1.
POINTS = torch.tensor([[5.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 7.0]])


@pytest.mark.parametrize(("feature", "q"), [((9.0, 0.0), 1 / 3), ((0.0, 4.0), 1.0)])
def test_the_regret_is_that_of_the_formula(feature: tuple[float, float], q: float) -> None:
    found = PNML.fit(reference_of(POINTS, [0] * 4, HEAD))
    kappa = q / (1 + q)
    p = [math.e / (math.e + 1), 1 / (math.e + 1)]  # logits of the direction: 1 and 0
    regret = math.log(sum(x / (x + (1 - x) * x**kappa) for x in p)) / math.log(2)
    batch = batch_of(torch.tensor([feature]), HEAD)
    assert float(found.score(batch)) == pytest.approx(-math.log(regret), rel=1e-6)
    linear = PNML.fit(reference_of(POINTS, [0] * 4, HEAD), scale="linear")
    assert float(linear.score(batch)) == pytest.approx(-regret, rel=1e-6)


def test_certainty_has_no_regret() -> None:
    head = Head(torch.eye(2) * 1000, torch.zeros(2))
    certain = batch_of(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), head)
    linear = PNML.fit(reference_of(POINTS, [0] * 4, head), scale="linear")
    assert linear.score(certain).tolist() == [0.0, 0.0]
    found = PNML.fit(reference_of(POINTS, [0] * 4, head)).score(certain)
    # p_2 = e^-1000 and κ = 1/4: what is gained is p_2^(3/4).
    assert float(found[0]) == pytest.approx(750 + math.log(math.log(2)))
    assert float(found[1]) == torch.finfo(torch.float64).max


def test_what_no_training_image_has_does_not_count() -> None:
    found = PNML.fit(reference_of(POINTS[:3], [0] * 3, HEAD))
    assert found.whitening.shape == (2, 1)
    assert found.score(batch_of(torch.tensor([[0.0, 4.0]]), HEAD)).isfinite().all()


def test_a_single_class_is_refused() -> None:
    head = Head(torch.ones(1, 2), torch.zeros(1))
    with pytest.raises(
        UndefinedMethodError,
        match=r"^pnml is not defined here: it needs at least 2 classes, but the network has 1; ",
    ):
        parse_method("pnml").fit(reference_of(POINTS, [0] * 4, head))


def exact_log_regret(logits: list[float], kappa: Decimal) -> Decimal:
    """Return the logarithm of the regret by the formula of the paper, but for the base."""
    powers = [Decimal(each - max(logits)).exp() for each in logits]
    p = [each / sum(powers) for each in powers]
    return sum(x / (x + (1 - x) * x**kappa) for x in p).ln().ln()  # type: ignore[union-attr]


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_scores_rank_as_the_regret_does_in_many_digits(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(3, 5, generator=generator) * scale, torch.zeros(3))
    found = PNML.fit(reference_of(torch.randn(40, 5, generator=generator), [0] * 40, head))
    batch = batch_of(torch.randn(20, 5, generator=generator), head)
    units = batch.features.double() / batch.features.double().norm(dim=1, keepdim=True)
    energies = (units @ found.whitening).square().sum(dim=1).tolist()
    # The head works in float32.
    logits = head(units.float()).double().tolist()
    with localcontext(Context(prec=400, Emin=-(10**6), Emax=10**6)):
        wanted = [
            (Decimal(3).ln().ln() - exact_log_regret(row, Decimal(q) / (1 + Decimal(q))))
            for row, q in zip(logits, energies, strict=True)
        ]
    got = found.score(batch)
    assert got.tolist() == pytest.approx([float(each) for each in wanted], rel=1e-4, abs=1e-5)
    assert got.argsort().tolist() == sorted(range(20), key=wanted.__getitem__)
