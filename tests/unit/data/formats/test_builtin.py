"""Data sets that need no download."""

import numpy as np
import pytest

from oodcli.data import DATASETS, open_dataset, prepare


def images(part):
    return np.stack(list(part.source.read(0, len(part))))


@pytest.mark.parametrize("name", [name for name, known in DATASETS.items() if not known.sources])
def test_has_as_many_images_as_the_registry_says(name, store):
    dataset = open_dataset(name, store)
    assert dataset.name == dataset.spec == name
    assert {part: len(content) for part, content in dataset.parts.items()} == dict(
        DATASETS[name].counts
    )
    assert bool(dataset.class_names) == (DATASETS[name].role == "id")


def test_digits_are_divided_without_loss_and_in_proportion(store):
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    dataset = open_dataset("digits", store)
    parts = dataset.parts
    assert dataset.class_names == ("0", "1", "2", "3", "4", "5")
    assert sum(len(part) for part in parts.values()) == int((labels < 6).sum())
    shares = {name: len(part) / 1083 for name, part in parts.items()}
    assert shares == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.001)
    for part in parts.values():
        counts = np.bincount(part.labels, minlength=6)
        assert counts.max() - counts.min() <= 0.05 * counts.sum() / 6 + 2
    seen = {image.tobytes() for part in parts.values() for image in images(part)}
    scaled = np.rint(values[labels < 6] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    assert seen == {np.repeat(image, 3, axis=2).tobytes() for image in scaled}


def test_digits_are_resized_when_prepared(store):
    part = open_dataset("digits-6-9", store).ood_part
    assert images(part).shape == (714, 8, 8, 3)
    assert prepare(part, store, name="digits-6-9").pixels().shape == (714, 3, 32, 32)


def test_photographs_are_crops_that_do_not_overlap(store):
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    crops = images(open_dataset("photographs", store).ood_part)
    np.testing.assert_array_equal(crops[0], china[:32, :32])
    np.testing.assert_array_equal(crops[21], china[32:64, 32:64])
    np.testing.assert_array_equal(crops[260], flower[:32, :32])
    np.testing.assert_array_equal(crops[519], flower[384:416, 608:640])


def test_grey_photographs_are_the_same_crops_without_colour(store):
    grey = images(open_dataset("photographs-grey", store).ood_part)
    colour = images(open_dataset("photographs", store).ood_part)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[..., 0], luma, atol=1)


def test_gaussian_noise_has_the_published_distribution(store):
    values = images(open_dataset("gaussian-noise", store).ood_part) / 255
    # N(0.5, 1) is clipped at half a standard deviation on either side.
    assert (values == 0).mean() == pytest.approx(0.3094, abs=0.002)
    assert (values == 1).mean() == pytest.approx(0.3094, abs=0.002)
    assert values.mean() == pytest.approx(0.5, abs=0.001)


def test_uniform_noise_has_the_published_distribution(store):
    values = images(open_dataset("uniform-noise", store).ood_part)
    shares = np.bincount(values.ravel(), minlength=256) / values.size
    assert shares[1:255] == pytest.approx(np.full(254, 1 / 255), rel=0.06)
    assert values.mean() / 255 == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("gaussian-noise", "cad29aebdaffaed32ddb815cf89c54a6"),
        ("uniform-noise", "07b1a3a41a6d34c0175e07b2d95e28ff"),
        ("digits-6-9", "63eec10228da74703076732ca8463ae4"),
        ("digits", "a61a3f26bba9595933202a542749f50b"),
    ],
)
def test_images_are_the_same_on_every_machine(store, name, digest):
    """Published figures rest on these pixels; a change belongs into the changelog."""
    assert prepare(open_dataset(name, store).ood_part, store, name=name).digest == digest
