"""What the methods of a run may learn from: its own images, as its network sees them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from oodcli.activations import ActivationSet, Part, Reference
from oodcli.data.views import View
from oodcli.images import ImageSet, ImageShard
from oodcli.images import Part as ImagePart
from oodcli.models import load_head
from oodcli.probes import Learner, Probe
from oodcli.runs import RunFolder
from oodcli.workflows.activate import Activator
from oodcli.workflows.run_data import RunData


@dataclass
class OwnImages:
    """The in-distribution images of a run, as methods learn from them.

    Parameters
    ----------
    folder
        Of the run.
    data
        Its data set.
    activator
        Computes and keeps the activations.
    limit
        Take that many images of each set only, spread evenly over it.

    Attributes
    ----------
    was_limited
        Whether the limit has left images out so far.
    """

    folder: RunFolder
    data: RunData
    activator: Activator
    limit: int | None = None
    was_limited: bool = field(init=False, default=False)

    def train(self, seen: Callable[[ImageShard], None] | None = None) -> ImageSet:
        """Return the training images; see :meth:`oodcli.workflows.run_data.RunData.prepared`."""
        images = self.data.train(limit=self.limit, seen=seen)
        self._remember(self.data.dataset.parts["train"])
        return images

    def calibration(self) -> ImageSet:
        """Return the images that thresholds are set on; no limit applies to them."""
        return self.data.chosen(*self.data.dataset.calibration())

    def test(self, seen: Callable[[ImageShard], None] | None = None) -> ImageSet:
        """Return the test images; see :meth:`limited`."""
        return self.limited(self.data.dataset.id_test, name=self.name, seen=seen)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.data.dataset.name

    @property
    def calibration_part(self) -> str:
        """``val``, or ``train`` where there are no validation images."""
        return self.data.dataset.calibration()[0]

    def limited(
        self, part: ImagePart, *, name: str, seen: Callable[[ImageShard], None] | None = None
    ) -> ImageSet:
        """Return the images of one part of any data set, as many as the limit allows.

        The parameters are those of :meth:`oodcli.workflows.run_data.RunData.prepared`.
        """
        self._remember(part)
        return self.data.prepared(part, name=name, limit=self.limit, seen=seen)

    def _remember(self, part: ImagePart) -> None:
        """Remember whether the limit has left images out."""
        self.was_limited |= self.limit is not None and len(part) > self.limit

    def reference(self) -> Reference:
        """Return what methods may learn from; each part is made when it is touched."""
        device, activator = self.activator.device, self.activator
        return Reference(
            head=load_head(self.folder.weights, self.data.run.arch).to(device),
            load_train=lambda: activator.activations(self.train()),
            load_labels=lambda: _labels(self.train()).to(device),
            load_jigsaw=lambda: activator.activations(
                self.train(), view=View("jigsaw"), norms_only=True
            ),
            load_calibration=lambda: activator.activations(self.calibration()),
            load_calibration_labels=lambda: _labels(self.calibration()).to(device),
            load_probed=self._probed,
            load_state=self._state,
            n_blocks=len(self.data.run.blocks),
        )

    def _probed(self, part: Part, probe: Probe, rows: torch.Tensor | None) -> ActivationSet:
        return self.activator.activations(self._rows_of(part, rows), probes=[probe])

    def _state(self, learner: Learner, rows: torch.Tensor | None) -> Mapping[str, torch.Tensor]:
        state = self.activator.learned(self._rows_of("train", rows), learner)
        return {name: values.to(self.activator.device) for name, values in state.items()}

    def _rows_of(self, part: Part, rows: torch.Tensor | None) -> ImageSet:
        images = self.train() if part == "train" else self.calibration()
        return images if rows is None else images.take(rows.cpu().numpy())


def _labels(images: ImageSet) -> torch.Tensor:
    assert images.labels is not None  # a data set with classes has labels in every part
    return torch.from_numpy(images.labels)
