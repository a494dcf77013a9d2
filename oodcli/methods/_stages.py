"""Where the resolution of a network falls: its stages."""

from collections.abc import Mapping

from torch import Tensor


def last_of_stages(blocks: Mapping[str, str], maps: Mapping[str, Tensor]) -> list[str]:
    """Return the path of the last block of every stage, in forward order.

    A stage is a run of blocks whose maps have the same height and width, which is what papers call
    a stage, a layer or a "block" of a residual network.

    Parameters
    ----------
    blocks
        Paths of the blocks in forward order, by name.
    maps
        The map of every block, by path, ``(n, c, h, w)``.
    """
    paths = list(blocks.values())
    sizes = [maps[path].shape[2:] for path in paths]
    ends = [at for at in range(len(paths) - 1) if sizes[at] != sizes[at + 1]]
    return [paths[at] for at in (*ends, len(paths) - 1)]
