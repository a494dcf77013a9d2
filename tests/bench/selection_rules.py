"""Whether another rule than that of ``ood recommend`` would choose better: candidates, then rules.

::

    python tests/bench/selection_rules.py extract RUN OUT.npz [--ood NAME=PATH …] [--limit 1000]
    python tests/bench/selection_rules.py compare FIX.npz… [--judge JUDGE.npz…] [--rules A,B]

``extract`` scores every candidate once, on validation images and on everything that a rule may use
or is judged by: the corruptions of ``ood recommend``; mixtures of two images of different classes
(half and half, left and right, tiles); each class (of more than ten classes, each tenth of them)
left out of last layer and training images, as OOD images near to the others; test images and real
OOD sets. ``compare`` chooses by each rule on each network and prints mean AUROC and FPR95 of the
choices on the real sets. The rule is to be chosen on some networks and looked at once on others.

A rule is ``SETS METRIC WEIGHT``: which families of pseudo-OOD images; ``auc``, ``fpr`` (1 - FPR95)
or ``both`` (their mean); families weighted alike, by how hard they are (``hard``), by mean rank
(``rank``), or ``near``, with double weight for mixtures and left-out classes. ``+ens`` builds an
ensemble greedily, as ``ood recommend`` does.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from oodcli.activations import Activations, ActivationSet, Reference
from oodcli.compute.compute import Compute
from oodcli.data.benchmarks import benchmark_of, own_benchmark
from oodcli.data.dataset import Dataset
from oodcli.data.run_data import find_dataset
from oodcli.data.views import View
from oodcli.images import subsample
from oodcli.progress import Silent
from oodcli.scoring.open_run import OpenRun, _labels
from oodcli.selection.trial import _fitted, _scores, candidates
from oodcli.selection.validation import (
    corrupted_activations,
    selection_images,
    with_validation,
)
from oodcli.store.run_names import find_run
from oodcli.store.store import Store

Floats = NDArray[np.float64]
Pair = tuple[Floats, Floats]  # AUROC and FPR95 of every candidate

MIXES = ("mix-half", "mix-sides", "mix-tiles")
LEFT_OUT = "left out"
FOLDS = 10
POOL, MEMBERS, GAIN = 12, 4, 0.001  # of ensembles, as in `ood recommend`


def mixed(pixels: NDArray[np.uint8], others: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Return images ``(n, 3, h, w)`` that are each made of one and of another one."""
    if kind == "mix-half":
        return np.round((pixels.astype(np.float32) + others) / 2).astype(np.uint8)
    height, width = pixels.shape[2:]
    across, down = np.arange(width), np.arange(height)
    if kind == "mix-sides":
        chosen = np.broadcast_to(across >= width // 2, (height, width))
    else:
        chosen = (4 * across // width + (4 * down // height)[:, None]) % 2 == 1
    return np.where(chosen, others, pixels)


def partners(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return an image of another class for each image."""
    drawn = np.random.default_rng(0)
    return np.array([drawn.choice(np.flatnonzero(labels != each)) for each in labels])


def extract(options: argparse.Namespace) -> None:
    """Score every candidate on everything, and write the arrays."""
    store = Store.at(None)
    run = with_validation(OpenRun.of(store, find_run(store, options.run), Compute.of("cpu")))
    reference = run.reference()
    images = subsample(selection_images(run)[0], options.limit)
    labels = _labels(images).numpy()
    sets, ways = corrupted_activations(run, images, 0)
    pixels = images.pixels()
    found: dict[str, ActivationSet] = {
        "test": run.activator.activations(subsample(run.test(), 2 * options.limit))
    }
    for kind in MIXES:
        path = options.out.with_suffix(f".{kind}.npz")
        made = mixed(pixels, pixels[partners(labels)], kind).transpose(0, 2, 3, 1)
        np.savez(path, images=made if made.shape[-1] == 3 else made.repeat(3, axis=-1))
        found[kind] = run.activator.activations(prepared(run, store, f"{kind}={path}"))
        path.unlink()
    for spec in options.ood or own_sets(run):
        dataset = find_dataset(spec, store, role="ood", val_fraction=0.0, progress=Silent())
        scored = subsample(prepared(run, store, dataset), options.limit)
        found[f"ood:{dataset.name}"] = run.activator.activations(scored)
    specs = candidates(len(run.record.blocks), kept=run.record.kept_heads, blocks=False)
    ready, _ = _fitted(specs, reference, Silent())
    fitted = [each for _, each in ready]
    keys = {view: f"view:{json.dumps(view.key(), sort_keys=True)}" for view in sets}
    size = run.record.preprocess.size
    out: dict[str, object] = {
        "names": np.array([each.canonical for each in fitted]),
        "labels": labels,
        "plain": np.array(keys[View()]),
        "ways": np.array([(w.name, w.family, keys[w.id_view(size)], keys[w.view]) for w in ways]),
    }
    out |= {
        keys[view]: _scores(fitted, each, name, Silent()) for view, (name, each) in sets.items()
    }
    out |= {name: _scores(fitted, each, name, Silent()) for name, each in found.items()}
    specs = [spec for spec, _ in ready]
    out |= left_out(reference, sets[View()][1], specs, labels)
    np.savez(options.out, **out)  # type: ignore[arg-type]


def prepared(run: OpenRun, store: Store, what: str | Dataset):
    """Return the images of an OOD set at the size of a run."""
    if isinstance(what, str):
        what = find_dataset(what, store, role="ood", val_fraction=0.0, progress=Silent())
    return run.data.prepared(what.ood_part, name=what.name)


def own_sets(run: OpenRun) -> list[str]:
    """Name the OOD sets of a run's own benchmark, or those that come with ood."""
    pixels = run.test().shards[0].load()
    benchmark = benchmark_of(run.record.job.data) or own_benchmark(
        grey=bool((pixels == pixels[:, :1]).all())
    )
    return [name for names in benchmark.groups.values() for name in names]


def left_out(
    reference: Reference, validation: ActivationSet, specs: Sequence[object], labels: Floats
) -> dict[str, object]:
    """Return the scores of candidates that do not know some classes, ``(folds, n, c)``."""
    count = len(reference.head.weight)
    order = np.random.default_rng(1).permutation(count)
    folds = (
        [np.array([c]) for c in range(count)] if count <= FOLDS else np.array_split(order, FOLDS)
    )
    train, known, jigsaw = whole(reference.train), reference.labels, whole(reference.jigsaw)
    calibration, own = whole(reference.calibration), reference.calibration_labels
    images = whole(validation)
    scores = np.full((len(folds), len(labels), len(specs)), np.nan)
    fold_of = np.zeros(count, dtype=np.int64)
    for number, fold in enumerate(folds):
        fold_of[fold] = number
        kept = torch.tensor([c for c in range(count) if c not in set(fold.tolist())])
        new = torch.full((count,), -1)
        new[kept] = torch.arange(len(kept))
        rows, mine = new[known] >= 0, new[own] >= 0
        partial = Reference(
            head=replace(
                reference.head,
                weight=reference.head.weight[kept],
                bias=reference.head.bias[kept],
            ),
            load_train=lambda r=rows, k=kept: ActivationSet.of(without(train, k, r)),
            load_labels=lambda r=rows, n=new: n[known][r],
            load_jigsaw=lambda r=rows: ActivationSet.of(jigsaw.map(lambda x: x[r])),
            load_calibration=lambda m=mine, k=kept: ActivationSet.of(without(calibration, k, m)),
            load_calibration_labels=lambda m=mine, n=new: n[own][m],
            n_blocks=reference.n_blocks,
        )
        ready, _ = _fitted(specs, partial, Silent())  # type: ignore[arg-type]
        found = _scores(
            [each for _, each in ready], ActivationSet.of(without(images, kept)), "", Silent()
        )
        for (spec, _), column in zip(ready, found.T, strict=True):
            scores[number, :, next(at for at, each in enumerate(specs) if each is spec)] = column
        sys.stderr.write(f"fold {number + 1} of {len(folds)}\n")
    return {LEFT_OUT: scores, "fold_of_class": fold_of}


def whole(activations: ActivationSet) -> Activations:
    """Return activations in one piece."""
    parts = [each.arrays() for each in activations.chunks()]
    return Activations.of({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def without(
    activations: Activations, kept: torch.Tensor, rows: torch.Tensor | None = None
) -> Activations:
    """Return activations of some images, with the logits of some classes."""

    def some(values: torch.Tensor) -> torch.Tensor:
        return values if rows is None else values[rows]

    logits = some(activations.logits)[:, kept]
    return Activations(
        logits,
        some(activations.features),
        some(activations.block_norms),
        logits.argmax(1),
        extra={},
    )


def measured(id_scores: Floats, ood_scores: Floats) -> Pair:
    """Return AUROC and FPR95 of every candidate, fractions."""
    n, m = len(id_scores), len(ood_scores)
    ranks = rankdata(np.concatenate([id_scores, ood_scores]), axis=0)
    auroc = (ranks[:n].sum(0) - n * (n + 1) / 2) / (n * m)
    threshold = np.quantile(id_scores, 0.05, axis=0, method="lower")
    return auroc, (ood_scores >= threshold).mean(0)


@dataclass(frozen=True)
class Rule:
    """What is measured, and how families of pseudo-OOD images are weighted."""

    families: tuple[str, ...]
    metric: str
    weight: str
    ensemble: bool

    def merits(self, table: Mapping[str, tuple[str, Floats, Floats]]) -> Floats:
        """Return the merit of every candidate."""
        by_family: dict[str, list[Floats]] = {}
        for family, auroc, fpr in table.values():
            if family in self.families:
                value = {"auc": auroc, "fpr": 1 - fpr, "both": (auroc + 1 - fpr) / 2}[self.metric]
                by_family.setdefault(family, []).append(value)
        merits = np.array([np.mean(each, axis=0) for each in by_family.values()])
        if self.weight == "rank" and merits.shape[1] > 1:
            return np.asarray(rankdata(merits, axis=1).mean(0))
        weights = np.ones(len(merits))
        if self.weight == "hard" and merits.shape[1] > 1:
            weights = np.maximum(1 - np.median(merits, axis=1), 0.02)
        elif self.weight == "near":
            weights = np.array([2.0 if name in ("mix", LEFT_OUT) else 1.0 for name in by_family])
        return np.asarray(weights @ merits / weights.sum())


class Network:
    """The arrays of a network."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.name, self.names = path.stem, [str(each) for each in arrays["names"]]
            self.plain: Floats = arrays[str(arrays["plain"])]
            pairs = {
                str(name): (str(family), arrays[str(own)], arrays[str(other)])
                for name, family, own, other in arrays["ways"]
            }
            pairs |= {kind: ("mix", self.plain, arrays[kind]) for kind in MIXES}
            ood = {name: arrays[name] for name in arrays.files if name.startswith("ood:")}
            test, hidden = arrays["test"], arrays[LEFT_OUT]
            place = arrays["fold_of_class"][arrays["labels"]]
        tables = [test, *ood.values(), *(each for _, a, b in pairs.values() for each in (a, b))]
        finite = np.all([np.isfinite(each).all(0) for each in tables], axis=0)
        finite &= np.isfinite(hidden).all((0, 1))
        self.usable = np.flatnonzero(finite)
        self.names = [self.names[at] for at in self.usable]
        self.plain = self.plain[:, finite]
        self.pairs = {k: (f, a[:, finite], b[:, finite]) for k, (f, a, b) in pairs.items()}
        for fold in range(len(hidden)):
            out = place == fold
            if out.sum() > 1:
                scores = hidden[fold][:, finite]
                self.pairs[f"{LEFT_OUT} {fold}"] = (LEFT_OUT, scores[~out], scores[out])
        self.ood = {name: each[:, finite] for name, each in ood.items()}
        self.test = test[:, finite]
        self.table = {k: (f, *measured(a, b)) for k, (f, a, b) in self.pairs.items()}

    def chosen(self, rule: Rule) -> list[int]:
        """Return the candidates that a rule chooses: one, or the members of an ensemble."""
        merits = rule.merits(self.table)
        if not rule.ensemble:
            return [int(merits.argmax())]
        best: dict[str, int] = {}
        for at in np.argsort(-merits, kind="stable"):
            best.setdefault("+".join(p.partition(":")[0] for p in self.names[at].split("+")), at)
        pool = list(best.values())[:POOL]
        ranked = {
            key: (family, *(self.ranks(own, other, pool)))
            for key, (family, own, other) in self.pairs.items()
            if family in rule.families
        }

        def worth(columns: list[int]) -> float:
            means = {
                key: (family, *measured(*(x[:, columns].mean(1, keepdims=True) for x in (a, b))))
                for key, (family, a, b) in ranked.items()
            }
            return float(rule.merits(means)[0])

        members, merit = [0], worth([0])
        while len(members) < MEMBERS:
            others = [at for at in range(len(pool)) if at not in members]
            value, at = max((worth([*members, at]), at) for at in others)
            if value < merit + GAIN:
                break
            members, merit = [*members, at], value
        return [pool[at] for at in members]

    def ranks(self, own: Floats, other: Floats, columns: Sequence[int]) -> tuple[Floats, Floats]:
        """Return scores as ranks: among the validation images, or those of ``own`` if others."""

        def of(values: Floats, at: int) -> Floats:
            scale = self.plain if len(own) == len(self.plain) else own
            found = np.searchsorted(np.sort(scale[:, at]), values[:, at], side="right")
            return np.asarray(found / len(scale))

        first, second = ([of(values, at) for at in columns] for values in (own, other))
        return np.column_stack(first), np.column_stack(second)

    def result(self, members: list[int]) -> tuple[float, float]:
        """Return mean AUROC and FPR95 on the real OOD sets, in percent."""
        found = []
        for each in self.ood.values():
            if len(members) == 1:
                own, other = self.test[:, members], each[:, members]
            else:
                pair = [
                    np.mean(
                        [
                            np.searchsorted(np.sort(self.plain[:, at]), x[:, at], side="right")
                            for at in members
                        ],
                        axis=0,
                    )[:, None]
                    for x in (self.test, each)
                ]
                own, other = pair
            found.append([float(value[0]) for value in measured(own, other)])
        auroc, fpr = np.mean(found, axis=0)
        return 100 * auroc, 100 * fpr

    def oracle(self) -> tuple[float, float]:
        """Return the highest AUROC and the lowest FPR95 of single candidates."""
        found = np.array([measured(self.test, each) for each in self.ood.values()]).mean(0)
        return 100 * float(found[0].max()), 100 * float(found[1].min())


def rules(network: Network) -> Iterator[tuple[str, Rule]]:
    """Yield every rule by its name."""
    corruptions = tuple(sorted({f for f, *_ in network.table.values()} - {"mix", LEFT_OUT}))
    families = {
        "corruptions": corruptions,
        "corruptions+left-out": (*corruptions, LEFT_OUT),
        "corruptions+mixes": (*corruptions, "mix"),
        "all": (*corruptions, LEFT_OUT, "mix"),
        "left-out": (LEFT_OUT,),
        "mixes": ("mix",),
    }
    for (name, sets), metric, weight, ensemble in itertools.product(
        families.items(), ("auc", "both", "fpr"), ("", "hard", "rank", "near"), (False, True)
    ):
        if (weight and len(sets) == 1) or (weight == "near" and sets == corruptions):
            continue
        words = [name, metric, *([weight] if weight else []), *(["+ens"] if ensemble else [])]
        yield " ".join(words), Rule(sets, metric, weight, ensemble)


def compare(options: argparse.Namespace) -> None:
    """Print what every rule chooses is worth."""
    wanted = options.rules.split(",") if options.rules else None
    for title, paths in (("fix", options.fix), ("judge", options.judge or ())):
        networks = [Network(path) for path in paths]
        if not networks:
            continue
        sys.stdout.write(f"{title}: {', '.join(each.name for each in networks)}\n")
        lines = []
        for name, rule in rules(networks[0]):
            if wanted is None or name in wanted:
                found = [each.result(each.chosen(rule)) for each in networks]
                auroc, fpr = np.mean(found, axis=0)
                each = " ".join(f"{a:.2f}/{f:.2f}" for a, f in found)
                lines.append((fpr, f"{auroc:6.2f} {fpr:6.2f}  {name:32s} {each}"))
        lines.sort()
        oracle = " ".join("{:.2f}/{:.2f}".format(*each.oracle()) for each in networks)
        for _, line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.write(f"best single candidates: {oracle}\n")


def main() -> None:
    """Extract or compare."""
    parser = argparse.ArgumentParser(description="Compare rules that choose a method.")
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("extract")
    first.add_argument("run")
    first.add_argument("out", type=Path)
    first.add_argument("--ood", action="append", default=[])
    first.add_argument("--limit", type=int, default=1000)
    first.set_defaults(do=extract)
    second = commands.add_parser("compare")
    second.add_argument("fix", nargs="+", type=Path)
    second.add_argument("--judge", nargs="+", type=Path)
    second.add_argument("--rules", help="names with commas; all if omitted")
    second.set_defaults(do=compare)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
