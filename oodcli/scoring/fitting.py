"""Fitting of several methods, and scoring of images with all of them, chunk by chunk."""

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from oodcli.activations import ActivationSet, Reference
from oodcli.data.views import View
from oodcli.errors import UndefinedMethodError
from oodcli.methods import Fitted, MethodSpec
from oodcli.metrics import check_finite
from oodcli.probes import Probe
from oodcli.progress import Progress, format_duration
from oodcli.store.scores import NO_LOGITS
from oodcli.text import counted

ScoreArray = NDArray[np.floating[Any]]

# This parameter of a method is expanded to one method per block of the network.
_EVERY_BLOCK = "block=all"
# Maximum number of reasons in one error message.
_MAX_REASONS = 3
# Minimum time in seconds, and minimum share of the total time, of a method reported as slow.
_SLOW_S, _SLOW_SHARE = 10.0, 0.2


@dataclass(frozen=True)
class FittedMethods:
    """Fitted methods, and methods that are not defined for the network or data.

    Parameters
    ----------
    fitted
        The fitted methods, in the requested order.
    optional
        Canonical names of methods that were requested as part of a group.
    left_out
        Why a method is not defined, by canonical name.
    seconds
        Time for fitting and scoring with each method, in seconds, by canonical name.
    """

    fitted: tuple[Fitted, ...] = ()
    optional: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes that the methods need, without duplicates."""
        every = {probe.key: probe for each in self.fitted for probe in each.probes}
        return tuple(every.values())

    @property
    def undefined(self) -> tuple[str, ...]:
        """Canonical names of the undefined methods that were requested by name."""
        return tuple(name for name in self.left_out if name not in self.optional)

    def require_one(self) -> None:
        """Raise an error if no method remains.

        Raises
        ------
        UndefinedMethodError
            If all were skipped.
        """
        if not self.fitted:
            raise UndefinedMethodError(combined_reasons(self.left_out))

    def require_all(self) -> None:
        """Raise an error if any of the methods was skipped.

        Raises
        ------
        UndefinedMethodError
            If one was skipped.
        """
        if self.left_out:
            raise UndefinedMethodError(combined_reasons(self.left_out))

    def plus(
        self,
        fitted: Sequence[Fitted] = (),
        *,
        optional: Collection[str] = (),
        left_out: Mapping[str, str] | None = None,
    ) -> Self:
        """Return these and further methods, fitted or undefined."""
        return replace(
            self,
            fitted=(*self.fitted, *fitted),
            optional=self.optional | frozenset(optional),
            left_out={**self.left_out, **(left_out or {})},
        )

    def marked(self, name: str | None, **params: float | str | None) -> Self:
        """Return the same methods, with further parameters recorded for one of them."""
        marked = (
            replace(each, params={**each.params, **params}) if each.canonical == name else each
            for each in self.fitted
        )
        return replace(self, fitted=tuple(marked))

    def with_defined_probes(self, attempt: Callable[[Sequence[Probe]], None]) -> Self:
        """Return the methods whose probes are defined for the network; the others are skipped.

        Parameters
        ----------
        attempt
            Function that runs probes on a few images.
        """
        attempts = _Attempts()
        for each in self.fitted:
            if each.probes:
                with attempts.of(each.canonical):
                    attempt(each.probes)
        return self._after(attempts)

    def score(
        self, activations: ActivationSet, dataset: str, *, progress: Progress
    ) -> tuple[Self, Mapping[str, ScoreArray]]:
        """Score every image with every method.

        Parameters
        ----------
        activations
            Activations of the images.
        dataset
            Name of the set, for messages.
        progress
            Receives the progress of scoring.

        Returns
        -------
        methods
            The methods that are defined for these images and gave finite scores; the others are
            skipped.
        scores
            Their scores, ``(n,)``, by canonical name.
        """
        parts: dict[str, list[ScoreArray]] = {each.canonical: [] for each in self.fitted}
        attempts = _Attempts()
        label = f"scoring {dataset}"
        with (
            torch.inference_mode(),
            progress.task(label, total=len(activations), unit="images") as task,
        ):
            for chunk in activations.chunks():
                for each in self.fitted:
                    if each.canonical in attempts.failed:
                        continue
                    with attempts.of(each.canonical):
                        values = each.detector.score(chunk).cpu().numpy()
                        check_finite(each.canonical, values, dataset)
                        parts[each.canonical].append(values)
                task.advance(len(chunk))
        after = self._after(attempts)
        names = (each.canonical for each in after.fitted)
        return after, {name: np.concatenate(parts[name]) for name in names}

    def slow(self) -> str | None:
        """Return a note on slow methods; None if there are none.

        A method is slow if it took at least 10 s and a fifth of the total time.
        """
        total = sum(self.seconds.values())
        slow = [
            f"{name} {format_duration(seconds)}"
            for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])
            if seconds >= max(_SLOW_S, _SLOW_SHARE * total)
        ]
        if not slow or len(self.seconds) < 2:
            return None
        return (
            f"most of the {format_duration(total)} of fitting and scoring went to: "
            f"{', '.join(slow)} (select methods with --method)"
        )

    def _after(self, attempts: "_Attempts") -> Self:
        """Return the methods that have not failed, with the time of the attempts added."""
        seconds = dict(self.seconds)
        for name, spent in attempts.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent
        return replace(
            self,
            fitted=tuple(each for each in self.fitted if each.canonical not in attempts.failed),
            left_out={**self.left_out, **attempts.failed},
            seconds=seconds,
        )


@dataclass(frozen=True)
class _Attempts:
    """Errors and times of several methods."""

    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Record the time of the context, and the reason if the method is not defined."""
        started = time.perf_counter()
        try:
            yield
        except UndefinedMethodError as error:
            self.failed[name] = str(error)
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def expand_blocks(methods: Sequence[str], blocks: range) -> list[str]:
    """Expand ``block=all`` to one method for every block."""
    return [
        expanded
        for text in methods
        for expanded in (
            [text.replace(_EVERY_BLOCK, f"block={block}") for block in blocks]
            if _EVERY_BLOCK in text
            else [text]
        )
    ]


