"""Pruned networks compute what the masked originals compute; what cannot be is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from gnnrl_lightning.models.resnet_cifar import PaddedShortcut, resnet_cifar
from gnnrl_lightning.pruning import verify
from gnnrl_lightning.pruning.apply import apply_plan, make_plan, uniform_plan
from gnnrl_lightning.pruning.channels import magnitude
from gnnrl_lightning.pruning.compare import relative_error
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.pruning.verify import provable, verified
from gnnrl_lightning.topology import Topology, trace


def mobilenet() -> nn.Module:
    """The first blocks of MobileNet-v2."""
    settings = [[1, 16, 1, 1], [6, 24, 2, 2]]
    return torchvision.models.MobileNetV2(num_classes=10, inverted_residual_setting=settings)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: resnet_cifar(20, 10),
    "mobilenet_v2": mobilenet,
    "resnext": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [2, 1, 1, 1], num_classes=10, groups=4, width_per_group=8
    ),
}


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_equals_masked(name: str, pruning: Any) -> None:
    torch.manual_seed(0)
    model = pruning.randomize(NETWORKS[name]())
    topology = trace(model, torch.zeros(1, 3, 32, 32))
    with torch.no_grad():
        whole = model(images())
        for _ in range(3):
            kept = pruning.kept(topology)
            reference = pruning.masked(model, topology, kept)(images())
            assert relative_error(prune(model, topology, kept)(images()), reference) < 1e-4
            assert relative_error(reference, whole) > 1e-2  # otherwise nothing was removed


def test_the_identity_plan_is_bit_identical_and_leaves_the_original_alone(pruning: Any) -> None:
    model: Any = pruning.randomize(resnet_cifar(8, 10)).train()
    model.layer1[0].bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attributes = [(str(module), sorted(module.__dict__)) for module in model.modules()]
    plan = uniform_plan(trace(model, torch.zeros(1, 3, 32, 32)), model, keep=1.0)
    small = apply_plan(model, plan)
    assert [module.training for module in small.modules()] == modes
    apply_plan(model, uniform_plan(trace(model, torch.zeros(1, 3, 32, 32)), model, keep=0.5))
    assert [module.training for module in model.modules()] == modes
    assert [(str(module), sorted(module.__dict__)) for module in model.modules()] == attributes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(small.eval()(images()), model.eval()(images()))
    next(small.parameters()).data.zero_()
    assert torch.equal(before["conv1.weight"], model.state_dict()["conv1.weight"])


def test_the_pruned_network_can_be_trained(resnet8: Any, topology8: Topology, pruning: Any) -> None:
    resnet8.linear.weight.requires_grad_(False)
    small = prune(resnet8, topology8, pruning.kept(topology8)).train()
    small(images(4, 16)).square().mean().backward()
    frozen = {name for name, value in small.named_parameters() if value.grad is None}
    assert frozen == {"linear.weight"}


def _swap(model: Any) -> None:
    weight = model.layer1[0].conv1.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def _shift(model: Any) -> None:
    norm = model.layer2[0].bn1
    norm.running_mean = norm.running_mean.roll(1)


def _misplace(model: Any) -> None:
    pad = model.layer2[0].shortcut.pad
    *rest, left, right = pad.padding
    pad.padding = (*rest, left + 1, right - 1)


@pytest.mark.parametrize("tamper", [_swap, _shift, _misplace])
def test_a_wrong_network_is_refused(
    tamper: Callable[[nn.Module], None], resnet8: nn.Module, pruning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pruning.randomize(resnet8)
    topology = trace(model, torch.zeros(1, 3, 16, 16))
    widths = topology.full_widths() // 2

    def wrong(*args: Any) -> nn.Module:
        small = prune(*args)
        tamper(small)
        return small

    kept = pruning.kept(topology, widths)
    monkeypatch.setattr(verify, "prune", wrong)
    assert isinstance(verified(model, topology, kept), fx.GraphModule)
    monkeypatch.setattr(verify, "rewrite", wrong)
    with pytest.raises(ValueError, match="CifarResNet computes something else after pruning"):
        verified(model, topology, kept)


class Baked(nn.Module):
    """A network with a number of channels in `forward` that no trace shows."""

    def __init__(self, forward: Callable[["Baked", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)
        self.width = 8
        self.inner = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self, self.conv(x))


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.head(x.mean((2, 3)).view(-1, 8)),
        lambda net, x: net.head(x.mean((2, 3))) * (net.width / x.shape[1]),
        lambda net, x: net.head(x.mean((2, 3))).repeat(9 - x.shape[1], 1),
        lambda net, x: net.head(x.mean((2, 3))) if x.shape[1] == 8 else {}[x.shape[1]],
    ],
)
def test_a_forward_that_cannot_follow_is_rewritten(forward: Callable[..., Tensor], pruning: Any) -> None:
    torch.manual_seed(0)
    model = Baked(forward).eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    kept = pruning.kept(topology, torch.tensor([4]))
    small = apply_plan(model, make_plan(topology, kept))
    assert isinstance(small, fx.GraphModule)
    with torch.no_grad():
        reference = pruning.masked(model, topology, kept)(images(3, 8))
        assert relative_error(small(images(3, 8)), reference) < 1e-4


class InPlace(nn.Module):
    """It writes into every other channel: a choice of channels, which would become a copy once it is no stride."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = x.clone()
        y[:, ::2].add_(self.b(x))
        return self.head(self.c(y).relu())


