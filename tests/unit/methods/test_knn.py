"""KNN by hand, against another implementation, and all neighbours from one search."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oodcli.activations import Activations, ActivationSet, ActivationShard, Head, Reference
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.methods import _bank as bank_module
from oodcli.methods import parse_method
from oodcli.methods._bank import Bank
from oodcli.methods.base import score_many
from oodcli.methods.knn import KNN


def activations(features: Tensor) -> Activations:
    return Activations(features, features, features, features.argmax(dim=1))


def reference_of(features: Tensor) -> Reference:
    width = features.shape[1]
    return Reference(
        Head(torch.eye(width), torch.zeros(width)),
        load_train=lambda: ActivationSet.of(activations(features)),
    )


TRAIN = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 7.0], [-1.0, 0.0]])


def test_is_the_negative_squared_distance_to_the_kth_direction() -> None:
    # Cosines with (1, 0): 1, 3/5, 0, -1; squared distances 2 - 2c: 0, 0.8, 2, 4.
    batch = activations(torch.tensor([[5.0, 0.0]]))
    got = [KNN.fit(reference_of(TRAIN), k=k).score(batch).item() for k in (1, 2, 3, 4)]
    assert got == pytest.approx([0.0, -0.8, -2.0, -4.0], abs=1e-6)


def test_more_neighbours_than_training_images_means_the_farthest() -> None:
    knn = KNN.fit(reference_of(TRAIN), k=50)
    assert knn.k == 4
    assert knn.score(activations(torch.tensor([[5.0, 0.0]]))).item() == pytest.approx(-4.0)


def test_lengths_do_not_matter() -> None:
    knn = KNN.fit(reference_of(TRAIN), k=2)
    far, near = (knn.score(activations(torch.tensor([[3.0, 1.0]]) * s)) for s in (1e4, 1e-4))
    torch.testing.assert_close(far, near)


def test_a_zero_feature_is_at_distance_one() -> None:
    knn = KNN.fit(reference_of(TRAIN), k=3)
    assert knn.score(activations(torch.zeros(2, 2))).tolist() == [-1.0, -1.0]


def test_one_search_serves_every_k(
    reference: Reference, id_batch: Activations, monkeypatch: pytest.MonkeyPatch
) -> None:
    detectors = [KNN.fit(reference, k=k) for k in (50, 1, 100, 50)]
    apart = torch.stack([each.score(id_batch).double() for each in detectors], dim=1)
    asked: list[int] = []
    search = Bank.nearest
    monkeypatch.setattr(
        Bank, "nearest", lambda self, units, k: asked.append(k) or search(self, units, k)
    )
    torch.testing.assert_close(score_many(detectors, id_batch), apart)
    assert asked == [100]


def test_a_streamed_bank_gives_the_same_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(90, 16, generator=generator)
    batch = activations(torch.rand(20, 16, generator=generator))
    parts = [
        ActivationShard(30, lambda i=i: activations(features[i : i + 30])) for i in (0, 30, 60)
    ]
    head = Head(torch.eye(16), torch.zeros(16))
    held = KNN.fit(Reference(head, load_train=lambda: ActivationSet(parts)), k=7)
    monkeypatch.setattr(bank_module, "free_memory", lambda device: 1000)
    streamed = KNN.fit(Reference(head, load_train=lambda: ActivationSet(parts)), k=7)
    assert streamed.bank.held is None
    assert torch.equal(streamed.score(batch), held.score(batch))


def test_k_must_be_positive(reference: Reference) -> None:
    with pytest.raises(InvalidInputError, match=r"^knn:k must be at least 1, not 0$"):
        parse_method("knn:k=0").fit(reference)


def test_no_training_image_is_a_refusal() -> None:
    with pytest.raises(UndefinedMethodError):
        KNN.fit(reference_of(TRAIN[:0]))


def test_agrees_with_pytorch_ood(reference: Reference, id_batch: Activations) -> None:
    detector = pytest.importorskip("pytorch_ood.detector")
    theirs = detector.KNN(None, k=20)
    theirs.fit_features(reference.train.features, reference.labels)
    roots = theirs.predict_features(id_batch.features)
    # Theirs is the distance itself, and positive.
    ours = KNN.fit(reference, k=20).score(id_batch)
    torch.testing.assert_close((-ours).sqrt().double(), roots, rtol=1e-5, atol=0)


@pytest.mark.parametrize("part", ["test", "svhn_crops", "dtd10_32"])
def test_agrees_with_openood_on_real_activations(shared: Path, part: str) -> None:
    with np.load(shared / "reference" / "activations.npz") as stored:
        train, features = (torch.from_numpy(stored[f"{name}/features"]) for name in ("train", part))
    with np.load(shared / "reference" / "scores.npz") as stored:
        wanted = torch.from_numpy(stored[f"knn/{part}"])
    got = KNN.fit(reference_of(train), k=50).score(activations(features))
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=0)
