"""The training loop: it learns, and cut off training ends as if it had not been."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from oodcli.errors import InvalidInputError
from oodcli.progress import Silent
from oodcli.training.augmentations.mixtures import check_combination
from oodcli.training.guard import NotFiniteError
from oodcli.training.loop import LabelledPixels, Trainer, unsafe_in_channels_last
from oodcli.training.objectives.base import OutlierObjective
from oodcli.training.objectives.registry import OBJECTIVES, parse_objective
from oodcli.training.objectives.training_module import LastBlock
from oodcli.training.outliers import MadeOutliers, Outliers, SetOutliers
from oodcli.training.recipe_choice import recipe_named
from oodcli.training.recipes import Recipe
from tests.support.program import Program

RECIPE = Recipe("test", "here", epochs=4, batch_size=16, lr=0.05, crop_padding=1)


def images(n: int = 48) -> LabelledPixels:
    """Make two classes that differ by the half of the image that is bright."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 60, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(n) % 2
    pixels[labels == 0, :, :4] += 150
    pixels[labels == 1, :, 4:] += 150
    return LabelledPixels(pixels, labels)


def pictures() -> torch.Tensor:
    """Return a few random pictures to mix images with, uint8 ``(5, 3, 9, 9)``."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, 9, 9), dtype=torch.uint8, generator=generator)


def network() -> nn.Module:
    """Make a tiny network with everything that has a state: batch norm and dropout."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32, 2),
    )


def trainer(
    recipe: Recipe = RECIPE,
    *,
    seed: int = 0,
    amp: bool = False,
    objective: str = "cross-entropy",
    compiled: bool = False,
    device: str = "cpu",
) -> Trainer:
    """Make a fresh trainer."""
    module, chosen = network(), parse_objective(objective).objective
    chosen.attach(module, "6")
    return Trainer(
        module,
        recipe,
        seed=seed,
        device=torch.device(device),
        amp=amp,
        objective=chosen,
        head="6",
        last_block=LastBlock("2", 8),
        compiled=compiled,
    )


