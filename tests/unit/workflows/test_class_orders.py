"""Classes of data against the order that a network or ImageNet states."""

from pathlib import Path

import numpy as np
import pytest

from oodcli.data.class_order import read_class_names
from oodcli.data.dataset import Dataset
from oodcli.data.formats.ilsvrc2012 import wnids
from oodcli.images import Part
from oodcli.models import Pretrained
from oodcli.workflows.class_orders import hint, in_network_order
from oodcli.workflows.import_request import ImportRequest, Outputs

WORDS = (*(f"Word {at}, other" for at in range(998)), "crane", "crane")


class NoImages:
    fingerprint = ""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, start, stop, /):
        yield from ()


def data(names):
    labels = np.arange(len(names))
    return Dataset("d", {"test": Part(NoImages(len(names)), labels)}, tuple(names), "x", "x")


def ordered(names, *, checkpoint=None, logits="data", classes=1000):
    request = ImportRequest(checkpoint, arch="torchvision:x", data="d", logits=logits)
    published = Pretrained("", {}, classes=classes, configuration="weights X", class_names=WORDS)
    dataset = data(names)
    found, outputs, lines = in_network_order(request, dataset, Outputs(len(names)), published)
    return found, outputs, lines


def test_all_wnids_in_order_need_no_line():
    found, outputs, lines = ordered(wnids())
    assert (found.class_names, outputs, lines) == (wnids(), Outputs(1000), ())


def test_wnids_in_another_order_are_moved_to_imagenets():
    found, outputs, lines = ordered(wnids()[::-1])
    assert found.class_names == wnids()
    assert found.parts["test"].labels.tolist() == list(range(1000))[::-1]
    assert lines == ("classes in the order of ImageNet's wnids",)
    assert outputs == Outputs(1000)


@pytest.mark.parametrize("count", [10, 999])
def test_some_wnids_are_found_among_the_outputs(count):
    names = wnids()[-count:][::-1]
    found, outputs, lines = ordered(names)
    assert found.class_names == names
    assert outputs == Outputs(1000, tuple(range(1000))[-count:][::-1])
    assert lines == ("classes in the order of ImageNet's wnids",)
    found, outputs, _ = ordered(names, logits="all")
    assert found.class_names == wnids()
    assert found.parts["test"].labels.tolist() == list(outputs.places)


def test_words_of_published_weights_are_matched():
    found, outputs, lines = ordered(["word_7", "word-3"])
    assert found.class_names == ("word_7", "word-3")
    assert outputs.places == (7, 3)
    assert lines == ("classes in the order of weights X",)
    # A name that two outputs have is none's.
    found, outputs, lines = ordered(["word_7", "crane"])
    assert (outputs.places, lines) == ((), ())


def test_a_mismatch_is_named():
    names = (*wnids()[:998], "dog", "cat")
    found, outputs, lines = ordered(names)
    assert (found.class_names, outputs) == (names, Outputs(1000))
    assert lines == (
        "classes in the order of d, since its class names do not match those of ImageNet's wnids "
        "(dog and 1 more); if the outputs have another order: --classes FILE",
    )
    assert ordered([str(at) for at in range(1000)])[2] == ()


def test_the_order_of_a_checkpoint_is_only_remarked_on(tmp_path):
    found, _, lines = ordered(wnids()[::-1], checkpoint=tmp_path / "x.pt")
    assert found.class_names == wnids()[::-1]
    assert lines == (
        "classes in the order of d, which is not that of ImageNet's wnids (class 0 is n15075141, "
        "not n01440764); if the outputs have that: --classes imagenet",
    )
    assert ordered(wnids(), checkpoint=tmp_path / "x.pt")[2] == ()


def test_imagenet_stands_for_its_wnids_where_no_file_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_class_names(Path("imagenet")) == wnids()
    (tmp_path / "imagenet").write_text("b\na\n")
    assert read_class_names(Path("imagenet")) == ("b", "a")


def test_the_hint_fits_the_data():
    assert hint(data(wnids()[:3]), None) == "if it has ImageNet's 1,000 classes: --classes imagenet"
    assert hint(data(wnids()[:3]), 5).endswith("--classes FILE")
    assert hint(data(["cat"]), 1000).endswith("--classes FILE")
