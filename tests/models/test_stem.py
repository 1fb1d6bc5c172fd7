import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.models.stem import adapt_stem


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
