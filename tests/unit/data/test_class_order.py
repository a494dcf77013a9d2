"""Classes in the order of a network's outputs."""

from pathlib import Path

import numpy as np
import pytest

from oodcli.data.class_order import in_order, read_class_names, with_labels_of
from oodcli.data.dataset import Dataset
from oodcli.data.formats.arrays import ArraySource
from oodcli.errors import InvalidInputError
from oodcli.images import Part

LABELS = np.array([0, 1, 2, 2, 0], dtype=np.int64)


def dataset(names: tuple[str, ...] = ("cat", "dog", "emu")) -> Dataset:
    images = ArraySource(np.zeros((5, 4, 4), dtype=np.uint8))
    parts = {"train": Part(images, LABELS), "test": Part(images, LABELS[::-1].copy())}
    return Dataset("pets", parts, names, "here", "pets.npz")


def test_labels_follow_their_names() -> None:
    opened = dataset()
    moved = in_order(opened, ("emu", "cat", "dog"), where="list")
    assert moved.class_names == ("emu", "cat", "dog")
    for part in ("train", "test"):
        before, after = opened.parts[part].labels, moved.parts[part].labels
        assert before is not None
        assert after is not None
        assert [moved.class_names[k] for k in after] == [opened.class_names[k] for k in before]
    assert in_order(moved, opened.class_names, where="list").parts["train"].labels is not None
    back = in_order(moved, opened.class_names, where="list").parts["train"].labels
    assert np.array_equal(back, LABELS)


def test_the_first_word_of_a_line_may_stand_for_the_class() -> None:
    moved = in_order(dataset(), ("dog a friend", "emu a bird", "cat"), where="list")
    assert moved.class_names == ("dog", "emu", "cat")


def test_the_same_order_changes_nothing() -> None:
    opened = dataset()
    assert in_order(opened, opened.class_names, where="list") is opened


@pytest.mark.parametrize(
    ("own", "names", "message"),
    [
        (
            ("cat", "dog", "emu"),
            ("cat", "dog"),
            "list does not name the 3 classes of pets: it lacks",
        ),
        (("cat", "dog", "emu"), ("cat", "dog", "yak"), "it lacks 'emu'; only it has 'yak'"),
        (("cat", "cat", "emu"), ("emu", "cat"), "classes of pets have the same name"),
    ],
)
def test_other_classes_are_refused(
    own: tuple[str, ...], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidInputError) as error:
        in_order(dataset(own), names, where="list")
    assert message in str(error.value)


def test_a_file_has_a_name_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("ému\r\n\n red cat \n".encode())
    assert read_class_names(path) == ("ému", "red cat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "has no classes"),
        (b"a\nb\na\n", "names class 'a' twice"),
        (b"\xff\xfe", "is not a text file"),
        (None, "there is no file"),
    ],
)
def test_a_file_that_is_no_list_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "classes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        read_class_names(path)


@pytest.mark.parametrize(
    ("own", "names", "numbered", "expected"),
    [
        (("cat", "dog", "emu"), ("ant", "emu", "dog", "cat"), (), (3, 2, 1)),
        (("n1", "n2", "n3"), ("n3 emu", "n0 ant", "n2 dog", "n1 cat"), (), (3, 2, 0)),
        # Numbers count in the order of the data, not in that of the network's outputs.
        (("0", "1", "2"), ("emu", "cat", "ant", "dog"), ("ant", "cat", "dog", "emu"), (2, 1, 3)),
        (("0", "1", "2"), ("2", "1", "0"), ("0", "1", "2"), (2, 1, 0)),
    ],
)
def test_labels_become_positions_in_a_longer_list_of_classes(
    own: tuple[str, ...],
    names: tuple[str, ...],
    numbered: tuple[str, ...],
    expected: tuple[int, ...],
) -> None:
    moved = with_labels_of(dataset(own), names, numbered=numbered)
    assert moved.class_names == names
    labels = moved.parts["train"].labels
    assert labels is not None
    assert labels.tolist() == [expected[label] for label in LABELS]


def test_a_class_that_the_network_lacks_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"pets has classes .* 'emu'; the network's are"):
        with_labels_of(dataset(), ("cat", "dog", "eel"))
