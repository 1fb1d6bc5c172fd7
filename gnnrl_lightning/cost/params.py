"""Cost in parameters, for devices that are short of memory or bandwidth rather than time."""

from torch import Tensor

from gnnrl_lightning.topology import Topology


class Params:
    """Number of parameters, BatchNorm's scales and shifts included, its running statistics not.

    Args:
        topology: The network's groups.
        deployed: The network and its device, which only costs that are measured need.
    """

    name = "params"
    measured_as = None  # it is exact
    unit = "M parameters"

    def __init__(self, topology: Topology, **deployed: object):
        self.topology = topology

    def __call__(self, widths: Tensor) -> Tensor:
        """Cost of widths [..., G], as integers [...]."""
        return self.topology.parameters(widths)
