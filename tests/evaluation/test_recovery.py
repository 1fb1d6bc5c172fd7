import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_lightning.data import IMAGENET, HeldImages
from gnnrl_lightning.evaluation.recovery import BatchNormRecovery, FinetuneRecovery, NoRecovery, recalibrate
from gnnrl_lightning.models.resnet_cifar import resnet_cifar

PIXELS = torch.randint(256, (24, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
IMAGES = HeldImages(PIXELS, IMAGENET)
LABELS = torch.arange(24) % 4


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet_cifar(8, 4).eval()


def first(count: int) -> HeldImages:
    return HeldImages(PIXELS[:count], IMAGENET)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_statistics_are_the_mean_over_batches() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, momentum=0.3)).eval()
    model[1].running_mean.fill_(7.0)
    recalibrate(model, IMAGES, batch_size=8)
    with torch.no_grad():
        batches = [model[0](batch).transpose(0, 1).flatten(1) for batch in IMAGES[:].split(8)]
    mean = torch.stack([batch.mean(1) for batch in batches]).mean(0)
    variance = torch.stack([batch.var(1, unbiased=True) for batch in batches]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == 0.3


def test_a_last_image_alone_is_left_out() -> None:
    """One image of one pixel has no variance, and a batch norm in training mode would refuse it."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval()
    recalibrate(model, first(17), batch_size=8)
    assert model[1].num_batches_tracked == 2


@pytest.mark.parametrize(("images", "batch_size"), [(1, 8), (5, 1)])
def test_statistics_stay_where_they_cannot_be_estimated(network: nn.Module, images: int, batch_size: int) -> None:
    network.bn1.running_mean.fill_(7.0)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=f"{images} images in batches of {batch_size} "):
        recalibrate(network, first(images), batch_size)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.bn1.momentum is not None and not network.bn1.training


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": "abc"}, r"recovery\.images=abc must be a whole number of at least 2\."),
        ({"images": 1}, r"recovery\.images=1 must be a whole number of at least 2\."),
        ({"images": 2.5}, r"recovery\.images=2\.5 must"),
        ({"images": None}, r"recovery\.images=None must"),
        ({"batch_size": 1}, r"recovery\.batch_size=1 must be a whole number of at least 2\."),
        ({"batch_size": True}, r"recovery\.batch_size=True must"),
        ({"steps": 0}, r"recovery\.steps=0 must be a whole number of at least 1\."),
        ({"lr": 0}, r"recovery\.lr=0 must be a number above 0\."),
        ({"lr": "abc"}, r"recovery\.lr=abc must be a number above 0\."),
        ({"lr": float("nan")}, r"recovery\.lr=nan must"),
        ({"lr": float("inf")}, r"recovery\.lr=inf must"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"images": 24, "batch_size": 8, "steps": 6, "lr": 0.05}
    with pytest.raises(ValueError, match=said):
        FinetuneRecovery(**{**settings, **changes})
    if changes.keys() <= {"images", "batch_size"}:
        with pytest.raises(ValueError, match=said):
            BatchNormRecovery(**{"images": 24, "batch_size": 8, **changes})


@pytest.mark.parametrize("training", [True, False])
def test_weights_and_modes_stay(network: nn.Module, training: bool) -> None:
    network.train(training)
    network.layer1.eval()  # as a frozen part of a network
    before = weights(network)
    modes = {name: module.training for name, module in network.named_modules()}
    recalibrate(network, IMAGES, 8)
    assert equal(weights(network), before)
    assert {name: module.training for name, module in network.named_modules()} == modes


def test_networks_without_batch_norm_pass() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    before = weights(model)
    recalibrate(model, IMAGES, 8)
    assert equal(weights(model), before)


def test_batch_norm_recovery(network: nn.Module) -> None:
    twin = copy.deepcopy(network)
    BatchNormRecovery(images=24, batch_size=8)(network, IMAGES, LABELS)
    recalibrate(twin, IMAGES, 8)
    assert torch.equal(network.bn1.running_mean, twin.bn1.running_mean)
    assert network.bn1.running_mean.abs().max() > 0


def test_no_recovery(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    NoRecovery()(network, IMAGES, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_finetuning_lowers_the_loss_and_repeats(network: nn.Module) -> None:
    network = nn.Sequential(network, nn.Dropout(0.2)).eval()
    twin = copy.deepcopy(network)
    before = weights(network)
    recovery = FinetuneRecovery(images=24, batch_size=8, steps=6, lr=0.05)
    recalibrated = copy.deepcopy(network)
    recalibrate(recalibrated, IMAGES, 8)
    recovery(network, IMAGES, LABELS)
    torch.rand(5)  # neither reads the global generator …
    state = torch.get_rng_state()
    recovery(twin, IMAGES, LABELS)
    assert torch.equal(torch.get_rng_state(), state)  # … nor moves it
    assert equal(weights(network), weights(twin))
    assert not equal(weights(network), before)
    assert not network.training
    with torch.no_grad():
        assert F.cross_entropy(network(IMAGES[:]), LABELS) < F.cross_entropy(recalibrated(IMAGES[:]), LABELS)


def test_finetuning_on_fewer_images_than_a_batch(network: nn.Module) -> None:
    before = weights(network)
    FinetuneRecovery(images=5, batch_size=8, steps=3, lr=0.01)(network, first(5), LABELS[:5])
    assert not equal(weights(network), before)
