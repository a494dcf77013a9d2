"""Rows of results: one per run, method and data set, their averages over data sets and over seeds.

All values are fractions; percentages and rounding are left to the renderers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from oodcli.metrics import Detection
from oodcli.records import as_json
from oodcli.store.ensembles import Member
from oodcli.store.outlier_source import OutlierSource
from oodcli.store.scores import AVERAGE, ResizedAs

Place = tuple[str, str, str]  # method, data set, group
REPORT_SCHEMA = 1
METRICS = ("fpr95", "auroc", "aupr_in", "aupr_out")
GROUPS = ("near", "far", "ood")
# Full spectrum: the same OOD sets against ID test images and covariate-shifted ID images together.
FULL_SPECTRUM = {group: f"fs-{group}" for group in GROUPS}
EXTRAS = {
    "fpr80": "FPR at a TPR of 80 %",
    "fpr90": "FPR at a TPR of 90 %",
    "fpr99": "FPR at a TPR of 99 %",
    "tied": "share of the images whose score is tied with that of another image",
    "detection_error": "smallest mean of the share of ID rejected and the share of OOD accepted",
    "threshold_95": "score that 95 % of the ID images reach",
    "accuracy_at_95": "ID accuracy among the images at or above that score",
    "aurc": "area under the risk-coverage curve on the ID images",
}
"""Values in :attr:`ResultRow.extras`, if known; with OOD positive, both rates are swapped."""
COLUMNS = {
    "run": "name of the run, or of the runs that are averaged",
    "arch": "architecture of the network",
    "dataset": "name of the OOD set, or an average",
    "group": "group of the OOD set: near, far or ood; fs-near and so on for full spectrum",
    "method": "canonical name of the method",
    "fpr95": "false positive rate at a true positive rate of 95 %, by the convention",
    "auroc": "area under the ROC curve, ties counted half",
    "aupr_in": "area under the precision-recall curve with ID images positive",
    "aupr_out": "the same with OOD images positive",
    **EXTRAS,
    "accuracy": "accuracy of the classifier on the ID test images",
    "images": "number of OOD images",
    "params": "parameters of the method, with what fitting chose",
}
"""The possible columns of a report's table, by name."""


