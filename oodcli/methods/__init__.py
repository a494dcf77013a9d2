"""The methods there are, by the name they have on the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from oodcli.methods.base import Fitted, Method, MethodSpec
from oodcli.methods.base import parse_method as _parse_method
from oodcli.methods.energy import Energy
from oodcli.methods.featurenorm import FeatureNorm, SelectedNorm
from oodcli.methods.maxlogit import MaxLogit
from oodcli.methods.msp import MSP

__all__ = ["METHODS", "Fitted", "MethodSpec", "group", "parse_method", "parse_methods"]

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        # From logits.
        "msp": Method(MSP, "MSP", "Hendrycks and Gimpel, ICLR 2017", ("logits",)),
        "maxlogit": Method(MaxLogit, "MaxLogit", "Hendrycks et al., ICML 2022", ("logits",)),
        "energy": Method(Energy, "Energy", "Liu et al., NeurIPS 2020", ("logits",)),
        # From block norms.
        "featurenorm": Method(
            FeatureNorm, "FeatureNorm", "Yu et al., CVPR 2023", ("block norms", "train", "jigsaw")
        ),
        "norm": Method(
            SelectedNorm,
            "selected norm",
            "Yu et al., CVPR 2023",
            ("features", "block norms", "head", "train", "jigsaw"),
        ),
        # From features and the last layer.
        # From neighbours and class statistics of the training images.
        # From probes.
    }
)


def group(*, probes: bool) -> tuple[str, ...]:
    """Return every method, shapers with the scorer of their paper, and the selected norm with all.

    Parameters
    ----------
    probes
        Whether to name those too that need more of the forward pass than its ordinary activations.
    """
    scorers = [name for name, method in METHODS.items() if method.is_logit_scorer]
    names: list[str] = []
    for name, method in METHODS.items():
        if probes or not {"network", "regions"} & set(method.inputs):
            names += [f"norm+{scorer}" for scorer in scorers] if name == "norm" else [name]
    return tuple(names)


def parse_method(text: str) -> MethodSpec:
    """Read one method as written on the command line."""
    return _parse_method(text, METHODS)


def parse_methods(texts: Sequence[str]) -> list[MethodSpec]:
    """Read methods as written on the command line, without repetitions.

    Parameters
    ----------
    texts
        Names with parameters. ``all`` stands for every method, and no text at all for every method
        that works from ordinary activations; those may be left out where they are not defined.
    """
    specs: dict[str, MethodSpec] = {}
    for text in texts or ("",):
        if text in ("", "all"):
            for name in group(probes=text == "all"):
                spec = replace(parse_method(name), optional=True)
                specs.setdefault(spec.canonical, spec)
        else:
            spec = parse_method(text)
            specs[spec.canonical] = spec
    return list(specs.values())
