"""DICE: logits of the weights that contribute most."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._class_means import class_means
from oodcli.methods._percentiles import ascending, at_percentile
from oodcli.methods.base import percentile


@dataclass(frozen=True, slots=True)
class DICE:
    """Logits of a last layer that keeps only its weights of largest contribution.

    ``z' = (W ⊙ M) f + b``: ``M`` is 1 where the contribution ``W_cj · mean_j`` is strictly above
    the p-th percentile of all contributions and 0 elsewhere; ``mean`` is the mean training feature.

    Parameters
    ----------
    head
        The last layer with its small weights set to 0.

    References
    ----------
    Sun, Li. "DICE: Leveraging Sparsification for Out-of-Distribution Detection". ECCV 2022,
    arXiv:2111.09805.

    Notes
    -----
    The percentile is over the contributions to all classes together, interpolated linearly, as in
    published code.
    """

    head: Head

    @classmethod
    def fit(cls, reference: Reference, *, p: float = 90.0) -> Self:
        """Weigh every weight by the mean training feature, and keep the largest products.

        Parameters
        ----------
        reference
            The training images.
        p
            Share of the weights that is set to 0, in percent.

        Raises
        ------
        InvalidInputError
            If ``p`` is not at least 0 and less than 100.
        UndefinedMethodError
            If no weight contributes more than that percentile.
        """
        percent = percentile("dice:p", p)
        head = reference.head
        products = head.weight.double() * class_means(reference, by="predictions").overall
        ordered = reference.once(
            "contributions of weights in order", lambda: ascending(products.flatten())
        )
        mask = products > at_percentile(ordered, percent)
        if not mask.any():
            raise UndefinedMethodError(
                f"dice is not defined here: none of {mask.numel():,} weights contributes more than "
                f"percentile {percent:g} ({float(ordered[-1]):.3g}), and no weight would be left; "
                "use another method"
            )
        return cls(Head(head.weight * mask, head.bias, head.tau))

    def logits(self, batch: Activations) -> Tensor:
        """Return the logits of the sparse layer, ``(n, k)``."""
        return self.head(batch.features)
