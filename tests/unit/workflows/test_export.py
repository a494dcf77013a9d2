"""Preprocessing inside an exported file, without ONNX: the same bits as outside."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from oodcli.data.decoding.bilinear import resizing_matrices
from oodcli.data.decoding.scaling import Resizing
from oodcli.screening.onnx_graph import Screening, round_up_to_float32


@pytest.mark.parametrize("before", [(20, 24), (57, 31), (31, 57), (90, 70)])
@pytest.mark.parametrize(
    "how",
    ["exact", "shorter-crop", "shorter-crop:40", "shorter-crop:40:bicubic", "exact:lanczos",
     "exact:nearest"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_images_are_resized_inside_as_the_run_resizes_them(
    before: tuple[int, int], how: str, kind: str
) -> None:
    resizing = Resizing((32, 32), how)
    matrices = resizing_matrices(resizing, before)
    pixels = np.random.default_rng(3).integers(0, 256, (4, 3, *before), dtype=np.uint8)
    graph = SimpleNamespace(
        _matrices=matrices,
        _kind=kind,
        rows=torch.from_numpy(matrices.rows),
        columns=torch.from_numpy(matrices.columns),
    )
    images = torch.from_numpy(pixels)
    got = Screening._scaled(graph, images if kind == "uint8" else images.float() / 255)
    wanted = np.stack([resizing.apply(each.transpose(1, 2, 0)) for each in pixels])
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(
        (got * 255).round().to(torch.uint8).numpy(), wanted.transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, -0.7, 1.0, 1e-3, 123456.789])
def test_a_threshold_between_two_float32_numbers_decides_alike(value: float) -> None:
    least = np.float32(round_up_to_float32(value))
    assert float(least) >= value
    assert float(np.nextafter(least, np.float32(-np.inf))) < value
