"""The images used to choose a method: held-out ID images and corrupted versions of them."""

from dataclasses import dataclass

from oodcli.activations import ActivationSet
from oodcli.data.benchmarks import benchmark_of
from oodcli.data.views import View
from oodcli.errors import (
    InvalidInputError,
    OodError,
)
from oodcli.images import ImageSet, subsample
from oodcli.scoring.open_run import OpenRun

# More images make the choice no surer, since the ways to spoil them remain the same.
MAX_IMAGES = 5000


@dataclass(frozen=True)
class Corruption:
    """A way to make pseudo-OOD images of ID images.

    Parameters
    ----------
    name
        Its name.
    family
        Which ways are much the same; each family counts once.
    view
        What it does.
    """

    name: str
    family: str
    view: View

    def id_view(self, size: tuple[int, int]) -> View:
        """Return how ID images of a size are shown beside the corrupted ones."""
        tiles = self.view.tiles
        whole = all(side % tiles == 0 for side in size)
        return View() if self.view.kind != "jigsaw" or whole else View("framed", tiles=tiles)


def corruptions(seed: int = 0) -> tuple[Corruption, ...]:
    """Return the ways to spoil images."""
    return (
        *(Corruption(f"jigsaw-{n}", "jigsaw", View("jigsaw", seed, n)) for n in (2, 3, 4)),
        Corruption("pixel-shuffle", "noise", View("pixel-shuffle", seed)),
        Corruption("gaussian-noise", "noise", View("gaussian-noise", seed)),
        Corruption("uniform-noise", "noise", View("uniform-noise", seed)),
        Corruption("blur", "blur", View("blur")),
        Corruption("rotation", "rotation", View("rotation")),
    )


def with_validation(run: OpenRun) -> OpenRun:
    """Return a run with the validation images of its benchmark, where it has none of its own."""
    benchmark = benchmark_of(run.record.job.data)
    if benchmark is None or not benchmark.id_val_list or "val" in run.data.dataset.parts:
        return run
    listed = run.on(benchmark)
    try:
        listed.data  # noqa: B018 - it is opened by being looked at
    except OodError as error:
        run.progress.note(f"without the validation images of {benchmark.name}: {error}")
        return run
    return listed


def selection_images(run: OpenRun) -> tuple[ImageSet, str]:
    """Return the ID images that a choice is made on, and the part they are of.

    Validation images where there are any, or else test images; at most ``MAX_IMAGES``.
    """
    # Nothing is computed while these are decoded: whole parts would be, under a dozen views, of
    # which no more than MAX_IMAGES are looked at. Only those are decoded again where pixels of a
    # part are too many to be stored.
    try:
        part = run.calibration_part
    except InvalidInputError:  # there is a test part only
        part = "test"
    if part == "val":
        return subsample(run.calibration(), MAX_IMAGES), "val"
    test = run.data.prepared(run.data.dataset.id_test, name=run.data_name)
    return subsample(test, MAX_IMAGES), "test"


def corrupted_activations(
    run: OpenRun, images: ImageSet, seed: int
) -> tuple[dict[View, tuple[str, ActivationSet]], list[Corruption]]:
    """Return the activations of images under every view that is needed, and the ways that work."""
    activator, size, progress = run.activator, run.record.preprocess.size, run.progress
    sets: dict[View, tuple[str, ActivationSet]] = {
        View(): (images.name, activator.activations(images))
    }
    ways: list[Corruption] = []
    for way in corruptions(seed):
        if way.view.kind == "jigsaw" and min(size) < way.view.tiles:
            progress.note(f"without {way.name}: images of {size[0]}x{size[1]} pixels are too small")
            continue
        ways.append(way)
        for view in (way.id_view(size), way.view):
            if view not in sets:
                name = f"{images.name} ({way.name if view == way.view else view.kind})"
                sets[view] = name, activator.activations(images, view=view)
    return sets, ways
