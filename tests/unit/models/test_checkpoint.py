"""Weights in and out of files."""

import pickle
import re
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from oodcli.errors import CorruptArtifactError, InvalidInputError, MissingArtifactError
from oodcli.models import (
    Network,
    load_head,
    load_into,
    load_run_network,
    load_weights,
    parse_architecture,
    read_state,
    save_weights,
)

MakeNetwork = Callable[..., Network]
State = dict[str, Tensor]


class Opaque:
    """Something that a pickle can only name."""


class Trap:
    """Something that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("trap-was-run", "w"))  # type: ignore[return-value]


def state_of(network: Network) -> State:
    return {name: tensor.clone() for name, tensor in network.module.state_dict().items()}


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the error, which is to be one line."""
    with pytest.raises(InvalidInputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


# Reading


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt", ".PT"])
@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict", "model"])
def test_reads_plain_and_nested_state_dicts(
    network: Network, tmp_path: Path, suffix: str, nest: str | None
) -> None:
    state = state_of(network)
    path = tmp_path / f"weights{suffix}"
    torch.save({nest: state, "epoch": 3} if nest else state, path)
    assert load_into(network.spec, read_state(path)).digest == network.digest


def test_reads_safetensors(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state_of(network), path)
    assert load_into(network.spec, read_state(path)).digest == network.digest


def test_reads_what_older_versions_of_torch_wrote(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(state_of(network), path, _use_new_zipfile_serialization=False)
    assert load_into(network.spec, read_state(path)).digest == network.digest


def test_takes_away_the_prefix_of_data_parallel_training(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"module.a": torch.ones(1), "module.module_b": torch.ones(1)}, path)
    assert set(read_state(path)) == {"a", "module_b"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_widens_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0.1, -3.0, 1e-3]).to(dtype)
    for name in ("weights.pt", "weights.safetensors"):
        path = tmp_path / name
        (torch.save if name.endswith("pt") else safetensors.torch.save_file)({"a": values}, path)
        widened = read_state(path)["a"]
        assert widened.dtype == torch.float32
        assert torch.equal(widened, values.float())


@pytest.mark.parametrize("plain", [False, True])
def test_never_runs_what_a_checkpoint_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    if plain:
        path.write_bytes(pickle.dumps({"state_dict": Trap()}))
    else:
        torch.save({"state_dict": Trap()}, path)
    told = (
        "it refers to io.open; "
        if plain
        else "contains code (pickled io.open), which is never run; "
    )
    assert told in refusal(lambda: read_state(path))
    assert not Path("trap-was-run").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_refuses_a_truncated_file(network: Network, tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        safetensors.torch.save_file(state_of(network), path)
    else:
        torch.save(state_of(network), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    message = refusal(lambda: read_state(path))
    assert message.startswith(f"{path} is not a checkpoint, or is incomplete")
    assert message.endswith("; get it again")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"hello world" * 50, b"\0" * 999])
def test_refuses_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    for name in ("weights.pt", "weights.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        assert "is not a checkpoint, or is incomplete" in refusal(
            lambda path=path: read_state(path)
        )


def test_refuses_paths_that_name_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path
    assert refusal(lambda: read_state(folder)) == (
        f"{folder} is a folder; give the checkpoint file in it"
    )
    assert refusal(lambda: read_state(folder / "no.pt")) == (
        f"there is no file {folder / 'no.pt'}; give a checkpoint"
    )


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, torch.ones(2), [1], {"epoch": 3}])
def test_refuses_a_file_without_state_dict(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    assert f"{path} contains no state dict" in refusal(lambda: read_state(path))


# Fitting


@pytest.mark.parametrize("arch", ["resnet18:width=4", "resnet20", "wrn-40-2", "vgg11"])
def test_weights_make_the_same_network_again(
    make_network: MakeNetwork, tmp_path: Path, arch: str
) -> None:
    network = make_network(arch, num_classes=7)
    path = tmp_path / "weights.safetensors"
    save_weights(network, path)
    loaded = load_run_network(path, arch, 7)
    assert loaded.digest == network.digest
    assert loaded.num_classes == 7
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.module(images), network.module(images))


def test_loading_draws_nothing_from_the_random_generator(network: Network) -> None:
    state = state_of(network)
    before = torch.get_rng_state()
    load_into(network.spec, state)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shortcut", ["shortcut", "downsample"])
@pytest.mark.parametrize("head", ["fc", "linear", "classifier", "head"])
def test_translates_the_usual_spellings(network: Network, shortcut: str, head: str) -> None:
    state = {
        name.replace("shortcut", shortcut).replace("fc.", f"{head}."): tensor
        for name, tensor in state_of(network).items()
    }
    assert load_into(network.spec, state).digest == network.digest


