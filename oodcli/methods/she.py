"""SHE: similarity to the stored pattern of the predicted class."""

from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor
from torch.nn.functional import cosine_similarity

from oodcli.activations import Activations, Reference
from oodcli.methods._class_means import class_means, predicted_among

Metric = Literal["inner_product", "euclidean", "cosine"]


@dataclass(frozen=True, slots=True)
class SHE:
    """Similarity of the feature to the stored pattern of its predicted class.

    ``⟨f, m_ŷ⟩``, where ``m_c`` is the mean feature of the training images of class ``c`` that are
    predicted so; or ``-‖f - m_ŷ‖₂`` (``euclidean``), or the cosine of the two (``cosine``).

    Parameters
    ----------
    patterns
        Pattern of every class, ``(k, n)``; zero for a class without one.
    present
        Whether a class has a pattern, ``(k,)``.
    metric
        Similarity.

    References
    ----------
    Zhang, Fu, Chen, Du, Li, Wang, Liu, Han, Zhang. "Out-of-Distribution Detection based on
    In-Distribution Data Patterns Memorization with Modern Hopfield Energy". ICLR 2023.

    Notes
    -----
    The paper's score is the inner product; the other two are OpenOOD's. A class no training image
    of which is predicted so has no pattern: an image predicted so is compared with the pattern of
    the largest logit among the others.
    """

    patterns: Tensor
    present: Tensor
    metric: Metric

    @classmethod
    def fit(cls, reference: Reference, *, metric: Metric = "inner_product") -> Self:
        """Average the training images that are classified correctly."""
        stored = class_means(reference, by="hits")
        return cls(stored.means.to(reference.head.weight.dtype), stored.present, metric)

    def score(self, batch: Activations) -> Tensor:
        """Return the similarity, ``(n,)``."""
        patterns = self.patterns[predicted_among(batch, self.present)]  # (n, d)
        if self.metric == "inner_product":
            return (batch.features * patterns).sum(dim=1)
        if self.metric == "euclidean":
            return -(batch.features - patterns).norm(dim=1)
        return cosine_similarity(batch.features, patterns, dim=1)
