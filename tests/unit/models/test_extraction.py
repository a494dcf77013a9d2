"""The one forward pass."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oodcli.activations import Activations
from oodcli.errors import InvalidInputError
from oodcli.models import Network, load_into, parse_architecture, read_state
from oodcli.models.extraction import ReadyNetwork, extract
from oodcli.models.hooks import feature_norm
from oodcli.pools import read_ahead

MakeNetwork = Callable[..., Network]
Pixels = NDArray[np.uint8]
HALF = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def run(network: Network, *shards: Pixels, **options: object) -> Activations:
    """Return the activations of all shards together."""
    parts = list(extract(network, shards, **{**HALF, **options}))  # type: ignore[arg-type]
    joined = {name: torch.cat([p.arrays()[name] for p in parts]) for name in parts[0].arrays()}
    return Activations(**joined)


def normalised(pixels: Pixels) -> Tensor:
    mean, std = (torch.tensor(HALF[k]).view(3, 1, 1) for k in ("mean", "std"))
    return (torch.from_numpy(pixels.copy()).float() / 255 - mean) / std


def slow_feature_norm(maps: Tensor) -> Tensor:
    """Follow the formula: ReLU, L2 over space in every channel, mean over channels."""
    rows = [
        sum(channel.clamp(min=0).pow(2).sum().sqrt() for channel in image) / len(image)
        for image in maps.double()
    ]
    return torch.stack(rows).float()


def no_reader_left() -> bool:
    """Tell whether the reading thread ends soon."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if not any(t.name == "ood-read-ahead" for t in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


# FeatureNorm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_feature_norm_follows_its_formula(layout: torch.memory_format) -> None:
    maps = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    maps = maps.to(memory_format=layout)
    torch.testing.assert_close(feature_norm(maps), slow_feature_norm(maps))


def test_feature_norm_is_homogeneous() -> None:
    maps = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(feature_norm(2.5 * maps), 2.5 * feature_norm(maps))


def test_feature_norm_of_a_constant_map_is_the_value_times_the_root_of_its_size() -> None:
    torch.testing.assert_close(feature_norm(torch.full((1, 7, 4, 9), 0.3)), torch.tensor([1.8]))


def test_feature_norm_of_a_negative_map_is_zero() -> None:
    assert feature_norm(torch.full((2, 3, 4, 4), -5.0)).tolist() == [0, 0]


def test_feature_norm_leaves_the_map_as_it_is() -> None:
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    before = maps.clone()
    feature_norm(maps)
    assert torch.equal(maps, before)


def test_feature_norm_sums_half_precision_in_float32() -> None:
    """The sum is 65,536 times 100 squared, where float16 ends at 65,504."""
    for dtype in (torch.float16, torch.bfloat16):
        norm = feature_norm(torch.full((1, 1, 256, 256), 100.0, dtype=dtype))
        assert norm.dtype == torch.float32
        assert norm.item() == pytest.approx(25600, rel=1e-6)


# The pass