def test_refuses_to_choose_between_two_last_layers(network: Network) -> None:
    state = state_of(network)
    for leaf in ("weight", "bias"):
        state[f"linear.{leaf}"] = state[f"classifier.{leaf}"] = state.pop(f"fc.{leaf}")
    message = refusal(lambda: load_into(network.spec, state))
    assert "missing: fc.weight, fc.bias" in message
    assert "unexpected: linear.weight, classifier.weight, linear.bias and 1 more" in message


@pytest.mark.parametrize("with_counts", [False, True])
def test_counts_of_batches_may_be_there_or_not(network: Network, with_counts: bool) -> None:
    state = {k: v for k, v in state_of(network).items() if not k.endswith("num_batches_tracked")}
    if with_counts:
        state["of.nothing.num_batches_tracked"] = torch.tensor(3)
    loaded = load_into(network.spec, state)
    assert loaded.digest == network.digest
    assert loaded.module.state_dict()["bn1.num_batches_tracked"] == 0


def test_says_what_is_missing_unexpected_and_misshapen(network: Network) -> None:
    state = state_of(network)
    del state["bn1.weight"]
    state["extra"] = torch.ones(1)
    state["fc.bias"] = torch.ones(9)
    assert refusal(lambda: load_into(network.spec, state)) == (
        "the weights do not fit resnet18:width=4: missing: bn1.weight; unexpected: extra; "
        "wrong shape: fc.bias is (9,), not (10,); no known architecture fits them"
    )


@pytest.mark.parametrize(
    ("made", "named", "suggested"),
    [
        ("resnet34:width=4", "resnet18:width=4", "resnet34:width=4"),
        ("resnet18:width=4", "resnet18", "resnet18:width=4"),
        ("resnet18:width=4", "resnet18:stem_padding=2", "resnet18:stem_padding=2,width=4"),
        ("resnet32", "resnet20", "resnet32"),
        ("resnet20", "resnet18", "resnet20"),
        ("wrn-40-2", "resnet20", "wrn-40-2"),
        ("vgg11", "resnet20", "vgg11"),
    ],
)
def test_names_the_architecture_that_fits(
    make_network: MakeNetwork, made: str, named: str, suggested: str
) -> None:
    state = state_of(make_network(made))
    message = refusal(lambda: load_into(parse_architecture(named), state))
    assert message.startswith(f"the weights do not fit {named}: ")
    assert message.endswith(f"; these look like weights of {suggested}: specify that architecture")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["fc.weight", "layer1.0.bn1.running_var"])
def test_refuses_weights_that_are_not_finite(network: Network, name: str, bad: float) -> None:
    state = state_of(network)
    state[name].flatten()[0] = bad
    message = refusal(lambda: load_into(network.spec, state))
    assert message.startswith(f"{name} contains NaN or infinity; ")


def test_refuses_weights_that_are_integers(network: Network) -> None:
    state = state_of(network)
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    message = refusal(lambda: load_into(network.spec, state))
    assert message == "fc.weight is torch.int8; save the weights as float32"


# Weights of a run


def test_reads_only_the_last_layer(make_network: MakeNetwork, tmp_path: Path) -> None:
    for arch in ("resnet20", "vgg11"):
        network = make_network(arch)
        save_weights(network, tmp_path / "weights.safetensors")
        head = load_head(tmp_path / "weights.safetensors", arch)
        assert torch.equal(head.weight, network.head().weight)
        assert torch.equal(head.bias, network.head().bias)