def test_what_is_changed_in_place_stays(pruning: Any) -> None:
    torch.manual_seed(0)
    model = InPlace().eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    assert [(group.name, group.width) for group in topology.groups] == [("c", 6)]
    kept = [[1, 2, 5]]
    with torch.no_grad():
        reference = pruning.masked(model, topology, kept)(images(2, 8))
        assert relative_error(verified(model, topology, kept)(images(2, 8)), reference) < 1e-4


def test_what_neither_way_can_do_is_one_sentence_and_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one group had a mistake in its labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1))
    topology = trace(model, torch.zeros(1, 3, 8, 8))

    def mistaken(model: nn.Module, topology: Topology, kept: Any, values: Any = None) -> nn.Module:
        small = prune(model, topology, kept, values)
        if small[2].out_channels < 6:  # type: ignore[index]
            small[2].weight.data.mul_(2)  # type: ignore[index]
        return small

    monkeypatch.setattr(verify, "prune", mistaken)
    monkeypatch.setattr(verify, "rewrite", mistaken)
    with pytest.raises(
        ValueError, match=r"Sequential .* by surgery \(.*\) and as a rewritten graph \(.*exclude="
    ) as caught:
        verified(model, topology, [[0], [1], [2]])
    assert "\n" not in str(caught.value)
    left, way = provable(model, topology)
    assert [group.name for group in left.groups] == ["0", "3"] and way is mistaken
    assert any("neither surgery nor a rewritten graph" in reason for reason, _ in left.locked)
    assert verified(model, left, [[0], [2]])[0].out_channels == 1  # type: ignore[index]


