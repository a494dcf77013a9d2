"""Igeood: Fisher-Rao distances of a prediction from the centroid of every class."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from oodcli.activations import Activations, Reference
from oodcli.specs import positive

# The authors' gradient descent for the centroids.
STEPS, RATE = 100, 0.01
# Inner products nearer to 1 than this have no gradient there.
_MARGIN = 1e-6
# Square roots of probabilities of training images that centroids are fitted on, at most.
MAX_VALUES = 2**26
# Values of one group of classes, which are fitted together: few enough to stay in a cache.
_GROUP = 2**20

Over = Literal["sum", "min"]


@dataclass(frozen=True, slots=True)
class Igeood:
    """Fisher-Rao distances between the prediction and the centroids of all classes.

    ``Σ_c d(z, μ_c)`` with ``d(z, μ) = 2 arccos Σ_j (softmax(z / T)_j softmax(μ / T)_j)^½``: large
    for a prediction that is near one centroid, and so as far as possible from the others.

    Parameters
    ----------
    roots
        Square roots of the probabilities of the centroids at ``T``, float64, ``(k, k)``.
    temperature
        ``T``.
    over
        ``sum`` as above, or ``min`` for ``-min_c d(z, μ_c)``.

    References
    ----------
    Dadalto Camara Gomes, Alberge, Duhamel, Piantanida. "Igeood: An Information Geometry Approach to
    Out-of-Distribution Detection". ICLR 2022, arXiv:2203.07798; code: igeood/Igeood
    (``src/measures.py``, ``src/estimators.py``).

    Notes
    -----
    This is the black-box score, on logits; the paper's other scores need Fisher-Rao distances of
    the maps of all layers and OOD images to combine them. In the paper ``μ_c`` minimises the mean
    distance to the logits of the training images of class c at ``T = 1``. As in the published code
    it is what 100 steps of gradient descent of length 0.01 from the unit vector of the class reach,
    which is not yet the minimum; a class without images keeps its unit vector. Of more training
    images than :data:`MAX_VALUES` allows, as many are taken, evenly spread over them.

    ``T = 1`` is the default of the published code; the paper chooses it for each network with OOD
    images (5.3 for its CIFAR-10 DenseNet). The grid is ours. Code clips inner products at
    ``1 - 1e-6`` in float32; here distances are in float64 and only those above 1 are clipped. ONNX
    Runtime has no arccosine in float64, so that the method cannot be exported.
    """

    roots: Tensor
    temperature: float
    over: Over = "sum"

    @classmethod
    def fit(cls, reference: Reference, *, temperature: float = 1.0, over: Over = "sum") -> Self:
        """Find the centroids of the classes.

        Parameters
        ----------
        reference
            The training images and their labels.
        temperature
            What logits and centroids are divided by.
        over
            ``sum`` of the distances, or ``min`` for the least.
        """
        positive("igeood:temperature", temperature)
        centroids = reference.once("fisher-rao centroids", lambda: _centroids(reference))
        roots = (centroids.double() / temperature).softmax(dim=1).sqrt_()
        return cls(roots, temperature, over)

    def score(self, batch: Activations) -> Tensor:
        """Return the sum of the distances, or minus the least, float64, ``(n,)``."""
        roots = (batch.logits.double() / self.temperature).softmax(dim=1).sqrt()
        distances = 2 * (roots @ self.roots.T).clamp(max=1).acos()
        return distances.sum(dim=1) if self.over == "sum" else -distances.amin(dim=1)


def _centroids(reference: Reference) -> Tensor:
    """Return the centroid of every class, float32, ``(k, k)``."""
    classes = len(reference.head.weight)
    roots, labels = _some_roots(reference, classes)
    order = labels.sort(stable=True).indices
    counts = torch.bincount(labels, minlength=classes)
    starts = counts.cumsum(0) - counts
    centroids = torch.eye(classes, dtype=torch.float32, device=roots.device)
    # Classes of like size stand together, so that their blocks of images are filled.
    present = counts.nonzero()[:, 0]
    present = present[counts[present].sort(descending=True, stable=True).indices]
    while len(present):
        longest = int(counts[present[0]])
        some = present[: max(1, _GROUP // (longest * classes))]
        rows = torch.arange(longest, device=roots.device)
        within = rows < counts[some, None]  # (g, m)
        at = (starts[some, None] + rows).clamp(max=len(order) - 1)
        group = roots[order[at]] * within[:, :, None]  # (g, m, k)
        centroids[some] = _descended(group, within, centroids[some])
        present = present[len(some) :]
    return centroids


def _some_roots(reference: Reference, classes: int) -> tuple[Tensor, Tensor]:
    """Return square roots of probabilities, ``(m, k)``, and labels of training images, ``(m,)``."""
    total = len(reference.train)
    count = min(total, max(1, MAX_VALUES // classes))
    chosen = torch.arange(count) * total // count
    parts, first = [], 0
    for chunk in reference.train.chunks():
        rows = chosen[(chosen >= first) & (chosen < first + len(chunk))] - first
        first += len(chunk)
        logits = chunk.logits[rows.to(chunk.logits.device)]
        parts.append(logits.double().softmax(dim=1).sqrt().float())
    roots = torch.cat(parts)
    labels = reference.labels[chosen.to(reference.labels.device)]
    return roots, labels.to(roots.device)


def _descended(roots: Tensor, within: Tensor, centroids: Tensor) -> Tensor:
    """Return the centroids of a group of classes after gradient descent, ``(g, k)``.

    Parameters
    ----------
    roots
        Square roots of the probabilities of the images of each class, ``(g, m, k)``.
    within
        Which of these rows are images, ``(g, m)``.
    centroids
        Where to begin, as logits, ``(g, k)``.
    """
    counts = within.sum(dim=1, keepdim=True).clamp(min=1)
    for _ in range(STEPS):
        q = centroids.softmax(dim=1)
        r = q.sqrt()
        inner = torch.bmm(roots, r[:, :, None])[:, :, 0]  # (g, m)
        sloped = within & (inner < 1 - _MARGIN)
        slopes = torch.where(sloped, (1 - inner.square()).clamp(min=_MARGIN**2).rsqrt(), 0.0)
        # d = 2 arccos u with u = Σ_j s_j r_j, and du/dθ_j = (s_j r_j - u q_j) / 2
        pulled = torch.bmm(slopes[:, None], roots)[:, 0] * r  # (g, k)
        gradient = (slopes * inner).sum(dim=1, keepdim=True) * q - pulled
        centroids = centroids - RATE * gradient / counts
    return centroids
