import pytest
import torch
from oracle import Pruning
from torch import nn

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.topology import Topology, trace


@pytest.fixture
def pruning() -> Pruning:
    return Pruning()


@pytest.fixture
def resnet8() -> nn.Module:
    torch.manual_seed(0)
    return resnet_cifar(8, 10)


@pytest.fixture(scope="session")
def topology8() -> Topology:
    return trace(resnet_cifar(8, 10), torch.zeros(1, 3, 16, 16))
