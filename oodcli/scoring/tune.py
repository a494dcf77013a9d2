"""Choosing the parameters of methods: every value of a published grid, scored on validation images.

Two ways to do it. ``openood`` is the published protocol: ID validation images against OOD
validation images. ``pseudo`` needs no OOD data: ID validation images against jigsaw puzzles of the
same images. The border that a jigsaw blackens is black in the originals too, or it would be what is
detected.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from oodcli.activations import ActivationSet, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods import Fitted, MethodSpec
from oodcli.methods.base import MethodPart, score_many
from oodcli.methods.ensemble import EnsembleSpec
from oodcli.metrics import evaluate
from oodcli.probes import Probe
from oodcli.progress import Progress
from oodcli.store.searches import Candidate, Search, Tuning


@dataclass(frozen=True)
class ValidationSet:
    """Images that settings are compared on.

    Parameters
    ----------
    name
        Name of the set.
    n
        Number of images.
    observe
        Gives their activations with what probes leave.
    """

    name: str
    n: int
    observe: Callable[[Sequence[Probe]], ActivationSet]


def settings(spec: MethodSpec) -> list[MethodSpec]:
    """Return a method with every value of the grids of its halves, in the order of the grids.

    Parameters that were given stay as they are. A method that has nothing to choose is returned as
    it is, and so is an ensemble: its members are what it was asked for with.
    """
    if isinstance(spec, EnsembleSpec):
        return [spec]
    halves: list[list[MethodPart]] = []
    for part in spec.parts:
        free = {k: values for k, values in part.method.grid.items() if k not in part.given}
        halves.append(
            [
                replace(
                    part,
                    given={**part.given, **_chosen(part, dict(zip(free, values, strict=True)))},
                )
                for values in itertools.product(*free.values())
            ]
        )
    return [replace(spec, parts=parts) for parts in itertools.product(*halves)]


def _chosen(part: MethodPart, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without defaults, which canonical names omit."""
    parameters = part.method.parameters()
    return {k: value for k, value in values.items() if value != parameters[k].default}


def tune(
    specs: Sequence[MethodSpec],
    reference: Reference,
    *,
    tuning: Tuning,
    id_val: ValidationSet,
    ood_val: ValidationSet,
    progress: Progress,
) -> Iterator[tuple[MethodSpec, Search, Fitted] | tuple[MethodSpec, str]]:
    """Search the grid of every method that has one, on one pass over the validation images.

    Parameters
    ----------
    specs
        Methods with more than one setting.
    reference
        What they may learn from.
    tuning
        What the validation sets are.
    id_val, ood_val
        ID validation images, and the images to distinguish them from.
    progress
        Receives progress of the search.

    Yields
    ------
    tuple
        The method, its search, and the fitted setting that won, named ``METHOD@TUNING``; or the
        method and the reason why no setting of it is defined.
    """
    tried = _fitted(specs, reference, tuning, progress)
    ready = {name: each.ready for name, each in tried.items()}
    probes = {p.key: p for each in ready.values() for one in each for p in one.probes}
    id_column, ood_column = (
        _scores(ready, part.observe(tuple(probes.values())), part.name, progress=progress)
        for part in (id_val, ood_val)
    )
    for spec in specs:
        name, each = spec.canonical, tried[spec.canonical]
        rated = _rated(each, id_column[name], ood_column[name])
        if isinstance(rated, str):
            yield spec, rated
            continue
        best = _first_best(rated)
        if best is None:
            yield spec, f"{name} gives scores that are not finite with any of its parameters"
            continue
        search = Search(
            name, tuning, id_val.name, ood_val.name, id_val.n, ood_val.n,
            rated[best].method, tuple(rated),
        )  # fmt: skip
        winner = each.fitted[best]
        assert isinstance(winner, Fitted)  # it has been rated
        params = {**winner.params, "tuned": tuning, "tuned_on": ood_val.name}
        yield spec, search, replace(winner, canonical=search.name, params=params)


