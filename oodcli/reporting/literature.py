"""Published values, and whether results are comparable with them.

The values are in ``literature.csv`` next to this module, in percent with the printed digits: one
line per method, training, architecture and data set. ``average`` is the unweighted mean over the
sets of a group. A result is comparable if the definition of the metric, the images and the
architecture are those of the paper; otherwise all reasons are listed.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from oodcli.errors import CorruptArtifactError
from oodcli.method_names import ALIASES
from oodcli.reporting.results import FULL_SPECTRUM, METRICS, Report, ResultRow, RunSummary
from oodcli.store.scores import AVERAGE
from oodcli.text import printable

_FILE = Path(__file__).with_name("literature.csv")
_CROSS_ENTROPY = "cross-entropy"
# A value is printed with two decimals: half of the last one, in percent, is how far off it may be.
_PRINTED = 0.005


@dataclass(frozen=True)
class Publication:
    """A source of published values.

    Parameters
    ----------
    title
        Short citation.
    convention
        Name of the metric convention behind its values.
    url
        Where to find it.
    """

    title: str
    convention: str
    url: str


SOURCES: Mapping[str, Publication] = MappingProxyType(
    {
        "featurenorm": Publication(
            "Yu et al., CVPR 2023", "featurenorm", "https://arxiv.org/abs/2212.02295"
        ),
        "mode": Publication(
            "Zhang et al., IEEE TIP 2023", "knn", "https://arxiv.org/abs/2308.10239"
        ),
        "scale": Publication("Xu et al., ICLR 2024", "openood", "https://arxiv.org/abs/2310.00227"),
        "t2fnorm": Publication(
            "Regmi et al., CVPRW 2024", "openood", "https://arxiv.org/abs/2305.17797"
        ),
        "leaderboard": Publication(
            "OpenOOD leaderboard", "openood", "https://zjysteven.github.io/OpenOOD"
        ),
        "rerun": Publication(
            "a re-run of OpenOOD's evaluator by others",
            "openood",
            "https://github.com/Jingkang50/OpenOOD",
        ),
    }
)


@dataclass(frozen=True)
class Published:
    """The published values of one method on one set, or on the average of several.

    Parameters
    ----------
    source
        Key in :data:`SOURCES`.
    benchmark
        Name of the benchmark.
    arch
        Architecture.
    training
        ``cross-entropy``, or what the network was trained by instead.
    method
        Name of the method, as ours are called.
    dataset, group
        As in `oodcli.reporting.results.ResultRow`.
    n_runs
        Number of trainings behind the values.
    values
        Fractions by metric.
    std
        Population standard deviation over the trainings, by metric; empty where none is printed.
    note
        What else there is to know of these values, or empty.
    """

    source: str
    benchmark: str
    arch: str
    training: str
    method: str
    dataset: str
    group: str
    n_runs: int
    values: Mapping[str, float]
    std: Mapping[str, float]
    note: str


@dataclass(frozen=True)
class Tolerance:
    """Accepted difference between a repetition and a published value.

    Parameters
    ----------
    benchmark, arch, training, method
        As in :class:`Published`; ``"*"`` for every one.
    group
        Group of the average.
    metric
        Name of the metric.
    one_run, three_runs
        Largest difference of one training of our own, and of the mean of three or more, in points
        of a percent; None where none is set.
    same_weights
        Largest difference where the weights of the paper are scored, which leaves only rounding and
        the images as they are decoded; None where none is set.
    """

    benchmark: str
    arch: str
    training: str
    method: str
    group: str
    metric: str
    one_run: float | None = None
    three_runs: float | None = None
    same_weights: float | None = None


_CE = _CROSS_ENTROPY
_FEATURENORM = "featurenorm-cifar10"
_C10, _C100 = "openood-cifar10", "openood-cifar100"
_IN200, _IN1K = "openood-imagenet200", "openood-imagenet"
_FINETUNED, _ALPA = "contrastive+alpa-finetune", "contrastive+alpa-train"
_CE_FINETUNED = "cross-entropy+alpa-finetune"

# fmt: off
TOLERANCES: tuple[Tolerance, ...] = (
    Tolerance(_FEATURENORM, "resnet18", _CE, "featurenorm", "ood", "fpr95", 10.0, 7.0),
    Tolerance(_FEATURENORM, "resnet18", _CE, "featurenorm", "ood", "auroc", 3.0, 2.0),
    Tolerance(_FEATURENORM, "wrn-28-10", _CE, "featurenorm", "ood", "fpr95", 6.0, 4.0),
    Tolerance(_FEATURENORM, "wrn-28-10", _CE, "featurenorm", "ood", "auroc", 1.5, 1.0),
    Tolerance(_FEATURENORM, "vgg11", _CE, "featurenorm", "ood", "fpr95", 12.0, 8.0),
    Tolerance(_FEATURENORM, "vgg11", _CE, "featurenorm", "ood", "auroc", 3.5, 2.5),
    Tolerance("mode-cifar10", "resnet18", "contrastive", "knn", "ood", "fpr95", 4.0),
    Tolerance("mode-cifar10", "resnet18", "contrastive", "knn", "ood", "auroc", 0.8),
    Tolerance("mode-cifar10", "resnet18", _FINETUNED, "mode", "ood", "fpr95", 4.0),
    Tolerance("mode-cifar10", "resnet18", _FINETUNED, "mode", "ood", "auroc", 0.8),
    Tolerance("mode-cifar10", "resnet18", _ALPA, "mode", "ood", "fpr95", 5.0),
    Tolerance("mode-cifar10", "resnet18", _ALPA, "mode", "ood", "auroc", 1.0),
    Tolerance("mode-cifar10", "resnet18", _CE_FINETUNED, "mode", "ood", "fpr95", 6.0),
    Tolerance("mode-cifar10", "resnet18", _CE_FINETUNED, "mode", "ood", "auroc", 1.5),
    Tolerance("mode-cifar100", "resnet34", "contrastive", "knn", "ood", "fpr95", 8.0),
    Tolerance("mode-cifar100", "resnet34", "contrastive", "knn", "ood", "auroc", 2.5),
    Tolerance("mode-cifar100", "resnet34", _FINETUNED, "mode", "ood", "fpr95", 8.0),
    Tolerance("mode-cifar100", "resnet34", _FINETUNED, "mode", "ood", "auroc", 2.5),
    Tolerance("mos-imagenet", "resnet50", "contrastive", "knn", "ood", "fpr95", None, None, 1.0),
    Tolerance("mos-imagenet", "resnet50", "contrastive", "knn", "ood", "auroc", None, None, 0.5),
    Tolerance("mos-imagenet", "resnet50", _FINETUNED, "mode", "ood", "fpr95", 3.0),
    Tolerance("mos-imagenet", "resnet50", _FINETUNED, "mode", "ood", "auroc", 1.0),
    Tolerance(_IN1K, "resnet50", _CE, "scale", "near", "auroc", None, None, 0.15),
    Tolerance(_IN1K, "resnet50", _CE, "scale", "far", "auroc", None, None, 0.10),
    Tolerance(_IN1K, "resnet50", _CE, "scale", "near", "fpr95", None, None, 0.4),
    Tolerance(_IN1K, "resnet50", _CE, "scale", "far", "fpr95", None, None, 0.4),
    Tolerance(_IN1K, "resnet50", _CE, "energy", "near", "auroc", None, None, 0.15),
    Tolerance(_IN1K, "resnet50", _CE, "energy", "far", "auroc", None, None, 0.15),
    Tolerance(_IN1K, "resnet50", "ish", "scale", "near", "auroc", 0.8, None, 0.15),
    Tolerance(_IN1K, "resnet50", "ish", "scale", "far", "auroc", 0.5, None, 0.15),
    Tolerance(_C100, "resnet18", _CE, "scale", "near", "auroc", None, 0.8, 0.10),
    Tolerance(_C100, "resnet18", _CE, "scale", "far", "auroc", None, 2.5, 0.10),
    Tolerance(_C10, "resnet18", _CE, "scale", "near", "auroc", None, 2.5, 0.10),
    Tolerance(_C10, "resnet18", _CE, "scale", "far", "auroc", None, 4.0, 0.10),
    Tolerance(_C10, "resnet18", "t2fnorm", "t2fnorm", "near", "auroc", None, 0.6, 0.05),
    Tolerance(_C10, "resnet18", "t2fnorm", "t2fnorm", "far", "auroc", None, 1.0, 0.05),
    Tolerance(_C10, "resnet18", "t2fnorm", "t2fnorm", "near", "fpr95", None, 2.5),
    Tolerance(_C10, "resnet18", "t2fnorm", "t2fnorm", "far", "fpr95", None, 4.0),
    Tolerance(_C100, "resnet18", "t2fnorm", "t2fnorm", "near", "auroc", None, 1.0),
    Tolerance(_C100, "resnet18", "t2fnorm", "t2fnorm", "far", "auroc", None, 2.5),
    Tolerance(_IN200, "resnet18", "t2fnorm", "t2fnorm", "near", "auroc", 0.6),
    Tolerance(_IN200, "resnet18", "t2fnorm", "t2fnorm", "far", "auroc", 0.7),
    Tolerance(_IN1K, "resnet50", "t2fnorm", "t2fnorm", "near", "auroc", 1.5),
    Tolerance(_IN1K, "resnet50", "t2fnorm", "t2fnorm", "far", "auroc", 1.5),
    # Every other score on OpenOOD's own weights, or on ours by its recipe.
    Tolerance(_C10, "resnet18", _CE, "*", "near", "auroc", None, 1.0, 0.10),
    Tolerance(_C10, "resnet18", _CE, "*", "far", "auroc", None, 2.5, 0.10),
    Tolerance(_C100, "resnet18", _CE, "*", "near", "auroc", None, 1.0, 0.10),
    Tolerance(_C100, "resnet18", _CE, "*", "far", "auroc", None, 2.5, 0.10),
    Tolerance(_IN200, "resnet18", _CE, "*", "near", "auroc", None, None, 0.10),
    Tolerance(_IN200, "resnet18", _CE, "*", "far", "auroc", None, None, 0.10),
    Tolerance(_IN1K, "resnet50", _CE, "*", "near", "auroc", None, None, 0.10),
    Tolerance(_IN1K, "resnet50", _CE, "*", "far", "auroc", None, None, 0.10),
)
# fmt: on
"""Which differences a repetition may show, the most particular first.

