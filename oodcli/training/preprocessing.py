"""The image size of a network, the way images are resized to it, and the source of both.

The size comes from an option, from the network, from the configuration of published weights, or
from the benchmark of a published data set; otherwise from the images themselves. It never depends
on the name of a folder.
"""

from dataclasses import dataclass, replace
from typing import Literal

from oodcli.data.benchmarks import Benchmark, benchmark_of
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.originals import OriginalSizes
from oodcli.data.run_data import check_size_options
from oodcli.errors import InvalidInputError
from oodcli.models import Pretrained, builder_side_of, is_external
from oodcli.resizing import BILINEAR, FILTERS, Resize

_SMALL = (32, 32)
# Default sides for training, in pixels, limited by the size of the images; a network with a stem
# for small images costs 50 times as much at 224 pixels as at 32.
_SIDES = (32, 64, 128, 224)
_LARGEST_BUILT_IN = 64
_LARGEST_THIRD_PARTY = 224
_BY_SIZE = "from the size of the images; to change it: --image-size N"


@dataclass(frozen=True)
class Sizing:
    """The input size of a network, and how images are resized to it.

    Parameters
    ----------
    size
        Height and width in pixels.
    resize
        Text of ``--resize``; see :class:`oodcli.store.runs.Preprocess`.
    size_from, resize_from, filter_from
        Source of size, resize and filter, for a message.
    originals
        Sizes of the original images.
    by_benchmark
        Whether the size is that of the benchmark of a published data set.
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
        """Describe how the user's own images are resized; empty if their size does not change.

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
        """Size, resize and filter with their sources, one line each."""
        height, width = self.size
        way = Resize.of(self.resize)
        kept = self.originals.kept(Resizing(self.size, self.resize))
        return (
            f"size {height} x {width}: {self.size_from}",
            f"resize {_in_words(self.size, way)}: {self.resize_from}"
            + (f"; {kept}" if kept else ""),
            f"filter {way.used}: {self.filter_from}",
            *((_DRAFT,) if way.draft else ()),
        )


_DRAFT = (
    "large JPEG files are decoded at 1/2, 1/4 or 1/8 of their size: --jpeg-draft; accuracy and "
    "scores differ slightly"
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
    side: int | None = None,
    jpeg_draft: bool = False,
) -> Sizing:
    """Return the image size for training a network, or for using an imported one.

    Parameters
    ----------
    purpose
        Whether the network will be trained on the data, or is imported and was trained on it.
    dataset
        The data.
    arch
        The architecture, as text.
    published
        Preprocessing of published weights of the network; None if no weights are published.
    certain
        Whether the network certainly uses these weights: training starts from them, an import
        requested them, or an imported network has their number of classes.
    image_size, resize
        Options of the user; None if not given.
    side
        Height and width in pixels that the file of the network fixes; None if it fixes none.
    jpeg_draft
        Whether JPEG files are decoded at a reduced size, as ``draft`` in ``resize`` has it.

    Raises
    ------
    InvalidInputError
        If the size for an import is unknown and the images are far larger than 32 x 32; or if an
        option is invalid.

    Notes
    -----
    If nothing else determines the size for training, it is the largest of 32, 64, 128 and 224
    that the median shorter side of the images reaches. For the networks of this package, which do
    not downsample small images in their first blocks, it is at most 64; for others at most the size
    of their published weights, or 224 if there are none.
    """
    check_size_options(image_size, resize)
    first = "train" if purpose == "training" else next(iter(dataset.parts))
    originals = OriginalSizes.of(dataset.parts[first].source)
    fixed = builder_side_of(arch) if side is None else side
    builder = f"the network that {arch} builds" if side is None else "the file of the network"
    benchmark = benchmark_of(dataset.spec)
    # A network that was fine-tuned on other classes probably keeps the preprocessing of its
    # published weights; a network for small images does not.
    likely = purpose == "import" and benchmark is None and originals.are_large
    wanted = published if certain or likely else None
    if image_size is not None:
        size, size_from = (image_size, image_size), "--image-size"
    elif fixed is not None:
        size, size_from = (fixed, fixed), builder
    elif wanted is not None and wanted.size is not None:
        size, size_from = wanted.size, wanted.configuration
    elif benchmark is not None:
        size, size_from = benchmark.size, f"benchmark {benchmark.name}"
    elif purpose == "training":
        size, size_from = _reached(originals, arch, published), _BY_SIZE
    elif originals.are_large:
        raise InvalidInputError(
            f"the image size that {arch or 'the network'} was trained with is unknown, and the "
            f"images of {dataset.name} are of {originals}; specify it: --image-size N, and "
            "--resize shorter-crop:SIDE if images were cropped after resizing"
        )
    else:
        size, size_from = _SMALL, f"default for images of {originals}"
    return _with_resize(
        size,
        size_from,
        resize,
        wanted=wanted,
        benchmark=benchmark,
        originals=originals,
        jpeg_draft=jpeg_draft,
    )


def _reached(originals: OriginalSizes, arch: str, published: Pretrained | None) -> tuple[int, int]:
    """Return the largest default size that the images reach and that suits the network."""
    largest = _LARGEST_THIRD_PARTY if is_external(arch) else _LARGEST_BUILT_IN
    if published is not None and published.size is not None:
        largest = published.size[0]
    sides = [side for side in (*_SIDES, largest) if side <= min(largest, originals.shorter_side)]
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
    jpeg_draft: bool,
) -> Sizing:
    """Add the way of resizing: of the option, the weights or the benchmark, else by the images."""
    known = []
    if wanted is not None and wanted.resize is not None:
        known.append((wanted.size, wanted.resize, wanted.configuration))
    if benchmark is not None:
        known.append((benchmark.size, benchmark.resize, f"benchmark {benchmark.name}"))
    asked = None if resize is None else Resize.of(resize)
    if asked is not None:
        way, source = asked, "--resize"
    elif known:
        known_size, text, source = known[0]
        way = Resize.of(text)
        # The side before the crop belongs to one image size, and is meaningless for another.
        if size != known_size and way.side is not None:
            way = replace(way, side=None)
            source += f", without the side of {text}, which applies to its own image size only"
    elif originals.are_large and not originals.are_square:
        way, source = Resize(crops=True), "default for photographs; keeps the aspect ratio"
    else:
        way, source = Resize(crops=False), "default for small or square images"
    filter_, filter_from = _filter(asked, wanted)
    draft = jpeg_draft or way.draft
    how = str(replace(way, filter=filter_, draft=draft))
    Resizing(size, how)  # refuses invalid combinations
    by_benchmark = benchmark is not None and size_from == f"benchmark {benchmark.name}"
    published = wanted is not None and source == filter_from == wanted.configuration and not draft
    return Sizing(size, how, size_from, source, filter_from, originals, by_benchmark, published)


def _filter(asked: Resize | None, wanted: Pretrained | None) -> tuple[str, str]:
    """Return the resampling filter, and its source."""
    if asked is not None and asked.filter is not None:
        return asked.filter, "--resize"
    if wanted is None or not wanted.filter:
        return BILINEAR, "the default, because no other is specified"
    if wanted.filter in FILTERS:
        return wanted.filter, wanted.configuration
    return BILINEAR, (
        f"ood does not support the filter {wanted.filter} of {wanted.configuration}, so accuracy "
        "and scores differ slightly from published ones"
    )
