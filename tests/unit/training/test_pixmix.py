"""PixMix, against the algorithm written for one image with Pillow, and its mixing sets."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import beta, ks_2samp, kstest
from torch import Tensor

from oodcli.compute.processes import Processes
from oodcli.data.formats.fractals import FractalSource, fractal
from oodcli.errors import InvalidInputError
from oodcli.progress import SILENT
from oodcli.store.outlier_source import OutlierSource
from oodcli.store.preprocess import Preprocess
from oodcli.store.store import Store
from oodcli.training.augment import augmented
from oodcli.training.augmentations import pixmix as module
from oodcli.training.augmentations.operations import number_of
from oodcli.training.augmentations.pixmix import added, multiplied, pixmix, weights_of
from oodcli.training.mixing_sets import MixingSets
from oodcli.training.outlier_sets import OutlierSets
from oodcli.training.outliers import augmentation_of
from oodcli.training.recipe_choice import recipe_named
from oodcli.training.recipes import Recipe

SIDE, WHOLE = 24, 27
RECIPE = Recipe("test", "here", epochs=1, augmentation=("pixmix",))


@lru_cache
def image() -> Tensor:
    """Return a smooth image with some noise, uint8 ``(3, 24, 24)``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")[0]
    return (smooth * 200 + torch.rand(3, SIDE, SIDE, generator=generator) * 55).to(torch.uint8)


@lru_cache
def pictures() -> Tensor:
    """Return four pictures, uint8 ``(4, 3, 27, 27)``."""
    every = np.stack(list(FractalSource(4, WHOLE).read(0, 4)))
    return torch.from_numpy(every.transpose(0, 3, 1, 2).copy())


def test_images_are_added_and_multiplied_by_hand() -> None:
    one, other = (torch.full((2, 3, 1, 1), value) for value in (0.25, 0.75))
    a, b = (torch.full((2, 1, 1, 1), value) for value in (0.8, 0.4))
    total = added(one, other, a, b).unique().tolist()
    assert total == pytest.approx([(0.8 * -0.5 + 0.4 * 0.5 + 1) / 2])
    product = multiplied(one, other, a, b).unique().tolist()
    assert product == pytest.approx([0.5**0.8 * 1.5**0.4 / 2])
    assert torch.isfinite(multiplied(one, torch.zeros_like(other), a, -b)).all()


def test_weights_are_those_of_beta_distributions() -> None:
    a, b = (each.flatten().numpy() for each in weights_of(4000, _seeded(0), 3.0))
    plain = a < 1
    assert plain.mean() == pytest.approx(0.5, abs=0.03)
    assert ((b > 0) == plain).all()
    for values, wanted in (
        (a[plain], beta(3, 1)),
        (b[plain], beta(1, 3)),
        (a[~plain] - 1, beta(1, 3)),
        (-b[~plain], beta(1, 3)),
    ):
        assert kstest(values, wanted.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(a[plain], b[plain])[0, 1]) < 0.08


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "level", "wanted"),
    [
        ("shear-x", 3.0, -0.09),
        ("translate-x", 2.6, -2.0),  # int(0.26 x 24 / 3)
        ("translate-y", 2.6, -2.0),
        ("rotate", 2.9, -8.0),
        ("posterize", 2.6, 3.0),
        ("posterize", 2.4, 4.0),
        ("solarize", 3.0, 180.0),
        ("colour", 3.0, 0.64),
        ("brightness", 0.1, 0.118),
    ],
)
def test_strengths_are_those_of_the_code_of_the_authors(
    name: str, level: float, wanted: float
) -> None:
    kinds = torch.tensor([number_of(name)])
    found = module._strengths(kinds, torch.tensor([level]), torch.tensor([True]), (SIDE, SIDE))
    assert float(found) == pytest.approx(wanted, abs=1e-5)


