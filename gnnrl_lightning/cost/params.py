"""Cost in parameters, for devices that are short of memory or bandwidth rather than time."""

from torch import Tensor

from gnnrl_lightning.topology import Topology


class Params:
    """Number of parameters, BatchNorm's scales and shifts included, its running statistics not."""

    name = "params"
    unit = "parameters"

    def __init__(self, topology: Topology):
        self.topology = topology

    def __call__(self, widths: Tensor) -> Tensor:
        """Cost of widths [..., G], as integers [...]."""
        return self.topology.parameters(widths)
