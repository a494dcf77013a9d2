"""Pictures of a run, and of score files, from what is stored."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from oodcli.errors import InvalidInputError, MissingArtifactError, UnknownNameError
from oodcli.metrics import Curve
from oodcli.progress import Silent
from oodcli.reporting.explorer.image_panels import image_panels
from oodcli.reporting.explorer.image_payload import ImagePanels
from oodcli.reporting.explorer.packing import unpacked
from oodcli.reporting.pictures import Picture, encoded, write_plots
from oodcli.reporting.plots import clipped
from oodcli.reporting.sources import ScoreQuery, Sources
from oodcli.store.store import Store, read_json, write_json
from tests.support.progress import RecordingProgress
from tests.support.reporting import pictures_of

SETS = ("photographs-grey", "gaussian-noise")
COMPARISONS = ("auroc", "ranks", "correlation")


@pytest.fixture(scope="module", autouse=True)
def _few_points() -> Iterator[None]:
    """Draw t-SNE of a few images, which is much quicker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oodcli.reporting.embedding.MAX_POINTS", 40)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train, choose a block and score, once."""
    from oodcli.compute.compute import Compute
    from oodcli.scoring.open_run import OpenRun
    from oodcli.store.run_names import find_run
    from oodcli.workflows.normratio import normratio
    from oodcli.workflows.score import ScoreRequest, score
    from oodcli.workflows.train import TrainRequest, train

    store = Store(tmp_path_factory.mktemp("made") / "store")
    train(store, TrainRequest(data="digits", arch="resnet18:width=2", name="tiny", epochs=2))
    normratio(store)
    score(store, ScoreRequest(methods=("msp", "featurenorm"), ood=SETS))
    # As methods that are fitted on training images leave it.
    assert len(OpenRun.of(store, find_run(store, "tiny"), Compute.of("cpu")).reference().train)
    return store.root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made, tmp_path / "copy")
    return Store(tmp_path / "copy")


def test_a_run_is_drawn_in_full(store: Store) -> None:
    told = RecordingProgress()
    drawn = {picture.name: picture for picture in pictures_of(store, progress=told)}
    assert list(drawn)[:-3] == [
        "histogram-msp", "histogram-featurenorm", "roc", "pr", *COMPARISONS, "normratio",
        "activation-maps", "blocks", "norms", "norm-depth", "normratio-auroc", "tsne", "sums",
        "history",
    ]  # fmt: skip
    assert list(drawn)[-1] == "neighbours"
    assert told.notes == []
    assert "2 epochs" in drawn["history"].alt
    assert "8 blocks" in drawn["normratio"].alt
    sheet = next(picture for name, picture in drawn.items() if name.startswith("images-"))
    assert re.fullmatch(
        r"\d+ digits \(ID\): \d+ of \d+ misjudged as OOD, least ID-like first; "
        r"\d+ photographs-grey \(OOD\): \d+ of [\d,]+ misjudged as ID, most ID-like first; "
        r"\d+ gaussian-noise \(OOD\): \d+ of [\d,]+ misjudged as ID, most ID-like first",
        sheet.alt,
    )


