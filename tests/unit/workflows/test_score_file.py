"""Scores of a file of activations: what is read, what is refused, and what comes out."""

import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oodcli.activations import Activations, ActivationSet, ActivationShard, Head
from oodcli.compute.compute import Compute
from oodcli.data.dataset import CALIBRATION_SEED, stratified
from oodcli.errors import InvalidInputError, UndefinedMethodError
from oodcli.metrics import evaluate
from oodcli.progress import Silent
from oodcli.scoring.activation_file import read_activations, write_activations
from oodcli.workflows.score_file import FileRequest, FileScores, _reference, score_file

Arrays = dict[str, NDArray[np.generic]]
CLASSES, WIDTH, BLOCKS = 4, 6, 3

CPU = Compute.of("cpu")


def made() -> Arrays:
    """Draw a small file with every set there can be."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    bias = rng.normal(size=CLASSES).astype(np.float32)
    arrays: Arrays = {"weight": weight, "bias": bias}
    for name, n in (("train", 80), ("val", 20), ("test", 40), ("near", 30), ("far", 10)):
        features = rng.normal(size=(n, WIDTH)).astype(np.float32)
        arrays[f"{name}/features"] = features
        arrays[f"{name}/logits"] = features @ weight.T + bias
        arrays[f"{name}/block_norms"] = rng.uniform(1, 2, (n, BLOCKS)).astype(np.float32)
        arrays[f"{name}/labels"] = rng.permutation(n) % CLASSES
    arrays["far/labels"] -= 1  # labels of OOD images mean nothing
    arrays["jigsaw/block_norms"] = arrays["train/block_norms"] / np.float32([0.9, 1.4, 1.1])
    return arrays


def without(arrays: Arrays, *ends: str) -> Arrays:
    """Leave out arrays whose name has one of these ends."""
    return {name: values for name, values in arrays.items() if not name.endswith(ends)}


@pytest.fixture
def scored(tmp_path: Path) -> Callable[..., tuple[FileScores, Arrays]]:
    """Return a function that writes arrays, scores them, and returns report and scores."""

    def run(arrays: Arrays, *methods: str, save: Callable[..., None] = np.savez):
        path, target = tmp_path / "acts.npz", tmp_path / "scores.npz"
        save(path, **arrays)
        result = score_file(FileRequest(path, methods, CPU, target))
        with np.load(target) as stored:
            return result, dict(stored)

    return run


Scored = Callable[..., tuple[FileScores, Arrays]]


def test_every_set_of_another_name_is_an_ood_set(scored: Scored) -> None:
    arrays = made()
    result, scores = scored(arrays, "maxlogit", "featurenorm:block=1")
    for name in ("test", "near", "far"):
        wanted = arrays[f"{name}/logits"].max(axis=1)
        np.testing.assert_array_equal(scores[f"maxlogit/{name}"], wanted)
        norms = arrays[f"{name}/block_norms"][:, 1]
        np.testing.assert_array_equal(scores[f"featurenorm:block=1/{name}"], norms)
    rows = {(row.method, row.dataset): row for row in result.report.rows}
    row = rows["maxlogit", "near"]
    wanted_auroc = evaluate(scores["maxlogit/test"], scores["maxlogit/near"]).auroc
    assert (row.n_id, row.n_ood, row.group) == (40, 30, "ood")
    assert row.auroc == pytest.approx(wanted_auroc)
    hits = arrays["test/logits"].argmax(axis=1) == arrays["test/labels"]
    assert row.id_accuracy == pytest.approx(hits.mean())
    assert rows["maxlogit", "average"].auroc == pytest.approx(
        (row.auroc + rows["maxlogit", "far"].auroc) / 2
    )
    (run,) = result.report.runs
    assert (run.name, run.arch, run.id_name) == ("acts", "6 features, 4 classes", "test")
    np.testing.assert_array_equal(scores["@labels/test"], arrays["test/labels"])


def test_normratio_chooses_the_block_from_the_jigsaws(scored: Scored) -> None:
    result, scores = scored(made(), "featurenorm")
    assert result.report.rows[0].params == {"block": 1}
    np.testing.assert_array_equal(scores["featurenorm/far"], made()["far/block_norms"][:, 1])


def test_every_block_at_once(scored: Scored) -> None:
    result, _ = scored(made(), "featurenorm:block=all")
    assert list(dict.fromkeys(row.method for row in result.report.rows)) == [
        f"featurenorm:block={block}" for block in range(BLOCKS)
    ]


@pytest.mark.parametrize(
    ("change", "relative"),
    [
        (lambda a: without(a, "/logits"), 1e-6),
        (
            lambda a: {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in a.items()},
            0,
        ),
        (lambda a: {k: v.astype(np.int16) if v.dtype.kind == "i" else v for k, v in a.items()}, 0),
        (lambda a: {k: np.asfortranarray(v) for k, v in a.items()}, 0),
        (lambda a: dict(reversed(a.items())), 0),
        (lambda a: without(a, "far/labels", "near/labels"), 0),
        (
            lambda a: {
                k: v.astype(np.float16) if k.partition("/")[2] in ("features", "logits") else v
                for k, v in a.items()
            },
            0.02,
        ),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_ways_to_write_the_same(
    scored: Scored,
    change: Callable[[Arrays], Arrays],
    relative: float,
    save: Callable[..., None],
) -> None:
    plain = scored(made(), "energy", "featurenorm")[1]
    again = scored(change(made()), "energy", "featurenorm", save=save)[1]
    assert set(again) == set(plain)
    for name, values in plain.items():
        if not name.startswith("@"):
            np.testing.assert_allclose(again[name], values, rtol=relative, atol=relative)


def test_without_block_norms_methods_that_need_them_are_skipped_by_name(
    scored: Scored,
) -> None:
    arrays = without(made(), "far/block_norms")
    result, scores = scored(arrays)
    assert "msp/far" in scores
    reason = "it needs block norms, and acts.npz has none of far"
    assert result.left_out["featurenorm"] == reason
    assert f"without featurenorm: {reason}" in result.report.notes
    assert not any(name.startswith(("featurenorm", "norm")) for name in scores)
    with pytest.raises(InvalidInputError) as raised:
        scored(arrays, "featurenorm:block=1")
    assert str(raised.value) == f"featurenorm:block=1 cannot be scored: {reason}"


def test_without_jigsaws_the_block_must_be_named(scored: Scored) -> None:
    arrays = without(made(), "jigsaw/block_norms")
    reason = "it needs a set 'jigsaw', and acts.npz has none"
    result, scores = scored(arrays)
    assert result.left_out["featurenorm"] == reason
    assert "msp/far" in scores
    assert "featurenorm:block=2/far" in scored(arrays, "featurenorm:block=2")[1]
    with pytest.raises(UndefinedMethodError, match="it needs a set 'jigsaw'"):
        scored(arrays, "featurenorm")


def test_without_training_images_what_learns_from_them_is_skipped(scored: Scored) -> None:
    arrays = {k: v for k, v in made().items() if not k.startswith(("train", "val", "jigsaw"))}
    result, scores = scored(arrays)
    assert {"msp/far", "energy/far", "maxlogit/far"} <= set(scores)
    assert result.left_out["featurenorm"] == "it needs a set 'train', and acts.npz has none"


def test_what_looks_into_the_network_is_refused(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oodcli.methods
    from oodcli.methods.base import Method

    looks = Method(oodcli.methods.METHODS["msp"].type, "Looks", "nobody", ("network",))
    monkeypatch.setattr(oodcli.methods, "METHODS", {**oodcli.methods.METHODS, "looks": looks})
    with pytest.raises(InvalidInputError, match="looks cannot be scored: it needs the network it"):
        scored(made(), "looks")


def test_methods_that_are_not_defined_leave_the_others(scored: Scored) -> None:
    result, scores = scored(made(), "msp", "vim:dim=6", "nac:least=900", "energy", "odin")
    assert list(dict.fromkeys(row.method for row in result.report.rows)) == ["msp", "energy"]
    assert result.undefined == ("vim:dim=6", "nac:least=900", "odin")
    assert dict(result.left_out) == {
        "vim:dim=6": "vim is not defined for dim 6: features of width 6 have no residual then; "
        "choose less, as in vim:dim=3",
        "nac:least=900": "nac is not defined here: it needs as many training images as an interval "
        "needs to count as covered, but there are 80 of the 900 of nac:least=900; choose less "
        "with nac:least=N, or train on more images",
        "odin": "it needs the network itself, which a file of activations does not contain",
    }
    assert result.to_json()["undefined"] == list(result.undefined)
    for name, reason in result.left_out.items():
        assert f"without {name}: {reason}" in result.report.notes
    scored_names = {name.partition("/")[0] for name in scores}
    assert scored_names == {"msp", "energy", "@labels", "@predictions"}


def test_of_a_group_nobody_misses_what_is_not_defined(scored: Scored) -> None:
    arrays = {k: v for k, v in made().items() if not k.startswith("jigsaw")}
    result, _ = scored(arrays)
    assert "featurenorm" in result.left_out
    assert result.undefined == ()
    assert scored(arrays, "", "featurenorm")[0].undefined == ("featurenorm",)


def test_scores_that_are_not_finite_leave_the_others(scored: Scored) -> None:
    arrays = made()
    arrays["far/features"][3] *= np.float32(1e30)
    arrays["far/logits"] = arrays["far/features"] @ arrays["weight"].T + arrays["bias"]
    result, _ = scored(arrays, "maxlogit", "residual")
    assert {row.method for row in result.report.rows} == {"maxlogit"}
    assert result.left_out == {
        "residual": "residual gives 1 score on far that is not finite; check its parameters and "
        "the weights of the run"
    }


def test_where_no_method_is_defined_the_first_reasons_are_given(scored: Scored) -> None:
    with pytest.raises(UndefinedMethodError) as raised:
        scored(made(), *(f"vim:dim={dim}" for dim in (6, 7, 8, 9, 10)))
    assert str(raised.value).count("have no residual then") == 3
    assert str(raised.value).endswith("; and 2 other methods are not defined")


def test_a_classifier_that_hardly_classifies_is_said_to_be_one(scored: Scored) -> None:
    arrays = made()
    right = arrays["test/logits"].argmax(axis=1)
    classes = arrays["weight"].shape[0]
    run = scored({**arrays, "test/labels": right}, "msp")[0].report.runs[0]
    assert (run.id_accuracy, run.chance) == (1.0, None)
    wrong = (right + 1) % classes
    run = scored({**arrays, "test/labels": wrong}, "msp")[0].report.runs[0]
    assert (run.id_accuracy, run.chance) == (0.0, np.bincount(wrong).max() / len(wrong))


def test_without_labels_of_the_test_images_there_is_no_accuracy(scored: Scored) -> None:
    result, scores = scored(without(made(), "test/labels"), "msp")
    assert result.report.runs[0].id_accuracy is None
    assert result.report.runs[0].chance is None
    assert "@labels/test" not in scores


def test_calibration_is_val_or_a_fixed_tenth_of_train(tmp_path: Path) -> None:
    arrays = made()
    np.savez(tmp_path / "with.npz", **arrays)
    np.savez(tmp_path / "less.npz", **{k: v for k, v in arrays.items() if "val" not in k})
    cpu = torch.device("cpu")
    full = _reference(read_activations(tmp_path / "with.npz", progress=Silent()), cpu)
    np.testing.assert_array_equal(full.calibration.features.numpy(), arrays["val/features"])
    np.testing.assert_array_equal(full.calibration_labels.numpy(), arrays["val/labels"])
    less = _reference(read_activations(tmp_path / "less.npz", progress=Silent()), cpu)
    rows = stratified(arrays["train/labels"], 8, seed=CALIBRATION_SEED)
    assert len(set(arrays["train/labels"][rows])) == CLASSES
    np.testing.assert_array_equal(less.calibration.features.numpy(), arrays["train/features"][rows])
    np.testing.assert_array_equal(less.calibration_labels.numpy(), arrays["train/labels"][rows])


def test_a_result_calibrated_on_training_images_says_so(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oodcli.methods
    from oodcli.methods.base import Method

    inputs = ("logits", "calibration")
    held = Method(oodcli.methods.METHODS["msp"].type, "Held", "nobody", inputs)
    monkeypatch.setattr(oodcli.methods, "METHODS", {**oodcli.methods.METHODS, "held": held})
    result, _ = scored({k: v for k, v in made().items() if "val" not in k}, "held")
    assert result.report.rows[0].params["calibration"] == "train"
    assert any(note.startswith("calibrated on a tenth") for note in result.report.notes)
    assert "calibration" not in scored(made(), "held")[0].report.rows[0].params


def _put(name: str, at: object, value: object) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        changed = arrays[name].copy()
        changed[at] = value
        return {**arrays, name: changed}

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: without(a, "weight"), "has no array 'weight'; add weight (k, d) and bias (k,)"),
        (
            lambda a: {**a, "bias": a["bias"][:3]},
            "weight has shape (4, 6) and bias (3,); they must be (k, d) and (k,)",
        ),
        (
            lambda a: {**a, "tau": np.float32(0)},
            "weight and bias must be finite, and tau positive",
        ),
        (
            lambda a: {**a, "near/feature": a["near/features"]},
            "array 'near/feature' is not one of weight, bias, tau, logit_scale, words, "
            "word_counts, kept_rotation_weight, kept_rotation_bias, kept_confidence_weight, "
            "kept_confidence_bias, kept_divisor_weight, kept_divisor_bias and SET/features",
        ),
        (lambda a: {**a, "wieght": a["weight"]}, "did you mean 'weight'?"),
        (lambda a: without(a, "near/features"), "has no array 'near/features'; every set needs"),
        (
            lambda a: {k: v for k, v in a.items() if not k.startswith("test")},
            "has no set 'test': the ID test images",
        ),
        (
            lambda a: {k: v for k, v in a.items() if not k.startswith(("near", "far"))},
            "has no OOD set; add one, with a name other than train, val, test, jigsaw",
        ),
        (lambda a: without(a, "train/labels"), "has no array 'train/labels'; methods are fitted"),
        (
            lambda a: {**a, "near/features": a["near/features"][:, :5]},
            "array 'near/features' has shape (30, 5), not (n, 6); the last layer has weight (4, 6)",
        ),
        (
            lambda a: {**a, "near/logits": a["near/logits"][:29]},
            "array 'near/logits' has 29 rows and 'near/features' has 30",
        ),
        (
            lambda a: {**a, "near/labels": a["near/labels"][:, None]},
            "array 'near/labels' has shape (30, 1), not (n,)",
        ),
        (
            lambda a: {**a, "near/block_norms": a["near/block_norms"][:, 0]},
            "array 'near/block_norms' has shape (30,), not (n, b)",
        ),
        (
            lambda a: {**a, "near/block_norms": a["near/block_norms"][:, :2]},
            "sets have block norms of different numbers of blocks: 2, 3",
        ),
        (
            lambda a: {**a, "near/features": a["near/features"].astype(int)},
            "array 'near/features' is int64; store float32",
        ),
        (
            lambda a: {**a, "test/labels": a["test/labels"].astype(float)},
            "array 'test/labels' is float64; store integers",
        ),
        (
            lambda a: {**a, "near/labels": np.array([object()] * 30)},
            "array 'near/labels' cannot be read: it holds Python objects; write",
        ),
        (
            lambda a: {k: v[:0] if k.startswith("far") else v for k, v in a.items()},
            "set 'far' has no images; remove it",
        ),
        (
            lambda a: {**a, "jigsaw/block_norms": a["jigsaw/block_norms"][:79]},
            "jigsaw has 79 rows and train 80; row i of jigsaw is the puzzle of row i of train",
        ),
        (
            _put("far/features", (7, 2), np.nan),
            "array 'far/features' has values that are not finite in row 7",
        ),
        (
            _put("train/block_norms", (3, 0), np.inf),
            "array 'train/block_norms' has values that are not finite in row 3",
        ),
        (
            _put("test/labels", 5, 4),
            "array 'test/labels' has 4 in row 5; with 4 classes they are numbered 0 to 3",
        ),
        (_put("train/labels", 0, -1), "array 'train/labels' has -1 in row 0"),
        (
            _put("near/logits", (4, 1), 30.0),
            "array 'near/logits' is not features @ weight.T + bias: in row 4 it is off by ",
        ),
        (
            # Features that were divided by their length are not what the last layer saw.
            lambda a: {
                **a,
                "far/features": a["far/features"]
                / np.linalg.norm(a["far/features"], axis=1, keepdims=True),
            },
            "array 'far/logits' is not features @ weight.T + bias: in row 0",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    scored: Scored, tmp_path: Path, change: Callable[[Arrays], Arrays], told: str
) -> None:
    with pytest.raises(InvalidInputError) as raised:
        scored(change(made()), "msp")
    assert str(tmp_path / "acts.npz") in str(raised.value)
    assert told in str(raised.value)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no file .*; check the path"):
        score_file(FileRequest(tmp_path / "none.npz"))
    path = tmp_path / "text.npz"
    path.write_text("features")
    with pytest.raises(InvalidInputError, match=r"is not an .npz file: File is not a zip"):
        score_file(FileRequest(path, compute=CPU))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", b"nothing")
    with pytest.raises(InvalidInputError, match=r"'weight' cannot be read: EOF: reading magic"):
        score_file(FileRequest(path, compute=CPU))


def test_what_is_written_is_read_again_shard_by_shard(tmp_path: Path) -> None:
    refs: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def shard(index: int) -> ActivationShard:
        def load() -> Activations:
            features = torch.full((3000, 2), float(index))
            refs.append(weakref.ref(features))
            alive.append(sum(ref() is not None for ref in refs))
            return Activations(head(features), features, features, torch.zeros(3000).long())

        return ActivationShard(3000, load)

    head = Head(torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]), tau=0.25)
    rows = ActivationSet([shard(index) for index in range(5)])
    labels = np.zeros(15000, dtype=np.int64)
    write_activations(tmp_path / "a.npz", head, {"test": (rows, labels), "ood": (rows, None)})
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["test/features"].shape == (15000, 2)
        assert stored["test/features"][::3000].tolist() == [[i, i] for i in range(5)]
        assert "ood/labels" not in stored
    assert max(alive) <= 2  # the shard that is written, and the one that is read
    found = read_activations(tmp_path / "a.npz", progress=Silent())
    assert (found.ood, found.n_blocks, found.head.tau) == (["ood"], 2, 0.25)
    chunks = list(found.sets["ood"].activations(torch.device("cpu")).chunks())
    assert [len(chunk) for chunk in chunks] == [4096, 4096, 4096, 2712]
    logits = torch.cat([chunk.logits for chunk in chunks])[::3000].flatten()
    assert logits.tolist() == [0.5, 3.5, 6.5, 9.5, 12.5]


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the reference activations with the head of the reference network as one file."""
    with np.load(shared / "reference" / "activations.npz") as stored:
        arrays = dict(stored)
    weights = torch.load(shared / "reference" / "resnet18_cifar10.pt", weights_only=True)
    path = tmp_path_factory.mktemp("real") / "resnet18.npz"
    head = {name: weights[f"fc.{name}"].float().numpy() for name in ("weight", "bias")}
    np.savez(path, **arrays, **head)
    return path


