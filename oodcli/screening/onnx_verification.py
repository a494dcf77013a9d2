"""Verification of an ONNX file: its results in ONNX Runtime compared with those of ood."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.activations import Activations
from oodcli.data.decoding.scaling import Resizing
from oodcli.errors import InvalidInputError
from oodcli.models import Network
from oodcli.models.extraction import extract
from oodcli.screening.detector import Detector, chances_of
from oodcli.screening.onnx_graph import OUTPUTS, Input, batch_of, is_half, outputs_of

# Maximum accepted difference, relative to the standard deviation of the output.
TOLERANCE = 1e-4
# The same for graphs in float16: ONNX Runtime rounds elsewhere if it fuses other operations.
HALF_TOLERANCE = 1e-2
# Accepted rounding errors of float32 at the largest value, for outputs that hardly vary.
ROUNDINGS = 16
_NOISE_IMAGES = 64
_BATCH = 64


@dataclass(frozen=True)
class Difference:
    """The difference between an output of the file and of ood.

    Parameters
    ----------
    largest
        Maximum absolute difference.
    relative
        The same, divided by the standard deviation of the output over all compared images, or by a
        lower bound if the output hardly varies.
    """

    largest: float
    relative: float


@dataclass(frozen=True)
class Verification:
    """The result of the comparison in ONNX Runtime.

    Parameters
    ----------
    real, noise
        Numbers of test images of the run and of images of noise.
    tolerance
        Maximum accepted relative difference.
    logits, probability, score
        The differences; the first two are None without a classifier.
    other_classes, other_verdicts
        Numbers of images with a different class or verdict although logits or scores agree (ties).
    """

    real: int
    noise: int
    tolerance: float
    logits: Difference | None
    probability: Difference | None
    score: Difference
    other_classes: int
    other_verdicts: int


def verify(
    content: bytes,
    network: Network,
    detector: Detector,
    *,
    kind: Input,
    size: tuple[int, int],
    real: NDArray[np.uint8],
) -> Verification:
    """Compare the results of a file with those of ood.

    Parameters
    ----------
    content
        Content of the file.
    network, detector
        Network and detector of the run, on the CPU.
    kind, size
        Data type of the input pixels, and height and width of the input images.
    real
        Test images of the run, uint8 ``(n, 3, h, w)``.

    Raises
    ------
    InvalidInputError
        If an output differs by more than the tolerance.
    """
    if real.shape[2:] != size:
        up = Resizing(size)
        real = np.stack([up.apply(image.transpose(1, 2, 0)).transpose(2, 0, 1) for image in real])
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE_IMAGES, 3, *size), dtype=np.uint8)
    pixels = np.concatenate([real, noise])
    wanted, scores = expected(network, detector, pixels)
    names = outputs_of(detector.record)
    got = run_model(content, pixels, kind, names, batch=batch_of(network))
    tolerance = HALF_TOLERANCE if is_half(network) else TOLERANCE
    logits = wanted.logits.numpy()
    classes = wanted.predictions.numpy()
    chances = chances_of(wanted.logits, wanted.predictions).numpy()
    values = {"logits": logits, "probability": chances, "score": scores}
    compared = {name: each for name, each in values.items() if name in names}
    found = {name: difference_of(got[name], values) for name, values in compared.items()}
    for name, difference in found.items():
        if not difference.relative <= tolerance:
            raise InvalidInputError(
                f"the file gives different results from ood: {name} differ by up to "
                f"{difference.largest:.2g}, which is {difference.relative:.2g} of their standard "
                f"deviation; at most {tolerance:g} is accepted; nothing was written"
            )
    own_verdicts = ~detector.accepts(scores)
    differ = {
        "verdict": (got["verdict"] != own_verdicts)
        & (np.abs(scores - detector.threshold.value) > tolerance * _spread(scores)),
    }
    if "class" in names:
        differ["class"] = _other_class(got["class"], classes, logits, tolerance)
    for name, bad in differ.items():
        if bad.any():
            raise InvalidInputError(
                f"the file gives different results from ood: the {name} of {int(bad.sum())} of "
                f"{len(pixels)} images; nothing was written"
            )
    return Verification(
        real=len(real),
        noise=len(noise),
        tolerance=tolerance,
        logits=found.get("logits"),
        probability=found.get("probability"),
        score=found["score"],
        other_classes=int((got["class"] != classes).sum()) if "class" in names else 0,
        other_verdicts=int((got["verdict"] != own_verdicts).sum()),
    )


def _other_class(
    got: NDArray[np.int64],
    classes: NDArray[np.int64],
    logits: NDArray[np.float32],
    tolerance: float,
) -> NDArray[np.bool_]:
    """Return which images get another class though it is no tie, ``(n,)``."""
    ordered = np.sort(logits, axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if logits.shape[1] > 1 else np.ones(len(logits))
    other: NDArray[np.bool_] = (got != classes) & (margin > 2 * tolerance * _spread(logits))
    return other


def expected(
    network: Network, detector: Detector, pixels: NDArray[np.uint8]
) -> tuple[Activations, NDArray[np.float64]]:
    """Return activations and scores of images of one size, as ood computes them on the CPU.

    Parameters
    ----------
    network, detector
        Network and detector of the run.
    pixels
        Images, uint8 ``(n, 3, h, w)``; resized to the size of the network as by the run.
    """
    pre = detector.record.preprocess
    resizing = Resizing(pre.size, pre.resize)
    ready = np.stack(
        [resizing.apply(image.transpose(1, 2, 0)).transpose(2, 0, 1) for image in pixels]
    )
    activations = next(extract(network, [ready], mean=pre.mean, std=pre.std))
    return activations, detector.scores_of(activations)


def run_model(
    content: bytes | str,
    pixels: NDArray[np.uint8],
    kind: Input,
    outputs: Iterable[str] = OUTPUTS,
    *,
    batch: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the outputs of a file for images, by name, computed in ONNX Runtime on the CPU.

    Parameters
    ----------
    content
        Content of the file, or its path.
    pixels
        Images, uint8 ``(n, 3, h, w)``.
    kind
        Data type of the input pixels.
    outputs
        Names of the outputs.
    batch
        Number of images that the file takes at a time; None for any number.
    """
    import onnxruntime

    names = list(outputs)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    parts = [session.run(names, {"images": images}) for images in _batches(pixels, kind, batch)]
    return {
        name: np.concatenate(values)[: len(pixels)]
        for name, values in zip(names, zip(*parts, strict=True), strict=True)
    }


