"""Data sets: where they are, how their images are read, and what is scored together.

Everything here is NumPy and Pillow. A data set is opened by `open_dataset`, its parts become images
of one size through `prepare`, and a `View` may shuffle them.
"""

from oodcli.data.benchmarks import BENCHMARKS, Benchmark, own_benchmark
from oodcli.data.dataset import Dataset
from oodcli.data.decoding.prepare import places_of, prepare
from oodcli.data.download import download
from oodcli.data.known import Download, KnownDataset
from oodcli.data.opening import open_dataset
from oodcli.data.registry import DATASETS
from oodcli.data.views import View, jigsaw

__all__ = [
    "BENCHMARKS",
    "DATASETS",
    "Benchmark",
    "Dataset",
    "Download",
    "KnownDataset",
    "View",
    "download",
    "jigsaw",
    "open_dataset",
    "own_benchmark",
    "places_of",
    "prepare",
]
