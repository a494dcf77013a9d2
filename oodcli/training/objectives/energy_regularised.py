"""Energy-regularised training: the energy of ID images is low, and that of outliers high."""

from dataclasses import dataclass
from math import isfinite

from torch import Tensor
from torch.nn import functional

from oodcli.errors import InvalidInputError
from oodcli.specs import positive
from oodcli.training.objectives.base import OutlierObjective, StepOutput


@dataclass(frozen=True)
class EnergyRegularised(OutlierObjective):
    """Cross-entropy, plus squared hinges of the energies of ID images and of outliers.

    With the energy ``E = -log sum_j exp z_j``::

        loss = mean_in [-log p_y + weight max(0, E - inner)^2]
               + weight mean_out [max(0, outer - E)^2]

    Images are scored by ``energy``, as in the paper.

    Parameters
    ----------
    weight
        Weight of both hinges.
    inner
        Energy that ID images are to stay below.
    outer
        Energy that outliers are to stay above.

    References
    ----------
    Liu, Wang, Owens, Li. "Energy-based Out-of-distribution Detection". NeurIPS 2020,
    arXiv:2010.03759.

    Notes
    -----
    The defaults are those of the authors' ``train.py`` (github.com/wetliu/energy_ood at 7d31247);
    their ``run.sh`` and the recipe ``energy-finetune`` have ``inner=-23,outer=-5`` for CIFAR-10,
    and -27 and -5 for CIFAR-100. The recipe is the schedule there: 10 epochs from a trained
    network, learning rate 0.001, cosine per step to 1e-6, 128 images and 256 outliers per step.
    The margins are relative to the energies of a network that is trained to the end; those of
    another network, or of one with few epochs, can be far from them, and accuracy is lost.
    """

    weight: float = 0.1
    inner: float = -25.0
    outer: float = -7.0

    def __post_init__(self) -> None:
        positive("energy-regularised:weight", self.weight)
        if not (isfinite(self.inner) and isfinite(self.outer) and self.inner < self.outer):
            raise InvalidInputError(
                f"energy-regularised:inner={self.inner:g} must be below outer={self.outer:g}"
            )

    def loss(self, output: StepOutput, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy and hinge of ID images."""
        logits = output.logits.float()
        hinge = (-logits.logsumexp(dim=1) - self.inner).relu().square().mean()
        return functional.cross_entropy(logits, labels) + self.weight * hinge

    def outlier_loss(self, output: StepOutput, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return the weighted mean hinge of outliers."""
        energies = -output.logits.float().logsumexp(dim=1)  # (m,)
        return self.weight * (self.outer - energies).relu().square().mean()