@dataclass(frozen=True)
class ResultRow:
    """How well one method separates one OOD set, or the average of several, from the ID test set.

    Parameters
    ----------
    run
        Name of the run; of several runs, their names joined by ``", "``.
    method
        Canonical name of the method.
    params
        Every parameter of the method, with what fitting chose.
    dataset
        Name of the OOD set, or ``average``.
    group
        ``near``, ``far`` or ``ood``, or ``fs-near``, ``fs-far`` or ``fs-ood`` where the ID images
        include covariate-shifted ones; for an average, the group it is over, or ``all``, which is
        over the groups without these.
    detection
        The metrics, as defined by ``convention``, and the sizes of the two sets; for an average,
        ``n_ood`` is that of all its sets together.
    id_accuracy
        Accuracy of the plain classifier on the ID test images.
    convention
        Which definition of the metrics was used.
    intervals
        Lower and upper end of the 95 % confidence interval, by metric; empty where not asked for.
    extras
        Further values of the same scores, by name: fractions, and ``threshold_95`` in the unit of
        the scores. See :data:`EXTRAS`.
    n_runs
        Number of runs behind the row.
    std
        Population standard deviation over the runs, by metric; empty for one run.
    """

    run: str
    method: str
    params: Mapping[str, Any]
    dataset: str
    group: str
    detection: Detection
    id_accuracy: float | None
    convention: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    extras: Mapping[str, float] = field(default_factory=dict)
    n_runs: int = 1
    std: Mapping[str, float] = field(default_factory=dict)

    @property
    def fpr95(self) -> float:
        """False-positive rate at a true-positive rate of 95 %, a fraction."""
        return self.detection.fpr95

    @property
    def auroc(self) -> float:
        """Area under the ROC curve."""
        return self.detection.auroc

    @property
    def aupr_in(self) -> float:
        """Area under the precision-recall curve, ID positive."""
        return self.detection.aupr_in

    @property
    def aupr_out(self) -> float:
        """Area under the precision-recall curve, OOD positive."""
        return self.detection.aupr_out

    @property
    def n_id(self) -> int:
        """Number of ID test images."""
        return self.detection.n_id

    @property
    def n_ood(self) -> int:
        """Number of OOD images."""
        return self.detection.n_ood

    @property
    def place(self) -> Place:
        """The key that identifies the row within its run."""
        return self.method, self.dataset, self.group

    def to_json(self) -> dict[str, Any]:
        """Return the row as it stands in the JSON of a report, the metrics among its fields."""
        absent = {name for name in ("intervals", "extras") if not getattr(self, name)}
        absent |= {"n_runs", "std"} if self.n_runs == 1 else set()
        content: dict[str, Any] = {}
        for name, value in as_json(self).items():
            if name not in absent:
                content |= value if name == "detection" else {name: value}
        return content


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run, shown above the rows of a report.

    Parameters
    ----------
    name
        Name of the run.
    arch
        Canonical architecture, or the members of an ensemble.
    id_name
        Name of the ID test set.
    n_id
        Number of ID test images.
    id_accuracy
        Accuracy on them.
    seed
        Seed of training, or None.
    versions
        Versions of the packages that made the run; empty where they are not known.
    training
        Training method as named in the literature; empty if unknown.
    chance
        Accuracy of guessing on the ID test images, if the classifier is hardly better; else None.
    resize
        How its images were resized, as ``preprocess.resize`` of the run has it; empty if unknown.
    resized_as
        ``benchmark`` or ``network``, whose way that is; None where not known, or both are the same.
    outliers
        The outliers that it was trained with; None without outliers.
    mixing
        The mixing set that it was trained with by PixMix; None without one.
    members
        The runs of an ensemble; empty for a single network.
    """

    name: str
    arch: str
    id_name: str
    n_id: int
    id_accuracy: float | None
    seed: int | None
    versions: Mapping[str, str] = field(default_factory=dict)
    training: str = ""
    chance: float | None = None
    resize: str = ""
    resized_as: ResizedAs | None = None
    outliers: OutlierSource | None = None
    mixing: OutlierSource | None = None
    members: Sequence[Member] = ()


@dataclass(frozen=True)
class SplitUsed:
    """The published list that names the images of a set.

    Parameters
    ----------
    key
        Name of the list, such as ``cifar10/test_tin``.
    sha256
        Checksum of its text.
    """

    key: str
    sha256: str

    def to_json(self) -> dict[str, str]:
        """Return it as it stands in the JSON of a report."""
        return {"list": self.key, "sha256": self.sha256}


@dataclass(frozen=True)
class Comparison:
    """Whether two methods differ in AUROC on the same images of one OOD set.

    Parameters
    ----------
    run
        Name of the run; of several runs, their names joined by ``", "``.
    method_a, method_b
        Canonical names of the methods.
    dataset
        Name of the OOD set.
    group
        ``near``, ``far`` or ``ood``.
    delta
        AUROC of A minus AUROC of B, a fraction.
    interval
        95 % confidence interval of ``delta``.
    p
        Two-sided p-value of DeLong's paired test.
    p_holm
        The same after Holm's correction for all comparisons of the report.
    n_compared
        Number of comparisons in the report.
    """

    run: str
    method_a: str
    method_b: str
    dataset: str
    group: str
    delta: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    n_compared: int

    @property
    def significant(self) -> bool:
        """Whether the difference holds at 5 % after the correction."""
        return self.p_holm < 0.05

    @property
    def sentence(self) -> str:
        """The result of the test in words."""
        low, high = (100 * end for end in self.interval)
        corrected = (
            f" after Holm's correction for {self.n_compared} comparisons"
            if self.n_compared > 1
            else ""
        )
        size = f"{100 * self.delta:+.2f} points of AUROC (95 % interval {low:+.2f} to {high:+.2f})"
        chance = "p < 0.0001" if self.p_holm < 0.0001 else f"p = {self.p_holm:.4f}"
        if not self.significant:
            return (
                f"on {self.dataset}, {self.method_a} and {self.method_b} do not differ "
                f"significantly: {size}, {chance}{corrected}"
            )
        verb = "separates better than" if self.delta > 0 else "separates worse than"
        return (
            f"on {self.dataset}, {self.method_a} {verb} {self.method_b}: "
            f"{size}, {chance}{corrected}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as it stands in the JSON of a report."""
        return as_json(self) | {"significant": self.significant, "sentence": self.sentence}


@dataclass(frozen=True)
class MeanRank:
    """Mean rank of a method over the OOD sets that all methods were scored on; 1 is best.

    Parameters
    ----------
    run
        Name of the run; of several runs, their names joined by ``", "``.
    method
        Canonical name of the method.
    n_methods
        Number of methods that are ranked.
    n_datasets
        Number of OOD sets.
    fpr95, auroc
        Mean rank by each metric; equal values share the mean of their ranks.
    """

    run: str
    method: str
    n_methods: int
    n_datasets: int
    fpr95: float
    auroc: float


