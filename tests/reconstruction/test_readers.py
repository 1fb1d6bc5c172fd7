"""A reader's matrix times what it reads is what the operation gives, for every kind of layer."""

import pytest
import torch
from torch import Tensor, nn

from gnnrl_lightning.reconstruction.readers import Reader, find_readers
from gnnrl_lightning.topology import trace


class Product(nn.Module):
    """A product with a weight that lies the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) @ self.weight


CASES = {
    "conv1d": (nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 5, 3, stride=2, padding=2, dilation=2)), (3, 12)),
    "conv2d": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, (3, 2), stride=(1, 2), padding=(2, 0))), (3, 7, 9)),
    "conv3d": (nn.Sequential(nn.Conv3d(3, 8, 1), nn.Conv3d(8, 5, 2, padding=1)), (3, 4, 5, 4)),
    "same": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 4, padding="same", bias=False)), (3, 7, 6)),
    "valid": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3, padding="valid", dilation=2)), (3, 7, 6)),
    "grouped": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, groups=2, padding=1)), (3, 6, 6)),
    "transposed 1d": (nn.Sequential(nn.Conv1d(3, 8, 1), nn.ConvTranspose1d(8, 5, 3, 2, 1, output_padding=1)), (3, 6)),
    "transposed": (
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 3, 2, 1, groups=2, dilation=2)),
        (3, 5, 6),
    ),
    "linear": (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5)), (4, 3)),
    "flattened": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 6, 5)), (3, 2, 3)),
    "product": (nn.Sequential(nn.Conv2d(3, 8, 1), Product()), (3, 4, 4)),
}


def last_reader(model: nn.Module, shape: tuple[int, ...]) -> Reader:
    readers, unruled = find_readers(trace(model.eval(), torch.zeros(1, *shape)))
    assert len(readers) == 1 and not unruled
    return readers[0]


@pytest.mark.parametrize("name", CASES)
def test_matrix_times_input_is_what_the_layer_gives(name: str) -> None:
    torch.manual_seed(0)
    model, shape = CASES[name]
    reader = last_reader(model, shape)
    layout, layer = reader.layout, model[-1]
    x = torch.randn(3, *shape)
    for module in model[:-1] if name != "product" else [model[0], lambda x: x.mean((2, 3))]:
        x = module(x)
    y = layer(x) if name != "product" else x @ layer.weight
    every = layout.sample(x, 10**6, torch.Generator())
    matrix = layout.matrix(layer.weight)
    assert matrix.shape == (reader.blocks, reader.rows, reader.channels, reader.taps)
    given = torch.einsum("brct,bnct->bnr", matrix, layout.inputs(x, every))
    bias = layer.bias.view(reader.blocks, 1, -1) if getattr(layer, "bias", None) is not None else 0
    assert torch.allclose(given + bias, layout.outputs(y, every), atol=1e-5)
    assert torch.allclose(given + bias, layout.outputs(y), atol=1e-5)
    assert torch.equal(layout.weight(matrix, layer.weight), layer.weight)
    some = layout.sample(x, 5, torch.Generator().manual_seed(0))
    assert torch.allclose(
        torch.einsum("brct,bnct->bnr", matrix, layout.inputs(x, some)) + bias, layout.outputs(y, some), atol=1e-5
    )


def test_what_can_take_a_change_of_the_mean_is_found() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )
    first, second, third = find_readers(trace(model.eval(), torch.zeros(1, 3, 4, 4)))[0]
    assert (first.bias, first.means, first.centred) == (None, ("2.running_mean",), True)
    assert (second.bias, second.means, second.centred) == (None, (), False)
    assert (third.bias, third.means, third.centred) == ("5.bias", (), True)