def _operation(of: Image.Image, random: np.random.Generator) -> Image.Image:
    """Apply one of the 13 operations of severity 3 with Pillow."""
    level = random.uniform(0.1, 3) / 10
    sign = random.choice([-1, 1])

    def affine(*numbers: float) -> Image.Image:
        return of.transform(of.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR)

    shear, shift = sign * level * 0.3, sign * int(level * SIDE / 3)
    choices: list[Callable[[], Image.Image]] = [
        lambda: ImageOps.autocontrast(of),
        lambda: ImageOps.equalize(of),
        lambda: ImageOps.posterize(of, 4 - int(level * 4)),
        lambda: of.rotate(sign * int(level * 30), Image.Resampling.BILINEAR),
        lambda: ImageOps.solarize(of, 256 - int(level * 256)),
        lambda: affine(1, shear, 0, 0, 1, 0),
        lambda: affine(1, 0, 0, shear, 1, 0),
        lambda: affine(1, 0, shift, 0, 1, 0),
        lambda: affine(1, 0, 0, 0, 1, shift),
        lambda: ImageEnhance.Color(of).enhance(level * 1.8 + 0.1),
        lambda: ImageEnhance.Contrast(of).enhance(level * 1.8 + 0.1),
        lambda: ImageEnhance.Brightness(of).enhance(level * 1.8 + 0.1),
        lambda: ImageEnhance.Sharpness(of).enhance(level * 1.8 + 0.1),
    ]
    return choices[random.integers(len(choices))]()


def _by_pillow(random: np.random.Generator) -> NDArray[np.float64]:
    """Apply PixMix to the image, step by step as the paper describes it."""
    own = Image.fromarray(image().permute(1, 2, 0).numpy())
    picture = pictures()[random.integers(4)].permute(1, 2, 0).numpy()
    top, left = random.integers(WHOLE - SIDE + 1, size=2)
    crop = picture[top : top + SIDE, left : left + SIDE] / 255
    mixture = np.asarray(_operation(own, random) if random.random() < 0.5 else own) / 255
    for _ in range(random.integers(5)):
        other = np.asarray(_operation(own, random)) / 255 if random.random() < 0.5 else crop
        adds = random.random() < 0.5
        if random.random() < 0.5:
            a, b = random.beta(3, 1), random.beta(1, 3)
        else:
            a, b = 1 + random.beta(1, 3), -random.beta(1, 3)
        if adds:
            mixture = (a * (2 * mixture - 1) + b * (2 * other - 1) + 1) / 2
        else:
            mixture = (2 * mixture) ** a * (2 * other).clip(1e-37) ** b / 2
        mixture = mixture.clip(0, 1)
    return np.asarray(mixture * 255)


def test_pixmix_is_distributed_as_the_algorithm_for_one_image() -> None:
    random = np.random.default_rng(5)
    wanted = np.stack([_by_pillow(random) for _ in range(800)]).transpose(0, 3, 1, 2)
    many = image().expand(2000, 3, SIDE, SIDE)
    found = pixmix(many, pictures(), _seeded(9), rounds=4, beta=3.0, severity=3.0).numpy()
    assert found.dtype == np.float32
    found = found.astype(np.float64)
    assert found.min() >= 0
    assert found.max() <= 255
    limit = 1.95 * (1 / 800 + 1 / 2000) ** 0.5  # once in a thousand
    own = image().numpy().astype(float)
    measures: tuple[Callable[[NDArray[np.floating]], NDArray[np.floating]], ...] = (
        lambda every: np.abs(every - own).mean(axis=(1, 2, 3)),
        lambda every: every.mean(axis=(1, 2, 3)),
        lambda every: every.std(axis=(1, 2, 3)),
        lambda every: every[:, 1, 12, 12],
    )
    for of in measures:
        # Rounded, because a tenth of all results is the image itself, or nearly.
        both = [(of(every) / 2).round() for every in (found, wanted)]
        assert ks_2samp(*both).statistic < limit


def test_images_are_mixed_independently_and_the_same_again() -> None:
    many = image().expand(64, 3, SIDE, SIDE)
    found = augmented(many, _seeded(0), RECIPE, pictures())
    assert len({each.numpy().tobytes() for each in found}) > 50
    assert torch.equal(found, augmented(many, _seeded(0), RECIPE, pictures()))
    assert not torch.equal(found, found.round())  # real values


