"""CIFAR ResNets of 20 to 110 layers: the networks that the papers on channel pruning compare on.

He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2: a 3×3 convolution, three stages of n residual blocks with
16, 32 and 64 channels, global average pooling and one linear layer: 6n + 2 layers. Shortcuts are option A, without
parameters. Module names are those of the published checkpoints of akamaster/pytorch_resnet_cifar10.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedShortcut(nn.Module):
    """Shortcut of option A into the next stage: every other pixel, and zeros around the channels.

    Shapes: [N, C, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        zeros = out_channels - in_channels
        # A module rather than F.pad, so that how many zeros there are is an attribute that pruning can correct.
        # Of [N, C, H, W] the 3-D pad takes the last three dimensions, channels last in its argument.
        self.pad = nn.ConstantPad3d((0, 0, 0, 0, zeros // 2, zeros - zeros // 2), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample the pixels and pad the channels of x."""
        return self.pad(x[:, :, :: self.stride, :: self.stride])


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and the shortcut around them.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else PaddedShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """relu(F(x) + shortcut(x))."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for small images. Shapes: [N, 3, H, W] -> [N, num_classes]."""

    def __init__(self, blocks_per_stage: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks_per_stage, stride=1)
        self.layer2 = _stage(16, 32, blocks_per_stage, stride=2)
        self.layer3 = _stage(32, 64, blocks_per_stage, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of the images x."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, dim=(2, 3)))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def resnet_cifar(depth: int, num_classes: int) -> nn.Module:
    """CIFAR ResNet of `depth` = 6n + 2 layers (20, 32, 44, 56, 110), randomly initialised."""
    assert depth >= 8 and (depth - 2) % 6 == 0, f"a CIFAR ResNet has 6n + 2 layers, not {depth}"
    return CifarResNet((depth - 2) // 6, num_classes)
