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
        (lambda x: x - x.mean(1, keepdim=True), "mean reduces over channels"),
        (lambda x: x * torch.linspace(0, 1, 8).view(1, 8, 1, 1), "constant of fixed size"),
        (lambda x: x.roll(1, 1), "roll has a number of channels in the code"),
        (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), "chunk has a number of channels in the code"),
        (lambda x: x.view(1, 2, 4, 8, 8).transpose(1, 2).reshape(1, 8, 8, 8), "view has a number of channels"),
        (lambda x: F.group_norm(x, 2), "group_norm normalises over channels"),
        (lambda x: F.layer_norm(x, x.shape[1:]), "layer_norm normalises over channels"),
        (lambda x: x.unsqueeze(1).mul(x.unsqueeze(2)).sum(2), "outer product of channels"),
        (lambda x: x.index_select(1, torch.arange(7, -1, -1)), "index_select has no rule"),
    ],
)
def test_what_has_no_proof_is_locked_and_named(between: Callable[[Tensor], Tensor], reason: str) -> None:
    groups, locked = prunable(Net(between))
    assert groups == {"second"}
    assert reason in locked


@pytest.mark.parametrize(
    "between",
    [
        lambda x: F.group_norm(x, 8),
        lambda x: x.flip(1),
        lambda x: F.adaptive_max_pool2d(x, 4),
        lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
        lambda x: x * x.mean((2, 3), keepdim=True).type_as(x),
        lambda x: x.permute(0, 2, 3, 1).reshape(1, 64, 8).transpose(1, 2).unflatten(2, (8, 8)),
    ],
)
def test_what_only_moves_or_scales_channels_is_free(between: Callable[[Tensor], Tensor]) -> None:
    groups, _ = prunable(Net(between))
    assert groups == {"first", "second"}


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


class FunctionalShortcut(nn.Module):
    """A CIFAR residual block whose option A pads by numbers in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv2(self.conv1(x).relu())
        out = out + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(out.relu().mean((2, 3)))


def test_functional_padding_of_channels_is_locked_and_named() -> None:
    groups, locked = prunable(FunctionalShortcut())
    assert groups == {"conv1"}
    assert "pad has a number of channels in the code" in locked


def test_exclude_keeps_the_layers_it_matches_and_what_is_tied_to_them() -> None:
    groups, locked = prunable(Net(lambda x: x), exclude=[r"^first\.weight"])
    assert groups == {"second"}
    assert "exclude=^first" in locked


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
