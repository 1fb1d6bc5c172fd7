"""Channel shuffles become one permutation; every other chain of views stays as it is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.shuffle import fuse_shuffles, take
from gnnrl_lightning.topology.trace import read_program

MOVES = frozenset("view reshape unflatten flatten permute transpose channel_shuffle contiguous clone take".split())


class Moved(nn.Module):
    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        return self.move(x) * 2


def steps(move: Callable[[Tensor], Tensor], channels: int = 12) -> tuple[list[str], list[int] | None]:
    """The moves of a program after fusing, and the permutation if that is all there is."""
    program = read_program(Moved(move), torch.zeros(2, channels, 4, 6))
    fuse_shuffles(program.graph)
    program.graph.lint()
    nodes = [n for n in program.graph.nodes if n.op == "call_function" and Program.operation(n) in MOVES]
    orders = [node.args[2] for node in nodes if node.target is take]
    return [Program.operation(node) for node in nodes], orders[0] if len(orders) == len(nodes) == 1 else None


def views(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize(
    "shuffle",
    [
        views,
        lambda x, g: x.reshape(x.shape[0], g, -1, *x.shape[2:]).permute(0, 2, 1, 3, 4).reshape(x.shape),
        lambda x, g: x.unflatten(1, (g, -1)).transpose(1, 2).flatten(1, 2),
        F.channel_shuffle,
    ],
)
def test_a_shuffle_is_one_permutation(shuffle: Callable[[Tensor, int], Tensor], groups: int) -> None:
    names, order = steps(lambda x: shuffle(x, groups))
    assert names == ["take"]
    images = torch.randn(3, 12, 2, 2)
    assert order is not None and torch.equal(images[:, order], views(images, groups))


def test_a_shuffle_and_its_inverse_are_a_copy() -> None:
    assert steps(lambda x: views(views(x, 3), 4)) == (["clone"], None)
    assert steps(lambda x: x.view(-1, 3, 4, 4, 6).view(x.shape)) == ([], None)


def test_a_shuffle_is_found_before_other_views() -> None:
    names, _ = steps(lambda x: views(x, 3).flatten(2).transpose(1, 2))
    assert names[0] == "take" and names[1:] == ["flatten", "transpose"]


@pytest.mark.parametrize(
    ("move", "names"),
    [
        (lambda x: x.flatten(2).transpose(1, 2), ["flatten", "transpose"]),
        (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 24, 12), ["permute", "reshape"]),
        # Positions, not channels.
        (lambda x: x.unflatten(2, (2, 2)).transpose(2, 3).flatten(2, 3), ["unflatten", "transpose", "flatten"]),
        # Channels and positions.
        (lambda x: x.reshape(-1, 24, 12).transpose(1, 2).reshape(x.shape), ["reshape", "transpose", "reshape"]),
        # Heads that stay apart.
        (lambda x: x.unflatten(1, (3, 4)).transpose(1, 2), ["unflatten", "transpose"]),
        # Images.
        (lambda x: x.view(-1, 2, 12, 4, 6).transpose(0, 1).reshape(x.shape), ["view", "transpose", "reshape"]),
    ],
)
def test_other_chains_stay(move: Callable[[Tensor], Tensor], names: list[str]) -> None:
    assert steps(move) == (names, None)


def test_a_step_that_others_read_stays() -> None:
    def move(x: Tensor) -> Tensor:
        blocks = x.unflatten(1, (3, 4))
        return blocks.transpose(1, 2).flatten(1, 2) + blocks.sum((1, 2)).unsqueeze(1)

    assert steps(move) == (["unflatten", "transpose", "flatten"], None)


def test_the_fused_program_computes_the_same() -> None:
    images = torch.randn(2, 12, 4, 6)
    program = read_program(Moved(lambda x: views(views(x, 3).relu(), 2)), images)
    fuse_shuffles(program.graph)
    (result,) = torch.fx.Interpreter(torch.fx.GraphModule({}, program.graph)).run(images)
    assert torch.equal(result, views(views(images, 3).relu(), 2) * 2)
