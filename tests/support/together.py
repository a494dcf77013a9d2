"""Small trainings that give the same results in one or several processes; run by torchrun."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oodcli.compute.processes import Processes, join_processes
from oodcli.models import parse_architecture
from oodcli.models.heads import QuotientLinear
from oodcli.progress import Silent
from oodcli.training.loop import LabelledPixels, Trainer
from oodcli.training.objectives.base import OutlierObjective
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.objectives.training_module import LastBlock
from oodcli.training.outliers import MadeOutliers, Outliers, SetOutliers
from oodcli.training.recipes import Recipe

# 50 images make batches of 16, 16, 16 and 2; of 49, the last batch has one image for two processes.
RECIPE = Recipe("test", "here", epochs=2, batch_size=16, lr=0.02, crop_padding=1)
CASES = {
    "plain": ("cross-entropy", False, 50),
    "one-left": ("t2fnorm", False, 49),
    "norm": ("cross-entropy", True, 48),
    "uneven-norm": ("ish:p=0.5", True, 53),
    "supcon": ("supcon", False, 50),
    "alpa": ("alpa:base=cross-entropy", False, 50),
    "oe": ("oe", False, 49),
    "made": ("oe", False, 50),
    "energy": ("energy-regularised:inner=-3,outer=-1", False, 50),
    "entropic": ("entropic", False, 49),
    "objectosphere": ("objectosphere", False, 49),
    "mixoe": ("mixoe", False, 49),
    "background": ("background", False, 49),
    "resnet": ("cross-entropy", True, 48),
    "mixed": ("logitnorm", False, 49),
    "compared": ("cross-entropy", False, 49),
    "pictures": ("t2fnorm", False, 49),
    "rotpred": ("rotpred", False, 49),
    "g-odin": ("g-odin", False, 48),
    "conf-branch": ("conf-branch:weight=4", False, 49),
    "vos": ("vos:start=0.5,queue=12,weight=4", False, 49),
    "cider": ("cider", False, 49),
    "palm": ("palm:momentum=0.9,tau=0.02", False, 50),
    "reweightood": ("reweightood", False, 49),
    "ascood": ("ascood:share=0.5", False, 49),
    "ascood-mixed": ("ascood:outliers=gradient,share=0.5,sigma=1", False, 50),
    "fine": ("alpa:base=none", False, 49),
}
# Cases with an augmentation that mixes the images of a batch, of which each process has a part.
AUGMENTATIONS = {
    "mixed": ("flip", "crop", "cutout", "regmixup"),
    "compared": ("randaugment", "crop", "augmix"),
    "pictures": ("flip", "pixmix", "cutmix"),
    "ascood-mixed": ("flip", "regmixup"),
}


# The mixing set of PixMix.
PICTURES = (
    torch.arange(3 * 3 * 9 * 9, dtype=torch.float32)
    .mul(7)
    .remainder(256)
    .to(torch.uint8)
    .view(3, 3, 9, 9)
)


class Halved(nn.Module):
    """Batch norm that normalises each half of a batch separately.

    Parameters
    ----------
    channels
        Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the input, and store the mean statistics of both halves."""
        statistics = [(self.running_mean.clone(), self.running_var.clone()) for _ in range(2)]
        parts = x.tensor_split(2) if self.training else [x]
        seen = [
            nn.functional.batch_norm(
                part, mean, var, self.weight, self.bias, training=self.training
            )
            for part, (mean, var) in zip(parts, statistics, strict=False)
        ]
        if self.training:
            for buffer, both in zip(
                (self.running_mean, self.running_var), zip(*statistics, strict=True), strict=True
            ):
                buffer.copy_((both[0] + both[1]) / 2)
            self.num_batches_tracked += 1
        return torch.cat(seen)


def network(norm: type[nn.Module] | None) -> nn.Module:
    """Return a tiny network with a layer between its last block and its last layer."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Identity() if norm is None else norm(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def resnet(norm: type[nn.Module]) -> nn.Module:
    """Return a narrow ResNet-18 with another batch norm."""
    torch.manual_seed(3)
    module = parse_architecture("resnet18:width=4").build(3)
    named = [name for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)]
    for name in named:
        outer, _, inner = name.rpartition(".")
        setattr(module.get_submodule(outer), inner, norm(module.get_submodule(name).num_features))
    return module