@pytest.mark.parametrize("arch", ["resnet18:width=4", "resnet20", "wrn-40-2", "vgg11"])
def test_one_pass_gives_what_separate_forwards_give(make_network: MakeNetwork, arch: str) -> None:
    network = make_network(arch)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    found = run(network, pixels)
    maps: dict[str, Tensor] = {}
    features: list[Tensor] = []
    for name, path in network.blocks.items():

        def keep(_m: nn.Module, _i: object, output: Tensor, name: str = name) -> None:
            maps[name] = output.clone()

        network.module.get_submodule(path).register_forward_hook(keep)
    network.module.get_submodule(network.head_path).register_forward_pre_hook(
        lambda _m, inputs: features.append(inputs[0].clone())
    )
    with torch.no_grad():
        logits = network.module(normalised(pixels))
    expected = torch.stack([slow_feature_norm(maps[name]) for name in network.blocks], dim=1)
    torch.testing.assert_close(found.block_norms, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.features, features[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.predictions, logits.argmax(dim=1))


def test_logits_are_those_of_the_head(network: Network, pixels: Pixels) -> None:
    for precision in ("float32", "bfloat16"):
        found = run(network, pixels, precision=precision)
        torch.testing.assert_close(found.logits, network.head()(found.features))


def test_a_norm_is_that_of_the_map_before_a_later_layer_edits_it(
    network: Network, pixels: Pixels
) -> None:
    expected = run(network, pixels).block_norms

    def double(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        inputs[0].mul_(2)

    network.module.get_submodule(network.blocks["4.2"]).register_forward_pre_hook(double)
    found = run(network, pixels).block_norms
    torch.testing.assert_close(found[:, :-1], expected[:, :-1])
    assert not torch.allclose(found[:, -1], expected[:, -1])  # it did edit


@pytest.mark.parametrize("batch_size", [1, 7, 20, 500])
def test_neither_batches_nor_shards_change_results(
    network: Network, pixels: Pixels, batch_size: int
) -> None:
    expected = run(network, pixels)
    found = run(network, pixels[:9], pixels[9:], batch_size=batch_size)
    for name, values in expected.arrays().items():
        torch.testing.assert_close(found.arrays()[name], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20, None])
@pytest.mark.parametrize("cuts", [[9], [1, 2, 9, 10, 17], [3, 6, 9, 12, 15, 18]])
def test_shards_in_several_arrays_give_the_bits_of_shards_in_one(
    network: Network, pixels: Pixels, batch_size: int | None, cuts: list[int]
) -> None:
    options = {**HALF, "batch_size": batch_size}
    ready = ReadyNetwork(network)
    whole = ready.extract([pixels[:9], pixels[9:]], **options)  # type: ignore[arg-type]
    parts = ready.extract(np.split(pixels, cuts), rows=[9, 11], **options)  # type: ignore[arg-type]
    for expected, found in zip(whole, parts, strict=True):
        for name, values in expected.arrays().items():
            assert torch.equal(found.arrays()[name], values), name


def test_batches_of_a_shard_are_the_same_however_it_is_cut(
    network: Network, pixels: Pixels
) -> None:
    batches: list[int] = []
    arrays = np.split(pixels, [1, 2, 9, 10, 17])
    ready = ReadyNetwork(network)
    list(ready.extract(arrays, rows=[9, 11], batch_size=4, advance=batches.append, **HALF))  # type: ignore[arg-type]
    assert batches == [4, 4, 1, 4, 4, 3]


@pytest.mark.parametrize("rows", [[10, 10], [9, 12], [9, 11, 1]])
def test_refuses_arrays_that_are_not_the_shards_they_should_be(
    network: Network, pixels: Pixels, rows: list[int]
) -> None:
    arrays = [pixels[:9], pixels[9:]]
    with pytest.raises(
        ValueError, match=f"do not add up to {rows[-1] if rows[0] == 9 else 10} images"
    ):
        list(ReadyNetwork(network).extract(arrays, rows=rows, **HALF))  # type: ignore[arg-type]


def test_gives_ordinary_float32_tensors_shard_by_shard(network: Network, pixels: Pixels) -> None:
    shards = [pixels[:5], pixels[5:6], pixels[6:]]
    outputs = list(extract(network, shards, **HALF))  # type: ignore[arg-type]
    assert [len(part) for part in outputs] == [5, 1, 14]
    assert {v.dtype for p in outputs for v in p.arrays().values()} == {torch.float32, torch.int64}
    assert outputs[0].predictions.dtype == torch.int64
    assert not any(v.is_inference() for p in outputs for v in p.arrays().values())


def test_takes_images_that_may_not_be_written_to(network: Network, pixels: Pixels) -> None:
    expected = run(network, pixels)
    mapped = np.asarray(pixels.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2))
    mapped.setflags(write=False)
    assert torch.equal(run(network, mapped).logits, expected.logits)


def test_leaves_the_network_and_the_settings_as_they_were(network: Network, pixels: Pixels) -> None:
    network.module.train()
    digest = network.digest
    settings = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    expected = run(network, pixels)
    modules = list(network.module.modules())
    assert all(module.training for module in modules)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert network.digest == digest
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == settings
    network.module.eval()
    assert torch.equal(run(network, pixels).logits, expected.logits)


