"""The regions of a map that MODE compares: their names, and the positions that they cover."""

REGIONS = ("top left", "top right", "bottom left", "bottom right", "whole", "centre")
"""The regions of a map, in their order."""

NEIGHBOUR = 10
"""The neighbour whose distance counts, and chooses the region, in the code of MODE's authors."""

REGIONS_KEY = "regions"
"""Name of the stored array of their vectors, ``(n, 6, c)``: :class:`oodcli.methods.csd.Regions`."""


def region_bounds(region: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the positions of a map that a region covers.

    Parameters
    ----------
    region
        Index in :data:`REGIONS`.
    height, width
        Size of the map; at least 2 x 2.

    Returns
    -------
    top, bottom, left, right
        Rows ``top`` to ``bottom - 1`` and columns ``left`` to ``right - 1``.

    Examples
    --------
    >>> region_bounds(1, 7, 7), region_bounds(5, 8, 8)
    ((0, 4, 3, 7), (2, 6, 2, 6))
    """

    def ends(length: int, place: int) -> tuple[int, int]:
        if region == 4:
            return 0, length
        if region == 5:
            return length // 4, length - length // 4
        return (length // 2, length) if place else (0, -(-length // 2))

    return (*ends(height, region // 2), *ends(width, region % 2))


def region_box(
    region: int, maps: tuple[int, int], image: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a region in pixels of the network's input.

    Parameters
    ----------
    region
        Index in :data:`REGIONS`.
    maps, image
        Height and width of the map and of the image.
    """
    rows, columns = maps
    height, width = image
    top, bottom, left, right = region_bounds(region, rows, columns)
    return (
        width * left / columns, height * top / rows,
        width * right / columns, height * bottom / rows,
    )  # fmt: skip
