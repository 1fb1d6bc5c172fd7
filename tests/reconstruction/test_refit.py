"""New weights are those of least squares; what is a combination of what stays costs nothing; few images do no harm."""

import logging

import pytest
import torch
from closed_forms import closed_forms, error, pictures
from torch import Tensor, nn

from gnnrl_lightning.reconstruction.moments import Moments, factored
from gnnrl_lightning.reconstruction.refit import refit


def solved_exactly(moments: list[Moments]) -> None:
    """As good as no ridge, as least squares has none."""
    for each in moments:
        each.ridge = 1e-12


@pytest.mark.parametrize("centred", [True, False])
def test_refit_is_least_squares(centred: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2, bias=centred), nn.Flatten(), nn.Linear(16, 3)
    )
    found = closed_forms(model, pictures(200))
    solved_exactly(found.statistics.moments)
    kept = [[0, 2, 3], list(range(4))]
    values = refit(found.statistics, found.topology.keep_mask(kept))
    with torch.no_grad():
        x = torch.relu(model[0](found.images[:]))
        patches = nn.functional.unfold(x, 3, stride=2).transpose(1, 2).flatten(0, 1).double()
        target = patches @ model[2].weight.flatten(1).T.double()
        columns = patches.unflatten(1, (6, 9))[:, kept[0]].flatten(1)
        if centred:
            columns = torch.cat([columns, torch.ones(len(columns), 1)], 1)
        solution = torch.linalg.lstsq(columns, target).solution.T
    expected = solution[:, : 3 * 9].view(4, 3, 3, 3)
    assert torch.allclose(values["2.weight"][:, kept[0]].double(), expected, atol=1e-4)
    if centred:
        assert torch.allclose(values["2.bias"].double(), solution[:, -1] + model[2].bias.double(), atol=1e-4)
    else:
        assert "2.bias" not in values
    assert "0.weight" not in values and "4.weight" not in values  # nothing of what they read goes


