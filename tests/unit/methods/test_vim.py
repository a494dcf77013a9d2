"""ViM and Residual."""

import math

import pytest
import torch

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods.vim import Residual, ViM, principal_dim


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


# The origin is -(1, 0): where both logits are 0.
HEAD = Head(torch.eye(2), torch.tensor([1.0, 0.0]))
# From there the features go 4 along the first axis, and 1 up or down.
POINTS = torch.tensor([[3.0, 1.0], [3.0, -1.0]])


def test_the_residual_is_seen_from_the_origin_of_the_logits() -> None:
    found = Residual.fit(reference_of(POINTS, [0, 0], HEAD))
    assert found.dim == 1
    scores = found.score(batch_of(torch.tensor([[50.0, 0.0], [-1.0, 3.0], [2.0, -0.5]]), HEAD))
    torch.testing.assert_close(scores, torch.tensor([0.0, -3.0, -0.5]), atol=1e-5, rtol=1e-5)


def test_the_virtual_logit_is_as_large_as_the_largest_on_training_images() -> None:
    found = ViM.fit(reference_of(POINTS, [0, 0], HEAD))
    # Largest logits 4 and 4; residuals 1 and 1.
    assert found.alpha == pytest.approx(4)
    scores = found.score(batch_of(torch.tensor([[1.0, 0.5]]), HEAD))
    assert float(scores) == pytest.approx(math.log(math.exp(2) + math.exp(0.5)) - 4 * 0.5)


@pytest.mark.parametrize(
    ("width", "dim"), [(4096, 1000), (2048, 1000), (768, 512), (512, 256), (64, 32), (2, 1)]
)
def test_the_default_depends_on_the_width(width: int, dim: int) -> None:
    reference = Reference(Head(torch.zeros(2, width), torch.zeros(2)))
    assert principal_dim("vim", reference, None) == dim


def test_all_directions_leave_no_residual() -> None:
    reference = reference_of(POINTS, [0, 0], HEAD)
    message = (
        "vim is not defined for dim 2: features of width 2 have no residual then; "
        "choose less, as in vim:dim=1"
    )
    with pytest.raises(UndefinedMethodError, match=f"^{message}$"):
        ViM.fit(reference, dim=2)
    with pytest.raises(UndefinedMethodError, match=r"^residual is not defined for dim 3"):
        Residual.fit(reference, dim=3)
    with pytest.raises(InvalidInputError, match=r"^residual:dim must be at least 1, not 0$"):
        Residual.fit(reference, dim=0)


def test_training_features_in_their_principal_space_have_no_virtual_logit() -> None:
    line = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    with pytest.raises(
        UndefinedMethodError, match=r"^vim is not defined for dim 1: the training fe"
    ):
        ViM.fit(reference_of(line, [0, 0, 0], HEAD))


def test_both_share_the_residual() -> None:
    reference = reference_of(POINTS, [0, 0], HEAD)
    vim, residual = ViM.fit(reference), Residual.fit(reference)
    assert vim.space is residual.space
    batch = batch_of(POINTS, HEAD)
    assert vim.space.lengths(batch) is residual.space.lengths(batch)


def test_a_head_of_less_than_full_rank_has_its_origin_where_it_was_before_rounding() -> None:
    """Rounded to float32, the tenth singular value is not zero but noise, and is not inverted."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(10, 16, generator=generator, dtype=torch.float64)
    exact -= exact.mean(dim=0)  # the rows add up to zero: rank 9
    bias = torch.randn(10, generator=generator)
    wanted = -torch.linalg.pinv(exact, rtol=1e-12) @ bias.double()
    features = torch.randn(40, 16, generator=generator)
    reference = reference_of(features, [0] * 40, Head(exact.float(), bias))
    assert torch.linalg.matrix_rank(exact.float().double()) == 10
    space = Residual.fit(reference).space
    # What the space leaves of a feature is seen from the origin.
    assert float(space.lengths_of(wanted.float()[None])) < 1e-4
    assert space.offset.norm() < wanted.norm() < 2
