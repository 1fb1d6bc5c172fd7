"""Cost in multiply-accumulates, the papers' FLOPs."""

from torch import Tensor

from gnnrl_lightning.topology import Topology


class Flops:
    """Multiply-accumulates of convolutions, linear layers and matrix products for one image.

    ResNet-56 has 125.5 M and MobileNet-v2 300.8 M: half of what `torch.utils.flop_counter` counts.

    Args:
        topology: The network's groups.
        deployed: The network and its device, which only costs that are measured need.
    """

    name = "flops"
    measured_as = None  # it is exact
    unit = "MMACs"

    def __init__(self, topology: Topology, **deployed: object):
        self.topology = topology

    def __call__(self, widths: Tensor) -> Tensor:
        """Cost of widths [..., G], as integers [...]."""
        return self.topology.macs(widths)
