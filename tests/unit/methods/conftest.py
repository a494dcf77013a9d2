"""A toy problem: a class is a direction of feature space, and OOD images go less far along it."""

import pytest

from oodcli.activations import Activations, Head, Reference
from oodcli.methods.contract import Problem, toy_problem


@pytest.fixture
def problem() -> Problem:
    """Return the problem on which every method is tried."""
    return toy_problem()


@pytest.fixture
def head(problem: Problem) -> Head:
    """Return a last layer that reads the class directions."""
    return problem.reference.head


@pytest.fixture
def id_batch(problem: Problem) -> Activations:
    """Return strongly activated images."""
    return problem.id_batch


@pytest.fixture
def ood_batch(problem: Problem) -> Activations:
    """Return weakly activated images."""
    return problem.ood_batch


@pytest.fixture
def reference(problem: Problem) -> Reference:
    """Return training images, and jigsaws whose norm falls most in block 1."""
    return problem.reference
