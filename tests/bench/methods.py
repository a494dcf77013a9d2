"""Fitting and scoring on cached activations, against pytorch-ood 0.4 in the same process.

    pip install -e ".[pytorch-ood]"
    ood score --export-activations activations.npz …
    python tests/bench/methods.py activations.npz --threads 2

Both get the same float32 tensors: a bank ``train``, calibration images ``val``, ID images ``test``
and all other sets as OOD images. A time is that of fitting and of scoring every set, the best of
``--turns`` turns; theirs are scored in batches of 4,096 rows, as ours are. Methods of theirs that
want feature maps get the features as maps of one pixel. Their GMM is another model, and
is left out.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytorch_ood.detector as po
import torch
from torch import nn

from oodcli.activations import Activations, ActivationSet, Head, Reference
from oodcli.methods import METHODS, group, parse_method

BATCH = 4096
Theirs = Callable[["Problem"], tuple[Callable[[], object], Callable[[Activations], object]]]


class Problem:
    """The activations of a file."""

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self.arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.head = Head(self.arrays["weight"].float(), self.arrays["bias"].float())
        names = dict.fromkeys(name.split("/")[0] for name in self.arrays if "/" in name)
        self.scored = [n for n in names if n not in ("train", "val", "jigsaw")]
        classes, width = self.head.weight.shape
        self.linear = nn.Linear(width, classes)
        self.linear.load_state_dict({"weight": self.head.weight, "bias": self.head.bias})
        self.labels = self.arrays["train/labels"].long()
        self.val = "val" if "val/features" in self.arrays else "train"

    def activations(self, name: str) -> Activations:
        """Return one set."""
        features = self.arrays[f"{name}/features"].float()
        logits = self.arrays[f"{name}/logits"].float()
        norms = self.arrays.get(f"{name}/block_norms", features[:, :1]).float()
        return Activations(logits, features, norms, logits.argmax(dim=1))

    def set_of(self, name: str) -> ActivationSet:
        """Return one set, in memory."""
        return ActivationSet.of(self.activations(name))

    def reference(self) -> Reference:
        """Return a fresh reference, with nothing made yet."""
        labels = self.arrays[f"{self.val}/labels"].long()
        return Reference(
            head=self.head,
            load_train=lambda: self.set_of("train"),
            load_labels=lambda: self.labels,
            load_calibration=lambda: self.set_of(self.val),
            load_calibration_labels=lambda: labels,
            load_jigsaw=lambda: self.set_of("train"),
            load_jigsaw_features=lambda: self.set_of("train"),
            n_blocks=self.activations("val" if self.val == "val" else "train").block_norms.shape[1],
        )


def on_features(make: Callable[[Problem], Any]) -> Theirs:
    """Return how a detector of theirs works that takes features."""

    def build(problem: Problem) -> tuple[Callable[[], object], Callable[[Activations], object]]:
        detector = make(problem)
        train = problem.activations("train")

        def fit() -> object:
            if not detector.requires_fit:
                return detector
            return detector.fit_features(train.features, problem.labels)

        return fit, lambda batch: detector.predict_features(batch.features)

    return build


def on_logits(make: Callable[[Problem], Any]) -> Theirs:
    """Return how a detector of theirs works that takes logits."""

    def build(problem: Problem) -> tuple[Callable[[], object], Callable[[Activations], object]]:
        detector = make(problem)
        val, labels = problem.activations(problem.val), problem.arrays[f"{problem.val}/labels"]

        def fit() -> object:
            if not detector.requires_fit:
                return detector
            return detector.fit_logits(val.logits, labels.long())

        return fit, lambda batch: detector.predict_logits(batch.logits)

    return build


def on_maps(make: Callable[[Problem, Any], Any]) -> Theirs:
    """Return how a detector of theirs works that takes maps."""

    def build(problem: Problem) -> tuple[Callable[[], object], Callable[[Activations], object]]:
        detector = make(problem, lambda maps: problem.linear(maps.flatten(1)))
        val, labels = problem.activations(problem.val), problem.arrays[f"{problem.val}/labels"]

        def fit() -> object:
            if not detector.requires_fit:
                return detector
            return detector.fit_feature_maps(val.features[:, :, None, None], labels.long())

        return fit, lambda batch: detector.predict_feature_maps(batch.features[:, :, None, None])

    return build


THEIRS: Mapping[str, Theirs] = {
    "msp": on_logits(lambda _: po.MaxSoftmax(None)),
    "maxlogit": on_logits(lambda _: po.MaxLogit(None)),
    "energy": on_logits(lambda _: po.EnergyBased(None)),
    "entropy": on_logits(lambda _: po.Entropy(None)),
    "gen": on_logits(lambda _: po.GEN(None)),
    "klm": on_logits(lambda _: po.KLMatching(None)),
    "tempscale": on_logits(lambda _: po.TemperatureScaling(None)),
    "openmax": on_logits(lambda _: po.OpenMax(None, tailsize=20, alpha=3)),
    "react": on_maps(lambda _, head: po.ReAct(None, head)),
    "vra": on_maps(lambda _, head: po.VRA(None, head)),
    "ash-p": on_maps(lambda _, head: po.ASH(None, head, variant="ash-p", percentile=0.9)),
    "ash-b": on_maps(lambda _, head: po.ASH(None, head, variant="ash-b", percentile=0.9)),
    "ash-s": on_maps(lambda _, head: po.ASH(None, head, variant="ash-s", percentile=0.9)),
    "scale": on_maps(lambda _, head: po.SCALE(None, head, percentile=0.85)),
    "lts": on_features(lambda p: po.LTS(None, p.linear)),
    "dice": on_features(lambda p: po.DICE(None, p.head.weight.clone(), p.head.bias.clone(), p=0.9)),
    "she": on_features(lambda p: po.SHE(None, p.linear)),
    "knn": on_features(lambda _: po.KNN(None, k=50)),
    "nnguide": on_features(lambda p: po.NNGuide(None, p.linear, k=100)),
    "mds": on_features(lambda _: po.Mahalanobis(None)),
    "rmds": on_features(lambda _: po.RMD(None)),
    "vim": on_features(lambda p: po.ViM(None, p.head.weight.shape[1] // 2, *p.head_pair)),
    "nci": on_features(lambda p: po.NCI(None, p.linear, alpha=1e-4)),
    "fdbd": on_features(lambda p: po.fDBD(None, p.linear)),
    "pnml": on_features(lambda p: po.PNML(None, p.linear)),
}


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def ours(names: list[str], problem: Problem) -> float:
    """Return the seconds of fitting and scoring of methods together."""
    sets = [problem.activations(name) for name in problem.scored]
    reference = problem.reference()
    started = time.perf_counter()
    with torch.inference_mode():
        fitted = [parse_method(name).fit(reference) for name in names]
        for each in sets:
            for start in range(0, len(each), BATCH):
                chunk = each.map(lambda values, s=start: values[s : s + BATCH])  # type: ignore[misc]
                for one in fitted:
                    one.detector.score(chunk)
    return time.perf_counter() - started


def theirs(name: str, problem: Problem) -> float:
    """Return the seconds of fitting and scoring of one of their detectors."""
    fit, score = THEIRS[name](problem)
    sets = [problem.activations(each) for each in problem.scored]
    started = time.perf_counter()
    fit()
    with torch.no_grad():
        for each in sets:
            for start in range(0, len(each), BATCH):
                score(each.map(lambda values, s=start: values[s : s + BATCH]))  # type: ignore[misc]
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    problem = Problem(options.file)
    problem.head_pair = (problem.head.weight.clone(), problem.head.bias.clone())  # type: ignore[attr-defined]
    counts = ", ".join(
        f"{name} {len(problem.arrays[f'{name}/features']):,}" for name in ("train", *problem.scored)
    )
    say(f"{counts}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    names = [
        name for name in group(probes=False) if (not options.only or name in options.only)
        and "jigsaw" not in parse_method(name).inputs
    ]  # fmt: skip
    total_ours = total_theirs = 0.0
    say("| method | ood, s | pytorch-ood, s | ratio |\n|---|---|---|---|")
    for name in names:
        mine = min(ours([name], problem) for _ in range(options.turns))
        if name not in THEIRS:
            say(f"| {name} | {mine:.3f} | | |")
            continue
        other = min(theirs(name, problem) for _ in range(options.turns))
        total_ours, total_theirs = total_ours + mine, total_theirs + other
        say(f"| {name} | {mine:.3f} | {other:.3f} | {other / mine:.2f} |")
    both = [name for name in names if name in THEIRS]
    together = min(ours(both, problem) for _ in range(options.turns))
    every = min(ours(names, problem) for _ in range(options.turns))
    say(f"| sum of those in both | {total_ours:.2f} | {total_theirs:.2f} | "
          f"{total_theirs / total_ours:.2f} |")  # fmt: skip
    say(f"| those in both, in one call | {together:.2f} | {total_theirs:.2f} | "
          f"{total_theirs / together:.2f} |")  # fmt: skip
    say(f"| all {len(names)} of {len(METHODS)} in one call | {every:.2f} | | |")


if __name__ == "__main__":
    main()
