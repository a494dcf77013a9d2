"""What the recommended method is worth on real OOD images, against other ways to choose.

Run: ``python tests/bench/recommend.py RUN… [--ood NAME=PATH …] [--limit N] [--store DIR]``.

For each run it prints mean AUROC and FPR95 over the OOD sets of the recommended method, of the
choice that these very sets would have made among the same candidates (the oracle), and of methods
that one might always take; and what other rules would have chosen from the same spoilt images.
Regret is AUROC lost against the oracle.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from oodcli.activations import ActivationSet
from oodcli.compute.compute import Compute
from oodcli.data.benchmarks import benchmark_of, own_benchmark
from oodcli.data.run_data import find_dataset
from oodcli.images import subsample
from oodcli.methods import parse_method
from oodcli.metrics import evaluate
from oodcli.progress import Silent
from oodcli.scoring.open_run import OpenRun
from oodcli.selection.recommendation import Recommendation
from oodcli.selection.trial import _scores
from oodcli.store.run_names import find_run
from oodcli.store.store import Store
from oodcli.workflows.recommend import RecommendRequest, recommend

ALWAYS = ("msp", "energy", "knn", "featurenorm", "ensemble:knn+energy+featurenorm")


def own_sets(own: OpenRun) -> list[str]:
    """Name the OOD sets of a run's own benchmark, or those that come with ood."""
    pixels = own.test().shards[0].load()
    grey = bool((pixels == pixels[:, :1]).all())
    benchmark = benchmark_of(own.record.job.data) or own_benchmark(grey=grey)
    return [name for names in benchmark.groups.values() for name in names]


def measured(
    store: Store, run: str, ood: Sequence[str], limit: int, found: Recommendation
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return AUROC and FPR95 in percent by candidate and set."""
    folder = find_run(store, run)
    own = OpenRun.of(store, folder, Compute.of("cpu"))
    data, activator = own.data, own.activator
    reference = own.reference()
    sets: dict[str, ActivationSet] = {"": activator.activations(subsample(own.test(), limit))}
    for spec in ood or own_sets(own):
        dataset = find_dataset(spec, store, role="ood", val_fraction=0.0, progress=Silent())
        images = subsample(data.prepared(dataset.ood_part, name=dataset.name), limit)
        sets[dataset.name] = activator.activations(images)
    names = [each.method for each in found.candidates]
    order = sorted(names)  # neighbours of one kind share work
    fitted = [parse_method(name).fit(reference) for name in order]
    scores = {name: _scores(fitted, each, name, Silent()) for name, each in sets.items()}
    result: dict[str, dict[str, tuple[float, float]]] = {}
    for column, name in enumerate(order):
        result[name] = {}
        for label in list(sets)[1:]:
            try:
                each = evaluate(scores[""][:, column], scores[label][:, column])
            except ValueError:
                continue
            result[name][label] = 100 * each.auroc, 100 * each.fpr95
    return result


def rules(found: Recommendation) -> dict[str, str]:
    """Return what other rules choose from the same measurements."""
    table = np.array([list(each.auroc.values()) for each in found.candidates])
    ways = list(found.families)
    ranks = table.argsort(axis=0).argsort(axis=0)
    odds = np.log(table.clip(0.001, 0.999) / (1 - table).clip(0.001, 0.999))
    chosen = {
        "mean over the eight ways": table.mean(axis=1),
        "mean rank": ranks.mean(axis=1),
        "mean log odds": odds.mean(axis=1),
        "the worst way counts": table.min(axis=1),
        "jigsaw-3 alone": table[:, ways.index("jigsaw-3")],
    }
    names = [each.method for each in found.candidates]
    return {rule: names[int(np.argmax(worth))] for rule, worth in chosen.items()}


def say(text: str, end: str = "\n") -> None:
    """Write to stdout at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def mean(values: Mapping[str, tuple[float, float]], at: int) -> float:
    """Return the unweighted mean over sets."""
    return float(np.mean([each[at] for each in values.values()]))


def main() -> None:
    """Print one table for each run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--ood", action="append", default=[])
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--store", type=Path)
    given = parser.parse_args()
    store = Store.at(given.store)
    for run in given.runs:
        start = time.perf_counter()
        found = recommend(store, RecommendRequest(run=run, compute=Compute.of("cpu")))
        seconds = time.perf_counter() - start
        real = measured(store, run, given.ood, given.limit, found)
        oracle = max(real, key=lambda name: mean(real[name], 0))
        best = mean(real[oracle], 0)
        single = max((n for n in real if "ensemble" not in n), key=lambda name: mean(real[name], 0))
        rows = [("recommended", found.method), ("oracle", oracle), ("oracle, no ensemble", single)]
        rows += [(f"always {name}", name) for name in ALWAYS if name in real]
        rows += [(f"rule: {rule}", name) for rule, name in rules(found).items()]
        labels = list(real[oracle])
        say(
            f"\n{run}: {len(found.candidates)} candidates on {found.n:,} {found.part} images, ",
            end="",
        )
        say(f"{found.sureness} ({100 * found.share:.0f} %), {seconds:.0f} s\n")
        say(f"| choice | method | AUROC | FPR95 | regret | {' | '.join(labels)} |")
        say("|---|---|---|---|---|" + "---|" * len(labels))
        for label, name in rows:
            values = real[name]
            cells = " | ".join(f"{values[each][0]:.1f}" for each in labels)
            auroc = mean(values, 0)
            say(
                f"| {label} | `{name}` | {auroc:.2f} | {mean(values, 1):.2f} "
                f"| {best - auroc:.2f} | {cells} |"
            )
        worth = [each.merit for each in found.candidates]
        truth = [mean(real[each.method], 0) for each in found.candidates]
        ranks = [np.argsort(np.argsort(values)) for values in (worth, truth)]
        say(
            f"\nrank correlation of spoilt and real over candidates: {np.corrcoef(ranks)[0, 1]:.2f}"
        )


if __name__ == "__main__":
    main()
