"""Screening of batches in programs that distribute work: Ray, Spark, Hugging Face datasets."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodcli.arguments import naming_arguments
from oodcli.errors import InvalidInputError
from oodcli.screening.base import BaseDetector
from oodcli.screening.given import image_column
from oodcli.screening.thresholds import ThresholdRule
from oodcli.workflows.engines import DetectorRequest, Engine, detector_of_file


class Screener:
    """Judges batches of images; each process that holds one loads its detector once.

    Give the class to ``ray.data.Dataset.map_batches``, with the file as
    ``fn_constructor_args``; for ``pyspark.ml.functions.predict_batch_udf``, a function that makes
    one. It can be pickled.

    Parameters
    ----------
    detector
        A packed detector or an export, see :func:`oodcli.load_detector`; or a detector.
    column
        Column with the images; if None, ``image``, ``images``, ``img``, ``bytes`` or ``content``.
    tpr, threshold, false_alarms, per_class, engine, device, score_batch_size, allow_code
        As for :func:`oodcli.load_detector`; not used for a detector that is made already.

    Raises
    ------
    OodError
        If the detector cannot be loaded.
    """

    SCHEMA = (
        "class string, probability double, score double, threshold double, percentile double, "
        "p_value double, verdict string, error string"
    )
    """The results as a schema of Spark, in the order in which they are returned."""

    def __init__(
        self,
        detector: str | os.PathLike[str] | BaseDetector,
        *,
        column: str | None = None,
        tpr: float | None = None,
        threshold: float | None = None,
        false_alarms: float | None = None,
        per_class: bool = False,
        engine: Engine | None = None,
        device: str = "auto",
        score_batch_size: int | None = None,
        allow_code: bool = False,
    ) -> None:
        if not isinstance(detector, BaseDetector):
            with naming_arguments():
                request = DetectorRequest(
                    file=Path(detector),
                    rule=ThresholdRule(tpr, threshold, false_alarms, per_class=per_class),
                    engine=engine,
                    device=device,
                    batch_size=score_batch_size,
                    allow_code=allow_code,
                )
                detector = detector_of_file(request)
        if detector.threshold.fdr is not None:
            raise InvalidInputError(
                "a false discovery rate needs all images at once, and a Screener has batches; use "
                "false_alarms, or select rows by p_value"
            )
        self.detector = detector
        self.column = column

    def __call__(self, batch: Mapping[str, Any] | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the columns of a batch without the images, and the results of each image.

        Parameters
        ----------
        batch
            Columns of equal length, by name; or the images alone. Images are those of
            :meth:`oodcli.Detector.predict`.

        Returns
        -------
        dict
            The other columns of the batch unchanged, then ``class``, ``probability``, ``score``,
            ``threshold``, ``percentile``, ``p_value``, ``verdict`` and ``error``, as in rows of
            ``ood predict``. An image that cannot be read has the reason in ``error``, NaN for
            numbers and otherwise None.

        Raises
        ------
        InvalidInputError
            If there is no column with images, an object is not an image, or a column of the batch
            has the name of a result.
        """
        if not isinstance(batch, Mapping):
            return self._results(batch)
        with naming_arguments():
            name = image_column(batch) if self.column is None else self.column
            if name not in batch:
                named = ", ".join(map(repr, batch))
                raise InvalidInputError(f"the batch has no column {name!r}; it has: {named}")
        found = self._results(batch[name])
        others = {key: values for key, values in batch.items() if key != name}
        both = found.keys() & others.keys()
        if both:
            raise InvalidInputError(
                f"the batch has a column {min(both)!r}, which is also a result; rename it"
            )
        return {**others, **found}

    def _results(self, images: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - as predict
        found = self.detector.predict(images, errors="row")
        read = np.array([why is None for why in found.errors], dtype=np.bool_)
        minimum = self.detector.thresholds(np.where(read, found.class_indices, 0))
        verdicts = np.where(found.ood, "ood", "id").astype(object)
        verdicts[~read] = None
        return {
            "class": np.array(found.classes, dtype=object),
            "probability": found.probability,
            "score": found.score,
            "threshold": np.where(read, minimum, np.nan),
            "percentile": found.percentile,
            "p_value": found.p_value,
            "verdict": verdicts,
            "error": np.array(found.errors, dtype=object),
        }
