"""Published weights; here only from files, for a test never leaves this machine."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torchvision import models

from oodcli.errors import CorruptArtifactError, DownloadError, InvalidInputError, UnknownNameError
from oodcli.models import load_into, parse_architecture, pretrained_state
from oodcli.models.pretrained import _cached
from tests.support.server import serving


def weights_file(path: Path, arch: str = "resnet18") -> Path:
    torch.manual_seed(0)
    torch.save(models.get_model(arch, weights=None, num_classes=4).state_dict(), path)
    return path


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Pretend that a set of weights was published; return the file of torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)

    def publish(arch: str = "resnet18", *, names: tuple[str, ...] = ("IMAGENET1K_V1",)) -> Path:
        path = weights_file(tmp_path / "net.pth", arch)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        kept = path.rename(cache / f"net-{digest}.pth")
        transforms = SimpleNamespace(
            crop_size=[224], resize_size=[256], mean=[0.485, 0.456, 0.406], std=[0.2, 0.3, 0.4]
        )
        sets = [
            SimpleNamespace(
                name=name, url=f"https://localhost:9/{kept.name}", transforms=lambda: transforms
            )
            for name in names
        ]
        monkeypatch.setattr(models, "get_model_weights", lambda _name: sets)
        return kept

    return publish


def test_a_file_gives_its_weights_and_the_constants_of_imagenet(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "mine.pth")
    spec = parse_architecture("torchvision:resnet18")
    found = pretrained_state(str(spec), path)
    assert found.source == str(path)
    assert found.mean == (0.485, 0.456, 0.406)
    assert load_into(spec, found.state).num_classes == 4
    stored = torch.load(path, weights_only=True)
    assert torch.equal(found.state["layer4.1.conv2.weight"], stored["layer4.1.conv2.weight"])


def test_a_file_wants_images_as_the_published_weights_do(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "mine.pth")
    found = pretrained_state("torchvision:resnet18", path)
    assert (found.size, found.resize) == ((224, 224), "shorter-crop:256")
    timm = pytest.importorskip("timm")
    name = "vit_tiny_patch16_224"
    torch.save(timm.create_model(name).state_dict(), path)
    found = pretrained_state(f"timm:{name}", path)
    assert (found.mean, found.std, found.size) == ((0.5,) * 3, (0.5,) * 3, (224, 224))
    assert found.source == str(path)


def test_every_configuration_of_timm_is_understood() -> None:
    from oodcli.data.decoding.scaling import Resizing
    from oodcli.models import published_configuration

    timm = pytest.importorskip("timm")
    names = timm.list_models()
    assert len(names) > 1000
    for name in names:
        found = published_configuration(f"timm:{name}")
        if found is not None:
            assert found.size is not None
            assert found.resize is not None
            Resizing(found.size, found.resize)
    known = published_configuration("timm:volo_d5_512")
    assert known is not None
    assert known.resize == "shorter-crop:512"


def test_the_cache_of_torch_is_read(published: Callable[..., Path]) -> None:
    published(names=("IMAGENET1K_V2", "IMAGENET1K_V1"))
    spec = parse_architecture("torchvision:resnet18")
    found = pretrained_state(str(spec))
    assert found.source == "torchvision:resnet18 IMAGENET1K_V1"
    assert (found.size, found.resize) == ((224, 224), "shorter-crop:256")
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.2, 0.3, 0.4))
    assert load_into(spec, found.state).num_classes == 4
    assert pretrained_state(str(spec), "IMAGENET1K_V2").source.endswith("IMAGENET1K_V2")
    with pytest.raises(UnknownNameError, match="did you mean 'IMAGENET1K_V"):
        pretrained_state(str(spec), "IMAGENET1K_V3")


def test_a_damaged_file_in_the_cache_is_seen(published: Callable[..., Path]) -> None:
    path = published()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CorruptArtifactError, match="differs from the file published under that name"
    ):
        pretrained_state("torchvision:resnet18")


def test_weights_that_cannot_be_had_name_the_file_to_put_there(
    published: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published()
    path.unlink()

    def fail(*_args: object, **_more: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("oodcli.models.pretrained.open_url", fail)
    with pytest.raises(DownloadError) as error:
        pretrained_state("torchvision:resnet18")
    assert f"put it at {path}, or give a file" in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("drips", "the server sent fewer than 1,000 bytes/s in 0.4 seconds"),
        ("shift", "its sha256 is "),
        ("", ""),
    ],
)
def test_weights_come_whole_and_from_a_server_that_does_not_drip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, said: str
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("oodcli.models.pretrained._TIMEOUT_S", 0.2)
    content = b"weights" * 1000
    digest = hashlib.sha256(content).hexdigest()[:8]
    with serving(content[1:] if wrong == "shift" else content) as server:
        server.drips = "body" if wrong == "drips" else ""
        url = server.url.replace("file.bin", f"net-{digest}.pth")
        if not wrong:
            assert _cached(url).read_bytes() == content
            return
        with pytest.raises(DownloadError) as caught:
            _cached(url)
    assert said in str(caught.value)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_googlenet_is_normalised_by_one_half_and_loses_its_training_classifiers(
    tmp_path: Path,
) -> None:
    """Torchvision's own builder rescales its images; one half is where they end up."""
    spec = parse_architecture("torchvision:googlenet")
    state = spec.build(4).state_dict()
    torch.save({**state, "aux1.fc1.weight": torch.ones(1)}, tmp_path / "google.pth")
    found = pretrained_state(str(spec), tmp_path / "google.pth")
    assert (found.mean, found.std) == ((0.5,) * 3, (0.5,) * 3)
    assert load_into(spec, found.state).num_classes == 4
    image = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    rescaled = models.GoogLeNet._transform_input(
        SimpleNamespace(transform_input=True),  # type: ignore[arg-type]
        (image - mean) / std,
    )
    torch.testing.assert_close(rescaled, (image - 0.5) / 0.5)


def test_refuses_where_nothing_is_published(tmp_path: Path) -> None:
    spec = parse_architecture("resnet18")
    with pytest.raises(InvalidInputError, match="resnet18 has no published weights; give a file"):
        pretrained_state(str(spec))
    with pytest.raises(InvalidInputError, match=r"there is no file .*gone\.pt"):
        pretrained_state(str(spec), tmp_path / "gone.pt")
