"""What a data set known by name is: its files, their addresses, and how they are opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from oodcli.data.dataset import Dataset
from oodcli.data.own_names import RegisteredDataset, registered
from oodcli.store.store import Store

Read = Callable[[Path, Store], Dataset]


@dataclass(frozen=True, slots=True)
class Download:
    """A file to download.

    Parameters
    ----------
    file
        Its name in the store.
    urls
        Its addresses, preferred first; none if no program can download it.
    md5
        Checksum of the file; None where none is published, so that a file is accepted as it is.
    size_bytes
        Its size, to be shown before it is fetched; 0 where it is not known.
    by_hand
        Where to download it by hand, if not from the first of ``urls``.
    """

    file: str
    urls: tuple[str, ...]
    md5: str | None
    size_bytes: int
    by_hand: str = ""

    @property
    def is_manual(self) -> bool:
        """Return whether only a person can download it: no address or no checksum is known."""
        return not self.urls or self.md5 is None


@dataclass(frozen=True, slots=True)
class KnownDataset:
    """A data set known by name, opened or not.

    Parameters
    ----------
    name
        Its key.
    title
        What it shows.
    role
        ``id`` for a set with classes to train on, ``ood`` for an OOD set.
    counts
        Number of images in each part.
    licence
        Under which terms it may be used.
    read
        Opens it from the folder that its files are in.
    sources
        Files to download; none for what comes with the tool.
    home
        Name of the set in whose folder the files are; its own if empty.
    unpacked
        What may lie in the folder in place of the files: a folder with their content.
    """

    name: str
    title: str
    role: Literal["id", "ood"]
    counts: Mapping[str, int]
    licence: str
    read: Read
    sources: tuple[Download, ...] = ()
    home: str = ""
    unpacked: tuple[str, ...] = ()

    @property
    def download_bytes(self) -> int:
        """Size of all files to download."""
        return sum(source.size_bytes for source in self.sources)

    def place(self, store: Store, source: Download) -> Path:
        """Return where a file to download belongs.

        Parameters
        ----------
        store
            Where downloads are stored.
        source
            One of ``sources``.
        """
        return store.datasets / (self.home or self.name) / source.file

    def folder(self, store: Store) -> Path:
        """Return where its files are: the user's own folder of it, else that of the downloads.

        Parameters
        ----------
        store
            Where downloads are stored.
        """
        own = self._registered(store)
        if own is not None:
            return own.path.parent if own.path.is_file() else own.path
        return store.datasets / (self.home or self.name)

    def is_present(self, store: Store) -> bool:
        """Return whether nothing has to be downloaded: all files are present, or none is needed.

        Parameters
        ----------
        store
            Where downloads are stored.
        """
        own = self._registered(store)
        if own is not None:
            return own.path.exists()
        folder = self.folder(store)
        return any((folder / name).is_dir() for name in self.unpacked) or all(
            (folder / source.file).is_file() for source in self.sources
        )

    def _registered(self, store: Store) -> RegisteredDataset | None:
        """Return where ``datasets.toml`` says that it is."""
        known = registered(store)
        return known.get(self.name) or known.get(self.home or self.name)

    def open(self, store: Store) -> Dataset:
        """Open it; images are decoded later.

        Parameters
        ----------
        store
            Where downloads are stored.

        Raises
        ------
        MissingArtifactError
            If it does not exist.
        CorruptArtifactError
            If a file is not the published one.
        """
        return replace(self.read(self.folder(store), store), name=self.name, spec=self.name)
