"""How metrics and data sets are called and printed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from oodcli.reporting.results import FULL_SPECTRUM
from oodcli.store.scores import AVERAGE


@dataclass(frozen=True)
class MetricStyle:
    """How a value is called and printed, and which of several is best."""

    heading: str
    best: Literal["least", "most", "none"] = "none"
    unit: Literal["percent", "score"] = "percent"


METRIC_STYLES: Mapping[str, MetricStyle] = MappingProxyType(
    {
        "fpr95": MetricStyle("FPR95 ↓", "least"),
        "auroc": MetricStyle("AUROC ↑", "most"),
        "aupr_in": MetricStyle("AUPR-in ↑", "most"),
        "aupr_out": MetricStyle("AUPR-out ↑", "most"),
        "fpr80": MetricStyle("FPR80 ↓", "least"),
        "fpr90": MetricStyle("FPR90 ↓", "least"),
        "fpr99": MetricStyle("FPR99 ↓", "least"),
        "detection_error": MetricStyle("Det. error ↓", "least"),
        "tied": MetricStyle("Ties ↓", "least"),
        "aurc": MetricStyle("AURC ↓", "least"),
        "accuracy_at_95": MetricStyle("Acc. at 95 ↑", "most"),
        "threshold_95": MetricStyle("Threshold", unit="score"),
        "accuracy": MetricStyle("ID acc. ↑"),
    }
)


def signed(difference: float, digits: int) -> str:
    """Return a difference of fractions in points of a percent, with its sign."""
    text = f"{100 * difference:+.{digits}f}"
    # A difference of nothing has no sign.
    return text[1:] if re.fullmatch(r"[+-]0(\.0+)?", text) else text


def set_name(dataset: str, group: str) -> str:
    """Name a set or an average outside the layouts of papers."""
    if dataset == AVERAGE:
        return "average" if group in ("all", "ood") else f"{group} average"
    return f"{dataset} (full spectrum)" if group in FULL_SPECTRUM.values() else dataset
