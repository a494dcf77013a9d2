"""Methods of several layers by hand, and against pytorch-ood, scikit-learn and SciPy."""

import numpy as np
import pytest
import torch
from scipy.stats import combine_pvalues
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods._blocks import BLOCK_MEANS, COMBINATIONS, BlockMeans, LayerScales
from oodcli.methods._stored import pack, unpack
from oodcli.methods.multilayer import MultiKNN, MultiMahalanobis
from oodcli.probes import Output
from tests.support.probing import Small, activations, pictures

WIDTHS = (3, 5)


def batch_of(means: Tensor) -> Activations:
    """Return activations of which only the pooled maps matter."""
    rest = torch.full((len(means), 2), torch.nan)
    return Activations(
        rest, rest, rest, torch.zeros(len(means)).long(), extra={"block-means": means}
    )


def reference_of(
    train: Tensor, labels: Tensor, calibration: Tensor, widths: tuple[int, ...] = WIDTHS
) -> Reference:
    parts = {"train": train, "calibration": calibration}
    return Reference(
        Head(torch.zeros(2, 2), torch.zeros(2)),
        load_labels=lambda: labels,
        load_probed=lambda part, probe, rows: {
            (BLOCK_MEANS, None): ActivationSet.of(batch_of(parts[part]))
        }[probe, rows],
        load_block_widths=lambda: widths,
    )


