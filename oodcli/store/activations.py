"""Storage of activations: keys, folders, file names and locks; does not import torch.

::

    activations/<network>/<key>/
      manifest.json                     the fields of the key, and the speed of the last pass
      <shard>.<digest>.safetensors      activations of a shard of images
      norms/                            only block norms, of shards that need no more
      probe-<probe>/, states/           arrays of probes and states of learners, named alike
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from oodcli.errors import CorruptArtifactError
from oodcli.images import ImageSet, ImageShard, digest_of
from oodcli.store.runs import Run
from oodcli.store.store import (
    Store,
    atomic_write,
    digest_of_bytes,
    digest_of_file,
    digest_of_json,
    read_arrays,
    read_json,
    write_json,
)

# Part of the key: incremented whenever the same images and network give different activations.
EXTRACTION_SCHEMA = 1
_SUFFIX = ".safetensors"
_MANIFEST = "manifest.json"


class ImageView(Protocol):
    """A transformation of images before the network; see :class:`oodcli.data.views.View`."""

    def key(self) -> Mapping[str, Any]:
        """Return its identifying fields; ``kind`` is ``plain`` for the identity."""


@dataclass(frozen=True)
class ArrayFolder:
    """A folder of named arrays, one file ``<key>.<digest>.safetensors`` per key.

    The key identifies the arrays, the digest is that of the file's content.

    Parameters
    ----------
    path
        Path of the folder.
    verified
        Files whose digest has been verified; :meth:`checked` does not verify them again.
    """

    path: Path
    verified: set[Path] = field(default_factory=set, compare=False)

    def stored(self) -> dict[str, Path]:
        """Return the file of every stored key."""
        if not self.path.is_dir():
            return {}
        return {
            path.name.split(".")[0]: path
            for path in self.path.iterdir()
            if path.suffix == _SUFFIX and path.name.count(".") == 2
        }

    def write(self, key: str, content: bytes) -> None:
        """Store arrays that are already serialised as safetensors."""
        path = self.path / f"{key}.{digest_of_bytes(content)}{_SUFFIX}"
        with atomic_write(path, size=len(content)) as stream:
            stream.write(content)

    def checked(self, key: str) -> Path:
        """Return the file of a key after verifying its digest.

        Raises
        ------
        FileNotFoundError
            If there is none.
        CorruptArtifactError
            If the digest differs.
        """
        path = self._file(key)
        if path not in self.verified:
            if digest_of_file(path) != _digest_in(path):
                raise CorruptArtifactError(f"{path} is damaged; remove it")
            self.verified.add(path)
        return path

    def arrays(self, key: str) -> dict[str, NDArray[Any]]:
        """Read the arrays of a key into memory.

        Raises
        ------
        FileNotFoundError
            If there are none.
        CorruptArtifactError
            If the file is damaged.
        """
        path = self._file(key)
        return read_arrays(path, digest=_digest_in(path))

    def remove(self, key: str) -> None:
        """Remove the arrays of a key, if there are any."""
        with contextlib.suppress(FileNotFoundError):
            path = self._file(key)
            self.verified.discard(path)
            path.unlink()

    def _file(self, key: str) -> Path:
        path = self.stored().get(key)
        if path is None:
            raise FileNotFoundError(key)
        return path


def _digest_in(path: Path) -> str:
    """Return the digest of the content of a file of arrays, as given in the file's name."""
    return path.name.split(".")[1]


@dataclass(frozen=True)
class MissingArrays:
    """The arrays of one shard that are not stored.

    Parameters
    ----------
    shard
        The shard.
    core
        Whether its activations (or block norms, if only these are needed) are missing.
    probes
        Keys of the probes whose arrays are missing.
    """

    shard: ImageShard
    core: bool
    probes: tuple[str, ...]