def test_auroc_of_blocks_is_that_of_stored_activations(store: Store) -> None:
    import torch

    from oodcli.compute.compute import Compute
    from oodcli.data import open_dataset
    from oodcli.data.decoding.prepare import prepare
    from oodcli.data.views import View
    from oodcli.reporting.plots_of_norms import JIGSAW
    from oodcli.scoring.activate import Activator
    from oodcli.store.run_names import find_run

    folder = find_run(store, "tiny")
    activator = Activator(
        store,
        folder,
        folder.read(),
        Compute(torch.device("cpu")),
        progress=Silent(),
    )
    norms = {}
    for name, role in (("digits", "id"), ("gaussian-noise", "ood")):
        dataset = open_dataset(name, store, role=role, val_fraction=0.0)
        part = dataset.id_test if role == "id" else dataset.ood_part
        images = prepare(part, store, name=name, size=(32, 32), resize="exact")
        norms[name] = activator.activations(images).block_norms.numpy()
    drawn = {picture.name: picture for picture in pictures_of(store)}
    line = next(
        line
        for line in drawn["blocks"].figure.axes[0].lines
        if line.get_label() == "gaussian-noise"
    )
    expected = [
        100 * Curve.of(norms["digits"][:, block], norms["gaussian-noise"][:, block]).auroc()
        for block in range(8)
    ]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
    dataset = open_dataset("digits", store, role="id", val_fraction=read_json(
        store.runs / "tiny" / "run.json")["val_fraction"])  # fmt: skip
    train = prepare(dataset.parts["train"], store, name="train", size=(32, 32), resize="exact")
    puzzles = activator.activations(train, view=View("jigsaw"), norms_only=True).block_norms
    lines = {line.get_label(): line for line in drawn["norm-depth"].figure.axes[0].lines}
    np.testing.assert_allclose(
        lines[JIGSAW].get_ydata(), puzzles.numpy().mean(axis=0, dtype=np.float64), rtol=1e-6
    )
    np.testing.assert_allclose(
        lines["digits (ID)"].get_ydata(), norms["digits"].mean(axis=0, dtype=np.float64), rtol=1e-5
    )


