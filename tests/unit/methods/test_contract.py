"""What every method promises, over the whole registry and every combination of its halves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import METHODS, parse_method
from oodcli.methods.base import Method
from oodcli.methods.contract import CHECKS, Problem, Trial, check, findings, problem_for

# Those that look into the network are tried on one in test_probe_contract.py.
PLAIN = {n: m for n, m in METHODS.items() if not m.needs_network}
SHAPERS = [name for name, method in PLAIN.items() if method.is_shaper]
SCORERS = [name for name, method in PLAIN.items() if method.is_logit_scorer]
EVERY = [name for name in PLAIN if name not in SHAPERS] + [
    f"{shaper}+{scorer}" for shaper in SHAPERS for scorer in SCORERS
]


@pytest.fixture(scope="module", params=EVERY)
def name(request: pytest.FixtureRequest) -> str:
    """Return each method in turn."""
    return request.param


@pytest.mark.parametrize("what", CHECKS)
def test_must(name: str, what: str, problem: Problem) -> None:
    spec = parse_method(name)
    CHECKS[what](Trial(spec, problem_for(spec, problem)))


def test_defaults_leave_the_name_bare(name: str, problem: Problem) -> None:
    spec = parse_method(name)
    assert spec.canonical == name
    assert spec.fit(problem_for(spec, problem).reference).canonical == name


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.is_zero_shot])
def test_a_method_for_text_embeddings_is_refused_where_the_last_layer_was_trained(
    name: str, problem: Problem
) -> None:
    with pytest.raises(UndefinedMethodError) as refused:
        parse_method(name).fit(problem.reference)
    assert str(refused.value) == (
        f"{name} is not defined here: it needs a last layer of text embeddings, but the one of "
        "this network was trained (4 x 64 weights); import a zero-shot classifier: ood import "
        "--arch open_clip:MODEL:TAG"
    )


class _Sound:
    """A detector that keeps every promise: the largest logit."""

    @classmethod
    def fit(cls, reference: Reference) -> "_Sound":
        """Learn nothing."""
        return cls()

    def score(self, batch: Activations) -> Tensor:
        """Return the largest logit."""
        return batch.logits.amax(dim=1)


def broken(score: Callable[[Activations], Tensor]) -> type:
    """Return a class that scores like this."""
    return type("Broken", (_Sound,), {"score": lambda _self, batch: score(batch)})


def _writes(batch: Activations) -> Tensor:
    batch.features.mul_(1.01)
    return batch.logits.amax(dim=1)


@pytest.mark.parametrize(
    ("score", "what", "how"),
    [
        (
            lambda batch: batch.logits,
            "give one finite float per image",
            "120 images give scores of shape (120, 4)",
        ),
        (
            lambda batch: batch.predictions,
            "give one finite float per image",
            "the scores are torch.int64",
        ),
        (
            lambda batch: batch.logits.amax(dim=1) / 0.0,
            "give one finite float per image",
            "120 of 120 scores are not finite",
        ),
        (
            lambda batch: -batch.logits.amax(dim=1),
            "score in-distribution images higher",
            "AUROC 0.000 on images that every method separates; larger must mean in-distribution",
        ),
        (
            lambda batch: batch.logits.amax(dim=1) + torch.arange(len(batch)) * 1e-3,
            "not depend on the order of rows",
            "scores differ by up to",
        ),
        (
            lambda batch: batch.logits.amax(dim=1) - batch.logits.mean(),
            "not depend on the batch size",
            "scores differ by up to",
        ),
        (_writes, "not modify its input", "scoring writes to the features"),
        (
            lambda batch: batch.logits.amax(dim=1) + torch.rand(1),
            "give the same scores twice",
            "the scores differ the second time",
        ),
        (
            lambda batch: batch.features.norm(dim=1).log(),
            "give finite scores for zero features",
            "120 of 120 scores are not finite",
        ),
        (
            lambda batch: batch.logitz,
            "give one finite float per image",
            "raises AttributeError: 'Activations' object has no attribute 'logitz'",
        ),
    ],
)
def test_a_violated_rule_is_reported(
    score: Callable[[Activations], Tensor], what: str, how: str
) -> None:
    told = {each.what: each.broken for each in findings(broken(score))}
    assert how in (told[what] or "")
    with pytest.raises(InvalidInputError, match="it must "):
        check(broken(score))


def test_a_method_that_depends_on_the_order_of_training_images_is_reported() -> None:
    class First(_Sound):
        """Likes images that resemble the first training image."""

        def __init__(self, first: Tensor) -> None:
            self.first = first

        @classmethod
        def fit(cls, reference: Reference) -> "First":
            """Take the first training image."""
            return cls(reference.train.features[0])

        def score(self, batch: Activations) -> Tensor:
            """Return the similarity."""
            return batch.features @ self.first

    told = {each.what: each.broken for each in findings(First)}
    assert "differ" in (told["not depend on the order of training images"] or "")


def test_an_undeclared_input_is_reported() -> None:
    told = findings(Method(_Sound, "Sound", "nobody", ("features",)))
    assert [each.what for each in told if each.broken] == ["use only its declared inputs"]
    check(Method(_Sound, "Sound", "nobody", ("logits",)))


def test_what_looks_at_the_network_cannot_be_tried() -> None:
    with pytest.raises(InvalidInputError, match="Sound uses network, but these checks"):
        check(Method(_Sound, "Sound", "nobody", ("logits", "network")))
