r"""Every training objective by one protocol, and outlier exposure without outliers over seeds.

::

    python tests/bench/objectives.py --data DATA --work WORK --images 10000 --epochs 12
    python tests/bench/objectives.py --data DATA --work WORK --table      # what is done so far
    python tests/bench/objectives.py --data DATA --work WORK --seeds 0,1,2 --only seeds
    python tests/bench/objectives.py --data DATA --work WORK --images 200 --epochs 1 --limit 100 \
        --arch resnet18:width=2 --only cross-entropy,oe

``DATA`` has ``cifar10.npz`` and ``cifar100.npz`` (arrays ``train_images``, ``test_images`` and
labels), and ``svhn_crops.npz``, ``dtd10_32.npz`` and ``sun_crop32.npz`` (array ``images``). All
networks are trained on the same training images of CIFAR-10 (the first of each class), by the
schedule of their own recipe with the same number of passes over these images (epochs), the same
batch size, seed and network, and keep the last checkpoint. Objectives with outliers have the first
half of CIFAR-100's test images, 50 classes, as many per step as training images. OOD sets: the
other 50 classes (near); SVHN, DTD and SUN (far). No outlier is scored. A recipe for fine-tuning
starts from the run of cross-entropy and adds a tenth of the epochs, as in its paper.

An entry is an objective of the registry, an augmentation of the recipes for CIFAR, or outlier
exposure with outliers made from training images. Each result is a line of ``WORK/results.jsonl`` as
soon as it is there; entries that have one are skipped, and a training that was killed is resumed.
``WORK/results.csv`` is the table. "passes" is what one pass over the training images costs: views
and outliers that the network sees per training image.
"""

import argparse
import csv
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oodcli.compute.compute import Compute
from oodcli.errors import OodError
from oodcli.images import evenly_spaced
from oodcli.progress import Silent
from oodcli.store.run_names import find_run
from oodcli.store.store import Store
from oodcli.training.augmentations.words import AUGMENTATIONS
from oodcli.training.objectives.base import OutlierObjective, SynthesisObjective
from oodcli.training.objectives.registry import OBJECTIVES, parse_objective
from oodcli.training.outliers import MADE
from oodcli.training.recipe_choice import recipe_for
from oodcli.training.recipes import RECIPES, SCORERS
from oodcli.workflows.score import ScoreRequest, score
from oodcli.workflows.train import TrainRequest, train

PLAIN = "cross-entropy"
SCHEDULE = "openood-cifar"  # of objectives without a recipe of their own for CIFAR
# Published as fine-tuning only: at the rate of training from scratch, its gradient diverges.
FINETUNED = {"ish": "mixoe-finetune"}
FAR = {"svhn-crops": "svhn_crops", "dtd-10": "dtd10_32", "sun-crops": "sun_crop32"}
# Minutes per step on a processor.
SLOW = ("alpa",)
COMPARED = (PLAIN, "oe+jigsaw")


@dataclass(frozen=True)
class Entry:
    """Something to train: a name, an objective, its recipe and its outliers."""

    name: str
    objective: str
    recipe: str
    outliers: str | None = None

    @property
    def finetunes(self) -> bool:
        """Whether it starts from the run of cross-entropy."""
        return RECIPES[self.recipe].start == "trained"

    @property
    def methods(self) -> tuple[str, ...]:
        """MSP, and what the paper scores with."""
        kind = self.objective.partition(":")[0]
        return tuple(dict.fromkeys(("msp", SCORERS.get(kind, "msp"))))


def entries() -> list[Entry]:
    """Return all entries: cross-entropy first, as others start from its run."""
    found = []
    for name, entry in OBJECTIVES.items():
        recipe = recipe_for("resnet18", "cifar10", name).name
        if recipe.startswith("featurenorm-"):
            recipe = FINETUNED.get(name, SCHEDULE)
        own = RECIPES[recipe].objective  # with the parameters of its paper
        objective = own if own.partition(":")[0] == name else name
        outliers = "set" if issubclass(entry.type, OutlierObjective) else None
        found.append(Entry(name, objective, recipe, outliers))
    for name, recipe in RECIPES.items():
        published = any(AUGMENTATIONS[step].paper for step in recipe.augmentation)
        if published and recipe.objective == PLAIN and name.endswith("-cifar"):
            found.append(Entry(name.removesuffix("-cifar"), PLAIN, name))
    found += [Entry(f"oe+{kind}", "oe", "oe-cifar", kind) for kind in MADE]
    return found