@pytest.fixture
def tensorfloat() -> Iterator[Callable[[], list[bool]]]:
    """Turn TensorFloat-32 on, and return a reader of the two settings."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    yield lambda: [matmul.allow_tf32, cudnn.allow_tf32]
    matmul.allow_tf32, cudnn.allow_tf32 = before


def test_tensorfloat_is_off_during_the_pass_only(
    network: Network, pixels: Pixels, tensorfloat: Callable[[], list[bool]]
) -> None:
    during: list[bool] = []
    run(network, pixels, advance=lambda _: during.extend(tensorfloat()))
    assert during == [False, False]
    assert tensorfloat() == [True, True]


def test_bfloat16_is_near_float32_and_not_it(network: Network, pixels: Pixels) -> None:
    full, half = run(network, pixels), run(network, pixels, precision="bfloat16")
    for name in ("features", "logits", "block_norms"):
        a, b = full.arrays()[name], half.arrays()[name]
        error = (a - b).abs().max() / a.abs().max()
        assert 0 < error < 0.05


def test_tells_of_every_batch(network: Network, pixels: Pixels) -> None:
    told: list[int] = []
    run(network, pixels, batch_size=8, advance=told.append)
    assert told == [8, 8, 4]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "no precision 'float16'; there are: float32, bfloat16"),
        ({"std": (1, 0, 1)}, "a standard deviation must be positive, not 0"),
        ({"batch_size": 0}, "the batch size must be at least 1, not 0"),
    ],
)
def test_refuses_options_before_anything_is_read(
    network: Network, options: dict[str, object], message: str
) -> None:
    def unread() -> Iterator[Pixels]:
        raise AssertionError("read")
        yield

    with pytest.raises(InvalidInputError) as error:
        extract(network, unread(), **{**HALF, **options})  # type: ignore[arg-type]
    assert str(error.value) == message


@pytest.mark.parametrize("shape", [(2, 16, 16, 3), (2, 1, 16, 16), (3, 16, 16)])
def test_refuses_arrays_that_are_no_shard(network: Network, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not uint8"):
        run(network, np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="but float32"):
        run(network, np.zeros((2, 3, 16, 16), np.float32))  # type: ignore[arg-type]


def test_refuses_images_that_are_too_small(make_network: MakeNetwork, pixels: Pixels) -> None:
    with pytest.raises(InvalidInputError, match="vgg11 needs images of at least 32 x 32 pixels"):
        run(make_network("vgg11"), pixels)


@pytest.mark.parametrize(("bad", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_refuses_outputs_that_are_not_finite(
    network: Network, pixels: Pixels, bad: float, kind: str
) -> None:
    with torch.no_grad():
        network.module.get_submodule("fc").bias[3] = bad
    outputs = extract(network, [pixels], **HALF)  # type: ignore[arg-type]
    with pytest.raises(
        InvalidInputError, match=rf"outputs {kind} for 20 of images 0 to 19 \(logits"
    ):
        next(outputs)


def test_says_in_which_shard_values_are_not_finite(network: Network, pixels: Pixels) -> None:
    """Brightness is divided by its maximum, which a black image does not survive."""

    def stretch(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output / inputs[0].amax(dim=(1, 2, 3), keepdim=True)

    network.module.get_submodule("conv1").register_forward_hook(stretch)
    black = pixels.copy()
    black[[3, 8]] = 0
    outputs = extract(network, [pixels, pixels, black], mean=(0, 0, 0), std=(1, 1, 1))
    assert [len(next(outputs)), len(next(outputs))] == [20, 20]
    with pytest.raises(InvalidInputError, match="outputs NaN for 2 of images 40 to 59"):
        next(outputs)


# Reading ahead


def test_reads_the_next_shard_while_the_network_computes(network: Network, pixels: Pixels) -> None:
    asked = threading.Event()

    def shards() -> Iterator[Pixels]:
        yield pixels
        asked.set()
        yield pixels

    with read_ahead(shards()) as ready:
        outputs = extract(network, ready, **HALF)  # type: ignore[arg-type]
        next(outputs)
        assert asked.wait(5)
        assert len(list(outputs)) == 1
    assert no_reader_left()


def test_reads_no_more_than_one_shard_ahead(network: Network, pixels: Pixels) -> None:
    read: list[int] = []

    def shards() -> Iterator[Pixels]:
        for number in range(9):
            read.append(number)
            yield pixels[:2]

    with read_ahead(shards()) as ready:
        outputs = extract(network, ready, **HALF)  # type: ignore[arg-type]
        for _ in range(3):
            next(outputs)
        time.sleep(0.1)
        assert len(read) <= 4
    assert no_reader_left()


def test_an_error_of_the_reader_comes_out_after_what_was_read(
    network: Network, pixels: Pixels
) -> None:
    def shards() -> Iterator[Pixels]:
        yield pixels
        raise OSError("the disk is gone")

    with read_ahead(shards()) as ready:
        outputs = extract(network, ready, **HALF)  # type: ignore[arg-type]
        assert len(next(outputs)) == 20
        with pytest.raises(OSError, match="the disk is gone"):
            next(outputs)
    assert no_reader_left()


def test_an_interrupt_during_the_pass_ends_the_reader(network: Network, pixels: Pixels) -> None:
    def interrupt(_rows: int) -> None:
        raise KeyboardInterrupt

    def endless() -> Iterator[Pixels]:
        while True:
            yield pixels

    with pytest.raises(KeyboardInterrupt), read_ahead(endless()) as ready:
        next(extract(network, ready, **HALF, advance=interrupt))  # type: ignore[arg-type]
    assert no_reader_left()


def test_a_reader_that_hangs_does_not_hold_up_the_end(network: Network, pixels: Pixels) -> None:
    release = threading.Event()

    def shards() -> Iterator[Pixels]:
        yield pixels
        release.wait(60)

    with read_ahead(shards()) as ready:
        next(extract(network, ready, **HALF))  # type: ignore[arg-type]
        started = time.monotonic()
    taken = time.monotonic() - started
    release.set()
    assert taken < 10
    assert no_reader_left()


def test_no_shard_gives_nothing(network: Network) -> None:
    assert list(extract(network, [], **HALF)) == []  # type: ignore[arg-type]


# Real networks on real images


@pytest.mark.parametrize("name", ["test", "svhn_crops", "dtd10_32", "sun_resize32", "cifar100"])
def test_reproduces_the_activations_of_published_code(
    shared: Path, cifar_test: Callable[[str], tuple[Pixels, NDArray[np.int64]]], name: str
) -> None:
    if name == "test":
        # The first 200 of each class, of which every tenth here.
        images = cifar_test("cifar10")[0].reshape(10, 1000, 3, 32, 32)[:, :200]
        images, rows = images.reshape(-1, 3, 32, 32)[::10], slice(0, 2000, 10)
    elif name == "cifar100":
        images, rows = cifar_test("cifar100")[0][::10][:100], slice(0, 100)
    else:
        with np.load(shared / "data" / f"{name}.npz", allow_pickle=False) as stored:
            images, rows = stored["images"][:100].transpose(0, 3, 1, 2), slice(0, 100)
    spec = parse_architecture("resnet18:stem_padding=2")
    network = load_into(spec, read_state(shared / "reference" / "resnet18_cifar10.pt"))
    found = run(network, images, mean=(0.5,) * 3, std=(0.5,) * 3)
    with np.load(shared / "reference" / "activations.npz", allow_pickle=False) as reference:
        for key in ("features", "logits", "block_norms"):
            expected = reference[f"{name}/{key}"][rows]
            error = np.abs(found.arrays()[key].numpy() - expected).max() / np.abs(expected).max()
            assert error < 1e-4, key


def test_a_published_resnet20_classifies_cifar10(
    shared: Path, cifar_test: Callable[[str], tuple[Pixels, NDArray[np.int64]]]
) -> None:
    """Its accuracy on all 10,000 test images is 91.73 %."""
    images, labels = cifar_test("cifar10")
    path = next((shared / "data" / "checkpoints").glob("resnet20-*.th"))
    network = load_into(parse_architecture("resnet20"), read_state(path))
    constants = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    found = run(network, images[::10], **constants)
    assert (found.predictions.numpy() == labels[::10]).mean() > 0.89


# Threads


def test_small_batches_are_computed_by_one_thread_and_others_are_left_alone() -> None:
    """In a process of its own, for tests run torch on one thread."""
    code = """
