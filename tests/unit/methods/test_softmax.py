"""Scores of probabilities: distinct logits stay distinct, however confident, and rank exactly."""

from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods import METHODS, parse_method
from oodcli.methods.contract import Problem
from oodcli.methods.softmax import Softmax
from oodcli.metrics import evaluate

Exact = Callable[[list[Decimal]], Decimal]


def probabilities(logits: list[Decimal]) -> list[Decimal]:
    """Return the softmax in many digits."""
    powers = [(each - max(logits)).exp() for each in logits]
    return [each / sum(powers) for each in powers]


EXACT: dict[str, Exact] = {
    "msp": max,
    "doctor": lambda p: sum((each * each for each in p), Decimal(0)),
    "entropy": lambda p: sum((each * each.ln() for each in p), Decimal(0)),
    "gen:gamma=0.5": lambda p: -sum(((each * (1 - each)).sqrt() for each in p), Decimal(0)),
    "t2fnorm:temperature=1": max,
    "odin:temperature=1": max,
}


def exactly(score: Exact, logits: torch.Tensor) -> np.ndarray:
    """Return the rank of every row by the formula in 250 digits."""
    with localcontext(Context(prec=250, Emin=-(10**6), Emax=10**6)):
        values = [score(probabilities([Decimal(z) for z in row])) for row in logits.tolist()]
    order = sorted(set(values))
    return np.array([order.index(each) for each in values])


def scored(method: str, logits: torch.Tensor) -> torch.Tensor:
    """Return the scores of a method that looks at logits alone."""
    bare = Reference(Head(torch.zeros(logits.shape[1], 1), torch.zeros(logits.shape[1])))
    detector = parse_method(method).fit(bare).detector
    extra = {probe.key: logits for probe in getattr(detector, "probes", ())}
    zeros = torch.zeros(len(logits), 1)
    return detector.score(Activations(logits, zeros, zeros, logits.argmax(dim=1), extra=extra))


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
def test_scores_rank_as_the_formula_does_in_many_digits(method: str, scale: float) -> None:
    logits = 4 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    logits[:10] = logits[0] * torch.linspace(0.5, 1.5, 10)[:, None]
    logits *= scale
    wanted = exactly(EXACT[method], logits)
    assert len(set(wanted)) == 30
    got = scored(method, logits)
    assert got.unique().numel() == 30
    assert (got.argsort().argsort().numpy() == wanted).all()


@pytest.mark.parametrize("method", ["msp", "doctor"])
@pytest.mark.parametrize("scale", [1, 3, 10])
def test_large_logits_of_a_real_network_keep_its_areas(
    shared: Path, method: str, scale: int
) -> None:
    """Published code gives other areas here: its scores tie in float32."""
    with np.load(shared / "reference" / "activations.npz") as stored:
        inside, outside = (
            torch.from_numpy(stored[f"{name}/logits"][:100]) * scale
            for name in ("test", "svhn_crops")
        )
    wanted = exactly(EXACT[method], torch.cat([inside, outside]))
    got = evaluate(scored(method, inside).numpy(), scored(method, outside).numpy()).auroc
    assert got == pytest.approx(evaluate(wanted[:100], wanted[100:]).auroc, abs=1e-12)
    published = scored(f"{method}:scale=probability", torch.cat([inside, outside]))
    assert (published.unique().numel() < 200) == (scale > 1)


def test_log_odds_are_those_of_the_probability() -> None:
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    for method in ("msp", "doctor"):
        published = scored(f"{method}:scale=probability", logits)
        assert published.dtype == torch.float32
        torch.testing.assert_close(
            scored(method, logits), published.double().logit(), rtol=1e-5, atol=1e-5
        )


def test_log_odds_have_no_end() -> None:
    logits = torch.tensor([[5000.0, 0.0, 0.0], [6000.0, 0.0, 0.0]])
    assert scored("msp", logits).tolist() == pytest.approx([5000 - np.log(2), 6000 - np.log(2)])
    assert scored("doctor", logits).tolist() == pytest.approx([5000 - np.log(4), 6000 - np.log(4)])


def test_what_the_largest_probability_leaves_is_not_rounded() -> None:
    found = Softmax.of(torch.tensor([[100.0, 0.0, 0.0], [0.0, 1.0, -torch.inf]]))
    p = found.log_p.exp()
    rest = found.complement(p)
    assert rest[0, 0].item() == pytest.approx(2 * np.exp(-100.0), rel=1e-12)
    assert p[1].tolist() == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e), 0.0])
    assert rest[1].tolist() == pytest.approx([np.e / (1 + np.e), 1 / (1 + np.e), 1.0])


# NAC counts images, so that scores of one count are the same.
COUNTING = {"nac"}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, method in METHODS.items()
        if "logits" in method.inputs and name not in COUNTING and not method.needs_network
    ],
)
def test_confident_images_do_not_tie_in_any_method(name: str, problem: Problem) -> None:
    def sharper(batch: Activations) -> Activations:
        return Activations(10 * batch.logits, batch.features, batch.block_norms, batch.predictions)

    plain = problem.reference
    train = sharper(next(plain.train.chunks(rows=10**6)))
    reference = Reference(
        Head(10 * plain.head.weight, 10 * plain.head.bias),
        load_train=lambda: ActivationSet.of(train),
        load_labels=lambda: plain.labels,
        load_calibration=lambda: ActivationSet.of(train),
        load_calibration_labels=lambda: (plain.labels + (torch.arange(len(train)) % 9 == 0)) % 4,
    )
    scores = parse_method(name).fit(reference).detector.score(sharper(problem.id_batch))
    assert scores.unique().numel() == len(scores)
