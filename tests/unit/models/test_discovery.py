"""Finding the blocks and the last layer of networks that the tool has never seen."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.models.discovery import find_structure
from oodcli.models.layout import Layout


class Residual(nn.Module):
    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width // stride, width, 3, padding=1, stride=stride)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x).relu())
        return (y + x if self.skip else y).relu()


class Pooled(nn.Module):
    """Features, their mean over positions, and a last layer."""

    def __init__(self, features: nn.Module, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.features = features
        self.fc = nn.Linear(width, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean(dim=(2, 3)))


class Layer(nn.Module):
    """An encoder layer that writes over what it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x += self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm(x))


class Transformer(nn.Module):
    """Class tokens and patches; the first class token is read."""

    def __init__(self, *, prefix: int = 1, last: bool = False, merge: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.tokens = nn.Parameter(torch.randn(1, prefix, 8))
        self.last, self.merge = last, merge
        self.layers = nn.ModuleList([Layer(8) for _ in range(3)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.tokens.expand(len(x), -1, -1)
        x = torch.cat([patches, tokens] if self.last else [tokens, patches], dim=1)
        for layer in self.layers:
            x = layer(x)
            if self.merge:
                x = x[:, ::2].contiguous()
        return self.head(x[:, 0])


def plain(*layers: nn.Module) -> Pooled:
    return Pooled(nn.Sequential(*layers), 8)


def test_residual_blocks_are_blocks_and_the_stem_is_none() -> None:
    stages = [nn.Sequential(Residual(w, s), Residual(w)) for w, s in ((8, 2), (16, 2))]
    found = find_structure(Pooled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *stages), 16), "own")
    assert list(found.blocks) == [
        f"features.{stage}.{block}" for stage in (2, 3) for block in (0, 1)
    ]
    assert found.last.path == "fc"
    assert found.layouts == {}
    assert found.channels_last
    assert found.text == (
        "own: 4 blocks (Residual) from features.2.0 to features.3.1; last layer fc"
    )


def test_a_block_without_shortcut_is_not_cut_where_its_likes_are_whole() -> None:
    """Its two convolutions feed each other only, and yet it is one unit."""
    found = find_structure(
        Pooled(nn.Sequential(nn.Conv2d(3, 4, 1), Residual(8, 2), Residual(8)), 8), "own"
    )
    assert list(found.blocks) == ["features.1", "features.2"]


def test_in_a_plain_network_convolutions_count_with_what_follows_but_not_with_pooling() -> None:
    found = find_structure(
        plain(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3), nn.AvgPool2d(3, stride=1, padding=1),
        ),
        "own",
    )  # fmt: skip
    assert list(found.blocks) == ["features.2", "features.5", "features.7"]


def test_a_module_that_is_used_twice_is_no_block() -> None:
    relu = nn.ReLU()
    found = find_structure(plain(nn.Conv2d(3, 8, 3), relu, nn.Conv2d(8, 8, 3), relu), "own")
    assert list(found.blocks) == ["features.0", "features.2"]


