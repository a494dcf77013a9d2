"""GL-MCM: MCM of the whole image, and of the one of its regions that matches a class best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from oodcli.activations import Activations, Head, Reference
from oodcli.errors import UndefinedMethodError
from oodcli.methods._softmax import Softmax
from oodcli.methods.base import not_negative
from oodcli.methods.msp import MSP
from oodcli.probes import Output, ProbedNetwork
from oodcli.specs import positive


@dataclass(frozen=True, slots=True, eq=False)
class LocalMatch:
    """Largest class probability of any region of every image, as log-odds, ``(n,)``.

    Parameters
    ----------
    head
        Last layer of the zero-shot classifier.
    temperature
        Divisor of the cosines.
    """

    head: Head
    temperature: float

    @property
    def key(self) -> str:
        """Name of the array."""
        return f"glmcm(temperature={self.temperature!r})"

    @property
    def passes(self) -> float:
        """Nothing beyond the ordinary pass but the values of one layer."""
        return 0.0

    def maps(self, network: ProbedNetwork, /) -> Sequence[str]:
        """Return the path of the module whose map local embeddings are made of.

        Raises
        ------
        UndefinedMethodError
            If the network has none.
        """
        if not network.local_path:
            raise UndefinedMethodError(
                "glmcm is not defined for this network: its paper has local embeddings of CLIP's "
                "own towers alone, a ResNet with attention pooling or a ViT with class token; use "
                "another method"
            )
        return (network.local_path,)

    def observe(self, network: ProbedNetwork, images: Tensor, output: Output, /) -> Tensor:
        """Return the log-odds of a batch, ``(n,)``."""
        del images
        local = network.local_embeddings(output.maps[network.local_path])  # (n, p, d)
        with torch.autocast(local.device.type, enabled=False):
            units = functional.normalize(local.double(), dim=2).flatten(0, 1)
            cosines = units @ self.head.texts.double().T  # (n * p, k)
            log_odds = -Softmax.of(cosines / self.temperature).log_rest[:, 0]
        return log_odds.view(local.shape[:2]).amax(dim=1)


@dataclass(frozen=True, slots=True)
class GLMCM:
    """Sum of the largest class probability of an image and of that of its best region (GL-MCM).

    ``max_c softmax(s / T)_c + λ · max_i max_c softmax(s_i / T)_c``, where ``s_c`` is the cosine
    between the image embedding and the text embedding of class ``c``, and ``s_i`` has those of the
    local embedding of region ``i``.

    Parameters
    ----------
    head
        Last layer of the zero-shot classifier.
    temperature
        ``T`` above; 1 in the paper.
    lambda_local
        ``λ``, the weight of the local term; 1 in the authors' code, 0 gives MCM.
    probes
        Gives the local term.

    References
    ----------
    Miyai, Yu, Irie, Aizawa. "GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot
    Out-of-Distribution Detection". IJCV 2025, arXiv:2304.04521; checked against the authors' code.

    Notes
    -----
    Local embeddings are those of the authors' code. Of a ViT with class token: in the last block
    the value projection and the output projection of each patch token alone, instead of attention,
    with the residual connection and the MLP of the block; then the final norm and the projection.
    Of CLIP's ResNet: the value projection and the output projection of the attention pooling at
    each position, without positional embeddings. Other towers have no such embeddings, and the
    method is refused.
    """

    head: Head
    temperature: float
    lambda_local: float
    probes: tuple[LocalMatch, ...]

    @classmethod
    def fit(
        cls, reference: Reference, *, temperature: float = 1.0, lambda_local: float = 1.0
    ) -> Self:
        """Learn nothing.

        Parameters
        ----------
        reference
            Has the last layer.
        temperature
            What cosines are divided by.
        lambda_local
            Weight of the local term.
        """
        probe = LocalMatch(reference.head, float(positive("glmcm:temperature", temperature)))
        weight = float(not_negative("glmcm:lambda_local", lambda_local))
        return cls(reference.head, probe.temperature, weight, (probe,))

    def score(self, batch: Activations) -> Tensor:
        """Return the sum of the two probabilities, float64, ``(n,)``."""
        cosines = self.head.cosines(batch.logits)
        whole = MSP(self.temperature, "probability").score_logits(cosines)
        local = batch.extra[self.probes[0].key].double().sigmoid()
        return whole + self.lambda_local * local