def without_logits(
    run: str, specs: Sequence[MethodSpec]
) -> tuple[Sequence[MethodSpec], Mapping[str, str]]:
    """Return the methods that need no logits, and why those that a group named are skipped.

    Parameters
    ----------
    run
        Name of a run without a classifier.
    specs
        The methods.

    Raises
    ------
    UndefinedMethodError
        If one that was named needs logits; the message names all that do.
    """
    named = [each.canonical for each in specs if each.needs_classifier and not each.optional]
    if named:
        needs = "needs" if len(named) == 1 else "need"
        raise UndefinedMethodError(
            f"{', '.join(named)} {needs} logits, and the network of run {run} has no classifier; "
            "fit a linear layer: ood import --probe, or use methods without logits, such as knn"
        )
    skipped = {each.canonical: NO_LOGITS for each in specs if each.needs_classifier}
    return [each for each in specs if each.canonical not in skipped], skipped


def learns_from_train(specs: Sequence[MethodSpec]) -> bool:
    """Return whether a method is fitted on the training images."""
    return any(
        "train" in part.method.inputs and "block" not in part.given
        for spec in specs
        for part in spec.parts
    )


def selects_block(specs: Sequence[MethodSpec]) -> bool:
    """Return whether a method uses the block selected by NormRatio, on training images."""
    return any(
        "jigsaw" in part.method.inputs and "block" not in part.given
        for spec in specs
        for part in spec.parts
    )


def puzzle_views(specs: Sequence[MethodSpec]) -> Mapping[View, bool]:
    """Return the view of the training images as jigsaw puzzles, if methods need one.

    Parameters
    ----------
    specs
        The methods.

    Returns
    -------
    views
        The view, with whether only block norms are needed, and not features; empty for none.
    """
    if any("jigsaw features" in spec.inputs for spec in specs):
        return {View("jigsaw"): False}
    return {View("jigsaw"): True} if selects_block(specs) else {}


def fit_all(
    specs: Sequence[MethodSpec],
    reference: Reference,
    *,
    progress: Progress,
    calibrated_on: str = "val",
) -> FittedMethods:
    """Fit methods on one reference; methods that are not defined are skipped.

    Methods with probes are fitted first: their pass over the training images also gives the
    ordinary activations for the others. Activations of training images are computed before those of
    calibration images, which may be a part of them and are then not computed again.

    Parameters
    ----------
    specs
        The methods.
    reference
        The reference data.
    progress
        Receives the progress of fitting.
    calibrated_on
        Part of the calibration images; ``train`` is recorded with every method that uses them.

    Raises
    ------
    OodError
        If a method cannot be fitted for another reason, such as a wrong parameter.
    """
    order = sorted(range(len(specs)), key=lambda index: "network" not in specs[index].inputs)
    order.sort(key=lambda index: {"regions", "blocks"}.isdisjoint(specs[index].inputs))
    train_first = learns_from_train(specs)
    found: dict[int, Fitted] = {}
    attempts = _Attempts()
    with progress.task("fitting methods", total=len(specs), unit="methods") as task:
        for index in order:
            spec = specs[index]
            running = progress.task(
                f"fitting {spec.canonical}", total=None, unit="images", passing=True
            )
            with attempts.of(spec.canonical), running:
                learns = {"calibration", "network"} & set(spec.inputs)
                if learns == {"calibration"} and train_first:
                    reference.train  # noqa: B018 - a cached property, which computes them
                fitted = spec.fit(reference)
                if len(spec.parts) == 1:
                    for name, (asked, used) in spec.parts[0].replaced_values(fitted.params).items():
                        progress.note(f"{spec.canonical}: using {name}={used} instead of {asked}")
                if calibrated_on == "train" and "calibration" in spec.inputs:
                    fitted = replace(fitted, params={**fitted.params, "calibration": "train"})
                found[index] = fitted
            task.advance(1)
    return FittedMethods(
        fitted=tuple(found[index] for index in sorted(found)),
        optional=frozenset(spec.canonical for spec in specs if spec.optional),
        left_out=attempts.failed,
        seconds=attempts.seconds,
    )


def reason_with_name(name: str, reason: str) -> str:
    """Return the reason why a method is not defined, with its name at the start."""
    named = reason.startswith(re.split(r"[:+@]", name)[0])
    return reason if named else f"{name} cannot be scored: {reason}"


def recommend_again(reason: str, name: str, run: str) -> str:
    """Return an error message for a recommended method that is not defined.

    Parameters
    ----------
    reason
        Why it is not defined.
    name
        Name of the method.
    run
        Name of the run that it was recommended for.
    """
    return (
        f"{reason_with_name(name, reason)}; {name} was recommended for run {run}: to choose "
        f"again, ood recommend --run {shlex.quote(run)}"
    )


def combined_reasons(left_out: Mapping[str, str]) -> str:
    """Return an error message with the reasons for undefined methods, at most three of them."""
    reasons = [reason_with_name(name, reason) for name, reason in left_out.items()]
    more = len(reasons) - _MAX_REASONS
    verb = "is" if more == 1 else "are"
    others = [f"and {counted(more, 'other method')} {verb} not defined"] if more > 0 else []
    return "; ".join([*reasons[:_MAX_REASONS], *others])