class Dense(nn.Module):
    """Every convolution also feeds the one after the next."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(c, 4, 3, padding=1) for c in (3, 7, 8)])
        self.end = nn.ModuleList([nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)])
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.convs[0](x)
        second = self.convs[1](torch.cat([x, first], dim=1))
        third = self.convs[2](torch.cat([first, second], dim=1))
        x = torch.cat([second, third], dim=1)
        return self.fc(self.end[1](self.end[0](x)).mean(dim=(2, 3)))


def test_what_feeds_more_than_the_next_unit_is_no_block() -> None:
    assert list(find_structure(Dense(), "own").blocks) == ["end.0", "end.1"]


@pytest.mark.parametrize("prefix", [1, 3])
def test_class_tokens_are_skipped_though_a_layer_writes_over_them(prefix: int) -> None:
    found = find_structure(Transformer(prefix=prefix), "own")
    assert found.last.path == "head"
    assert found.layouts == {f"layers.{i}": Layout("tokens", prefix) for i in range(3)}


def test_a_network_that_views_its_maps_is_distinguished_from_one_that_takes_any_memory() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 4), nn.Conv2d(4, 4, 3, 4)
            self.fc = nn.Linear(4 * 2 * 2, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv2(F.relu(self.conv1(x))))
            return self.fc(x.view(len(x), -1))

    found = find_structure(Flat(), "own")
    assert not found.channels_last
    # 64 would not do: this network was made for 32, and one after the other is tried.
    assert list(found.blocks) == ["conv1", "conv2"]


class Ends(nn.Module):
    """A network of two convolutions whose features end as it is told."""

    def __init__(self, end: Callable[["Ends", Tensor], object]) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.fc, self.other = nn.Linear(8, 5), nn.Linear(8, 5)
        self.conv = nn.Conv2d(8, 5, 1)
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self, self.features(x))


def mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda n, x: (mean(x), x), "the logits of own are not the output of a linear layer"),
        (lambda n, x: "fc", "returns no tensor for 2 images, not logits (n, k)"),
        (lambda n, x: n.conv(x), "returns (2, 5, 60, 60) for 2 images, not logits (n, k)"),
        (lambda n, x: mean(n.conv(x).relu()), "are not the output of a linear layer, nor of"),
        (lambda n, x: n.fc(mean(x)).softmax(1), "of the linear layer fc, but changed after it"),
        (
            lambda n, x: n.fc(mean(x)).square_(),
            "the last layer fc of own is not linear in its input",
        ),
        (
            lambda n, x: (n.fc(mean(x)) + n.other(mean(x))) / 2,
            "are computed from several heads (fc, other); build it with one of them",
        ),
        (
            lambda n, x: n.fc(x.flatten(2).transpose(1, 2)).flatten(0, 1)[: len(x)],
            "the logits of own are not the output of a linear layer",
        ),
        (lambda n, x: n.fc(F.pad(n.fc(mean(x)), (0, 3))), "own uses its last layer fc twice"),
    ],
)  # fmt: skip
def test_refuses_a_network_whose_end_is_no_linear_layer(
    end: Callable[[Ends, Tensor], object], message: str
) -> None:
    with pytest.raises(InvalidInputError) as error:
        find_structure(Ends(end), "own")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Pooled(nn.Conv2d(3, 8, 3), 8), "own has no chain of at least two units"),
        (Transformer(last=True), "that do not depend on the image are not the first ones"),
        (Transformer(merge=True), "changes the number of its tokens from 65 to 33"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(7, 5)),
            "own does not accept images of the sizes that",
        ),
    ],
)
def test_refuses_a_network_whose_blocks_cannot_be_read(module: nn.Module, message: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        find_structure(module, "own")
    assert message in str(error.value)


def test_says_that_a_last_layer_has_no_bias() -> None:
    convs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    found = find_structure(Pooled(convs, 8, bias=False), "own")
    assert not found.last.has_bias
    assert found.text.endswith("last layer fc, with a bias of zero added")


def test_dissecting_leaves_no_hook_behind() -> None:
    module = Transformer()
    find_structure(module, "own")
    for each in module.modules():
        assert not each._forward_hooks
        assert not each._forward_pre_hooks


@pytest.mark.parametrize("tokens", [17, 13])
def test_tokens_are_read_as_maps_without_their_prefix(tokens: int) -> None:
    output = torch.randn(2, tokens, 6, generator=torch.Generator().manual_seed(0))
    maps = Layout("tokens", 1).maps(output)
    assert maps.shape == ((2, 6, 4, 4) if tokens == 17 else (2, 6, 12, 1))
    assert torch.equal(maps.flatten(2).transpose(1, 2), output[:, 1:])


def test_channels_at_the_end_are_brought_to_the_front() -> None:
    output = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Layout("nhwc").maps(output)[:, 5], output[..., 5])