class Shared(nn.Module):
    """One weight that reads two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.both = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return (self.both(x) + self.both(x.flip(3))).mean((2, 3))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.left(x).relu(), self.right(x).relu()], 1)).mean((2, 3))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last((x + self.block(x)).relu()).mean((2, 3))


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


NETWORKS = {
    "conv": lambda: chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)),
    "strided": lambda: chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2)),
    "no bias": lambda: chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False)),
    "grouped": lambda: chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2)),
    "transposed": lambda: chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, stride=2)),
    "depth-wise": lambda: chain(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ),
    "flattened": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)),
    "shared": Shared,
    "concatenated": Concatenated,
    "residual": Residual,
}


def double(model: nn.Module) -> None:
    """Channel 1 is twice channel 0, channel 5 is half of channel 4; in all layers but the last, so through sums too."""
    for name, value in model.state_dict().items():
        if value.dim() and len(value) == 8 and not (value.dim() > 1 and value.shape[1] == 1) and "running" not in name:
            value[1], value[5] = 2 * value[0], value[4] / 2
    for name, value in model.named_parameters():
        if value.dim() > 1 and value.shape[:2] == (8, 1):  # depth-wise kernels: the same for what belongs together
            value.data[1], value.data[5] = value.data[0], value.data[4]
            model.get_parameter(name.replace("weight", "bias")).data.zero_()


@pytest.mark.parametrize("name", NETWORKS)
def test_combinations_of_what_stays_cost_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    double(model)
    found = closed_forms(model, pictures(1024), samples=64)
    channels = {8: [0, 2, 3, 4, 6, 7], 4: [0, 2, 3]}  # grouped: a decision takes one channel of each block
    kept = [channels.get(group.width, list(range(group.width))) for group in found.topology.groups]
    assert sum(map(len, kept)) < int(found.topology.full_widths().sum())
    others = pictures(64, seed=1)
    assert error(found, kept, found.values(kept), others) < 2e-3 < 0.05 < error(found, kept, {}, others)


def trained(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 5),
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_few_images_do_no_harm(count: int, caplog: pytest.LogCaptureFixture) -> None:
    model = trained()
    with caplog.at_level(logging.INFO):
        found = closed_forms(model, pictures(count))
        half = [sorted(order[8:].tolist()) for order in found.orders]
    others = pictures(64, seed=1)
    assert error(found, half, found.values(half), others) <= 1.01 * error(found, half, {}, others)
    if count == 1:
        said = [message for message in caplog.messages if "the weights as they are" in message]
        assert len(said) == 1 and "2.weight" in said[0]


@pytest.mark.parametrize("alike", ["all", "each of one colour"])
def test_constant_images_do_no_harm(alike: str, caplog: pytest.LogCaptureFixture) -> None:
    images = pictures(16)
    if alike == "all":
        images.pixels[:] = images.pixels[:1].clone()
    else:
        images.pixels[:] = images.pixels[:, :, :1, :1].clone()
    with caplog.at_level("INFO"):
        found = closed_forms(trained(), images)
        half = [sorted(order[8:].tolist()) for order in found.orders]
    others = pictures(64, seed=3)
    assert error(found, half, found.values(half), others) == pytest.approx(error(found, half, {}, others), rel=1e-5)
    assert "the images are all alike, or each is of one colour" in caplog.text


def test_a_norm_over_tokens_takes_no_mean_of_channels() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.norm = nn.Conv2d(3, 8, 1), nn.Linear(8, 6, bias=False), nn.BatchNorm1d(64)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.mix(self.conv(x).relu().flatten(2).transpose(1, 2))).mean(1))

    torch.manual_seed(0)
    found = closed_forms(Tokens(), pictures(64))
    assert not any(each.reader.means for each in found.statistics.moments)
    half = [list(range(-(-group.width // 2))) for group in found.topology.groups]
    others = pictures(64, seed=3)
    assert error(found, half, found.values(half), others) < error(found, half, {}, others)


def test_one_mix_for_all_taps_is_solved_about_the_mean_of_each() -> None:
    """Behind flatten, where positions have means of their own, against least squares with an intercept for each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5))
    images = pictures(100)
    pattern = torch.randint(0, 120, (1, 3, 8, 8), generator=torch.Generator().manual_seed(5))
    images.pixels[:] = (images.pixels // 2 + pattern).to(torch.uint8)
    found = closed_forms(model, images)
    (moments,) = (each for each in found.statistics.moments if each.reader.weight == "3.weight")
    assert moments.mixed
    with torch.no_grad():
        x = model[:2](images[:]).double().flatten(2)  # [images, channels, positions]
    centred = (x - x.mean(0)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(moments.gram[0], centred.mT @ centred / len(centred), rtol=1e-4, atol=1e-6)


def test_the_largest_moments_are_mixed_until_all_fit() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    torch.manual_seed(0)
    found = closed_forms(model, pictures(400), memory_gb=0.003)
    assert {each.reader.weight: each.mixed for each in found.statistics.moments} == {
        "2.weight": False, "4.weight": True, "7.weight": False,
    }  # fmt: skip


def test_weights_that_are_not_finite_are_one_sentence() -> None:
    model = trained()
    model[2].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^2.weight of the network has values that are not finite; load other"):
        _ = closed_forms(model, pictures(4)).statistics


def test_inputs_that_hardly_vary_about_a_large_mean_are_no_crash() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    model[1].weight.data.fill_(1e-9)
    model[1].bias.data.uniform_(1, 2)
    found = closed_forms(model, pictures(100))
    assert all(sorted(order.tolist()) == list(range(len(order))) for order in found.orders)
    kept = [list(range(0, 32, 2))] * 2
    assert error(found, kept, found.values(kept), pictures(20, seed=1)) < float("inf")


@pytest.mark.parametrize("least", [1e-3, 0.0, -1e-12])
def test_a_factor_is_of_the_matrix_or_of_the_nearest_that_has_one(least: float) -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.tensor([1.0, 1, 1, 1, least, least], dtype=torch.float64)) @ basis.mT
    factor = factored(matrix.unsqueeze(0))[0]
    assert float((factor @ factor.mT - matrix).abs().max()) <= 20 * abs(min(least, 0)) + 1e-14


def test_too_little_memory_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"refit\.memory_gb=.* is not enough") as caught:
        _ = closed_forms(trained(), pictures(4), memory_gb=1e-7).statistics
    assert "\n" not in str(caught.value)


def test_a_layer_that_does_not_fit_into_memory_keeps_its_weights(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 512, 1), nn.ReLU(), nn.Conv2d(512, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    torch.manual_seed(0)
    with caplog.at_level("INFO"):
        found = closed_forms(model, pictures(64), memory_gb=1e-3)
        assert [each.reader.weight for each in found.statistics.moments] == ["4.weight"]
    assert "refit: 2.weight stays as it is; refit.memory_gb=1 would be enough for it" in caplog.text
    assert all(sorted(order.tolist()) == list(range(len(order))) for order in found.orders)
    assert found.values([[0, 5], [1, 2, 3]]).keys() == {"4.weight", "4.bias"}


def test_refit_is_off_with_one_setting_and_the_same_images_give_the_same() -> None:
    found = closed_forms(trained(), pictures(32), enabled=False)
    assert found.values([[0], [0]]) == {}
    first, second = (closed_forms(trained(), pictures(32)) for _ in range(2))
    kept = [[0, 1, 2], [3, 4, 5]]
    assert all(torch.equal(a, b) for a, b in zip(first.orders, second.orders, strict=True))
    assert all(torch.equal(value, second.values(kept)[name]) for name, value in first.values(kept).items())
    assert first.values([list(range(16))] * 2) == {}