def test_maps_are_of_the_images_at_percentiles_of_the_ratio(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodcli.data import open_dataset
    from oodcli.data.decoding.prepare import prepare
    from oodcli.data.views import View
    from oodcli.reporting.activation_maps import stored_maps
    from oodcli.scoring.activate import Activator
    from oodcli.store.run_names import find_run
    from oodcli.workflows.normratio import normratio

    folder = find_run(store, "tiny")
    maps = stored_maps(folder, "normalised-all")
    assert maps is not None
    result = read_json(folder.normratio / "normalised-all.json")
    assert maps.block == result["selected"]
    dataset = open_dataset("digits", store, role="id", val_fraction=read_json(
        folder.path / "run.json")["val_fraction"])  # fmt: skip
    train = prepare(dataset.parts["train"], store, name="train", size=(32, 32), resize="exact")
    np.testing.assert_array_equal(maps.pixels, train.pixels()[maps.rows])
    np.testing.assert_array_equal(maps.puzzles, View("jigsaw").apply(maps.pixels, maps.rows))
    ratios = maps.norms / maps.puzzle_norms
    assert (np.diff(ratios) > 0).all()
    assert ratios[0] < result["blocks"][maps.block]["ratio"] < ratios[-1]
    # Both the maps and FeatureNorm hold the squares of the block: summed over positions they are
    # at least n_channels times the square of the mean norm (Jensen).
    channels = result["blocks"][maps.block]["shape"][0]
    squares = (maps.maps.astype(np.float64) ** 2).sum(axis=(1, 2))
    assert (squares >= channels * maps.norms.astype(np.float64) ** 2 * (1 - 1e-5)).all()
    drawn = {picture.name: picture for picture in pictures_of(store)}["activation-maps"]
    shown = [np.asarray(axes.images[0].get_array()) for axes in drawn.figure.axes[:20]]
    for column in range(5):
        np.testing.assert_array_equal(
            shown[column][::3, ::3], maps.pixels[column].transpose(1, 2, 0)
        )
        np.testing.assert_array_equal(shown[5 + column], maps.maps[column])
        np.testing.assert_array_equal(shown[15 + column], maps.puzzle_maps[column])

    # With the maps of other images, and without any.
    write_json(folder.normratio / "normalised-5000.json", {**result, "n_images": 5000})
    assert "activation-maps" in [picture.name for picture in pictures_of(store)]
    (folder.normratio / "normalised-5000.json").unlink()
    monkeypatch.setattr(Activator, "of_pixels", lambda *_, **__: pytest.fail("a second pass"))
    normratio(store)
    shutil.rmtree(folder.normratio / "maps")
    told = RecordingProgress()
    assert "activation-maps" not in [picture.name for picture in pictures_of(store, progress=told)]
    assert told.notes == [
        f"no activation maps: none of block {maps.block} are stored; compute them: "
        "ood normratio --run tiny"
    ]


def test_verdicts_are_counted_at_the_threshold(store: Store) -> None:
    from oodcli.reporting.statistics import threshold_at
    from oodcli.store.scores import read_scores, read_scorings

    kept = store.runs / "tiny" / "scores"
    scoring = read_scorings(kept)[0]
    id_scores = read_scores(kept, scoring, "msp", "digits")
    ood = np.concatenate([read_scores(kept, scoring, "msp", name) for name in SETS])
    threshold = threshold_at(id_scores)
    counts = [np.sum(id_scores >= threshold), np.sum(id_scores < threshold),
              np.sum(ood >= threshold), np.sum(ood < threshold)]  # fmt: skip
    headings = ["ID accepted (right)", "ID rejected (wrong)", "OOD accepted (wrong)",
                "OOD rejected (right)"]  # fmt: skip
    totals = [len(id_scores)] * 2 + [len(ood)] * 2
    drawn = {picture.name: picture for picture in pictures_of(store, methods=["msp"])}
    sheet = drawn["verdicts-msp"]
    assert sheet.alt == "; ".join(
        f"{heading}: {count:,} of {total:,}"
        for heading, count, total in zip(headings, counts, totals, strict=True)
    )
    last = sheet.figure.axes[-1].get_title().splitlines()
    assert last[0] in [clipped(name, 12, 1) for name in SETS]
    assert sheet.figure.axes[0].get_title().splitlines()[-1] == f"{id_scores.max():.4g}"


def lines_of(picture: Picture) -> list[str]:
    """Return the texts of a figure from above."""
    texts = sorted(picture.figure.texts, key=lambda each: -each.get_position()[1])
    return [each.get_text() for each in texts]


def test_nearest_training_images_are_those_of_knn_and_of_csd(store: Store) -> None:
    """Distances, files and regions are those that the methods themselves find, by torch."""
    from oodcli.compute.compute import Compute
    from oodcli.data.run_data import find_dataset
    from oodcli.methods._class_means import directions
    from oodcli.methods.csd import CSD, REGIONS_PROBE
    from oodcli.methods.knn import KNN
    from oodcli.regions import REGIONS
    from oodcli.scoring.open_run import OpenRun
    from oodcli.store.run_names import find_run
    from oodcli.store.scores import read_scores, read_scorings
    from oodcli.workflows.score import ScoreRequest, score

    (whole,) = [p for p in pictures_of(store, methods=["msp"]) if p.name == "neighbours"]
    assert "whole and by region" not in whole.alt
    score(store, ScoreRequest(methods=("csd",), ood=SETS))
    (both,) = [p for p in pictures_of(store, methods=["msp"]) if p.name == "neighbours"]
    assert both.alt.endswith("whole and by region")
    kept = store.runs / "tiny" / "scores"
    scores = read_scores(kept, read_scorings(kept)[0], "msp", SETS[0])
    first = int(np.argsort(-scores, kind="stable")[0])
    run = OpenRun.of(store, find_run(store, "tiny"), Compute.of("cpu"))
    reference = run.reference()
    ood = find_dataset(SETS[0], store, role="ood", val_fraction=0.0, progress=Silent())
    images = run.data.prepared(ood.ood_part, name=SETS[0])
    (batch, *_) = run.activator.activations(images, probes=[REGIONS_PROBE]).chunks()
    one = batch.map(lambda values: values[first : first + 1])
    near, rows = KNN.fit(reference).bank.neighbours(directions(one.features), 6)
    captions = [line for line in lines_of(whole) if line.startswith(f"{float(near[0, 0]):.4g}")]
    assert captions
    assert captions[0].splitlines()[-1].endswith(str(int(rows[0, 0])))
    found = CSD.fit(reference).matches(one, 3)
    texts = "\n".join(lines_of(both))
    assert f"\n{REGIONS[int(found.regions[0])]}\n" in f"\n{texts}\n"
    for distance, row in zip(found.distances[0].tolist(), found.rows[0].tolist(), strict=True):
        assert f"{distance:.4g}\n{REGIONS[row % 6]}\n" in texts


def test_images_whose_last_map_is_zero_have_no_regions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oodcli.reporting.stored_images import StoredImages
    from oodcli.workflows.score import ScoreRequest, score

    score(store, ScoreRequest(methods=("csd",), ood=SETS))
    regions = StoredImages.regions
    monkeypatch.setattr(StoredImages, "regions", lambda *of: np.zeros_like(regions(*of)))
    (sheet,) = [p for p in pictures_of(store, methods=["msp"]) if p.name == "neighbours"]
    assert "by region" not in sheet.alt


def test_the_worst_images_come_first(store: Store) -> None:
    from oodcli.data import open_dataset
    from oodcli.data.decoding.prepare import prepare
    from oodcli.store.scores import read_scores, read_scorings

    scoring = read_scorings(store.runs / "tiny" / "scores")[0]
    scores = read_scores(store.runs / "tiny" / "scores", scoring, "msp", "digits")
    dataset = open_dataset("digits", store, role="id", val_fraction=0.0)
    pixels = prepare(dataset.id_test, store, name="digits", size=(32, 32), resize="exact").pixels()
    drawn = {picture.name: picture for picture in pictures_of(store, methods=["msp"])}
    axes = drawn["images-msp"].figure.axes[0]
    shown = np.asarray(axes.images[0].get_array())[::3, ::3]
    np.testing.assert_array_equal(shown, pixels[np.argmin(scores)].transpose(1, 2, 0))
    worst = int(np.argmin(scores))
    labels, predictions = (
        read_scores(store.runs / "tiny" / "scores", scoring, name, "digits")[worst]
        for name in ("@labels", "@predictions")
    )
    assert axes.get_title() == (
        f"image {worst}\nis {labels}\nseen as {predictions}\n{scores.min():.4g}"
    )


def test_what_is_gone_is_skipped_with_a_note(store: Store) -> None:
    shutil.rmtree(store.activations)
    shutil.rmtree(store.runs / "tiny" / "normratio")
    (store.runs / "tiny" / "history.jsonl").unlink()
    names = [picture.name for picture in pictures_of(store)]
    assert not {"normratio", "blocks", "tsne", "sums", "history"} & set(names)
    assert {"roc", "pr", "histogram-msp"} <= set(names)


def test_images_other_than_those_scored_are_not_shown(store: Store) -> None:
    index = next((store.runs / "tiny" / "scores").glob("*/scoring.json"))
    content = read_json(index)
    content["sets"][0]["digest"] = "other"
    write_json(index, content)
    told = RecordingProgress()
    drawn = pictures_of(store, progress=told)
    assert "photographs-grey" not in errors_in(drawn).alt
    assert (
        "no pictures of photographs-grey: its images differ from those that were scored"
        in told.notes
    )


def test_pictures_are_written_in_every_format(store: Store, tmp_path: Path) -> None:
    drawn = pictures_of(store, methods=["msp"])[:2]
    paths = write_plots(drawn, tmp_path / "plots", ("png", "svg", "pdf"))
    assert [path.name for path in paths] == [
        "histogram-msp.png", "histogram-msp.svg", "histogram-msp.pdf", "roc.png", "roc.svg",
        "roc.pdf",
    ]  # fmt: skip
    assert paths[1].read_bytes() == encoded(drawn[0], "svg")
    with pytest.raises(UnknownNameError, match="no picture format 'gif'"):
        write_plots(drawn, tmp_path, ("gif",))
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="is not a folder; name one: --plots DIR"):
        write_plots(drawn, tmp_path / "file")


