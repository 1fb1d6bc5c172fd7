"""When each activation of a forward pass comes and goes, by running it once."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gnnrl_lightning.core.inputs import Inputs, arguments_by_name, call, tensors_in
from gnnrl_lightning.pruning.rewrite import ORIGIN


@dataclass
class Activation:
    """Memory that an operation took.

    Attributes:
        made_by: The kernel and the shape of its result.
        nbytes: Its size.
        born: Number of the kernel call that took it.
        freed: Number of the first call at which it was free again.
        origin: Name of the traced operation that called the kernel, where that is known.
        backend: What computes it, if it is a convolution: `Mkldnn`, `Slow2d` and so on.
    """

    made_by: tuple[str, torch.Size]
    nbytes: int
    born: int
    freed: int | None = None
    origin: str | None = None
    backend: str = ""


class Lifetimes(TorchDispatchMode):
    """Watches kernels while a network runs: `activations` in the order of their making.

    Args:
        present: Parameters and inputs, which were there before.
    """

    def __init__(self, present: Iterable[Tensor]):
        super().__init__()
        self.activations: list[Activation] = []
        self.calls = 0
        self.origin: str | None = None
        self._known = {tensor.untyped_storage()._cdata for tensor in present}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in pytree.tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is None or storage._cdata in self._known or not storage.nbytes():
                continue
            self._known.add(storage._cdata)
            activation = Activation((str(func), tensor.shape), storage.nbytes(), self.calls, origin=self.origin)
            if func is torch.ops.aten.convolution.default:
                activation.backend = torch._C._select_conv_backend(*args).name
            self.activations.append(activation)
            weakref.finalize(storage, self._free, activation, storage._cdata)
        return result

    def _free(self, activation: Activation, key: int) -> None:
        activation.freed = self.calls + 1
        self._known.discard(key)


class _Named(fx.Interpreter):
    """Runs a rewritten network and says which operation is at work."""

    def __init__(self, network: fx.GraphModule, watch: Lifetimes):
        super().__init__(network)
        self.watch = watch

    def run_node(self, n: fx.Node) -> Any:
        self.watch.origin = n.meta.get(ORIGIN)
        return super().run_node(n)


@torch.no_grad()
def activations(network: nn.Module, program: fx.GraphModule, images: Inputs) -> list[Activation]:
    """The activations of a forward pass, each with the operation that makes it.

    Python frees an activation when the last variable that holds it is gone, which may be long after its last use: so
    their times are the network's own. Where it calls other kernels than its program, they are the program's, which
    frees at the last use.

    Args:
        network: In eval mode.
        program: The same network as a rewritten graph, whose nodes know the operation that they stand for.
        images: What it is run on, [N, ...].
    """
    traced = Lifetimes([*tensors_in(images), *program.parameters(), *program.buffers()])
    with traced:
        _Named(program, traced).run(*arguments_by_name(network, images).values())
    own = Lifetimes([*tensors_in(images), *network.parameters(), *network.buffers()])
    with own:
        call(network, images)
    if [each.made_by for each in own.activations] != [each.made_by for each in traced.activations]:
        return traced.activations
    for mine, other in zip(own.activations, traced.activations, strict=True):
        mine.origin = other.origin
    return own.activations
