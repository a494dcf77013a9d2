"""The data sets known by name: what they are, where their files come from, how they are read."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from oodcli.data import splits
from oodcli.data.dataset import Dataset, joined, take
from oodcli.data.formats import builtin, cifar, collections, fractals, imagenet, mnist, svhn
from oodcli.data.formats.collections import Collection, open_collection
from oodcli.data.known import Download, KnownDataset, Read
from oodcli.errors import InvalidInputError, MissingArtifactError
from oodcli.store.outlier_source import FRACTALS
from oodcli.store.store import Store


def _embedded(read: Callable[[Store], Dataset]) -> Read:
    """Open what comes with the tool, from no folder."""
    return lambda _folder, store: read(store)


def _sample(read: Read, count: int) -> Read:
    """Open a fixed random sample of the images of a set."""

    def sampled(folder: Path, store: Store) -> Dataset:
        dataset = read(folder, store)
        part = dataset.ood_part
        chosen = take(part, collections.sample_rows(len(part), count))
        return replace(dataset, parts={"test": chosen})

    return sampled


def _svhn_per_digit(folder: Path, store: Store) -> Dataset:
    """Open the first 1,000 test images of each digit of SVHN."""
    dataset = svhn.open_svhn(folder, store)
    part = dataset.parts["test"]
    assert part.labels is not None  # every part of SVHN has labels
    return replace(dataset, parts={"test": take(part, svhn.first_of_each_digit(part.labels))})


def _mnist_whole(folder: Path, store: Store) -> Dataset:
    """Open both parts of MNIST as one, the test images first."""
    dataset = mnist.open_mnist(folder, store)
    if "train" not in dataset.parts:
        raise MissingArtifactError(
            f"the training images of mnist are not in {folder}; run: ood datasets download mnist"
        )
    test, train = dataset.parts["test"], dataset.parts["train"]
    return replace(dataset, parts={"test": joined(test, train)})


def _no_images(folder: Path, _store: Store) -> Dataset:
    raise InvalidInputError(f"{folder} holds lists, not images; name a data set")


_SCIKIT_LEARN_DIGITS = "CC BY 4.0 (UCI, Alpaydin and Kaynak 1998)"
_SCIKIT_LEARN_PHOTOGRAPHS = "CC BY 2.0 (flickr: danielbuechele, vultilion)"
_GENERATED = "none needed"
_CIFAR = "no explicit licence; cite Krizhevsky 2009"
_SVHN = "non-commercial use only (authors' page)"
_MNIST = "CC BY-SA 3.0, as commonly stated"
_PLACES = "non-commercial research and education"
_NOT_STATED = "none stated"
_IMAGENET = "ImageNet terms: non-commercial research"
_MOS = "http://pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset"


_IMAGENET_VAL = Download(
    "ILSVRC2012_img_val.tar",
    (),
    "29b22e2961454d5413ddabcf34fc5622",
    0,
    by_hand="https://image-net.org/download-images (after registration)",
)


def _drive(file: str, drive_id: str) -> Download:
    """Return a file that only a person can fetch, from Google Drive."""
    return Download(file, (), None, 0, by_hand=f"https://drive.google.com/uc?id={drive_id}")


_CIFAR10 = Download(
    cifar.CIFAR10.archive,
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    "c58f30108f718f92721af3b95e74349a",
    170_498_071,
)
_CIFAR100 = Download(
    cifar.CIFAR100.archive,
    ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    "eb9058c3a382ffc7106e4002c42a8d85",
    0,
)
_SVHN_TEST = Download(
    "test_32x32.mat",
    ("http://ufldl.stanford.edu/housenumbers/test_32x32.mat",),
    "eb5a983be6a315427106f1b164d9cef3",
    0,
)
_SVHN_TRAIN = Download(
    "train_32x32.mat",
    ("http://ufldl.stanford.edu/housenumbers/train_32x32.mat",),
    "e26dedcc434d2e4c54c9b2d4a06d8373",
    0,
)
_MNIST_SOURCES = tuple(
    Download(
        file,
        (
            f"https://ossci-datasets.s3.amazonaws.com/mnist/{file}",
            f"http://yann.lecun.com/exdb/mnist/{file}",
        ),
        md5,
        0,
    )
    for file, md5 in (
        ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    )
)
_PLACES_VAL = Download(
    "val_256.tar",
    ("http://data.csail.mit.edu/places/places365/val_256.tar",),
    "e27b17d8d44f4af9a78502beb927f808",
    0,
)
_PLACES_TEST = Download(
    "test_256.tar",
    ("http://data.csail.mit.edu/places/places365/test_256.tar",),
    "f532f6ad7b582262a2ec8009075e186b",
    0,
)
_CIFAR10_C = Download(
    "CIFAR-10-C.tar",
    ("https://zenodo.org/record/2535967/files/CIFAR-10-C.tar",),
    "56bf5dcef84df0e2308c6dcbcbbd8499",
    0,
)
_READ_PLACES_VAL = partial(
    open_collection, collection=Collection("places365", "val_256.tar", "val_256")
)
_READ_PLACES_TEST = partial(
    open_collection, collection=Collection("places365-test", "test_256.tar", "test_256")
)
_CIFAR10_C_FILES = Collection("cifar10-c", "CIFAR-10-C.tar", "CIFAR-10-C")


def _collection(
    name: str,
    title: str,
    count: int,
    licence: str,
    source: Download,
    *,
    folder: str = "",
) -> KnownDataset:
    """Return a set that is all images of one archive."""
    return KnownDataset(
        name=name,
        title=title,
        role="ood",
        counts={"test": count},
        licence=licence,
        read=partial(open_collection, collection=Collection(name, source.file, folder)),
        sources=(source,),
        unpacked=(folder,) if folder else (),
    )


_EMBEDDED_SETS = (
    KnownDataset(
        name="digits",
        title="handwritten digits 0 to 5, 8x8 pixels",
        role="id",
        counts={"train": 758, "val": 108, "test": 217},
        licence=_SCIKIT_LEARN_DIGITS,
        read=_embedded(builtin.open_digits),
    ),
    KnownDataset(
        name="digits-6-9",
        title="handwritten digits 6 to 9, 8x8 pixels",
        role="ood",
        counts={"test": 714},
        licence=_SCIKIT_LEARN_DIGITS,
        read=_embedded(builtin.open_other_digits),
    ),
    KnownDataset(
        name="photographs",
        title="crops of two colour photographs, 32x32 pixels",
        role="ood",
        counts={"test": 520},
        licence=_SCIKIT_LEARN_PHOTOGRAPHS,
        read=_embedded(builtin.open_photographs),
    ),
    KnownDataset(
        name="photographs-grey",
        title="crops of two photographs without colour, 32x32 pixels",
        role="ood",
        counts={"test": 520},
        licence=_SCIKIT_LEARN_PHOTOGRAPHS,
        read=_embedded(builtin.open_grey_photographs),
    ),
    KnownDataset(
        name="gaussian-noise",
        title="values from N(0.5, 1) clipped to [0, 1], 32x32 pixels",
        role="ood",
        counts={"test": 1000},
        licence=_GENERATED,
        read=_embedded(builtin.open_gaussian_noise),
    ),
    KnownDataset(
        name=FRACTALS,
        title=f"fractals of random iterated function systems, {fractals.SIDE}x{fractals.SIDE} "
        "pixels",
        role="ood",
        counts={"test": fractals.COUNT},
        licence=_GENERATED,
        read=_embedded(fractals.open_fractals),
    ),
    KnownDataset(
        name="uniform-noise",
        title="values uniform on [0, 1], 32x32 pixels",
        role="ood",
        counts={"test": 1000},
        licence=_GENERATED,
        read=_embedded(builtin.open_uniform_noise),
    ),
)
_SMALL_SETS = (
    KnownDataset(
        name="cifar10",
        title="CIFAR-10, objects of 10 classes, 32x32 pixels",
        role="id",
        counts={"train": 50_000, "test": 10_000},
        licence=_CIFAR,
        read=partial(cifar.open_stored, release=cifar.CIFAR10),
        sources=(_CIFAR10,),
        unpacked=(cifar.CIFAR10.folder,),
    ),
    KnownDataset(
        name="cifar100",
        title="CIFAR-100, objects of 100 classes, 32x32 pixels",
        role="id",
        counts={"train": 50_000, "test": 10_000},
        licence=_CIFAR,
        read=partial(cifar.open_stored, release=cifar.CIFAR100),
        sources=(_CIFAR100,),
        unpacked=(cifar.CIFAR100.folder,),
    ),
    KnownDataset(
        name="svhn",
        title="SVHN, test part: digits of house numbers, 32x32 pixels",
        role="ood",
        counts={"test": 26_032},
        licence=_SVHN,
        read=svhn.open_svhn,
        sources=(_SVHN_TEST,),
    ),
    KnownDataset(
        name="svhn-train",
        title="SVHN with its training part, to train on",
        role="id",
        counts={"train": 73_257, "test": 26_032},
        licence=_SVHN,
        read=svhn.open_svhn,
        sources=(_SVHN_TRAIN, _SVHN_TEST),
        home="svhn",
    ),
    KnownDataset(
        name="svhn-10000",
        title="SVHN, the first 1,000 test images of each digit",
        role="ood",
        counts={"test": 10_000},
        licence=_SVHN,
        read=_svhn_per_digit,
        sources=(_SVHN_TEST,),
        home="svhn",
    ),
    KnownDataset(
        name="svhn-lossless",
        title="SVHN, test part; OpenOOD's copy is re-coded as JPEG",
        role="ood",
        counts={"test": 26_032},
        licence=_SVHN,
        read=svhn.open_svhn,
        sources=(_SVHN_TEST,),
        home="svhn",
    ),
    KnownDataset(
        name="mnist",
        title="MNIST, handwritten digits, 28x28 pixels",
        role="id",
        counts={"train": 60_000, "test": 10_000},
        licence=_MNIST,
        read=mnist.open_mnist,
        sources=_MNIST_SOURCES,
    ),
    KnownDataset(
        name="mnist-lossless",
        title="MNIST, both parts; OpenOOD's copy is re-coded as JPEG",
        role="ood",
        counts={"test": 70_000},
        licence=_MNIST,
        read=_mnist_whole,
        sources=_MNIST_SOURCES,
        home="mnist",
    ),
    KnownDataset(
        name="tiny-imagenet",
        title="Tiny ImageNet, 200 classes, 64x64 pixels",
        role="id",
        counts={"train": 100_000, "val": 10_000},
        licence=_IMAGENET,
        read=partial(
            collections.open_tiny_imagenet,
            collection=Collection("tiny-imagenet", "tiny-imagenet-200.zip", "tiny-imagenet-200"),
        ),
        sources=(
            Download(
                "tiny-imagenet-200.zip",
                ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
                "90528d7ca1a48142e341f4ef8d21d0de",
                0,
            ),
        ),
        unpacked=("tiny-imagenet-200",),
    ),
    KnownDataset(
        name="cifar10-c",
        title="CIFAR-10-C: the test images in 19 corruptions, 5 severities",
        role="ood",
        counts={"test": 950_000},
        licence="CC BY 4.0",
        read=partial(collections.open_cifar10_c, collection=_CIFAR10_C_FILES),
        sources=(_CIFAR10_C,),
        unpacked=("CIFAR-10-C",),
    ),
    KnownDataset(
        name="cifar10-c-sample",
        title="CIFAR-10-C, each test image in one corruption, a sample of our own",
        role="ood",
        counts={"test": 10_000},
        licence="CC BY 4.0",
        read=partial(collections.open_cifar10_c_sample, collection=_CIFAR10_C_FILES),
        sources=(_CIFAR10_C,),
        home="cifar10-c",
        unpacked=("CIFAR-10-C",),
    ),
)
_PHOTOGRAPH_SETS = (
    _collection(
        "textures",
        "DTD r1.0.1, all 47 classes of textures",
        5_640,
        "research only (VGG page)",
        Download(
            "dtd-r1.0.1.tar.gz",
            ("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",),
            "fff73e5086ae6bdbea199a49dfb8a4c1",
            0,
        ),
        folder="dtd/images",
    ),
    KnownDataset(
        name="places365",
        title="Places365, validation part, 256 pixels",
        role="ood",
        counts={"test": 36_500},
        licence=_PLACES,
        read=_READ_PLACES_VAL,
        sources=(_PLACES_VAL,),
        unpacked=("val_256",),
    ),
    KnownDataset(
        name="places365-sample",
        title="Places365, 10,000 validation images, a sample of our own",
        role="ood",
        counts={"test": 10_000},
        licence=_PLACES,
        read=_sample(_READ_PLACES_VAL, 10_000),
        sources=(_PLACES_VAL,),
        home="places365",
        unpacked=("val_256",),
    ),
    KnownDataset(
        name="places365-test",
        title="Places365, test part, 256 pixels",
        role="ood",
        counts={"test": 328_500},
        licence=_PLACES,
        read=_READ_PLACES_TEST,
        sources=(_PLACES_TEST,),
        unpacked=("test_256",),
    ),
    KnownDataset(
        name="places365-test-sample",
        title="Places365, 10,000 test images, a sample of our own",
        role="ood",
        counts={"test": 10_000},
        licence=_PLACES,
        read=_sample(_READ_PLACES_TEST, 10_000),
        sources=(_PLACES_TEST,),
        home="places365-test",
        unpacked=("test_256",),
    ),
    _collection(
        "lsun-crop",
        "LSUN, crops, as ODIN has them",
        10_000,
        _NOT_STATED,
        Download(
            "LSUN.tar.gz",
            (
                "https://www.dropbox.com/s/raw/fhtsw1m3qxlwj6h/LSUN.tar.gz",
                "https://www.dropbox.com/s/fhtsw1m3qxlwj6h/LSUN.tar.gz?dl=1",
            ),
            "458a0a0ab8e5f1cb4516d7400568e460",
            0,
        ),
        folder="LSUN/test",
    ),
    _collection(
        "lsun-resize",
        "LSUN, resized to 32x32 pixels, as ODIN has them",
        10_000,
        _NOT_STATED,
        Download(
            "LSUN_resize.tar.gz",
            (
                "https://www.dropbox.com/s/raw/moqh2wh8696c3yl/LSUN_resize.tar.gz",
                "https://www.dropbox.com/s/moqh2wh8696c3yl/LSUN_resize.tar.gz?dl=1",
            ),
            "278b7b31c8cb7e804a1465a8ce03a2dc",
            0,
        ),
        folder="LSUN_resize/LSUN_resize",
    ),
    _collection(
        "isun",
        "iSUN, 32x32 pixels, as ODIN has them",
        8_925,
        _NOT_STATED,
        Download(
            "iSUN.tar.gz",
            (
                "https://www.dropbox.com/s/raw/ssz7qxfqae0cca5/iSUN.tar.gz",
                "https://www.dropbox.com/s/ssz7qxfqae0cca5/iSUN.tar.gz?dl=1",
            ),
            "be77b0f2c26fda898afac5f99645ee70",
            0,
        ),
        folder="iSUN/iSUN_patches",
    ),
    _collection(
        "imagenet-resize",
        "Tiny ImageNet, resized to 32x32 pixels, as ODIN has them",
        10_000,
        _IMAGENET,
        Download(
            "Imagenet_resize.tar.gz",
            (
                "https://www.dropbox.com/s/raw/kp3my3412u5k9rl/Imagenet_resize.tar.gz",
                "https://www.dropbox.com/s/kp3my3412u5k9rl/Imagenet_resize.tar.gz?dl=1",
            ),
            "0f9ff11d45babf2eff5fe12281d1ac31",
            0,
        ),
        folder="Imagenet_resize/Imagenet_resize",
    ),
    KnownDataset(
        name="pixmix",
        title="PixMix's mixing set: fractals and feature visualisations",
        role="ood",
        counts={},
        licence=_NOT_STATED,
        read=partial(
            open_collection,
            collection=Collection("pixmix", "fractals_and_fvis.tar", "fractals_and_fvis"),
        ),
        sources=(
            Download(
                "fractals_and_fvis.tar",
                (),
                "3619fb7e2c76130749d97913fdd3ab27",
                0,
                by_hand="https://drive.google.com/uc?id=1qC2gIUx9ARU7zhgI4IwGD3YcFhm8J4cA",
            ),
        ),
        unpacked=("fractals_and_fvis",),
    ),
    _collection(
        "lsun-fix",
        "LSUN, resized without artefacts, as CSI has them",
        10_000,
        _NOT_STATED,
        _drive("LSUN_fix.zip", "1KVWj9xpHfVwGcErH5huVujk9snhEGOxE"),
    ),
    _collection(
        "imagenet-fix",
        "ImageNet, resized without artefacts, as CSI has them",
        10_000,
        _IMAGENET,
        _drive("Imagenet_fix.zip", "1sO_-noq10mmziB1ECDyNhD5T4u5otyKA"),
    ),
)
_IMAGENET_SETS = (
    KnownDataset(
        name="imagenet",
        title="ImageNet-1K: train and val as they lie on disks, or the validation images alone",
        role="id",
        counts={"train": 1_281_167, "val": 50_000},
        licence=_IMAGENET,
        read=partial(
            imagenet.open_imagenet,
            collection=Collection("imagenet", _IMAGENET_VAL.file, "val"),
        ),
        sources=(_IMAGENET_VAL,),
        unpacked=("train", "val"),
    ),
    KnownDataset(
        name="imagenet200",
        title="ImageNet-200: the classes of ImageNet-R, train and val as ImageNet-1K",
        role="id",
        counts={"val": 10_000},
        licence=_IMAGENET,
        read=partial(
            imagenet.open_imagenet,
            collection=Collection("imagenet200", _IMAGENET_VAL.file, "val"),
        ),
        sources=(_IMAGENET_VAL,),
        unpacked=("train", "val"),
    ),
    _collection(
        "inaturalist",
        "plants of iNaturalist, chosen by MOS",
        10_000,
        "iNaturalist 2017 terms, non-commercial",
        Download(
            "iNaturalist.tar.gz",
            (f"{_MOS}/iNaturalist.tar.gz",),
            "5be6ea8aa027d7b631916427b32cb335",
            0,
        ),
        folder="iNaturalist/images",
    ),
    _collection(
        "sun",
        "scenes of SUN, chosen by MOS",
        10_000,
        "research",
        Download("SUN.tar.gz", (f"{_MOS}/SUN.tar.gz",), "8469c3ada62211477954ec1be53b12d0", 0),
        folder="SUN/images",
    ),
    _collection(
        "places",
        "scenes of Places365, chosen by MOS",
        10_000,
        "research",
        Download(
            "Places.tar.gz", (f"{_MOS}/Places.tar.gz",), "b5cb5eba2754ae2a28beea8718db699a", 0
        ),
        folder="Places/images",
    ),
    _collection(
        "ninco",
        "NINCO, 64 OOD classes without ImageNet objects",
        5_879,
        "CC BY 4.0",
        Download(
            "NINCO_all.tar.gz",
            ("https://zenodo.org/record/8013288/files/NINCO_all.tar.gz",),
            "b9ffae324363cd900a81ce3c367cd834",
            0,
        ),
        folder="NINCO/NINCO_OOD_classes",
    ),
    _collection(
        "imagenet-r",
        "ImageNet-R, renditions of 200 classes",
        30_000,
        "MIT (repository); images as ImageNet",
        Download(
            "imagenet-r.tar",
            ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",),
            "a61312130a589d0ca1a8fca1f2bd3337",
            0,
        ),
        folder="imagenet-r",
    ),
    _collection(
        "ssb-hard",
        "SSB-hard, classes of ImageNet-21K near to ImageNet",
        49_000,
        _IMAGENET,
        _drive("ssb_hard.zip", "1PzkA-WGG8Z18h0ooL_pDdz9cO-DCIouE"),
    ),
    _collection(
        "openimage-o",
        "OpenImage-O, natural images of other classes",
        17_632,
        "CC BY 2.0 each",
        _drive("openimage_o.zip", "1VUFXnB_z70uHfdgJG2E_pjYOcEgqM7tE"),
    ),
    _collection(
        "imagenet-v2",
        "ImageNetV2, OpenOOD's copy",
        10_000,
        "MIT (repository); images as ImageNet",
        _drive("imagenet_v2.zip", "1akg2IiE22HcbvTBpwXQoD7tgfPCdkoho"),
    ),
    _collection(
        "imagenet-c",
        "ImageNet-C, OpenOOD's copy",
        10_000,
        "CC BY 4.0",
        _drive("imagenet_c.zip", "1JeXL9YH4BO8gCJ631c5BHbaSsl-lekHt"),
    ),
    KnownDataset(
        name=splits.LISTS_SET,
        title="lists of OpenOOD v1.5, for its ImageNet benchmarks; no images",
        role="ood",
        counts={},
        licence=_NOT_STATED,
        read=_no_images,
        sources=(_drive(splits.ARCHIVE, "1lI1j0_fDDvjIt9JlWAw09X8ks-yrR_H1"),),
        unpacked=(splits.FOLDER,),
    ),
)

DATASETS: Mapping[str, KnownDataset] = MappingProxyType(
    {
        known.name: known
        for known in (*_EMBEDDED_SETS, *_SMALL_SETS, *_PHOTOGRAPH_SETS, *_IMAGENET_SETS)
    }
)