def score_file(path: Path, methods: list[str]) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for at, method in enumerate(methods):
        arrays |= {
            f"{method}/id": rng.normal(1 + at, 1, 60),
            f"{method}/near": rng.normal(0, 1, 50),
            f"{method}/far": rng.normal(0, 1, 40),
        }
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    return path


def test_score_files_are_drawn_without_a_store(tmp_path: Path) -> None:
    methods = [f"featurenorm:block={block}" for block in range(3)]
    path = score_file(tmp_path / "mine.npz", methods)
    drawn = {picture.name: picture for picture in pictures_of(None, files=[path], id_name="id")}
    of_blocks = ["blocks", "norms", "norm-depth"]
    assert list(drawn) == [
        *(f"histogram-{m}" for m in methods),
        "roc",
        "pr",
        *COMPARISONS,
        *of_blocks,
    ]
    assert len(drawn["blocks"].figure.axes[0].lines[0].get_ydata()) == 3


def test_of_many_methods_the_best_are_drawn(tmp_path: Path) -> None:
    path = score_file(tmp_path / "mine.npz", [f"m{at}" for at in range(8)])
    told = RecordingProgress()
    drawn = pictures_of(None, files=[path], id_name="id", progress=told)
    names = [picture.name for picture in drawn]
    assert names == [*(f"histogram-m{at}" for at in range(2, 8)), "roc", "pr", *COMPARISONS]
    assert told.notes == [
        "pictures show the 6 methods of highest mean AUROC; others: --method NAME"
    ]
    asked = [f"m{at}" for at in range(8)]
    named = pictures_of(None, files=[path], id_name="id", methods=asked)
    assert [p.name for p in named][8:] == ["roc", "pr", "roc-7", "pr-7", *COMPARISONS]


