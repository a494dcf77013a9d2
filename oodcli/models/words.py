"""Stored text embeddings of the negative words of a zero-shot classifier, computed at import."""

from pathlib import Path

import safetensors.torch
import torch

from oodcli.activations import Words
from oodcli.errors import CorruptArtifactError
from oodcli.files import reading
from oodcli.store.store import atomic_write, digest_of_file

_EMBEDDINGS, _COUNTS = "embeddings", "counts"


def save_words(words: Words, path: Path) -> None:
    """Write the embeddings of words atomically.

    Parameters
    ----------
    words
        The embeddings and counts of the words.
    path
        A ``.safetensors`` file; an existing one is replaced.
    """
    arrays = {
        _EMBEDDINGS: words.embeddings.cpu().contiguous(),
        _COUNTS: torch.tensor(words.counts, dtype=torch.int64),
    }
    content = safetensors.torch.save(arrays)
    with atomic_write(path) as stream:
        stream.write(content)


def load_words(path: Path, *, digest: str) -> Words:
    """Read the embeddings that :func:`save_words` wrote.

    Parameters
    ----------
    path
        The file.
    digest
        Digest of the file when it was written.

    Raises
    ------
    CorruptArtifactError
        If the file does not exist, or has changed.
    """
    cure = "remove the run and create it again"
    if not path.is_file() or digest_of_file(path) != digest:
        raise CorruptArtifactError(
            f"the negative words {path} are missing or have changed since they were written; {cure}"
        )
    with reading(path, wrong="is damaged", cure=cure):
        arrays = safetensors.torch.load_file(path)
        return Words(arrays[_EMBEDDINGS], tuple(arrays[_COUNTS].tolist()))
