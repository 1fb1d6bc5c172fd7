"""ShuffleNet-v1: grouped point-wise convolutions, and channel shuffles that let the groups exchange what they know.

Zhang et al., CVPR 2018, https://arxiv.org/abs/1707.01083: Table 1 for the widths, Figure 2 for the units. The
multiply-accumulates that the paper reports for 224 pixels (143, 140, 137, 133 and 137 M for 1, 2, 3, 4 and 8 groups)
are those of the convolutions, without the classifier.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnnrl_lightning.core.checks import UserError

STEM_WIDTH = 24
STAGE2_WIDTH = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Channels of stage 2 by groups, which keep the cost about the same; each later stage has twice as many."""
UNITS = (4, 8, 4)
"""Units of stages 2 to 4."""


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of each group out to all groups. Shapes: [N, C, H, W] -> [N, C, H, W]."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Bottleneck of grouped convolutions, added to its input, or at stride 2 joined to its averaged input.

    Shapes: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, grouped_input: bool) -> None:
        super().__init__()
        self.stride = stride
        self.groups = groups
        middle = out_channels // 4
        branch = out_channels if stride == 1 else out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=groups if grouped_input else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        """relu(x + F(x)), or relu([pool(x), F(x)]) at stride 2."""
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        if self.stride == 1:
            return F.relu(x + out)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, stride=2, padding=1), out], dim=1))


class ShuffleNetV1(nn.Module):
    """ShuffleNet-v1 for large images. Shapes: [N, 3, H, W] -> [N, num_classes]."""

    def __init__(self, num_classes: int, groups: int, scale: float) -> None:
        super().__init__()
        # Multiples that every grouped convolution can divide; at scale 1 they are the paper's own numbers.
        stem = _multiple(STEM_WIDTH * scale, groups)
        width = _multiple(STAGE2_WIDTH[groups] * scale, 4 * groups)
        self.conv1 = nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        # The paper does not group the first point-wise convolution: its input has too few channels.
        self.stage2 = _stage(stem, width, UNITS[0], groups, grouped_input=False)
        self.stage3 = _stage(width, 2 * width, UNITS[1], groups, grouped_input=True)
        self.stage4 = _stage(2 * width, 4 * width, UNITS[2], groups, grouped_input=True)
        self.fc = nn.Linear(4 * width, num_classes)
        # Small, so that a sum begins near its input and the first steps do not diverge (Goyal et al. 2017 take 0). Not
        # 0, with which a fresh network could not tell whether pruning changed what its units compute.
        for unit in self.modules():
            if isinstance(unit, ShuffleUnit) and unit.stride == 1:
                nn.init.constant_(unit.bn3.weight, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of the images x."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.stage4(self.stage3(self.stage2(x)))
        return self.fc(torch.mean(x, dim=(2, 3)))


def shufflenet_v1(num_classes: int, groups: int = 3, scale: float = 1.0) -> nn.Module:
    """ShuffleNet-v1, randomly initialised.

    Args:
        num_classes: Of its output.
        groups: Of the point-wise convolutions: 1, 2, 3, 4 or 8.
        scale: Factor of all widths, which become the nearest multiples that the groups can divide.

    Raises:
        UserError: If the paper has no such network.
    """
    if groups not in STAGE2_WIDTH:
        raise UserError(f"model.kwargs.groups={groups} must be one of {', '.join(map(str, STAGE2_WIDTH))}.")
    if not scale > 0:
        raise UserError(f"model.kwargs.scale={scale} must be above 0, e.g. 0.5.")
    return ShuffleNetV1(num_classes, groups, scale)


def _stage(in_channels: int, out_channels: int, units: int, groups: int, grouped_input: bool) -> nn.Sequential:
    first = ShuffleUnit(in_channels, out_channels, 2, groups, grouped_input)
    return nn.Sequential(first, *(ShuffleUnit(out_channels, out_channels, 1, groups, True) for _ in range(units - 1)))


def _multiple(width: float, of: int) -> int:
    return max(1, round(width / of)) * of
