"""What is given as a network, and in which state."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from torchvision.models import resnet18

import gnnrl_lightning as gl

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Keeps(Plain):
    """Keeps an activation as attribute."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x).relu()
        return self.b(self.last)


class Aliased(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3)
        self.layers = nn.ModuleList([self.stem, nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 3)])
        self.depthwise = self.layers[1]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def hooked() -> nn.Module:
    model: Any = Plain()
    model.a, model.b = weight_norm(model.a), weight_norm(model.b)
    return model


def used(model: nn.Module) -> nn.Module:
    model(X).sum().backward()
    return model


GIVEN: dict[str, Callable[[], nn.Module]] = {
    "after a backward pass": lambda: used(Plain()),
    "with an activation kept": lambda: used(Keeps()),
    "old weight norm, fresh": hooked,
    "old weight norm, used": lambda: used(hooked()),
    "compiled": lambda: torch.compile(Plain()),  # type: ignore[return-value]
    "data parallel": lambda: nn.DataParallel(Plain()),
    "half": lambda: Plain().half(),
    "bfloat16": lambda: Plain().bfloat16(),
    "double": lambda: Plain().double(),
    "training": lambda: Plain().train(),
    "frozen": lambda: Plain().requires_grad_(False),
    "aliased": Aliased,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("given", GIVEN)
def test_a_network_in_any_state_is_pruned(given: str) -> None:
    model = GIVEN[given]()
    kind = next(model.parameters()).dtype
    topology = gl.trace(model, X.to(kind))
    plan = gl.uniform_plan(topology, model)
    small = gl.apply_plan(model, plan)
    assert {parameter.dtype for parameter in small.parameters()} == {kind}
    assert small(X.to(kind)).shape == model(X.to(kind)).shape
    left = sum(parameter.numel() for parameter in small.parameters())
    assert left == int(topology.parameters(torch.tensor(plan.widths)))
    if given == "aliased":
        convolutions = [module for module in small.modules() if isinstance(module, nn.Conv2d)]
        assert [(each.in_channels, each.out_channels, each.groups) for each in convolutions] == [
            (3, 8, 1), (8, 8, 8), (8, 8, 1),
        ]  # fmt: skip


def test_channels_last_stays() -> None:
    model = resnet18().eval().to(memory_format=torch.channels_last)
    small = gl.apply_plan(model, gl.uniform_plan(gl.trace(model, X), model))
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_widths_may_be_lists() -> None:
    topology = gl.trace(Plain(), X)
    assert topology.macs([8]) == topology.macs(torch.tensor([8]))  # type: ignore[call-overload]
    assert topology.parameters([8]) == topology.parameters(torch.tensor([8]))  # type: ignore[call-overload]


with torch.device("meta"):
    EMPTY = Plain()
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "state dict": (lambda: gl.trace(Plain().state_dict(), X), "load_state_dict it into the network first"),  # type: ignore[arg-type]
    "two inputs": (lambda: gl.trace(Plain(), (X, X)), "does not take the example input: too many positional"),
    "a shape": (lambda: gl.trace(Plain(), (1, 3, 16, 16)), "the example input is a tuple; it must be a batch"),
    "numpy": (lambda: gl.trace(Plain(), X.numpy()), "the example input is a ndarray; it must be a batch"),
    "swapped": (lambda: gl.uniform_plan(Plain(), gl.trace(Plain(), X)), "the order is uniform_plan(topology, model)"),  # type: ignore[arg-type]
    "swapped plan": (
        lambda: gl.apply_plan(gl.uniform_plan(gl.trace(Plain(), X), Plain()), Plain()),  # type: ignore[arg-type]
        "the order is apply_plan(model, plan)",
    ),
    "swapped save": (
        lambda: gl.save_pruned("x", gl.uniform_plan(gl.trace(Plain(), X), Plain()), Plain()),  # type: ignore[arg-type]
        "the order is save_pruned(folder, network, plan)",
    ),
    "meta": (
        lambda: gl.apply_plan(EMPTY, gl.uniform_plan(gl.trace(Plain(), X), Plain())),
        "has weights on the meta device, without values; load them first",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_sentence(mistake: str) -> None:
    call, said = WRONG[mistake]
    with pytest.raises(gl.UserError) as caught:
        call()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_lie_otherwise_in_memory() -> None:
    model = Plain()
    model.a.weight = nn.Parameter(model.a.weight.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))
    model.b.bias = nn.Parameter(torch.randn(16)[::2])
    model.register_buffer("scale", torch.ones(1).expand(16))
    assert not model.a.weight.is_contiguous() and not model.b.bias.is_contiguous()
    small = gl.apply_plan(model, gl.uniform_plan(gl.trace(model, X), model))
    assert isinstance(small, Plain) and small.a.weight.shape == (8, 3, 3, 3)
