"""Detectors of pytorch-ood, fitted and scored from stored activations.

Imported only where it is used: pytorch-ood is only a dependency of the extra ``pytorch-ood``. That
library gives larger scores to OOD images, so the sign is turned here.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from pytorch_ood.api import (
    Detector as Foreign,
)
from pytorch_ood.api import (
    FeatureMapsDetector,
    FeaturesDetector,
    GradientDetector,
    LogitsDetector,
    StructuredDetector,
)
from torch import Tensor, nn

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods._needs import DIFFERENT_FEATURES
from oodcli.methods.base import Input, Method, Scorer
from oodcli.specs import Value, allowed_values

# What a constructor may ask for that is here already.
_SUPPLIED = ("model", "encoder", "head", "w", "b")
# Fitted on validation data by their documentation and their papers, all others on training data.
_CALIBRATED = ("KLMatching", "TemperatureScaling")


@dataclass(frozen=True, slots=True)
class LogitsAdapter:
    """A fitted detector of pytorch-ood that uses logits.

    Parameters
    ----------
    detector
        The detector.
    """

    detector: LogitsDetector

    def score_logits(self, logits: Tensor) -> Tensor:
        """Return the negative of its outlier scores of logits ``(n, k)``, ``(n,)``."""
        return -self.detector.predict_logits(logits).detach().to(logits.device)

    def score(self, batch: Activations) -> Tensor:
        """Return the negative of its outlier scores, ``(n,)``."""
        return self.score_logits(batch.logits)


@dataclass(frozen=True, slots=True)
class FeaturesAdapter:
    """A fitted detector of pytorch-ood that uses features.

    Parameters
    ----------
    detector
        The detector.
    """

    detector: FeaturesDetector

    def score(self, batch: Activations) -> Tensor:
        """Return the negative of its outlier scores, ``(n,)``."""
        return -self.detector.predict_features(batch.features).detach().to(batch.features.device)


def adapt(detector: Foreign) -> Scorer:
    """Return a fitted detector of pytorch-ood as one of ``ood``.

    Parameters
    ----------
    detector
        Fitted on logits or features like those that it will score.

    Raises
    ------
    InvalidInputError
        If it needs more than logits or features.
    """
    name = type(detector).__name__
    if isinstance(detector, LogitsDetector):
        return LogitsAdapter(detector)
    if isinstance(detector, FeaturesDetector):
        return FeaturesAdapter(detector)
    raise InvalidInputError(f"{name} of pytorch-ood cannot be used: {_why_not(type(detector))}")


def method_of_detector(kind: type, name: str) -> Method:
    """Return a registry entry that fits a detector of pytorch-ood on a reference.

    A detector of logits gets logits, a detector of features gets features; ``model`` and
    ``encoder`` are None, ``head``, ``w`` and ``b`` are the last layer. What else its constructor
    takes, as far as it is a number, a word or a truth value, is a parameter of the method. It is
    fitted on the training images, those whose documentation says validation data on the calibration
    images, in float32 on the CPU.

    Parameters
    ----------
    kind
        The class.
    name
        What it is called in messages.

    Raises
    ------
    InvalidInputError
        If it needs more than logits or features, or an argument that cannot be written.
    """
    if not issubclass(kind, Foreign) or inspect.isabstract(kind):
        raise InvalidInputError(f"{name} is not a detector of pytorch-ood; name a detector")
    if not issubclass(kind, (LogitsDetector, FeaturesDetector)):
        raise InvalidInputError(f"{name} cannot be used: {_why_not(kind)}")
    arguments = [
        parameter
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    hints = get_type_hints(inspect.getattr_static(kind, "__init__"))
    supplied = [each.name for each in arguments if each.name in _SUPPLIED]
    offered = {
        each.name: each.replace(kind=each.KEYWORD_ONLY, annotation=hints[each.name])
        for each in arguments
        if each.name not in _SUPPLIED and _can_be_written(hints.get(each.name))
    }
    for each in arguments:
        if each.default is each.empty and each.name not in {*supplied, *offered}:
            raise InvalidInputError(
                f"{name} cannot be used: it needs {each.name}, which cannot be written after "
                "--method; in Python: oodcli.methods.pytorch_ood.adapt(detector)"
            )
    fit = _fitting(kind, name, supplied, offered)
    base = LogitsAdapter if issubclass(kind, LogitsDetector) else FeaturesAdapter
    fields: dict[str, Any] = {key: _field(key) for key in offered}
    made: Any = type(
        kind.__name__,
        (base,),
        {
            "__slots__": (),
            "__doc__": kind.__doc__,
            "__module__": kind.__module__,
            "fit": classmethod(fit),
            **fields,
        },
    )
    inputs = _inputs(kind, supplied)
    info = getattr(kind, "info", None)
    paper = info.paper if info else None
    return Method(
        made,
        f"{kind.__name__} of pytorch-ood",
        f"{paper.title}, {paper.venue} {paper.year}" if paper else "",
        inputs,
        needs=(DIFFERENT_FEATURES,) if {"features", "train"} <= set(inputs) else (),
    )


def _fitting(
    kind: type[LogitsDetector] | type[FeaturesDetector],
    name: str,
    supplied: Sequence[str],
    offered: Mapping[str, inspect.Parameter],
) -> Callable[..., Scorer]:
    """Return ``fit`` of one detector, with the signature that a user's parameters are read by."""

    def fit(cls: Callable[[Any], Scorer], reference: Reference, /, **given: Value) -> Scorer:
        """Build and fit the detector."""
        for key, parameter in offered.items():
            if parameter.default is parameter.empty and key not in given:
                raise InvalidInputError(f"{name} needs a value of {key}; write {name}:{key}=VALUE")
        arguments: dict[str, Any] = {**given, **_own(supplied, reference)}
        try:
            detector = kind(**arguments)
            return cls(_fitted(detector, reference) if kind.requires_fit else detector)
        except (ValueError, AssertionError) as error:
            raise UndefinedMethodError(f"{name} cannot be fitted: {error}") from error

    first = [
        inspect.Parameter(word, inspect.Parameter.POSITIONAL_ONLY) for word in ("cls", "reference")
    ]
    fit.__signature__ = inspect.Signature([*first, *offered.values()])  # type: ignore[attr-defined]
    fit.__annotations__ = {key: parameter.annotation for key, parameter in offered.items()}
    return fit


