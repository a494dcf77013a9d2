"""The methods there are, by the name they have on the command line."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from oodcli.methods.base import Fitted, Method, MethodSpec
from oodcli.methods.base import parse_method as _parse_method
from oodcli.methods.energy import Energy
from oodcli.methods.featurenorm import FeatureNorm, SelectedNorm
from oodcli.methods.maxlogit import MaxLogit
from oodcli.methods.msp import MSP

__all__ = ["DEFAULT_METHODS", "METHODS", "Fitted", "MethodSpec", "parse_method", "parse_methods"]

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

# What is scored when no method is named: all that works from cached activations, each shaper with
# the scorers its paper reports.
DEFAULT_METHODS = ("msp", "maxlogit", "energy", "featurenorm", "norm+msp", "norm+energy")


def parse_method(text: str) -> MethodSpec:
    """Read one method as written on the command line."""
    return _parse_method(text, METHODS)


def parse_methods(texts: Sequence[str]) -> list[MethodSpec]:
    """Read methods as written on the command line, without repetitions.

    Parameters
    ----------
    texts
        Names with parameters; ``all``, or none at all, stands for every method.
    """
    specs: dict[str, MethodSpec] = {}
    for text in texts or ("all",):
        for name in DEFAULT_METHODS if text == "all" else (text,):
            spec = parse_method(name)
            specs.setdefault(spec.canonical, spec)
    return list(specs.values())
