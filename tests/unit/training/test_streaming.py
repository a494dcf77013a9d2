"""Images that are decoded as they are needed train the network that images in memory train."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oodcli.compute.processes import Processes
from oodcli.data.decoding.crops import RandomCrops
from oodcli.data.decoding.random_access import Decoders
from oodcli.data.decoding.scaling import Resizing
from oodcli.data.formats.arrays import ArraySource
from oodcli.progress import Silent
from oodcli.training import streaming
from oodcli.training.loop import LabelledPixels, Trainer
from oodcli.training.objectives.registry import parse_objective
from oodcli.training.recipes import RECIPES, Recipe
from oodcli.training.streaming import (
    StreamedImages,
    TrainingImages,
    after_crop,
    crops_originals,
    fits,
)

RECIPE = Recipe("test", "here", epochs=3, batch_size=16, lr=0.05, crop_padding=1)
CROPPING = replace(RECIPE, augmentation=("resized-crop", "flip", "jitter"))
RESIZING = Resizing((8, 8), "shorter-crop:9")
ROWS = np.delete(np.arange(50), [7, 20])  # two were left out as unreadable


def originals() -> np.ndarray:
    """Make images of two classes, of another size than that of training."""
    pixels = np.random.default_rng(0).integers(0, 90, (50, 13, 11, 3), dtype=np.uint8)
    pixels[::2, :6] += 150
    pixels[1::2, 6:] += 150
    return pixels


def labels() -> Tensor:
    return torch.from_numpy(ROWS % 2)


def in_memory() -> LabelledPixels:
    pixels = [RESIZING.apply(image).transpose(2, 0, 1) for image in originals()[ROWS]]
    return LabelledPixels(torch.from_numpy(np.stack(pixels)), labels())


def streamed(decoders: Decoders, scale: tuple[float, float] | None = None) -> StreamedImages:
    return StreamedImages(
        ArraySource(originals()),
        ROWS,
        labels(),
        resizing=RESIZING,
        decoders=decoders,
        crop_scale=scale,
        seed=4,
    )


def trainer(recipe: Recipe, objective: str) -> Trainer:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(32, 2),
    )  # fmt: skip
    chosen = parse_objective(objective).objective
    chosen.attach(module, "6")
    return Trainer(
        module,
        recipe,
        seed=4,
        device=torch.device("cpu"),
        amp=False,
        objective=chosen,
        head="6",
    )


def run(
    of: Trainer, train: TrainingImages, val: TrainingImages, *, done: int = 0, epochs: int = 9
) -> dict[str, Tensor]:
    """Train some epochs; return what was lost and learnt."""
    lines = []
    with Silent().task("training", total=None, unit="images") as task:
        for stats in of.epochs(train, val, done=done, task=task):
            lines.append([stats.loss, stats.train_accuracy or -1, stats.val_accuracy or -1])
            if stats.epoch == epochs:
                break
    return {**of.state(), "lines": torch.tensor(lines), "features": of.features(val)}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
def test_random_crops_are_resized_by_the_filter_of_the_run(filter_: str) -> None:
    scale, order = (0.2, 0.6), torch.arange(4)
    with Decoders(0) as decoders:
        images = StreamedImages(
            ArraySource(originals()), ROWS, labels(), decoders=decoders, crop_scale=scale, seed=4,
            resizing=Resizing((8, 8), f"shorter-crop:9:{filter_}"),
        )  # fmt: skip
        [[seen]] = list(images.arriving([order], epoch=2, views=1, share=torch.arange))
    crops = RandomCrops((8, 8), scale, 4, 2, 1, filter_)
    wanted = [crops.apply(originals()[row], int(row))[0] for row in ROWS[:4]]
    np.testing.assert_array_equal(seen.numpy(), np.stack(wanted))


@pytest.mark.parametrize("objective", ["cross-entropy", "supcon"])
def test_streamed_images_train_the_same_network_bit_for_bit(objective: str) -> None:
    images = in_memory()
    wanted = run(trainer(RECIPE, objective), images, images)
    with Decoders(0) as decoders:
        stream = streamed(decoders)
        assert_same(run(trainer(RECIPE, objective), stream, stream), wanted)


@pytest.mark.parametrize("objective", ["cross-entropy", "supcon"])
def test_crops_do_not_depend_on_workers_nor_on_a_cut(objective: str) -> None:
    images = in_memory()
    with Decoders(0) as here, Decoders(2) as there:
        whole = run(trainer(CROPPING, objective), streamed(here, (0.08, 1.0)), images)
        by_others = run(trainer(CROPPING, objective), streamed(there, (0.08, 1.0)), images)
        assert_same(whole, by_others)
        first = trainer(CROPPING, objective)
        begun = run(first, streamed(here, (0.08, 1.0)), images, epochs=1)
        second = trainer(CROPPING, objective)
        second.load_state(first.state())
        ended = run(second, streamed(here, (0.08, 1.0)), images, done=1)
    ended["lines"] = torch.cat([begun["lines"], ended["lines"]])
    assert_same(whole, ended)


def test_each_view_has_a_crop_of_its_own_out_of_the_original() -> None:
    with Decoders(0) as decoders:
        stream = streamed(decoders, (0.08, 1.0))
        (arrived,) = stream.arriving([torch.tensor([9, 2])], epoch=5, views=2, share=torch.arange)
    crops = RandomCrops((8, 8), (0.08, 1.0), seed=4, epoch=5, views=2)
    for at, row in enumerate(ROWS[[9, 2]]):
        wanted = crops.apply(originals()[row], int(row))
        for view in range(2):
            np.testing.assert_array_equal(arrived[view][at].numpy(), wanted[view])
    assert not torch.equal(arrived[0], arrived[1])


@pytest.mark.parametrize("scale", [None, (0.08, 1.0)])
def test_every_process_decodes_its_share_alone(scale: tuple[float, float] | None) -> None:
    batches = [torch.arange(5), torch.tensor([11])]
    with Decoders(0) as decoders:
        stream = streamed(decoders, scale)
        whole = list(stream.arriving(batches, epoch=1, views=2, share=torch.arange))
        seen = []
        for rank in range(2):
            processes = Processes(rank, 2)
            share = trainer_of(processes)._share
            parts = list(stream.arriving(batches, epoch=1, views=2, share=share))
            for views, part, rows in zip(whole, parts, batches, strict=True):
                mine = share(len(rows))
                others = np.setdiff1d(np.arange(len(rows)), mine.numpy())
                for view, own in zip(views, part, strict=True):
                    assert torch.equal(own[mine], view[mine])
                    assert own[others].count_nonzero() == 0
            seen.append(share(5).tolist())
        assert seen == [[0, 1, 2], [3, 4]]
        assert share(1).tolist() == [0]  # of an empty share, an image goes through all the same


def trainer_of(processes: Processes) -> Trainer:
    return Trainer(
        nn.Linear(2, 2),
        RECIPE,
        seed=0,
        device=torch.device("cpu"),
        amp=False,
        processes=processes,
    )


def test_recipes_that_crop_originals() -> None:
    cropping = {name for name, recipe in RECIPES.items() if crops_originals(recipe)}
    assert cropping >= {
        "openood-imagenet200", "t2fnorm-imagenet", "ish-imagenet", "mode-base",
        "regmixup-imagenet200",
    }  # fmt: skip
    assert not cropping & {"featurenorm-resnet18", "openood-cifar", "pixmix-cifar", "digits"}
    assert after_crop(RECIPES["mode-base"]) == ("flip", "jitter", "grey")
    later = replace(RECIPE, augmentation=("flip", "resized-crop", "grey"))
    assert crops_originals(later)
    assert after_crop(later) == ("flip", "grey")
    assert not crops_originals(replace(RECIPE, augmentation=("crop", "resized-crop")))
    assert not crops_originals(replace(RECIPE, augmentation=()))


def test_what_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fits(50_000, (32, 32), 10**9)
    assert fits(50_000, (32, 32), None)
    assert not fits(50_000, (32, 32), 300_000_000)  # more than half of what is free
    assert not fits(1_281_167, (224, 224), 10**12)
    monkeypatch.setattr(streaming, "MAX_BYTES_IN_MEMORY", 191)
    assert not fits(1, (8, 8), None)


def test_streams_hold_no_pixels_of_files(tmp_path: Path) -> None:
    """What stays in memory of a large set is its list of files."""
    from PIL import Image

    from oodcli.data.decoding.files import FileSource

    for row in range(3):
        Image.fromarray(originals()[row]).save(tmp_path / f"{row}.png")
    source = FileSource(tmp_path, ["0.png", "1.png", "2.png"])
    with Decoders(0) as decoders:
        stream = StreamedImages(
            source, np.arange(3), torch.zeros(3), resizing=RESIZING, decoders=decoders
        )
        first = [pixels.clone() for pixels in stream.spans([slice(0, 3)])]
        Image.fromarray(originals()[5]).save(tmp_path / "1.png")
        again = list(stream.spans([slice(0, 3)]))
    assert torch.equal(first[0][[0, 2]], again[0][[0, 2]])
    assert not torch.equal(first[0][1], again[0][1])
