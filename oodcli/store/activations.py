"""Where activations of a network are stored: keys, folders, file names and locks; no torch.

::

    activations/<network>/<key>/
      manifest.json                     the key in clear, and how fast the last pass was
      <shard>.<digest>.safetensors      activations of a shard of images
      norms/                            block norms alone, of shards of which no more is wanted
      probe-<probe>/, states/           what probes observed and learners learned, named alike
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
    digest_of_bytes,
    digest_of_file,
    digest_of_json,
    read_arrays,
    read_json,
    replacing,
    write_json,
)

# Part of the key: raised whenever the same images and network give other activations.
EXTRACTION_SCHEMA = 1
_SUFFIX = ".safetensors"
_MANIFEST = "manifest.json"


class ShownAs(Protocol):
    """A way to present images to a network; see :class:`oodcli.data.views.View`."""

    def key(self) -> Mapping[str, Any]:
        """Return what tells it from other ways; ``kind`` is ``plain`` where nothing is changed."""


@dataclass(frozen=True)
class ArrayFolder:
    """A folder of named arrays, one file ``<key>.<digest>.safetensors`` per key.

    The key says what the arrays are of, the digest what was written.

    Parameters
    ----------
    path
        Where it is.
    whole
        Files that were found whole; :meth:`checked` does not check them again.
    """

    path: Path
    whole: set[Path] = field(default_factory=set, compare=False)

    def stored(self) -> dict[str, Path]:
        """Return the file of every key."""
        if not self.path.is_dir():
            return {}
        return {
            path.name.split(".")[0]: path
            for path in self.path.iterdir()
            if path.suffix == _SUFFIX and path.name.count(".") == 2
        }

    def write(self, key: str, content: bytes) -> None:
        """Store arrays that were serialised as safetensors."""
        path = self.path / f"{key}.{digest_of_bytes(content)}{_SUFFIX}"
        with replacing(path, size=len(content)) as stream:
            stream.write(content)

    def checked(self, key: str) -> Path:
        """Return the file of a key, which holds what was written.

        Raises
        ------
        FileNotFoundError
            If there is none.
        CorruptArtifactError
            If it holds something else.
        """
        path = self._file(key)
        if path not in self.whole:
            if digest_of_file(path) != _digest_in(path):
                raise CorruptArtifactError(f"{path} is damaged; remove it")
            self.whole.add(path)
        return path

    def arrays(self, key: str) -> dict[str, NDArray[Any]]:
        """Read the arrays of a key into memory.

        Raises
        ------
        FileNotFoundError
            If there are none.
        CorruptArtifactError
            If they are not what was written.
        """
        path = self._file(key)
        return read_arrays(path, digest=_digest_in(path))

    def forget(self, key: str) -> None:
        """Remove the arrays of a key, if there are any."""
        with contextlib.suppress(FileNotFoundError):
            path = self._file(key)
            self.whole.discard(path)
            path.unlink()

    def _file(self, key: str) -> Path:
        path = self.stored().get(key)
        if path is None:
            raise FileNotFoundError(key)
        return path


def _digest_in(path: Path) -> str:
    """Return the digest that the content of a file of arrays must have, from its name."""
    return path.name.split(".")[1]


@dataclass(frozen=True)
class Missing:
    """What is not stored of one shard.

    Parameters
    ----------
    shard
        The shard.
    core
        Whether its activations, or the block norms of which alone are wanted, are missing.
    probes
        Keys of the probes of which what they observed is missing.
    """

    shard: ImageShard
    core: bool
    probes: tuple[str, ...]


@dataclass(frozen=True)
class ActivationFolder:
    """The folder of one network's activations under one way to present images to it.

    Parameters
    ----------
    path
        Where it is.
    key
        What tells these activations from others of the network.
    norms_only
        Whether block norms are all that is wanted of images.
    whole
        As for :class:`ArrayFolder`; one for all that read the same files.
    """

    path: Path
    key: Mapping[str, Any]
    norms_only: bool = False
    whole: set[Path] = field(default_factory=set, compare=False)

    @classmethod
    def of(
        cls,
        store: Store,
        run: Run,
        *,
        precision: str,
        view: ShownAs,
        normalise: bool = True,
        norms_only: bool = False,
        whole: set[Path] | None = None,
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
        norms_only, whole
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
        return cls(path, key, norms_only, set() if whole is None else whole)

    @property
    def places(self) -> tuple[ArrayFolder, ...]:
        """Where the activations of shards may be stored; they are written to the first.

        Activations serve those who want the block norms alone, too.
        """
        every = ArrayFolder(self.path, self.whole)
        return (
            (ArrayFolder(self.path / "norms", self.whole), every) if self.norms_only else (every,)
        )

    @property
    def states(self) -> ArrayFolder:
        """What learners have learned; see :meth:`state_key`."""
        return ArrayFolder(self.path / "states", self.whole)

    def observed(self, probe: str) -> ArrayFolder:
        """Return where what a probe observed is stored, by the key of the probe."""
        return ArrayFolder(self.path / f"probe-{digest_of_json(probe)[:16]}", self.whole)

    def shard_key(self, shard: ImageShard) -> str:
        """Return the key of a shard: its pixels, and where a view needs them its rows."""
        if self.key["view"]["kind"] != "plain":
            return digest_of_json([shard.digest, digest_of(shard.indices)])
        return shard.digest

    @staticmethod
    def state_key(learner: str, images: ImageSet) -> str:
        """Return the key of the state that a learner, named by its key, draws from images."""
        return digest_of_json([learner, images.digest])

    @staticmethod
    def state_lock(key: str) -> str:
        """Return the name of the lock that whoever writes a state holds."""
        return f"state {key}"

    def lock_name(self, images: str) -> str:
        """Return the name of the lock that whoever writes activations of images holds.

        Parameters
        ----------
        images
            Name of the image set.
        """
        return f"activations of {images} ({self.path.name})"

    def missing(self, shards: Sequence[ImageShard], probes: Sequence[str] = ()) -> list[Missing]:
        """Return the shards of which something is not stored.

        Parameters
        ----------
        shards
            The shards.
        probes
            Keys of the probes of which what they observed is wanted, too.
        """
        core = {key for place in self.places for key in place.stored()}
        observed = {probe: self.observed(probe).stored() for probe in probes}
        each = [
            Missing(
                shard,
                core=not self._has(core, shard),
                probes=tuple(probe for probe in probes if not self._has(observed[probe], shard)),
            )
            for shard in shards
        ]
        return [one for one in each if one.core or one.probes]

    def _has(self, stored: Collection[str], shard: ImageShard) -> bool:
        """Return whether a shard, or else every shard that its images come from, is stored."""
        return self.shard_key(shard) in stored or (
            bool(shard.pieces) and all(self._has(stored, piece.shard) for piece in shard.pieces)
        )

    def rows_of(
        self,
        shard: ImageShard,
        read: Callable[[str], Mapping[str, Any]],
        join: Callable[[list[Any]], Any],
    ) -> dict[str, Any]:
        """Read the arrays of a shard, from those that its images come from where it has none.

        Parameters
        ----------
        shard
            The shard.
        read
            Returns the arrays that are stored under a key, ``(n, …)`` by name; raises
            FileNotFoundError where there are none.
        join
            Joins arrays along their rows.

        Raises
        ------
        FileNotFoundError
            If something is not stored.
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

    def forget(self, shard: ImageShard, probes: Sequence[str] = ()) -> None:
        """Remove one shard, what probes left of it, and what is damaged of where it comes from."""
        for place in (*self.places, *(self.observed(probe) for probe in probes)):
            place.forget(self.shard_key(shard))
            for piece in shard.pieces:
                self._forget_damaged(place, piece.shard)

    def _forget_damaged(self, place: ArrayFolder, shard: ImageShard) -> None:
        key = self.shard_key(shard)
        try:
            place.checked(key)
        except CorruptArtifactError:
            place.forget(key)
        except FileNotFoundError:
            for piece in shard.pieces:
                self._forget_damaged(place, piece.shard)

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