def test_the_table_of_the_reference_activations(real: Path) -> None:
    methods = ("msp", "maxlogit", "energy", *(f"featurenorm:block={b}" for b in (5, 6, 7)))
    rows = score_file(FileRequest(real, methods, CPU)).report.rows
    found = {
        (row.method, row.dataset): (f"{100 * row.fpr95:.1f}", f"{100 * row.auroc:.2f}")
        for row in rows
    }
    sets = ("svhn_crops", "dtd10_32", "sun_resize32", "cifar100")
    table = """
        msp 71.5 88.83 74.0 81.53 82.0 79.68 75.1 81.30
        maxlogit 66.5 90.42 73.7 84.03 70.7 83.89 71.2 83.78
        energy 67.1 90.08 75.1 83.94 67.3 84.35 68.8 83.88
        featurenorm:block=5 11.7 97.46 23.6 93.74 74.5 78.31 84.3 65.84
        featurenorm:block=6 6.3 98.78 23.7 93.85 63.1 82.29 80.0 70.19
        featurenorm:block=7 5.1 98.91 29.2 92.69 74.7 77.84 76.7 75.22
    """
    for line in table.strip().splitlines():
        method, *numbers = line.split()
        pairs = dict(zip(sets, zip(numbers[::2], numbers[1::2], strict=True), strict=True))
        assert {name: found[method, name] for name in sets} == pairs
    assert rows[0].id_accuracy == pytest.approx(0.877, abs=1e-6)


