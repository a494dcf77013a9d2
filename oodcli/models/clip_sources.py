"""CLIP networks of open_clip, by name and tag, from a folder, or from the cache of the hub.

Their names are ``open_clip:MODEL:TAG``, ``open_clip:MODEL:FOLDER``, ``open_clip:FOLDER`` or
``open_clip:OWNER/NAME``; ``open_clip:MODEL`` alone needs a weight file. A folder contains
``open_clip_config.json`` and the weights, as written by open_clip.
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from oodcli.errors import InvalidInputError, UnknownNameError
from oodcli.files import expanded, reading, third_party_code
from oodcli.models.clip_tower import ImageTower
from oodcli.models.model_folders import ModelFolder, find_folder

OPEN_CLIP = "open_clip"
CLIP_CONFIG = "open_clip_config.json"
_CURE = "give a folder as written by open_clip"
# In the order in which open_clip searches them.
_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "model.safetensors",
    "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
_BOTH = ("embed_dim", "vision_cfg", "text_cfg")
# open_clip always builds a text tower too; where it is not needed, a minimal one is discarded.
_SMALLEST_TEXT = {"context_length": 2, "vocab_size": 2, "width": 2, "heads": 1, "layers": 1}
_DEFAULT_SIDE = 224


@dataclass(frozen=True)
class ClipSource:
    """A CLIP network, and the location of its weights.

    Parameters
    ----------
    name
        The canonical name, without ``open_clip:``.
    network
        Configuration of the network, as in open_clip's ``model_cfg``.
    images
        Preprocessing of images, as in open_clip's ``preprocess_cfg``.
    said_by
        Source of the preprocessing, for messages.
    folder
        Folder of the weights; None for a model without a tag or folder.
    files
        Possible names of the weight file in the folder, in order of preference.
    tokenizer
        Name of the model whose tokenizer the network uses; empty if the tokenizer is in the folder.
    """

    name: str
    network: Mapping[str, Any]
    images: Mapping[str, Any]
    said_by: str
    folder: ModelFolder | None = None
    files: tuple[str, ...] = field(default=_WEIGHTS)
    tokenizer: str = ""

    @property
    def tower(self) -> str:
        """Configuration of the image tower, as JSON text."""
        vision = {**self.network["vision_cfg"], "timm_model_pretrained": False}
        content = {"embed_dim": self.network["embed_dim"], "vision_cfg": vision}
        if self.network.get("quick_gelu"):
            content["quick_gelu"] = True
        return json.dumps(content, sort_keys=True)

    def weights(self) -> tuple[Path, dict[str, Tensor]]:
        """Read the weights of both towers; return the path of the file and the tensors by name.

        Raises
        ------
        InvalidInputError
            If there are no weights, or the file cannot be used.
        DownloadError
            If a download fails.
        """
        if self.folder is None:
            raise InvalidInputError(
                f"{OPEN_CLIP}:{self.name} names no weights; add a pretrained tag or a folder "
                f"(open_clip:{self.name}:TAG), or give a file: ood import FILE"
            )
        return self.folder.weights(self.files)


def open_clip_package() -> Any:  # noqa: ANN401 - an optional package
    """Import open_clip.

    Raises
    ------
    InvalidInputError
        If open_clip is not installed.
    """
    try:
        return importlib.import_module("open_clip")
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        raise InvalidInputError(
            "networks open_clip:… need the package open_clip_torch; install it: "
            'pip install "oodcli[clip]"'
        ) from None


def clip_source(function: str, *, download: bool = False) -> ClipSource:
    """Return the configuration and the location of a CLIP network.

    Parameters
    ----------
    function
        The text of the architecture after ``open_clip:``.
    download
        Whether files that are not in the cache of the hub may be downloaded.

    Raises
    ------
    UnknownNameError
        If there is no such model, or the model has no such tag.
    InvalidInputError
        If the package is not installed, or the folder contains no CLIP network.
    DownloadError
        If a download fails.
    """
    package = open_clip_package()
    what = f"{OPEN_CLIP}:{function}"
    if function and expanded(Path(function)).is_dir():
        return _of_folder(find_folder(function, what=what, mark=CLIP_CONFIG))
    model, _, rest = function.partition(":")
    name = model.replace("/", "-")
    if name in package.list_models():
        return _of_model(name, rest, what, download=download)
    if "/" in function and ":" not in function:
        return _of_folder(find_folder(function, what=what, mark=CLIP_CONFIG, download=download))
    raise UnknownNameError.among("folder or model of open_clip", model, package.list_models())


def _of_folder(folder: ModelFolder) -> ClipSource:
    content = folder.json(CLIP_CONFIG)
    if content is None:
        raise InvalidInputError(f"{folder.name} has no {CLIP_CONFIG}; {_CURE}")
    network = _checked(content.get("model_cfg"), folder)
    images = content.get("preprocess_cfg") or {}
    if not isinstance(images, dict):
        raise InvalidInputError(f"preprocess_cfg of {folder.name} is not a JSON object; {_CURE}")
    return ClipSource(folder.name, network, images, str(folder.path / CLIP_CONFIG), folder)


def _checked(network: object, folder: ModelFolder) -> Mapping[str, Any]:
    if not isinstance(network, dict) or not all(name in network for name in _BOTH):
        raise InvalidInputError(
            f"the {CLIP_CONFIG} of {folder.name} has no model_cfg with {', '.join(_BOTH)}; {_CURE}"
        )
    name = network["vision_cfg"].get("timm_model_name") or ""
    if ":" in str(name):
        raise InvalidInputError(
            f"the image tower of {folder.name} is {name}, which lies elsewhere, and ood gets "
            "nothing that was not asked for; name a network with a tower of its own"
        )
    return network


def _of_model(name: str, rest: str, what: str, *, download: bool) -> ClipSource:
    """Return a model of open_clip's list, with ``rest``: a tag, a folder of weights, or nothing."""
    package = open_clip_package()
    network = package.get_model_config(name)
    defaults = f"open_clip's configuration of {name}"
    if not rest:
        return ClipSource(name, network, {}, defaults, tokenizer=name)
    if expanded(Path(rest)).is_dir():
        folder = find_folder(rest, what=what)
        images, said_by = {}, defaults
        if folder.json(CLIP_CONFIG) is not None:
            own = _of_folder(folder)
            _check_same(name, network, own)
            images, said_by = dict(own.images), own.said_by
        return ClipSource(f"{name}:{folder.name}", network, images, said_by, folder, tokenizer=name)
    published = package.get_pretrained_cfg(name, rest)
    tags = package.list_pretrained_tags_by_model(name)
    if not published:
        raise UnknownNameError.among(f"folder or pretrained tag of {name}", rest, tags)
    tag = next(tag for tag in tags if package.get_pretrained_cfg(name, tag) == published)
    if published.get("quick_gelu"):
        # The activation function that the weights were trained with, for any model name.
        network = {**network, "quick_gelu": True}
    repository, _, file = published["hf_hub"].rpartition("/")
    files = tuple(dict.fromkeys((f"{file.rpartition('.')[0]}.safetensors", file))) if file else ()
    folder = find_folder(
        repository, what=what, on_disk=False, mark=files or _WEIGHTS, download=download
    )
    said_by = f"open_clip's configuration of {name} ({tag})"
    return ClipSource(
        f"{name}:{tag}", network, published, said_by, folder, files or _WEIGHTS, tokenizer=name
    )