def _fitted(
    detector: LogitsDetector | FeaturesDetector, reference: Reference
) -> LogitsDetector | FeaturesDetector:
    if isinstance(detector, FeaturesDetector):
        return detector.fit_features(reference.train.features.cpu(), reference.labels.cpu())
    if type(detector).__name__ in _CALIBRATED:
        logits, labels = reference.calibration.logits, reference.calibration_labels
    else:
        logits, labels = reference.train.logits, reference.labels
    return detector.fit_logits(logits.cpu(), labels.cpu())


def _inputs(kind: type, supplied: Sequence[str]) -> tuple[Input, ...]:
    inputs: list[Input] = ["logits" if issubclass(kind, LogitsDetector) else "features"]
    if {"head", "w", "b"} & set(supplied):
        inputs.append("head")
    if getattr(kind, "requires_fit", True):
        inputs += (
            ["calibration", "calibration labels"]
            if kind.__name__ in _CALIBRATED
            else ["train", "labels"]
        )
    return tuple(inputs)


def _own(names: Sequence[str], reference: Reference) -> dict[str, object]:
    """Return what a constructor asks for that is here; no detector needs the network itself."""
    own: dict[str, object] = dict.fromkeys(names)
    if {"head", "w", "b"} & set(names):
        head = reference.head.to("cpu")
        own |= {"head": _linear(head), "w": head.weight, "b": head.bias}
    return {name: own[name] for name in names}


def _linear(head: Head) -> nn.Linear:
    layer = nn.Linear(head.weight.shape[1], head.weight.shape[0])
    layer.requires_grad_(requires_grad=False)
    layer.weight.copy_(head.weight)
    layer.bias.copy_(head.bias)
    return layer


def _can_be_written(annotation: object) -> bool:
    words, kinds = allowed_values(annotation)
    simple = {int, float, str, bool}
    return bool(words) or (bool(set(kinds) & simple) and set(kinds) <= simple | {type(None)})


def _field(key: str) -> property:
    def read(adapter: LogitsAdapter | FeaturesAdapter) -> Value:
        value: object = getattr(adapter.detector, key, None)
        return value if isinstance(value, (float, int, str, bool)) else None

    return property(read)


def _why_not(kind: type) -> str:
    reasons = {
        FeatureMapsDetector: "it works on feature maps inside the network",
        GradientDetector: "it needs gradients through the network",
        StructuredDetector: "it works on several layers of the network",
        Foreign: "it runs the network itself",
    }
    reason = next(reason for base, reason in reasons.items() if issubclass(kind, base))
    return (
        f"{reason}, but only the features and logits of an image are stored; ood methods lists "
        "the methods that ood implements itself"
    )
