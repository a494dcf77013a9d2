"""Shards of incoming images: which part of them this process judges.

An image file belongs to the shard that a digest of its relative name gives, so that all machines
agree without talking to each other, wherever the files are mounted, and whatever is added later.
Files that hold many images, such as archives, are divided by order.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from oodcli.errors import InvalidInputError

AUTO = "auto"
_SHARD = re.compile(r"(\d+)/(\d+)")
_MAX_SHARDS = 1_000_000
_SLURM_ARRAY = "SLURM_ARRAY_TASK_ID"
_KUBERNETES = "JOB_COMPLETION_INDEX"
_SLURM_STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One of several parts of the incoming images.

    Parameters
    ----------
    index
        Number of the shard, from 1.
    count
        Number of shards.

    Raises
    ------
    InvalidInputError
        If there is no such shard.

    Examples
    --------
    >>> names = ["a.png", "b.png", "c.png", "d.png"]
    >>> [[name for name in names if Shard(index, 2).owns(name)] for index in (1, 2)]
    [['a.png', 'd.png'], ['b.png', 'c.png']]
    >>> Shard(2, 3).rows(10), Shard(2, 3).chosen("abcdefg")
    (range(3, 6), 'be')
    >>> str(Shard(7, 100).path(Path("out/night.csv")))
    'out/night-00007-of-00100.csv'
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= _MAX_SHARDS:
            raise InvalidInputError(
                f"the number of shards must be from 1 to {_MAX_SHARDS:,}, not {self.count:,}"
            )
        if not 1 <= self.index <= self.count:
            raise InvalidInputError(
                f"there is no shard {self.index} of {self.count}; they are counted from 1: "
                f"--shard 1/{self.count} to --shard {self.count}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard of a text such as ``7/100``.

        Raises
        ------
        InvalidInputError
            If it is not of this form, or there is no such shard.
        """
        found = _SHARD.fullmatch(text)
        if found is None or len(text) > 40:
            raise InvalidInputError(f"--shard must be I/N, such as 7/100, or auto, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, name: str) -> bool:
        """Return whether an image file belongs to the shard.

        Parameters
        ----------
        name
            Its relative name, with ``/`` between folders.

        Notes
        -----
        The shard is the remainder of BLAKE2b, 8 bytes, big-endian, of the bytes of the name, plus
        one; it is the same on every machine and in every version.
        """
        try:
            raw = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte, as JSON may have it
            raw = name.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(raw, digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1

    def rows(self, n: int) -> range:
        """Return the consecutive rows of an archive or table of ``n`` rows."""
        return range((self.index - 1) * n // self.count, self.index * n // self.count)

    def chosen(self, things: Sequence[T]) -> Sequence[T]:
        """Return every ``count``-th of some things."""
        return things[self.index - 1 :: self.count]

    def within(self, index: int, count: int) -> "Shard":
        """Return a part of this shard: number ``index``, from 0, of ``count``."""
        return Shard((self.index - 1) * count + index + 1, self.count * count)

    def path(self, path: Path) -> Path:
        """Return the name of an output of this shard."""
        return path.with_name(f"{path.stem}-{self.index:05d}-of-{self.count:05d}{path.suffix}")

    def settings(self) -> dict[str, int]:
        """Return what is written beside the rows of the shard."""
        return {"shard": self.index, "shards": self.count}


def shard_of_job(environment: Mapping[str, str], shards: int | None = None) -> Shard | None:
    """Return the shard that the scheduler of a job gives to this process; None without one.

    Parameters
    ----------
    environment
        Environment variables.
    shards
        Number of shards, where the scheduler does not say it.

    Raises
    ------
    InvalidInputError
        If the number of shards is missing or does not fit, or an array is not regular.

    Notes
    -----
    A Slurm array counts its tasks from ``SLURM_ARRAY_TASK_MIN`` in steps. With ``shards``, the
    number of the task itself is that of the shard, from 1, so that a single task can be submitted
    again. An indexed job of Kubernetes counts from 0, and does not say how many there are. The
    tasks of ``srun`` divide the shard of an array among themselves; ``SLURM_PROCID`` alone is also
    set in the script of a batch job, where there is only one process.
    """
    found: Shard | None = None
    if _SLURM_ARRAY in environment:
        found = _of_array(environment, shards)
    elif _KUBERNETES in environment:
        if shards is None:
            raise InvalidInputError(
                f"{_KUBERNETES} is set, but Kubernetes does not say how many indices the job has; "
                "give the number: --shard auto --shards N"
            )
        found = Shard(_number(environment, _KUBERNETES) + 1, shards)
    if all(name in environment for name in _SLURM_STEP) and "RANK" not in environment:
        tasks = _number(environment, _SLURM_STEP[1])
        if found is None and shards not in (None, tasks):
            raise InvalidInputError(f"srun started {tasks} tasks, but --shards is {shards}")
        if tasks > 1 or found is None:
            found = (found or Shard(1, 1)).within(_number(environment, _SLURM_STEP[0]), tasks)
    return found


def _of_array(environment: Mapping[str, str], shards: int | None) -> Shard:
    task = _number(environment, _SLURM_ARRAY)
    if shards is not None:
        if task == 0:
            raise InvalidInputError(
                "with --shards, tasks of a Slurm array are counted from 1; submit it with "
                f"--array=1-{shards}"
            )
        return Shard(task, shards)
    first, count, step = (
        _number(environment, f"SLURM_ARRAY_TASK_{each}") for each in ("MIN", "COUNT", "STEP")
    )
    index, rest = divmod(task - first, max(1, step))
    if rest or not 0 <= index < count:
        raise InvalidInputError(
            f"task {task} of the Slurm array is not one of {count} in steps of {step} from "
            f"{first}; give the number of shards: --shard auto --shards N"
        )
    return Shard(index + 1, count)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise InvalidInputError(
            f"--shard auto needs the variable {name}, which is {text!r}; give --shard I/N"
        )
    return int(text)