def prepared(data: Path, work: Path, images: int, limit: int | None) -> dict[str, Path]:
    """Write the sets of the protocol, unless they are there; return their files."""
    work.mkdir(parents=True, exist_ok=True)
    files = {name: work / f"{name}.npz" for name in ("outliers", "near", *FAR)}
    train = work / f"cifar10-{images}-{limit or 'all'}.npz"
    if not train.is_file():
        with np.load(data / "cifar10.npz") as arrays:
            labels = arrays["train_labels"]
            each = -(-images // 10)
            rows = np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(10)])
            rows.sort()
            test = evenly_spaced(len(arrays["test_labels"]), limit or len(arrays["test_labels"]))
            np.savez(
                train,
                train_images=arrays["train_images"][rows],
                train_labels=labels[rows],
                test_images=arrays["test_images"][test],
                test_labels=arrays["test_labels"][test],
                class_names=arrays["class_names"],
            )
    if not files["near"].is_file():
        with np.load(data / "cifar100.npz") as arrays:
            first = arrays["test_labels"] < 50
            np.savez(files["outliers"], images=arrays["test_images"][first])
            np.savez(files["near"], images=arrays["test_images"][~first])
    for name, source in FAR.items():
        if not files[name].is_file():
            with np.load(data / f"{source}.npz") as arrays:
                np.savez(files[name], images=arrays["images"])
    return {"cifar10": train, **files}


def request_of(
    entry: Entry, files: dict[str, Path], options: argparse.Namespace, seed: int
) -> TrainRequest:
    """Return the training of an entry, as a user would ask for it."""
    epochs = max(1, round(options.epochs / 10)) if entry.finetunes else options.epochs
    return TrainRequest(
        data=f"c10={files['cifar10']}",
        arch=options.arch,
        name=f"{entry.name.replace('+', '-')}-s{seed}",
        seed=seed,
        recipe=entry.recipe,
        objective=entry.objective,
        epochs=epochs,
        batch_size=options.batch_size,
        settings=("keep=last",),
        init=f"{PLAIN}-s{seed}" if entry.finetunes else None,
        outliers=f"outliers={files['outliers']}" if entry.outliers == "set" else entry.outliers,
        outlier_batch_size=(
            options.batch_size if entry.outliers and not is_paired(entry.objective) else None
        ),
        device=options.device,
        amp=options.amp,
    )


def is_paired(objective: str) -> bool:
    """Return whether an objective mixes each outlier with a training image."""
    found = parse_objective(objective).objective
    return isinstance(found, OutlierObjective) and found.paired


def passes_of(entry: Entry) -> float:
    """Return how many images the network sees per training image."""
    objective = parse_objective(entry.objective).objective
    views = objective.views * objective.copies * (2 if entry.name == "regmixup" else 1)
    made = isinstance(objective, SynthesisObjective)  # by a gradient, and seen
    return views + bool(entry.outliers) + 2 * made + 2 * (entry.name == "augmix")


