"""Distances to the k-th nearest training feature: ours, faiss, scikit-learn, pytorch-ood.

    pip install -e ".[pytorch-ood]" faiss-cpu
    ood score --export-activations activations.npz …
    python tests/bench/knn.py activations.npz --threads 2

All get the same float32 unit vectors in one process, batches of 4,096 queries, and take turns. A
time is the median of ``--turns``, with the preparation of the index. The error is the largest
difference of a squared distance from float64, over ``--checked`` queries.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import faiss
import numpy as np
import pytorch_ood.detector as po
import sklearn
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from oodcli.methods import _bank as bank_module
from oodcli.methods._bank import Bank
from oodcli.methods._class_means import directions

BATCH = 4096
Search = Callable[[Tensor, Tensor, int], Tensor]


def ours(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """Search with the coarse pass where the processor has the instructions."""
    bank = Bank.from_stored({"vectors": vectors}, torch.device("cpu"))
    return torch.cat([bank.nearest(part, k)[:, -1] for part in queries.split(BATCH)])


def ours_float32(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """Search as on a processor without them."""
    find, bank_module.has_fast_bfloat16 = bank_module.has_fast_bfloat16, lambda: False
    try:
        return ours(vectors, queries, k)
    finally:
        bank_module.has_fast_bfloat16 = find


def faiss_flat(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """Search in a flat index of faiss."""
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors.numpy())
    parts = [index.search(part.numpy(), k)[0][:, -1] for part in queries.split(BATCH)]
    return torch.from_numpy(np.concatenate(parts))


def sklearn_brute(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """Search with scikit-learn."""
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors.numpy())
    parts = [index.kneighbors(part.numpy())[0][:, -1] for part in queries.split(BATCH)]
    return torch.from_numpy(np.concatenate(parts)).square()


def pytorch_ood(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """Score with pytorch-ood."""
    detector = po.KNN(None, k=k)
    detector.fit_features(vectors, torch.zeros(len(vectors), dtype=torch.int64))
    parts = [detector.predict_features(part) for part in queries.split(BATCH)]
    return torch.cat([torch.as_tensor(part) for part in parts]).square()


def products(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """Take the products of matrices alone, which find nothing."""
    buffer = torch.empty(512, len(vectors), dtype=vectors.dtype)
    for part in queries.split(512):
        torch.mm(part, vectors.T, out=buffer[: len(part)])
    return torch.full((len(queries),), torch.nan)


def products_bfloat16(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """Take them in bfloat16."""
    return products(vectors.bfloat16(), queries.bfloat16(), k)


SEARCHES: dict[str, Search] = {
    "`ood`": ours,
    "`ood` without bfloat16": ours_float32,
    "pytorch-ood `KNN`": pytorch_ood,
    "faiss `IndexFlatL2`": faiss_flat,
    "scikit-learn `NearestNeighbors`": sklearn_brute,
    "float32 products alone": products,
    "bfloat16 products alone": products_bfloat16,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--checked", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with np.load(options.file) as arrays:
        vectors = directions(torch.from_numpy(arrays["train/features"]).float())
        names = [name for name in arrays.files if name.endswith("/features")]
        scored = [n for n in names if n.split("/")[0] not in ("train", "val", "jigsaw")]
        queries = directions(torch.cat([torch.from_numpy(arrays[n]).float() for n in scored]))
    checked = queries[:: max(1, len(queries) // options.checked)]
    exact = (2 - 2 * checked.double() @ vectors.double().T).topk(
        options.k, dim=1, largest=False
    ).values[:, -1]  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in SEARCHES}
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for _ in range(options.turns):
            for name, search in SEARCHES.items():
                started = time.perf_counter()
                found[name] = search(vectors, queries, options.k)
                times[name].append(time.perf_counter() - started)
    same = torch.equal(found["`ood`"], found["`ood` without bfloat16"])
    sys.stdout.write(
        f"{len(vectors):,} × {vectors.shape[1]}, {len(queries):,} queries, k = {options.k}; torch "
        f"{torch.__version__}, faiss {faiss.__version__}, scikit-learn {sklearn.__version__}, "
        f"{options.threads} threads\nequal with and without bfloat16: {same}\n\n"
        "| search | s | slowest and fastest | error |\n|---|---:|---:|---:|\n"
    )
    for name, each in times.items():
        error = (found[name][:: max(1, len(queries) // options.checked)] - exact).abs().max()
        sys.stdout.write(
            f"| {name} | {statistics.median(each):.2f} | {min(each):.2f} to {max(each):.2f} | "
            f"{'' if error.isnan() else f'{float(error):.1e}'} |\n"
        )


if __name__ == "__main__":
    main()
