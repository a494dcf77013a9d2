"""Networks given by a folder: ``hf:FOLDER``, ``timm:local-dir:FOLDER``, ``open_clip:FOLDER``."""

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
    """Find the folder in the text of an architecture.

    Parameters
    ----------
    package
        ``hf`` or ``timm``.
    function
        The text after the package: a folder or the name of a repository on the hub; for timm with
        the prefix ``local-dir:`` or ``hf-hub:``.
    download
        Whether files that are not in the cache of the hub may be downloaded.

    Raises
    ------
    InvalidInputError
        If there is no such folder.
    DownloadError
        If a download fails.
    """
    what = f"{package}:{function}"
    if package == HUGGING_FACE:
        return find_folder(function, what=what, download=download)
    kind, _, name = function.partition(":")
    local = kind == _LOCAL
    return find_folder(name, what=what, on_disk=local, on_hub=not local, download=download)


def canonical_function(package: str, function: str) -> str:
    """Return the canonical text after the package, with folders as absolute paths."""
    if package == HUGGING_FACE:
        return _absolute(function)
    if package == OPEN_CLIP:
        return clip_source(function).name
    kind, _, name = function.partition(":")
    return f"{_LOCAL}:{_absolute(name)}" if kind == _LOCAL else f"{_HUB}:{name}"


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.is_dir() else name


def config_named(package: str, function: str) -> str:
    """Return the configuration that the network of an architecture is built from.

    Parameters
    ----------
    package, function
        As for :func:`folder_of`; for open_clip, as for :func:`clip_source`.

    Raises
    ------
    OodError
        If there is no such network, or its package is not installed.
    """
    if package == OPEN_CLIP:
        return clip_source(function).tower
    return config_of(package, folder_of(package, function))


def config_of(package: str, folder: ModelFolder) -> str:
    """Return the configuration that the network is built from, as JSON text.

    Raises
    ------
    InvalidInputError
        If the folder contains no image classifier of the package, or the package is not installed.
    """
    if package == HUGGING_FACE:
        return hugging_face.build_configuration(folder)
    content = folder.configuration
    name, more = content.get("architecture"), content.get("model_args") or {}
    if not isinstance(name, str) or not isinstance(more, dict):
        kind = content.get("model_type")
        cure = f"use --arch hf:{folder.name}" if kind else "give a folder as written by timm"
        raise InvalidInputError(
            f"{folder.name} contains no network of timm: its {CONFIG} has no architecture; {cure}"
        )
    wanted = {key: value for key, value in more.items() if key != "num_classes"}
    return json.dumps({"architecture": name, "model_args": wanted}, sort_keys=True)


def folder_side(package: str, function: str) -> int | None:
    """Return the image side of a folder that has no preprocessing configuration.

    Parameters
    ----------
    package, function
        As for :func:`folder_of`.

    Returns
    -------
    int
        The ``image_size`` of its model configuration, in pixels; None if the folder has a
        preprocessing configuration, or no image size.

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
    """Return the ``pretrained_cfg`` of timm from the configuration of a folder.

    Raises
    ------
    InvalidInputError
        If the configuration has none.
    """
    content = dict(folder.configuration)
    shown = content.get("pretrained_cfg", content)
    if not isinstance(shown, dict) or "input_size" not in shown:
        raise InvalidInputError(
            f"{folder.name} does not specify the preprocessing of images (pretrained_cfg in its "
            f"{CONFIG}); give a folder as written by timm"
        )
    return {**shown, **{k: content[k] for k in ("num_classes", "label_names") if k in content}}
