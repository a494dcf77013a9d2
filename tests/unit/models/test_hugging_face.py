"""Image classifiers of transformers, from folders that the tests write."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from oodcli.errors import DownloadError, InvalidInputError
from oodcli.models import (
    folder_class_names,
    folder_commit,
    load_into,
    parse_architecture,
    pretrained_state,
    published_configuration,
    with_output,
)
from oodcli.models.checkpoint import load_run_network, save_weights
from oodcli.models.extraction import extract
from oodcli.models.fitting import load_with_remarks

transformers = pytest.importorskip(
    "transformers", reason="networks written hf:… need transformers: pip install oodcli[hf]"
)

NAMES = ["ant", "bee", "cat"]
SIDE = 32
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
TINY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
STAGES = {"hidden_sizes": [4, 8, 12, 16], "depths": [1, 1, 2, 1]}
# Configuration, kind of block, number of blocks, and the last layer.
FAMILIES: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "ViT": (
        {**TINY, "intermediate_size": 32, "image_size": SIDE, "patch_size": 8},
        "ViTLayer", 3, "classifier",
    ),
    "ResNet": (
        {**STAGES, "embedding_size": 4, "layer_type": "basic"}, "ResNetBasicLayer", 5,
        "classifier.1",
    ),
    "ConvNext": (STAGES, "ConvNextLayer", 5, "classifier"),
    "Swin": (
        {"image_size": SIDE, "patch_size": 2, "embed_dim": 8, "depths": [1, 2],
         "num_heads": [2, 2], "window_size": 4},
        "SwinLayer", 3, "classifier",
    ),
    "Dinov2": ({**TINY, "image_size": SIDE, "patch_size": 8}, "Dinov2Layer", 3, "classifier"),
    "MobileNetV2": (
        {"image_size": SIDE, "depth_multiplier": 0.35}, "MobileNetV2InvertedResidual", 16,
        "classifier",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("something went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def saved(folder: Path, family: str = "ViT", *, seed: int = 0, **more: Any) -> nn.Module:
    """Save a tiny network with random weights, none of them zero or one by initialisation."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family][0], **LABELS, **more)
    module = getattr(transformers, f"{family}ForImageClassification")(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    module.save_pretrained(folder)
    return module


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(InvalidInputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def loaded(folder: Path) -> Any:
    arch = f"hf:{folder}"
    return load_into(parse_architecture(arch, side=SIDE), pretrained_state(arch).state)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_and_blocks_are_found(family: str, tmp_path: Path) -> None:
    theirs = saved(tmp_path / "net", family)
    network = loaded(tmp_path / "net")
    images = torch.randn(3, 3, SIDE, SIDE)
    with torch.inference_mode():
        wanted, logits = theirs(pixel_values=images).logits, network.module(images)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-6)
    _, kind, count, head = FAMILIES[family]
    kinds = {type(network.module.get_submodule(path)).__name__ for path in network.blocks.values()}
    assert (kinds, len(network.blocks), network.head_path) == ({kind}, count, head)
    assert folder_class_names(f"hf:{tmp_path / 'net'}") == tuple(NAMES)
    assert len(network.block_shapes((SIDE, SIDE))) == count


@pytest.mark.parametrize("family", ["Dinov2", "ViT"])
def test_a_network_without_a_classifier_gives_the_features_of_one(
    family: str, tmp_path: Path
) -> None:
    """A class token for ViT; for DINOv2 that and the mean of the patches, as its probe takes."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family][0])
    theirs = getattr(transformers, f"{family}Model")(config).eval()
    theirs.save_pretrained(tmp_path / "net")
    arch = f"hf:{tmp_path / 'net'}"
    spec = parse_architecture(arch, side=SIDE)
    state = pretrained_state(arch).state
    assert not any(name.startswith("classifier.") for name in state)
    network, _ = load_with_remarks(spec, state, source="it", classifier="if there")
    assert network.num_classes == 0
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    (found,) = extract(network, [images.numpy()], mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.inference_mode():
        tokens = theirs(pixel_values=images.float() / 127.5 - 1).last_hidden_state
    wanted = tokens[:, 0]
    if family == "Dinov2":
        wanted = torch.cat([wanted, tokens[:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(found.features, wanted, rtol=1e-4, atol=1e-5)


def test_a_bin_file_of_weights_is_read_without_running_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    theirs = saved(folder)
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    network = loaded(folder)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), theirs(images).logits)


def test_weights_in_several_files_are_put_together(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    theirs = saved(folder)
    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder, max_shard_size="10KB")  # type: ignore[operator]
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(folder).module(images), theirs(images).logits)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "weight_map": {"a": "../elsewhere.safetensors"}}))
    assert "lists no weight files" in refusal(lambda: loaded(folder))


def test_a_run_is_built_again_without_its_folder(tmp_path: Path) -> None:
    folder, weights = tmp_path / "net", tmp_path / "weights.safetensors"
    saved(folder, hidden_act="relu")
    network = loaded(folder)
    save_weights(network, weights)
    shutil.rmtree(folder)
    again = load_run_network(
        weights, str(network.spec), 3, size=(SIDE, SIDE), blocks=tuple(network.blocks)
    )
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.equal(again.module(images), network.module(images))
    assert again.digest == network.digest
    message = refusal(lambda: parse_architecture(str(network.spec)))
    assert str(folder) in message


def test_the_configuration_is_a_part_of_the_digest(tmp_path: Path) -> None:
    saved(tmp_path / "net")
    digests = {loaded(tmp_path / "net").digest}
    path = tmp_path / "net" / "config.json"
    path.write_text(path.read_text().replace('"gelu"', '"relu"'))
    digests.add(loaded(tmp_path / "net").digest)
    assert len(digests) == 2


def processor(kind: str, **more: Any) -> Any:
    """Return a processor with Pillow's filters."""
    name = f"{kind}ImageProcessorPil"
    found = getattr(transformers, name, None)
    if found is None:
        pytest.skip(f"this version of transformers has no {name}")
    return found(**more)


@pytest.mark.parametrize(
    ("kind", "fields", "size", "resize"),
    [
        ("ViT", {"size": {"height": 40, "width": 40}}, (40, 40), "exact"),
        ("ViT", {"size": {"height": 40, "width": 40}, "resample": 3}, (40, 40), "exact"),
        ("ConvNext", {"size": {"shortest_edge": 42}, "crop_pct": 0.875}, (42, 42),
         "shorter-crop:48"),
        ("ConvNext", {"size": {"shortest_edge": 384}}, (384, 384), "exact"),
        ("Bit", {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}},
         (40, 40), "shorter-crop:48"),
        ("MobileNetV2", {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}},
         (40, 40), "shorter-crop:48"),
        ("Levit", {"size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}},
         (42, 42), "shorter-crop:48"),
        ("PoolFormer", {"size": {"shortest_edge": 40}, "crop_pct": 0.8,
                        "crop_size": {"height": 40, "width": 40}}, (40, 40), "shorter-crop:50"),
        ("EfficientNet", {"size": {"height": 40, "width": 40}, "include_top": True,
                          "rescale_offset": True, "rescale_factor": 1 / 127.5},
         (40, 40), "exact"),
    ],
)  # fmt: skip
def test_pixels_are_those_of_the_processor_in_the_folder(
    kind: str, fields: dict[str, Any], size: tuple[int, int], resize: str, tmp_path: Path
) -> None:
    from PIL import Image

    from oodcli.data.decoding.scaling import Resizing

    folder = tmp_path / "net"
    saved(folder)
    shown = processor(kind, **fields)
    shown.save_pretrained(folder)
    found = published_configuration(f"hf:{folder}")
    assert found is not None
    assert (found.size, found.resize, found.classes) == (size, resize, 3)
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC))
    wanted = shown(Image.fromarray(photo), return_tensors="np")["pixel_values"][0]
    way = resize if found.filter == "bilinear" else f"{resize}:{found.filter}"
    ours = Resizing(size, way).apply(photo).transpose(2, 0, 1)
    mean, std = (np.array(each)[:, None, None] for each in (found.mean, found.std))
    np.testing.assert_allclose((ours / 255 - mean) / std, wanted, atol=1e-5)