Notes
-----
The tolerances are ours. Norms of activations move by several points between two trainings that
differ by the seed alone, which is why those of FeatureNorm are wide. A value without one, such as
that of a single data set, is shown with its difference and without a verdict.
"""

_MODE_SETS = {
    "svhn-10000": 10_000,
    "places365-test-sample": 10_000,
    "lsun-crop": 10_000,
    "isun": 8_925,
    "textures": 5_640,
}
_IMAGENET_SETS = {
    "ssb-hard": 49_000,
    "ninco": 5_879,
    "inaturalist": 10_000,
    "textures": 5_160,
    "openimage-o": 15_869,
}


@dataclass(frozen=True)
class _Images:
    """The images behind the printed values of a benchmark: ID, with shifted ones, and OOD."""

    id_name: str
    n_id: int
    n_spectrum: int
    ood: Mapping[str, int]


_IMAGES: Mapping[str, _Images] = MappingProxyType(
    {
        "featurenorm-cifar10": _Images(
            "cifar10",
            10_000,
            0,
            {
                "svhn": 26_032,
                "textures": 5_640,
                "lsun-crop": 10_000,
                "lsun-resize": 10_000,
                "isun": 8_925,
                "places365-sample": 10_000,
            },
        ),
        "mode-cifar10": _Images("cifar10", 10_000, 0, _MODE_SETS),
        "mode-cifar100": _Images("cifar100", 10_000, 0, _MODE_SETS),
        "mos-imagenet": _Images(
            "imagenet",
            50_000,
            0,
            {"inaturalist": 10_000, "sun": 10_000, "places": 10_000, "textures": 5_640},
        ),
        "openood-cifar10": _Images(
            "cifar10",
            9_000,
            0,
            {
                "cifar100": 9_000,
                "tiny-imagenet": 7_793,
                "mnist-lossless": 70_000,
                "svhn-lossless": 26_032,
                "textures": 5_640,
                "places365": 35_195,
            },
        ),
        "openood-cifar100": _Images(
            "cifar100",
            9_000,
            0,
            {
                "cifar10": 10_000,
                "tiny-imagenet": 6_526,
                "mnist-lossless": 70_000,
                "svhn-lossless": 26_032,
                "textures": 5_640,
                "places365": 33_773,
            },
        ),
        "openood-imagenet200": _Images("imagenet200", 9_000, 43_000, _IMAGENET_SETS),
        "openood-imagenet": _Images("imagenet", 45_000, 95_000, _IMAGENET_SETS),
    }
)
# Names that other programs give to the same sets; the number of images tells subsets apart.
_ALIASES = {
    "tin": "tiny-imagenet",
    "texture": "textures",
    "dtd": "textures",
    "mnist": "mnist-lossless",
    "svhn": "svhn-lossless",
    "ssb_hard": "ssb-hard",
    "openimage_o": "openimage-o",
    "places365-sample": "places365",
    "places365-test-sample": "places365",
    "svhn-10000": "svhn-lossless",
}
# Not all aliases: "mode" is a published method of its own.
_METHOD_ALIASES = {name: ALIASES[name] for name in ("ash", "ebo", "mls")}
# Sets that other benchmarks score as well, so that their names say the same images.
_SAME_IMAGES = {"knn-cifar10": "mode-cifar10", "knn-cifar100": "mode-cifar100"}


@dataclass(frozen=True)
class PublishedComparison:
    """A result compared with a published value.

    Parameters
    ----------
    run, method, dataset, group, convention
        As in the row of the report.
    metric
        Name of the metric.
    ours
        Our value, a fraction.
    n_runs
        Number of runs behind it.
    published
        What was printed.
    tolerance
        Largest difference that a repetition may show, a fraction; None where none is set.
    reasons
        Why the two are not comparable, one sentence each; empty if they are.
    remarks
        What could not be checked, one sentence each.
    """

    run: str
    method: str
    dataset: str
    group: str
    convention: str
    metric: str
    ours: float
    n_runs: int
    published: Published
    tolerance: float | None
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def theirs(self) -> float:
        """The printed value, a fraction."""
        return self.published.values[self.metric]

    @property
    def difference(self) -> float:
        """Our value minus the published one."""
        return self.ours - self.theirs

    @property
    def within(self) -> bool | None:
        """Whether the difference is within the tolerance; None if there is none."""
        if self.reasons or self.tolerance is None:
            return None
        # The printed value is rounded; that much is no difference.
        return abs(self.difference) <= self.tolerance + _PRINTED / 100

    def to_json(self) -> dict[str, object]:
        """Return the comparison as it stands in the JSON of a report."""
        return {
            "run": self.run,
            "method": self.method,
            "dataset": self.dataset,
            "group": self.group,
            "convention": self.convention,
            "metric": self.metric,
            "ours": self.ours,
            "published": self.theirs,
            "published_std": self.published.std.get(self.metric),
            "published_runs": self.published.n_runs,
            "difference": self.difference,
            "tolerance": self.tolerance,
            "within": self.within,
            "comparable": not self.reasons,
            "reasons": list(self.reasons),
            "remarks": list(self.remarks),
            "source": SOURCES[self.published.source].title,
            "url": SOURCES[self.published.source].url,
            "note": self.published.note,
        }


@cache
def published() -> tuple[Published, ...]:
    """Return every value that papers printed.

    Raises
    ------
    CorruptArtifactError
        If the file of values is damaged.
    """
    with _FILE.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    try:
        return tuple(_read(line) for line in lines)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptArtifactError(f"{_FILE} is damaged: {error}; install ood again") from None


def _read(line: Mapping[str, str]) -> Published:
    return Published(
        source=line["source"],
        benchmark=line["benchmark"],
        arch=line["arch"],
        training=line["training"],
        method=line["method"],
        dataset=line["dataset"],
        group=line["group"],
        n_runs=int(line["runs"]),
        values={name: float(line[name]) / 100 for name in METRICS if line[name]},
        std={name: float(line[f"{name}_std"]) / 100 for name in METRICS if line[f"{name}_std"]},
        note=line["note"],
    )


def compare(
    report: Report, metrics: Sequence[str] = ("fpr95", "auroc")
) -> list[PublishedComparison]:
    """Compare every row of a report with the published values of the same method and set.

    Parameters
    ----------
    report
        The report.
    metrics
        Which metrics to compare, where they were printed.

    Returns
    -------
    list
        In the order of the rows; of several printed values that of the benchmark of the report, or
        else the one that ours comes nearest to being comparable with. A row of which nothing was
        printed is not there.
    """
    index: dict[tuple[str, str, str], list[Published]] = {}
    for value in published():
        id_name = _IMAGES[value.benchmark].id_name
        key = id_name, value.method, _place(value.dataset, value.group)
        index.setdefault(key, []).append(value)
    named = _SAME_IMAGES.get(report.benchmark or "", report.benchmark)
    found = []
    for row in report.rows:
        summary = _summary_of(row, report.runs)
        candidates = index.get(
            (summary.id_name, _method(row.method), _place(row.dataset, row.group)), []
        )
        for metric in metrics:
            judged = [
                (_reasons(row, metric, report, summary, value), value)
                for value in candidates
                if metric in value.values
            ]
            if judged:
                # Of equals the first: the file has the papers before the leaderboard.
                reasons, value = min(
                    judged, key=lambda pair: (pair[1].benchmark != named, len(pair[0]))
                )
                found.append(
                    PublishedComparison(
                        row.run,
                        row.method,
                        row.dataset,
                        row.group,
                        row.convention,
                        metric,
                        getattr(row, metric),
                        row.n_runs,
                        value,
                        _tolerance(value, metric, row.n_runs, trained=summary.seed is not None),
                        tuple(reasons),
                        _remarks(summary, value),
                    )
                )
    return found


def _place(dataset: str, group: str) -> str:
    """Return a common name for a set, whatever its source, and for the average of a group."""
    spectrum = "fs-" if group in FULL_SPECTRUM.values() else ""
    if dataset == AVERAGE:
        return f"average {group}"
    return spectrum + _ALIASES.get(dataset.lower(), dataset.lower())


def _method(name: str) -> str:
    base = name.partition(":")[0].partition("@")[0].lower()
    if not base.startswith("norm+"):
        base = base.removesuffix("+energy")  # what a shaper alone is followed by
    return _METHOD_ALIASES.get(base, base)


def _summary_of(row: ResultRow, runs: Sequence[RunSummary]) -> RunSummary:
    names = row.run.split(", ")
    return next((run for run in runs if run.name in (row.run, *names)), runs[0])


def _reasons(
    row: ResultRow, metric: str, report: Report, summary: RunSummary, value: Published
) -> list[str]:
    """Return why two values are not comparable: convention, images, architecture, training."""
    reasons = []
    theirs = SOURCES[value.source].convention
    # The area under the ROC curve is the same by every convention.
    if metric != "auroc" and row.convention != theirs:
        reasons.append(f"convention: ours is {row.convention}, theirs {theirs}")
    reasons += _other_images(row, report, value)
    arch = summary.arch
    if arch and arch != value.arch:
        reasons.append(f"architecture: ours is {arch}, theirs {value.arch}")
    if summary.training and summary.training != value.training:
        reasons.append(f"training: ours is {summary.training}, theirs {value.training}")
    elif not summary.training and value.training not in (_CROSS_ENTROPY, value.method):
        reasons.append(f"training: theirs is {value.training}")
    if summary.outliers is not None and summary.outliers.made:
        reasons.append(f"outliers: ours are {summary.outliers.name}, made from training images")
    return reasons


# Outliers of the published trainings with outliers: lists of OpenOOD.
_OUTLIERS = {
    "openood-cifar10": "TIN-597, classes of Tiny ImageNet beside those of a near set",
    "openood-cifar100": "TIN-597, classes of Tiny ImageNet beside those of a near set",
    "openood-imagenet200": "ImageNet-800, the other classes of ImageNet",
}


# What published values of a training rest on, where it differs from its paper.
_CODE = {
    "vos": "the code behind the published VOS sends no gradient of its outliers into the network: "
    "it is nearly cross-entropy",
}


def _remarks(summary: RunSummary, value: Published) -> tuple[str, ...]:
    """Return what could not be verified."""
    remarks = []
    if not summary.arch:
        remarks.append(f"the architecture of {summary.name} is not known; theirs is {value.arch}")
    if summary.outliers is not None and not summary.outliers.made:
        theirs = _OUTLIERS.get(value.benchmark, "not known")
        remarks.append(
            f"the outliers of {summary.name} are {printable(summary.outliers.name)}; theirs are "
            f"{theirs}"
        )
    if summary.training == value.training and value.training in _CODE:
        remarks.append(_CODE[value.training])
    return tuple(remarks)


def _other_images(row: ResultRow, report: Report, value: Published) -> list[str]:
    images = _IMAGES[value.benchmark]
    ours = _SAME_IMAGES.get(report.benchmark or "", report.benchmark)
    if ours is not None and ours != value.benchmark:
        return [f"images: ours are those of {report.benchmark}, theirs of {value.benchmark}"]
    reasons = []
    n_id = images.n_spectrum if row.group in FULL_SPECTRUM.values() else images.n_id
    if n_id and row.n_id != n_id:
        reasons.append(f"images: {row.n_id:,} in distribution here, {n_id:,} there")
    by_place = {_place(name, ""): n for name, n in images.ood.items()}
    if row.dataset != AVERAGE:
        n_ood = by_place[_place(row.dataset, "")]
        if row.n_ood != n_ood:
            reasons.append(f"images: {row.n_ood:,} of the OOD set here, {n_ood:,} there")
        return reasons
    members = {
        _place(other.dataset, ""): other.n_ood
        for other in report.rows
        if other.dataset != AVERAGE
        and (other.run, other.method) == (row.run, row.method)
        and other.group == row.group
    }
    wanted = _members(value)
    if set(members) != set(wanted):
        reasons.append(
            f"images: an average over {len(members)} sets here, over {len(wanted)} there"
            if len(members) != len(wanted)
            else "images: an average over other sets"
        )
    elif members != wanted:
        reasons.append("images: the OOD sets of the average have other sizes")
    return reasons


def _members(value: Published) -> dict[str, int]:
    """Return the sets behind a printed average, with their sizes."""
    sizes = {_place(name, ""): n for name, n in _IMAGES[value.benchmark].ood.items()}
    near = 2
    names = list(sizes)
    chosen = {"near": names[:near], "far": names[near:]}.get(value.group.removeprefix("fs-"), names)
    return {name: sizes[name] for name in chosen}


def _tolerance(value: Published, metric: str, n_runs: int, *, trained: bool) -> float | None:
    if value.dataset != AVERAGE:
        return None
    for rule in TOLERANCES:
        same = (rule.benchmark, rule.arch, rule.training, rule.group, rule.metric) == (
            value.benchmark,
            value.arch,
            value.training,
            value.group,
            metric,
        )
        if same and rule.method in ("*", value.method):
            points = rule.same_weights
            if trained or points is None:
                points = rule.three_runs if n_runs >= 3 else rule.one_run
                points = rule.one_run if points is None else points
            return None if points is None else points / 100
    return None
