"""Out-of-distribution detection for image classifiers.

``load_run``, ``predict`` and what they return are the names for programs; the module
``oodcli.api`` says more. They are loaded when first asked for, so that importing the package is
free.

Imported before torch, it sets ``OMP_WAIT_POLICY=PASSIVE`` unless the environment says how threads
of OpenMP wait: they then sleep until there is work, in place of spinning, which on a core that
another program uses holds up everyone.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from oodcli.version import __version__

if TYPE_CHECKING:
    from oodcli.api import Detector, LoadedRun, Predictions, load_run, predict

__all__ = ["Detector", "LoadedRun", "Predictions", "__version__", "load_run", "predict"]

# libgomp, and the OpenMP of LLVM and Intel, read these once, when torch loads them.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - names of several types
    if name in __all__:
        return getattr(importlib.import_module("oodcli.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