def test_reference_scores_of_other_implementations(
    real: Path, shared: Path, tmp_path: Path
) -> None:
    """OpenOOD's numbers, from the bank ``train`` and calibrated on ``val``."""
    with np.load(shared / "reference" / "scores.npz") as stored:
        wanted = dict(stored)
    wanted = {name.replace("msp/", "msp:scale=probability/"): each for name, each in wanted.items()}
    methods = sorted({name.partition("/")[0] for name in wanted})
    assert len(methods) == 10
    score_file(FileRequest(real, methods, CPU, tmp_path / "scores.npz"))
    with np.load(tmp_path / "scores.npz") as stored:
        got = dict(stored)
    for name, values in wanted.items():
        method, _, dataset = name.partition("/")
        (ours,) = {f"{method}/{dataset}", f"{method}+energy/{dataset}"} & set(got)
        np.testing.assert_allclose(got[ours], values, rtol=1e-4, err_msg=name)


def text_arrays() -> Arrays:
    """Return the arrays of a zero-shot classifier, with 20 negative words in two lists."""
    rng = np.random.default_rng(0)

    def units(n: int) -> np.ndarray:
        rows = rng.normal(size=(n, 6))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return {
        "weight": 20 * units(3), "bias": np.zeros(3, np.float32),
        "logit_scale": np.array(20.0, np.float32),
        "words": units(20), "word_counts": np.array([12, 8]),
        "test/features": units(30), "test/labels": np.arange(30) % 3, "far/features": units(20),
    }  # fmt: skip


