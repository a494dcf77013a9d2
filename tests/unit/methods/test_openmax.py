"""OpenMax."""

import math
from decimal import Context, Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import weibull_min

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods.openmax import OpenMax, Weibull


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
GENERATOR = torch.Generator().manual_seed(0)


def test_the_distributions_are_those_of_scipy() -> None:
    tails = torch.rand(3, 12, generator=GENERATOR, dtype=torch.float64) * 5 + 1
    tails[1, 7:] = torch.nan
    found = Weibull.of(tails)
    for c in range(3):
        given = tails[c][~tails[c].isnan()]
        moved = (given - given.min() + 10_000).numpy()
        shape, _, scale = weibull_min.fit(moved, floc=0)
        distance = given.max() + 1
        expected = weibull_min.cdf(float(distance - given.min()) + 10_000, shape, scale=scale)
        cdf = found.cdf(distance[None], torch.tensor([c]))
        assert float(cdf) == pytest.approx(expected, rel=1e-3)
        assert float(found.least[c]) == float(given.min())


def test_a_tail_of_one_distance_is_a_step() -> None:
    found = Weibull.of(torch.tensor([[2.0, math.nan]]).double())
    cdf = found.cdf(torch.tensor([1.9, 2.1]).double(), torch.tensor([0, 0]))
    assert cdf.tolist() == pytest.approx([0.0, 1.0])


def cross(centre: float) -> list[list[float]]:
    return [[centre - 1, 0.0], [centre + 1, 0.0], [centre, 1.0], [centre, -2.0]]


POINTS = torch.tensor(cross(10.0) + [[y, x] for x, y in cross(8.0)])
LABELS = [0] * 4 + [1] * 4


def test_shares_of_the_largest_logits_go_to_the_unknown() -> None:
    found = OpenMax.fit(reference_of(POINTS, LABELS, HEAD), tail=3, alpha=5)
    assert found.means.tolist() == [[10.0, -0.25], [-0.25, 8.0]]
    logits = torch.tensor([9.0, 2.0]).double()
    distances = (logits - found.means).norm(dim=1)
    w = found.tails.cdf(distances, torch.tensor([0, 1])).tolist()
    assert 0 < w[0] < 1
    # More ranks than classes: the weights are those of two ranks.
    first, second = 9 * (1 - w[0] * 2 / 2), 2 * (1 - w[1] * 1 / 2)
    unknown = 9 + 2 - first - second
    total = math.exp(first) + math.exp(second) + math.exp(unknown)
    expected = (math.exp(max(first, second)) - math.exp(unknown)) / total
    batch = batch_of(torch.tensor([[9.0, 2.0]]), HEAD)
    assert float(found.score(batch)) == pytest.approx(2 * math.atanh(expected), rel=1e-9)
    plain = OpenMax.fit(reference_of(POINTS, LABELS, HEAD), tail=3, alpha=5, scale="probability")
    assert float(plain.score(batch)) == pytest.approx(expected, abs=1e-9)


def test_images_that_are_classified_wrongly_are_in_no_mean() -> None:
    points = torch.cat([POINTS, torch.tensor([[0.0, 50.0]])])
    right = OpenMax.fit(reference_of(POINTS, LABELS, HEAD))
    found = OpenMax.fit(reference_of(points, [*LABELS, 0], HEAD))
    assert torch.equal(found.means, right.means)
    assert torch.equal(found.tails.scale, right.tails.scale)


def test_more_classes_than_features_are_measured_in_fewer_coordinates() -> None:
    weight = torch.randn(5, 2, generator=GENERATOR)
    head = Head(weight, torch.randn(5, generator=GENERATOR))
    points = torch.randn(60, 2, generator=GENERATOR) * 3
    labels = head(points).argmax(dim=1).tolist()
    found = OpenMax.fit(reference_of(points, labels, head))
    assert found.means.shape == (5, 2)
    batch = batch_of(points, head)
    hits = [batch.logits[[i for i, y in enumerate(labels) if y == c]] for c in set(labels)]
    means = torch.stack([z.mean(dim=0) for z in hits])
    assert found.basis is not None
    for c, mean in zip(sorted(set(labels)), means, strict=True):
        plain = (batch.logits - mean).norm(dim=1).double()
        fewer = (batch.logits.double() @ found.basis - found.means[c]).norm(dim=1)
        torch.testing.assert_close(fewer, plain, rtol=1e-5, atol=1e-5)