def _check_same(name: str, network: Mapping[str, Any], own: ClipSource) -> None:
    """Refuse a folder whose configuration is not that of the given model.

    Raises
    ------
    InvalidInputError
        If the configurations differ.
    """
    for key in (*_BOTH, "quick_gelu"):
        if (network.get(key) or False) != (own.network.get(key) or False):
            raise InvalidInputError(
                f"the {CLIP_CONFIG} of {own.name} has another {key} than {name}; omit the model: "
                f"--arch {OPEN_CLIP}:{own.name}"
            )


def preprocessing(source: ClipSource) -> dict[str, Any]:
    """Return the preprocessing of images, equal to that of open_clip's own transform.

    Returns
    -------
    dict
        Fields of :class:`oodcli.models.pretrained.Pretrained`: ``mean``, ``std``, ``size``,
        ``resize`` and ``filter``.

    Raises
    ------
    InvalidInputError
        If ood does not support the preprocessing.
    """
    open_clip_package()
    transform = importlib.import_module("open_clip.transform")
    where = f"{OPEN_CLIP}:{source.name}"
    cure = "correct its preprocess_cfg"
    with reading(where, cure=cure, wrong="is not valid", error=InvalidInputError):
        merged = transform.merge_preprocess_dict(transform.PreprocessCfg(), dict(source.images))
        side = source.network["vision_cfg"].get("image_size", _DEFAULT_SIDE)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        size = int(height), int(width)
        mean, std = (tuple(float(v) for v in merged[name]) for name in ("mean", "std"))
        if not (len(mean) == len(std) == 3 and min(size) > 0):
            raise ValueError("mean and std need three numbers each, and the size must be positive")
    mode, filter_ = merged["resize_mode"], merged["interpolation"]
    if mode not in ("shortest", "squash") or (mode == "shortest" and size[0] != size[1]):
        raise InvalidInputError(
            f"{where} has images of {size[0]} x {size[1]} pixels with resize_mode {mode}, which "
            "ood does not support; copy its folder and set shortest or squash in preprocess_cfg"
        )
    return {
        "mean": mean,
        "std": std,
        "size": size,
        "resize": "exact" if mode == "squash" else f"shorter-crop:{size[0]}",
        # open_clip uses bicubic for "random" in evaluation.
        "filter": "bilinear" if filter_ == "bilinear" else "bicubic",
    }


def build_tower(config: str, num_classes: int) -> nn.Module:
    """Build a randomly initialised image tower with a last layer.

    Parameters
    ----------
    config
        Configuration from :attr:`ClipSource.tower`.
    num_classes
        Number of classes.
    """
    content = json.loads(config)
    with third_party_code("the image tower cannot be built", cure="correct its configuration"):
        both = open_clip_package().CLIP(
            content["embed_dim"],
            content["vision_cfg"],
            dict(_SMALLEST_TEXT),
            quick_gelu=content.get("quick_gelu", False),
        )
    return ImageTower(both.visual, content["embed_dim"], num_classes)
