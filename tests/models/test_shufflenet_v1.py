import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_lightning.models.shufflenet_v1 import ShuffleNetV1, ShuffleUnit, channel_shuffle, shufflenet_v1

GROUPS = (1, 2, 3, 4, 8)


def convolution_macs(model: nn.Module, image_size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2 - model.fc.weight.numel()


@pytest.mark.parametrize(("groups", "macs"), [(1, 143), (2, 140), (3, 137), (4, 133), (8, 137)])
def test_macs_are_those_of_table_1(groups: int, macs: int) -> None:
    # The paper prints whole millions, and rounds 142.5 up.
    assert abs(convolution_macs(shufflenet_v1(1000, groups), 224) / 1e6 - macs) < 0.51


@pytest.mark.parametrize(("groups", "width"), [(1, 144), (2, 200), (3, 240), (4, 272), (8, 384)])
def test_widths_are_those_of_table_1(groups: int, width: int) -> None:
    model = shufflenet_v1(10, groups)
    assert isinstance(model, ShuffleNetV1)
    shapes: list[torch.Size] = []
    for stage in (model.maxpool, model.stage2, model.stage3, model.stage4):
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[1:]))
    model.eval()(torch.zeros(1, 3, 224, 224))
    assert shapes == [(24, 56, 56), (width, 28, 28), (2 * width, 14, 14), (4 * width, 7, 7)]
    assert [len(stage) for stage in (model.stage2, model.stage3, model.stage4)] == [4, 8, 4]


@pytest.mark.parametrize("groups", GROUPS)
def test_only_the_first_point_wise_convolution_is_not_grouped(groups: int) -> None:
    units = [module for module in shufflenet_v1(10, groups).modules() if isinstance(module, ShuffleUnit)]
    assert [unit.conv1.groups for unit in units] == [1] + 15 * [groups]
    assert {unit.conv3.groups for unit in units} == {groups}
    assert all(unit.conv2.groups == unit.conv2.in_channels == unit.conv1.out_channels for unit in units)
    assert units[0].conv1.out_channels == (units[0].conv1.in_channels + units[0].conv3.out_channels) // 4
    assert units[1].conv1.out_channels == units[1].conv3.out_channels // 4


def test_shuffle_deals_channels_out() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert channel_shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    x = torch.randn(2, 12, 3, 5)
    assert torch.equal(channel_shuffle(x, 4), F.channel_shuffle(x, 4))
    assert torch.equal(channel_shuffle(x, 1), x)


def test_units_add_to_their_input_or_join_it() -> None:
    x = torch.randn(2, 24, 8, 8)
    same, down = ShuffleUnit(24, 24, 1, 3, True).eval(), ShuffleUnit(24, 60, 2, 3, True).eval()
    nn.init.zeros_(same.bn3.weight)
    assert torch.equal(same(x), F.relu(x))
    out = down(x)
    assert out.shape == (2, 60, 4, 4)
    assert torch.equal(out[:, :24], F.relu(nn.AvgPool2d(3, 2, 1)(x)))


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0])
def test_every_scale_can_be_grouped(groups: int, scale: float) -> None:
    model = shufflenet_v1(7, groups, scale)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.fc.in_features == pytest.approx(scale * shufflenet_v1(7, groups).fc.in_features, rel=0.15)
    assert model.conv1.out_channels == pytest.approx(24 * scale, rel=0.34)


def test_macs_of_scaled_networks_are_those_of_the_paper() -> None:
    for scale, groups, macs in ((0.5, 1, 38), (0.5, 3, 38), (2.0, 3, 524)):
        assert convolution_macs(shufflenet_v1(1000, groups, scale), 224) / 1e6 == pytest.approx(macs, rel=0.03)


def test_it_learns_from_the_first_step() -> None:
    torch.manual_seed(0)
    model = shufflenet_v1(4, scale=0.25)
    x, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5  # it stays above 1 where the sums of a stage begin at full size


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"groups": 5}, r"^model.kwargs.groups=5 must be one of 1, 2, 3, 4, 8\.$"),
        ({"scale": 0}, r"^model.kwargs.scale=0 must be above 0, e\.g\. 0\.5\.$"),
    ],
)
def test_what_the_paper_does_not_have(kwargs: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        shufflenet_v1(10, **kwargs)
