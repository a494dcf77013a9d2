"""The images used to choose a method: held-out ID images and corrupted versions of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from oodcli.activations import ActivationSet
from oodcli.data.benchmarks import benchmark_of
from oodcli.data.views import View
from oodcli.errors import (
    InvalidInputError,
    OodError,
)
from oodcli.images import ImageSet, subsample
from oodcli.probes import Probe
from oodcli.scoring.open_run import OpenRun

# More images hardly increase the confidence, since the corruptions remain the same.
MAX_IMAGES = 5000


@dataclass(frozen=True)
class Corruption:
    """A corruption that turns ID images into pseudo-OOD images.

    Parameters
    ----------
    name
        Name of the corruption.
    family
        Family of similar corruptions; all families have the same weight.
    view
        The transformation.
    """

    name: str
    family: str
    view: View

    def id_view(self, size: tuple[int, int]) -> View:
        """Return the view of the ID images that the corrupted images are compared with.

        A jigsaw puzzle has a black frame if its tiles do not cover the image; the ID images then
        get the same frame.
        """
        tiles = self.view.tiles
        whole = all(side % tiles == 0 for side in size)
        return View() if self.view.kind != "jigsaw" or whole else View("framed", tiles=tiles)


def corruptions(seed: int = 0) -> tuple[Corruption, ...]:
    """Return all corruptions."""
    return (
        *(Corruption(f"jigsaw-{n}", "jigsaw", View("jigsaw", seed, n)) for n in (2, 3, 4)),
        Corruption("pixel-shuffle", "noise", View("pixel-shuffle", seed)),
        Corruption("gaussian-noise", "noise", View("gaussian-noise", seed)),
        Corruption("uniform-noise", "noise", View("uniform-noise", seed)),
        Corruption("blur", "blur", View("blur")),
        Corruption("rotation", "rotation", View("rotation")),
    )


def with_validation(run: OpenRun) -> OpenRun:
    """Return a run with the validation images of its benchmark if it has none of its own."""
    benchmark = benchmark_of(run.record.job.data)
    if benchmark is None or not benchmark.id_val_list or "val" in run.data.dataset.parts:
        return run
    listed = run.on(benchmark)
    try:
        listed.data  # noqa: B018 - a property, which opens the data
    except OodError as error:
        run.progress.note(f"without the validation images of {benchmark.name}: {error}")
        return run
    return listed


def selection_images(run: OpenRun) -> tuple[ImageSet, str]:
    """Return the ID images for choosing a method, and the name of their part.

    These are validation images if there are any, otherwise test images; at most ``MAX_IMAGES``.
    """
    # Activations are not computed while decoding: that would process the whole part under a dozen
    # views, although at most MAX_IMAGES are used.
    try:
        part = run.calibration_part
    except InvalidInputError:  # there is a test part only
        part = "test"
    if part == "val":
        return subsample(run.calibration(), MAX_IMAGES), "val"
    test = run.data.prepared(run.data.dataset.id_test, name=run.data_name)
    return subsample(test, MAX_IMAGES), "test"


def corrupted_activations(
    run: OpenRun, images: ImageSet, seed: int, *, probes: Sequence[Probe] = ()
) -> tuple[dict[View, tuple[str, ActivationSet]], list[Corruption]]:
    """Return the activations of images under all needed views, and the applicable corruptions.

    Parameters
    ----------
    run
        The run.
    images
        The ID images.
    seed
        Seed of the corruptions.
    probes
        Probes to run in the same passes.
    """
    activator, size, progress = run.activator, run.record.preprocess.size, run.progress
    sets: dict[View, tuple[str, ActivationSet]] = {
        View(): (images.name, activator.activations(images, probes=probes))
    }
    applicable: list[Corruption] = []
    for each in corruptions(seed):
        if each.view.kind == "jigsaw" and min(size) < each.view.tiles:
            progress.note(
                f"skipped {each.name}: images of {size[0]}x{size[1]} pixels are too small"
            )
            continue
        applicable.append(each)
        for view in (each.id_view(size), each.view):
            if view not in sets:
                name = f"{images.name} ({each.name if view == each.view else view.kind})"
                sets[view] = name, activator.activations(images, view=view, probes=probes)
    return sets, applicable
