"""What removed channels are worth together, and sets of channels that are known to be best."""

from itertools import combinations
from typing import Any

import pytest
import torch
from test_importance_all import IMAGES, LABELS, task_of
from torch import Tensor, nn
from torch.nn import functional as F

from gnnrl_lightning.importance.genetic import Genetic
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.topology import trace


def genetic(**settings: Any) -> Genetic:
    defaults: dict[str, Any] = {"images": 16, "batch_size": 8, "samples": 4, "population": 50, "generations": 50}
    return Genetic(**{**defaults, "crossover": 0.8, "mutation": 4, "seed": 0, **settings})


def error(form: Tensor, kept: Any) -> float:
    removed = torch.ones(len(form))
    removed[list(kept)] = 0
    return float(removed @ form @ removed)


@pytest.mark.parametrize(("width", "draw"), [(3, 3), (6, 0), (6, 3), (9, 5)])
def test_the_best_of_all_sets_is_found(width: int, draw: int) -> None:
    parts = torch.randn(12, 3, generator=torch.Generator().manual_seed(draw))
    form = parts @ parts.T
    found = genetic()._fittest(form, width, torch.Generator().manual_seed(0))
    best = min(combinations(range(12), width), key=lambda kept: error(form, kept))
    assert found == best
    ranked = form.diagonal().topk(width).indices.tolist()
    assert error(form, ranked) > 5 * error(form, best)  # judged one by one they would be others


class Colours(nn.Module):
    """Channels that are multiples of a colour of the image, and layers that read multiples of them all alike."""

    def __init__(self, colours: list[int], scales: list[float], reads: list[list[float]]) -> None:
        super().__init__()
        self.write = nn.Conv2d(3, len(scales), 1, bias=False)
        self.write.weight.data = torch.diag(torch.tensor(scales)) @ torch.eye(3)[colours]
        self.write.weight.data = self.write.weight.data[:, :, None, None]
        self.read = nn.ModuleList(nn.Conv2d(len(scales), 2, 3) for _ in reads)
        kernel = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        for layer, columns in zip(self.read, reads, strict=True):
            layer.weight.data = kernel * torch.tensor(columns).view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.write(x)
        return torch.cat([layer(x).mean((2, 3)) for layer in self.read], 1)


def ranking_of(model: nn.Module, **settings: Any) -> Ranking:
    return genetic(**settings)(model, task_of(trace(model, torch.zeros(1, 3, 8, 8))), IMAGES, LABELS)


def test_the_form_is_the_error_of_the_outputs() -> None:
    """The parts of all channels are multiples of one signal, so that their products are known without any noise."""
    model = Colours([0] * 4, [1.0, 2.0, -1.0, 0.5], [[1.0, 1.0, 2.0, 0.0], [2.0, -1.0, 0.0, 1.0]]).eval()
    (form,) = genetic()._forms(model, task_of(trace(model, torch.zeros(1, 3, 8, 8))), IMAGES, LABELS)
    expected = torch.zeros(4, 4)
    for parts in (torch.tensor([1.0, 2, -2, 0]), torch.tensor([2.0, -2, 0, 0.5])):
        expected += torch.outer(parts, parts) / parts.sum() ** 2
    torch.testing.assert_close(form, expected, rtol=1e-3, atol=1e-4)


def test_sampled_products_are_those_of_the_outputs_on_average() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, padding=1)
    model = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(180, 4)).eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    form = genetic(samples=200)._forms(model, task_of(topology), IMAGES, LABELS)[0]
    with torch.no_grad():
        x = first(IMAGES[:]).relu()
        alone = [F.conv2d(x[:, [c]], second.weight[:, [c]], padding=1).flatten() for c in range(6)]
    parts = torch.stack(alone)
    expected = parts @ parts.T / parts.sum(0).square().sum()
    torch.testing.assert_close(form, expected, rtol=0, atol=0.05 * float(expected.max()))


def test_channels_that_cancel_go_together() -> None:
    """One by one the two would be the last to go, and the others say more than what is left of them: nothing."""
    ranking = ranking_of(Colours([0, 0, 1, 2, 1], [9.0, -9.0, 2.0, 2.0, 1.0], [[1.0] * 5]).eval())
    assert set(ranking.scores[0].argsort()[-2:].tolist()) == {0, 1}
    assert ranking.kept(torch.tensor([3])) == [[2, 3, 4]]
    assert ranking.kept(torch.tensor([5])) == [[0, 1, 2, 3, 4]]


def test_of_duplicates_one_stays() -> None:
    """Two pairs that are alike, by turns: without both of one twice as much is missing as without one of each."""
    (kept,) = ranking_of(Colours([0, 1, 0, 1], [1.0] * 4, [[1.0] * 4]).eval()).kept(torch.tensor([2]))
    assert {channel % 2 for channel in kept} == {0, 1}


def test_what_is_chosen_does_not_depend_on_what_was_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 1), nn.ReLU(), nn.Conv2d(24, 2, 1)).eval()
    # One generation does not find the best, so that what it finds is by chance.
    first, second = (ranking_of(model, generations=1) for _ in range(2))
    assert first.choose is not None and second.choose is not None
    chosen = [first.choose(group, width) for group, width in ((0, 9), (0, 12), (1, 12))]
    assert [second.choose(group, width) for group, width in ((1, 12), (0, 12), (0, 9))] == chosen[::-1]
    assert first.choose(0, 9) == chosen[0]
    assert ranking_of(model, generations=1, seed=1).kept(torch.tensor([12, 12])) != chosen[1:]
