"""Each method by hand, from the formula that its docstring cites."""

from math import exp, log

import numpy as np
import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method


def batch(
    logits: list[list[float]],
    features: list[list[float]] | None = None,
    norms: list[list[float]] | None = None,
) -> Activations:
    """Make activations of the values that a test is about."""
    z = torch.tensor(logits)
    f = torch.tensor(features) if features else torch.zeros(len(z), 2)
    b = torch.tensor(norms) if norms else torch.zeros(len(z), 1)
    return Activations(z, f, b, z.argmax(dim=1))


@pytest.fixture
def bare() -> Reference:
    """Return a reference that has a last layer of two classes and nothing to learn from."""
    return Reference(
        Head(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.5, 0.0])), n_blocks=2
    )


def score(method: str, of: Activations, reference: Reference) -> list[float]:
    """Fit and score."""
    return parse_method(method).fit(reference).detector.score(of).tolist()


def test_msp_is_the_largest_softmax_value(bare: Reference) -> None:
    of = batch([[1.0, 3.0], [0.0, 0.0]])
    got = score("msp:scale=probability", of, bare)
    assert got == pytest.approx([exp(3) / (exp(1) + exp(3)), 0.5])
    assert score("msp", of, bare) == [2.0, 0.0]


def test_msp_divides_logits_by_its_temperature(bare: Reference) -> None:
    got = score("msp:temperature=2", batch([[1.0, 3.0]]), bare)
    assert got == [1.0]
    got = score("msp:temperature=2,scale=probability", batch([[1.0, 3.0]]), bare)
    assert got == pytest.approx([1 / (1 + exp(-1))])


def test_maxlogit_is_the_largest_logit(bare: Reference) -> None:
    assert score("maxlogit", batch([[1.0, -3.0], [-2.0, -1.0]]), bare) == [1.0, -1.0]


def test_energy_is_the_log_of_the_sum_of_exponentials(bare: Reference) -> None:
    got = score("energy", batch([[1.0, 3.0]]), bare)
    assert got == pytest.approx([log(exp(1) + exp(3))])


def test_energy_with_temperature(bare: Reference) -> None:
    got = score("energy:temperature=2", batch([[1.0, 3.0]]), bare)
    assert got == pytest.approx([2 * log(exp(0.5) + exp(1.5))])


def test_energy_of_huge_logits_does_not_overflow(bare: Reference) -> None:
    assert score("energy", batch([[1000.0, 1000.0]]), bare) == pytest.approx([1000 + log(2)])


def test_featurenorm_reads_the_chosen_block(bare: Reference) -> None:
    got = score("featurenorm:block=1", batch([[0.0, 0.0]], norms=[[3.0, 7.0]]), bare)
    assert got == [7.0]


def test_featurenorm_takes_the_block_of_the_largest_mean_ratio() -> None:
    def norms(values: list[list[float]]) -> ActivationSet:
        return ActivationSet.of(batch([[0.0]] * len(values), norms=values))

    # Block 0 has ratios 4 and 1 (mean 2.5), block 1 has 2 and 2; the ratio of means would be 8/5
    # against 2, so a mean of ratios is told from a ratio of means.
    reference = Reference(
        Head(torch.zeros(1, 2), torch.zeros(1)),
        load_train=lambda: norms([[4.0, 2.0], [4.0, 2.0]]),
        load_jigsaw=lambda: norms([[1.0, 1.0], [4.0, 1.0]]),
        n_blocks=2,
    )
    fitted = parse_method("featurenorm").fit(reference)
    assert fitted.params == {"block": 0}
    assert fitted.detector.score(batch([[0.0]], norms=[[5.0, 9.0]])).tolist() == [5.0]


def test_selected_norm_keeps_the_direction_and_replaces_the_length(bare: Reference) -> None:
    of = batch([[0.0, 0.0]], features=[[3.0, 4.0]], norms=[[10.0, 5.0]])
    # f' = 5 · (0.6, 0.8) = (3, 4) for block 1; z' = (3 + 0.5, 8)
    assert score("norm:block=1+maxlogit", of, bare) == pytest.approx([8.0])
    # f' = (6, 8) for block 0; z' = (6.5, 16)
    got = score("norm:block=0+energy", of, bare)
    assert got == pytest.approx([log(exp(6.5) + exp(16))])


def test_selected_norm_of_a_zero_feature_gives_the_bias(bare: Reference) -> None:
    of = batch([[0.0, 0.0]], features=[[0.0, 0.0]], norms=[[10.0, 5.0]])
    assert score("norm:block=1+maxlogit", of, bare) == [0.5]


def test_a_shaper_alone_is_followed_by_energy() -> None:
    assert parse_method("norm").canonical == "norm+energy"


def test_a_block_that_is_not_there_is_refused(bare: Reference) -> None:
    with pytest.raises(InvalidInputError, match="no block 2: this network has blocks 0 to 1"):
        parse_method("featurenorm:block=2").fit(bare)
    with pytest.raises(InvalidInputError, match="no block -1"):
        parse_method("norm:block=-1+msp").fit(bare)


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
def test_a_temperature_that_is_not_positive_is_refused(bare: Reference, value: str) -> None:
    with pytest.raises(InvalidInputError, match="energy:temperature must be a positive number"):
        parse_method(f"energy:temperature={value}").fit(bare)


def test_a_named_block_needs_no_training_images(bare: Reference) -> None:
    """``bare`` raises as soon as its training images are touched."""
    assert parse_method("featurenorm:block=0").fit(bare).params == {"block": 0}
    with pytest.raises(InvalidInputError, match="needs training images"):
        parse_method("featurenorm").fit(bare)


def test_params_of_a_combination_are_distinguished(bare: Reference) -> None:
    fitted = parse_method("norm:block=1+energy:temperature=2").fit(bare)
    assert fitted.params == {"norm.block": 1, "energy.temperature": 2.0}


@pytest.mark.parametrize("name", ["svhn_crops", "dtd10_32", "test"])
@pytest.mark.parametrize("method", ["msp", "maxlogit", "energy"])
def test_agrees_with_published_code_on_real_activations(
    shared, bare: Reference, method: str, name: str
) -> None:
    with np.load(shared / "reference" / "activations.npz") as stored:
        logits = torch.from_numpy(stored[f"{name}/logits"])
    with np.load(shared / "reference" / "scores.npz") as stored:
        wanted = stored[f"{method}/{name}"]
    of = Activations(
        logits, torch.zeros(len(logits), 1), torch.zeros(len(logits), 1), logits.argmax(dim=1)
    )
    published = "msp:scale=probability" if method == "msp" else method
    got = np.array(score(published, of, bare))
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
