"""Tuning of method parameters: all values of published grids, evaluated on validation images.

There are two protocols. ``openood`` is the published one: ID validation images against OOD
validation images. ``pseudo`` needs no OOD data: ID validation images against jigsaw puzzles of the
same images. The border that is black in a jigsaw puzzle is made black in the originals, too;
otherwise methods would detect the border.
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
    """Images on which settings are compared.

    Parameters
    ----------
    name
        Name of the set.
    n
        Number of images.
    observe
        Function that returns their activations with the arrays of probes.
    """

    name: str
    n: int
    observe: Callable[[Sequence[Probe]], ActivationSet]


def parameter_settings(spec: MethodSpec) -> list[MethodSpec]:
    """Return a method with all combinations of the values of its grids, in their order.

    Given parameters are not changed. A method without a grid is returned unchanged, and so is an
    ensemble, whose members are given.
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
    """Return the values that differ from the defaults, which canonical names omit."""
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
    """Search the grids of methods, with one pass over the validation images.

    Parameters
    ----------
    specs
        Methods with more than one setting.
    reference
        The reference data.
    tuning
        The protocol of the validation sets.
    id_val, ood_val
        ID validation images, and the images to separate them from.
    progress
        Receives progress of the search.

    Yields
    ------
    tuple
        The method, its search, and the best setting, fitted and named ``METHOD@TUNING``; or the
        method and the reason why none of its settings is defined.
    """
    tried = _fit_settings(specs, reference, tuning, progress)
    ready = {name: each.ready for name, each in tried.items()}
    probes = {p.key: p for each in ready.values() for one in each for p in one.probes}
    id_column, ood_column = (
        _scores(ready, part.observe(tuple(probes.values())), part.name, progress=progress)
        for part in (id_val, ood_val)
    )
    for spec in specs:
        name, each = spec.canonical, tried[spec.canonical]
        rated = _rate(spec, each, id_column[name], ood_column[name])
        if isinstance(rated, str):
            yield spec, rated
            continue
        best = _first_best(rated)
        if best is None:
            yield spec, f"{name} gives scores that are not finite with all of its settings"
            continue
        search = Search(
            name, tuning, id_val.name, ood_val.name, id_val.n, ood_val.n,
            rated[best].method, tuple(rated),
        )  # fmt: skip
        winner = each.fitted[best]
        assert isinstance(winner, Fitted)  # it has a rating
        params = {**winner.params, "tuned": tuning, "tuned_on": ood_val.name}
        yield spec, search, replace(winner, canonical=search.name, params=params)


@dataclass(frozen=True)
class _Settings:
    """The settings of a method, each fitted or with the reason why it is undefined."""

    candidates: tuple[MethodSpec, ...]
    fitted: tuple[Fitted | str, ...]

    @property
    def ready(self) -> list[Fitted]:
        """The fitted settings."""
        return [each for each in self.fitted if isinstance(each, Fitted)]


def _fit_settings(
    specs: Sequence[MethodSpec], reference: Reference, tuning: Tuning, progress: Progress
) -> dict[str, _Settings]:
    """Fit every setting of every method, by canonical name."""
    everything = {spec.canonical: (spec, parameter_settings(spec)) for spec in specs}
    total = sum(len(candidates) for _, candidates in everything.values())
    found: dict[str, _Settings] = {}
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
                # No published value is defined for this network; try the default, which may depend
                # on the network.
                with contextlib.suppress(UndefinedMethodError):
                    fitted.append(spec.fit(reference))
                    candidates.append(spec)
            found[name] = _Settings(tuple(candidates), tuple(fitted))
    return found


def _rate(
    spec: MethodSpec,
    tried: _Settings,
    id_scores: np.ndarray[Any, Any] | str,
    ood_scores: np.ndarray[Any, Any] | str,
) -> list[Candidate] | str:
    """Return the rating of every setting, or why none is defined for the images."""
    for scores in (id_scores, ood_scores):
        if isinstance(scores, str):
            return scores
    if not tried.ready:
        return next(each for each in tried.fitted if isinstance(each, str))
    ratings = iter(_ratings(id_scores, ood_scores))  # type: ignore[arg-type]
    return [
        Candidate(
            candidate.canonical,
            *((None, found, None) if isinstance(found, str) else next(ratings)),
            parameters=_tuned_values(candidate, spec),
        )
        for candidate, found in zip(tried.candidates, tried.fitted, strict=True)
    ]


def _tuned_values(setting: MethodSpec, spec: MethodSpec) -> dict[str, Any]:
    """Return the values of the parameters that were searched, named as those of a fitted method."""
    several = len(spec.parts) > 1
    return {
        f"{part.name}.{name}" if several else name: part.arguments()[name]
        for part, asked in zip(setting.parts, spec.parts, strict=True)
        for name in part.method.grid
        if name not in asked.given
    }


def _scores(
    ready: Mapping[str, Sequence[Fitted]],
    activations: ActivationSet,
    dataset: str,
    *,
    progress: Progress,
) -> dict[str, np.ndarray[Any, Any] | str]:
    """Return the scores of all settings, ``(n, settings)`` by method, or why there are none."""
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
) -> Iterator[tuple[float | None, str, float | None]]:
    """Yield AUROC, why there is none, and FPR95 of every column."""
    for column in range(id_scores.shape[1]):
        id_column, ood_column = id_scores[:, column], ood_scores[:, column]
        if np.isfinite(id_column).all() and np.isfinite(ood_column).all():
            found = evaluate(id_column, ood_column)
            yield found.auroc, "", found.fpr95
        else:
            yield None, "scores that are not finite", None


def _first_best(candidates: Sequence[Candidate]) -> int | None:
    best: int | None = None
    for index, candidate in enumerate(candidates):
        if candidate.auroc is None:
            continue
        known = None if best is None else candidates[best].auroc
        if known is None or candidate.auroc > known:
            best = index
    return best
