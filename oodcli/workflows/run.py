"""``ood run``: train a classifier, compute NormRatio, score and report."""

import time
from dataclasses import dataclass
from typing import Any

from oodcli.compute.compute import Compute
from oodcli.progress import SILENT, Progress
from oodcli.reporting.results import Report
from oodcli.reporting.sources import ScoreQuery, Sources
from oodcli.scoring.block_ratios import NormRatioResult
from oodcli.store.store import Store
from oodcli.workflows.normratio import normratio
from oodcli.workflows.report import report
from oodcli.workflows.score import ScoreRequest, score
from oodcli.workflows.train import TrainRequest, train

# A few methods of each kind, for a short table; `ood score` scores all methods.
METHODS = (
    "msp", "maxlogit", "energy", "react", "scale", "knn", "mds", "vim",
    "featurenorm", "norm+msp", "norm+energy",
)  # fmt: skip


@dataclass(frozen=True)
class RunResult:
    """The results of ``ood run``.

    Parameters
    ----------
    run
        Name of the run.
    normratio
        NormRatio of all blocks, and the selected block.
    report
        The table.
    seconds
        Time of each step in seconds, by name.
    """

    run: str
    normratio: NormRatioResult
    report: Report
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the versioned object that ``--format json`` prints."""
        return {
            **self.report.to_json(),
            "normratio": self.normratio.to_json(),
            "seconds": self.seconds,
        }


def run_all(
    store: Store,
    request: TrainRequest,
    *,
    batch_size: int | None = None,
    command: str = "",
    progress: Progress = SILENT,
) -> RunResult:
    """Train a classifier, select its block, score its own benchmark and tabulate the results.

    A finished run of the same request is not trained again; an unfinished one is resumed.

    Parameters
    ----------
    store
        The store.
    request
        What to train.
    batch_size
        Images per forward pass in scoring; None for a value that suits the device.
    command
        The command line, stored with the run.
    progress
        Receives the progress of every step.

    Raises
    ------
    OodError
        If a step fails.
    """
    compute = Compute.of(request.device, amp=request.amp, batch_size=batch_size)
    marks = [time.perf_counter()]
    trained = train(store, request, resume=True, command=command, progress=progress)
    marks.append(time.perf_counter())
    ratios = normratio(
        store,
        run=trained.run,
        compute=compute,
        skip_unreadable=request.skip_unreadable,
        progress=progress,
    )
    marks.append(time.perf_counter())
    score(
        store,
        ScoreRequest(
            run=trained.run,
            methods=METHODS,
            compute=compute,
            skip_unreadable=request.skip_unreadable,
        ),
        progress=progress,
    )
    marks.append(time.perf_counter())
    with Sources.open(store, ScoreQuery(runs=[trained.run])) as sources:
        table = report(sources)
    marks.append(time.perf_counter())
    steps = ("train", "normratio", "score", "report")
    seconds = {
        step: round(end - start, 3)
        for step, start, end in zip(steps, marks[:-1], marks[1:], strict=True)
    }
    return RunResult(run=trained.run, normratio=ratios, report=table, seconds=seconds)
