"""``ood normratio``: NormRatio of every block of a run's network, and the selected block."""

from oodcli.compute.compute import Compute
from oodcli.data.views import View
from oodcli.errors import InvalidInputError
from oodcli.normratio import norm_ratio
from oodcli.progress import SILENT, Progress
from oodcli.scoring.block_ratios import NormRatioResult, describe, write_normratio
from oodcli.scoring.open_run import OpenRun
from oodcli.screening.activation_maps import write_activation_maps
from oodcli.store.store import Store


def normratio(
    store: Store,
    *,
    run: str | None = None,
    max_images: int | None = None,
    normalise: bool = True,
    compute: Compute | None = None,
    skip_unreadable: bool = False,
    progress: Progress = SILENT,
) -> NormRatioResult:
    """Compute NormRatio of every block on training images, and store the result with the run.

    Maps of the selected block on a few of the images, for pictures, are stored with it.

    Parameters
    ----------
    store
        The store that contains the run.
    run
        Name of the run; the default run if None.
    max_images
        Use this many evenly spaced training images; all if None.
    normalise
        Whether to normalise the images with the mean and standard deviation of the run.
    compute
        Device, precision and batch size.
    skip_unreadable
        Whether to skip images that cannot be decoded.
    progress
        Receives the progress of long work.

    Raises
    ------
    OodError
        If the run, its data or the device cannot be used.
    """
    if max_images is not None and max_images < 1:
        raise InvalidInputError(f"--max-images must be at least 1, not {max_images}")
    how = compute or Compute.of()
    with OpenRun.open(
        store, run, how, skip_unreadable=skip_unreadable, progress=progress
    ) as opened:
        # Without a consumer: pixels that are not stored are kept until the maps have been made.
        chosen = opened.data.train(limit=max_images)
        plain = opened.activator.activations(chosen, normalise=normalise)
        puzzles = opened.activator.activations(
            chosen, view=View("jigsaw"), normalise=normalise, norms_only=True
        )
        norms, jigsaw_norms = (each.block_norms.cpu().numpy() for each in (plain, puzzles))
        ratios = norm_ratio(norms, jigsaw_norms)
        result = describe(opened, ratios, of=chosen, normalised=normalise)
        write_normratio(opened.folder, result, precision=how.precision)
        write_activation_maps(opened, chosen, ratios, norms, jigsaw_norms, normalise=normalise)
        return result