def test_names_from_outside_stay_in_the_folder(tmp_path: Path) -> None:
    path = score_file(tmp_path / "mine.npz", ["../../up", "..:..:up"])
    paths = write_plots(pictures_of(None, files=[path], id_name="id"), tmp_path / "plots")
    assert {each.parent for each in paths} == {tmp_path / "plots"}
    names = ["histogram-..-..-up.png", "histogram-..-..-up-2.png"]
    assert [each.name for each in paths[:2]] == names


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    path = score_file(tmp_path / "mine.npz", ["m"])
    with pytest.raises(InvalidInputError, match="mine has no scores of these methods and sets"):
        pictures_of(None, files=[path], id_name="id", datasets=["other"])
    with pytest.raises(MissingArtifactError, match="there is no finished run"):
        pictures_of(Store(tmp_path / "empty"))


def errors_in(drawn: list[Picture]) -> Picture:
    """Return the picture of the most misjudged images."""
    (sheet,) = [picture for picture in drawn if picture.name.startswith("images-")]
    return sheet


def rescored(store: Store, *, limit: int | None = None, **options: object) -> list[str]:
    """Score anew with other options; return what was said while drawing, and the errors."""
    from oodcli.workflows.score import ScoreRequest, score

    score(store, ScoreRequest(methods=("msp",), limit=limit, **options))
    told = RecordingProgress()
    drawn = pictures_of(store, methods=["msp"], limit=limit, progress=told)
    sheet = errors_in(drawn)
    return [*told.notes, sheet.name, sheet.alt]


def test_sets_of_a_benchmark_are_shown_as_it_has_them(store: Store) -> None:
    shown = rescored(store)
    assert shown[0] == "images-msp"
    assert [part.split()[1] for part in shown[1].split("; ")] == [
        "digits", "digits-6-9", "photographs-grey", "gaussian-noise", "uniform-noise",
    ]  # fmt: skip


def test_a_few_images_are_shown_where_only_they_were_scored(store: Store) -> None:
    name, alt = rescored(store, ood=SETS, limit=4)
    assert name == "images-msp"
    assert re.match(r"\d digits \(ID\): \d of 4 misjudged as OOD, least .* photographs-grey", alt)


def own_images(folder: Path, count: int = 12) -> Path:
    """Write digits, which the network knows, into a folder: most are taken for ID."""
    from PIL import Image

    from oodcli.data import open_dataset

    source = open_dataset("digits", Store(folder / "none"), role="id", val_fraction=0.0)
    folder.mkdir()
    images = source.id_test.source.read(0, count)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"own-{number:02d}.png")
    return folder


