"""Adapts networks made for large images to small ones."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL_IMAGE = 64  # pixels


def adapt_stem(model: nn.Module, image_size: int) -> None:
    """Keep the resolution of images of 64 pixels or fewer through the stem of model, in place.

    Networks for 224 pixels quarter the resolution before their first block, which leaves 8×8 of 32×32 pixels. The
    first convolution gets stride 1, and a pooling of stride 2 right behind it is skipped. No kernel changes, so the
    weights of any source still fit. Networks that start with stride 1 were made for small images, and those with a
    single convolution (ViT, Swin) cut the image into tokens, which is no stem: both are left alone.
    """
    modules = list(model.named_modules())
    convolutions = [module for _, module in modules if isinstance(module, nn.Conv2d)]
    # In re-parametrised networks (RepVGG, MobileOne) several branches read the image, and all must agree.
    stem = [module for module in convolutions if module.in_channels == convolutions[0].in_channels]
    behind = [module for module in convolutions if module not in stem]
    if image_size > SMALL_IMAGE or not behind or max(stem[0].stride) == 1:
        return
    for convolution in stem:
        convolution.stride = (1, 1)
    order = [module for _, module in modules]
    for name, module in modules[order.index(stem[0]) : order.index(behind[0])]:
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d) and module.stride in (2, (2, 2)):
            model.set_submodule(name, nn.Identity())


@torch.no_grad()
def adapt_head(model: nn.Module, image_size: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Let the classifier of model read the map of images of 64 pixels or fewer as small as it is, in place.

    VGG pools to 7×7 pixels and AlexNet to 6×6 before the first linear layer. Of 32×32 pixels a single one is left
    there, and the pooling copies it 49 times: three quarters of VGG-16 would be weights of copies. Pooling is linear,
    so with the weights summed over the copies that layer computes the same from the map itself.

    Returns:
        By name, what makes a weight [out, C * copies] of the unadapted network fit; an adapted one passes unchanged.
    """
    pools = [m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size not in (1, (1, 1))]
    if image_size > SMALL_IMAGE or not pools:
        return {}
    inputs: dict[nn.AdaptiveAvgPool2d, torch.Size] = {}
    hooks = [pool.register_forward_pre_hook(lambda pool, args: inputs.update({pool: args[0].shape})) for pool in pools]
    training = model.training
    model.eval()(torch.zeros(1, 3, image_size, image_size))
    model.train(training)
    for hook in hooks:
        hook.remove()
    folds: dict[str, Callable[[Tensor], Tensor]] = {}
    for pool, (_, channels, height, width) in inputs.items():
        pixels = torch.eye(height * width).view(-1, 1, height, width)
        copies = F.adaptive_avg_pool2d(pixels, pool.output_size).flatten(1)  # [pixels, copies], shares of each pixel
        for name, layer in model.named_modules():
            reads = isinstance(layer, nn.Linear) and layer.in_features == channels * copies.shape[1]
            if reads and copies.shape[0] < copies.shape[1]:
                pool.output_size = (height, width)
                folds[f"{name}.weight"] = fold = partial(_fold, copies=copies, full=layer.in_features)
                layer.weight = nn.Parameter(fold(layer.weight))
                layer.in_features = layer.weight.shape[1]
    return folds


def _fold(weight: Tensor, copies: Tensor, full: int) -> Tensor:
    if weight.dim() != 2 or weight.shape[1] != full:
        return weight
    by_copy = weight.unflatten(1, (-1, copies.shape[1]))  # [out, C, copies]
    return (by_copy.float() @ copies.T).flatten(1).to(weight.dtype)
