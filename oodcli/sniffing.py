"""What a file that holds a network is, by its content; what it is called does not matter."""

import zipfile
from pathlib import Path
from typing import Literal

ProgramKind = Literal["onnx", "pt2", "torchscript"]

# The version of the form of an ONNX file, and the tags of the fields that may follow it: producer,
# its version, domain, version, text, graph, operator sets.
_ONNX_VERSION = b"\x08"
_ONNX_NEXT = tuple(bytes([tag]) for tag in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42))
_MAX_ONNX_VERSION = b"\x40"
_ZIP = b"PK\x03\x04"
_SCRIPT_ENDS = ("/constants.pkl",)
_EXPORTED_ENDS = ("/model.json", "/archive_format", "serialized_exported_program.json")


def program_kind(path: Path) -> ProgramKind | None:
    """Tell whether a file holds a network with its forward pass, and in which form.

    Parameters
    ----------
    path
        A regular file.

    Returns
    -------
    str
        ``onnx``, ``pt2`` (of ``torch.export``) or ``torchscript``; None for everything else, such
        as weights alone.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as stream:
        start = stream.read(len(_ZIP))
    if start[:1] == _ONNX_VERSION and start[1:2] < _MAX_ONNX_VERSION:
        return "onnx" if start[2:3] in _ONNX_NEXT else None
    if start != _ZIP:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # noqa: BLE001 - a damaged archive is no program; its reader says what it is
        return None
    if any(name.endswith(_SCRIPT_ENDS) for name in names):
        return "torchscript"
    return "pt2" if any(name.endswith(_EXPORTED_ENDS) for name in names) else None
