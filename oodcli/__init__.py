"""Out-of-distribution detection for image classifiers.

``load_run``, ``predict`` and what they return are the names for programs; the module
``oodcli.api`` says more. They are loaded when first asked for, so that importing the package is
free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oodcli.api import Detector, LoadedRun, Predictions, load_run, predict

__all__ = ["Detector", "LoadedRun", "Predictions", "__version__", "load_run", "predict"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - names of several types
    if name in __all__:
        return getattr(importlib.import_module("oodcli.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
