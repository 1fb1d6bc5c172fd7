"""What cannot be proved stays, and says why; what the user got wrong is one sentence."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnnrl_lightning.topology import trace


class Net(nn.Module):
    """Two convolutions with any function between them, and two more behind."""

    def __init__(self, between: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.between = between
        self.second = nn.Conv2d(channels, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.between(self.first(x))).relu())


def prunable(model: nn.Module, **options: object) -> tuple[set[str], str]:
    topology = trace(model, torch.zeros(1, 3, 8, 8), **options)  # type: ignore[arg-type]
    return {group.name for group in topology.groups}, "; ".join(reason for reason, _ in topology.locked)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: x.cumsum(1), "cumsum has no rule"),
        (lambda x: x.softmax(1), "softmax reduces over channels"),
        (lambda x: x * torch.linspace(0, 1, 8).view(1, 8, 1, 1), "constant of fixed size"),
        (lambda x: x.roll(1, 1), "roll has the number of a channel in the code"),
        (lambda x: torch.stack([x[:, 0], *x.unbind(1)[1:]], 1), "unbind has the number of a channel in the code"),
        (lambda x: F.pad(x, (0, 0, 0, 0, -1, 1)), "pad has a number of channels in the code"),
        (lambda x: F.layer_norm(x, x.shape[1:]), "layer_norm normalises over channels and positions"),
        (lambda x: x.unsqueeze(1).mul(x.unsqueeze(2)).sum(2), "outer product of channels"),
        (lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2) @ x.flatten(2), "matmul has no rule"),
    ],
)
def test_what_has_no_proof_is_locked_and_named(between: Callable[[Tensor], Tensor], reason: str) -> None:
    groups, locked = prunable(Net(lambda x: between(x).reshape(-1, 8, 8, 8)))
    assert groups == {"second"}
    assert reason in locked


@pytest.mark.parametrize(
    "between",
    [
        lambda x: F.group_norm(x, 2),
        lambda x: x - x.amax((1, 2, 3), keepdim=True),
        lambda x: x.flip(1),
        lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1),
        lambda x: F.adaptive_max_pool2d(x, 4),
        lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
        lambda x: x * x.mean((2, 3), keepdim=True).type_as(x),
        lambda x: x.permute(0, 2, 3, 1).reshape(-1, 64, 8).transpose(1, 2).unflatten(2, (8, 8)),
        lambda x: x.roll(1, 2),
        lambda x: x.flatten(2).softmax(2).unflatten(2, (8, 8)),
    ],
)
def test_what_only_moves_or_scales_channels_is_free(between: Callable[[Tensor], Tensor]) -> None:
    groups, locked = prunable(Net(between))
    assert groups >= {"first", "second"}
    assert locked == "network output"


def test_a_reshape_into_blocks_shrinks_the_blocks() -> None:
    """Read in blocks of 4, channels go together with the one at the same place of the other block."""
    topology = trace(Net(lambda x: x.unflatten(1, (2, 4)).softmax(1).flatten(1, 2)), torch.zeros(1, 3, 8, 8))
    assert topology.full_widths().tolist() == [4, 6]
    slots = topology.slots["first.weight", 0]
    assert torch.equal(slots[:4], slots[4:])


def test_a_lock_counts_its_channels() -> None:
    topology = trace(Net(lambda x: x.cumsum(1)), torch.zeros(1, 3, 8, 8))
    assert dict(topology.locked) == {"cumsum has no rule": 8, "network output": 4}


def test_a_spatial_map_of_one_channel_leaves_the_channels_that_it_scales_free() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.map = nn.Conv2d(8, 1, 1)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(x * self.map(x).sigmoid())

    topology = trace(Attention(), torch.zeros(1, 3, 8, 8))
    assert topology.groups[0].width == 8


def test_channels_that_are_broadcast_over_a_stack_are_tied_to_it() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.gate = (nn.Conv2d(3, 8, 1) for _ in range(3))
            self.head = nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.stack([self.a(x), self.b(x)], 1) * self.gate(x).unsqueeze(1)
            return self.head(both.flatten(1, 2))

    (group,) = trace(Branches(), torch.zeros(1, 3, 8, 8)).groups
    assert group.width == 8
    assert {m.parameter for m in group.members} >= {"a.weight", "b.weight", "gate.weight", "head.weight"}


def test_exclude_keeps_the_layers_it_matches_and_what_is_tied_to_them() -> None:
    groups, locked = prunable(Net(lambda x: x), exclude=[r"^first\.weight"])
    assert groups == {"second"}
    assert "exclude=^first" in locked


def test_keep_ends_keeps_the_first_and_the_last_layers_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 7, 1), nn.Conv2d(7, 6, 1), nn.Conv2d(6, 4, 1))
    topology = trace(model, torch.zeros(1, 3, 8, 8), keep_ends=True)
    assert {group.name for group in topology.groups} == {"1"}
    assert set(topology.locked) == {("network output", 4), ("keep_ends=true", 14)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ["nowhere"]}, r"exclude='nowhere' matches no parameter"),
        ({"exclude": ["("]}, r"exclude='\(' is not a regular expression"),
        ({"divisor": 0}, r"divisor=0 must be at least 1"),
        ({"min_keep": 1.5}, r"min_keep=1\.5 must be in \[0, 1\]"),
        ({"exclude": ["."]}, r"nothing in Net can be pruned: .*exclude=\."),
    ],
)
def test_bad_options_are_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        trace(Net(lambda x: x), torch.zeros(1, 3, 8, 8), **options)
    assert "\n" not in str(caught.value)


def test_a_network_that_cannot_be_traced_is_one_sentence() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else -self.conv(x)

    with pytest.raises(ValueError, match=r"Branching cannot be traced .* \(1, 3, 8, 8\)") as caught:
        trace(Branching(), torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = Net(lambda x: x).train()
    model.second.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, torch.zeros(1, 3, 8, 8))
    assert [m.training for m in model.modules()] == [m is not model.second for m in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_locked_channel_counts_once() -> None:
    """However many parameters it runs through, and for however many reasons."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3))
    topology = trace(network, torch.zeros(1, 3, 16, 16), exclude=["^0[.]", "^1[.]"])
    assert dict(topology.locked) == {"exclude=^0[.]": 8, "exclude=^1[.]": 8, "network output": 4}
    assert "6 channels to prune, 12 locked" in repr(topology)