def test_a_class_without_images_is_wholly_unknown() -> None:
    reference = reference_of(POINTS[:4], LABELS[:4], HEAD)
    found = OpenMax.fit(reference, alpha=1, scale="probability")
    assert float(found.score(batch_of(torch.tensor([[0.0, 9.0]]), HEAD))) < -0.9


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(UndefinedMethodError, match=r"^openmax is not defined if no training imag"):
        OpenMax.fit(reference_of(POINTS[:4], [1] * 4, HEAD))
    reference = reference_of(POINTS, LABELS, HEAD)
    with pytest.raises(InvalidInputError, match=r"^openmax:tail must be at least 1, not 0$"):
        OpenMax.fit(reference, tail=0)
    with pytest.raises(InvalidInputError, match=r"^openmax:alpha must be at least 1, not 0$"):
        OpenMax.fit(reference, alpha=0)
    with pytest.raises(InvalidInputError, match=r"^openmax:translation must be a positive number"):
        OpenMax.fit(reference, translation=0)


class OneDistribution:
    """A Weibull distribution of two parameters, fitted to one tail as libmr's ``fit_high``."""

    def __init__(self, tail: NDArray[np.float64], translation: float) -> None:
        self.move = translation - tail.min()
        logs = np.log(tail + self.move)
        centred = logs - logs.max()

        def slope(shape: float) -> float:
            """Return the derivative of the likelihood over the scale that is best for a shape."""
            powers = np.exp(shape * centred)
            return float((powers * logs).sum() / powers.sum() - 1 / shape - logs.mean())

        self.shape = brentq(slope, 1e-2, 1e9, xtol=1e-12, rtol=1e-14, maxiter=500)
        self.scale = math.exp(
            logs.max() + math.log(np.exp(self.shape * centred).mean()) / self.shape
        )

    def w(self, distance: float) -> float:
        """Return the probability of a smaller distance."""
        at = max(0.0, distance + self.move)
        return -math.expm1(-((at / self.scale) ** self.shape))


def by_the_authors_recipe(
    train: NDArray[np.float64],
    labels: NDArray[np.int64],
    scored: NDArray[np.float64],
    *,
    tail: int,
    alpha: int,
    translation: float,
) -> list[float]:
    """Return ``max_c P_c - P_unknown``, image by image and class by class in numpy and scipy."""
    models, present = {}, []
    for c in range(train.shape[1]):
        right = train[(labels == c) & (train.argmax(axis=1) == c)]
        if len(right):
            present.append(c)
        if len(right) > 2:
            mean = right.mean(axis=0)
            distances = np.sort(np.sqrt(((right - mean) ** 2).sum(axis=1)))
            models[c] = mean, OneDistribution(distances[-tail:], translation)
    scores = []
    for logits in scored:
        revised, unknown = logits.copy(), 0.0
        for i, c in enumerate(np.argsort(-logits)[:alpha], start=1):
            w = 1.0
            if c in models:
                mean, model = models[c]
                w = model.w(float(np.sqrt(((logits - mean) ** 2).sum())))
            moved = logits[c] * w * (alpha + 1 - i) / alpha
            revised[c] -= moved
            unknown += moved
        powers = np.exp(np.append(revised, unknown) - max(revised.max(), unknown))
        known = max(powers[c] for c in present)
        scores.append(float((known - powers[-1]) / powers.sum()))
    return scores


SETTINGS = [(20, 3, 10_000.0), (20, 3, 1.0), (5, 10, 10_000.0), (100, 2, 10_000.0)]


