"""Scores of probabilities: distinct logits stay distinct, however confident, and rank exactly."""

from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods import METHODS, parse_method
from oodcli.methods._softmax import Softmax
from oodcli.methods.contract import Problem
from oodcli.metrics import evaluate

# Of every class its probability and what that leaves to 1, in 100 digits each.
Shares = list[tuple[Decimal, Decimal]]
Lack = Callable[[Shares], Decimal]


def shares(logits: list[float]) -> Shares:
    """Return probabilities and complements, these as sums: no difference drops a digit."""
    powers = [Decimal(each - max(logits)).exp() for each in logits]
    total = sum(powers)
    return [
        (one / total, (sum(powers[:c] + powers[c + 1 :])) / total) for c, one in enumerate(powers)
    ]


def minus_log(p: Decimal, q: Decimal) -> Decimal:
    """Return ``-log p`` for ``q = 1 - p``."""
    return -p.ln() if q > Decimal("1e-40") else q + q**2 / 2 + q**3 / 3


# What a prediction lacks to certainty: the less, the larger the score.
LACKS: dict[str, Lack] = {
    "msp": lambda both: min(q for _, q in both),
    "doctor": lambda both: sum((p * q for p, q in both), Decimal(0)),
    "entropy": lambda both: sum((p * minus_log(p, q) for p, q in both), Decimal(0)),
    "gen:gamma=0.5": lambda both: sum(((p * q).sqrt() for p, q in both), Decimal(0)),
    "gen:gamma=10,m=2": lambda both: sum(((p * q) ** 10 for p, q in sorted(both)[-2:]), Decimal(0)),
    "tempscale": lambda both: min(q for _, q in both),
    "t2fnorm:temperature=1": lambda both: min(q for _, q in both),
    "odin:temperature=1": lambda both: min(q for _, q in both),
}


def exactly(lack: Lack, logits: torch.Tensor) -> np.ndarray:
    """Return the rank of every row by the formula in 100 digits."""
    with localcontext(Context(prec=100, Emin=-(10**6), Emax=10**6)):
        values = [-lack(shares(row)) for row in logits.double().tolist()]
    order = sorted(set(values))
    return np.array([order.index(each) for each in values])


def scored(method: str, logits: torch.Tensor) -> torch.Tensor:
    """Return the scores of a method that looks at logits alone."""
    zeros = torch.zeros(4, 1)
    half = torch.tensor([[np.log(3), 0.0]] * 4, dtype=torch.float32)
    bare = Reference(
        Head(torch.zeros(logits.shape[1], 1), torch.zeros(logits.shape[1])),
        # For the temperature 1: as many are right as the probability says.
        load_calibration=lambda: ActivationSet.of(Activations(half, zeros, zeros, half.argmax(1))),
        load_calibration_labels=lambda: torch.tensor([0, 0, 0, 1]),
    )
    detector = parse_method(method).fit(bare).detector
    extra = {probe.key: logits for probe in getattr(detector, "probes", ())}
    zeros = torch.zeros(len(logits), 1)
    return detector.score(Activations(logits, zeros, zeros, logits.argmax(dim=1), extra=extra))


@pytest.mark.parametrize("method", LACKS)
@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0, 100.0, 1000.0])
def test_scores_rank_as_the_formula_does_in_many_digits(method: str, scale: float) -> None:
    logits = 4 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    logits[:10] = logits[0] * torch.linspace(0.5, 1.5, 10)[:, None]
    logits *= scale
    wanted = exactly(LACKS[method], logits)
    assert len(set(wanted)) == 30
    got = scored(method, logits)
    assert got.unique().numel() == 30
    assert (got.argsort().argsort().numpy() == wanted).all()


@pytest.mark.parametrize("method", ["msp", "doctor", "entropy"])
@pytest.mark.parametrize("scale", [1, 3, 10, 1000])
def test_large_logits_of_a_real_network_keep_its_areas(
    shared: Path, method: str, scale: int
) -> None:
    """Published code gives other areas here: its scores tie in float32."""
    with np.load(shared / "reference" / "activations.npz") as stored:
        inside, outside = (
            torch.from_numpy(stored[f"{name}/logits"][:100]) * scale
            for name in ("test", "svhn_crops")
        )
    wanted = exactly(LACKS[method], torch.cat([inside, outside]))
    got = evaluate(scored(method, inside).numpy(), scored(method, outside).numpy()).auroc
    assert got == pytest.approx(evaluate(wanted[:100], wanted[100:]).auroc, abs=1e-12)
    if method != "entropy":
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
    p, rest = found.log_p.exp(), found.log_complement.exp()
    assert rest[0, 0].item() == pytest.approx(2 * np.exp(-100.0), rel=1e-12)
    assert p[1].tolist() == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e), 0.0])
    assert rest[1].tolist() == pytest.approx([np.e / (1 + np.e), 1 / (1 + np.e), 1.0])


# NAC counts images, so that scores of one count are the same. Distances of KL matching and of
# Igeood come near those of certain images, which are not 0, so that rounding makes them tie.
SCALES = {"nac": (), "klm": (10,), "igeood": (10,)}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        (name, scale)
        for name, method in METHODS.items()
        if {"logits", "head"} & set(method.inputs)
        and not method.needs_network
        and not method.is_zero_shot
        and not method.kept_head
        and "jigsaw" not in method.inputs
        for scale in SCALES.get(name, (10, 1000))
    ],
)
def test_confident_images_do_not_tie_in_any_method(name: str, scale: int, problem: Problem) -> None:
    def sharper(batch: Activations) -> Activations:
        return Activations(
            scale * batch.logits, batch.features, batch.block_norms, batch.predictions
        )

    plain = problem.reference
    train = sharper(next(plain.train.chunks(rows=10**6)))
    reference = Reference(
        Head(scale * plain.head.weight, scale * plain.head.bias),
        load_train=lambda: ActivationSet.of(train),
        load_labels=lambda: plain.labels,
        load_calibration=lambda: ActivationSet.of(train),
        load_calibration_labels=lambda: (plain.labels + (torch.arange(len(train)) % 9 == 0)) % 4,
    )
    scores = parse_method(name).fit(reference).detector.score(sharper(problem.id_batch))
    assert scores.unique().numel() == len(scores)
