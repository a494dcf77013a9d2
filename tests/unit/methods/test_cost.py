"""What each method costs as classes grow, counted in values written and multiplied."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods import METHODS, parse_method, weiper
from oodcli.methods.contract import Problem, problem_for
from oodcli.methods.weiper import WeiPer

FEW, MANY, WIDTH, IMAGES = 128, 512, 48, 2048
# A table of all pairs of classes, the divergence of a prediction from that of every class, and its
# distance to every centroid.
QUADRATIC = {"fdbd", "ora", "klm", "igeood"}
# Its mixture has 100 Gaussians at most, and is fitted outside torch; test_gmm counts its steps.
UNCOUNTED = {"gmm"}
# As many Newton steps as the images ask for, 50 at most, each of linear cost.
STEPPING = {"tempscale"}


class Work(TorchDispatchMode):
    """Adds up the values that operations write, and the products that matrix products take."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                self.total += each.numel()
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left = [each for each in args if isinstance(each, Tensor) and each.dim() == 2][-2]
            self.total += out.numel() * left.shape[1]
        if func._schema.name == "aten::mkldnn_linear":
            self.total += out.numel() * args[0].shape[1]
        return out


def batch_of(features: Tensor, head: Head) -> Activations:
    logits = head(features)
    norms = torch.ones(len(features), 2)
    return Activations(logits, features, norms, logits.argmax(dim=1))


def case(classes: int) -> tuple[Reference, Activations]:
    """Return as many images for any number of classes, some of them wrong."""
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(classes, WIDTH, generator=generator), torch.zeros(classes))
    labels = torch.arange(IMAGES) % classes
    features = head.weight[labels] + 0.4 * torch.randn(IMAGES, WIDTH, generator=generator)
    train = batch_of(features.abs(), head)
    labels = torch.where(torch.arange(IMAGES) % 5 == 0, (labels + 1) % classes, train.predictions)
    reference = Reference(
        head,
        load_train=lambda: ActivationSet.of(train),
        load_labels=lambda: labels,
        load_jigsaw=lambda: ActivationSet.of(train),
        load_jigsaw_features=lambda: ActivationSet.of(train),
        load_calibration=lambda: ActivationSet.of(train),
        load_calibration_labels=lambda: labels,
        n_blocks=2,
    )
    return reference, train.map(lambda values: values[:256])


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, method in METHODS.items()
        if name not in UNCOUNTED and not {"network", "regions", "blocks"} & set(method.inputs)
    ],
)
def test_the_cost_grows_with_classes_as_known(name: str) -> None:
    costs = []
    for classes in (FEW, MANY):
        spec = parse_method(name + {"weiper": ":repeats=10", "openmax": ":tail=3"}.get(name, ""))
        reference, batch = case(classes)
        shown = problem_for(spec, Problem(reference, batch, batch))
        reference, batch = shown.reference, shown.id_batch
        with Work() as work:
            spec.fit(reference).detector.score(batch)
        costs.append(work.total)
    power = math.log(costs[1] / costs[0]) / math.log(MANY / FEW)
    assert power <= (2.05 if name in QUADRATIC else 1.4 if name in STEPPING else 1.05)


def test_weiper_takes_the_densities_of_some_images_where_there_are_many_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference, _ = case(FEW)
    monkeypatch.setattr(weiper, "MAX_VALUES", 10 * FEW * 64 + 5)
    found = WeiPer.fit(reference, repeats=10).trained
    (train,) = reference.train.chunks(rows=10**6)
    some = train.map(lambda values: values[:: IMAGES // 64])
    monkeypatch.setattr(weiper, "MAX_VALUES", 2**40)
    wanted = WeiPer.fit(with_train(reference, some), repeats=10).trained
    assert found.projection_range == wanted.projection_range
    torch.testing.assert_close(found.projections, wanted.projections)
    # The features of all images count.
    assert found.feature_range == tuple(map(float, train.features.aminmax()))
    assert float(found.projections.sum()) == pytest.approx(1.0)


def test_weiper_costs_no_more_for_a_larger_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weiper, "MAX_VALUES", 10 * FEW * 16)
    reference, _ = case(FEW)
    (train,) = reference.train.chunks(rows=10**6)
    costs = []
    for count in (512, 2048):
        part = with_train(reference, train.map(lambda values, n=count: values[:n]))
        with Work() as work:
            WeiPer.fit(part, repeats=10)
        costs.append(work.total)
    # What is left to grow are the densities of the features themselves.
    assert costs[1] < 1.5 * costs[0]


def with_train(reference: Reference, train: Activations) -> Reference:
    """Return the reference with other training images."""
    return Reference(reference.head, load_train=lambda: ActivationSet.of(train))