def test_a_file_of_a_zero_shot_classifier_has_its_own_methods(tmp_path: Path) -> None:
    path = tmp_path / "texts.npz"
    arrays = text_arrays()
    np.savez(path, **arrays)
    found = score_file(FileRequest(path, compute=CPU))
    methods = {row.method for row in found.report.rows}
    assert {"mcm", "neglabel", "msp"} <= methods
    assert "glmcm" not in methods
    # What is written from activations is read as it was.
    read = read_activations(path, progress=Silent())
    assert read.words is not None
    write_activations(
        tmp_path / "again.npz",
        read.head,
        {name: (each.activations(torch.device("cpu")), None) for name, each in read.sets.items()},
        read.words,
    )
    again = read_activations(tmp_path / "again.npz", progress=Silent())
    assert again.words is not None
    assert (again.head.scale, again.words.counts) == (20.0, (12, 8))
    assert torch.equal(again.words.embeddings, read.words.embeddings)
    for change, message in (
        ({"weight": 2 * arrays["weight"]}, "a row of weight divided by logit_scale has length 2"),
        ({"far/features": 3 * arrays["far/features"]}, "far/features': a row has length 3"),
        ({"words": arrays["words"][:, :5]}, r"has shape \(20, 5\), not \(m, 6\)"),
        ({"word_counts": np.array([12, 9])}, r"word_counts \(12, 9\) are not those of 20 words"),
    ):
        np.savez(path, **{**arrays, **change})
        with pytest.raises(InvalidInputError, match=message):
            read_activations(path, progress=Silent())