def test_saves_a_network_whose_maps_lie_channels_last(network: Network, tmp_path: Path) -> None:
    network.module.to(memory_format=torch.channels_last)
    save_weights(network, tmp_path / "weights.safetensors")
    loaded = load_weights(tmp_path / "weights.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in state_of(network).items())


def test_weights_of_a_run_that_are_gone_or_damaged_say_so(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    loaders: list[Callable[[], object]] = [
        lambda: load_weights(path),
        lambda: load_head(path, "resnet18:width=4"),
        lambda: load_run_network(path, "resnet18:width=4", 10),
    ]
    for load in loaders:
        with pytest.raises(MissingArtifactError, match="are missing; remove the run and create it"):
            load()
    save_weights(network, path)
    path.write_bytes(path.read_bytes()[:-5])
    for load in loaders:
        with pytest.raises(CorruptArtifactError, match=r"weights\.safetensors is damaged: "):
            load()


def test_weights_that_belong_to_another_run_say_so(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(network, path)
    with pytest.raises(CorruptArtifactError, match="has 10 classes, but its run has 100"):
        load_run_network(path, "resnet18:width=4", 100)
    with pytest.raises(CorruptArtifactError, match="do not fit resnet20"):
        load_run_network(path, "resnet20", 10)
    with pytest.raises(CorruptArtifactError, match="is damaged"):
        load_head(path, "vgg11")


# Real checkpoints


def test_a_published_checkpoint_fits_only_its_own_depth(shared: Path) -> None:
    path = next((shared / "data" / "checkpoints").glob("resnet32-*.th"))
    state = read_state(path)
    assert load_into(parse_architecture("resnet32"), state).num_classes == 10
    message = refusal(lambda: load_into(parse_architecture("resnet20"), state))
    assert message.endswith("these look like weights of resnet32: specify that architecture")


def test_numbers_and_arrays_of_numpy_beside_the_weights_are_no_code(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    weights = {"w": torch.zeros(2)}
    beside = {"best_acc": np.float64(0.93), "epoch": np.int64(3), "curve": np.arange(3.0)}
    torch.save({"state_dict": weights, **beside}, path)
    assert list(read_state(path)) == ["w"]


def written(path, content):
    torch.save(content, path)
    return path


def test_a_checkpoint_that_contains_itself_ends(tmp_path):
    state: dict[str, object] = {}
    state["state_dict"] = state
    path = written(tmp_path / "a.pt", state)
    assert refusal(lambda: read_state(path)) == (
        f"{path} is not read: it contains itself; "
        "save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
    )
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert "is not read: it contains itself" in refusal(lambda: read_state(path))
    deep: object = {"a": torch.ones(1)}
    for _ in range(12):
        deep = {"model": deep}
    path = written(tmp_path / "b.pt", deep)
    assert "are nested too deeply" in refusal(lambda: read_state(path))


def crafted(path, pickle, *, old=False):
    """Write a pickle as torch would have written it."""
    if old:
        start = pickle_of(torch.serialization.MAGIC_NUMBER) + pickle_of(1001) + pickle_of({})
        path.write_bytes(start + pickle)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


def pickle_of(value):
    return pickle.dumps(value, protocol=2)


PAIRS = b"K\x01" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))
BOMBS = {
    "bytes by their number": b"\x80\x02}cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85RNs.",
    "the same in Python 2": b"\x80\x02}c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85RNs.",
    "a key of pairs of pairs": b"\x80\x02}" + PAIRS + b"Ns.",
    "a set of pairs of pairs": b"\x80\x02cbuiltins\nset\n]" + PAIRS + b"a\x85R.",
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", BOMBS)
def test_small_pickles_take_neither_time_nor_memory(tmp_path, name, old):
    path = crafted(tmp_path / "a.pt", BOMBS[name], old=old)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = refusal(lambda: read_state(path))
    assert re.search(
        "is not read: it (requests|has a nested key|has an integer key|expands to)", told
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # kB


def test_an_archive_unpacks_to_no_more_than_it_is(tmp_path):
    path = written(tmp_path / "a.pt", {"a": torch.zeros(2**20)})
    packed = tmp_path / "b.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert re.search(
        r"b\.pt is not read: [\d,]+ bytes would unpack to 4,19\d,\d{3}; save the weights alone",
        refusal(lambda: read_state(packed)),
    )


def test_tensors_that_repeat_their_values_are_refused_out_of_proportion(tmp_path):
    """80 kB that would be 32 GB."""
    wide = torch.zeros(1, 10_000).expand(800_000, 10_000)
    path = written(tmp_path / "a.pt", {"fc.weight": wide})
    assert path.stat().st_size < 2**17
    assert refusal(lambda: read_state(path)) == (
        f"{path}: fc.weight (800000, 10000) repeats values of the file, which would expand to "
        "more than 8 times its size; save contiguous tensors: tensor.contiguous()"
    )
    few = torch.zeros(1).expand(4, 4)
    shared = torch.rand(300, 300)
    path = written(tmp_path / "b.pt", {"a": few, "b": shared, "c": shared.T})
    assert torch.equal(read_state(path)["c"], shared.T)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse (torch.sparse_coo)"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse (torch.sparse_csr)"),
        (lambda: torch.ones(3, device="meta"), "without values, on the device meta"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.ones(3, dtype=torch.complex64), "of complex numbers (torch.complex64)"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "of torch.float8_e4m3fn"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path, tensor, kind):
    path = written(tmp_path / "a.pt", {"fc.weight": tensor()})
    assert refusal(lambda: read_state(path)) == (
        f"{path}: fc.weight is {kind}; save the weights as dense float32: "
        "{k: v.float() for k, v in model.state_dict().items()}"
    )


def test_float8_of_safetensors_is_refused_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3).to(torch.float8_e5m2)}, path)
    assert "a is of torch.float8_e5m2" in refusal(lambda: read_state(path))


def test_a_last_layer_of_millions_of_rows_builds_no_network():
    spec = parse_architecture("resnet18:width=2")
    state = {"fc.weight": torch.zeros(2**20, 1), "fc.bias": torch.zeros(2**20)}
    assert "the last layer fc has 1,048,576 rows; a classifier may have at most 65,536" in refusal(
        lambda: load_into(spec, state)
    )
