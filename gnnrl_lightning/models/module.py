"""Networks of the user's own: `model=module model.target=package.function model.kwargs='{…}'`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from gnnrl_lightning.core.checks import UserError


class Modules:
    """What a function or class gives that the user names; it is imported from the current directory or as installed.

    To import a name is to run code, so a name must come from the user's own hand: see `ModelSpec.from_config`.
    """

    as_is = True

    def check(self, name: str) -> None:
        """See Source; this imports the user's code."""
        _find(name)

    def build(self, name: str, num_classes: int, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
        """See Source; a function that takes `num_classes` gets that of the data unless kwargs have one."""
        assert not pretrained
        function = _find(name)
        known = {"num_classes": num_classes} if "num_classes" in _parameters(function) else {}
        try:
            model = function(**{**known, **kwargs})
        except Exception as error:  # whatever the user's code raises
            raise UserError(
                f"model.target={name} failed with model.kwargs={kwargs} ({_reason(error)}); mend either."
            ) from error
        if not isinstance(model, nn.Module):
            raise UserError(
                f"model.target={name} gives {type(model).__name__} and not a torch.nn.Module; "
                "name a function or class that gives the network."
            )
        return model

    def pretrained(self, name: str) -> None:
        """See Source; what weights they have is the function's own affair."""
        return None


def _find(target: str) -> Callable[..., object]:
    module, _, attribute = target.rpartition(".")
    if not module or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"model.target={target} is not package.function, e.g. model.target=my_net.build.")
    # As `python -m` does: else only what lies beside the entry point would be found.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # whatever the user's code raises
        reason = _reason(error)
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            reason = f"there is no module {error.name} in {os.getcwd()} or installed"
        raise UserError(f"model.target={target} cannot be imported ({reason}); mend the name or the module.") from error
    if not callable(found):
        what = "cannot be called" if found is not None else "does not exist"
        raise UserError(f"model.target={target} {what}; name a function or class of {module} that gives the network.")
    return found


def _parameters(function: Callable[..., object]) -> Collection[str]:
    try:
        return inspect.signature(function).parameters.keys()
    except ValueError:  # of C code
        return ()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(": ")