def random_problem() -> tuple[Reference, Tensor, Tensor, Tensor]:
    """Return a reference, its training means and labels, and images to score."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    centres = torch.randn(3, sum(WIDTHS), generator=generator)
    train, calibration = (
        centres[labels] + 0.6 * torch.randn(90, sum(WIDTHS), generator=generator) for _ in range(2)
    )
    scored = torch.cat([calibration[:20], 4 * torch.randn(20, sum(WIDTHS), generator=generator)])
    return reference_of(train, labels, calibration), train, labels, scored


def test_maps_are_averaged_block_by_block() -> None:
    network = Small()
    maps = {"stem": torch.tensor([[[[1.0, 3.0]]]]), "middle": torch.tensor([[[[-2.0]], [[8.0]]]])}
    maps["last"] = torch.tensor([[[[5.0, 5.0], [6.0, 8.0]]]])
    output = Output(torch.zeros(1, 2), torch.zeros(1, 3), maps)
    pooled = BlockMeans().observe(network, torch.zeros(1, 3, 8, 8), output)
    assert pooled.tolist() == [[2.0, -2.0, 8.0, 6.0]]
    whole = activations(network, pictures(3, seed=1), BLOCK_MEANS).extra["block-means"]
    assert whole.shape == (3, 5 + 6 + 8)
    # The feature of this network is the mean of its last map.
    torch.testing.assert_close(whole[:, 11:], activations(network, pictures(3, seed=1)).features)


def test_two_blocks_by_hand() -> None:
    # Block 1: classes at 0 and 10, each with -1 and 1 beside it: variance 1. Block 2: at 0 and 4
    # with -2 and 2 beside them: variance 4.
    train = torch.tensor([[-1.0, -2.0], [1.0, 2.0], [9.0, 2.0], [11.0, 6.0]])
    labels = torch.tensor([0, 0, 1, 1])
    calibration = torch.tensor([[0.0, 0.0], [2.0, 4.0], [12.0, 8.0]])
    reference = reference_of(train, labels, calibration, (1, 1))
    scored = batch_of(torch.tensor([[3.0, -6.0], [10.0, 5.0]]))
    fitted = MultiMahalanobis.fit(reference, by="mean")
    # 3² / 1 to class 0, (-6)² / 4; then 0, and (5 - 4)² / 4.
    expected = torch.tensor([[-9.0, -9.0], [0.0, -0.25]], dtype=torch.float64)
    torch.testing.assert_close(fitted.layer_scores(scored), expected)
    # Calibration scores: 0, -4, -4 in block 1; 0, 0 (4 is a mean), -4 in block 2.
    means, deviation = torch.tensor([-8 / 3, -4 / 3]), float(np.std([0, -4, -4]))
    standard = (expected - means) / deviation
    torch.testing.assert_close(fitted.score(scored), standard.mean(dim=1), rtol=1e-6, atol=0)
    least = MultiMahalanobis.fit(reference, by="minimum").score(scored)
    torch.testing.assert_close(least, standard.amin(dim=1), rtol=1e-6, atol=0)

    knn = MultiKNN.fit(reference_of(
        torch.tensor([[3.0, 4.0, 1.0], [1.0, 0.0, 1.0]]),
        torch.tensor([0, 1]),
        torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, -1.0]]),
        (2, 1),
    ), k=1)  # fmt: skip
    # Cosine 0.8 with (3, 4) / 5, and 1 with the only direction of block 2; then 1 and -1.
    found = knn.layer_scores(batch_of(torch.tensor([[0.0, 7.0, 2.0], [2.0, 0.0, -3.0]])))
    torch.testing.assert_close(found, torch.tensor([[-0.4, 0.0], [0.0, -4.0]]))


def test_mahalanobis_is_that_of_pytorch_ood() -> None:
    peer = pytest.importorskip("pytorch_ood.detector")
    reference, train, labels, scored = random_problem()
    ours = -MultiMahalanobis.fit(reference).layer_scores(batch_of(scored))
    blocks = [slice(0, 3), slice(3, 8)]
    detector = peer.MultiMahalanobis([torch.nn.Identity() for _ in blocks])
    detector.fit_structured([train[:, each] for each in blocks], labels)
    theirs = detector.predict_structured([scored[:, each] for each in blocks])
    # Its covariance is a sum over images, and its distance is halved.
    torch.testing.assert_close(
        ours.sum(dim=1).float() / (2 * len(train)), theirs, rtol=1e-4, atol=1e-6
    )


def test_neighbours_are_those_of_scikit_learn() -> None:
    reference, train, _, scored = random_problem()
    ours = MultiKNN.fit(reference, k=7).layer_scores(batch_of(scored))
    for at, columns in enumerate((slice(0, 3), slice(3, 8))):
        bank, units = (
            (rows[:, columns] / rows[:, columns].norm(dim=1, keepdim=True)).numpy()
            for rows in (train, scored)
        )
        distances, _ = NearestNeighbors(n_neighbors=7).fit(bank).kneighbors(units)
        np.testing.assert_allclose(-ours[:, at], distances[:, 6] ** 2, atol=1e-5)


def test_fisher_is_that_of_scipy() -> None:
    generator = torch.Generator().manual_seed(1)
    calibration = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    scales = LayerScales.of(calibration)
    scored = calibration[:12].roll(1, dims=1).clamp(-1.2, 1.2)  # within the range of every layer
    shares = [
        np.interp(scored[:, at], np.sort(calibration[:, at]), (np.arange(50) + 0.5) / 50)
        for at in range(3)
    ]
    found = scales.joined(scored, "fisher")
    for row, p in enumerate(np.stack(shares, axis=1)):
        statistic, _ = combine_pvalues(p, method="fisher")
        assert -2 * float(found[row]) == pytest.approx(statistic)


def test_extreme_images_do_not_tie() -> None:
    scales = LayerScales.of(torch.arange(20.0)[:, None].repeat(1, 2))
    far = -torch.tensor([1.0, 2.0, 50.0, 1e6, 1e9])[:, None].repeat(1, 2)
    for by in COMBINATIONS:
        assert bool((scales.joined(far, by).diff() < 0).all()), by


def test_the_last_block_alone_ranks_as_its_own_method() -> None:
    reference, _, _, scored = random_problem()
    alone = MultiMahalanobis.fit(reference, last=1)
    assert alone.layer_scores(batch_of(scored)).shape == (40, 1)
    own = alone.layer_scores(batch_of(scored))[:, 0]
    whole = MultiMahalanobis.fit(reference).layer_scores(batch_of(scored))
    torch.testing.assert_close(own, whole[:, 1])
    for by in COMBINATIONS:
        joined = MultiMahalanobis.fit(reference, last=1, by=by).score(batch_of(scored))
        assert torch.equal(joined.argsort(), own.argsort())


def test_several_settings_share_a_search() -> None:
    reference, _, _, scored = random_problem()
    names = ("k=3", "k=9", "k=9,by=mean", "k=5,last=1", "k=500")
    settings = [parse_method(f"multi-knn:{each}").fit(reference).detector for each in names]
    together = MultiKNN.score_all(settings, batch_of(scored))  # type: ignore[arg-type]
    for found, each in zip(together, settings, strict=True):
        torch.testing.assert_close(found, each.score(batch_of(scored)))


@pytest.mark.parametrize("name", ["multi-mahalanobis:by=mean", "multi-knn:k=5,last=1"])
def test_what_is_stored_scores_the_same(name: str) -> None:
    reference, _, _, scored = random_problem()
    detector = parse_method(name).fit(reference).detector
    again = unpack(*pack(detector))
    assert torch.equal(again.score(batch_of(scored)), detector.score(batch_of(scored)))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("multi-knn:last=3", "last must be at most the 2 blocks, not 3"),
        ("multi-mahalanobis:last=-1", "last must be at least 0, not -1"),
        ("multi-knn:k=0", "multi-knn:k must be at least 1, not 0"),
        ("multi-knn:by=median", "by"),
    ],
)
def test_wrong_parameters_are_refused(name: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        parse_method(name).fit(random_problem()[0])


def test_a_layer_without_differences_is_named() -> None:
    train = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    train[:, 1] = 2.0
    reference = reference_of(train, torch.arange(30) % 2, train, (1, 1))
    with pytest.raises(UndefinedMethodError, match=r"those of 30 images do not in layer 1;"):
        parse_method("multi-knn").fit(reference)
