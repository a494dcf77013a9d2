"""Score files of other programs, in all layouts, and what is wrong with some."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.reporting.score_files import joined, read_score_file

ID = np.array([3.0, 2.0, 1.0], np.float32)
NEAR, FAR = np.array([1.5, 0.5], np.float32), np.array([0.0, -1.0, 9.0, 0.2], np.float32)
LABELS, PREDICTIONS = np.array([0, 1, 2]), np.array([0, 1, 1])


def npz(path: Path, **arrays) -> Path:
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    return path


def scale_pickle(path: Path, **changes) -> Path:
    """Write scores as OpenOOD's evaluator keeps them."""
    content = {
        "id": {"train": None, "val": None, "test": [PREDICTIONS, ID, LABELS]},
        "csid": {"cifar10c": [LABELS, ID - 1, LABELS]},
        "ood": {
            "val": None,
            "near": {"tin": [np.zeros(2, int), NEAR, -np.ones(2)], "cifar100": None},
            "far": {"mnist": [np.zeros(4, int), FAR, -np.ones(4)]},
        },
        "id_preds": None,
        "id_labels": None,
        **changes,
    }
    path.write_bytes(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))
    return path


def test_an_export_of_our_own_is_read_with_its_labels(tmp_path):
    path = npz(
        tmp_path / "mine.npz",
        **{
            "msp/digits": ID, "msp/svhn": NEAR, "norm+energy/digits": ID, "norm+energy/svhn": NEAR,
            "@labels/digits": LABELS, "@predictions/digits": PREDICTIONS,
        },
    )  # fmt: skip
    (run,) = read_score_file(path)
    assert run.name == "mine"
    assert run.id_name == "digits"
    assert list(run.scores) == ["msp", "norm+energy"]
    np.testing.assert_array_equal(run.scores["norm+energy"]["svhn"], NEAR)
    assert run.sizes == {"digits": 3, "svhn": 2}
    assert run.id_accuracy == pytest.approx(2 / 3)
    assert run.convention is None


def test_arrays_without_labels_need_the_name_of_the_id_set(tmp_path):
    path = npz(tmp_path / "x.npz", **{"msp/test": ID, "msp/svhn": NEAR})
    with pytest.raises(InvalidInputError, match="which of test, svhn is in distribution; name it"):
        read_score_file(path)
    (run,) = read_score_file(path, id_name="test")
    assert run.id_accuracy is None
    with pytest.raises(InvalidInputError, match="no scores of msp on cifar10, but on test, svhn"):
        read_score_file(path, id_name="cifar10")


def test_seeds_of_one_file_are_one_run_each(tmp_path):
    arrays = {}
    for seed in range(2):
        arrays |= {
            f"s{seed}_id_conf": ID + seed, f"s{seed}_id_pred": PREDICTIONS,
            f"s{seed}_id_label": LABELS, f"s{seed}_near_tin_conf": NEAR,
            f"s{seed}_near_tin_pred": np.zeros(2), f"s{seed}_far_mnist_conf": FAR,
        }  # fmt: skip
    path = npz(tmp_path / "scale.npz", **arrays)
    first, second = read_score_file(path, id_name="cifar10", method="mine")
    assert (first.name, second.name) == ("scale:s0", "scale:s1")
    assert first.groups == {"tin": "near", "mnist": "far"}
    np.testing.assert_array_equal(second.scores["mine"]["cifar10"], ID + 1)
    assert first.id_accuracy == pytest.approx(2 / 3)
    assert first.convention == "openood"


@pytest.mark.parametrize("as_tensors", [False, True])
def test_the_pickle_of_openood_is_read(tmp_path, as_tensors):
    changes = {}
    if as_tensors:
        import torch

        changes = {"id_preds": torch.tensor([0, 1, 2]), "id_labels": torch.tensor(LABELS)}
    (run,) = read_score_file(scale_pickle(tmp_path / "scale.pkl", **changes), id_name="cifar10")
    assert list(run.scores) == ["scale"]
    assert run.groups == {"tin": "near", "mnist": "far", "cifar10c": "shifted"}
    assert run.sizes == {"cifar10": 3, "tin": 2, "mnist": 4, "cifar10c": 3}
    np.testing.assert_array_equal(run.scores["scale"]["mnist"], FAR)
    assert run.shifted_accuracy == {"cifar10c": 1.0}
    # The plain classifier's predictions count, where the file has them.
    assert run.id_accuracy == pytest.approx(1.0 if as_tensors else 2 / 3)