def _halve_divisor(last: nn.Module) -> None:
    """Normalise each half separately in the kept head of G-ODIN too."""
    if isinstance(last, QuotientLinear):
        last.kept["divisor"][1] = Halved(1)


class OnlyNeeded(LabelledPixels):
    """Images of which a process gets those that it asks for, as if they were decoded on the fly."""

    def arriving(
        self,
        batches: Sequence[Tensor],
        *,
        epoch: int,
        views: int,
        share: Callable[[int], Tensor],
    ) -> Iterator[list[Tensor]]:
        """Yield the views of each batch; other positions are black."""
        for rows in batches:
            at = share(len(rows))
            pixels = torch.zeros_like(self.pixels[rows])
            pixels[at] = self.pixels[rows[at]]
            yield [pixels] * views


def images(n: int) -> LabelledPixels:
    """Return images of three classes that differ by their bright channel."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 120, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(n) % 3
    pixels[torch.arange(n), labels] += 80
    return OnlyNeeded(pixels, labels)


def outliers(case: str) -> Outliers | None:
    """Return the outliers of a case: 5 images of noise, or jigsaws of training images."""
    if not isinstance(parse_objective(CASES[case][0]).objective, OutlierObjective):
        return None
    if case == "made":
        return MadeOutliers("jigsaw", replace(RECIPE, outlier_batch_size=21), seed=5)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=generator)
    # With 1, one of two processes has no outlier.
    count = {"oe": 1, "background": 3, "entropic": 20}.get(case, 0)
    recipe = replace(RECIPE, outlier_batch_size=count)
    return SetOutliers(LabelledPixels(pixels, torch.zeros(5, dtype=torch.int64)), recipe, seed=5)


def trained(
    case: str, processes: Processes, *, halved: bool = False, done: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Train a case, resuming after its first epoch if ``done``; return states and history."""
    name, normalised, n = CASES[case]
    objective = parse_objective(name).objective
    norm = Halved if halved else nn.BatchNorm2d
    module = resnet(norm) if case == "resnet" else network(norm if normalised else None)
    head = "fc" if case == "resnet" else "7"
    objective.attach(module, head)
    if halved:
        _halve_divisor(module.get_submodule(head))
    trainer = Trainer(
        module,
        replace(RECIPE, augmentation=AUGMENTATIONS.get(case, RECIPE.augmentation), cutout_size=4),
        seed=5,
        device=torch.device("cpu"),
        amp=False,
        objective=objective,
        head=head,
        last_block=LastBlock("2", 8),
        processes=processes,
    )
    if done is not None and processes.first:
        trainer.load_state(done)
    trainer.copy_from_first()
    lines, states = [], []
    with Silent().task("", total=None, unit="") as task:
        for stats in trainer.epochs(
            images(n),
            images(30),
            done=0 if done is None else 1,
            task=task,
            pictures=PICTURES,
            outliers=outliers(case),
        ):
            lines.append([stats.loss, stats.train_accuracy or -1, stats.val_accuracy or -1])
            states.append(trainer.state())
    found = {f"first.{key}": value for key, value in states[0].items()} if done is None else {}
    found |= {f"last.{key}": value for key, value in states[-1].items()}
    features = trainer.features(images(700))
    return {**found, "history": torch.tensor(lines, dtype=torch.float64), "features": features}


def main(folder: Path) -> None:
    """Train all cases, and resume the last after its first epoch; write the results."""
    torch.set_num_threads(1)
    with join_processes("cpu", report=print) as processes:
        for case in CASES:
            found = trained(case, processes)
            if processes.first:
                save_file(found, folder / f"{case}.safetensors")
        kept = {k[6:]: v for k, v in found.items() if k.startswith("first.")}
        again = trained(case, processes, done=kept)
        if processes.first:
            save_file(again, folder / "again.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
