"""The layouts of tables in papers: columns, order, and names of sets and methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from oodcli.cli.options import Layout, Per


@dataclass(frozen=True)
class Paper:
    """The table layout of a paper: columns, order, and names of sets and methods."""

    columns: tuple[str, ...]
    per: Per
    sets: Mapping[str, str]
    groups: Mapping[str, str]
    methods: Mapping[str, str]
    by_arch: bool


_SHAPERS = {"react": "ReAct", "dice": "DICE", "scale": "SCALE", "ash-b": "ASH"}
_COMMON_NAMES = {
    # Papers combine these with the energy score; score files of other programs omit "+energy".
    **_SHAPERS,
    **{f"{name}+energy": title for name, title in _SHAPERS.items()},
    "msp": "MSP",
    "odin": "ODIN",
    "energy": "Energy",
    "maxlogit": "MaxLogit",
    "knn": "KNN",
    "gen": "GEN",
    "rmds": "RMDS",
    "mds": "MDS",
    "vim": "ViM",
    "t2fnorm": "T2FNorm",
    "mode": "MODE",
    "csd": "MODE",
    "featurenorm": "FeatureNorm",
    "norm+msp": "MSP + norm",
    "norm+odin": "ODIN + norm",
    "norm+energy": "Energy + norm",
}
PAPERS: Mapping[Layout, Paper] = MappingProxyType(
    {
        Layout.FEATURENORM: Paper(
            columns=("fpr95", "auroc"),
            per=Per.BOTH,
            sets={
                "svhn": "SVHN",
                "textures": "Textures",
                "lsun-crop": "LSUN-C",
                "lsun-resize": "LSUN-R",
                "isun": "iSUN",
                "places365-sample": "Places365",
                "inaturalist": "iNaturalist",
                "sun": "SUN",
                "places": "Places",
            },
            groups={"ood": "Average", "all": "Average"},
            methods=_COMMON_NAMES,
            by_arch=True,
        ),
        Layout.MODE: Paper(
            columns=("fpr95", "auroc"),
            per=Per.BOTH,
            sets={
                "svhn-10000": "SVHN",
                "places365-test-sample": "Places365",
                "lsun-crop": "LSUN",
                "isun": "iSUN",
                "inaturalist": "iNaturalist",
                "sun": "SUN",
                "places": "Places",
                "textures": "Texture",
            },
            groups={"ood": "Average", "all": "Average"},
            methods=_COMMON_NAMES,
            by_arch=False,
        ),
        Layout.OPENOOD: Paper(
            columns=("auroc", "accuracy"),
            per=Per.GROUP,
            sets={
                "cifar10": "CIFAR-10",
                "cifar100": "CIFAR-100",
                "tiny-imagenet": "TIN",
                "ssb-hard": "SSB-hard",
                "ninco": "NINCO",
                "mnist-lossless": "MNIST",
                "svhn-lossless": "SVHN",
                "inaturalist": "iNaturalist",
                "textures": "Textures",
                "places365": "Places365",
                "openimage-o": "OpenImage-O",
            },
            groups={
                "near": "Near-OOD",
                "far": "Far-OOD",
                "ood": "OOD",
                "fs-near": "Near-OOD (full spectrum)",
                "fs-far": "Far-OOD (full spectrum)",
                "fs-ood": "OOD (full spectrum)",
            },
            methods={**_COMMON_NAMES, "energy": "EBO", "maxlogit": "MLS", "vim": "VIM"},
            by_arch=False,
        ),
    }
)
