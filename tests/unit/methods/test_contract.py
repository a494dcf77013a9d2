"""What every method promises, over the whole registry and every combination of its halves."""

import pytest
import torch

from oodcli.activations import Activations, Reference
from oodcli.methods import METHODS, Fitted, parse_method
from oodcli.metrics import evaluate

SHAPERS = [name for name, method in METHODS.items() if method.is_shaper]
SCORERS = [name for name, method in METHODS.items() if method.is_logit_scorer]
EVERY = [name for name in METHODS if name not in SHAPERS] + [
    f"{shaper}+{scorer}" for shaper in SHAPERS for scorer in SCORERS
]


@pytest.fixture(params=EVERY)
def fitted(request: pytest.FixtureRequest, reference: Reference) -> Fitted:
    """Return each method in turn, fitted with its defaults."""
    return parse_method(request.param).fit(reference)


def rows(batch: Activations, index: torch.Tensor) -> Activations:
    """Return chosen rows of a batch."""
    return batch.map(lambda values: values[index])


def test_gives_one_finite_float_per_image(fitted: Fitted, id_batch: Activations) -> None:
    scores = fitted.detector.score(id_batch)
    assert scores.shape == (len(id_batch),)
    assert scores.is_floating_point()
    assert scores.isfinite().all()


def test_scores_id_images_higher(
    fitted: Fitted, id_batch: Activations, ood_batch: Activations
) -> None:
    id_scores = fitted.detector.score(id_batch).numpy()
    ood_scores = fitted.detector.score(ood_batch).numpy()
    assert evaluate(id_scores, ood_scores).auroc > 0.9


def test_does_not_depend_on_row_order(fitted: Fitted, id_batch: Activations) -> None:
    order = torch.randperm(len(id_batch), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        fitted.detector.score(rows(id_batch, order)), fitted.detector.score(id_batch)[order]
    )


def test_does_not_depend_on_batch_size(fitted: Fitted, id_batch: Activations) -> None:
    one_by_one = torch.cat(
        [fitted.detector.score(rows(id_batch, torch.tensor([i]))) for i in range(len(id_batch))]
    )
    torch.testing.assert_close(one_by_one, fitted.detector.score(id_batch))


def test_leaves_its_input_alone(fitted: Fitted, id_batch: Activations) -> None:
    before = {name: values.clone() for name, values in id_batch.arrays().items()}
    fitted.detector.score(id_batch)
    for name, values in id_batch.arrays().items():
        assert torch.equal(values, before[name]), name


def test_gives_the_same_twice(fitted: Fitted, id_batch: Activations) -> None:
    assert torch.equal(fitted.detector.score(id_batch), fitted.detector.score(id_batch))


def test_zero_features_give_a_finite_score(fitted: Fitted, id_batch: Activations) -> None:
    nothing = id_batch.map(torch.zeros_like)
    assert fitted.detector.score(nothing).isfinite().all()


def test_defaults_leave_the_name_bare(reference: Reference) -> None:
    for name in EVERY:
        assert parse_method(name).canonical == name
        assert parse_method(name).fit(reference).canonical == name
