"""Where the resolution falls."""

import torch

from oodcli.methods._stages import last_of_stages


def maps_of(*sizes: tuple[int, int]) -> dict[str, torch.Tensor]:
    return {f"at.{index}": torch.zeros(1, 2, *size) for index, size in enumerate(sizes)}


def blocks_of(maps: dict[str, torch.Tensor]) -> dict[str, str]:
    return {f"block {path}": path for path in maps}


def test_a_stage_ends_where_height_or_width_changes() -> None:
    maps = maps_of((8, 8), (8, 8), (8, 4), (4, 4), (4, 4))
    assert last_of_stages(blocks_of(maps), maps) == ["at.1", "at.2", "at.4"]


def test_one_resolution_is_one_stage() -> None:
    maps = maps_of((8, 8), (8, 8))
    assert last_of_stages(blocks_of(maps), maps) == ["at.1"]


def test_maps_beyond_the_blocks_do_not_matter() -> None:
    maps = maps_of((8, 8), (4, 4))
    assert last_of_stages({"only": "at.0"}, maps) == ["at.0"]