@dataclass(frozen=True)
class Calibration:
    """How far the confidence of a classifier is from its accuracy on the ID test images.

    Parameters
    ----------
    run
        Name of the run.
    ece
        Expected calibration error over equally wide bins, a fraction.
    n_bins
        Number of bins.
    confidence
        Mean probability of the predicted class.
    accuracy
        Share of correct predictions.
    n
        Number of images.
    """

    run: str
    ece: float
    n_bins: int
    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Leader:
    """The method with the highest mean AUROC on a group of OOD sets.

    Parameters
    ----------
    group
        ``near``, ``far`` or ``ood``.
    datasets
        Names of the OOD sets of the group that all methods were scored on.
    method
        Canonical name of the method.
    fpr95, auroc
        Its unweighted means over these sets, fractions.
    runner_up
        Canonical name of the second best method; None if there is no other.
    delta
        AUROC of the method minus that of the runner-up, a fraction; None without one.
    interval
        95 % confidence interval of ``delta`` for other images of the same sets; None without a
        runner-up. It takes the two methods as chosen beforehand, which they are not.
    """

    group: str
    datasets: tuple[str, ...]
    method: str
    fpr95: float
    auroc: float
    runner_up: str | None = None
    delta: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def ahead(self) -> bool:
        """Whether the interval lies above zero."""
        return self.interval is not None and self.interval[0] > 0


@dataclass(frozen=True)
class HardestSet:
    """The OOD set on which the highest AUROC of all methods is lowest.

    Parameters
    ----------
    dataset
        Name of the OOD set.
    group
        ``near``, ``far`` or ``ood``.
    method
        Canonical name of the method with the highest AUROC there.
    fpr95, auroc
        Its values, fractions.
    """

    dataset: str
    group: str
    method: str
    fpr95: float
    auroc: float


@dataclass(frozen=True)
class Summary:
    """The main results of a run, or of runs that are averaged.

    Parameters
    ----------
    run
        Name of the run; of several runs, their names joined by ``", "``.
    n_methods
        Number of methods that were compared.
    leaders
        The best method of every group.
    hardest
        The set that all methods separate worst; None if there is a single set.
    baseline
        Canonical name of the maximum softmax probability among the methods; None if it was not
        scored.
    featurenorm
        Canonical name of FeatureNorm among the methods; None if it was not scored.
    recommended
        Canonical name of the method that ``ood recommend`` chose without OOD images; None if there
        is no recommendation.
    """

    run: str
    n_methods: int
    leaders: tuple[Leader, ...]
    hardest: HardestSet | None
    baseline: str | None
    featurenorm: str | None
    recommended: str | None


@dataclass(frozen=True)
class Report:
    """Rows with the information needed to interpret them.

    Parameters
    ----------
    convention
        Name of the metric convention.
    description
        What that convention means, in one line.
    benchmark
        Name of the benchmark, or None.
    runs
        The runs behind the rows.
    rows
        The results.
    notes
        Further facts that a reader must know, one sentence each.
    splits
        For sets whose images a published list names: the list and its checksum, by set.
    comparisons
        Paired tests between methods, where asked for.
    mean_ranks
        Mean rank of every method of a run over its OOD sets; empty for fewer than two methods.
    calibration
        Calibration of the classifier of every run whose probabilities are known.
    summaries
        The main results of every run; of averaged runs, together.
    """

    convention: str
    description: str
    benchmark: str | None
    runs: Sequence[RunSummary]
    rows: Sequence[ResultRow]
    notes: Sequence[str] = ()
    splits: Mapping[str, SplitUsed] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()
    mean_ranks: Sequence[MeanRank] = ()
    calibration: Sequence[Calibration] = ()
    summaries: Sequence[Summary] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        fields = as_json(self)
        always = ("benchmark", "convention", "runs", "notes", "splits", "rows")
        added = ("summaries", "comparisons", "mean_ranks", "calibration")
        return {
            "schema": REPORT_SCHEMA,
            **{name: fields[name] for name in always},
            **{name: fields[name] for name in added if fields[name]},
        }


