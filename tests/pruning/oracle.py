"""Random plans, and what the networks that they leave must compute: an account of its own of what a plan means."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnnrl_lightning.topology import Topology


class Pruning:
    """Networks whose every number is random, random plans for them, and what these must compute."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def randomize(self, model: nn.Module) -> nn.Module:
        """Random statistics, affines and scales: at their initial values of 0 and 1 they would hide a mistake."""
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                assert module.running_mean is not None
                module.running_mean.uniform_(-0.3, 0.3, generator=self.generator)
                module.running_var.uniform_(0.5, 2.0, generator=self.generator)
        for parameter in model.parameters():
            middle = parameter.data.flatten()[0].item()
            if parameter.numel() > 1 and (parameter == middle).all():
                parameter.data.uniform_(middle - 0.5, middle + 0.5, generator=self.generator)
        return model.eval()

    def widths(self, topology: Topology) -> Tensor:
        """Any allowed number of channels for each group, [G]."""
        allowed = [group.widths() for group in topology.groups]
        return torch.tensor([w[int(torch.randint(len(w), (), generator=self.generator))] for w in allowed])

    def kept(self, topology: Topology, widths: Tensor | None = None) -> list[list[int]]:
        """Random channels of each group, as many as `widths` says or any number."""
        widths = self.widths(topology) if widths is None else widths
        return [
            sorted(torch.randperm(group.width, generator=self.generator)[:width].tolist())
            for group, width in zip(topology.groups, widths.tolist(), strict=True)
        ]

    def masked(self, model: nn.Module, topology: Topology, kept: list[list[int]], silent: bool = False) -> nn.Module:
        """A full-size copy in which no layer reads the removed channels: what the pruned network must compute.

        Where not only layers read channels (a product of queries and keys), `silent` zeroes what writes them as well.
        """
        mask = topology.keep_mask(kept)
        twin = copy.deepcopy(model)
        parameters = dict(twin.named_parameters())
        for (name, dimension), slots in topology.slots.items():
            if name not in parameters or not (silent or topology.labels.readers.get(name) == dimension):
                continue
            weight, stays = parameters[name], (slots < 0) | mask[slots]
            if stays.dim() == 2:  # a grouped convolution: columns of each block of rows
                stays = stays.repeat_interleave(len(weight) // len(stays), 0)
                weight.data *= stays.view(*stays.shape, *[1] * (weight.dim() - 2))
            else:
                weight.data *= stays.view([-1 if d == dimension else 1 for d in range(weight.dim())])
        for path, module in twin.named_modules():
            slots = topology.slots.get((f"{path}.weight", 0), torch.tensor([-1]))
            stays = (slots < 0) | mask[slots]
            if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)) and not stays.all():
                module.forward = _norm_of(module, stays.nonzero().flatten())  # type: ignore[method-assign]
        return twin


def _norm_of(norm: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm, left: Tensor) -> Callable[[Tensor], Tensor]:
    """The norm of the channels that are left; zeros at the others."""

    def forward(x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        if isinstance(norm, nn.LayerNorm):
            result[..., left] = F.layer_norm(x[..., left], left.shape, norm.weight[left], norm.bias[left], norm.eps)
        elif isinstance(norm, nn.RMSNorm):
            result[..., left] = F.rms_norm(x[..., left], left.shape, norm.weight[left], norm.eps)
        else:
            affine = norm.weight[left], norm.bias[left]
            result[:, left] = F.group_norm(x[:, left], norm.num_groups, *affine, norm.eps)
        return result

    return forward