def test_only_errors_are_shown_with_file_and_classes(store: Store, tmp_path: Path) -> None:
    from PIL import Image

    from oodcli.reporting.statistics import threshold_at
    from oodcli.store.scores import read_scores, read_scorings

    folder = own_images(tmp_path / "mine")
    assert rescored(store, ood=(str(folder),))[0] == "images-msp"
    kept = store.runs / "tiny" / "scores"
    scoring = read_scorings(kept)[0]

    def read(method: str, name: str) -> np.ndarray:
        values = read_scores(kept, scoring, method, name)
        assert values is not None
        return values

    threshold = threshold_at(read("msp", "digits"))
    scores, predictions = read("msp", "mine"), read("@predictions", "mine")
    wrong = [at for at in np.argsort(-scores, kind="stable") if scores[at] >= threshold]
    assert wrong
    (sheet,) = [p for p in pictures_of(store, methods=["msp"]) if p.name == "images-msp"]
    assert f"mine (OOD): {len(wrong)} of 12 misjudged as ID, most ID-like first" in sheet.alt
    shown = [axes for axes in sheet.figure.axes if axes.get_title().startswith("own-")]
    assert [axes.get_title() for axes in shown] == [
        f"own-{at:02d}.png\nseen as {predictions[at]}\n{scores[at]:.4g}" for at in wrong[:12]
    ]
    with Image.open(folder / f"own-{wrong[0]:02d}.png") as image:
        first = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.asarray(shown[0].images[0].get_array())[::3, ::3], first)
    # ID images are shown where they are below the threshold, and no others.
    others = [axes for axes in sheet.figure.axes if "\nis " in axes.get_title()]
    below = int((read("msp", "digits") < threshold).sum())
    assert len(others) == min(below, 12)
    assert all(float(axes.get_title().splitlines()[-1]) < threshold + 1e-3 for axes in others)


def test_own_images_that_are_gone_are_skipped_with_a_note(store: Store, tmp_path: Path) -> None:
    folder = own_images(tmp_path / "mine")
    rescored(store, ood=(str(folder),))
    folder.rename(tmp_path / "away")
    told = RecordingProgress()
    drawn = pictures_of(store, methods=["msp"], progress=told)
    assert told.notes == [f"no pictures of mine: no folder or file {folder}; check the path"]
    assert "mine" not in errors_in(drawn).alt


def test_a_method_without_errors_has_no_picture_of_them(store: Store, tmp_path: Path) -> None:
    from oodcli.store.scores import add_scores, read_scorings

    folder = store.runs / "tiny" / "scores"
    scoring = read_scorings(folder)[0]
    n = {entry.name: entry.n for entry in (scoring.id_set, *scoring.sets)}
    perfect = {("msp", name): np.full(count, float(name == "digits")) for name, count in n.items()}
    add_scores(store, folder, scoring, perfect)
    told = RecordingProgress()
    drawn = pictures_of(store, methods=["msp"], progress=told)
    assert not any(picture.name.startswith("images-") for picture in drawn)
    assert told.notes == ["no pictures of errors: msp makes none on these images"]


def test_of_several_runs_the_first_is_drawn(store: Store) -> None:
    shutil.copytree(store.runs / "tiny", store.runs / "twin")
    record = store.runs / "twin" / "run.json"
    write_json(record, {**read_json(record), "seed": 7})
    told = RecordingProgress()
    drawn = pictures_of(store, runs=["twin", "tiny"], methods=["msp"], progress=told)
    assert told.notes == ["pictures are of twin, the first of 2"]
    assert "twin" in next(p for p in drawn if p.name == "history").title

    # The twin has the same network, so norms and separability of features are equal.
    norms = next(p for p in drawn if p.name == "feature-norms")
    first, second = norms.alt.partition(". ")[2].split("; ")
    assert (first.partition(":")[0], second.partition(":")[0]) == ("twin", "tiny")
    assert first.partition(":")[2] == second.partition(":")[2] != ""

    for name in ("third", "fourth"):
        shutil.copytree(store.runs / "tiny", store.runs / name)
    told = RecordingProgress()
    pictures_of(store, runs=["twin", "tiny", "third", "fourth"], methods=["msp"], progress=told)
    assert told.notes[-1] == "feature norms are of the first 3 of 4 runs"


def test_data_that_are_gone_leave_the_other_pictures(store: Store) -> None:
    record = store.runs / "tiny" / "run.json"
    write_json(record, {**read_json(record), "data": "/gone/away"})
    told = RecordingProgress()
    names = [picture.name for picture in pictures_of(store, progress=told)]
    assert names[-3:] == ["normratio", "activation-maps", "history"]
    (note,) = told.notes
    assert note.startswith("no pictures of images: the data of run tiny cannot be opened")


