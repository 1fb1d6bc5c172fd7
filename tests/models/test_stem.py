import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.models.stem import adapt_head, adapt_stem
from gnnrl_lightning.models.weights import fit_weights


def resolution(model: nn.Module, layer: str, image_size: int) -> int:
    seen: list[int] = []
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    return seen[0]


def test_resnet18_keeps_the_resolution_of_small_images() -> None:
    model = get_model("resnet18", num_classes=10)
    adapt_stem(model, 32)
    assert resolution(model, "layer1", 32) == 32
    assert isinstance(model.maxpool, nn.Identity)
    assert model.conv1.kernel_size == (7, 7)


def test_mobilenet_keeps_the_resolution_of_small_images() -> None:
    model = get_model("mobilenet_v2", num_classes=10)
    adapt_stem(model, 32)
    assert resolution(model, "features.0", 32) == 32
    assert resolution(model, "features.18", 32) == 2


def test_only_the_pooling_of_the_stem_is_skipped() -> None:
    model = get_model("squeezenet1_1", num_classes=10)
    pools = [name for name, module in model.named_modules() if isinstance(module, nn.MaxPool2d)]
    adapt_stem(model, 32)
    assert [name for name, module in model.named_modules() if isinstance(module, nn.MaxPool2d)] == pools[1:]


def test_all_branches_that_read_the_image_are_adapted() -> None:
    model = timm.create_model("mobileone_s0", num_classes=10)
    adapt_stem(model, 32)
    assert resolution(model, "stem", 32) == 32


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_large_images_leave_the_network_alone(name: str) -> None:
    model = get_model(name)
    before = repr(model)
    adapt_stem(model, 65)
    assert repr(model) == before
    adapt_stem(model, 64)
    assert repr(model) != before


def test_networks_for_small_images_and_of_tokens_are_left_alone() -> None:
    for model in (resnet_cifar(20, 10), get_model("vgg11"), get_model("swin_t")):
        before = repr(model)
        adapt_stem(model, 32)
        assert repr(model) == before


def test_mobilenet_macs_at_224() -> None:
    model = get_model("mobilenet_v2")
    adapt_stem(model, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() // 2 == 300_774_272  # 300.8 M


class Pooled(nn.Module):
    """As VGG and AlexNet end: pooled to a fixed size, flattened, classified."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, stride=16, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(4 * side**2, 9), nn.ReLU(), nn.Linear(9, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


@pytest.mark.parametrize(("image_size", "side"), [(16, 7), (32, 7), (32, 6), (48, 7), (64, 5)])
def test_classifier_reads_small_maps_as_they_are(image_size: int, side: int) -> None:
    model = Pooled(side).eval()
    x = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        before = model(x)
        folds = adapt_head(model, image_size)
        assert torch.allclose(model(x), before, atol=1e-6)
    assert list(folds) == ["classifier.1.weight"]
    linear = model.classifier[1]
    assert linear.in_features == linear.weight.shape[1] == 4 * (image_size // 16) ** 2
    assert model.pool.output_size == (image_size // 16,) * 2


def test_weights_of_either_shape_fit_the_adapted_classifier() -> None:
    source, model = Pooled(7).eval(), Pooled(7).eval()
    folds = adapt_head(model, 32)
    x = torch.randn(2, 3, 32, 32)
    full = {f"module.{name}": value for name, value in source.state_dict().items()}
    fit_weights(model, full, "full.pt", folds)
    with torch.no_grad():
        assert torch.allclose(model(x), source(x), atol=1e-6)
    again = Pooled(7).eval()
    fit_weights(again, model.state_dict(), "folded.pt", adapt_head(again, 32))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"classifier.1.weight is 9x196x1 in the file and 9x16 in the model"):
        fit_weights(model, full | {"module.classifier.1.weight": torch.zeros(9, 196, 1)}, "odd.pt", folds)


@pytest.mark.parametrize(("image_size", "side"), [(64, 4), (64, 2), (64, 1), (65, 7)])
def test_classifiers_that_read_no_copies_are_left_alone(image_size: int, side: int) -> None:
    model = Pooled(side)
    before = repr(model)
    assert not adapt_head(model, image_size)
    assert repr(model) == before and model.training
