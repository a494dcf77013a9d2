"""ORA."""

import math

import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods import parse_method
from oodcli.methods.ora import ORA


def batch_of(features: Tensor, head: Head) -> Activations:
    """Return activations of features."""
    logits = head(features)
    return Activations(logits, features, logits[:, :1], logits.argmax(dim=1))


def reference_of(features: Tensor, labels: Tensor, head: Head) -> Reference:
    """Return a reference of training features."""
    train = batch_of(features, head)
    return Reference(head, load_train=lambda: ActivationSet.of(train), load_labels=lambda: labels)


HEAD = Head(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), torch.zeros(3))
# Class means (1, 1) and (1, -1), whose mean is (1, 0); the third class has no image.
POINTS, LABELS = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0]]), torch.tensor([0, 0, 1])
IMAGE = torch.tensor([[4.0, 1.0]])  # logits 12, 4 and 0
# Projected onto the boundaries: (3.04, 2.28) and (0, 1). Seen from (1, 0), the image is at (3, 1).
ANGLES = [math.atan2(2.28, 2.04) - math.atan2(1, 3), math.atan2(1, -1) - math.atan2(1, 3)]


@pytest.mark.parametrize(
    ("over", "angle"),
    [("max", max(ANGLES)), ("min", min(ANGLES)), ("mean", sum(ANGLES) / 3)],
)
def test_angles_are_seen_from_the_mean_of_the_class_means(over: str, angle: float) -> None:
    found = parse_method(f"ora:over={over}").fit(reference_of(POINTS, LABELS, HEAD)).detector
    assert float(found.score(batch_of(IMAGE, HEAD))) == pytest.approx(angle / math.pi, abs=1e-6)


def plain(features: Tensor, labels: Tensor, head: Head, tested: Tensor, over: str) -> list[float]:
    """Return the scores by projecting every image onto every boundary, in float64."""
    weight, bias = head.weight.double(), head.bias.double()
    means = [features[labels == c].double().mean(dim=0) for c in labels.unique()]
    origin = sum(means) / len(means)
    scores = []
    for feature in tested.double():
        logits = weight @ feature + bias
        best = int(logits.argmax())
        angles = [0.0] * len(weight)
        for other in range(len(weight)):
            if other != best:
                normal = weight[best] - weight[other]
                gap = logits[best] - logits[other]
                projected = feature - gap / (normal @ normal) * normal
                cosine = torch.cosine_similarity(feature - origin, projected - origin, dim=0)
                angles[other] = float(torch.arccos(cosine.clamp(-1, 1))) / math.pi
        others = [angle for other, angle in enumerate(angles) if other != best]
        scores.append(
            {"max": max(angles), "mean": sum(angles) / len(angles), "min": min(others)}[over]
        )
    return scores


@pytest.mark.parametrize("over", ["max", "mean", "min"])
def test_scores_are_those_of_projected_features(over: str) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(5, 8, generator=generator), torch.randn(5, generator=generator))
    features = torch.randn(60, 8, generator=generator).relu() + 1
    labels = torch.arange(60) ** 2 % 5  # classes 0, 1 and 4, of different sizes
    tested = 2 * torch.randn(40, 8, generator=generator)
    found = parse_method(f"ora:over={over}").fit(reference_of(features, labels, head)).detector
    expected = plain(features, labels, head, tested, over)
    torch.testing.assert_close(found.score(batch_of(tested, head)), torch.tensor(expected))


def test_small_angles_are_resolved() -> None:
    # At 1e-6 of the boundary between the first two classes: a float32 cosine would be 1.
    head = Head(torch.eye(2), torch.zeros(2))
    reference = reference_of(torch.tensor([[-1.0, 0.0], [0.0, -1.0]]), torch.tensor([0, 1]), head)
    image = torch.tensor([[1.0 + 2**-19, 1.0]])
    # The image is 3 / sqrt(2) from the mean (-1/2, -1/2), and 2**-20 sqrt(2) off the boundary.
    expected = 2**-20 * math.sqrt(2) / (3 / math.sqrt(2)) / math.pi
    assert float(ORA.fit(reference).score(batch_of(image, head))) == pytest.approx(
        expected, rel=1e-4
    )


def test_classes_with_the_same_weights_have_no_boundary() -> None:
    head = Head(torch.tensor([[0.1, 0.2], [0.1, 0.2], [0.0, 0.0]]), torch.tensor([0.0, 5.0, 0.0]))
    two = Head(head.weight[1:], head.bias[1:])
    image = torch.tensor([[1.0, 2.0]])
    for over in ("max", "min"):
        method = parse_method(f"ora:over={over}")
        found = method.fit(reference_of(POINTS, LABELS, head)).detector.score(batch_of(image, head))
        same = method.fit(reference_of(POINTS, LABELS, two)).detector.score(batch_of(image, two))
        torch.testing.assert_close(found, same)


def test_the_mean_itself_has_no_angle() -> None:
    found = ORA.fit(reference_of(POINTS, LABELS, HEAD))
    assert found.score(batch_of(torch.tensor([[1.0, 0.0]]), HEAD)).tolist() == [0.0]
