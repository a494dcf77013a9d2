"""``ood explain``: why an image is out of distribution."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oodcli.models import parse_architecture
from oodcli.models.extraction import ReadyNetwork
from oodcli.reporting.explanations import Explanation, MethodView
from tests.support.cli import Ood, flat, tree

Explain = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ready_store(
    trained_store: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Copy the store with the tiny run, and fit all methods of an explanation once."""
    from oodcli.compute.compute import Compute
    from oodcli.scoring.open_run import OpenRun
    from oodcli.screening.detector import detector_for
    from oodcli.store.store import Store

    store, images = trained_store
    root = tmp_path_factory.mktemp("explain") / "store"
    shutil.copytree(store, root)
    with OpenRun.open(Store(root), "tiny", Compute.of("cpu")) as run:
        for method in ("csd", "msp", "energy", "knn", "vim", "featurenorm"):
            detector_for(run, method)
    return root, images


@pytest.fixture
def explain(ood: Ood, ready_store: tuple[Path, Path]) -> Explain:
    """Return a function that runs the command on the store with fitted methods."""
    return lambda *argv: ood("explain", *argv, "--store", ready_store[0])


def found(out: str) -> list[dict[str, Any]]:
    content = json.loads(out)
    assert (content["kind"], content["schema"]) == ("ood-explanations", 1)
    return content["images"]


def test_the_nearest_neighbour_of_a_training_image_is_itself(
    explain: Explain, ready_store: tuple[Path, Path], tmp_path: Path
) -> None:
    _, images = ready_store
    source = images / "train" / "red" / "07.png"
    shutil.copy(source, tmp_path / "copy.png")
    argv = (tmp_path / "copy.png", "--method", "knn:k=3", "--format", "json", "--neighbours", 2)
    code, out, err = explain(*argv)
    assert code == 0, err
    assert "for a picture of every image: --output DIR" in err
    (image,) = found(out)
    assert image["path"] == str(tmp_path / "copy.png")
    nearest, second = image["neighbours"]
    assert nearest["name"] == "red/07.png"
    assert nearest["class"] == "red"
    assert nearest["row"] == 12 + 7  # 12 blue images come first
    assert nearest["distance"] == pytest.approx(0, abs=1e-9)
    assert second["distance"] > nearest["distance"]
    # Each region of the image is its own nearest.
    region = image["region"]
    assert region["neighbours"][0]["distance"] == pytest.approx(0, abs=1e-9)
    assert region["neighbours"][0]["name"] == "red/07.png"
    assert region["neighbours"][0]["region"] == region["region"]
    assert region["neighbours"][0]["box"] == region["box"]
    left, top, right, bottom = region["box"]
    assert 0 <= left < right <= 32
    assert 0 <= top < bottom <= 32
    # A method of another kind each, and the verdict that ood predict gives.
    assert [each["kind"] for each in image["methods"]] == [
        "chosen", "softmax", "logits", "subspace", "block norm",
    ]  # fmt: skip
    assert image["methods"][0]["method"] == "knn:k=3"
    assert image["verdict"] == image["methods"][0]["verdict"]
    assert image["flagged"] == sum(each["verdict"] == "ood" for each in image["methods"])


def test_verdict_percentile_and_p_value_are_those_of_predict(
    explain: Explain, ood: Ood, ready_store: tuple[Path, Path], tmp_path: Path
) -> None:
    store, _ = ready_store
    noise = flat(tmp_path / "noise", n=2)
    code, out, err = explain(noise, "--method", "energy", "--format", "json", "--no-regions")
    assert code == 0, err
    argv = ("predict", noise, "--method", "energy", "--format", "jsonl", "--store", store)
    rows = [json.loads(line) for line in ood(*argv)[1].splitlines()]
    for image, row in zip(found(out), rows, strict=True):
        assert image["region"] is None
        main = image["methods"][0]
        assert main["score"] == pytest.approx(row["score"], rel=1e-6)
        for key in ("threshold", "percentile", "verdict"):
            assert main[key] == row[key], key
        assert main["p_value"] == pytest.approx(row["p_value"], abs=1e-6)
        for key in ("path", "class", "verdict"):
            assert image[key] == row[key]
        assert image["probability"] == pytest.approx(row["probability"], abs=2e-6)