def result_of(
    entry: Entry, store: Store, files: dict[str, Path], options: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Train and score an entry; return its line."""
    request = request_of(entry, files, options, seed)
    started = time.perf_counter()
    record = train(store, request, resume=True).record
    trained = time.perf_counter() - started
    scored = score(
        store,
        ScoreRequest(
            run=request.name,
            methods=entry.methods,
            near=(f"near={files['near']}",),
            far=tuple(f"{name}={files[name]}" for name in FAR),
            limit=options.limit,
            compute=Compute.of(options.device),
        ),
    )
    aurocs: dict[str, dict[str, float]] = {}
    for row in scored.report.rows:
        place = row.group if row.dataset == "average" else row.dataset
        aurocs.setdefault(row.method, {})[place] = row.auroc
    history = [json.loads(line) for line in find_run(store, request.name).history.open()]
    return {
        "entry": entry.name,
        "seed": seed,
        "objective": record.job.recipe["objective"],
        "recipe": entry.recipe,
        "epochs": request.epochs,
        "images": options.images,
        "arch": options.arch,
        "batch_size": options.batch_size,
        "from": request.init,
        "outliers": record.job.outliers,
        "passes": passes_of(entry),
        "accuracy": next(iter(scored.report.rows)).id_accuracy,
        "auroc": aurocs,
        "loss": record.training["loss"],
        "images_per_s": statistics.median(line["images_per_s"] for line in history),
        "seconds": trained,
        "threads": torch.get_num_threads(),
    }


def results_in(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table: percentages, far as the mean over its sets."""
    aurocs = result["auroc"]
    own = [name for name in aurocs if name != "msp"]
    row = {"entry": result["entry"], "seed": result["seed"], "recipe": result["recipe"]}
    row |= {"epochs": result["epochs"], "passes": result["passes"]}
    row["accuracy"] = round(100 * result["accuracy"], 2)
    for label, method in (("msp", "msp"), ("own", own[0] if own else "msp")):
        values = aurocs[method]
        if label == "own":
            row["scorer"] = method
        row[f"{label} near"] = round(100 * values["near"], 2)
        row[f"{label} far"] = round(100 * statistics.mean(values[name] for name in FAR), 2)
    return row | {"images/s": round(result["images_per_s"], 1)}


def write_table(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the table as CSV, and to stdout."""
    rows = [summary(result) for result in results]
    if not rows:
        return
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    sys.stdout.write(path.read_text())
    for line in comparison(rows):
        sys.stdout.write(f"{line}\n")


def comparison(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what outliers made from training images change, over the seeds that have both runs.

    The interval is that of Student's t on the differences within a seed.
    """
    by_seed = {name: {r["seed"]: r for r in rows if r["entry"] == name} for name in COMPARED}
    seeds = sorted(set(by_seed[COMPARED[0]]) & set(by_seed[COMPARED[1]]))
    if len(seeds) < 2:
        return
    from scipy.stats import t

    yield f"{COMPARED[1]} less {COMPARED[0]}, points, seeds {', '.join(map(str, seeds))}:"
    for name in ("accuracy", "msp near", "msp far"):
        differences = [by_seed[COMPARED[1]][s][name] - by_seed[COMPARED[0]][s][name] for s in seeds]
        mean = statistics.mean(differences)
        spread = statistics.stdev(differences) / math.sqrt(len(seeds))
        reach = float(t.ppf(0.975, len(seeds) - 1)) * spread
        each = ", ".join(f"{value:+.2f}" for value in differences)
        yield (
            f"  {name:10s}{mean:+.2f} (95 % interval {mean - reach:+.2f} to {mean + reach:+.2f}; "
            f"{each})"
        )


def chosen(options: argparse.Namespace) -> list[tuple[Entry, int]]:
    """Return the entries to run, each with its seed; what others start from comes first."""
    known = {entry.name: entry for entry in entries()}
    first, *others = [int(seed) for seed in options.seeds.split(",")]
    names = [name for name in known if name not in SLOW]
    compared = [(known[name], seed) for seed in (first, *others) for name in COMPARED]
    if options.only == "seeds":
        return compared
    if options.only:
        names = options.only.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise SystemExit(f"no entry {unknown[0]}; there are: {', '.join(known)}")
        if any(known[name].finetunes for name in names):
            names = [PLAIN, *(name for name in names if name != PLAIN)]
        return [(known[name], first) for name in names]
    return [(known[name], first) for name in names] + [
        (entry, seed) for entry, seed in compared if seed != first
    ]


class Notes(Silent):
    """Writes what training and scoring say."""

    def note(self, text: str, /) -> None:
        """Write a line."""
        sys.stderr.write(f"  {text}\n")


def main() -> None:
    """Run what has no result yet."""
    parser = argparse.ArgumentParser(description="Compare all training objectives.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000, help="training images of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--arch", default="resnet18:width=16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--seeds", default="0,1,2", help="the first trains every entry")
    parser.add_argument("--limit", type=int, help="test on that many images of each set")
    parser.add_argument("--only", help="entries with commas, or: seeds")
    parser.add_argument("--list", action="store_true", help="list the entries")
    parser.add_argument("--table", action="store_true", help="write the table of what is done")
    options = parser.parse_args()
    if options.list:
        for entry in entries():
            sys.stdout.write(
                f"{entry.name}: {entry.recipe}, {', '.join(entry.methods)}"
                + (", after cross-entropy\n" if entry.finetunes else "\n")
            )
        return
    path = options.work / "results.jsonl"
    if not options.table:
        files = prepared(options.data, options.work, options.images, options.limit)
        store = Store(options.work / "store")
        for entry, seed in chosen(options):
            done = {(each["entry"], each["seed"]) for each in results_in(path)}
            if (entry.name, seed) in done:
                continue
            sys.stderr.write(f"{entry.name}, seed {seed}\n")
            try:
                line = result_of(entry, store, files, options, seed)
            except OodError as error:
                sys.stderr.write(f"  {entry.name} failed: {error}\n")
                continue
            with path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            sys.stderr.write(f"  {json.dumps(summary(line))}\n")
    write_table(results_in(path), options.work / "results.csv")


if __name__ == "__main__":
    main()
