"""Orders and error curves against least squares worked out anew for every set of channels."""

import pytest
import torch
from closed_forms import closed_forms, pictures
from torch import Tensor, nn

from gnnrl_lightning.reconstruction.reconstruction import Reconstruction


def network(width: int = 7) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def loss(found: Reconstruction, reader: int, kept: list[int]) -> float:
    """What a reader loses with these channels alone: S-weighted, at the weights that lose least (or as they are)."""
    moments = found.statistics.moments[reader]
    weight = moments.reader.layout.matrix(found.statistics.tensors[moments.reader.weight]).double()[0]
    gram = moments.gram[0].view(*[moments.reader.channels, moments.reader.taps] * 2)
    gone = [channel for channel in range(len(gram)) if channel not in kept]

    def block(rows: list[int], columns: list[int]) -> Tensor:
        return gram[rows][:, :, columns].flatten(0, 1).flatten(1)

    lost = weight[:, gone].flatten(1)
    left = block(gone, gone)
    if found.settings.enabled and kept:
        left = left - block(gone, kept) @ torch.linalg.lstsq(block(kept, kept), block(kept, gone)).solution
    felt = moments.sensitivity[0] @ lost
    return float((felt @ left * felt).sum()) * (moments.optimism if found.settings.enabled else 1)


@pytest.mark.parametrize("refitted", [True, False])
def test_curves_and_orders_are_those_of_brute_force(refitted: bool) -> None:
    found = closed_forms(network(), pictures(128), enabled=refitted)
    for moments in found.statistics.moments:
        moments.ridge = 1e-12
    orders = found.orders
    for group, (order, curve) in enumerate(zip(orders, found.curves(orders), strict=True)):
        width, left = len(order), list(range(len(order)))
        assert len(curve) == width + 1 and curve[width] == 0
        for channel in order.tolist():
            costs = {c: loss(found, group, [k for k in left if k != c]) for c in left}
            assert costs[channel] == pytest.approx(min(costs.values()), rel=1e-4)
            left.remove(channel)
            assert float(curve[len(left)]) == pytest.approx(costs[channel], rel=1e-4)


def test_sensitivity_is_what_an_error_moves_the_scores_by() -> None:
    """Of the last layer the scores are the outputs: S is the identity less the mean over classes."""
    found = closed_forms(network(), pictures(256))
    root = found.statistics.moments[-1].sensitivity[0]
    signs = root.T @ root
    assert torch.allclose(signs.diagonal(), torch.full((5,), 0.8, dtype=torch.float64), atol=0.1)
    assert torch.allclose(signs.sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-6)


def test_a_dead_channel_and_a_copy_go_first() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, -1
        model[0].weight[5], model[0].bias[5] = model[0].weight[3], model[0].bias[3]
    found = closed_forms(model, pictures(512))
    assert int(found.orders[0][0]) == 2 and int(found.orders[0][1]) in {3, 5}
    curve = found.curves(found.orders)[0]
    assert curve[5] < 1e-3 * curve[4]