def test_fractals_are_many_different_pictures_and_always_the_same() -> None:
    source = FractalSource(12, 32)
    every = list(source.read(0, 12))
    assert np.array_equal(every[5], next(iter(source.read(5, 6))))
    assert np.array_equal(every[5], fractal(5, 32))
    assert {each.shape for each in every} == {(32, 32, 3)}
    flat = np.stack(every).reshape(12, -1).astype(float)
    assert (flat.std(axis=1) > 8).all()
    apart = np.abs(flat[:, None] - flat[None]).mean(axis=2)
    assert apart[~np.eye(12, dtype=bool)].min() > 8
    assert source.fingerprint != FractalSource(12, 33).fingerprint


def sets(store: Path, progress: object = SILENT) -> MixingSets:
    """Return what opens mixing sets for images of 32 pixels."""
    return MixingSets(OutlierSets(Store(store), Preprocess((32, 32), "exact"), False, SILENT))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder of three pictures of different sizes."""
    place = tmp_path / "pictures"
    place.mkdir()
    for number, size in enumerate([(40, 60), (36, 36), (100, 50)]):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return place


def test_any_set_serves_as_mixing_set_and_is_recorded_with_its_digest(
    folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_named("pixmix-cifar")
    of = sets(tmp_path / "store")
    source = of.plan(str(folder), recipe, processes=Processes())
    assert source is not None
    assert (source.name, source.images, source.made) == ("pictures", 3, False)
    found = of.opened(source, torch.device("cpu"))
    assert found.shape == (3, 3, 36, 36)
    assert found.dtype == torch.uint8
    assert "not the published" not in source.of_mixing
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    with pytest.raises(InvalidInputError, match="the pictures of the mixing set pictures"):
        of.opened(source, torch.device("cpu"))


def test_fractals_stand_in_for_the_published_mixing_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodcli.data.formats import fractals

    monkeypatch.setattr(fractals, "COUNT", 5)
    monkeypatch.setattr(fractals, "SIDE", 40)
    recipe = recipe_named("pixmix-cifar")
    of = sets(tmp_path / "store")
    source = of.plan(None, recipe, processes=Processes())
    assert source is not None
    assert (source.source, source.images) == ("fractals", 5)
    assert "computed by ood; not the published mixing set" in source.of_mixing
    published = tmp_path / "store" / "datasets" / "pixmix" / "fractals_and_fvis" / "fractals"
    published.mkdir(parents=True)
    Image.fromarray(fractal(0, 40)).save(published / "a.png")
    source = of.plan(None, recipe, processes=Processes())
    assert source == OutlierSource(
        "pixmix", "pixmix", part="test", images=1, digest=source.digest if source else ""
    )


def test_a_mixing_set_without_pixmix_and_pixmix_of_outliers_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    of = sets(tmp_path / "store")
    assert of.plan(None, recipe_named("openood-cifar"), processes=Processes()) is None
    with pytest.raises(InvalidInputError, match="--mixing-set is for recipes with"):
        of.plan(str(folder), recipe_named("openood-cifar"), processes=Processes())
    for word in ("pixmix", "mixup"):
        with pytest.raises(InvalidInputError, match=f"not mixed with other images: remove {word}"):
            replace(RECIPE, outlier_augmentation=("flip", word))
    assert replace(RECIPE, augmentation=("flip", "pixmix", "mixup")).outlier_steps == ("flip",)


def test_outliers_are_augmented_by_augmix_where_that_is_asked_for() -> None:
    compared = replace(RECIPE, augmentation=("flip", "augmix"))
    assert augmentation_of(compared, cropped=False).augmentation == ("flip",)
    alone = replace(compared, jsd_weight=0)
    assert augmentation_of(alone, cropped=False).augmentation == ("flip", "augmix")
    asked = replace(compared, outlier_augmentation=("augmix", "cutout"))
    of_outliers = augmentation_of(asked, cropped=False)
    many = image().expand(32, 3, SIDE, SIDE)
    found = augmented(many, _seeded(0), replace(of_outliers, augmentation=("augmix",)))
    assert len({each.numpy().tobytes() for each in found}) > 20
