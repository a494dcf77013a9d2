"""Time of a report over many methods, ours against scikit-learn's functions, in one process.

    python tests/bench/reporting.py [--methods N] [--seeds N] [--repeat N]

Scores of the sizes of OpenOOD's CIFAR-10 benchmark are made up: 9,000 ID images and eight OOD sets
of up to 70,000, in single precision. ``ood`` reads them from a store and makes the whole report;
scikit-learn gets the same arrays, from memory, and computes FPR95, AUROC and both areas of
precision by ``roc_curve``, ``roc_auc_score`` and ``average_precision_score``. Both agree to 1e-6.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from oodcli.reporting.results import Report
from oodcli.reporting.sources import ScoreQuery, Sources
from oodcli.store.runs import Job, Run, RunFolder
from oodcli.store.scores import LABELS, PREDICTIONS, ScoredSet, Scoring, add_scores
from oodcli.store.store import Store
from oodcli.workflows.report import Statistics, report

ID_NAME, N_ID = "cifar10", 9_000
SETS = {
    "cifar100": ("near", 9_000),
    "tin": ("near", 7_793),
    "mnist": ("far", 70_000),
    "svhn": ("far", 26_032),
    "texture": ("far", 5_640),
    "places365": ("far", 35_195),
    "lsun": ("far", 10_000),
    "isun": ("far", 8_925),
}
Pair = tuple[str, str, str]


def made_up(methods: int, seed: int) -> dict[tuple[str, str], NDArray[np.float32]]:
    """Return scores by method and data set; methods and sets differ in how well they separate."""
    rng = np.random.default_rng(seed)
    scores = {}
    for number in range(methods):
        name = f"method{number:02d}"
        scores[name, ID_NAME] = rng.normal(1 + number / methods, 1, N_ID).astype(np.float32)
        for at, (dataset, (_, n)) in enumerate(SETS.items()):
            scores[name, dataset] = rng.normal(-at / 8, 1.2, n).astype(np.float32)
    return scores


def stored(store: Store, methods: int, seeds: int) -> dict[Pair, NDArray[np.float32]]:
    """Write runs that differ by their seed into a store; return all scores by run."""
    every = {}
    for seed in range(seeds):
        folder = RunFolder(store.runs / f"s{seed}")
        folder.path.mkdir(parents=True)
        folder.write(
            Run(
                origin="trained",
                created=f"2024-01-0{seed + 1}",
                job=Job(ID_NAME, "resnet18", seed=seed),
                data_name=ID_NAME,
                class_names=tuple("0123456789"),
                blocks=("1.1",),
                network="network",
                weights="weights",
            )
        )
        scores = made_up(methods, seed)
        labels = np.arange(N_ID) % 10
        classes = {(LABELS, ID_NAME): labels, (PREDICTIONS, ID_NAME): labels * (labels > 0)}
        scoring = Scoring(
            limit=None,
            precision="float32",
            id_set=ScoredSet(ID_NAME, "id", N_ID, "images"),
            id_accuracy=0.9,
            sets=tuple(ScoredSet(name, group, n, name) for name, (group, n) in SETS.items()),
            methods={method: {} for method, _ in scores},
        )
        add_scores(store, folder.scores, scoring, {**scores, **classes})
        every |= {(folder.name, *key): values for key, values in scores.items()}
    return every


def sklearns(every: dict[Pair, NDArray[np.float32]]) -> dict[Pair, tuple[float, ...]]:
    """Compute the four metrics of every pair, ID positive."""
    found = {}
    for (run, method, dataset), ood_scores in every.items():
        if dataset == ID_NAME:
            continue
        id_scores = every[run, method, ID_NAME]
        truth = np.repeat([1, 0], [len(id_scores), len(ood_scores)])
        values = np.concatenate([id_scores, ood_scores])
        fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
        found[run, method, dataset] = (
            float(fpr[np.argmax(tpr >= 0.95)]),
            float(roc_auc_score(truth, values)),
            float(average_precision_score(truth, values)),
            float(average_precision_score(1 - truth, -values)),
        )
    return found


def check(made: Report, theirs: dict[Pair, tuple[float, ...]]) -> None:
    """Compare the means over seeds."""
    runs = [run.name for run in made.runs]
    for row in made.rows:
        if row.dataset != "average":
            wanted = np.mean([theirs[run, row.method, row.dataset] for run in runs], axis=0)
            ours = (row.fpr95, row.auroc, row.aupr_in, row.aupr_out)
            assert np.allclose(ours, wanted, rtol=0, atol=1e-6), (row.method, row.dataset)


def main() -> None:
    """Print the times and check that both sides found the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"ood": [], "scikit-learn": [], "ood, intervals": []}
    with tempfile.TemporaryDirectory() as work:
        store = Store(Path(work))
        every = stored(store, options.methods, options.seeds)
        runs = [f"s{seed}" for seed in range(options.seeds)]
        for _ in range(options.repeat):
            start = time.perf_counter()
            with Sources.open(store, ScoreQuery(runs=runs)) as sources:
                made = report(sources)
            seconds["ood"].append(time.perf_counter() - start)
            start = time.perf_counter()
            theirs = sklearns(every)
            seconds["scikit-learn"].append(time.perf_counter() - start)
            start = time.perf_counter()
            with Sources.open(store, ScoreQuery(runs=runs)) as sources:
                report(sources, statistics=Statistics(ci=True))
            seconds["ood, intervals"].append(time.perf_counter() - start)
            check(made, theirs)
    pairs = options.methods * options.seeds * len(SETS)
    print(f"{pairs} pairs of score sets, {os.cpu_count()} cores")  # noqa: T201 - the result
    for name, values in seconds.items():
        print(f"{name:15s} {statistics.median(values):7.2f} s  ({min(values):.2f} best)")  # noqa: T201 - the result


if __name__ == "__main__":
    main()
