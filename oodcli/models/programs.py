"""Files that hold a network with its forward pass: ONNX, and what is turned into it.

A program of ``torch.export`` and one of TorchScript are written as an ONNX graph when they are
imported; from then on there is one kind of network that runs outside of torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodcli.models.architecture import ArchitectureSpec
from oodcli.models.exported_files import check_script, read_exported, script_graph
from oodcli.models.fitting import load_with_remarks
from oodcli.models.network import Network
from oodcli.models.onnx_anatomy import dissect_graph
from oodcli.models.onnx_files import read_onnx
from oodcli.models.onnx_head import image_input
from oodcli.models.onnx_network import onnx_state
from oodcli.sniffing import ProgramKind

_NOT_ALL = (
    "written as an ONNX graph, which runs in ONNX Runtime: methods that need gradients, or layers "
    "inside the network, are not defined for it"
)
_EXPORTED = f"a program of torch.export, read without running code in it and {_NOT_ALL}"
_SCRIPT = f"TorchScript, {_NOT_ALL}"


@dataclass(frozen=True)
class Program:
    """A network in a file, with its forward pass.

    Parameters
    ----------
    path
        The file.
    kind
        What it is.
    side
        Height and width of the images that it takes, in pixels; None where that is open.
    graph
        Returns the ONNX graph for images of a size.
    remarks
        Lines for the user on how the file was read.
    """

    path: Path
    kind: ProgramKind
    side: int | None
    graph: Callable[[int], Any]
    remarks: tuple[str, ...] = ()

    def network(self, side: int, *, output: str | None = None) -> tuple[Network, tuple[str, ...]]:
        """Return the network, and lines for the user on its last layer.

        Parameters
        ----------
        side
            Height and width of the images it will be used with, in pixels.
        output
            Which of several outputs the logits are; found if None.

        Raises
        ------
        InvalidInputError
            If the network cannot be used; see :func:`oodcli.models.onnx_anatomy.dissect_graph`.
        """
        anatomy = dissect_graph(self.graph(side), self.path.name, side=side, output=output)
        architecture, state = onnx_state(anatomy, self.path.name)
        network, remarks = load_with_remarks(
            ArchitectureSpec(architecture, {}), state, source=str(self.path)
        )
        return network, (*self.remarks, *remarks)


def read_program(path: Path, kind: ProgramKind) -> Program:
    """Read a file that holds a network with its forward pass.

    Parameters
    ----------
    path
        The file.
    kind
        What it is, as :func:`oodcli.sniffing.program_kind` tells.

    Raises
    ------
    InvalidInputError
        If it is damaged or cannot be used.
    MissingArtifactError
        If the extra ``onnx`` is not installed.
    """
    if kind == "torchscript":
        check_script(path)
        return Program(path, kind, None, lambda side: script_graph(path, side), (_SCRIPT,))
    if kind == "pt2":
        model, side = read_exported(path)
        return Program(path, kind, side, lambda _side: model, (_EXPORTED,))
    model = read_onnx(path)
    size = image_input(model, path.name).size
    return Program(path, kind, None if size is None else size[0], lambda _side: model)
