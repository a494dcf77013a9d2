"""``oodcli.Screener`` in Ray and in Spark, on real images: the verdicts of ``ood predict``.

::

    python tests/bench/distributed.py IMAGES --detector knn.safetensors [--engine onnx] [--with ray]

Needs ``ray[data]``, and ``pyspark``, ``pandas`` and ``pyarrow`` with Java. Both run on this machine
with two workers. The script ends with an error if a verdict or a score differs from that of
``Detector.predict`` by more than rounding, since batches are divided in another way.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import oodcli

Rows = Mapping[str, tuple[Any, ...]]


def with_ray(files: list[str], detector: str, engine: str) -> Rows:
    """Return class, score, verdict and error of every file by its path, judged in Ray."""
    import ray

    ray.init(num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False)
    images = ray.data.read_binary_files(files, include_paths=True)
    verdicts = images.map_batches(
        oodcli.Screener,
        fn_constructor_args=[detector],
        fn_constructor_kwargs={"engine": engine, "device": "cpu"},
        batch_size=64,
        concurrency=1,
    )
    rows = {
        row["path"]: (row["class"], row["score"], row["verdict"], row["error"])
        for row in verdicts.take_all()
    }
    ray.shutdown()
    return rows


def with_spark(files: list[str], detector: str, engine: str) -> Rows:
    """Return class, score, verdict and error of every file by its path, judged in Spark."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

    spark = (
        SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    judged = predict_batch_udf(
        lambda: oodcli.Screener(detector, engine=engine, device="cpu"),
        return_type=StructType.fromDDL(oodcli.Screener.SCHEMA),
        batch_size=64,
    )
    images = spark.createDataFrame(
        [(file, bytearray(Path(file).read_bytes())) for file in files],
        "path string, content binary",
    )
    found = images.repartition(2).select("path", judged("content").alias("judged"))
    rows = {
        row["path"]: tuple(row["judged"][name] for name in ("class", "score", "verdict", "error"))
        for row in found.collect()
    }
    spark.stop()
    return rows


def compare(found: Rows, wanted: Rows) -> float:
    """Return the largest difference of a score; end with an error if anything else differs."""
    if found.keys() != wanted.keys():
        sys.exit(f"{len(found):,} rows instead of {len(wanted):,}")
    largest = 0.0
    for path, (label, score, verdict, error) in wanted.items():
        other = found[path]
        if (other[0], other[2], other[3]) != (label, verdict, error):
            sys.exit(f"{path}: {other} instead of {wanted[path]}")
        if error is None:
            largest = max(largest, abs(other[1] - score))
    return largest


def main() -> None:
    """Judge all images in each program, and compare."""
    parser = argparse.ArgumentParser(description="Screen images in Ray and Spark.")
    parser.add_argument("images", type=Path)
    parser.add_argument("--detector", required=True)
    parser.add_argument("--engine", default="torch", choices=("torch", "onnx"))
    parser.add_argument("--with", dest="programs", nargs="*", default=["ray", "spark"])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    files = sorted(str(path.resolve()) for path in options.images.rglob("*") if path.is_file())
    detector = str(Path(options.detector).resolve())
    one = oodcli.load_detector(detector, engine=options.engine, device="cpu")
    alone = one.predict(files, errors="row")
    verdicts = np.where(alone.ood, "ood", "id")
    wanted: Rows = {
        path: (alone.classes[n], alone.score[n], None if alone.errors[n] else str(verdicts[n]),
               alone.errors[n])
        for n, path in enumerate(files)
    }  # fmt: skip
    ways: dict[str, Callable[[list[str], str, str], Rows]] = {"ray": with_ray, "spark": with_spark}
    for name in options.programs:
        started = time.perf_counter()
        largest = compare(ways[name](files, detector, options.engine), wanted)
        taken, spread = time.perf_counter() - started, float(np.nanstd(alone.score))
        sys.stdout.write(
            f"{name}, {options.engine}: {len(files):,} images in {taken:.0f} s, "
            f"{int(alone.ood.sum()):,} ood or unreadable, all verdicts equal, scores differ by up "
            f"to {largest / spread:.1e} of their standard deviation\n"
        )


if __name__ == "__main__":
    main()