@pytest.mark.parametrize(("tail", "alpha", "translation"), SETTINGS)
def test_a_real_network_scores_as_by_the_recipe_of_the_authors(
    shared: Path, tail: int, alpha: int, translation: float
) -> None:
    """Both agree with libmr itself to 1.3e-5, which stops its search earlier."""
    with np.load(shared / "reference" / "activations.npz") as stored:
        train, labels = stored["train/logits"], stored["train/labels"]
        scored = np.concatenate([stored[f"{n}/logits"][:150] for n in ("test", "svhn_crops")])
    logits = torch.from_numpy(train)
    batch = Activations(logits, logits, logits[:, :1], logits.argmax(dim=1))
    # Ten classes of ten features, so that distances are those of the logits.
    reference = Reference(
        Head(torch.eye(10), torch.zeros(10)),
        load_train=lambda: ActivationSet.of(batch),
        load_labels=lambda: torch.from_numpy(labels),
    )
    options = {"tail": tail, "alpha": alpha, "translation": translation}
    wide = [each.astype(np.float64) for each in (train, scored)]
    wanted = by_the_authors_recipe(wide[0], labels, wide[1], **options)
    found = OpenMax.fit(reference, **options, scale="probability")
    new = torch.from_numpy(scored)
    got = found.score(Activations(new, new, new[:, :1], new.argmax(dim=1)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("tail", "alpha", "translation"), [(3, 3, 10_000.0), (6, 10, 1.0)])
def test_many_classes_with_few_images_score_as_by_the_recipe_of_the_authors(
    tail: int, alpha: int, translation: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    head = Head(torch.randn(120, 16, generator=generator), torch.randn(120, generator=generator))
    # Images of some classes are never classified correctly, and of some there are one or two.
    labels = torch.arange(720) % 115
    features = head.weight[labels] + torch.randn(720, 16, generator=generator)
    reference = reference_of(features, labels.tolist(), head)
    hits = torch.bincount(labels[head(features).argmax(dim=1) == labels], minlength=120)
    assert 3 < hits.float().mean() < 5
    assert set(hits.tolist()) == set(range(8))
    batch = batch_of(torch.randn(90, 16, generator=generator) * 2, head)
    options = {"tail": tail, "alpha": alpha, "translation": translation}
    wide = [each.double().numpy() for each in (head(features), batch.logits)]
    # No shape fits best to one distance, or to the two equal ones of two images.
    steps = ((hits == 1) | (hits == 2))[batch.logits.topk(alpha, dim=1).indices].any(dim=1)
    plain = (~steps).nonzero()[:, 0].tolist()
    assert len(plain) > 20
    wanted = by_the_authors_recipe(wide[0], labels.numpy(), wide[1][plain], **options)
    found = OpenMax.fit(reference, **options, scale="probability")
    np.testing.assert_allclose(found.score(batch)[plain], wanted, rtol=0, atol=1e-5)


def exact_log_odds(found: OpenMax, row: list[float]) -> Decimal:
    """Return ``log((1 + d) / (1 - d))`` for ``d = max_c P_c - P_unknown``, from sums alone."""
    tails, logits, unknown = found.tails, [Decimal(z) for z in row], Decimal(0)
    for rank, c in enumerate(sorted(range(len(row)), key=lambda c: -row[c])[: found.alpha]):
        mean = [Decimal(each) for each in found.means[c].tolist()]
        pairs = zip((Decimal(z) for z in row), mean, strict=True)
        distance = sum((z - m) ** 2 for z, m in pairs).sqrt()  # type: ignore[union-attr]
        at = max(distance - Decimal(float(tails.least[c])) + Decimal(tails.translation), Decimal(0))
        hazard = (at / Decimal(float(tails.scale[c]))) ** Decimal(float(tails.shape[c]))
        w = 1 - (-hazard).exp() if hazard < 1000 else Decimal(1)
        moved = w * (found.alpha - rank) / found.alpha * Decimal(row[c])
        logits[c] -= moved
        unknown += moved
    peak = max(*logits, unknown)
    *others, known = sorted((each - peak).exp() for each in logits)
    rest = sum(others, Decimal(0))
    return (2 * known + rest).ln() - (2 * (unknown - peak).exp() + rest).ln()


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0, 100.0, 1000.0])
def test_scores_rank_as_the_difference_of_probabilities_does_in_many_digits(scale: float) -> None:
    generator = torch.Generator().manual_seed(4)
    head = Head(torch.randn(4, 6, generator=generator) * scale, torch.zeros(4))
    features = torch.randn(200, 6, generator=generator)
    labels = head(features).argmax(dim=1).tolist()
    found = OpenMax.fit(reference_of(features, labels, head), tail=10)
    assert found.basis is None
    batch = batch_of(torch.randn(40, 6, generator=generator), head)
    with localcontext(Context(prec=500, Emin=-(10**6), Emax=10**6)):
        wanted = [exact_log_odds(found, row) for row in batch.logits.double().tolist()]
    assert len(set(wanted)) == 40
    got = found.score(batch)
    assert got.tolist() == pytest.approx([float(each) for each in wanted], rel=1e-6)
    assert got.argsort().tolist() == sorted(range(40), key=wanted.__getitem__)
