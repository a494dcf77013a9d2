"""At which size images go through a network, how they get there, and what says so.

The size comes from an option, from the network, from the configuration of published weights, or
from the benchmark of a published data set; else from the images themselves. It never depends on
what a folder is called.
"""

from dataclasses import dataclass, replace
from typing import Literal

from oodcli.data.benchmarks import Benchmark, benchmark_of
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.originals import OriginalSizes
from oodcli.data.run_data import check_size_options
from oodcli.errors import InvalidInputError
from oodcli.models import Pretrained, builder_side_of, is_foreign
from oodcli.resizing import BILINEAR, FILTERS, Resize

_SMALL = (32, 32)
# Sides that are trained at by default, no larger than the images; a network with a stem for small
# images costs 50 times as much at 224 pixels as at 32.
_SIDES = (32, 64, 128, 224)
_MOST_OWN = 64
_MOST_FOREIGN = 224
_BY_SIZE = "by the size of the images; another: --image-size N"


@dataclass(frozen=True)
class Sizing:
    """The size of the images that a network sees, and how they get there.

    Parameters
    ----------
    size
        Height and width in pixels.
    resize
        As :class:`oodcli.store.runs.Preprocess` has it.
    size_from, resize_from, filter_from
        What says so, for people to read.
    originals
        Sizes of the images before.
    by_benchmark
        Whether the benchmark of a published data set says the size.
    as_published
        Whether resize and filter are those of the configuration of published weights.
    """

    size: tuple[int, int]
    resize: str
    size_from: str
    resize_from: str
    filter_from: str
    originals: OriginalSizes
    by_benchmark: bool = False
    as_published: bool = False

    @property
    def side(self) -> int | None:
        """The side of square images, in pixels; None if they are not square."""
        return self.size[0] if self.size[0] == self.size[1] else None

    def changes(self, data_name: str) -> tuple[str, ...]:
        """Say of the user's own images what is kept of them; nothing where they keep their size.

        Parameters
        ----------
        data_name
            Name of the data set.
        """
        if self.by_benchmark or not self.originals.differ_from(self.size):
            return ()
        return (f"{data_name}: images of {self.originals}", *self.lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """What was taken and why, a line each."""
        height, width = self.size
        way = Resize.of(self.resize)
        kept = self.originals.kept(Resizing(self.size, self.resize))
        return (
            f"size {height} x {width}: {self.size_from}",
            f"resize {_in_words(self.size, way)}: {self.resize_from}"
            + (f"; {kept}" if kept else ""),
            f"filter {way.used}: {self.filter_from}",
        )


def _in_words(size: tuple[int, int], way: Resize) -> str:
    if not way.crops:
        return "exact (to height and width, ignoring the aspect ratio)"
    return f"{way.how} (the shorter side to {way.side or max(size)}, then the centre)"


def sizing_for(
    purpose: Literal["training", "import"],
    dataset: Dataset,
    arch: str,
    *,
    published: Pretrained | None,
    certain: bool,
    image_size: int | None,
    resize: str | None,
) -> Sizing:
    """Return the size at which a network is trained, or one from elsewhere is used.

    Parameters
    ----------
    purpose
        Whether the network is going to be trained on the data, or was.
    dataset
        The data.
    arch
        The written architecture.
    published
        What published weights of the network expect of an image; None if there are none.
    certain
        Whether it is these weights: training starts from them, or an import asked for them, or has
        their number of classes.
    image_size, resize
        What the user asks for.

    Raises
    ------
    InvalidInputError
        If nothing says the size of an import and the images are far larger than 32 x 32; or if an
        option cannot be.

    Notes
    -----
    Where nothing says the size of a training, it is the largest of 32, 64, 128 and 224 that the
    median shorter side of the images reaches: of the networks of this package, which keep the
    resolution of small images through their first blocks, 64 at most; of others at most what their
    published weights take, else 224.
    """
    check_size_options(image_size, resize)
    first = "train" if purpose == "training" else next(iter(dataset.parts))
    originals = OriginalSizes.of(dataset.parts[first].source)
    fixed = builder_side_of(arch)
    benchmark = benchmark_of(dataset.spec)
    # A network that was trained further on other classes is likely to see images as before, but
    # one for small images is not.
    likely = purpose == "import" and benchmark is None and originals.are_large
    wanted = published if certain or likely else None
    if image_size is not None:
        size, size_from = (image_size, image_size), "--image-size"
    elif fixed is not None:
        size, size_from = (fixed, fixed), f"the network that {arch} builds"
    elif wanted is not None and wanted.size is not None:
        size, size_from = wanted.size, wanted.configuration
    elif benchmark is not None:
        size, size_from = benchmark.size, f"benchmark {benchmark.name}"
    elif purpose == "training":
        size, size_from = _reached(originals, arch, published), _BY_SIZE
    elif originals.are_large:
        raise InvalidInputError(
            f"it is not stated at which size {arch} was trained, and the images of {dataset.name} "
            f"are of {originals}; name it: --image-size N, and --resize shorter-crop:SIDE if a "
            "margin was cut off"
        )
    else:
        size, size_from = _SMALL, f"usual for images of {originals}"
    return _with_resize(
        size, size_from, resize, wanted=wanted, benchmark=benchmark, originals=originals
    )


def _reached(originals: OriginalSizes, arch: str, published: Pretrained | None) -> tuple[int, int]:
    """Return the largest usual size that the images reach and the network takes."""
    most = _MOST_FOREIGN if is_foreign(arch) else _MOST_OWN
    if published is not None and published.size is not None:
        most = published.size[0]
    sides = [side for side in (*_SIDES, most) if side <= min(most, originals.shorter_side)]
    side = max(sides, default=_SMALL[0])
    return side, side


def _with_resize(
    size: tuple[int, int],
    size_from: str,
    resize: str | None,
    *,
    wanted: Pretrained | None,
    benchmark: Benchmark | None,
    originals: OriginalSizes,
) -> Sizing:
    """Say how images get to their size: as what gave it has it, or by their form."""
    known = []
    if wanted is not None and wanted.resize is not None:
        known.append((wanted.size, wanted.resize, wanted.configuration))
    if benchmark is not None:
        known.append((benchmark.size, benchmark.resize, f"benchmark {benchmark.name}"))
    asked = None if resize is None else Resize.of(resize)
    if asked is not None:
        way, source = asked, "--resize"
    elif known:
        usual_size, usual, source = known[0]
        way = Resize.of(usual)
        # A side that belongs to another size means nothing at this one.
        if size != usual_size and way.side is not None:
            way = replace(way, side=None)
            source += f", without its margin ({usual}), which is for its own size"
    elif originals.are_large and not originals.are_square:
        way, source = Resize(crops=True), "usual for photographs; keeps the aspect ratio"
    else:
        way, source = Resize(crops=False), "usual for small or square images"
    filter_, filter_from = _filter(asked, wanted)
    how = str(replace(way, filter=filter_))
    Resizing(size, how)  # refuses what cannot be
    by_benchmark = benchmark is not None and size_from == f"benchmark {benchmark.name}"
    published = wanted is not None and source == filter_from == wanted.configuration
    return Sizing(size, how, size_from, source, filter_from, originals, by_benchmark, published)


def _filter(asked: Resize | None, wanted: Pretrained | None) -> tuple[str, str]:
    """Return the filter that resizes images, and what says so."""
    if asked is not None and asked.filter is not None:
        return asked.filter, "--resize"
    if wanted is None or not wanted.filter:
        return BILINEAR, "the usual one, as no other is stated"
    if wanted.filter in FILTERS:
        return wanted.filter, wanted.configuration
    return BILINEAR, (
        f"ood has no {wanted.filter}, which {wanted.configuration} has, so accuracy and "
        "scores differ slightly from published ones"
    )