def test_energies_are_those_of_the_block_and_their_mean_over_the_class(
    explain: Explain, ready_store: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, images = ready_store
    passes: list[int] = []
    extract = ReadyNetwork.extract

    def counted(self: ReadyNetwork, batches: Any, **how: Any) -> Any:
        batches = list(batches)
        passes.extend(len(each) for each in batches)
        return extract(self, batches, **how)

    from oodcli.compute.compute import Compute
    from oodcli.scoring.open_run import OpenRun
    from oodcli.screening.detector import detector_for
    from oodcli.store.store import Store

    path = images / "test" / "blue" / "03.png"
    explain(path, "--method", "featurenorm:block=1")  # ID images of the class are stored
    monkeypatch.setattr(ReadyNetwork, "extract", counted)
    argv = (path, "--method", "featurenorm:block=1", "--format", "json", "--neighbours", 1)
    code, out, err = explain(*argv)
    assert code == 0, err
    # One pass of the image for all parts; one for each check of a shown training image.
    assert passes == [1, 1, 1]
    monkeypatch.undo()
    (image,) = found(out)
    assert image["block"]["selected_by"] == "method"
    assert (image["block"]["block"], image["block"]["id_images"]) == (1, 12)
    assert image["compared_with"] == image["class"]
    with OpenRun.open(Store(store), "tiny", Compute.of("cpu")) as run:
        network = detector_for(run, "msp").ready.network
        pixels = run.data.images("test").pixels()
        labels = run.data.dataset.id_test.labels
        pre = run.record.preprocess
        name = image["block"]["name"]
        maps: list[torch.Tensor] = []
        hook = network.module.get_submodule(network.blocks[name]).register_forward_hook(
            lambda _module, _inputs, output: maps.append(output)
        )
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (pre.mean, pre.std))
        with torch.no_grad():
            network.module((torch.from_numpy(pixels).float() / 255 - mean) / std)
        hook.remove()
    energy = maps[0].clamp(min=0).square().sum(dim=1).sqrt().numpy()
    np.testing.assert_allclose(image["block"]["energy"], energy[3], rtol=1e-3, atol=1e-4)
    assert labels is not None
    of_class = energy[labels == ["blue", "red"].index(image["class"])]
    np.testing.assert_allclose(
        image["block"]["id_energy"], of_class.mean(axis=0), rtol=1e-3, atol=1e-4
    )


def test_the_typical_image_has_the_median_score_of_its_class(
    explain: Explain, ood: Ood, ready_store: tuple[Path, Path]
) -> None:
    store, images = ready_store
    path = images / "test" / "red" / "00.png"
    (image,) = found(explain(path, "--method", "energy", "--format", "json")[1])
    folder = images / "test" / image["class"]
    argv = ("predict", folder, "--method", "energy", "--format", "jsonl", "--store", store)
    rows = [json.loads(line) for line in ood(*argv)[1].splitlines()]
    middle = sorted(rows, key=lambda row: row["score"])[5]  # the lower of the two of 12
    assert image["typical"]["score"] == pytest.approx(middle["score"], rel=1e-5)
    assert Path(image["typical"]["name"]).name == Path(middle["path"]).name
    assert image["typical"]["class"] == image["class"]