def _batches(pixels: NDArray[np.uint8], kind: Input, size: int | None) -> Iterator[NDArray[Any]]:
    """Yield batches of images in the input type of the file.

    The first has one image. If the file takes ``size`` images at a time, all batches have that
    size, and the last one is filled with black images.
    """
    starts = [0, *range(1 if size is None else size, len(pixels), size or _BATCH), len(pixels)]
    for start, stop in itertools.pairwise(starts):
        batch = pixels[start:stop]
        if size is not None:
            batch = np.concatenate([batch, np.zeros_like(pixels[: size - len(batch)])])
        yield batch if kind == "uint8" else batch.astype(np.float32) / np.float32(255)


def _spread(values: NDArray[Any]) -> float:
    """Return the scale for relative differences.

    This is the standard deviation, but at least so large that `ROUNDINGS` rounding errors of the
    largest value are accepted: outputs of a degenerate network hardly vary but are rounded as well.
    """
    wide = values.astype(np.float64)
    floor = ROUNDINGS * float(np.finfo(np.float32).eps) / TOLERANCE * float(np.abs(wide).max())
    return max(float(wide.std()), floor) or 1.0


def difference_of(got: NDArray[Any], wanted: NDArray[Any]) -> Difference:
    """Return the deviation of an output from the expected one, both ``(n, …)``."""
    largest = float(np.abs(got.astype(np.float64) - wanted).max())
    return Difference(largest, largest / _spread(wanted))
