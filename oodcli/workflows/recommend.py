"""Recommending a method for a run, from its own images alone."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from oodcli.activations import ActivationSet, Reference
from oodcli.data.views import View
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.images import ImageSet
from oodcli.methods import METHODS, Fitted, MethodSpec, group, parse_method, parse_methods
from oodcli.methods.base import score_many
from oodcli.methods.ensemble import EnsembleSpec
from oodcli.progress import Progress, Silent
from oodcli.workflows.activate import Activator
from oodcli.workflows.choosing import Contrast, Floats
from oodcli.workflows.own_images import OwnImages
from oodcli.workflows.tune import settings


@dataclass(frozen=True)
class Spoilt:
    name: str
    family: str
    view: View


def spoilt_kinds(seed: int = 0) -> tuple[Spoilt, ...]:
    return (
        *(Spoilt(f"jigsaw-{t}", "jigsaw", View("jigsaw", seed, t)) for t in (2, 3, 4)),
        Spoilt("pixel-shuffle", "noise", View("pixel-shuffle", seed)),
        Spoilt("gaussian-noise", "noise", View("gaussian-noise", seed)),
        Spoilt("uniform-noise", "noise", View("uniform-noise", seed)),
        Spoilt("blur", "blur", View("blur")),
        Spoilt("rotation", "rotation", View("rotation")),
    )


def candidates(n_blocks: int, methods: Sequence[str] = ()) -> list[MethodSpec]:
    names = list(methods or group(probes=False))
    specs: dict[str, MethodSpec] = {}
    for spec in parse_methods(names):
        each = [spec, *settings(spec)]
        if spec.canonical == "featurenorm":
            each += [parse_method(f"featurenorm:block={block}") for block in range(n_blocks)]
        for one in each:
            specs.setdefault(one.canonical, one)
    return list(specs.values())


def fit_candidates(specs, reference, progress):
    fitted, left = [], {}
    with progress.task("fitting candidates", total=len(specs), unit="methods") as task:
        for spec in specs:
            try:
                fitted.append(spec.fit(reference))
            except UndefinedMethodError as error:
                left[spec.canonical] = str(error)
            task.advance(1)
    return fitted, left


def score_all(fitted, activations, label, progress):
    out = np.full((len(activations), len(fitted)), np.nan)
    # Neighbours of one class share work; a class that is not defined here leaves NaN.
    runs = [
        list(r)
        for _, r in itertools.groupby(range(len(fitted)), key=lambda i: type(fitted[i].detector))
    ]
    row = 0
    with (
        torch.inference_mode(),
        progress.task(label, total=len(activations), unit="images") as task,
    ):
        for chunk in activations.chunks():
            for run in runs:
                try:
                    values = score_many([fitted[i].detector for i in run], chunk)
                except UndefinedMethodError:
                    continue
                out[row : row + len(chunk), run] = values.cpu().numpy()
            row += len(chunk)
            task.advance(len(chunk))
    return out