@dataclass(frozen=True)
class ActivationFolder:
    """The folder of one network's activations, for one preprocessing and one view of the images.

    Parameters
    ----------
    path
        Path of the folder.
    key
        The fields that distinguish these activations from others of the network.
    norms_only
        Whether only block norms are needed.
    verified
        As for :class:`ArrayFolder`; shared by all objects that read the same files.
    """

    path: Path
    key: Mapping[str, Any]
    norms_only: bool = False
    verified: set[Path] = field(default_factory=set, compare=False)

    @classmethod
    def of(
        cls,
        store: Store,
        run: Run,
        *,
        precision: str,
        view: ImageView,
        normalise: bool = True,
        norms_only: bool = False,
        verified: set[Path] | None = None,
    ) -> "ActivationFolder":
        """Return the folder of a run's activations.

        Parameters
        ----------
        store
            The store.
        run
            The run, with the preprocessing of the images.
        precision
            ``float32`` or ``bfloat16``.
        view
            Transformation of each image before normalisation.
        normalise
            Whether pixel values are normalised with the mean and standard deviation of the run.
        norms_only, verified
            As for the class.
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
        path = store.activations / run.network / digest_of_json(key)[:16]
        return cls(path, key, norms_only, set() if verified is None else verified)

    @property
    def places(self) -> tuple[ArrayFolder, ...]:
        """Folders that may hold the activations of a shard; new ones are written to the first.

        If only block norms are needed, stored activations are used as well.
        """
        full = ArrayFolder(self.path, self.verified)
        if not self.norms_only:
            return (full,)
        return ArrayFolder(self.path / "norms", self.verified), full

    @property
    def states(self) -> ArrayFolder:
        """Folder of the states of learners; see :meth:`state_key`."""
        return ArrayFolder(self.path / "states", self.verified)

    def probe_arrays(self, probe: str) -> ArrayFolder:
        """Return the folder of the arrays of a probe, by the probe's key."""
        return ArrayFolder(self.path / f"probe-{digest_of_json(probe)[:16]}", self.verified)

    def shard_key(self, shard: ImageShard) -> str:
        """Return the key of a shard: the digest of its pixels and, if a view needs it, rows."""
        if self.key["view"]["kind"] != "plain":
            return digest_of_json([shard.digest, digest_of(shard.indices)])
        return shard.digest

    @staticmethod
    def state_key(learner: str, images: ImageSet) -> str:
        """Return the key of the state that a learner, given by its key, computes from images."""
        return digest_of_json([learner, images.digest])

    @staticmethod
    def state_lock(key: str) -> str:
        """Return the name of the lock to hold while a state is written."""
        return f"state {key}"

    def lock_name(self, images: str) -> str:
        """Return the name of the lock to hold while activations of images are written.

        Parameters
        ----------
        images
            Name of the image set.
        """
        return f"activations of {images} ({self.path.name})"

    def missing(
        self, shards: Sequence[ImageShard], probes: Sequence[str] = ()
    ) -> list[MissingArrays]:
        """Return the missing arrays of the shards that are not completely stored.

        Parameters
        ----------
        shards
            The shards.
        probes
            Keys of the probes whose arrays are needed, too.
        """
        core = {key for place in self.places for key in place.stored()}
        probed = {probe: self.probe_arrays(probe).stored() for probe in probes}
        missing = (
            MissingArrays(
                shard,
                core=not self._has(core, shard),
                probes=tuple(probe for probe in probes if not self._has(probed[probe], shard)),
            )
            for shard in shards
        )
        return [each for each in missing if each.core or each.probes]

    def _has(self, stored: Collection[str], shard: ImageShard) -> bool:
        """Return whether a shard, or every shard that its images come from, is stored."""
        return self.shard_key(shard) in stored or (
            bool(shard.pieces) and all(self._has(stored, piece.shard) for piece in shard.pieces)
        )

    def rows_of(
        self,
        shard: ImageShard,
        read: Callable[[str], Mapping[str, Any]],
        join: Callable[[list[Any]], Any],
    ) -> dict[str, Any]:
        """Read the arrays of a shard, or assemble them from the shards its images come from.

        Parameters
        ----------
        shard
            The shard.
        read
            Function that returns the arrays stored under a key, ``(n, …)`` by name, and raises
            FileNotFoundError if there are none.
        join
            Function that concatenates arrays along the first axis.

        Raises
        ------
        FileNotFoundError
            If an array is not stored.
        """
        key = self.shard_key(shard)
        with contextlib.suppress(FileNotFoundError):
            return dict(read(key))
        if not shard.pieces:
            raise FileNotFoundError(key)
        parts = []
        for piece in shard.pieces:
            arrays = self.rows_of(piece.shard, read, join)
            parts.append({name: values[piece.rows] for name, values in arrays.items()})
        return {name: join([part[name] for part in parts]) for name in parts[0]}

    def remove(self, shard: ImageShard, probes: Sequence[str] = ()) -> None:
        """Remove the arrays of a shard, and damaged arrays of the shards its images come from."""
        for place in (*self.places, *(self.probe_arrays(probe) for probe in probes)):
            place.remove(self.shard_key(shard))
            for piece in shard.pieces:
                self._remove_damaged(place, piece.shard)

    def _remove_damaged(self, place: ArrayFolder, shard: ImageShard) -> None:
        key = self.shard_key(shard)
        try:
            place.checked(key)
        except CorruptArtifactError:
            place.remove(key)
        except FileNotFoundError:
            for piece in shard.pieces:
                self._remove_damaged(place, piece.shard)

    def rates(self) -> dict[str, float]:
        """Return the speed of the last pass on each device, in images per second, if known."""
        try:
            return dict(read_json(self.path / _MANIFEST).get("images_per_s", {}))
        except (FileNotFoundError, CorruptArtifactError):
            return {}  # the next pass writes a new manifest

    def write_manifest(self, device: str | None = None, images_per_s: float = 0.0) -> None:
        """Write the fields of the key, and the speed of the last pass on a device."""
        rates = self.rates() | ({} if device is None else {device: images_per_s})
        write_json(
            self.path / _MANIFEST,
            {"kind": "ood-activations", "key": dict(self.key), "images_per_s": rates},
        )
