"""Networks that a folder holds: ``hf:FOLDER``, ``timm:local-dir:FOLDER``, ``open_clip:FOLDER``."""

import json
from pathlib import Path
from typing import Any

from oodcli.errors import InvalidInputError
from oodcli.models import hugging_face
from oodcli.models.clip_sources import OPEN_CLIP, clip_source
from oodcli.models.hugging_face import HUGGING_FACE
from oodcli.models.model_folders import CONFIG, ModelFolder, find_folder

_LOCAL = "local-dir"
_HUB = "hf-hub"


def folder_of(package: str, function: str, *, download: bool = False) -> ModelFolder:
    """Find the folder that an architecture names.

    Parameters
    ----------
    package
        ``hf`` or ``timm``.
    function
        What follows: a folder or a name of the hub; of timm with ``local-dir:`` or ``hf-hub:``.
    download
        Whether what is not in the cache of the hub may be downloaded.

    Raises
    ------
    InvalidInputError
        If there is no such folder.
    DownloadError
        If it was to be downloaded and cannot be.
    """
    what = f"{package}:{function}"
    if package == HUGGING_FACE:
        return find_folder(function, what=what, download=download)
    kind, _, name = function.partition(":")
    local = kind == _LOCAL
    return find_folder(name, what=what, on_disk=local, on_hub=not local, download=download)


def canonical_function(package: str, function: str) -> str:
    """Return the one way to write what follows the package: folders whole, wherever one stands."""
    if package == HUGGING_FACE:
        return _whole(function)
    if package == OPEN_CLIP:
        return clip_source(function).name
    kind, _, name = function.partition(":")
    return f"{_LOCAL}:{_whole(name)}" if kind == _LOCAL else f"{_HUB}:{name}"


def _whole(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.is_dir() else name


def config_named(package: str, function: str) -> str:
    """Return what the network is built from that an architecture names.

    Parameters
    ----------
    package, function
        As for :func:`folder_of`; of open_clip, as :func:`clip_source` takes it.

    Raises
    ------
    OodError
        If there is no such network, or its package is not installed.
    """
    if package == OPEN_CLIP:
        return clip_source(function).tower
    return config_of(package, folder_of(package, function))


def config_of(package: str, folder: ModelFolder) -> str:
    """Return what the network is built from, as :class:`Architecture` has it.

    Raises
    ------
    InvalidInputError
        If the folder holds no image classifier of the package, or its package is not installed.
    """
    if package == HUGGING_FACE:
        return hugging_face.built_from(folder)
    content = folder.configuration
    name, more = content.get("architecture"), content.get("model_args") or {}
    if not isinstance(name, str) or not isinstance(more, dict):
        kind = content.get("model_type")
        cure = f"write --arch hf:{folder.name}" if kind else "name a folder as timm writes it"
        raise InvalidInputError(
            f"{folder.name} holds no network of timm: its {CONFIG} names no architecture; {cure}"
        )
    wanted = {key: value for key, value in more.items() if key != "num_classes"}
    return json.dumps({"architecture": name, "model_args": wanted}, sort_keys=True)


def folder_side(package: str, function: str) -> int | None:
    """Return the height and width of images that a folder fixes where it says nothing of images.

    Parameters
    ----------
    package, function
        As for :func:`folder_of`.

    Returns
    -------
    int
        The ``image_size`` of its configuration, in pixels; None if a file of the folder says how
        images are made ready, or nothing says it.

    Raises
    ------
    OodError
        If the folder cannot be used.
    """
    if package != HUGGING_FACE:
        return None
    folder = folder_of(package, function)
    if hugging_face.preprocessing(folder) is not None:
        return None
    return hugging_face.config_side(config_of(package, folder))


def timm_configuration(folder: ModelFolder) -> dict[str, Any]:
    """Return what timm's networks carry as ``pretrained_cfg``, from a folder.

    Raises
    ------
    InvalidInputError
        If the folder has none.
    """
    content = dict(folder.configuration)
    shown = content.get("pretrained_cfg", content)
    if not isinstance(shown, dict) or "input_size" not in shown:
        raise InvalidInputError(
            f"{folder.name} does not say which images its network takes (pretrained_cfg in its "
            f"{CONFIG}); name a folder as timm writes it"
        )
    return {**shown, **{k: content[k] for k in ("num_classes", "label_names") if k in content}}