def test_full_spectrum_accuracy_is_of_the_plain_predictions_where_the_pickle_has_them(tmp_path):
    """As OpenOOD's evaluator counts it; those of the method may be of shaped logits."""
    plain = {"cifar10c": np.array([LABELS[0], LABELS[1], 1 - LABELS[2]])}
    labels = {"cifar10c": np.array(LABELS)}
    path = tmp_path / "scale.pkl"

    def accuracy(**changes):
        (run,) = read_score_file(scale_pickle(path, **changes), id_name="cifar10")
        return run.shifted_accuracy["cifar10c"]

    assert accuracy(csid_preds=plain, csid_labels=labels) == pytest.approx(2 / 3)
    ids = {"id_preds": np.array(LABELS), "id_labels": np.array(LABELS)}
    for changes, known in (({}, True), ({"csid_preds": None}, False), ({"id_preds": None}, False)):
        both = {"csid_preds": plain, "csid_labels": labels, **ids, **changes}
        (run,) = read_score_file(scale_pickle(path, **both), id_name="cifar10")
        assert run.plain is known
    # As they are written by a call that never counted them.
    assert accuracy(csid_preds={"cifar10c": None}, csid_labels={"cifar10c": None}) == 1.0
    assert accuracy(csid_preds=plain) == 1.0
    for wrong in ({"cifar10c": plain["cifar10c"][:2]}, {"cifar10c": np.zeros(4)}):
        with pytest.raises(InvalidInputError, match=r"cifar10c has . predictions and 3 labels"):
            accuracy(csid_preds=wrong, csid_labels=labels)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch owned",)

    monkeypatch.chdir(tmp_path)
    for path in (
        scale_pickle(tmp_path / "a.pkl", id_preds=Evil()),
        scale_pickle(tmp_path / "b.pkl", ood=Evil()),
    ):
        with pytest.raises(CorruptArtifactError, match=r"it refers to \w+\.system"):
            read_score_file(path)
    assert not (tmp_path / "owned").exists()


