"""A tiny network for tests of probes, and references with its activations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from oodcli.activations import Activations, ActivationSet, Head, Part, Reference
from oodcli.probes import Edit, Learner, Output, Probe

CLASSES = 4


class Tiny(nn.Module):
    """Three blocks on maps of 8 x 8, 8 x 8 and 4 x 4, average pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(n, k)``."""
        return self.fc(self.pool(self.last(self.middle(self.stem(images)))))


class Small:
    """A :class:`Tiny` network with the interface for probes."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = module = Tiny().to(dtype).eval()
        with torch.no_grad():
            # Rescaled: the untrained network would predict one class for all images.
            features = module.pool(module.last(module.middle(module.stem(_noise(dtype)))))
            module.fc.weight.mul_(3 / features.std(dim=0))
            module.fc.bias.copy_(-module.fc.weight @ features.mean(dim=0))
        self.blocks: Mapping[str, str] = {"a": "stem", "b": "middle", "c": "last"}
        self.std = torch.tensor([0.5, 0.25, 0.2], dtype=dtype).view(3, 1, 1)

    @property
    def head(self) -> Head:
        """The last layer."""
        return Head(self.module.fc.weight.detach(), self.module.fc.bias.detach())

    def modules_of(self, *kinds: type[nn.Module]) -> Sequence[str]:
        """Return the paths of all modules of these types."""
        return [path for path, each in self.module.named_modules() if isinstance(each, kinds)]

    def dropout_rates(self) -> Mapping[str, float]:
        """Return the rate of every dropout layer, by path."""
        return {
            path: each.p
            for path, each in self.module.named_modules()
            if isinstance(each, (nn.Dropout, nn.Dropout2d))
        }

    def run(
        self, images: Tensor, *, keep: Sequence[str] = (), edit: Mapping[str, Edit] | None = None
    ) -> Output:
        """Run a forward pass."""
        outputs: dict[str, Tensor] = {}
        features: list[Tensor] = []
        hooks = [
            self.module.get_submodule(path).register_forward_hook(
                lambda _module, _inputs, output, change=change: change(output)
            )
            for path, change in (edit or {}).items()
        ]
        hooks += [
            self.module.get_submodule(path).register_forward_hook(
                lambda _module, _inputs, output, path=path: outputs.__setitem__(path, output)
            )
            for path in keep
        ]
        hooks.append(
            self.module.fc.register_forward_pre_hook(
                lambda _module, inputs: features.append(inputs[0])
            )
        )
        try:
            logits = self.module(images)
        finally:
            for hook in hooks:
                hook.remove()
        return Output(logits, features[0], outputs)


def _noise(dtype: torch.dtype) -> Tensor:
    return pictures(100, seed=99, dtype=dtype)


def pictures(n: int, *, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random normalised images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator, dtype=dtype) * 2


def activations(
    network: Small, images: Tensor, *probes: Probe, batch_size: int = 64
) -> Activations:
    """Compute activations and probes batch by batch, as the extraction does."""
    keep = [path for probe in probes for path in probe.maps(network)]
    parts = []
    with torch.no_grad():
        for batch in images.split(batch_size):
            output = network.run(batch, keep=keep)
            extra = {probe.key: probe.observe(network, batch, output).detach() for probe in probes}
            norms = output.features.norm(dim=1, keepdim=True)
            predictions = output.logits.argmax(dim=1)
            parts.append(
                Activations(output.logits, output.features, norms, predictions, extra=extra)
            )
    every = [part.arrays() for part in parts]
    return Activations.of({name: torch.cat([each[name] for each in every]) for name in every[0]})


def learned(
    network: Small, images: Tensor, learner: Learner, *, batch_size: int = 64
) -> Mapping[str, Tensor]:
    """Return the state of a learner over images, batch by batch, as the extraction does."""
    state: Mapping[str, Tensor] = {}
    with torch.no_grad():
        for batch in images.split(batch_size):
            output = network.run(batch, keep=learner.maps(network))
            state = learner.update(state, network, batch, output)
    return state


def reference_of(network: Small, train: Tensor, *, batch_size: int = 64) -> Reference:
    """Return a reference that runs the network on demand; ``train`` is also for calibration."""

    def chosen(rows: Tensor | None) -> Tensor:
        return train if rows is None else train[rows]

    def probed(_part: Part, probe: Probe, rows: Tensor | None) -> ActivationSet:
        return ActivationSet.of(activations(network, chosen(rows), probe, batch_size=batch_size))

    def plain() -> ActivationSet:
        return ActivationSet.of(activations(network, train))

    return Reference(
        head=network.head,
        load_train=plain,
        load_calibration=plain,
        load_labels=lambda: torch.arange(len(train)) % CLASSES,
        load_probed=probed,
        load_state=lambda learner, rows: learned(
            network, chosen(rows), learner, batch_size=batch_size
        ),
        load_block_widths=lambda: (5, 6, 8),
        n_blocks=len(network.blocks),
    )
