"""What is given as a network."""

from typing import Any

import torch
from torch import nn

from gnnrl_lightning.core.checks import UserError


def check_module(model: Any) -> None:
    """Raise UserError unless it is a network whose code can be read."""
    if not isinstance(model, nn.Module):
        hint = "load_state_dict it into the network first" if isinstance(model, dict) else "the network comes first"
        raise UserError(f"model is a {type(model).__name__}; it must be the trained network, an nn.Module: {hint}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("model is a ScriptModule, whose code torch.export cannot read; give the network that it is of.")


def check_model(model: Any) -> None:
    """Raise UserError unless it is such a network, with parameters that have values."""
    check_module(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(f"{type(model).__name__} has weights on the meta device, without values; load them first.")
    if next(model.parameters(), None) is None:
        raise UserError(f"{type(model).__name__} has no parameters, so there is nothing to prune.")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel or DistributedDataParallel."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model
