"""Activations and what probes leave, stored and found again."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from oodcli.compute.compute import Compute
from oodcli.data.views import Kind, View
from oodcli.errors import CorruptArtifactError
from oodcli.images import ImageSet, ImageShard
from oodcli.models import network_of, parse_architecture, save_weights
from oodcli.progress import Progress, Silent
from oodcli.scoring.activate import Activator
from oodcli.store.activations import ActivationFolder
from oodcli.store.run_names import find_run
from oodcli.store.runs import RunFolder
from oodcli.store.store import Store, read_json
from oodcli.workflows.import_request import ImportRequest
from oodcli.workflows.importing import import_checkpoint
from tests.unit.models.test_probes import PROBES, Largest, LastMap, Slope


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run with random weights."""
    torch.manual_seed(0)
    spec = parse_architecture("resnet18:width=2")
    save_weights(network_of(spec, spec.build(6)), tmp_path / "random.safetensors")
    store = Store(tmp_path / "store")
    import_checkpoint(
        store, ImportRequest(tmp_path / "random.safetensors", arch=spec.canonical, data="digits")
    )
    return find_run(store, None)


@pytest.fixture
def images() -> ImageSet:
    """Return two shards of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)

    def shard(rows: slice) -> ImageShard:
        part = pixels[rows]
        return ImageShard(np.arange(9)[rows], lambda: [part])

    return ImageSet("noise", [shard(slice(0, 5)), shard(slice(5, 9))])


def activator(folder: RunFolder, progress: Progress | None = None) -> Activator:
    return Activator(
        Store(folder.path.parents[1]), folder, folder.read(),
        Compute(torch.device("cpu")), progress=progress or Silent(),
    )  # fmt: skip


def test_several_probes_share_one_pass_and_are_found_again(
    folder: RunFolder, images: ImageSet
) -> None:
    first = activator(folder)
    made = first.activations(images, probes=PROBES)
    assert first.passes.computed == {"noise": 9}
    again = activator(folder)
    found = again.activations(images, probes=PROBES[:2])
    assert again.passes.cached == {"noise": 9}
    assert again.passes.computed == {"noise": 0}
    for name in ("features", "slope", "last map"):
        assert torch.equal(found.column(name), made.column(name))


def test_a_probe_that_comes_later_costs_one_pass_and_keeps_what_was_stored(
    folder: RunFolder, images: ImageSet
) -> None:
    plain = activator(folder).activations(images)
    files = set(folder.path.parents[1].rglob("activations/**/*.safetensors"))
    later = activator(folder)
    probed = later.activations(images, probes=[Slope()])
    assert later.passes.computed == {"noise": 9}
    assert files < set(folder.path.parents[1].rglob("activations/**/*.safetensors"))
    assert torch.equal(probed.features, plain.features)
    assert "slope" not in next(plain.chunks()).extra


def test_only_the_shards_and_probes_that_are_missing_are_computed(
    folder: RunFolder, images: ImageSet
) -> None:
    part = ImageSet("part", images.shards[:1])
    activator(folder).activations(part, probes=[LastMap()])
    rest = activator(folder)
    rest.activations(images, probes=[LastMap()])
    assert rest.passes.computed == {"noise": 4}
    both = activator(folder)
    both.activations(images, probes=[LastMap(), Slope()])
    assert both.passes.computed == {"noise": 9}


@pytest.mark.parametrize("harm", ["truncated", "flipped", "removed"])
def test_a_damaged_array_of_a_probe_is_made_again(
    folder: RunFolder, images: ImageSet, harm: str
) -> None:
    made = activator(folder).activations(images, probes=[Slope()]).column("slope")
    victim = next(folder.path.parents[1].rglob("probe-*/*.safetensors"))
    content = victim.read_bytes()
    if harm == "removed":
        victim.unlink()
    else:
        victim.write_bytes(
            content[:-3] if harm == "truncated" else content[:-1] + bytes([content[-1] ^ 1])
        )
    again = activator(folder)
    assert torch.equal(again.activations(images, probes=[Slope()]).column("slope"), made)
    assert 0 < again.passes.computed["noise"] < 9


CHOSEN = np.array([1, 4, 7])


@pytest.mark.parametrize("view", ["plain", "jigsaw"])
def test_chosen_images_take_what_is_stored_of_all(
    folder: RunFolder, images: ImageSet, view: Kind
) -> None:
    whole = activator(folder).activations(images, view=View(view))
    few = activator(folder)
    found = few.activations(images.take(CHOSEN), view=View(view))
    assert (few.passes.computed, few.passes.cached) == ({"noise": 0}, {"noise": 3})
    for name in ("features", "logits", "block_norms"):
        assert torch.equal(found.column(name), whole.column(name)[CHOSEN])


def test_chosen_images_take_what_probes_left_and_compute_what_none_did(
    folder: RunFolder, images: ImageSet
) -> None:
    slopes = activator(folder).activations(images, probes=[Slope()]).column("slope")
    few = activator(folder)
    found = few.activations(images.take(CHOSEN), probes=[Slope()])
    assert few.passes.computed == {"noise": 0}
    assert torch.equal(found.column("slope"), slopes[CHOSEN])
    few.activations(images.take(CHOSEN), probes=[Slope(), LastMap()])
    assert few.passes.computed == {"noise": 3}


def test_chosen_images_of_which_a_part_is_stored_are_computed(
    folder: RunFolder, images: ImageSet
) -> None:
    activator(folder).activations(ImageSet("part", images.shards[:1]))
    few = activator(folder)
    few.activations(images.take(CHOSEN))
    assert few.passes.computed == {"noise": 3}


@pytest.mark.parametrize("harm", ["flipped", "removed"])
def test_chosen_images_are_computed_where_what_they_come_from_is_damaged(
    folder: RunFolder, images: ImageSet, harm: str
) -> None:
    whole = activator(folder).activations(images).column("logits")
    opened = activator(folder).activations(images.take(CHOSEN))
    for victim in folder.path.parents[1].rglob("activations/**/*.safetensors"):
        content = victim.read_bytes()
        victim.unlink()
        if harm == "flipped":
            victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    torch.testing.assert_close(opened.column("logits"), whole[CHOSEN])
    again = activator(folder)
    torch.testing.assert_close(again.activations(images).column("logits"), whole)
    assert again.passes.computed == {"noise": 9}


def test_a_state_is_learned_once_for_the_same_images(folder: RunFolder, images: ImageSet) -> None:
    first = activator(folder)
    state = first.learned(images, Largest())
    assert first.passes.computed == {"noise": 9}
    again = activator(folder)
    assert torch.equal(again.learned(images, Largest())["largest"], state["largest"])
    assert again.passes.computed == {}
    other = ImageSet("part", images.shards[:1])
    again.learned(other, Largest())
    assert again.passes.computed == {"part": 5}


def test_a_damaged_state_is_learned_again(folder: RunFolder, images: ImageSet) -> None:
    state = activator(folder).learned(images, Largest())
    victim = next(folder.path.parents[1].rglob("states/*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    again = activator(folder)
    assert torch.equal(again.learned(images, Largest())["largest"], state["largest"])
    assert again.passes.computed == {"noise": 9}


def test_a_repair_waits_for_whoever_writes_the_same_activations(
    folder: RunFolder, images: ImageSet
) -> None:
    made = activator(folder).activations(images).features
    store = Store(folder.path.parents[1])
    place = ActivationFolder.of(store, folder.read(), precision="float32", view=View())
    damaged = place.places[0].stored()[images.shards[1].digest]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    waiting, said = threading.Event(), []

    class Listener(Silent):
        def note(self, message: str) -> None:
            said.append(message)
            waiting.set()

    reader = activator(folder, Listener())
    with ThreadPoolExecutor(1) as pool:
        with store.lock(place.lock_name("noise")):  # as a writer holds it
            found = pool.submit(lambda: reader.activations(images).features)
            assert waiting.wait(60)
            assert said == [
                f"waiting for another ood process that is creating {place.lock_name('noise')}"
            ]
            assert not found.done()
            assert damaged.exists()  # nothing is removed under the writer's hands
            damaged.write_bytes(whole)
        assert torch.equal(found.result(60), made)
    # The writer had made it again.
    assert reader.passes.computed == {"noise": 0}


def test_a_damaged_manifest_is_written_anew(folder: RunFolder, images: ImageSet) -> None:
    activator(folder).activations(images)
    place = ActivationFolder.of(
        Store(folder.path.parents[1]), folder.read(), precision="float32", view=View()
    )
    (manifest,) = place.path.glob("manifest.json")
    manifest.write_text(manifest.read_text().replace('"cpu": ', '"cpu": 9'))
    assert activator(folder).rate() is None
    place.places[0].stored()[images.shards[0].digest].unlink()
    activator(folder).activations(images)
    assert read_json(manifest)["key"] == place.key
    assert activator(folder).rate()


# Block norms alone


def test_block_norms_alone_are_those_of_the_whole_pass_and_take_no_more_room_than_they_need(
    folder: RunFolder, images: ImageSet
) -> None:
    view = View("jigsaw")
    norms = activator(folder).activations(images, view=view, norms_only=True)
    assert norms.features.shape == (9, 0)
    stored = list((folder.path.parents[1] / "activations").rglob("*.safetensors"))
    assert len(stored) == 2
    arrays = [safetensors.torch.load_file(path) for path in stored]
    assert {tuple(each) for each in arrays} == {("block_norms",)}
    assert sum(each["block_norms"].nbytes for each in arrays) == 9 * 8 * 4
    again = activator(folder)
    again.activations(images, view=view, norms_only=True)
    assert again.passes.computed == {"noise": 0}
    # The whole activations are another thing, and serve those who want the norms alone.
    whole = activator(folder)
    made = whole.activations(images, view=view)
    assert whole.passes.computed == {"noise": 9}
    assert torch.equal(made.block_norms, norms.block_norms)
    assert made.features.shape == (9, 16)


def test_whole_activations_serve_who_wants_block_norms_alone(
    folder: RunFolder, images: ImageSet
) -> None:
    whole = activator(folder).activations(images, view=View("jigsaw"))
    later = activator(folder)
    norms = later.activations(images, view=View("jigsaw"), norms_only=True)
    assert later.passes.computed == {"noise": 0}
    assert torch.equal(norms.block_norms, whole.block_norms)
    some = images.take(np.array([1, 4, 5, 8]))
    assert torch.equal(
        activator(folder).activations(some, norms_only=True).block_norms,
        activator(folder).activations(images).block_norms[[1, 4, 5, 8]],
    )


def test_damaged_block_norms_are_made_again(folder: RunFolder, images: ImageSet) -> None:
    made = activator(folder).activations(images, norms_only=True).block_norms
    victim = next(folder.path.parents[1].rglob("norms/*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-3])
    again = activator(folder)
    assert torch.equal(again.activations(images, norms_only=True).block_norms, made)
    assert 0 < again.passes.computed["noise"] < 9


def test_images_of_stored_shards_are_neither_read_nor_computed(
    folder: RunFolder, images: ImageSet
) -> None:
    made = activator(folder).activations(images)

    def read() -> None:
        raise AssertionError("its pixels were read")

    known = ImageSet(
        "noise", [ImageShard(each.indices, read, each.digest) for each in images.shards]
    )
    some = activator(folder)
    rows = np.array([0, 3, 7])
    assert torch.equal(some.activations(known.take(rows)).features, made.features[rows])
    assert some.passes.cached == {"noise": 3}


# Chunks


@pytest.mark.parametrize("kind", ["plain", "jigsaw", "gaussian-noise"])
def test_what_is_stored_does_not_depend_on_how_images_are_read(
    folder: RunFolder, images: ImageSet, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    def stored() -> dict[str, bytes]:
        root = folder.path.parents[1] / "activations"
        found = {path.name: path.read_bytes() for path in root.rglob("*.safetensors")}
        shutil.rmtree(root)
        return found

    def compute(images: ImageSet) -> dict[str, bytes]:
        active = activator(folder)
        active.activations(images, view=View(kind), probes=PROBES[:1])
        active.learned(images, Largest())
        return stored()

    monkeypatch.setattr("oodcli.models.extraction._PIXELS_CPU", 0)  # the smallest batch: 8
    monkeypatch.setattr("oodcli.models.extraction._SMALLEST_BATCH", 2)
    in_one = compute(images)
    cut = [
        replace(each, chunks=lambda each=each: iter(np.split(each.load(), [1, 4])))
        for each in images.shards
    ]
    assert len(in_one) == 5
    assert compute(replace(images, shards=cut)) == in_one


def test_a_shard_that_changes_while_it_is_read_leaves_nothing(
    folder: RunFolder, images: ImageSet
) -> None:
    first, second = images.shards

    def chunks() -> Iterator[np.ndarray]:
        yield second.load()[:2]
        raise CorruptArtifactError("changed since they were read")

    damaged = ImageSet("noise", [first, ImageShard(second.indices, chunks, second.digest)])
    with pytest.raises(CorruptArtifactError, match="changed since they were read"):
        activator(folder).activations(damaged)
    again = activator(folder)
    again.activations(images)
    assert again.passes.computed == {"noise": 4}
