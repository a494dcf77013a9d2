"""Fitting many methods and scoring images with all of them, chunk by chunk."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oodcli.activations import ActivationSet, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods import Fitted, MethodSpec
from oodcli.probes import Probe
from oodcli.progress import Progress, lasting

ScoreArray = NDArray[np.floating[Any]]

# What a refusal of all methods says the reasons of.
_MOST_REASONS = 3
# Seconds, and share of the time of all methods, from which on a method is said to be slow.
_SLOW_S, _SLOW_SHARE = 10.0, 0.2


@dataclass
class Detectors:
    """Fitted methods, and those that had to be left out.

    Parameters
    ----------
    fitted
        The methods in the order in which they were asked for.
    optional
        Canonical names of those that a group named.
    left_out
        Why a method is not defined here, by canonical name.
    seconds
        Time that fitting and scoring with each method has taken, by canonical name.
    """

    fitted: list[Fitted]
    optional: frozenset[str]
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What they need of the forward pass beyond the ordinary activations, each once."""
        every = {probe.key: probe for each in self.fitted for probe in each.probes}
        return tuple(every.values())

    @property
    def undefined(self) -> tuple[str, ...]:
        """Canonical names of the methods that were asked for by name and are not defined here."""
        return tuple(name for name in self.left_out if name not in self.optional)

    def require_one(self) -> None:
        """Refuse to go on without any method.

        Raises
        ------
        UndefinedMethodError
            If all were left out.
        """
        if not self.fitted:
            raise UndefinedMethodError(together(self.left_out))

    def require_all(self) -> None:
        """Refuse to go on without one of the methods.

        Raises
        ------
        UndefinedMethodError
            If one was left out.
        """
        if self.left_out:
            raise UndefinedMethodError(together(self.left_out))

    def score(
        self, activations: ActivationSet, dataset: str, *, progress: Progress
    ) -> Mapping[str, ScoreArray]:
        """Return the scores of every method on every image, by canonical name.

        A method that is not defined for these images, or gives scores that are not finite, is left
        out from here on.

        Parameters
        ----------
        activations
            Of the images.
        dataset
            Name of the set, for messages.
        progress
            Told how far scoring is.
        """
        parts: dict[str, list[ScoreArray]] = {each.canonical: [] for each in self.fitted}
        label = f"scoring {dataset}"
        with (
            torch.inference_mode(),
            progress.task(label, total=len(activations), unit="images") as task,
        ):
            for chunk in activations.chunks():
                for each in list(self.fitted):
                    with self._tolerating(each.canonical):
                        values = each.detector.score(chunk).cpu().numpy()
                        check_finite(each.canonical, values, dataset)
                        parts[each.canonical].append(values)
                task.advance(len(chunk))
        kept = (each.canonical for each in self.fitted)
        return {name: np.concatenate(parts[name]) for name in kept}

    def try_probes(self, attempt: Callable[[Sequence[Probe]], None]) -> None:
        """Leave out the methods whose probes are not defined for the network.

        Parameters
        ----------
        attempt
            Runs probes on a few images.
        """
        for each in list(self.fitted):
            if each.probes:
                with self._tolerating(each.canonical):
                    attempt(each.probes)

    def slow(self) -> str | None:
        """Say which methods took most of the time; None where none took long.

        A method is slow that took 10 s and a fifth of what all took together.
        """
        total = sum(self.seconds.values())
        slow = [
            f"{name} {lasting(seconds)}"
            for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])
            if seconds >= max(_SLOW_S, _SLOW_SHARE * total)
        ]
        if not slow or len(self.seconds) < 2:
            return None
        return (
            f"most of the {lasting(total)} of fitting and scoring went to: {', '.join(slow)} "
            "(--method names those that are wanted)"
        )

    def leave_out(self, name: str, reason: str) -> None:
        """Take a method off the list, and remember why."""
        self.left_out[name] = reason
        self.fitted = [each for each in self.fitted if each.canonical != name]

    def _tolerating(self, name: str) -> "_Tolerating":
        return _Tolerating(self, name)