@dataclass(frozen=True)
class _Tried:
    """The settings of a method, each fitted or with the reason why it is not defined."""

    candidates: tuple[MethodSpec, ...]
    fitted: tuple[Fitted | str, ...]

    @property
    def ready(self) -> list[Fitted]:
        """Those that are fitted."""
        return [each for each in self.fitted if isinstance(each, Fitted)]


def _fitted(
    specs: Sequence[MethodSpec], reference: Reference, tuning: Tuning, progress: Progress
) -> dict[str, _Tried]:
    """Fit every setting of every method, by canonical name."""
    everything = {spec.canonical: (spec, settings(spec)) for spec in specs}
    total = sum(len(candidates) for _, candidates in everything.values())
    found: dict[str, _Tried] = {}
    with progress.task(f"tuning ({tuning}): fitting", total=total, unit="settings") as task:
        for name, (spec, candidates) in everything.items():
            fitted: list[Fitted | str] = []
            for candidate in candidates:
                try:
                    fitted.append(candidate.fit(reference))
                except UndefinedMethodError as error:
                    fitted.append(str(error))
                task.advance(1)
            if not any(isinstance(each, Fitted) for each in fitted):
                # No published value suits this network, and the default, which may depend on the
                # network, is the only one left.
                with contextlib.suppress(UndefinedMethodError):
                    fitted.append(spec.fit(reference))
                    candidates.append(spec)
            found[name] = _Tried(tuple(candidates), tuple(fitted))
    return found


def _rated(
    tried: _Tried, id_scores: np.ndarray[Any, Any] | str, ood_scores: np.ndarray[Any, Any] | str
) -> list[Candidate] | str:
    """Return what every setting is worth, or why none is defined for the images."""
    for scores in (id_scores, ood_scores):
        if isinstance(scores, str):
            return scores
    if not tried.ready:
        return next(each for each in tried.fitted if isinstance(each, str))
    ratings = iter(_ratings(id_scores, ood_scores))  # type: ignore[arg-type]
    return [
        Candidate(candidate.canonical, None, found)
        if isinstance(found, str)
        else Candidate(candidate.canonical, *next(ratings))
        for candidate, found in zip(tried.candidates, tried.fitted, strict=True)
    ]


def _scores(
    ready: Mapping[str, Sequence[Fitted]],
    activations: ActivationSet,
    dataset: str,
    *,
    progress: Progress,
) -> dict[str, np.ndarray[Any, Any] | str]:
    """Return the scores of every setting, ``(n, settings)`` by method, or why there are none."""
    parts: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in ready}
    undefined: dict[str, str] = {}
    with (
        torch.inference_mode(),
        progress.task(f"tuning on {dataset}", total=len(activations), unit="images") as task,
    ):
        for chunk in activations.chunks():
            for name, each in ready.items():
                if not each or name in undefined:
                    continue
                try:
                    scores = score_many([one.detector for one in each], chunk)
                except UndefinedMethodError as error:
                    undefined[name] = str(error)
                else:
                    parts[name].append(scores.cpu().numpy())
            task.advance(len(chunk))
    return {
        name: undefined[name] if name in undefined else np.concatenate(parts[name] or [np.empty(0)])
        for name in ready
    }


def _ratings(
    id_scores: np.ndarray[Any, Any], ood_scores: np.ndarray[Any, Any]
) -> Iterator[tuple[float | None, str]]:
    for column in range(id_scores.shape[1]):
        id_column, ood_column = id_scores[:, column], ood_scores[:, column]
        if np.isfinite(id_column).all() and np.isfinite(ood_column).all():
            yield evaluate(id_column, ood_column).auroc, ""
        else:
            yield None, "scores that are not finite"


def _first_best(candidates: Sequence[Candidate]) -> int | None:
    best: int | None = None
    for index, candidate in enumerate(candidates):
        if candidate.auroc is None:
            continue
        known = None if best is None else candidates[best].auroc
        if known is None or candidate.auroc > known:
            best = index
    return best