def test_a_processor_that_swaps_colours_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    processor("MobileViT").save_pretrained(tmp_path)
    message = refusal(lambda: published_configuration(f"hf:{tmp_path}"))
    assert "swaps red and blue" in message


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_of_a_repository_is_refused_by_its_name(file: str, tmp_path: Path) -> None:
    saved(tmp_path)
    processor("ViT").save_pretrained(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    content["auto_map"] = {"AutoModelForImageClassification": "modeling_evil.Evil"}
    (tmp_path / file).write_text(json.dumps(content))
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('it ran')")
    message = refusal(lambda: published_configuration(f"hf:{tmp_path}"))
    assert "modeling_evil.Evil" in message


def test_what_is_no_image_classifier_is_refused(tmp_path: Path) -> None:
    bert = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    body = {"model_type": "vit", "architectures": ["ViTForMaskedImageModeling"]}
    of_timm = {"architecture": "resnet18"}
    wanted = {
        "BertForSequenceClassification": bert,
        "ViTForMaskedImageModeling": body,
        "timm:local-dir:": of_timm,
    }
    for words, content in wanted.items():
        (tmp_path / "config.json").write_text(json.dumps(content))
        message = refusal(lambda: parse_architecture(f"hf:{tmp_path}"))
        assert words in message
    (tmp_path / "config.json").write_text("[")
    assert "not a JSON object" in refusal(lambda: parse_architecture(f"hf:{tmp_path}"))
    (tmp_path / "config.json").unlink()
    assert "has no config.json" in refusal(lambda: parse_architecture(f"hf:{tmp_path}"))
    assert "no folder" in refusal(lambda: parse_architecture("hf:/no/where"))
    assert "no folder ''" in refusal(lambda: parse_architecture("hf:"))


def test_weights_that_are_gone_or_do_not_fit_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    state = load_file(path)
    save_file({k: v for k, v in state.items() if not k.startswith("classifier")}, path)
    message = refusal(lambda: pretrained_state(f"hf:{tmp_path}"))
    assert "missing: classifier.bias, classifier.weight" in message
    save_file({**state, "odd": torch.zeros(1)}, path)
    assert "unexpected: odd" in refusal(lambda: pretrained_state(f"hf:{tmp_path}"))
    save_file({**state, "classifier.bias": torch.zeros(4)}, path)
    assert "classifier.bias" in refusal(lambda: pretrained_state(f"hf:{tmp_path}"))
    path.unlink()
    assert "has no weights (model.safetensors" in refusal(
        lambda: pretrained_state(f"hf:{tmp_path}")
    )


def cached(home: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    """Lay a folder into the cache of the hub, as downloading it does."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(home))
    repository = home / "models--who--net"
    shutil.copytree(source, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")


def test_the_cache_of_the_hub_is_used_and_nothing_is_downloaded_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    theirs = saved(tmp_path / "net")
    cached(tmp_path / "hub", monkeypatch, tmp_path / "net")
    found = file_download.try_to_load_from_cache
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, file, **more: found(name, file, cache_dir=tmp_path / "hub", **more),
    )
    monkeypatch.chdir(tmp_path)
    spec = parse_architecture("hf:who/net", side=SIDE)
    assert str(spec) == "hf:who/net"
    network = load_into(spec, pretrained_state("hf:who/net", download=False).state)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), theirs(images).logits)
    message = refusal(lambda: published_configuration("hf:who/other"))
    assert "who/other is not in the cache of the hub" in message
    assert "--pretrained --arch hf:who/other" in message
    assert folder_commit("hf:who/net") == "abc"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("revision", ["v2", "refs/pr/1", COMMIT, COMMIT[:7]])
def test_a_revision_is_found_in_the_cache_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    saved(tmp_path / "old")
    theirs = saved(tmp_path / "new", seed=1)
    cached(tmp_path / "hub", monkeypatch, tmp_path / "old")
    repository = tmp_path / "hub" / "models--who--net"
    shutil.copytree(tmp_path / "new", repository / "snapshots" / COMMIT)
    (repository / "refs" / "refs" / "pr").mkdir(parents=True)
    for name in ("v2", "refs/pr/1"):
        (repository / "refs" / name).write_text(COMMIT)
    arch = f"hf:who/net@{revision}"
    spec = parse_architecture(arch, side=SIDE)
    assert str(spec) == arch
    assert (folder_commit(arch), folder_commit("hf:who/net")) == (COMMIT, "abc")
    network = load_into(spec, pretrained_state(arch, download=False).state)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), theirs(images).logits)
    message = refusal(lambda: published_configuration("hf:who/net@v3"))
    assert "revision v3 of who/net is not in the cache of the hub" in message
    assert "--pretrained --arch hf:who/net@v3" in message


def test_a_revision_is_downloaded_file_by_file_from_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub as hub

    saved(tmp_path / "server")
    asked: list[tuple[str, str | None]] = []
    folder = tmp_path / "snapshots" / COMMIT

    def give(_name: str, file: str, revision: str | None = None) -> str:
        asked.append((file, revision))
        if not (tmp_path / "server" / file).exists():
            raise hub.errors.RemoteEntryNotFoundError(
                "no such file", response=type("Response", (), {"headers": {}, "request": None})()
            )
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.copy(tmp_path / "server" / file, folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", give)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda _name, _file, **_more: None
    )
    pretrained_state("hf:who/net@v2", download=True)
    assert asked[0] == ("config.json", "v2")
    assert ("model.safetensors", COMMIT) in asked
    assert {each[1] for each in asked} == {"v2", COMMIT}


def test_what_is_asked_for_is_downloaded_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub as hub

    saved(tmp_path / "server")
    asked: list[str] = []

    def give(name: str, file: str) -> str:
        asked.append(f"{name} {file}")
        source = tmp_path / "server" / file
        if not source.exists():
            raise hub.errors.RemoteEntryNotFoundError(
                "no such file", response=type("Response", (), {"headers": {}, "request": None})()
            )
        (tmp_path / "cache").mkdir(exist_ok=True)
        return shutil.copy(source, tmp_path / "cache" / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", give)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda _name, file: str(tmp_path / "cache" / file) if asked else None,
    )
    assert published_configuration("hf:who/net", download=True) is None  # no preprocessor there
    found = pretrained_state("hf:who/net", download=True)
    assert len(found.state) > 10
    assert "who/net model.safetensors" in asked
    assert not any("pytorch_model" in each for each in asked)

    def fail(_name: str, _file: str, **_more: str) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _name, _file: None)
    with pytest.raises(DownloadError, match="no route to host"):
        published_configuration("hf:who/net", download=True)


def test_the_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    saved(tmp_path)
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError(name="transformers")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    assert 'pip install "oodcli[hf]"' in refusal(lambda: parse_architecture(f"hf:{tmp_path}"))


def test_one_of_two_heads_is_named_in_the_architecture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.DeiTConfig(
        **TINY, intermediate_size=32, image_size=SIDE, patch_size=8, **LABELS
    )
    theirs = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    theirs.save_pretrained(tmp_path)
    arch = with_output(f"hf:{tmp_path}", "cls_logits")
    network = load_into(parse_architecture(arch, side=SIDE), pretrained_state(arch).state)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), theirs(images).cls_logits)


def test_a_folder_of_timm_is_read_by_its_own_configuration(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=3, img_size=SIDE).eval()
    config = {
        "architecture": "test_vit",
        "num_classes": 3,
        "label_names": NAMES,
        "model_args": {"img_size": SIDE},
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE], "interpolation": "bicubic", "crop_pct": 0.875,
            "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3],
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    arch = f"timm:local-dir:{tmp_path}"
    found = pretrained_state(arch)
    assert (found.size, found.resize, found.filter) == ((SIDE, SIDE), "shorter-crop:36", "bicubic")
    assert (found.mean, found.std) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert folder_class_names(arch) == tuple(NAMES)
    network = load_into(parse_architecture(arch, side=SIDE), found.state)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), theirs(images))
    save_weights(network, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").unlink()
    again = load_run_network(tmp_path / "weights.safetensors", arch, 3, size=(SIDE, SIDE))
    assert again.digest == network.digest
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert f"--arch hf:{tmp_path}" in refusal(lambda: pretrained_state(arch))
