"""Adapts networks made for large images to small ones."""

from torch import nn

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
