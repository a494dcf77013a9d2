"""What the explorer of a report shows of images and features, within the size of a page."""

import json
from collections.abc import Sequence

from oodcli.progress import SILENT, Progress
from oodcli.records import as_json
from oodcli.reporting.explorer.image_payload import ImagePanels
from oodcli.reporting.explorer.images import Notes, found_runs, strip_of
from oodcli.reporting.explorer.maps import map_of, norms_of
from oodcli.reporting.sources import ScoredRun
from oodcli.store.store import Store

_SHARE_OF_MAP = 0.5


def image_panels(
    runs: Sequence[ScoredRun], store: Store, characters: int, *, progress: Progress = SILENT
) -> tuple[ImagePanels, tuple[str, ...]]:
    """Return images and features of the first two runs whose images are found again.

    Parameters
    ----------
    runs
        The runs of a report.
    store
        Where they are.
    characters
        How many characters of the page they may take.
    progress
        Receives the progress.

    Returns
    -------
    panels
        The images and features.
    limits
        What is missing or left out, one sentence each.
    """
    notes = Notes()
    found = list(found_runs(runs, store, notes))
    if not found:
        return ImagePanels((), None, ()), tuple(notes.lines)
    for_map = round(_SHARE_OF_MAP * characters)
    with progress.task("mapping features", total=None, unit="runs") as task:
        shown = map_of(found, for_map, notes)
        task.advance(len(found))
    left = characters - (0 if shown is None else len(json.dumps(as_json(shown))))
    strips = []
    with progress.task("choosing images", total=len(found), unit="runs") as task:
        for each in found:
            strips.append(strip_of(each, left // len(found), notes))
            task.advance(1)
    norms = [norms_of(each) for each in found]
    panels = ImagePanels(
        strips=tuple(each for each in strips if each is not None),
        map=shown,
        norms=tuple(each for each in norms if each is not None),
    )
    return panels, tuple(notes.lines)
