"""Folders with weights and a configuration, on disk or in the cache of the Hugging Face hub.

Weights are read by :mod:`oodcli.models.state_dicts`, which runs no code. Downloads happen only on
request.
"""

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from oodcli.errors import DownloadError, InvalidInputError
from oodcli.files import check_file, expanded, reason_of
from oodcli.models.state_dicts import read_state

CONFIG = "config.json"
# In the order of the search.
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
_INDEX = ".index.json"
_MAX_JSON_BYTES = 1 << 24
# owner/name, and a branch, a tag or a commit behind an @.
_HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
_SNAPSHOTS = "snapshots"
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")


@dataclass(frozen=True)
class ModelFolder:
    """A folder with the configuration and the weights of a network.

    Parameters
    ----------
    name
        The absolute path of the folder, or ``owner/name`` on the hub, with ``@revision`` if one was
        given.
    path
        Location on this machine.
    of_hub
        Whether it is the cached copy of a repository of the hub.
    download
        Whether files that are not in the cache of the hub may be downloaded.
    """

    name: str
    path: Path
    of_hub: bool = False
    download: bool = False

    @property
    def commit(self) -> str:
        """The commit whose files these are; empty of a folder that is no copy of the hub's."""
        of_commit = self.of_hub and self.path.parent.name == _SNAPSHOTS
        return self.path.name if of_commit else ""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Content of ``config.json``.

        Raises
        ------
        InvalidInputError
            If the file does not exist, or is not a JSON object.
        """
        found = self.json(CONFIG)
        if found is None:
            raise InvalidInputError(
                f"{self.name} has no {CONFIG}; give a folder as written by save_pretrained()"
            )
        return found

    def json(self, name: str) -> Mapping[str, Any] | None:
        """Return the JSON object in a file; None if there is no such file.

        Raises
        ------
        InvalidInputError
            If the file cannot be read, is too large, or is not a JSON object.
        """
        path = self.file(name)
        if path is None:
            return None
        wrong = InvalidInputError(f"{path} is not a JSON object; get it again")
        try:
            if path.stat().st_size > _MAX_JSON_BYTES:
                raise wrong
            content = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InvalidInputError(f"cannot read {path}: {reason_of(error)}") from None
        except (ValueError, RecursionError):
            raise wrong from None
        if not isinstance(content, dict):
            raise wrong
        return content

    def weights(self, names: Sequence[str] = _WEIGHTS) -> tuple[Path, dict[str, Tensor]]:
        """Read the weights.

        Parameters
        ----------
        names
            Possible names of the weight file, in order of preference.

        Returns
        -------
        path
            The file that contains the weights, or the index of several files.
        state
            Tensors by name.

        Raises
        ------
        InvalidInputError
            If there are no weights, or a file cannot be used.
        DownloadError
            If a download fails.
        """
        for name in names:
            path = self.file(name)
            if path is None:
                continue
            if not name.endswith(_INDEX):
                return path, read_state(path)
            state: dict[str, Tensor] = {}
            for shard in self._shards(name):
                state |= read_state(shard)
            return path, state
        cure = f"download them: --pretrained, or get all of {self.name}" if self.of_hub else ""
        usual = f"{names[0]} or {names[min(2, len(names) - 1)]}"
        raise InvalidInputError(
            f"{self.path} has no weights ({usual}); "
            + (cure or "get the whole folder, or give a checkpoint: ood import FILE --arch ARCH")
        )

    def _shards(self, index: str) -> list[Path]:
        """Return the weight files that an index lists."""
        content = self.json(index) or {}
        listed = content.get("weight_map")
        names = sorted(set(listed.values())) if isinstance(listed, dict) and listed else []
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise InvalidInputError(
                f"{self.path / index} lists no weight files; get the folder again"
            )
        found = []
        for name in names:
            path = self.file(name)
            if path is None:
                raise InvalidInputError(f"{self.path} lacks the weight file {name}; get it again")
            found.append(path)
        return found

    def file(self, name: str) -> Path | None:
        """Return a file of the folder, downloaded if allowed; None if there is no such file.

        Raises
        ------
        InvalidInputError
            If the file cannot be read.
        DownloadError
            If the download fails.
        """
        path = self.path / name
        if path.exists():
            check_file(path, "get the folder again")
            return path
        if not (self.of_hub and self.download):
            return None
        # Files of one commit, though a branch may have moved since the first.
        return _downloaded(self.name.partition("@")[0], name, self.commit or None)


def find_folder(
    name: str,
    *,
    what: str,
    on_disk: bool = True,
    on_hub: bool = True,
    mark: str | Sequence[str] = CONFIG,
    download: bool = False,
) -> ModelFolder:
    """Find a folder on disk, or the copy of a repository in the cache of the hub.

    Parameters
    ----------
    name
        A folder, or ``owner/name`` or ``owner/name@revision`` on the hub; a folder has precedence.
    what
        The text of the architecture, for messages.
    on_disk, on_hub
        Whether the name may be a folder, and whether it may be a repository.
    mark
        Name, or possible names, of the file whose presence shows that a repository is cached.
    download
        Whether a repository that is not in the cache may be downloaded, file by file as needed.

    Raises
    ------
    InvalidInputError
        If there is neither such a folder nor such a cached repository.
    DownloadError
        If a download fails.
    """
    path = expanded(Path(name)) if name else Path()
    if on_disk and name and path.is_dir():
        return ModelFolder(str(path.resolve()), path.resolve())
    known = _HUB_NAME.fullmatch(name) if on_hub else None
    if known is None:
        more = ", and no owner/name of the hub" if on_hub else ""
        raise InvalidInputError(f"{what}: there is no folder {name!r}{more}; give an existing one")
    marks = (mark,) if isinstance(mark, str) else mark
    hub = _hub(what)
    repository, revision = known["name"], _full_commit(hub, known["name"], known["revision"])
    found = (hub.try_to_load_from_cache(repository, each, **_revision(revision)) for each in marks)
    cached = next((each for each in found if isinstance(each, str)), None)
    if cached is None and download:
        brought = (_downloaded(repository, each, revision) for each in marks)
        cached = next((str(each) for each in brought if each is not None), None)
    if cached is None:
        absent = f"there is no folder {name}, and " if on_disk else ""
        wanted = f"revision {revision} of {repository}" if revision else repository
        raise InvalidInputError(
            f"{what}: {absent}{wanted} is not in the cache of the hub; to download it: ood import "
            f"--pretrained --arch {what}"
        )
    return ModelFolder(name, Path(cached).parent, of_hub=True, download=download)


def _hub(what: str) -> Any:  # noqa: ANN401 - an optional package
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise InvalidInputError(
            f"{what}: the cache of the hub needs the package huggingface_hub; install it: "
            'pip install "oodcli[hf]"'
        ) from None


def _full_commit(hub: Any, repository: str, revision: str | None) -> str | None:  # noqa: ANN401
    """Return a revision; if it is the start of one commit in the cache, that commit."""
    if revision is None or not _SHORT_COMMIT.fullmatch(revision):
        return revision
    cache = Path(hub.constants.HF_HUB_CACHE)
    folder = cache / f"models--{repository.replace('/', '--')}" / _SNAPSHOTS
    found = list(folder.glob(f"{revision}*"))
    return found[0].name if len(found) == 1 else revision


def _revision(revision: str | None) -> dict[str, str]:
    return {} if revision is None else {"revision": revision}


def _downloaded(name: str, file: str, revision: str | None) -> Path | None:
    """Download a file of a repository into the cache of the hub; None if it has no such file.

    Raises
    ------
    DownloadError
        If the hub cannot be reached, or has no such repository or revision.
    """
    hub = _hub(name)
    try:
        return Path(hub.hf_hub_download(name, file, **_revision(revision)))
    except hub.errors.RemoteEntryNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - its client raises errors of several packages
        raise DownloadError(
            f"cannot get {file} of {name} from the hub ({reason_of(error)[:200]}); copy its folder "
            "to this machine, and give that folder to --arch"
        ) from None
