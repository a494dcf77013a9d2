"""CoP, CoRP and PCA fusion: by hand, and next to NumPy in float64 from the formulas."""

from math import exp, log

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import parse_method
from oodcli.methods.kernel_pca import CoRP, FourierFeatures

GENERATOR = torch.Generator().manual_seed(0)
HEAD = Head(torch.randn(4, 6, generator=GENERATOR), torch.randn(4, generator=GENERATOR))
TRAIN = torch.randn(90, 6, generator=GENERATOR) * torch.tensor([4.0, 3, 2, 1, 0.5, 0.2]) + 1
QUERIES = torch.randn(11, 6, generator=GENERATOR) * 2


def batch_of(features: Tensor, head: Head = HEAD) -> Activations:
    """Return activations of features."""
    logits = head(features)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


def reference_of(features: Tensor, head: Head = HEAD) -> Reference:
    """Return a reference of training features."""
    return Reference(head, load_train=lambda: ActivationSet.of(batch_of(features, head)))


def scores(method: str, features: Tensor) -> list[float]:
    """Fit on the training features, and score."""
    found = parse_method(method).fit(reference_of(TRAIN)).detector
    return found.score(batch_of(features)).tolist()


def error(train: NDArray, points: NDArray, *, ratio: float = 0.0, dim: int = 0) -> NDArray:
    """Return reconstruction errors as the published code computes them."""
    mean = train.mean(axis=0)
    u, s, _ = np.linalg.svd((train - mean).T @ (train - mean))
    q = dim or next(i for i in range(1, len(s)) if s[:i].sum() / s.sum() >= ratio)
    kept = u[:, :q]
    centred = points - mean
    return np.linalg.norm(centred - centred @ kept @ kept.T, axis=1)


def unit(points: Tensor) -> NDArray:
    """Return rows divided by their lengths, float64."""
    wide = points.double().numpy()
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def test_cop_by_hand() -> None:
    # Directions (±1, 0) and (0, ±0.1) scaled: the mean is 0 and the first component the x axis.
    points = torch.tensor(
        [[1.0, 0.0], [-1.0, 0.0], [5.0, 0.0], [-5.0, 0.0], [0.6, 0.8], [-0.6, -0.8]]
    )
    points = torch.cat([points, points * torch.tensor([1.0, -1.0])])
    head = Head(torch.eye(2), torch.zeros(2))
    found = parse_method("cop:ratio=0.7").fit(reference_of(points, head)).detector
    queries = torch.tensor([[9.0, 0.0], [3.0, 4.0], [0.0, -7.0], [0.0, 0.0]])
    expected = [0.0, -0.8, -1.0, 0.0]
    assert found.score(batch_of(queries, head)).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.5, 0.85, 0.95])
def test_cop_is_the_error_of_the_published_code(ratio: float) -> None:
    expected = -error(unit(TRAIN), unit(QUERIES), ratio=ratio)
    assert scores(f"cop:ratio={ratio}", QUERIES) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("ratio", "gamma"), [(0.8, 2.0), (0.5, 0.5)])
def test_corp_is_the_error_of_the_published_code(ratio: float, gamma: float) -> None:
    found = CoRP.fit(reference_of(TRAIN), ratio=ratio, gamma=gamma, features=40, seed=3)
    w = found.map.frequencies.double().numpy().T
    u = found.map.phases.double().numpy()
    train, queries = (np.sqrt(2 / 40) * np.cos(unit(each) @ w.T + u) for each in (TRAIN, QUERIES))
    expected = -error(train, queries, ratio=ratio)
    assert found.score(batch_of(QUERIES)).tolist() == pytest.approx(expected, rel=1e-4)


def test_fourier_features_approximate_the_gaussian_kernel() -> None:
    drawn = FourierFeatures.draw(2, 200_000, 2.0, 0, torch.zeros(()))
    left, right = drawn.of(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    assert float(left @ right) == pytest.approx(exp(-2 * 0.8), abs=0.01)
    assert float(left @ left) == pytest.approx(1.0, abs=0.01)


def test_corp_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    assert scores("corp:features=40", QUERIES) == scores("corp:features=40", QUERIES)
    assert scores("corp:features=40", QUERIES) != scores("corp:features=40,seed=1", QUERIES)


def test_published_parameters_depend_on_the_number_of_classes() -> None:
    head = Head(torch.zeros(1000, 6), torch.zeros(1000))
    many = reference_of(TRAIN, head)
    assert parse_method("cop").fit(reference_of(TRAIN)).params["ratio"] == 0.85
    assert parse_method("cop").fit(many).params == {"ratio": 0.99, "components": 5}
    found = parse_method("corp:features=30").fit(many).params
    assert (found["ratio"], found["gamma"]) == (0.5, 3.0)


def test_pca_fusion_by_hand() -> None:
    points = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    head = Head(torch.eye(2), torch.zeros(2))
    found = parse_method("pca-fusion:dim=1").fit(reference_of(points, head)).detector
    queries = torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, 0.0]])
    # The mean is (1, 0), the component the x axis: of (3, 4) four fifths of the length are left.
    energies = [log(exp(3) + exp(4)), log(exp(5) + 1), log(2)]
    expected = [0.2 * energies[0], energies[1], 0.0]
    assert found.score(batch_of(queries, head)).tolist() == pytest.approx(expected, rel=1e-5)


def test_pca_fusion_is_that_of_the_published_code_without_clipping() -> None:
    train, f = TRAIN.double().numpy(), QUERIES.double().numpy()
    r = error(train, f, dim=2) / np.linalg.norm(f, axis=1)
    z = f @ HEAD.weight.double().numpy().T + HEAD.bias.double().numpy()
    expected = (1 - r) * np.log(np.exp(z).sum(axis=1))
    assert scores("pca-fusion:dim=2", QUERIES) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_an_eighth_of_the_width_is_the_default() -> None:
    head = Head(torch.zeros(2, 40), torch.zeros(2))
    train = torch.randn(90, 40, generator=torch.Generator().manual_seed(1))
    assert parse_method("pca-fusion").fit(reference_of(train, head)).params == {"dim": 5}


@pytest.mark.parametrize("ratio", ["0", "1", "1.5", "nan"])
@pytest.mark.parametrize("name", ["cop", "corp"])
def test_a_ratio_lies_between_0_and_1(name: str, ratio: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name}:ratio must be more than 0 and less than"):
        parse_method(f"{name}:ratio={ratio}").fit(reference_of(TRAIN))


def test_what_leaves_nothing_out_is_refused() -> None:
    with pytest.raises(
        UndefinedMethodError, match=r"cop is not defined for ratio 0\.99999: it tak"
    ):
        parse_method("cop:ratio=0.99999").fit(reference_of(TRAIN))
    with pytest.raises(
        UndefinedMethodError, match="features of width 6 are reconstructed entirely"
    ):
        parse_method("pca-fusion:dim=6").fit(reference_of(TRAIN))
