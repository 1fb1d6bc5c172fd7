import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from gnnrl_lightning.data import IMAGENET, HeldImages, Preprocessing
from gnnrl_lightning.evaluation.recovery import BatchNormRecovery, FinetuneRecovery, NoRecovery, recalibrate
from gnnrl_lightning.library.components import build
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
        ({"batch_size": 1}, r"recovery\.batch_size=1 must be a whole number of at least 2\."),
        ({"batch_size": True}, r"recovery\.batch_size=True must"),
        ({"epochs": 0}, r"recovery\.epochs=0 must be a number above 0\."),
        ({"epochs": None}, r"recovery\.epochs=None must be a number above 0\."),
        ({"epochs": True}, r"recovery\.epochs=True must"),
        ({"epochs": float("inf")}, r"recovery\.epochs=inf must"),
        ({"lr": 0}, r"recovery\.lr=0 must be a number above 0\."),
        ({"lr": "abc"}, r"recovery\.lr=abc must be a number above 0\."),
        ({"lr": float("nan")}, r"recovery\.lr=nan must"),
        ({"lr": float("inf")}, r"recovery\.lr=inf must"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"images": 24, "batch_size": 8, "epochs": 2, "lr": 0.05}
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
    recovery = FinetuneRecovery(images=24, batch_size=8, epochs=2, lr=0.05)
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
    FinetuneRecovery(images=5, batch_size=8, epochs=3, lr=0.01)(network, first(5), LABELS[:5])
    assert not equal(weights(network), before)


class Noting(nn.Module):
    """A linear layer that notes the first pixel of every image that it is trained on: their numbers, in `NUMBERED`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4, 4)
        self.steps: list[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        assert torch.is_grad_enabled() and self.training
        self.steps.append([round(float(pixel)) for pixel in images[:, 0, 0, 0]])
        return self.linear(images.flatten(1))


def numbered(count: int) -> HeldImages:
    plain = Preprocessing(mean=(0, 0, 0), std=(1 / 255,) * 3, crop=2, resize=2, interpolation="bilinear")
    return HeldImages(torch.arange(count).byte().view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone(), plain)


@pytest.mark.parametrize(("images", "batch_size", "left"), [(24, 8, 0), (21, 8, 5), (5, 8, 0)])
def test_an_epoch_sees_every_image_once_but_those_that_fill_no_batch(images: int, batch_size: int, left: int) -> None:
    model = Noting()
    FinetuneRecovery(images, batch_size, epochs=2, lr=0.01)(model, numbered(images), LABELS[:images])
    assert {len(step) for step in model.steps} == {min(batch_size, images)}
    half = len(model.steps) // 2
    epochs = [[row for step in steps for row in step] for steps in (model.steps[:half], model.steps[half:])]
    for seen in epochs:
        assert len(seen) == images - left and len(set(seen)) == len(seen)
    assert epochs[0] != epochs[1]  # shuffled anew, so that others are left out
    if left:
        assert set(epochs[0]) != set(epochs[1])


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 2), (1, 4), (1.5, 6), (0.01, 1)])
def test_a_part_of_an_epoch_is_whole_steps(epochs: float, steps: int) -> None:
    model, whole = Noting(), Noting()
    FinetuneRecovery(24, 6, epochs, lr=0.01)(model, numbered(24), LABELS)
    FinetuneRecovery(24, 6, 2, lr=0.01)(whole, numbered(24), LABELS)
    assert len(model.steps) == steps and model.steps == whole.steps[:steps]


def test_the_default_is_one_epoch_of_2048_images() -> None:
    """About as dear as 16 steps of 128 images."""
    config = OmegaConf.load(Path(__file__).parents[2] / "conf" / "recovery" / "finetune.yaml")
    model = Noting()
    build(config)(model, HeldImages(torch.zeros(2048, 3, 2, 2).byte(), IMAGENET), torch.zeros(2048).long())
    assert [len(step) for step in model.steps] == [128] * 16


def test_accuracy_rises(network: nn.Module) -> None:
    """Images whose class is the colour channel that is brightest."""
    labels = torch.arange(96) % 3
    pixels = torch.randint(100, (96, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    pixels[torch.arange(96), labels] += 100
    images = HeldImages(pixels, IMAGENET)

    def top1(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(images[:]).argmax(1) == labels).float().mean())

    recalibrated = copy.deepcopy(network)
    recalibrate(recalibrated, images, 16)
    FinetuneRecovery(images=96, batch_size=16, epochs=3, lr=0.05)(network, images, labels)
    assert top1(network) > 0.9 > top1(recalibrated) + 0.2


def test_few_images_do_to_recalibrate_before_a_training(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    monkeypatch.setattr("gnnrl_lightning.evaluation.recovery._CALIBRATION", 16)
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    FinetuneRecovery(images=24, batch_size=8, epochs=1, lr=0.01)(network, IMAGES, LABELS)
    assert seen == [8, 8, 8, 8, 8]  # two of them to recalibrate


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generator_of_a_gpu_is_left_alone(network: nn.Module) -> None:
    gpu = torch.device("cuda", 0)
    state = torch.cuda.get_rng_state(gpu)
    model = nn.Sequential(network, nn.Dropout(0.2)).to(gpu)
    FinetuneRecovery(images=24, batch_size=8, epochs=1, lr=0.01)(model, IMAGES.to(gpu), LABELS.to(gpu))
    assert torch.equal(torch.cuda.get_rng_state(gpu), state)