class Auxiliary(nn.Module):
    """A second head that only training uses, as in Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.auxiliary = nn.Conv2d(8, 2, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        y = self.head(self.b(x).relu())
        return (y, self.auxiliary(x)) if self.training else y


def test_branches_of_training_alone_do_not_break_training(pruning: Any) -> None:
    torch.manual_seed(0)
    model = Auxiliary().eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    kept = pruning.kept(topology, torch.tensor([5, 3]))
    small = apply_plan(model, make_plan(topology, kept))
    assert topology.parameters(torch.tensor([5, 3])) == sum(
        p.numel() for name, p in small.named_parameters() if "auxiliary" not in name
    )
    with torch.no_grad():
        reference = pruning.masked(model, topology, kept)(images(2, 8))
        assert relative_error(small(images(2, 8)), reference) < 1e-4
    outputs = small.train()(images(2, 8))
    (outputs[0] if isinstance(outputs, tuple) else outputs).sum().backward()


def test_groups_can_be_locked_afterwards() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1))
    topology = trace(model, torch.zeros(1, 3, 8, 8), exclude=["^0"])
    less = topology.without([0], "wrong")
    assert [group.name for group in less.groups] == ["2"]
    assert set(less.locked) == {("exclude=^0", 8), ("network output", 2), ("wrong", 6)}
    assert less.macs() == topology.macs() and less.parameters() == topology.parameters()


def test_an_attention_network_is_pruned_where_that_is_safe(pruning: Any) -> None:
    torch.manual_seed(0)
    model = pruning.randomize(
        torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [7, 7], num_classes=10, stochastic_depth_prob=0)
    )
    topology = trace(model, torch.zeros(1, 3, 64, 64))
    assert {reason for reason, _ in topology.locked} == {"network output"}
    kept = pruning.kept(topology, (topology.full_widths() / 2).ceil().long())
    small = verified(model, topology, kept)
    with torch.no_grad():
        reference = pruning.masked(model, topology, kept, silent=True)(images(3, 64))
        assert relative_error(small(images(3, 64)), reference) < 1e-4
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


def test_option_a_pads_follow_what_is_kept_around_them(pruning: Any) -> None:
    model = pruning.randomize(resnet_cifar(8, 10))
    topology = trace(model, torch.zeros(1, 3, 32, 32))
    kept = pruning.kept(topology)
    small = prune(model, topology, kept)
    mask = topology.keep_mask(kept)
    for stage in ("layer2", "layer3"):
        block: Any = small.get_submodule(f"{stage}.0")
        slots = topology.slots[f"{stage}.0.conv2.weight", 0]
        quarter = len(slots) // 4
        assert isinstance(block.shortcut, PaddedShortcut)
        assert block.shortcut.pad.padding == (
            *(0, 0, 0, 0),
            int(mask[slots[:quarter]].sum()),
            int(mask[slots[-quarter:]].sum()),
        )
        assert block.conv2.out_channels == block.conv2.weight.shape[0] == int(mask[slots].sum())


def test_attributes_follow_the_weights(pruning: Any) -> None:
    torch.manual_seed(0)
    model = pruning.randomize(mobilenet())
    topology = trace(model, torch.zeros(1, 3, 32, 32))
    for module in prune(model, topology, pruning.kept(topology)).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == (module.num_features,)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


@pytest.mark.parametrize("build", [lambda: resnet_cifar(8, 10), mobilenet])
def test_plans_compose(build: Callable[[], nn.Module], pruning: Any) -> None:
    """A pruned network is a network like any other: pruning it again is pruning once to what both kept."""
    torch.manual_seed(0)
    model = pruning.randomize(build())
    topology = trace(model, torch.zeros(1, 3, 32, 32))
    first = pruning.kept(topology, (topology.full_widths() * 3 / 4).long())
    once = apply_plan(model, make_plan(topology, first))
    again = trace(once, torch.zeros(1, 3, 32, 32))
    assert again.full_widths().tolist() == [len(channels) for channels in first]
    second = pruning.kept(again, (again.full_widths() / 2).ceil().long())
    twice = verified(once, again, second)
    both = [[a[i] for i in b] for a, b in zip(first, second, strict=True)]
    with torch.no_grad():
        assert torch.equal(twice(images()), prune(model, topology, both)(images()))


def test_a_plan_of_another_network_is_refused(resnet8: nn.Module, topology8: Topology) -> None:
    plan = uniform_plan(topology8, resnet8)
    other = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    with pytest.raises(ValueError, match=r"the plan is for another network: group .* does not exist in Sequential"):
        apply_plan(other, plan)
    wider: Any = resnet_cifar(8, 10)
    wider.layer1[0].conv1, wider.layer1[0].bn1 = nn.Conv2d(16, 20, 3, padding=1), nn.BatchNorm2d(20)
    wider.layer1[0].conv2 = nn.Conv2d(20, 16, 3, padding=1)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1 has 16 channels in the plan and has 20"):
        apply_plan(wider, plan)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5])
def test_keep_is_a_fraction(keep: float, resnet8: nn.Module, topology8: Topology) -> None:
    with pytest.raises(ValueError, match=r"is not possible; it must be a fraction in \(0, 1\]"):
        uniform_plan(topology8, resnet8, keep)


def test_a_model_of_doubles_is_pruned(resnet8: nn.Module, topology8: Topology) -> None:
    small = apply_plan(resnet8.double(), uniform_plan(topology8, resnet8))
    assert {p.dtype for p in small.parameters()} == {torch.float64}


def test_importance_is_a_name_or_an_object() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 4, 1))
    weight: Any = model[0].weight
    weight.data = torch.tensor([[2.0, 2.0, 2.0], [5.0, 0.0, 0.0]])[:, :, None, None]  # l1 6 and 5, l2 3.5 and 5
    topology = trace(model, torch.zeros(1, 3, 4, 4))
    kept = {name: uniform_plan(topology, model, importance=name).groups[0].kept for name in ("l1", "l2")}
    assert kept == {"l1": (0,), "l2": (1,)}
    assert uniform_plan(topology, model) == uniform_plan(topology, model, importance=partial(magnitude, p=1))
    assert uniform_plan(topology, model, importance=partial(magnitude, p=2)).groups[0].kept == (1,)
    assert uniform_plan(topology, model, importance=lambda *_: [torch.tensor([0.0, 1.0])]).groups[0].kept == (1,)
    with pytest.raises(ValueError, match="importance=l3 must be l1 or l2"):
        uniform_plan(topology, model, importance="l3")


def test_outputs_that_are_not_finite_are_said_to_be_so(resnet8: Any, topology8: Topology) -> None:
    resnet8.linear.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="the network's own outputs are not finite"):
        apply_plan(resnet8, uniform_plan(topology8, resnet8))


def test_the_check_is_made_in_single_precision(resnet8: nn.Module, topology8: Topology) -> None:
    small = apply_plan(resnet8.bfloat16(), uniform_plan(topology8, resnet8))
    assert {p.dtype for p in (*small.parameters(), *resnet8.parameters())} == {torch.bfloat16}