import numpy as np, threading, torch
from oodcli.models import network_of, parse_architecture
from oodcli.models.extraction import ReadyNetwork, single_thread

torch.set_num_threads(3)
spec = parse_architecture("resnet20")
ready = ReadyNetwork(network_of(spec, spec.build(10)))
seen = []
def note(_module, _inputs):
    seen.append(torch.get_num_threads())
ready.module.conv1.register_forward_pre_hook(note)
how = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
pixels = np.zeros((40, 3, 32, 32), np.uint8)
for n in (1, 3, 4, 40):
    seen.clear()
    list(ready.extract([pixels[:n]], **how))
    print(n, seen, torch.get_num_threads())
# 40.55 million multiplications an image, by hand: the limit lies between three and four.
assert ready._work == {(32, 32): 40_551_040}, ready._work
others = []
with single_thread():
    inner = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    inner.start()
    inner.join()
    print(torch.get_num_threads(), others, torch.get_num_threads())
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "1 [1, 1] 3", "3 [1] 3", "4 [3] 3", "40 [3] 3", "1 [3] 1", "3",
    ]  # fmt: skip


def test_a_ready_network_gives_what_a_pass_of_its_own_gives(
    network: Network, pixels: Pixels
) -> None:
    ready = ReadyNetwork(network)
    for shards in ([pixels[:5]], [pixels[5:9], pixels[9:]], [pixels[:5]]):
        found = [each.logits for each in ready.extract(shards, **HALF)]  # type: ignore[arg-type]
        wanted = [each.logits for each in extract(network, shards, **HALF)]  # type: ignore[arg-type]
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)
    assert not any(m._forward_hooks for m in ready.module.modules())
    assert list(ready.extract([], **HALF)) == []  # type: ignore[arg-type]


def test_activations_are_tensors_that_autograd_may_use(network: Network, pixels: Pixels) -> None:
    """Those made in inference mode are not."""
    found = run(network, pixels, to="cpu")
    for name, values in found.arrays().items():
        assert not values.is_inference(), name
        assert values.device == torch.device("cpu")