def with_averages(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return the rows of one run with the unweighted mean over the data sets of every group.

    Parameters
    ----------
    rows
        One row per method and data set of one run.

    Returns
    -------
    list
        Ordered by group; within a group by data set, then by method; the averages of a group follow
        its data sets, then come those over all data sets, and the full-spectrum groups last.

    Examples
    --------
    >>> found = Detection(fpr95=0.2, auroc=0.9, aupr_in=0.9, aupr_out=0.9, n_id=9, n_ood=5)
    >>> svhn = ResultRow("run", "msp", {}, "svhn", "far", found, None, "neutral")
    >>> dtd = replace(svhn, dataset="dtd", detection=replace(found, fpr95=0.4))
    >>> rows = with_averages([svhn, dtd])
    >>> [(row.dataset, row.group, round(row.fpr95, 2)) for row in rows][2:]
    [('average', 'far', 0.3), ('average', 'all', 0.3)]
    """
    methods = list(dict.fromkeys(row.method for row in rows))
    plain = [row for row in rows if row.group in GROUPS]
    ordered = _by_group(plain, GROUPS, methods) + _averages(plain, methods, "all")
    return ordered + _by_group(rows, tuple(FULL_SPECTRUM.values()), methods)


def _by_group(
    rows: Sequence[ResultRow], groups: Sequence[str], methods: Sequence[str]
) -> list[ResultRow]:
    ordered: list[ResultRow] = []
    for group in groups:
        members = [row for row in rows if row.group == group]
        for dataset in dict.fromkeys(row.dataset for row in members):
            ordered += sorted(
                (row for row in members if row.dataset == dataset),
                key=lambda row: methods.index(row.method),
            )
        ordered += _averages(members, methods, group)
    return ordered


def common_sets(rows: Sequence[ResultRow]) -> set[str]:
    """Return the data sets that every method of the rows was scored on.

    Parameters
    ----------
    rows
        One row per method and data set of one run.
    """
    by_method: dict[str, set[str]] = {}
    for row in rows:
        by_method.setdefault(row.method, set()).add(row.dataset)
    return set.intersection(*by_method.values()) if by_method else set()


def _averages(rows: Sequence[ResultRow], methods: Sequence[str], group: str) -> list[ResultRow]:
    """Return the mean of every method over the sets that all of them were scored on.

    Otherwise, means over different sets would be compared. Only if no set is common to all methods,
    each mean is over the sets of its method.
    """
    averages = []
    common = common_sets(rows) or {row.dataset for row in rows}
    for method in methods:
        own = [row for row in rows if row.method == method and row.dataset in common]
        if own:
            total = sum(row.n_ood for row in own)
            mean = _mean(own)
            sizes = replace(mean.detection, n_ood=total)
            averages.append(replace(mean, dataset=AVERAGE, group=group, detection=sizes))
    return averages


def over_runs(reports: Sequence[Sequence[ResultRow]]) -> list[ResultRow]:
    """Return the mean and population standard deviation over runs, row by row.

    Parameters
    ----------
    reports
        The rows of each run, averages included; only rows that every run has are included.
    """
    names = ", ".join(rows[0].run for rows in reports)
    tables = [{row.place: row for row in rows} for rows in reports]
    merged = []
    for key in tables[0]:
        if not all(key in table for table in tables):
            continue
        own = [table[key] for table in tables]
        accuracies = [row.id_accuracy for row in own if row.id_accuracy is not None]
        std = {name: _std(own, name) for name in METRICS}
        if len(accuracies) == len(own):
            std["id_accuracy"] = float(np.std(accuracies))
        merged.append(
            replace(
                _mean(own),
                run=names,
                params=_varied(own),
                id_accuracy=float(np.mean(accuracies)) if len(accuracies) == len(own) else None,
                n_runs=len(own),
                std=std,
            )
        )
    return merged


def _varied(rows: Sequence[ResultRow]) -> dict[str, Any]:
    """Return parameters with a list of the values of all runs where they differ."""
    params = {}
    for name in rows[0].params:
        values = [row.params.get(name) for row in rows]
        params[name] = values[0] if all(value == values[0] for value in values) else values
    return params


def _mean(rows: Sequence[ResultRow]) -> ResultRow:
    """Return the first row with every metric replaced by its mean over all rows.

    An interval of a mean is not the mean of intervals, so there is none.
    """
    shared = [name for name in rows[0].extras if all(name in row.extras for row in rows)]

    def mean(metric: str) -> float:
        return float(np.mean([getattr(row, metric) for row in rows]))

    return replace(
        rows[0],
        detection=replace(
            rows[0].detection,
            fpr95=mean("fpr95"),
            auroc=mean("auroc"),
            aupr_in=mean("aupr_in"),
            aupr_out=mean("aupr_out"),
        ),
        intervals={},
        extras={name: float(np.mean([row.extras[name] for row in rows])) for name in shared},
    )


def _std(rows: Sequence[ResultRow], name: str) -> float:
    return float(np.std([getattr(row, name) for row in rows]))
