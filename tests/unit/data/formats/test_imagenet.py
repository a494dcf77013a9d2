"""ImageNet in the layouts in which it lies on disks, made of small files under its names."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oodcli.data import DATASETS, open_dataset
from oodcli.data.formats.ilsvrc2012 import devkit_order, ground_truth, readable_class, wnids
from oodcli.data.formats.imagenet import in_order_of_wnids
from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.images import image_name
from oodcli.store.store import Store
from oodcli.workflows.datasets import add_dataset, published_count_warning

# The first validation images, as everybody who has ImageNet can look up.
FIRST = {1: "n01751748", 2: "n09193705", 3: "n02105855", 4: "n04263257", 5: "n03125729"}


def test_classes_have_readable_names():
    names = {
        "n01440764": "tench",
        "n03126707": "crane",
        "n04254777": "sock",
        "n15075141": "toilet tissue",
    }
    assert [readable_class(each) for each in names] == [f"{b} ({a})" for a, b in names.items()]
    # Every class has one, and no two have the same.
    assert len({readable_class(each).partition(" (n")[0] for each in wnids()}) == 1000
    assert readable_class("cat") == "cat"
    assert readable_class("n00000001") == "n00000001"


def jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def name_of(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def flat(folder: Path, numbers: tuple[int, ...] = (1, 2, 3, 4, 5)) -> None:
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / name_of(number)).write_bytes(jpeg(number))


def in_folders(folder: Path, numbers: tuple[int, ...] = (1, 2, 3, 4, 5)) -> None:
    for number in numbers:
        (folder / FIRST[number]).mkdir(parents=True, exist_ok=True)
        (folder / FIRST[number] / name_of(number)).write_bytes(jpeg(number))


def archive(path: Path, numbers: tuple[int, ...] = (1, 2, 3, 4, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            entry = tarfile.TarInfo(name_of(number))
            entry.size = len(jpeg(number))
            tar.addfile(entry, io.BytesIO(jpeg(number)))


def training(folder: Path, classes: tuple[str, ...]) -> None:
    for wnid in classes:
        (folder / wnid).mkdir(parents=True)
        for number in (1, 2):
            (folder / wnid / f"{wnid}_{number}.JPEG").write_bytes(jpeg(number))


def training_archive(path: Path, classes: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as outer:
        for wnid in classes:
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as inner:
                for number in (2, 1):
                    entry = tarfile.TarInfo(f"{wnid}_{number}.JPEG")
                    entry.size = len(jpeg(number))
                    inner.addfile(entry, io.BytesIO(jpeg(number)))
            entry = tarfile.TarInfo(f"{wnid}.tar")
            entry.size = len(stream.getvalue())
            outer.addfile(entry, io.BytesIO(stream.getvalue()))


def read(name: str, folder: Path, store: Store) -> dict[str, list[tuple[str, int]]]:
    """Return the class and the grey level of every image of each part."""
    dataset = open_dataset(f"{name}={folder}", store)
    found = {}
    for part, images in dataset.parts.items():
        assert images.labels is not None
        levels = [int(np.mean(image)) for image in images.source.read(0, len(images))]
        classes = [dataset.class_names[label] for label in images.labels]
        found[part] = sorted(zip(classes, levels, strict=True))
    return found


VALIDATION = sorted((wnid, number) for number, wnid in FIRST.items())


def test_the_facts_are_those_of_the_published_ground_truth() -> None:
    assert len(wnids()) == 1000
    assert list(wnids()) == sorted(wnids())
    # As outputs of published networks are numbered: 65 is a sea snake.
    assert ground_truth()[:10].tolist() == [65, 970, 230, 809, 516, 57, 334, 415, 674, 332]
    assert set(Counter(ground_truth().tolist()).values()) == {50}
    assert [wnids()[ground_truth()[number - 1]] for number in FIRST] == list(FIRST.values())


@pytest.mark.parametrize(
    ("lay", "where"),
    [
        (lambda home: in_folders(home / "val"), ""),
        (lambda home: in_folders(home / "val"), "val"),
        (lambda home: flat(home / "val"), ""),
        (lambda home: flat(home / "pictures"), "pictures"),
        (lambda home: archive(home / "ILSVRC2012_img_val.tar"), ""),
        (lambda home: archive(home / "ILSVRC2012_img_val.tar"), "ILSVRC2012_img_val.tar"),
        (lambda home: flat(home / "ILSVRC" / "Data" / "CLS-LOC" / "val"), ""),
    ],
    ids=["folders", "folders itself", "flat", "flat itself", "archive", "archive itself", "kaggle"],
)
def test_validation_images_alone_have_their_classes(
    lay: Callable[[Path], None], where: str, store: Store, tmp_path: Path
) -> None:
    lay(tmp_path / "home")
    assert read("imagenet", tmp_path / "home" / where, store) == {"val": VALIDATION}


@pytest.mark.parametrize("kind", ["folders", "flat", "archive"])
def test_training_images_say_which_classes_there_are(
    kind: str, store: Store, tmp_path: Path
) -> None:
    some = ("n01751748", "n02105855")
    home = tmp_path / "home"
    if kind == "folders":
        in_folders(home / "val", (1, 3))
    elif kind == "flat":
        flat(home / "val")
    else:
        archive(home / "ILSVRC2012_img_val.tar")
    training(home / "train", some)
    found = read("imagenet", home, store)
    assert found["val"] == [("n01751748", 1), ("n02105855", 3)]
    assert [wnid for wnid, _ in found["train"]] == sorted(some * 2)


def test_the_two_archives_as_published_are_read_in_place(store: Store, tmp_path: Path) -> None:
    home = tmp_path / "home"
    some = ("n02105855", "n01751748")
    training_archive(home / "ILSVRC2012_img_train.tar", some)
    archive(home / "ILSVRC2012_img_val.tar")
    expected = {
        "train": [("n01751748", 1), ("n01751748", 2), ("n02105855", 1), ("n02105855", 2)],
        "val": [("n01751748", 1), ("n02105855", 3)],
    }
    assert read("imagenet", home, store) == expected
    source = open_dataset(f"imagenet={home}", store).parts["train"].source
    # Headers are read once: the index is stored.
    (index,) = store.indices.glob("*.safetensors")
    written = index.stat().st_mtime_ns
    assert read("imagenet", home, store) == expected
    assert index.stat().st_mtime_ns == written
    assert image_name(source, 0) == "ILSVRC2012_img_train.tar/n01751748/n01751748_1.JPEG"
    folders = tmp_path / "folders"
    training(folders / "train", some)
    in_folders(folders / "val", (1, 3))
    assert read("imagenet", folders, store) == expected


@pytest.mark.parametrize("damage", ["cut", "other files"])
def test_another_archive_is_not_taken_for_the_training_images(
    damage: str, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "home" / "ILSVRC2012_img_train.tar"
    if damage == "cut":
        training_archive(path, ("n01751748", "n02105855"))
        path.write_bytes(path.read_bytes()[:9000])
    else:
        archive(path)
    with pytest.raises(CorruptArtifactError, match=r"img_train\.tar.*; get the archive again"):
        open_dataset(f"imagenet={path.parent}", store)


def test_names_of_classes_in_another_order_are_kept() -> None:
    known = [readable_class(wnid).partition(" (n")[0] for wnid in wnids()]
    words = [f"{name}, another word" for name in known]
    assert in_order_of_wnids(words)
    assert in_order_of_wnids(wnids())
    assert in_order_of_wnids([str(label) for label in range(1000)])
    assert not in_order_of_wnids(sorted(words))
    assert not in_order_of_wnids(wnids()[::-1])
    assert not in_order_of_wnids(wnids()[:999])


@pytest.mark.parametrize("below", ["", "data"])
def test_parquet_of_hugging_face_has_the_classes_by_wnid(
    below: str, store: Store, tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    pq = pytest.importorskip("pyarrow.parquet")
    names = [f"word {label}, another word" for label in range(1000)]
    features = {
        "image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names},
    }  # fmt: skip
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    home = tmp_path / "home"
    (home / below).mkdir(parents=True)
    for part, numbers in (("train-00000-of-00001", (4, 5)), ("validation-00000-of-00001", (1, 3))):
        images = [{"bytes": jpeg(number), "path": name_of(number)} for number in numbers]
        labels = [int(ground_truth()[number - 1]) for number in numbers]
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, home / below / f"{part}.parquet")
    assert read("imagenet", home, store) == {
        "train": sorted((FIRST[number], number) for number in (4, 5)),
        "val": sorted((FIRST[number], number) for number in (1, 3)),
    }
    added = add_dataset(store, "imagenet", home)
    assert added.class_names == wnids()
    assert added.layout == "Parquet shards"


def test_adding_it_says_what_was_found(store: Store, tmp_path: Path) -> None:
    home = tmp_path / "home"
    flat(home / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    training(home / "ILSVRC" / "Data" / "CLS-LOC" / "train", ("n01751748",))
    added = add_dataset(store, "imagenet", home)
    assert added.layout == (
        "train: train/ with a folder for every class; val: val/ with all images in one folder"
    )
    assert {name: len(part) for name, part in added.parts.items()} == {"train": 2, "val": 1}
    remark = published_count_warning(added)
    assert remark is not None
    assert "train 2, val 1 images here" in remark
    assert DATASETS["imagenet"].is_present(store)


def test_imagenet200_without_training_images_has_the_classes_of_its_lists(
    store: Store, tmp_path: Path
) -> None:
    """In 50,000 validation images nothing says which 200 classes count."""
    home = tmp_path / "home"
    numbers = [int(np.flatnonzero(ground_truth() == label)[0]) + 1 for label in range(1000)]
    (home / "val").mkdir(parents=True)
    for number in numbers:
        (home / "val" / name_of(number)).touch()
    whole = open_dataset(f"imagenet200={home}", store)
    assert (whole.class_names, whole.id_test.labels, len(whole.id_test)) == ((), None, 1000)
    training(home / "train", ("n01751748", "n02105855"))
    chosen = open_dataset(f"imagenet200={home}", store)
    assert chosen.class_names == ("n01751748", "n02105855")
    assert len(chosen.parts["val"]) == 2


@pytest.mark.parametrize(
    ("lay", "message"),
    [
        (
            lambda home: (flat(home / "val"), (home / "val" / "cat.png").write_bytes(jpeg(1))),
            r"val/cat\.png is no validation image of ILSVRC 2012",
        ),
        (lambda home: flat(home / "val", (1, 50_001)), r"00050001\.JPEG is no validation image"),
        (
            lambda home: (in_folders(home / "val"), (home / "val" / "cats").mkdir()),
            r"val/cats is no folder of a class of ILSVRC 2012",
        ),
        (
            lambda home: (in_folders(home / "val"), (home / "val" / "n01440764").mkdir()),
            r"class folder .*n01440764 has no images; remove it",
        ),
        (
            lambda home: (in_folders(home / "val"), training(home / "train", ("n01751748",))),
            "validation images of n02105855 and no training images of that class",
        ),
    ],
    ids=["a foreign file", "a number too many", "a foreign folder", "empty", "untrained"],
)
def test_what_does_not_belong_to_it_is_named(
    lay: Callable[[Path], object], message: str, store: Store, tmp_path: Path
) -> None:
    lay(tmp_path / "home")
    with pytest.raises(InvalidInputError, match=message):
        open_dataset(f"imagenet={tmp_path / 'home'}", store)


def test_a_folder_without_it_is_no_imagenet(store: Store, tmp_path: Path) -> None:
    (store.datasets / "imagenet").mkdir(parents=True)
    with pytest.raises(MissingArtifactError, match=r"it holds neither ILSVRC2012_img_val\.tar"):
        open_dataset("imagenet", store)


# Label files about the first five images, right, in every form in which they come.
SORTED = [65, 970, 230, 809, 516]
IDS = [490, 361, 171, 822, 297]
LABEL_FILES = {
    "val_labels.txt": "\n".join(FIRST.values()),
    "val/val_labels.txt": "\n".join(map(str, SORTED)),
    "validation_labels.txt": "\n".join(str(label + 1) for label in SORTED),
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "\n".join(f"ILSVRC2012_val_{n:08d},{wnid} 85 1 499 272" for n, wnid in FIRST.items()),
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, IDS)),
    "val.txt": "\n".join(f"{name_of(n)} {c}" for n, c in zip(FIRST, SORTED, strict=True)),
    "benchmark_imglist/imagenet/test_imagenet.txt": "\n".join(
        f"imagenet_1k/val/{name_of(n)} {c}" for n, c in zip(FIRST, SORTED, strict=True)
    ),
    "labels.csv": "file,label\n"
    + "\n".join(f'"{name_of(n)}","{c}"' for n, c in zip(FIRST, SORTED, strict=True)),
}


def test_the_order_of_the_development_kit_is_the_published_one() -> None:
    assert sorted(devkit_order().tolist()) == list(range(1000))
    # The first line of its list of classes is the kit fox, the last the dumbbell.
    assert [wnids()[devkit_order()[at]] for at in (0, 1, 999)] == [
        "n02119789", "n02100735", "n03255030",
    ]  # fmt: skip
    assert [wnids()[devkit_order()[label - 1]] for label in IDS] == list(FIRST.values())


@pytest.mark.parametrize("name", LABEL_FILES)
def test_a_label_file_that_agrees_is_accepted_and_another_refused(
    name: str, store: Store, tmp_path: Path
) -> None:
    """Images under the published names that are others get no wrong classes."""
    home = tmp_path / "home"
    flat(home / "val")
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LABEL_FILES[name])
    assert read("imagenet", home, store) == {"val": VALIDATION}
    # The second and third image have changed places.
    lines = LABEL_FILES[name].splitlines()
    swapped = lines[-4].replace("00000002", "00000003"), lines[-3].replace("00000003", "00000002")
    path.write_text("\n".join([*lines[:-4], *reversed(swapped), *lines[-2:]]))
    wanted = rf"2 of 5 labels in .*{path.name} differ .* first \S+ for ILSVRC2012_val_00000002, "
    with pytest.raises(InvalidInputError, match=wanted + r"which is n09193705 \(class 970\)"):
        open_dataset(f"imagenet={home}", store)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        # Kaggle's lists of images count them.
        ("val.txt", "\n".join(f"ILSVRC2012_val_{number:08d} {number}" for number in FIRST)),
        ("val.txt", "\n".join(f"/data/2012/val/{name_of(number)}" for number in FIRST)),
        ("val.txt", "\n".join(f"mine/{number}.png {number}" for number in FIRST)),
        # A list of classes.
        ("labels.txt", "\n".join(sorted(FIRST.values()))),
        ("val_labels.txt", "\n".join(map(str, ground_truth()))),
        # Numbers of classes of one's own choice.
        ("val.txt", "\n".join(f"{name_of(n + 1)} {(c * 7 + 3) % 1000}"
                              for n, c in enumerate(ground_truth().tolist()[:3000]))),
    ],
    ids=["counted", "no labels", "other images", "classes", "all images", "own numbers"],
)  # fmt: skip
def test_other_files_beside_the_images_say_nothing_against_them(
    name: str, text: str, store: Store, tmp_path: Path
) -> None:
    flat(tmp_path / "home" / "val")
    (tmp_path / "home" / name).write_text(text)
    assert read("imagenet", tmp_path / "home", store) == {"val": VALIDATION}


def test_a_label_file_with_too_few_labels_is_refused(store: Store, tmp_path: Path) -> None:
    flat(tmp_path / "home" / "val")
    (tmp_path / "home" / "val_labels.txt").write_text("65\n970\n")
    with pytest.raises(InvalidInputError, match=r"has 2 labels, and there are 5 validation images"):
        open_dataset(f"imagenet={tmp_path / 'home'}", store)


def test_wnids_in_names_and_folders_are_compared_with_the_truth(
    store: Store, tmp_path: Path
) -> None:
    named = tmp_path / "named"
    flat(named / "val", (1, 2))
    for number, wnid in ((1, FIRST[1]), (2, FIRST[3])):
        path = named / "val" / name_of(number)
        path.rename(path.with_name(f"{path.stem}_{wnid}.JPEG"))
    with pytest.raises(InvalidInputError, match=r"1 of 2 labels in the names of the files differ"):
        open_dataset(f"imagenet={named}", store)
    # In folders of classes the folders count, and a note says so.
    home = tmp_path / "home"
    in_folders(home / "val")
    assert open_dataset(f"imagenet={home}", store).notes == ()
    (home / "val" / FIRST[1] / name_of(1)).rename(home / "val" / FIRST[2] / name_of(1))
    (home / "val" / FIRST[1] / name_of(6)).write_bytes(jpeg(6))
    (note,) = open_dataset(f"imagenet={home}", store).notes
    assert note.startswith("2 of 6 validation images in ")
    assert f"{name_of(6)}, published as n01735189" in note
