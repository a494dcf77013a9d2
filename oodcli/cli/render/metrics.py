"""Headings and formats of metrics, and names of data sets in tables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from oodcli.reporting.results import FULL_SPECTRUM
from oodcli.store.scores import AVERAGE


@dataclass(frozen=True)
class MetricStyle:
    """Heading of a metric, which values are best, and its unit."""

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


def format_signed(difference: float, digits: int) -> str:
    """Return a difference of fractions in percentage points, with its sign."""
    text = f"{100 * difference:+.{digits}f}"
    # A difference that rounds to zero has no sign.
    return text[1:] if re.fullmatch(r"[+-]0(\.0+)?", text) else text


def set_name(dataset: str, group: str) -> str:
    """Return the name of a set or an average, outside the layouts of papers."""
    if dataset == AVERAGE:
        return "average" if group in ("all", "ood") else f"{group} average"
    return f"{dataset} (full spectrum)" if group in FULL_SPECTRUM.values() else dataset
