"""Out-of-distribution detection for image classifiers.

The public Python API is ``load_run``, ``load_detector``, ``predict``, ``Screener`` and the classes
that they return, see the module ``oodcli.api``. They are imported on first access, so that
importing the package costs no time.

If the package is imported before torch, it sets ``OMP_WAIT_POLICY=PASSIVE``, unless the environment
already configures how OpenMP threads wait. Idle threads then sleep instead of spinning, which would
slow down every program on a shared core.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from oodcli.version import __version__

if TYPE_CHECKING:
    from oodcli.api import (
        Detector,
        LoadedRun,
        Predictions,
        Screener,
        load_detector,
        load_run,
        predict,
    )

__all__ = [
    "Detector", "LoadedRun", "Predictions", "Screener", "__version__", "load_detector", "load_run",
    "predict",
]  # fmt: skip

# libgomp and the OpenMP runtimes of LLVM and Intel read these once, when torch loads them.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - names of several types
    if name in __all__:
        return getattr(importlib.import_module("oodcli.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
