"""PRO: steps that lower the confidence, next to the loops of the published code."""

import pytest
import torch

from oodcli.activations import Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method
from oodcli.methods.pro import PRO
from tests.support.probing import Small, activations, pictures


def generalised(probabilities: torch.Tensor, gamma: float, m: int) -> torch.Tensor:
    """Return minus the generalised entropy, as published."""
    ordered = torch.sort(probabilities, dim=1)[0][:, -m:]
    return -(ordered**gamma * (1 - ordered) ** gamma).sum(dim=1)


@pytest.mark.parametrize(("gamma", "m", "steps"), [(0.1, 100, 3), (0.5, 2, 1)])
def test_the_minimum_is_that_of_the_published_code(
    reference: Reference, gamma: float, m: int, steps: int
) -> None:
    network, images = Small(dtype=torch.float64), pictures(6, seed=1, dtype=torch.float64)
    detector = PRO.fit(reference, epsilon=0.05, gamma=gamma, m=m, steps=steps)
    scores = detector.score(activations(network, images, *detector.probes))
    moved, record = images.clone(), []
    for _ in range(steps):
        leaves = moved.detach().requires_grad_()
        confidence = generalised(network.module(leaves).softmax(dim=1), gamma, m)
        record.append(confidence.detach())
        confidence.mean().backward()
        assert leaves.grad is not None
        moved = leaves.detach() - 0.05 * leaves.grad.sign()
    record.append(generalised(network.module(moved).softmax(dim=1), gamma, m).detach())
    wanted = torch.stack(record).amin(dim=0)
    torch.testing.assert_close(-(-scores.double()).exp(), wanted, rtol=1e-5, atol=0)
    assert (wanted < record[0]).sum() >= 4
    assert detector.probes[0].passes == 3 * steps + 1


@pytest.mark.parametrize("of", ["msp", "entropy"])
def test_other_scores_are_lowered_too(reference: Reference, of: str) -> None:
    network, images = Small(dtype=torch.float64), pictures(6, seed=1, dtype=torch.float64)
    fitted = parse_method(f"pro:of={of},epsilon=0.05").fit(reference)
    scores = fitted.detector.score(activations(network, images, *fitted.probes))
    plain = parse_method(of).fit(reference).detector.score(activations(network, images))
    assert (scores < plain).sum() >= 4
    far = parse_method(f"pro:of={of},epsilon=0.05,steps=5").fit(reference)
    further = far.detector.score(activations(network, images, *far.probes))
    assert (further <= scores).all()


def test_an_image_does_not_depend_on_its_neighbours(reference: Reference) -> None:
    network, images = Small(dtype=torch.float64), pictures(7, seed=3, dtype=torch.float64)
    detector = PRO.fit(reference)
    whole = detector.score(activations(network, images, *detector.probes))
    parts = detector.score(activations(network, images.flip(0), *detector.probes, batch_size=2))
    torch.testing.assert_close(parts.flip(0), whole, rtol=1e-6, atol=0)


def test_a_certain_image_stays_and_one_that_is_not_a_number_too(reference: Reference) -> None:
    network, images = Small(dtype=torch.float64), pictures(3, seed=4, dtype=torch.float64)
    with torch.no_grad():
        network.module.fc.bias[0] = 1000.0
    images[1] = torch.nan
    detector = PRO.fit(reference)
    scores = detector.score(activations(network, images, *detector.probes))
    assert scores.isnan().tolist() == [False, True, False]
    assert (scores[[0, 2]] > 50).all()


def test_every_parameter_has_a_key_of_its_own(reference: Reference) -> None:
    names = ("pro", "pro:gamma=0.2", "pro:m=3", "pro:epsilon=0.001", "pro:steps=1", "pro:of=msp",
             "pro:of=entropy", "pro:of=msp,temperature=2")  # fmt: skip
    keys = {parse_method(name).fit(reference).probes[0].key for name in names}
    assert len(keys) == len(names)
    # What a score does not use does not ask for another pass.
    one, other = (parse_method(n).fit(reference).probes for n in ("pro", "pro:temperature=2"))
    assert one[0].key == other[0].key
    with pytest.raises(InvalidInputError, match="pro:steps must be at least 1, not 0"):
        parse_method("pro:steps=0").fit(reference)
