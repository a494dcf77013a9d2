"""Reports and pictures of a query, in one call."""

from collections.abc import Sequence
from pathlib import Path

from oodcli.progress import SILENT, Progress
from oodcli.reporting.pictures import pictures
from oodcli.reporting.plots import Picture
from oodcli.reporting.results import Report
from oodcli.reporting.sources import ScoreQuery, Sources
from oodcli.store.store import Store
from oodcli.workflows.report import Statistics, report


def report_of(
    store: Store | None = None,
    *,
    convention: str | None = None,
    average: bool = False,
    ci: bool = False,
    bootstraps: int = 1000,
    seed: int = 0,
    compare: Sequence[tuple[str, str]] = (),
    **query: object,
) -> Report:
    """Open the sources of a query and return their report."""
    statistics = Statistics(ci, bootstraps, seed, compare)
    with Sources.open(store, ScoreQuery(**query)) as sources:
        return report(sources, convention, statistics, average=average)


def report_of_files(files: Sequence[str | Path], **options: object) -> Report:
    """Return the report of score files."""
    return report_of(files=files, **options)


def pictures_of(
    store: Store | None = None, *, progress: Progress | None = None, **query: object
) -> list[Picture]:
    """Open the sources of a query and return their pictures."""
    with Sources.open(store, ScoreQuery(**query)) as sources:
        return pictures(sources, progress=progress or SILENT)