@dataclass
class _Tolerating:
    """Leaves a method out where it is not defined, and takes its time."""

    detectors: Detectors
    name: str
    started: float = 0.0

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        spent = self.detectors.seconds
        spent[self.name] = spent.get(self.name, 0.0) + time.perf_counter() - self.started
        if isinstance(error, UndefinedMethodError):
            self.detectors.leave_out(self.name, str(error))
            return True
        return False


def learns_from_train(specs: Sequence[MethodSpec]) -> bool:
    """Return whether a method learns from the training images."""
    return any(
        "train" in part.method.inputs and "block" not in part.given
        for spec in specs
        for part in spec.parts
    )


def fit_all(
    specs: Sequence[MethodSpec],
    reference: Reference,
    *,
    progress: Progress,
    calibrated_on: str = "val",
) -> Detectors:
    """Fit methods on one reference; those that are not defined there are left out.

    Those that need probes come first, so that the pass over the training images that they cause
    serves the others too. Training images come before calibration images, which may be some of
    them: what is stored of those is not computed again.

    Parameters
    ----------
    specs
        The methods.
    reference
        What they may learn from.
    progress
        Told how far fitting is.
    calibrated_on
        Where calibration images come from: ``train`` is told beside every result that used them.

    Raises
    ------
    OodError
        If a method cannot be fitted for another reason, such as a wrong parameter.
    """
    order = sorted(range(len(specs)), key=lambda index: "network" not in specs[index].inputs)
    order.sort(key=lambda index: "regions" not in specs[index].inputs)
    train_first = learns_from_train(specs)
    found: dict[int, Fitted] = {}
    detectors = Detectors([], frozenset(spec.canonical for spec in specs if spec.optional))
    with progress.task("fitting methods", total=len(specs), unit="methods") as task:
        for index in order:
            spec = specs[index]
            running = progress.task(
                f"fitting {spec.canonical}", total=None, unit="images", passing=True
            )
            with detectors._tolerating(spec.canonical), running:  # noqa: SLF001 - the same module
                if {"calibration", "network"} & set(spec.inputs) == {"calibration"} and train_first:
                    reference.train  # noqa: B018 - it is made by being looked at
                fitted = spec.fit(reference)
                if len(spec.parts) == 1:
                    for name, (asked, used) in spec.parts[0].instead(fitted.params).items():
                        progress.note(f"{spec.canonical}: {name} is {used} here, not {asked}")
                if calibrated_on == "train" and "calibration" in spec.inputs:
                    fitted = replace(fitted, params={**fitted.params, "calibration": "train"})
                found[index] = fitted
            task.advance(1)
    detectors.fitted = [found[index] for index in sorted(found)]
    return detectors


def check_finite(method: str, scores: ScoreArray, dataset: str | None = None) -> None:
    """Refuse scores that are not finite.

    Parameters
    ----------
    method
        Canonical name of the method that gave them.
    scores
        ``(n,)``.
    dataset
        Name of the set that they are of, if it has one.

    Raises
    ------
    UndefinedMethodError
        If one is NaN or infinite.
    """
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        of = "" if dataset is None else f" on {dataset}"
        raise UndefinedMethodError(
            f"{method} gives {bad} scores{of} that are not finite; "
            "check its parameters and the weights of the run"
        )


def refused(name: str, reason: str) -> str:
    """Return the reason why a method is not defined, with its name."""
    named = reason.startswith(re.split(r"[:+@]", name)[0])
    return reason if named else f"{name} cannot be scored: {reason}"


def together(left_out: Mapping[str, str]) -> str:
    """Say why methods are not defined; of many, the first three."""
    reasons = [refused(name, reason) for name, reason in left_out.items()]
    more = len(reasons) - _MOST_REASONS
    others = [f"and {more} other methods are not defined"] if more > 0 else []
    return "; ".join([*reasons[:_MOST_REASONS], *others])
