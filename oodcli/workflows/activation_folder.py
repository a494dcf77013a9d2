"""Where activations of a network are stored: their key, folder, file names and lock; no torch.

::

    activations/<network>/<key>/
      manifest.json                     the key in clear, and how fast the last pass was
      <shard>.<digest>.safetensors      activations of a shard of images
      norms/                            block norms alone, of shards of which no more is wanted
      probe-<probe>/, states/           what probes observed and learners learned, named alike
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodcli.data.views import View
from oodcli.errors import CorruptArtifactError
from oodcli.runs import Run
from oodcli.store import Store, digest_of_json, read_json, write_json

# Part of the key: raised whenever the same images and network give other activations.
EXTRACTION_SCHEMA = 1
SUFFIX = ".safetensors"
NORMS = "norms"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ActivationFolder:
    """The folder of one network's activations under one way to present images to it.

    Parameters
    ----------
    path
        Where it is.
    key
        What tells these activations from others of the network.
    """

    path: Path
    key: Mapping[str, Any]

    @classmethod
    def of(
        cls, store: Store, run: Run, *, precision: str, view: View, normalise: bool = True
    ) -> "ActivationFolder":
        """Return the folder of a run's activations.

        Parameters
        ----------
        store
            Where activations are kept.
        run
            The run, with the preprocessing that the images have.
        precision
            ``float32`` or ``bfloat16``.
        view
            What is done to each image first.
        normalise
            Whether pixel values are normalised with the constants of the run.
        """
        pre = run.preprocess
        key = {
            "schema": EXTRACTION_SCHEMA,
            "network": run.network,
            "mean": list(pre.mean) if normalise else [0.0, 0.0, 0.0],
            "std": list(pre.std) if normalise else [1.0, 1.0, 1.0],
            "precision": precision,
            "view": view.key(),
        }
        return cls(store.activations / run.network / digest_of_json(key)[:16], key)

    def lock_name(self, images: str) -> str:
        """Return the name of the lock that whoever writes activations of images holds.

        Parameters
        ----------
        images
            Name of the image set.
        """
        return f"activations of {images} ({self.path.name})"

    def rates(self) -> dict[str, float]:
        """Return images a second of the last pass on every device; none where that is not known."""
        try:
            return dict(read_json(self.path / _MANIFEST).get("images_per_s", {}))
        except (FileNotFoundError, CorruptArtifactError):
            return {}  # it is written anew with the next pass

    def write_manifest(self, device: str | None = None, images_per_s: float = 0.0) -> None:
        """Store the key in clear, and how fast the last pass on a device was."""
        rates = self.rates() | ({} if device is None else {device: images_per_s})
        write_json(
            self.path / _MANIFEST,
            {"kind": "ood-activations", "key": dict(self.key), "images_per_s": rates},
        )


def files_in(folder: Path) -> dict[str, Path]:
    """Return the file of every key that arrays are stored of in a folder."""
    if not folder.is_dir():
        return {}
    return {
        path.name.split(".")[0]: path
        for path in folder.iterdir()
        if path.suffix == SUFFIX and path.name.count(".") == 2
    }


def digest_in(path: Path) -> str:
    """Return the digest that the content of a file of arrays must have, from its name."""
    return path.name.split(".")[1]
