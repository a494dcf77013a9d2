"""Two processes train as one does with the same batches."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from oodcli.compute.processes import Processes, ProcessLostError, device_of
from oodcli.errors import InvalidInputError
from tests.support import together
from tests.support.torchrun import start_with_torchrun

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Train every case in two processes."""
    folder = tmp_path_factory.mktemp("together")
    code, _, err = start_with_torchrun(together.__file__, folder).ended()
    assert code == 0, err
    return {path.stem: load_file(path) for path in folder.iterdir()}


@pytest.mark.parametrize("case", together.CASES)
def test_two_processes_train_as_one(case: str, trained: dict[str, dict[str, Tensor]]) -> None:
    """Without batch norm as one with the whole batch, with it as one that halves each batch."""
    alone = together.trained(case, Processes(), halved=True)
    both = trained[case]
    assert set(both) == set(alone)
    for name, expected in alone.items():
        # What is small beside the rest of its tensor carries the rounding of the rest.
        bound = TOLERANCE["atol"] + 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(both[name], expected, rtol=2e-4, atol=bound, msg=name)


def test_training_has_changed_the_weights(trained: dict[str, dict[str, Tensor]]) -> None:
    """What the cases compare has moved by far more than their tolerance."""
    for case in set(together.CASES) - {"resnet"}:
        moved = (trained[case]["last.module.0.weight"] - together.network(None)[0].weight).abs()
        assert moved.max() > 0.003, case
    start = together.resnet(nn.BatchNorm2d).state_dict()["conv1.weight"]
    assert (trained["resnet"]["last.module.conv1.weight"] - start).abs().max() > 0.005


def test_resuming_after_an_epoch_changes_nothing(trained: dict[str, dict[str, Tensor]]) -> None:
    whole, again = trained["fine"], trained["again"]
    assert len(again["history"]) == 1
    for name, values in again.items():
        if name != "history":
            assert torch.equal(values, whole[name]), name


def test_one_process_resumes_with_what_two_began(trained: dict[str, dict[str, Tensor]]) -> None:
    both = trained["plain"]
    kept = {k.removeprefix("first."): v for k, v in both.items() if k.startswith("first.")}
    alone = together.trained("plain", Processes(), done=kept)
    for name in kept:
        torch.testing.assert_close(alone[f"last.{name}"], both[f"last.{name}"], **TOLERANCE)


def test_shares_are_the_batch() -> None:
    rows = torch.arange(7) * 3
    for size in (1, 2, 3, 9):
        shares = [Processes(rank, size).share(rows) for rank in range(size)]
        assert torch.equal(torch.cat(shares), rows)
        lengths = [len(share) for share in shares]
        assert lengths == sorted(lengths, reverse=True)
        assert max(lengths) - min(lengths) <= 1


def test_a_lost_connection_is_distinguished_from_other_failures() -> None:
    two = Processes(0, 2, cure="begin again")
    with (
        pytest.raises(ProcessLostError, match="has ended, so the others end too; begin again"),
        two.connection_errors(),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), two.connection_errors():
        raise RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="Connection"), Processes().connection_errors():
        raise RuntimeError("Connection closed by peer")


def test_devices_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("cuda:3") == "cuda:3"
    for name, value in (
        ("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of("auto") == device_of("cpu") == "cpu"
    for name in ("cuda:0", "mps"):
        with pytest.raises(InvalidInputError, match="each process uses its own GPU"):
            device_of(name)
    with pytest.raises(InvalidInputError, match="than the 1 GPUs of this host"):
        device_of("cuda")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert device_of("cuda") == "cuda:0"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert device_of("cuda:3") == "cuda:3"