def test_a_malicious_npz_is_refused_and_not_run(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch owned",)

    monkeypatch.chdir(tmp_path)
    path = npz(tmp_path / "evil.npz", **{"msp/id": np.array([Evil()], dtype=object)})
    with pytest.raises(CorruptArtifactError, match="'msp/id' cannot be read: it holds Python"):
        read_score_file(path, id_name="id")
    assert not (tmp_path / "owned").exists()


def test_a_long_table_has_a_column_of_methods(tmp_path):
    path = tmp_path / "scores.csv"
    lines = ["dataset,method,score,label,prediction,group"]
    for method in ("a", "b"):
        lines += [
            f"cifar10,{method},{s},{y},{p},id"
            for s, y, p in zip(ID, LABELS, PREDICTIONS, strict=True)
        ]
        lines += [f"tin,{method},{s},,,near" for s in NEAR]
        lines += [f"svhn,{method},{s},,," for s in FAR]
    path.write_text("\n".join(lines))
    (run,) = read_score_file(path)
    assert run.id_name == "cifar10"
    assert list(run.scores) == ["a", "b"]
    np.testing.assert_allclose(run.scores["b"]["svhn"], FAR)
    assert run.groups == {"tin": "near"}
    assert run.id_accuracy == pytest.approx(2 / 3)


def test_a_wide_table_has_a_column_for_each_method(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("image,dataset,msp,energy\n1,id,0.9,5\n2,id,0.8,4\n3,svhn,0.5,1e-2\n")
    (run,) = read_score_file(path, id_name="id")
    assert {m: {d: list(v) for d, v in sets.items()} for m, sets in run.scores.items()} == {
        "msp": {"id": [0.9, 0.8], "svhn": [0.5]},
        "energy": {"id": [5.0, 4.0], "svhn": [0.01]},
    }
    assert run.labels is None


def test_a_table_of_scores_alone_is_called_as_its_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("dataset,score\nid,2\nsvhn,1\n")
    (run,) = read_score_file(path, id_name="id")
    assert list(run.scores) == ["mine"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("set,score\nid,1\n", "none called dataset"),
        ("dataset,score\nid,1\nsvhn\n", "row 3 has 1 values, not 2"),
        ("dataset,score\nid,1\nsvhn,high\n", "column score is not all numbers"),
        ("dataset,score\nid,1\n", "scores of bad on id alone"),
        ("dataset\nid\nsvhn\n", "has no scores"),
        ("dataset,score\n", "no scores"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises((InvalidInputError, CorruptArtifactError), match=message):
        read_score_file(path, id_name="id")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": ID}, "which is not a known layout"),
        ({"m/id": ID, "m/x": np.zeros((2, 2))}, r"on x are float64 of shape \(2, 2\)"),
        ({"m/id": ID, "m/x": NEAR, "n/id": ID, "n/x": FAR}, "4 scores of n on x, and 2 of another"),
        ({"m/id": ID, "m/x": NEAR, "@labels/id": np.zeros(2)}, r"labels of shape \(2,\) for 3"),
        ({"m/id": ID, "m/x": np.array(["a"])}, "give one real number for each image"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    with pytest.raises(InvalidInputError, match=message):
        read_score_file(npz(tmp_path / "bad.npz", **arrays), id_name="id")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(MissingArtifactError, match="there is no file"):
        read_score_file(tmp_path / "none.npz")
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(InvalidInputError, match=r"not read from a\.txt; give \.npz, \.pkl"):
        read_score_file(tmp_path / "a.txt")
    with pytest.raises(InvalidInputError, match=r"not read from \.; give"):
        read_score_file(Path())
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(CorruptArtifactError, match=r"is not an \.npz file: File is not a zip"):
        read_score_file(tmp_path / "a.npz")
    np.save(tmp_path / "lone.npy", np.zeros(3))
    (tmp_path / "lone.npy").rename(tmp_path / "lone.npz")
    with pytest.raises(CorruptArtifactError, match=r"is not an \.npz file: File is not a zip"):
        read_score_file(tmp_path / "lone.npz")
    (tmp_path / "dir.npz").mkdir()
    with pytest.raises(InvalidInputError, match="cannot read"):
        read_score_file(tmp_path / "dir.npz")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(InvalidInputError, match="is a pickle of another layout"):
        read_score_file(tmp_path / "a.pkl")


def test_methods_of_one_network_join_and_the_same_again_is_another(tmp_path):
    paths = [
        scale_pickle(tmp_path / seed / f"{method}.pkl")
        for seed in ("s0", "s1")
        for method in ("msp", "scale")
        if (tmp_path / seed).mkdir(exist_ok=True) is None
    ]
    runs = joined([run for path in paths for run in read_score_file(path)])
    assert [(run.name, list(run.scores)) for run in runs] == [
        ("msp", ["msp", "scale"]),
        ("msp (2)", ["msp", "scale"]),
    ]


def test_methods_of_other_images_do_not_join(tmp_path):
    other = scale_pickle(tmp_path / "b.pkl", id={"test": [LABELS, ID, LABELS[::-1]]})
    runs = [*read_score_file(scale_pickle(tmp_path / "a.pkl")), *read_score_file(other)]
    assert len(joined(runs)) == 2


def test_damaged_files_are_never_a_crash(tmp_path):
    content = scale_pickle(tmp_path / "a.pkl").read_bytes()
    path = tmp_path / "damaged.pkl"
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + b"\x80" + content[at + 1 :])
        try:
            read_score_file(path)
        except (InvalidInputError, CorruptArtifactError):
            continue


def test_a_table_that_does_not_name_its_id_set_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("dataset,score\ncifar10,1\nsvhn,0\n")
    with pytest.raises(InvalidInputError, match="which of cifar10, svhn is in distribution; name"):
        read_score_file(path)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.array(["cat", "dog", "cat"]), "'cat' is not a number"),
        (np.array([b"cat", b"dog", b"cat"]), "b'cat' is not a number"),
        (np.array([0.0, 1.5, 2.0]), "1.5 is not a whole number"),
        (np.array([0.0, np.nan, 2.0]), "nan is not a whole number"),
    ],
)
def test_classes_that_are_no_whole_numbers_are_refused(tmp_path, labels, told):
    path = npz(
        tmp_path / "a.npz",
        **{"msp/id": np.array(ID), "msp/tin": np.array(NEAR), "@labels/id": labels},
    )
    cure = "give a number for each class, from 0"
    with pytest.raises(InvalidInputError) as caught:
        read_score_file(path)
    assert str(caught.value) == f"{path}: @labels/id cannot be read: {told}; {cure}"
    as_list = [label.item() for label in labels]
    path = scale_pickle(tmp_path / "a.pkl", id_preds=PREDICTIONS, id_labels=as_list)
    with pytest.raises(InvalidInputError) as caught:
        read_score_file(path)
    assert str(caught.value) == f"{path}: the labels cannot be read: {told}; {cure}"


def test_nested_lists_for_scores_are_refused_and_not_unpacked(tmp_path):
    """13 kB that would be 10⁹ values."""
    value = [0.5] * 10
    for _ in range(8):
        value = [value] * 10
    path = scale_pickle(tmp_path / "a.pkl", id_labels=value)
    assert path.stat().st_size < 2**14
    with pytest.raises(CorruptArtifactError, match="it expands to more than"):
        read_score_file(path)
