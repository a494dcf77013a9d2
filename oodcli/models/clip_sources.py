"""CLIP networks of open_clip, by name and tag, from a folder, or from the cache of the hub.

They are written ``open_clip:MODEL:TAG``, ``open_clip:MODEL:FOLDER``, ``open_clip:FOLDER`` or
``open_clip:OWNER/NAME``; ``open_clip:MODEL`` alone needs a file of weights. A folder holds
``open_clip_config.json`` and the weights, as open_clip writes it.
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
_CURE = "name a folder as open_clip writes it"
# In the order in which open_clip looks for them.
_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "model.safetensors",
    "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
_BOTH = ("embed_dim", "vision_cfg", "text_cfg")
# A text tower is built with every network, and thrown away where it is not needed.
_SMALLEST_TEXT = {"context_length": 2, "vocab_size": 2, "width": 2, "heads": 1, "layers": 1}
_USUAL_SIDE = 224


@dataclass(frozen=True)
class ClipSource:
    """A CLIP network, and where its weights are.

    Parameters
    ----------
    name
        The one way to write it, without ``open_clip:``.
    network
        Its configuration, as open_clip's ``model_cfg`` has it.
    images
        What is said of its images, as in open_clip's ``preprocess_cfg``.
    said_by
        What says so, for people to read.
    folder
        Where its weights are; None of a model that is named without any.
    files
        Names that the file of weights may have in the folder, best first.
    tokenizer
        The name of the model whose tokenizer it has; empty where that lies in the folder.
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
        """What the image tower is built from, as JSON text."""
        vision = {**self.network["vision_cfg"], "timm_model_pretrained": False}
        kept = {"embed_dim": self.network["embed_dim"], "vision_cfg": vision}
        if self.network.get("quick_gelu"):
            kept["quick_gelu"] = True
        return json.dumps(kept, sort_keys=True)

    def weights(self) -> tuple[Path, dict[str, Tensor]]:
        """Read the weights of both towers; return also their file.

        Raises
        ------
        InvalidInputError
            If there are none, or the file cannot be used.
        DownloadError
            If they were to be downloaded and cannot be.
        """
        if self.folder is None:
            raise InvalidInputError(
                f"{OPEN_CLIP}:{self.name} names no weights; name a pretrained tag or a folder "
                f"behind it (open_clip:{self.name}:TAG), or a file: ood import FILE"
            )
        return self.folder.weights(self.files)


def open_clip_package() -> Any:  # noqa: ANN401 - a package that need not be there
    """Import open_clip.

    Raises
    ------
    InvalidInputError
        If it is not installed.
    """
    try:
        return importlib.import_module("open_clip")
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        raise InvalidInputError(
            "networks written open_clip:… need the package open_clip_torch; install it: "
            'pip install "oodcli[clip]"'
        ) from None


def clip_source(function: str, *, download: bool = False) -> ClipSource:
    """Find out which CLIP network is written, and where its weights are.

    Parameters
    ----------
    function
        What follows ``open_clip:``.
    download
        Whether what is not in the cache of the hub may be downloaded.

    Raises
    ------
    UnknownNameError
        If there is no such model, or no such tag of it.
    InvalidInputError
        If the package is not installed, or the folder holds no CLIP network.
    DownloadError
        If something was to be downloaded and cannot be.
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
        raise InvalidInputError(f"preprocess_cfg of {folder.name} is no JSON object; {_CURE}")
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
    """Return a model of open_clip's own list, with a tag or a folder of weights behind it."""
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
        # The activation that the weights were trained with, whatever the model is called.
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
    """Refuse a folder that says that it holds another network than the one that is named."""
    for key in (*_BOTH, "quick_gelu"):
        if (network.get(key) or False) != (own.network.get(key) or False):
            raise InvalidInputError(
                f"the {CLIP_CONFIG} of {own.name} has another {key} than {name}; leave the model "
                f"out: --arch {OPEN_CLIP}:{own.name}"
            )


def preprocessing(source: ClipSource) -> dict[str, Any]:
    """Return how images are made ready, as open_clip's own transform does it.

    Returns
    -------
    dict
        Fields of :class:`oodcli.models.pretrained.Pretrained`: ``mean``, ``std``, ``size``,
        ``resize`` and ``filter``.

    Raises
    ------
    InvalidInputError
        If images are made ready in a way that is not known here.
    """
    open_clip_package()
    transform = importlib.import_module("open_clip.transform")
    where = f"{OPEN_CLIP}:{source.name}"
    cure = "correct its preprocess_cfg"
    with reading(where, cure=cure, wrong="is not clear", error=InvalidInputError):
        merged = transform.merge_preprocess_dict(transform.PreprocessCfg(), dict(source.images))
        side = source.network["vision_cfg"].get("image_size", _USUAL_SIDE)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        size = int(height), int(width)
        mean, std = (tuple(float(v) for v in merged[name]) for name in ("mean", "std"))
        if not (len(mean) == len(std) == 3 and min(size) > 0):
            raise ValueError("images of three channels have three means and deviations")
    mode, filter_ = merged["resize_mode"], merged["interpolation"]
    if mode not in ("shortest", "squash") or (mode == "shortest" and size[0] != size[1]):
        raise InvalidInputError(
            f"{where} has images of {size[0]} x {size[1]} pixels with resize_mode {mode}, which "
            "ood does not do; copy its folder and write shortest or squash into preprocess_cfg"
        )
    return {
        "mean": mean,
        "std": std,
        "size": size,
        "resize": "exact" if mode == "squash" else f"shorter-crop:{size[0]}",
        "filter": "bilinear" if filter_ == "bilinear" else "bicubic",  # as open_clip takes random
    }


def build_tower(config: str, num_classes: int) -> nn.Module:
    """Make an image tower with fresh weights, and a last layer.

    Parameters
    ----------
    config
        As :attr:`ClipSource.tower` returns it.
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