def test_pictures_and_an_index_are_written_and_nothing_is_replaced(
    explain: Explain, tmp_path: Path
) -> None:
    noise = flat(tmp_path / "noise", n=1)
    (noise / "broken.png").write_bytes(b"no image")
    argv = (noise, noise / "0.png", "--method", "msp", "--output", tmp_path / "why")
    code, out, err = explain(*argv, "--neighbours", 1)
    assert code == 0, err
    assert "broken.png: cannot be read: not an image file" in out
    names = {path.name for path in (tmp_path / "why").iterdir()}
    assert names == {"0.png", "0-2.png", "index.html"}
    with Image.open(tmp_path / "why" / "0-2.png") as picture:
        assert picture.width == 1080
    index = (tmp_path / "why" / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', index) == ["0.png", "0-2.png"]
    assert "unreadable: not an image file" in index
    before = (tmp_path / "why" / "0-2.png").read_bytes()
    code, _, err = explain(*argv)
    assert code == 1
    assert "why is not empty; choose another folder" in " ".join(err.split())
    (tmp_path / "why" / "0-2.png").write_bytes(b"other")
    (tmp_path / "why" / "mine.txt").write_text("mine")
    assert explain(*argv, "--neighbours", 1, "--overwrite")[0] == 0
    assert (tmp_path / "why" / "0-2.png").read_bytes() == before
    assert (tmp_path / "why" / "mine.txt").read_text() == "mine"
    only = ("--method", "msp", "--neighbours", 1, "--picture", "pdf", "--output", tmp_path / "pdf")
    assert explain(noise / "0.png", *only)[0] == 0
    content = (tmp_path / "pdf" / "0.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert b"/FontFile2" in content
    assert 'href="0.pdf"' in (tmp_path / "pdf" / "index.html").read_text()


def test_pages_hold_everything_and_hostile_names_are_text(explain: Explain, tmp_path: Path) -> None:
    folder = flat(tmp_path / "noise", n=1)
    name = "<script>alert(1)<.png"
    (folder / "0.png").rename(folder / name)
    argv = (folder, "--picture", "html", "--output", tmp_path / "why", "--neighbours", 1)
    assert explain(*argv)[0] == 0
    for path in (tmp_path / "why").iterdir():
        page = path.read_text()
        assert "&lt;script&gt;alert(1)&lt;" in page, path
        assert "<script>alert" not in page
        assert "default-src 'none'; img-src data:" in page
        assert not re.search(r'(src|href)="(https?:)?//', page)
    assert len(list((tmp_path / "why").iterdir())) == 2


def test_images_that_cannot_be_read_alone_are_an_error(explain: Explain, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, out, err = explain(
        tmp_path / "broken.png", "--format", "json", "--output", tmp_path / "why"
    )
    assert code == 1
    (image,) = found(out)
    assert image["error"] == "not an image file"
    assert image["verdict"] is None
    assert "none of 1 image could be explained" in " ".join(err.split())
    assert not (tmp_path / "why").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-"], "paths are not read from stdin here"),
        (["--neighbours", 0], "--neighbours must be from 1 to 10, not 0"),
        (["--method", "nonesuch"], "no method 'nonesuch'"),
        (["--method", "mcm"], "mcm is not defined here"),
    ],
)
def test_what_cannot_work_is_refused(
    explain: Explain, tmp_path: Path, argv: list[object], said: str
) -> None:
    code, out, err = explain(flat(tmp_path / "noise", n=1), *argv)
    assert (code, out) == (1, "")
    assert said in " ".join(err.split())


def test_an_encoder_is_explained_also_when_its_data_are_changed_or_gone(
    ood: Ood, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    state = parse_architecture("resnet18:width=2").build(7).state_dict()
    state = {name: values for name, values in state.items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "encoder.pth")
    data = tree(tmp_path / "colours", n=24)
    argv = ["import", tmp_path / "encoder.pth", "--arch", "resnet18:width=2", "--data", data]
    assert ood(*argv, "--mean", 0.5, "--std", 0.5)[0] == 0
    noise = flat(tmp_path / "odd", n=1)
    argv = ["explain", noise, "--method", "knn:k=2", "--format", "json", "--neighbours", 2]
    code, out, err = ood(*argv)
    assert code == 0, err
    (image,) = found(out)
    assert (image["class"], image["probability"], image["compared_with"]) == (None, None, None)
    kinds = [each["kind"] for each in image["methods"]]
    assert kinds[0] == "chosen"
    assert not {"softmax", "logits"} & set(kinds)
    assert image["block"]["id_images"] == 48
    assert image["typical"]["among"] == 48
    assert not any("training images" in each for each in image["missing"])
    near = image["neighbours"][0]
    assert near["class"] == near["name"].split("/")[0]

    # Another image under the name of the nearest one is not shown as it.
    other = np.random.default_rng(5).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(other).save(data / "train" / near["name"])
    (image,) = found(ood(*argv)[1])
    assert image["neighbours"][0]["name"] == f"training image {near['row']}"
    assert image["neighbours"][0]["distance"] == near["distance"]
    assert any("have changed since the method was fitted" in each for each in image["missing"])

    # Without the data, stored methods remain.
    shutil.rmtree(data)
    code, out, err = ood(*argv, "--output", tmp_path / "why")
    assert code == 0, err
    (image,) = found(out)
    assert image["neighbours"][0]["class"] is None
    assert [each["kind"] for each in image["methods"]] == kinds
    assert (image["typical"], image["block"]["id_energy"]) == (None, [])
    assert sum("cannot be opened" in each for each in image["missing"]) == 2
    assert (tmp_path / "why" / "0.png").is_file()


def test_an_empty_folder_is_refused_before_any_method_is_fitted(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = ood("explain", tmp_path / "empty", "--method", "msp")
    assert (code, out) == (1, "")
    assert "there is no image in" in " ".join(err.split())
    assert not list((tmp_path / "store" / "runs").glob("*/detectors/*"))


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        (("ood",), "a says ood; no other method is defined"),
        (("id", "id"), "all 2 methods agree: id"),
        (("ood", "ood"), "all 2 methods agree: ood"),
        (("id", "ood"), "the methods disagree: 1 of 2 say ood (b)"),
    ],
)
def test_agreement_is_a_sentence(verdicts: tuple[Any, ...], sentence: str) -> None:
    views = tuple(
        MethodView(name, "chosen", 0.0, 0.0, 0.0, 0.0, verdict, 1, 0.0)
        for name, verdict in zip("ab", verdicts, strict=False)
    )
    flagged = verdicts.count("ood")
    assert Explanation("a.png", methods=views, flagged=flagged).agreement == sentence
    assert Explanation("a.png", error="why").agreement is None
