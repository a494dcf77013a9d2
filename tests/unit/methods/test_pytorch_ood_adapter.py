"""Detectors of pytorch-ood give the numbers that they give without us, with the sign turned."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from oodcli.activations import Activations, Reference
from oodcli.errors import InvalidInputError
from oodcli.methods import parse_method
from oodcli.methods.contract import check

detectors = pytest.importorskip("pytorch_ood.detector", reason="needs pytorch-ood")


@pytest.fixture
def last(reference: Reference) -> nn.Linear:
    """Return the last layer as a module."""
    layer = nn.Linear(*reversed(reference.head.weight.shape))
    layer.load_state_dict({"weight": reference.head.weight, "bias": reference.head.bias})
    return layer.requires_grad_(requires_grad=False)


Build = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("written", "build"),
    [
        ("KNN", lambda _: detectors.KNN(None)),
        ("KNN:k=7,normalize=false", lambda _: detectors.KNN(None, k=7, normalize=False)),
        ("Mahalanobis", lambda _: detectors.Mahalanobis(None)),
        ("RMD", lambda _: detectors.RMD(None)),
        ("GMM", lambda _: detectors.GMM(None)),
        ("NNGuide:k=5", lambda last: detectors.NNGuide(None, last, k=5)),
        ("SHE", lambda last: detectors.SHE(None, last)),
        ("PNML", lambda last: detectors.PNML(None, last)),
        ("fDBD", lambda last: detectors.fDBD(None, last)),
        ("NCI:alpha=0.01", lambda last: detectors.NCI(None, last, alpha=0.01)),
        ("LTS", lambda last: detectors.LTS(None, last)),
        ("ViM:d=4", lambda last: detectors.ViM(None, 4, last.weight, last.bias)),
        ("DICE:p=0.7", lambda last: detectors.DICE(None, last.weight, last.bias, 0.7)),
    ],
)
def test_detectors_of_features(
    written: str, build: Build, last: nn.Linear, reference: Reference, id_batch: Activations
) -> None:
    theirs = build(last).fit_features(reference.train.features, reference.labels)
    fitted = parse_method(f"pytorch_ood.detector:{written}").fit(reference)
    got = fitted.detector.score(id_batch)
    assert torch.equal(got, -theirs.predict_features(id_batch.features))
    assert fitted.canonical == f"pytorch_ood.detector:{written}"


@pytest.mark.parametrize(
    ("written", "build"),
    [
        ("MaxSoftmax:t=2", lambda: detectors.MaxSoftmax(None, t=2.0)),
        ("EnergyBased", lambda: detectors.EnergyBased(None)),
        ("MaxLogit", lambda: detectors.MaxLogit(None)),
        ("Entropy", lambda: detectors.Entropy(None)),
        ("GEN:gamma=0.2,M=3", lambda: detectors.GEN(None, gamma=0.2, M=3)),
        ("KLMatching", lambda: detectors.KLMatching(None)),
        ("TemperatureScaling", lambda: detectors.TemperatureScaling(None)),
        ("OpenMax", lambda: detectors.OpenMax(None)),
    ],
)
def test_detectors_of_logits(
    written: str, build: Callable[[], Any], reference: Reference, id_batch: Activations
) -> None:
    theirs = build()
    if theirs.requires_fit or written == "KLMatching":
        labels = reference.labels
        if written == "TemperatureScaling":
            labels = reference.calibration_labels
        theirs.fit_logits(reference.train.logits, labels)
    fitted = parse_method(f"pytorch_ood.detector:{written}").fit(reference)
    wanted = -theirs.predict_logits(id_batch.logits).detach()
    assert torch.equal(fitted.detector.score(id_batch), wanted)
    # After a shaper it scores the new logits.
    shaped = parse_method(f"norm+pytorch_ood.detector:{written}").fit(reference).detector
    new = parse_method("norm").fit(reference).detector.shaper.logits(id_batch)  # type: ignore[attr-defined]
    assert torch.equal(shaped.score(id_batch), -theirs.predict_logits(new).detach())


def test_validation_detectors_are_fitted_on_the_calibration_images() -> None:
    for name in ("KLMatching", "TemperatureScaling"):
        (part,) = parse_method(f"pytorch_ood.detector:{name}").parts
        assert part.method.inputs == ("logits", "calibration", "calibration labels")
    (part,) = parse_method("pytorch_ood.detector:ViM:d=4").parts
    assert part.method.inputs == ("features", "head", "train", "labels")


def test_parameters_are_those_of_the_constructor(reference: Reference) -> None:
    fitted = parse_method("pytorch_ood.detector:GEN:gamma=0.3").fit(reference)
    assert fitted.params == {"gamma": 0.3, "M": None}


@pytest.mark.parametrize("name", ["KNN", "EnergyBased", "SHE", "GMM"])
def test_they_keep_the_contract(name: str) -> None:
    check(f"pytorch_ood.detector:{name}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ReAct", "it works on feature maps inside the network"),
        ("ODIN", "it needs gradients through the network"),
        ("GradNorm", "it needs gradients through the network"),
        ("Gram", "it works on several layers of the network"),
        ("MCD", "it runs the network itself"),
        ("WeightedEBO", "it needs weights, which cannot be written after --method"),
    ],
)
def test_what_needs_the_network_is_refused(name: str, reason: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        parse_method(f"pytorch_ood.detector:{name}")
    assert str(raised.value).startswith(f"pytorch_ood.detector:{name} cannot be used: {reason}")


def test_a_parameter_without_default_must_be_given(reference: Reference) -> None:
    with pytest.raises(InvalidInputError, match=r"needs a value of d; write .*ViM:d=VALUE"):
        parse_method("pytorch_ood.detector:ViM").fit(reference)


def test_what_a_detector_refuses_is_reported(reference: Reference) -> None:
    with pytest.raises(InvalidInputError, match="cannot be fitted: k=900 exceeds the number"):
        parse_method("pytorch_ood.detector:KNN:k=900").fit(reference)


def test_the_base_class_is_no_method() -> None:
    with pytest.raises(InvalidInputError, match="not a detector of pytorch-ood"):
        parse_method("pytorch_ood.api:Detector")


def test_a_fitted_detector_can_be_adapted(
    reference: Reference, id_batch: Activations, last: nn.Linear
) -> None:
    from oodcli.methods.pytorch_ood import adapt

    knn = detectors.KNN(None, k=3).fit_features(reference.train.features, reference.labels)
    assert torch.equal(adapt(knn).score(id_batch), -knn.predict_features(id_batch.features))
    weighted = detectors.WeightedEBO(None, torch.ones(1, 4))
    wanted = -weighted.predict_logits(id_batch.logits)
    assert torch.equal(adapt(weighted).score(id_batch), wanted)
    with pytest.raises(InvalidInputError, match="ReAct of pytorch-ood cannot be used: it works on"):
        adapt(detectors.ReAct(None, last))


def test_without_the_package_its_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [each for each in sys.modules if each.split(".")[0] == "pytorch_ood"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "Path" not in str(f)])
    with pytest.raises(InvalidInputError) as raised:
        parse_method("pytorch_ood.detector:KNN")
    assert str(raised.value) == (
        "pytorch_ood.detector:KNN needs pytorch-ood, which is not installed; "
        "install it: pip install 'oodcli[pytorch-ood]'"
    )