def outliers_of(recipe: Recipe = RECIPE) -> SetOutliers:
    """Make 7 images that belong to neither class: bright at the left, or dark."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 60, (7, 3, 8, 8), dtype=torch.uint8, generator=generator)
    pixels[:3, :, :, :4] += 150
    return SetOutliers(LabelledPixels(pixels, torch.zeros(7, dtype=torch.int64)), recipe, seed=0)


def run(
    of: Trainer,
    *,
    done: int = 0,
    epochs: int | None = None,
    device: str = "cpu",
    outliers: Outliers | None = None,
) -> list[float]:
    """Train some epochs and return their losses."""
    if outliers is None and isinstance(of._objective, OutlierObjective):
        outliers = outliers_of()
    losses = []
    seen = LabelledPixels(images().pixels.to(device), images().labels.to(device))
    with Silent().task("training", total=None, unit="images") as task:
        # The mixing set of PixMix, which others ignore.
        more = {"outliers": outliers, "pictures": pictures().to(device)}
        for stats in of.epochs(seen, seen, done=done, task=task, **more):
            losses.append(stats.loss)
            if epochs is not None and len(losses) == epochs:
                break
    return losses


def test_learns_what_can_be_learnt() -> None:
    of = trainer(RECIPE.changed(epochs=12))
    losses = run(of)
    assert losses[-1] < 0.5 * losses[0]
    assert of.accuracy(images()) > 0.95


def test_resumes_after_a_cut_as_if_there_had_been_none() -> None:
    whole = trainer()
    losses = run(whole)
    first = trainer()
    begun = run(first, epochs=2)
    second = trainer()
    second.load_state(first.state())
    assert begun + run(second, done=2) == losses
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


@pytest.mark.parametrize(
    "objective",
    [*OBJECTIVES, "alpa:base=none", "alpa:base=cross-entropy", "ascood:outliers=gradient"],
)
def test_every_objective_resumes_after_a_cut_and_learns(objective: str) -> None:
    recipe = RECIPE.changed(epochs=5)
    whole = trainer(recipe, objective=objective)
    before = whole.state()
    losses = run(whole)
    first = trainer(recipe, objective=objective)
    begun = run(first, epochs=2)
    second = trainer(recipe, objective=objective)
    second.load_state(first.state())
    assert begun + run(second, done=2) == losses
    assert losses[-1] < losses[0]
    after = whole.state()
    assert after.keys() == second.state().keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, second.state()[name]), name
    trained = parse_objective(objective).objective.trains_last_layer
    assert torch.equal(after["module.6.weight"], before["module.6.weight"]) is not trained
    assert not torch.equal(after["module.0.weight"], before["module.0.weight"])


@pytest.mark.parametrize("kind", ["jigsaw", "noise"])
def test_outliers_made_from_training_images_resume_after_a_cut(kind: str) -> None:
    recipe = replace(RECIPE, epochs=3, outlier_batch_size=24)
    outliers = MadeOutliers(kind, recipe, seed=0)
    whole, first, second = (trainer(recipe, objective="oe") for _ in range(3))
    losses = run(whole, outliers=outliers)
    begun = run(first, epochs=1, outliers=outliers)
    second.load_state(first.state())
    assert begun + run(second, done=1, outliers=outliers) == losses
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name
    assert losses != run(trainer(recipe, objective="oe"), outliers=outliers_of(recipe))


def test_outliers_do_not_change_the_order_of_training_images() -> None:
    """With a weight near zero, and no batch norm or dropout, outliers change nothing."""
    recipe = replace(RECIPE, epochs=2)
    states = []
    for objective in ("cross-entropy", "oe:weight=1e-30"):
        of = trainer(recipe, objective=objective)
        of.module.set_submodule("1", nn.Identity())
        of.module.get_submodule("5").p = 0.0
        losses = run(of)
        states.append((losses, of.state()))
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-6)
    for name, tensor in states[0][1].items():
        torch.testing.assert_close(tensor, states[1][1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "word", ["randaugment", "augmix", "pixmix", "cutout", "mixup", "cutmix", "regmixup"]
)
@pytest.mark.parametrize("amp", [False, True])
def test_every_augmentation_resumes_after_a_cut_and_learns(word: str, amp: bool) -> None:
    recipe = replace(
        RECIPE, epochs=5, augmentation=("flip", "crop", word), cutout_size=4, regmixup_alpha=1.0
    )
    whole = trainer(recipe, amp=amp)
    losses = run(whole)
    first = trainer(recipe, amp=amp)
    begun = run(first, epochs=2)
    second = trainer(recipe, amp=amp)
    second.load_state(first.state())
    assert begun + run(second, done=2) == losses
    assert losses[-1] < losses[0]
    plain = run(trainer(replace(recipe, augmentation=("flip", "crop")), amp=amp))
    assert losses[0] != plain[0]
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


@pytest.mark.parametrize(
    ("objective", "word"),
    [
        ("rotpred", "augmix"), ("rotpred", "mixup"), ("rotpred", "pixmix"), ("oe", "regmixup"),
        ("background", "mixup"), ("mixoe", "pixmix"), ("logitnorm", "augmix"),
        ("g-odin", "cutmix"), ("conf-branch", "cutout"), ("supcon", "randaugment"),
        ("ascood", "augmix"), ("ascood:outliers=gradient", "regmixup"), ("ascood", "cutmix"),
    ],
)  # fmt: skip
def test_objectives_combine_with_augmentations_and_resume(objective: str, word: str) -> None:
    recipe = replace(RECIPE, epochs=3, augmentation=("flip", word), cutout_size=4)
    check_combination(recipe, objective, parse_objective(objective).objective)
    whole, first, second = (trainer(recipe, objective=objective) for _ in range(3))
    losses = run(whole)
    begun = run(first, epochs=1)
    second.load_state(first.state())
    assert begun + run(second, done=1) == losses
    assert losses != run(trainer(replace(recipe, augmentation=("flip",)), objective=objective))
    other = second.state()
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.state().items())


def test_the_layers_of_an_objective_are_trained_and_are_no_part_of_the_network() -> None:
    of = trainer(objective="alpa")
    before = of.state()
    run(of, epochs=1)
    extras = [name for name in before if name.startswith("extras.")]
    assert len(extras) == 6 + 4
    assert all(not torch.equal(before[name], of.state()[name]) for name in extras)
    assert of.module.state_dict().keys() == network().state_dict().keys()


def test_the_last_layer_may_decay_on_its_own() -> None:
    """Without a gradient to speak of, one step shrinks a weight by rate times decay."""
    recipe = replace(
        RECIPE, epochs=1, lr=1e-6, momentum=0.0, weight_decay=0.0, batch_size=48, milestones=(1.0,)
    )
    of = trainer(replace(recipe, head_weight_decay=1e5))
    before = of.state()
    run(of)
    after = of.state()
    torch.testing.assert_close(
        after["module.6.weight"], 0.9 * before["module.6.weight"], rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(
        after["module.0.weight"], before["module.0.weight"], atol=1e-5, rtol=0
    )


def test_the_last_layer_may_learn_at_a_rate_of_its_own() -> None:
    """The first step without momentum, decay or mixed batches is the rate times the gradient."""
    moved = []
    for factor in (1.0, 0.05):
        recipe = replace(
            RECIPE, epochs=1, momentum=0.0, weight_decay=0.0, batch_size=48, head_lr_factor=factor
        )
        of = trainer(recipe)
        before = of.state()
        run(of)
        after = of.state()
        moved.append({name: after[name] - before[name] for name in after})
    whole, scaled = moved
    for name in whole:
        wanted = whole[name] * (0.05 if name in ("module.6.weight", "module.6.bias") else 1)
        torch.testing.assert_close(scaled[name], wanted, rtol=1e-4, atol=1e-7)
    assert float(whole["module.6.weight"].abs().max()) > 1e-3


def test_features_are_what_the_last_layer_sees() -> None:
    of = trainer()
    run(of, epochs=1)
    features = of.features(images())
    layer = of.module.get_submodule("6")
    right = (layer(features).argmax(dim=1) == images().labels).float().mean()
    assert float(right) == of.accuracy(images())
    of.set_last_layer(torch.zeros(2, 32), torch.tensor([1.0, 0.0]))
    assert of.accuracy(images()) == 0.5


def test_another_seed_trains_otherwise_and_the_same_seed_alike() -> None:
    assert run(trainer(seed=1)) == run(trainer(seed=1))
    assert run(trainer(seed=1)) != run(trainer(seed=2))


def test_a_loss_that_is_not_finite_stops_training_and_names_the_rate() -> None:
    with pytest.raises(
        NotFiniteError, match=r"at step \d in epoch 1; lower the learning"
    ) as raised:
        run(trainer(RECIPE.changed(lr=1e20)))
    assert "\n" not in str(raised.value)
    assert raised.value.epoch == 1
    assert raised.value.step > 1  # the first step is taken with the weights of the start


def test_half_precision_trains_too() -> None:
    losses = run(trainer(RECIPE.changed(epochs=8), amp=True))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("amp", [False, True])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(amp: bool) -> None:
    first, second = trainer(amp=amp), trainer(amp=amp)
    assert run(first) == run(second)
    other = second.state()
    assert all(torch.equal(tensor, other[name]) for name, tensor in first.state().items())


def test_a_step_is_that_of_sgd_with_nesterov_momentum_and_decay() -> None:
    """One kernel for the whole step follows the formula, here written out for two steps."""
    recipe = replace(RECIPE, epochs=2, batch_size=48, augmentation=(), nesterov=True)
    of = trainer(recipe)
    of.module.get_submodule("5").p = 0.0
    by_hand = network()
    by_hand.get_submodule("5").p = 0.0
    run(of)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (recipe.mean, recipe.std))
    seen = (images().pixels / 255 - mean) / std
    momenta = [torch.zeros_like(parameter) for parameter in by_hand.parameters()]
    for epoch in range(2):
        loss = nn.functional.cross_entropy(by_hand(seen), images().labels)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient, momentum in zip(
                by_hand.parameters(), gradients, momenta, strict=True
            ):
                decayed = gradient + recipe.weight_decay * parameter
                momentum.mul_(recipe.momentum).add_(decayed)
                rate = recipe.learning_rate(epoch, epoch / 2)
                parameter.sub_(rate * (decayed + recipe.momentum * momentum))
    for name, wanted in by_hand.named_parameters():
        found = of.state()[f"module.{name}"]
        torch.testing.assert_close(found, wanted.detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "objective", ["cross-entropy", "ish", pytest.param("alpa", marks=pytest.mark.slow)]
)
def test_a_compiled_network_has_its_hooks_and_its_names(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the making of machine code, which changes rounding and takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = trainer(objective=objective), trainer(objective=objective, compiled=True)
    assert run(compiled, epochs=2) == run(plain, epochs=2)
    assert compiled.state().keys() == plain.state().keys()


def test_a_network_that_cannot_be_compiled_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("no such layer")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(InvalidInputError, match=r"no such layer.*omit --compile$") as raised:
        run(trainer(compiled=True))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
@pytest.mark.parametrize("objective", ["cross-entropy", "ish", "alpa"])
def test_compiled_training_learns_and_resumes_after_a_cut(objective: str) -> None:
    recipe = RECIPE.changed(epochs=3)
    whole = trainer(recipe, objective=objective, compiled=True)
    losses = run(whole)
    assert losses[-1] < losses[0]
    first = trainer(recipe, objective=objective, compiled=True)
    begun = run(first, epochs=1)
    second = trainer(recipe, objective=objective, compiled=True)
    second.load_state(first.state())
    assert begun + run(second, done=1) == losses
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [
        "featurenorm-resnet18", "mode-base", "randaugment-cifar", "augmix-cifar", "pixmix-cifar",
        "cutout-cifar", "mixup-cifar", "cutmix-cifar", "regmixup-cifar",
    ],
)  # fmt: skip
def test_no_step_waits_for_a_gpu(name: str) -> None:
    """Only the end of an epoch does; a step that waits would raise here."""
    augmentation = recipe_named(name, "cifar10").augmentation
    recipe = replace(RECIPE, augmentation=augmentation, epochs=2)
    of = trainer(recipe, device="cuda")
    run(of, epochs=1, device="cuda")
    waits = []

    class Task:
        def advance(self, _amount: int, /, **fields: str) -> None:
            if not fields:
                torch.cuda.set_sync_debug_mode("error")
                waits.append("step")

    seen = LabelledPixels(images().pixels.cuda(), images().labels.cuda())
    epochs = of.epochs(seen, None, done=1, task=Task(), pictures=pictures().cuda())
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):  # the end of the epoch
            next(epochs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True])
def test_the_same_seed_gives_the_same_weights_on_a_gpu(amp: bool) -> None:
    first, second = trainer(amp=amp, device="cuda"), trainer(amp=amp, device="cuda")
    assert run(first, device="cuda") == run(second, device="cuda")
    other = second.state()
    assert all(torch.equal(tensor, other[name]) for name, tensor in first.state().items())


def test_stats_tell_what_happened() -> None:
    told: list[dict[str, str]] = []
    counted = []

    class Task:
        def advance(self, amount: int, /, **fields: str) -> None:
            counted.append(amount)
            if fields:
                told.append(fields)

    with nullcontext(Task()) as task:
        (stats, *_) = list(trainer().epochs(images(), None, done=3, task=task))
    assert stats.epoch == 4
    assert stats.val_accuracy is None
    assert stats.lr == pytest.approx(0.05 * 0.1**2)
    assert 0 <= stats.train_accuracy <= 1
    assert sum(counted) == 48
    assert told[0]["epoch"] == "4/4"
    assert told[0]["lr"] == "0.0005"
    assert set(stats.to_json()) == {
        "epoch", "loss", "train_accuracy", "val_accuracy", "lr", "seconds", "images_per_s",
    }  # fmt: skip


def test_the_epoch_under_way_has_a_bar_of_its_own() -> None:
    told: list[tuple[str, int | None, bool]] = []
    losses: list[str] = []

    class Watch(Silent):
        @contextmanager
        def task(self, description, /, *, total, unit, passing=False):
            told.append((description, total, passing))

            class Part:
                done = 0

                def advance(self, amount, /, **fields):
                    self.done += amount
                    losses.extend(fields.values())

            part = Part()
            yield part
            assert part.done == total

    of = trainer()
    with Silent().task("", total=None, unit="") as task:
        stats = list(of.epochs(images(), None, done=0, task=task, progress=Watch()))
    epochs = len(stats)
    assert told == [(f"epoch {i}/{epochs}", len(images()), True) for i in range(1, epochs + 1)]
    steps = len(losses) // epochs
    for index, each in enumerate(stats):
        assert float(losses[(index + 1) * steps - 1]) == pytest.approx(each.loss, abs=1e-3)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "overrun"),
    [(8, 1, 2, True), (16, 1, 2, False), (8, 3, 2, False), (8, 1, 1, False)],
)
def test_what_onednn_gets_wrong_is_not_trained_channels_last(
    channels: int, kernel: int, stride: int, overrun: bool
) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 6, kernel, stride), nn.Flatten(),
        nn.LazyLinear(2),
    )  # fmt: skip
    module(torch.zeros(1, 3, 8, 8))
    assert unsafe_in_channels_last(module) is overrun
    Trainer(module, recipe_named("digits", "digits"), seed=0, device=torch.device("cpu"), amp=False)
    assert module[0].weight.is_contiguous() is overrun


def test_a_narrow_network_survives_larger_images(tmp_path: Path) -> None:
    """Channels-last, a process dies of this, and not always at once."""
    path = tmp_path / "program.py"
    path.write_text("""
import torch
from oodcli.models import parse_architecture
from oodcli.progress import Silent
from oodcli.training.loop import LabelledPixels, Trainer
from oodcli.training.recipes import Recipe
torch.set_num_threads(1)
module = parse_architecture("resnet18:width=4").build(3)
recipe = Recipe("test", "here", epochs=1, batch_size=128)
of = Trainer(module, recipe, seed=0, device=torch.device("cpu"), amp=False, head="fc")
seen = LabelledPixels(torch.zeros(384, 3, 64, 64, dtype=torch.uint8), torch.zeros(384).long())
with Silent().task("", total=None, unit="") as task:
    print(len(list(of.epochs(seen, None, done=0, task=task))))
""")
    code, out, err = Program(path).ended()
    assert (code, out) == (0, "1\n"), err
