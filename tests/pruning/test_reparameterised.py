"""A pruned network can be brought into its deployed form, as the original can."""

import pytest
import timm
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional as F

import gnnrl_lightning as gl

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def disturbed(model: nn.Module) -> nn.Module:
    """With BatchNorm that does something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "repvit_m0_9", "repghostnet_050", "fastvit_t8"])
def test_the_deployed_form_of_a_pruned_network_equals_it(name: str) -> None:
    model = disturbed(timm.create_model(name, num_classes=4))
    small = gl.apply_plan(model, gl.uniform_plan(gl.trace(model, X[:1]), model))
    with torch.no_grad():
        wanted = small(X)
        torch.testing.assert_close(reparameterize_model(small)(X), wanted, rtol=1e-3, atol=1e-4)


class RepBlock(nn.Module):
    """Three branches in training, one convolution when deployed; it builds that from its own numbers."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = inputs, outputs, groups
        self.three = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)
        self.one = nn.Conv2d(inputs, outputs, 1, groups=groups)
        self.identity = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(x) + self.one(x)
        return (y + x if self.identity else y).relu()

    def deployed(self) -> nn.Module:
        conv = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1, groups=self.groups)
        weight = self.three.weight + F.pad(self.one.weight, (1, 1, 1, 1))
        if self.identity:
            each = self.in_channels // self.groups
            for channel in range(self.in_channels):
                weight.data[channel, channel % each, 1, 1] += 1
        assert conv.bias is not None and self.three.bias is not None and self.one.bias is not None
        conv.load_state_dict({"weight": weight, "bias": self.three.bias + self.one.bias})
        return nn.Sequential(conv, nn.ReLU())


def test_a_block_of_ones_own_with_groups() -> None:
    torch.manual_seed(0)
    blocks = [
        RepBlock(3, 16),
        RepBlock(16, 16),
        RepBlock(16, 16, groups=16),
        RepBlock(16, 24),
        RepBlock(24, 24, groups=2),
    ]
    model = nn.Sequential(*blocks, nn.Conv2d(24, 4, 1)).eval()
    small = gl.apply_plan(model, gl.uniform_plan(gl.trace(model, X[:1]), model))
    assert not gl.is_rewritten(small)
    counts = [(each.in_channels, each.out_channels, each.groups) for each in small if isinstance(each, RepBlock)]
    assert counts == [(3, 8, 1), (8, 8, 1), (8, 8, 8), (8, 12, 1), (12, 12, 2)]
    with torch.no_grad():
        deployed = nn.Sequential(*(each.deployed() if isinstance(each, RepBlock) else each for each in small))
        torch.testing.assert_close(deployed(X), small(X), rtol=1e-4, atol=1e-5)
