"""Benchmarks: which data sets are scored together, at which size, and by which convention."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Benchmark:
    """In-distribution images and the OOD sets to separate them from.

    Parameters
    ----------
    name
        Its key.
    title
        What it is, in a few words.
    id_set
        Name of the in-distribution data set; None for the user's own.
    near, far, ood
        Names of the OOD data sets: close to the classes, far from them, or not divided.
    shifted
        Names of covariate-shifted ID sets; with them there are full-spectrum results too.
    ood_val
        Name of the data set with OOD images to choose settings on, or empty.
    convention
        Name of the metric convention.
    size
        Height and width to which every image is resized.
    resize
        How an image of another size gets there, as `oodcli.data.decoding.prepare.prepare` takes it.
    as_weights
        Whether its published numbers of a network with published weights are of images that are
        resized as the configuration of the weights has it, and not by ``resize``.
    id_val_list, id_test_list, ood_val_list
        Lists of OpenOOD that name the images of these parts; empty for all images.
    lists
        Lists of OpenOOD that name the images of OOD and shifted sets, by data set.
    needs
        Names of other data sets that must be present.
    """

    # Flat: an entry of the table names only what it has, and most have no lists.
    name: str
    title: str
    id_set: str | None
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    ood: tuple[str, ...] = ()
    shifted: tuple[str, ...] = ()
    ood_val: str = ""
    convention: str = "neutral"
    size: tuple[int, int] = (32, 32)
    resize: str = "exact"
    as_weights: bool = False
    id_val_list: str = ""
    id_test_list: str = ""
    ood_val_list: str = ""
    lists: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Groups that have OOD sets, in the order of a table."""
        groups = {"near": self.near, "far": self.far, "ood": self.ood}
        return {name: names for name, names in groups.items() if names}

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all required data sets, in-distribution first, without repetitions."""
        ood = (name for names in self.groups.values() for name in names)
        first = [self.id_set] if self.id_set else []
        last = [self.ood_val] if self.ood_val else []
        return tuple(dict.fromkeys((*first, *self.needs, *ood, *self.shifted, *last)))

    def without_lists(self) -> "Benchmark":
        """Return what can be scored without the published lists of its images, as no benchmark.

        ID test images and OOD sets are whole, and there are no covariate-shifted ID sets, whose
        labels the lists give. As results differ from published ones, it has no name.
        """
        whole: Mapping[str, str] = {}
        return replace(
            self, name="", lists=whole, id_val_list="", id_test_list="", ood_val_list="",
            ood_val="", shifted=(), needs=(),
        )  # fmt: skip


def own_benchmark(*, grey: bool, size: tuple[int, int] = (32, 32)) -> Benchmark:
    """Return OOD sets that need no download, for in-distribution images of the user's own.

    Parameters
    ----------
    grey
        Whether the images have no colour; colour alone would give colour photographs away.
    size
        Height and width to which every image is resized.
    """
    photographs = "photographs-grey" if grey else "photographs"
    return Benchmark(
        name="own",
        title="your images against photographs and noise",
        id_set=None,
        ood=(photographs, "gaussian-noise", "uniform-noise"),
        size=size,
    )


_MODE_SETS = ("svhn-10000", "places365-test-sample", "lsun-crop", "isun", "textures")
_KNN_EXTRAS = ("lsun-fix", "imagenet-fix", "imagenet-resize")
_IMAGENET_SIZE = (224, 224)
_IMAGENET_RESIZE = "shorter-crop:256"


def _openood_cifar(name: str, other: str) -> Benchmark:
    return Benchmark(
        name=f"openood-{name}",
        title=f"OpenOOD v1.5, {name}",
        id_set=name,
        near=(other, "tiny-imagenet"),
        far=("mnist-lossless", "svhn-lossless", "textures", "places365"),
        shifted=("cifar10-c-sample",) if name == "cifar10" else (),
        ood_val="tiny-imagenet",
        convention="openood",
        resize="shorter-crop",
        id_val_list=f"{name}/val_{name}",
        id_test_list=f"{name}/test_{name}",
        ood_val_list=f"{name}/val_tin",
        lists=MappingProxyType(
            {
                other: f"{name}/test_{other}",
                "tiny-imagenet": f"{name}/test_tin",
                "mnist-lossless": f"{name}/test_mnist",
                "svhn-lossless": f"{name}/test_svhn",
                "textures": f"{name}/test_texture",
                "places365": f"{name}/test_places365",
            }
        ),
    )


def _openood_imagenet(name: str, id_set: str) -> Benchmark:
    return Benchmark(
        name=f"openood-{name}",
        title=f"OpenOOD v1.5, {name}",
        id_set=id_set,
        near=("ssb-hard", "ninco"),
        far=("inaturalist", "textures", "openimage-o"),
        shifted=("imagenet-v2", "imagenet-c", "imagenet-r"),
        ood_val="openimage-o",
        convention="openood",
        size=_IMAGENET_SIZE,
        resize=_IMAGENET_RESIZE,
        # Its script for ImageNet takes the transform of torchvision's weights; that of ImageNet-200
        # has networks of its own alone.
        as_weights=name == "imagenet",
        id_val_list=f"{name}/val_{name}",
        id_test_list=f"{name}/test_{name}",
        ood_val_list=f"{name}/val_openimage_o",
        lists=MappingProxyType(
            {
                "ssb-hard": f"{name}/test_ssb_hard",
                "ninco": f"{name}/test_ninco",
                "inaturalist": f"{name}/test_inaturalist",
                "textures": f"{name}/test_textures",
                "openimage-o": f"{name}/test_openimage_o",
                "imagenet-v2": f"{name}/test_{name}_v2",
                "imagenet-c": f"{name}/test_{name}_c",
                "imagenet-r": f"{name}/test_{name}_r",
            }
        ),
        needs=("openood-lists",),
    )


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        benchmark.name: benchmark
        for benchmark in (
            Benchmark(
                name="digits",
                title="digits 0 to 5 against other digits, photographs and noise",
                id_set="digits",
                near=("digits-6-9",),
                far=("photographs-grey", "gaussian-noise", "uniform-noise"),
            ),
            Benchmark(
                name="featurenorm-cifar10",
                title="FeatureNorm (CVPR 2023), CIFAR-10",
                id_set="cifar10",
                ood=("svhn", "textures", "lsun-crop", "lsun-resize", "isun", "places365-sample"),
                convention="featurenorm",
            ),
            Benchmark(
                name="mode-cifar10",
                title="MODE, CIFAR-10",
                id_set="cifar10",
                ood=_MODE_SETS,
                convention="knn",
            ),
            Benchmark(
                name="mode-cifar100",
                title="MODE, CIFAR-100",
                id_set="cifar100",
                ood=_MODE_SETS,
                convention="knn",
            ),
            Benchmark(
                name="knn-cifar10",
                title="MODE's sets and the further ones of KNN, CIFAR-10",
                id_set="cifar10",
                ood=(*_MODE_SETS, *_KNN_EXTRAS, "cifar100"),
                convention="knn",
            ),
            Benchmark(
                name="knn-cifar100",
                title="MODE's sets and the further ones of KNN, CIFAR-100",
                id_set="cifar100",
                ood=(*_MODE_SETS, *_KNN_EXTRAS, "cifar10"),
                convention="knn",
            ),
            Benchmark(
                name="mos-imagenet",
                title="the four sets of MOS, ImageNet-1K",
                id_set="imagenet",
                ood=("inaturalist", "sun", "places", "textures"),
                convention="knn",
                size=_IMAGENET_SIZE,
                resize=_IMAGENET_RESIZE,
            ),
            _openood_cifar("cifar10", "cifar100"),
            _openood_cifar("cifar100", "cifar10"),
            _openood_imagenet("imagenet200", "imagenet200"),
            _openood_imagenet("imagenet", "imagenet"),
        )
    }
)


def given_name(spec: str) -> str:
    """Return the name that data were given, which says what they are; "" if they were given none.

    What a folder or a file is called says nothing: a folder ``digits`` may hold any images.

    Parameters
    ----------
    spec
        How data are opened: a known or registered name, ``NAME=PATH``, or an absolute path.

    Examples
    --------
    >>> [given_name(spec) for spec in ("cifar10", "cifar10=/data/c10", "/data/cifar10")]
    ['cifar10', 'cifar10', '']
    """
    name = spec.partition("=")[0]
    return "" if "/" in name or "\\" in name else name


def benchmark_of(spec: str) -> Benchmark | None:
    """Return the benchmark that data are scored on where none is named, or None.

    Parameters
    ----------
    spec
        How the in-distribution data are opened; see :func:`given_name`.
    """
    name = given_name(spec)
    return next((b for b in BENCHMARKS.values() if b.id_set == name), None)
