"""Weights that are computed, masked, shared or transposed on their way to a layer."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import gnnrl_lightning as gl

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class Shared(nn.Module):
    """A head that the levels of a pyramid share."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.head, self.out = nn.Conv2d(3, 16, 3, padding=1), head, nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        levels = [h, F.max_pool2d(h, 2), F.max_pool2d(h, 4)]
        return torch.stack([self.out(self.head(level).relu()).mean((2, 3)) for level in levels]).sum(0)


class Masked(nn.Conv2d):
    """As in PixelCNN: a pixel does not see those that come after it."""

    def __init__(self, inputs: int, outputs: int, full: bool = False, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups)
        mask = torch.ones(self.weight.shape if full else (1, 1, 3, 3))
        mask[..., 1, 2:] = 0
        mask[..., 2, :] = 0
        if full:  # a lottery ticket
            mask *= torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) > 0.3
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.fc(x.flatten(1)).relu(), self.fc.weight.t())


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["standardised", "weight_norm"])
def test_what_is_computed_several_times_is_one_weight(kind: str) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 16, 3, padding=1)
    model = Shared(Standardised(16, 16, 3, padding=1) if kind == "standardised" else weight_norm(plain)).eval()
    topology = gl.trace(model, X)
    for keep in (1.0, 0.75, 0.5):
        plan = gl.uniform_plan(topology, model, keep)
        small = gl.apply_plan(model, plan)
        assert size(small) == int(topology.parameters(torch.tensor(plan.widths))) <= size(model)
    assert len([name for name, _ in small.named_parameters()]) == 6


def leak(model: nn.Module) -> float:
    """How much the upper half of the outputs depends on the lower half of the inputs."""
    x = X.clone().requires_grad_()
    copy.deepcopy(model).eval()(x)[:, :, 3, 3].sum().backward()
    assert x.grad is not None
    return float(x.grad[:, :, 4:].abs().max())


@pytest.mark.parametrize(
    "layer",
    [Masked(16, 16), Masked(16, 16, full=True), Masked(16, 16, full=True, groups=4), Masked(16, 16, groups=16)],
    ids=["one mask", "a mask for each weight", "in groups", "depth-wise"],
)
def test_a_mask_outlives_pruning_and_training(layer: Masked) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Masked(3, 16), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    topology = gl.trace(model, X)
    small = gl.apply_plan(model, gl.uniform_plan(topology, model))
    assert size(small) < 0.6 * size(model)
    assert leak(model) == leak(small) == 0
    optimizer = torch.optim.SGD(small.train().parameters(), 0.1)
    small(X).square().mean().backward()
    optimizer.step()
    assert leak(small) == 0


def test_what_is_computed_with_buffers_stays_whole_and_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), spectral_norm(nn.Conv2d(8, 8, 3)), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.Conv2d(12, 4, 1),
    ).eval()  # fmt: skip
    topology = gl.trace(model, X)
    assert [group.name for group in topology.groups] == ["4"]
    assert any("computes with the buffer" in reason for reason, _ in topology.locked)


def test_a_weight_that_is_read_both_ways_counts_once() -> None:
    torch.manual_seed(0)
    model = Autoencoder().eval()
    x = torch.randn(2, 3, 4, 4)
    topology = gl.trace(model, x)
    for keep in (1.0, 0.75, 0.5, 0.25):
        plan = gl.uniform_plan(topology, model, keep)
        small = gl.apply_plan(model, plan)
        assert size(small) == int(topology.parameters(torch.tensor(plan.widths))) == round(1536 * keep + 32 * keep)
        assert isinstance(small, Autoencoder) and small.fc.weight.shape[0] == 32 * keep


@pytest.mark.parametrize("model", [Autoencoder(), nn.Sequential(Masked(3, 16), nn.ReLU(), Masked(16, 8))])
def test_such_weights_are_not_refitted(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with caplog.at_level("INFO"):
        found = gl.search(model.eval(), x, 0.5, score=lambda _: 1.0, agent="closed_form", finish=False)
    assert "keep their weights, without rule or memory for them" in caplog.text
    assert found.delivered.final.weights in ("cut", "refitted")
