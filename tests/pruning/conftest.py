import pytest
import torch
from torch import nn

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.topology import Topology, trace


class Pruning:
    """Networks whose every number is random, and random plans for them."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def randomize(self, model: nn.Module) -> nn.Module:
        """Random BatchNorm statistics and affine: at their initial values they would hide a mistake."""
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.3, 0.3),
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.5, 2.0),
                ):
                    assert tensor is not None
                    tensor.data.uniform_(low, high, generator=self.generator)
        return model.eval()

    def widths(self, topology: Topology) -> torch.Tensor:
        """Any allowed number of channels for each group, [G]."""
        allowed = [group.widths() for group in topology.groups]
        return torch.tensor([w[int(torch.randint(len(w), (), generator=self.generator))] for w in allowed])

    def kept(self, topology: Topology, widths: torch.Tensor | None = None) -> list[list[int]]:
        """Random channels of each group, as many as `widths` says or any number."""
        widths = self.widths(topology) if widths is None else widths
        return [
            sorted(torch.randperm(group.width, generator=self.generator)[:width].tolist())
            for group, width in zip(topology.groups, widths.tolist(), strict=True)
        ]


@pytest.fixture
def pruning() -> Pruning:
    return Pruning()


@pytest.fixture
def resnet8() -> nn.Module:
    torch.manual_seed(0)
    return resnet_cifar(8, 10)


@pytest.fixture
def topology8(resnet8: nn.Module) -> Topology:
    return trace(resnet8, torch.zeros(1, 3, 16, 16))
