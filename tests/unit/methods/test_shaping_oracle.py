"""Other implementations of the methods from logits and the last layer, on real activations."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods import parse_method

SETS = ["test", "svhn_crops", "dtd10_32"]


@pytest.fixture(scope="module")
def sets(shared: Path) -> dict[str, Activations]:
    """Return activations of a real network by name of the image set."""
    found = {}
    with np.load(shared / "reference" / "activations.npz") as stored:
        for name in ("train", "val", *SETS):
            logits = torch.from_numpy(stored[f"{name}/logits"])
            features = torch.from_numpy(stored[f"{name}/features"])
            norms = torch.from_numpy(stored[f"{name}/block_norms"])
            found[name] = Activations(logits, features, norms, logits.argmax(dim=1))
    return found


@pytest.fixture(scope="module")
def labels(shared: Path) -> Tensor:
    """Return the classes of the calibration images."""
    with np.load(shared / "reference" / "activations.npz") as stored:
        return torch.from_numpy(stored["val/labels"]).long()


@pytest.fixture(scope="module")
def reference(shared: Path, sets: dict[str, Activations], labels: Tensor) -> Reference:
    """Return what methods learn from: bank ``train``, calibration ``val``."""
    state = torch.load(shared / "reference" / "resnet18_cifar10.pt", weights_only=True)
    return Reference(
        Head(state["fc.weight"].float(), state["fc.bias"].float()),
        load_train=lambda: ActivationSet.of(sets["train"]),
        load_calibration=lambda: ActivationSet.of(sets["val"]),
        load_calibration_labels=lambda: labels,
    )


def ours(method: str, reference: Reference, of: Activations) -> np.ndarray:
    """Fit and score."""
    return parse_method(method).fit(reference).detector.score(of).double().numpy()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("method", ["react", "ash-b", "scale", "dice", "energy"])
def test_agrees_with_openood(
    shared: Path, sets: dict[str, Activations], reference: Reference, method: str, name: str
) -> None:
    with np.load(shared / "reference" / "scores.npz") as stored:
        wanted = stored[f"{method}/{name}"]
    np.testing.assert_allclose(ours(method, reference, sets[name]), wanted, rtol=1e-4)


@pytest.fixture(scope="module")
def detectors() -> ModuleType:
    """Return the detectors of pytorch-ood, or skip."""
    return pytest.importorskip("pytorch_ood.detector", exc_type=ImportError)


def maps(features: Tensor) -> Tensor:
    """Return features as maps of one pixel."""
    return features[:, :, None, None]


@pytest.fixture(scope="module")
def on_maps(reference: Reference) -> Callable[[Tensor], Tensor]:
    """Return the last layer as a function of maps of one pixel."""
    head = reference.head
    layer = nn.Linear(head.weight.shape[1], head.weight.shape[0])
    layer.weight.data, layer.bias.data = head.weight, head.bias
    return lambda found: layer(found.flatten(1)).detach()


@pytest.mark.parametrize("percentile", [65.0, 90.0, 95.0])
@pytest.mark.parametrize("method", ["ash-p", "ash-b", "ash-s", "scale"])
def test_ash_and_scale_agree_with_pytorch_ood(  # noqa: PLR0917 - pytest passes them by name
    detectors: ModuleType,
    on_maps: Callable[[Tensor], Tensor],
    sets: dict[str, Activations],
    reference: Reference,
    method: str,
    percentile: float,
) -> None:
    share = percentile / 100
    if method == "scale":
        theirs = detectors.SCALE(None, on_maps, percentile=share)
    else:
        theirs = detectors.ASH(None, on_maps, percentile=share, variant=method)
    for name in SETS:
        wanted = -theirs.predict_feature_maps(maps(sets[name].features)).numpy()
        got = ours(f"{method}:percentile={percentile}", reference, sets[name])
        np.testing.assert_allclose(got, wanted, rtol=1e-4)


@pytest.mark.parametrize("p", [0.02, 0.05, 0.2])
def test_lts_agrees_with_pytorch_ood(
    detectors: ModuleType,
    on_maps: Callable[[Tensor], Tensor],
    sets: dict[str, Activations],
    reference: Reference,
    p: float,
) -> None:
    theirs = detectors.LTS(None, on_maps, p=p)
    for name in SETS:
        wanted = -theirs.predict_features(sets[name].features).numpy()
        np.testing.assert_allclose(ours(f"lts:p={p}", reference, sets[name]), wanted, rtol=1e-4)


def test_lts_with_clamped_features_agrees_with_pytorch_ood(
    detectors: ModuleType,
    on_maps: Callable[[Tensor], Tensor],
    sets: dict[str, Activations],
    reference: Reference,
) -> None:
    features = sets["test"].features - sets["train"].features.mean(dim=0)
    logits = on_maps(features)
    signed = Activations(logits, features, sets["test"].block_norms, logits.argmax(dim=1))
    wanted = -detectors.LTS(None, on_maps).predict_features(features).numpy()
    got = ours("lts:signed=clamp", reference, signed)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [10.0, 50.0, 90.0])
def test_dice_agrees_with_pytorch_ood(
    detectors: ModuleType, sets: dict[str, Activations], reference: Reference, p: float
) -> None:
    head, train = reference.head, sets["train"]
    theirs = detectors.DICE(None, head.weight, head.bias, p / 100)
    theirs.fit_features(train.features, torch.zeros(len(train), dtype=torch.int64))
    for name in SETS:
        wanted = -theirs.predict_features(sets[name].features).numpy()
        got = ours(f"dice:p={p}", reference, sets[name])
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("percentile", [85.0, 99.0])
def test_react_agrees_with_pytorch_ood(
    detectors: ModuleType,
    on_maps: Callable[[Tensor], Tensor],
    sets: dict[str, Activations],
    reference: Reference,
    percentile: float,
) -> None:
    theirs = detectors.ReAct(None, on_maps, percentile=percentile / 100)
    theirs.fit_feature_maps(maps(sets["val"].features), torch.zeros(len(sets["val"])))
    for name in SETS:
        wanted = -theirs.predict_feature_maps(maps(sets[name].features)).numpy()
        got = ours(f"react:percentile={percentile}", reference, sets[name])
        np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_entropy_agrees_with_pytorch_ood(
    detectors: ModuleType, sets: dict[str, Activations], reference: Reference
) -> None:
    """It takes the logarithm of rounded probabilities, which small entropies notice."""
    for name in SETS:
        wanted = -detectors.Entropy.score(sets[name].logits).numpy()
        got = ours("entropy:scale=linear", reference, sets[name])
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5)
        exact = torch.distributions.Categorical(logits=sets[name].logits.double()).entropy()
        np.testing.assert_allclose(got, -exact.numpy(), rtol=1e-5)


@pytest.mark.parametrize(("gamma", "m"), [(0.1, 100), (0.1, 4), (2.0, 10)])
def test_gen_agrees_with_pytorch_ood_but_for_certain_images(
    detectors: ModuleType,
    sets: dict[str, Activations],
    reference: Reference,
    gamma: float,
    m: int,
) -> None:
    """It clamps at 1e-7 and divides by the number of terms."""
    terms = min(m, 10)
    for name in SETS:
        logits = sets[name].logits
        probabilities = logits.softmax(dim=1)
        plain = ((probabilities > 1e-6) & (probabilities < 0.99)).all(dim=1).numpy()
        assert plain.sum() > 50
        wanted = -terms * detectors.GEN.score(logits, gamma=gamma, M=m).numpy()
        got = ours(f"gen:gamma={gamma},m={m},scale=linear", reference, sets[name])
        np.testing.assert_allclose(got[plain], wanted[plain], rtol=1e-4)


def test_klm_agrees_with_pytorch_ood(
    detectors: ModuleType, sets: dict[str, Activations], reference: Reference, labels: Tensor
) -> None:
    theirs = detectors.KLMatching(None).fit_logits(sets["val"].logits, labels)
    for name in SETS:
        wanted = -theirs.predict_logits(sets[name].logits).detach().numpy()
        got = ours("klm", reference, sets[name])
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_tempscale_has_no_larger_loss_than_pytorch_ood(
    detectors: ModuleType, sets: dict[str, Activations], reference: Reference, labels: Tensor
) -> None:
    """Its 50 short steps from 1 come near the minimum where the minimum is near 1."""
    theirs = detectors.TemperatureScaling(None).fit_logits(sets["val"].logits, labels)
    fitted = parse_method("tempscale").fit(reference).detector
    temperatures = fitted.temperature, theirs.t.item()  # type: ignore[attr-defined]
    losses = [
        nn.functional.cross_entropy(sets["val"].logits.double() / each, labels).item()
        for each in temperatures
    ]
    assert losses[0] <= losses[1]
    assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-3)
