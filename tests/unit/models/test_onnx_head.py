"""The input of an ONNX graph and the linear layer that it ends in, however it is written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from oodcli.errors import InvalidInputError
from oodcli.models.onnx_head import image_input, linear_end

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

FLOAT = 1
W = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
B = np.array([1, -2, 3], np.float32)
T = np.float32(4)
NODE = onnx.helper.make_node
Node = tuple[Any, ...]


def model(
    nodes: Sequence[Any],
    *,
    shape: Sequence[int | str] = ("n", 3, 8, 8),
    kind: int = FLOAT,
    outputs: Sequence[str] = ("y",),
    inputs: int = 1,
) -> Any:
    """Return a model whose features ``f`` are its pooled input, with weights to choose from."""
    info = onnx.helper.make_tensor_value_info
    weights = {
        "w": W, "wt": W.T.copy(), "b": B, "t": T, "half": np.float32(0.5), "row": W[:1].copy(),
        "conv": W[:, :, None, None].copy(), "big": np.ones((3, 5, 3, 3), np.float32),
        "wide": np.ones((5, 3, 1, 1), np.float32), "two": np.array([2, 3]),
    }  # fmt: skip
    graph = onnx.helper.make_graph(
        [
            NODE("Conv", ["x", "wide"], ["m"]),
            NODE("GlobalAveragePool", ["m"], ["p"]),
            NODE("Flatten", ["p"], ["f"]),
            *nodes,
        ],
        "g",
        [info("x" if k == 0 else f"x{k}", kind, shape) for k in range(inputs)],
        [info(name, FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("nodes", "weight", "bias", "features", "said"),
    [
        ([NODE("Gemm", ["f", "w", "b"], ["y"], transB=1)], W, B, "f", ""),
        ([NODE("Gemm", ["f", "wt", "b"], ["y"], alpha=2.0, beta=3.0)], 2 * W, 3 * B, "f", ""),
        ([NODE("Gemm", ["f", "w"], ["y"], transB=1)], W, 0 * B, "f", ""),
        ([NODE("MatMul", ["f", "wt"], ["z"]), NODE("Add", ["b", "z"], ["y"])], W, B, "f", ""),
        (
            [NODE("MatMul", ["f", "wt"], ["z"]), NODE("Sub", ["z", "b"], ["y"])],
            W, -B, "f", "",
        ),
        (  # weights that are made in the graph
            [
                NODE("Transpose", ["w"], ["v"]), NODE("Identity", ["v"], ["u"]),
                NODE("MatMul", ["f", "u"], ["y"]),
            ],
            W, 0 * B, "f", "",
        ),
        (
            [
                NODE("Dropout", ["f"], ["d"]), NODE("Identity", ["d"], ["i"]),
                NODE("Cast", ["i"], ["c"], to=FLOAT), NODE("MatMul", ["c", "wt"], ["z"]),
                NODE("Cast", ["z"], ["k"], to=FLOAT), NODE("Softmax", ["k"], ["y"]),
            ],
            W, 0 * B, "c", "Softmax after it left out",
        ),
        (
            [
                NODE("Gemm", ["f", "w", "b"], ["z"], transB=1), NODE("Div", ["z", "t"], ["d"]),
                NODE("LogSoftmax", ["d"], ["y"]),
            ],
            W / 4, B / 4, "f", "LogSoftmax after it left out, with a factor after it",
        ),
        (
            [
                NODE("MatMul", ["f", "wt"], ["z"]), NODE("Mul", ["t", "z"], ["d"]),
                NODE("Add", ["d", "b"], ["y"]),
            ],
            4 * W, B, "f", "with a factor after it",
        ),
        (
            [
                NODE("Conv", ["m", "conv", "b"], ["c"]), NODE("GlobalAveragePool", ["c"], ["q"]),
                NODE("Flatten", ["q"], ["y"]),
            ],
            W, B, "m", "a 1x1 convolution, read as a linear layer of the mean over positions",
        ),
        (
            [NODE("Conv", ["p", "conv"], ["c"]), NODE("Flatten", ["c"], ["y"])],
            W, 0 * B, "p", "",
        ),
        (
            [NODE("Gemm", ["f", "row"], ["z"], transB=1), NODE("Sigmoid", ["z"], ["y"])],
            W[:1], 0 * B[:1], "f", "one logit z before a sigmoid",
        ),
    ],
)  # fmt: skip
def test_the_last_layer_is_read_however_it_is_written(
    nodes: Sequence[Any], weight: np.ndarray, bias: np.ndarray, features: str, said: str
) -> None:
    end = linear_end(model(nodes), "x", None, "net")
    np.testing.assert_allclose(end.weight, weight, rtol=1e-6)
    np.testing.assert_allclose(end.bias, bias, rtol=1e-6)
    assert (end.features, end.text) == (features, said)
    assert end.has_bias == bool(np.abs(bias).any())


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([NODE("Relu", ["f"], ["y"])], "is not that of a linear layer (Gemm, MatMul or"),
        (
            [NODE("MatMul", ["f", "wt"], ["z"]), NODE("Relu", ["z"], ["y"])],
            "but made by Relu; export the network with logits as output",
        ),
        ([NODE("Conv", ["m", "big"], ["z"]), NODE("Flatten", ["z"], ["y"])], "but made by Conv"),
        (
            [NODE("MatMul", ["f", "wt"], ["z"]), NODE("ArgMax", ["z"], ["y"])],
            "but made by ArgMax",
        ),
        (
            [NODE("MatMul", ["f", "wt"], ["z"]), NODE("Sigmoid", ["z"], ["y"])],
            "net ends in a sigmoid for each of 3 classes: it gives several labels to an image",
        ),
        ([NODE("Mul", ["f", "f"], ["y"])], "but made by Mul"),
    ],
)  # fmt: skip
def test_what_is_not_linear_at_the_end_is_refused(nodes: Sequence[Any], told: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        linear_end(model(nodes), "x", None, "net")
    assert told in str(refused.value)


def test_of_several_outputs_one_is_taken_and_said() -> None:
    nodes = [
        NODE("MatMul", ["f", "wt"], ["aux"]), NODE("Gemm", ["f", "w", "b"], ["logits"], transB=1),
        NODE("Relu", ["f"], ["embedding"]),
    ]  # fmt: skip
    several = model(nodes, outputs=["embedding", "aux", "logits"])
    end = linear_end(several, "x", None, "net")
    assert end.output == "logits"
    assert end.text == "output logits of 3; another: --output aux"
    assert linear_end(several, "x", "aux", "net").output == "aux"
    with pytest.raises(InvalidInputError, match=r"has no output 'z'; it has: embedding, aux, log"):
        linear_end(several, "x", "z", "net")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"inputs": 2}, "takes 2 inputs (x, x1); export a network that takes images alone"),
        ({"kind": 2}, "takes images of uint8, so its own preprocessing is in it"),
        ({"shape": ("n", 3, 8, 6)}, "takes images of 8 x 6 pixels; only square ones"),
        ({"shape": ("n", 4, 8, 8)}, "takes images of 4 channels (? x 4 x 8 x 8); 3 or 1"),
        ({"shape": ("n", 12)}, "takes a tensor of ? x 12, not images (n, 3, h, w)"),
    ],
)
def test_inputs_that_are_no_images_are_refused(changes: dict[str, Any], told: str) -> None:
    given = model([NODE("MatMul", ["f", "wt"], ["y"])], **changes)
    with pytest.raises(InvalidInputError) as refused:
        image_input(given, "net")
    assert told in str(refused.value)


def test_the_input_says_what_it_takes() -> None:
    nodes = [NODE("MatMul", ["f", "wt"], ["y"])]
    open_ = image_input(model(nodes, shape=("n", 3, "h", "w")), "net")
    assert (open_.batch, open_.channels, open_.size) == (None, 3, None)
    fixed = image_input(model(nodes, shape=(8, 16, 16, 1), kind=10), "net")
    assert (fixed.batch, fixed.channels, fixed.size, fixed.channels_last, fixed.kind) == (
        8, 1, (16, 16), True, "float16",
    )  # fmt: skip