def images_of(store: Store, *runs: str) -> tuple[ImagePanels, tuple[str, ...]]:
    """Return what the explorer of runs shows of images, and what it leaves out."""
    with Sources.open(store, ScoreQuery(runs=runs)) as sources:
        return image_panels(sources.runs, store, 300_000)


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> int:
    """Map a few images only."""
    monkeypatch.setattr("oodcli.reporting.embedding.MAX_POINTS", 60)
    return 60


def test_the_explorer_shows_the_images_that_were_scored(
    store: Store, tmp_path: Path, few_points: int
) -> None:
    from oodcli.store.scores import read_scores, read_scorings
    from oodcli.workflows.score import ScoreRequest, score

    folder = own_images(tmp_path / "mine")
    methods = ("msp", "knn:k=1", "knn:k=3")
    score(store, ScoreRequest(methods=methods, ood=(str(folder), SETS[1])))
    shutil.copytree(store.runs / "tiny", store.runs / "twin")
    (found, limits) = images_of(store, "tiny", "twin")
    strip, twin = found.strips
    assert [each.name for each in strip.sets] == ["digits", SETS[0], "mine", SETS[1]]
    assert (strip.network, twin.network) == (0, 1)

    kept = store.runs / "tiny" / "scores"
    scoring = read_scorings(kept)[0]
    own = read_scores(kept, scoring, "msp", "mine")
    predicted = read_scores(kept, scoring, "@predictions", "mine")
    labels = read_scores(kept, scoring, "@labels", "digits")
    assert own is not None
    assert predicted is not None
    assert labels is not None
    column = strip.methods.index("msp")
    places = unpacked(strip.ood_images[column][1])
    assert strip.predicted is not None
    for place, row in zip(places, np.argsort(-own, kind="stable"), strict=False):
        assert strip.images.names[place] == f"own-{row:02d}.png"
        assert unpacked(strip.predicted)[place] == predicted[row]
    sets, rows = unpacked(strip.images.sets), unpacked(strip.images.rows)
    scores = unpacked(strip.scores).reshape(len(sets), -1)
    np.testing.assert_allclose(scores[places, column], np.sort(own)[::-1][: len(places)])
    np.testing.assert_array_equal(
        unpacked(strip.images.labels), np.where(sets == 0, labels[rows * (sets == 0)] + 1, 0)
    )
    assert strip.images.pictures.count == len(sets)

    # The nearest training images are those of knn, which has no scores of the photographs.
    assert strip.training is not None
    distances = unpacked(strip.training.distances).reshape(len(sets), -1)
    for k in (1, 3):
        known = -scores[:, strip.methods.index(f"knn:k={k}")]
        there = ~np.isnan(known)
        assert there.sum() > 10
        np.testing.assert_allclose(distances[there, k - 1], known[there], atol=2e-6)

    assert found.map is not None
    first, second = found.map.views
    assert len(found.map.images.names) == few_points
    on_map = np.bincount(unpacked(found.map.images.sets))
    assert on_map.tolist() == [30, 10, 10, 10]
    assert [each.kind for each in first.projections] == ["pca", "tsne"]
    assert first.projections == second.projections  # the twin has the same network
    assert [each.network for each in found.norms] == [0, 1]
    assert any(line.startswith("image strip of twin: the ") for line in limits)

    folder.rename(tmp_path / "away")
    found, limits = images_of(store, "tiny")
    assert [each.name for each in found.strips[0].sets] == ["digits", *SETS]
    assert any(line.startswith("no pictures of mine: ") for line in limits)


@pytest.mark.usefixtures("few_points")
def test_the_explorer_says_which_images_and_features_are_missing(store: Store) -> None:
    shutil.rmtree(store.activations)
    found, limits = images_of(store, "tiny")
    assert (found.strips[0].training, found.map, found.norms) == (None, None, ())
    assert "no training images: their features are not stored" in limits
    assert "no map: the features of ID images are not stored" in limits
    record = store.runs / "tiny" / "run.json"
    write_json(record, {**read_json(record), "data": "/gone/away"})
    found, (limit,) = images_of(store, "tiny")
    assert found == ImagePanels((), None, ())
    assert limit.startswith("no pictures of images: the data of run tiny cannot be opened")
