from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from searching import bandit, run_search
from torch import Tensor, nn

from gnnrl_lightning.problem.task import Cost, Task
from gnnrl_lightning.searching.agents.global_ranking import GlobalAgent
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology, trace

NEVER = torch.Generator()


def chain(*widths: int, **options: float) -> Topology:
    """Convolutions one after the other, each of them a group."""
    layers: list[nn.Module] = []
    for width, following in zip((3, *widths), (*widths, 2), strict=True):
        layers += [nn.Conv2d(width, following, 1), nn.ReLU()]
    return trace(nn.Sequential(*layers), torch.zeros(1, 3, 4, 4), **options)  # type: ignore[arg-type]


def drawn(topology: Topology, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(group.width, generator=generator) for group in topology.groups]


def agent_for(topology: Topology, allowed: int, scores: Callable[[], list[Tensor]], cost: Cost) -> GlobalAgent:
    return GlobalAgent(Task(topology, cost, allowed, topology.full_widths(), scores))


def channels(widths: Tensor) -> Tensor:
    """A cost of which every channel has the same part."""
    return widths.sum(-1)


@pytest.mark.parametrize(
    ("allowed", "widths"),
    # The scores in order: 0.1 (second), 0.2 (first), 0.3 (second), 0.4 and 0.5 (first), 0.6 …
    [(10, [4, 6]), (9, [4, 5]), (8, [3, 5]), (7, [3, 4]), (5, [1, 4]), (4, [1, 3]), (2, [1, 1])],
)
def test_one_threshold_for_the_whole_network(allowed: int, widths: list[int]) -> None:
    scores = [torch.tensor([0.5, 0.2, 0.55, 0.4]), torch.tensor([0.6, 0.1, 0.9, 0.3, 0.8, 0.7])]
    assert agent_for(chain(4, 6), allowed, lambda: scores, channels).widths.tolist() == widths


def one_after_the_other(task: Task) -> Tensor:
    """What is left when channels go one by one, the least first, to the budget; then what fits comes back."""
    groups, gone = task.topology.groups, [0] * len(task.topology.groups)
    ranked = [(s, index, c) for index, each in enumerate(task.scores()) for c, s in enumerate(each.tolist())]

    def left() -> Tensor:
        pairs = zip(groups, gone, strict=True)
        return torch.tensor([min(w for w in group.widths() if w >= group.width - count) for group, count in pairs])

    order = [index for _, index, _ in sorted(ranked)]
    removed = 0
    while task.cost(left()) > task.allowed:
        gone[order[removed]] += 1
        removed += 1
    widths = left()
    for index in reversed(order[:removed]):
        more = [width for width in groups[index].widths() if width > widths[index]]
        wider = widths.clone()
        wider[index] = more[0] if more else widths[index]
        if task.cost(wider) <= task.allowed:
            widths = wider
    return widths


@pytest.mark.parametrize("budget", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("divisor", [1, 8])
def test_it_is_what_removing_one_channel_after_another_gives(budget: float, divisor: int) -> None:
    topology = chain(20, 36, 64, 24, min_keep=0.1, divisor=divisor)
    for seed in range(5):
        scores = drawn(topology, seed)
        agent = agent_for(topology, int(budget * topology.macs()), lambda scores=scores: scores, topology.macs)
        assert torch.equal(agent.widths, one_after_the_other(agent._task))
        for width, group in zip(agent.widths.tolist(), topology.groups, strict=True):
            assert width in group.widths()


def test_of_equal_scores_the_first_in_the_network_go(resnet20_topology: Topology) -> None:
    scores = [torch.ones(group.width) for group in resnet20_topology.groups]
    agent = agent_for(resnet20_topology, int(resnet20_topology.full_widths().sum()) - 20, lambda: scores, channels)
    left = resnet20_topology.full_widths()
    left[0], left[1] = 2, 10  # 14 of the first, which keeps two, then 6 of the second
    assert torch.equal(agent.widths, left)


def test_thousands_of_channels_take_a_few_evaluations() -> None:
    topology, asked = chain(2000, 2000), []

    def cost(widths: Tensor) -> Tensor:
        asked.append(widths)
        return topology.macs(widths)

    agent = agent_for(topology, topology.macs() // 2, lambda: drawn(topology), cost)
    assert topology.macs() // 2 * 0.999 < topology.macs(agent.widths) <= topology.macs() // 2
    assert len(asked) <= 16


def test_it_proposes_one_network(resnet20_topology: Topology, tmp_path: Path) -> None:
    env, scores = bandit(resnet20_topology), []
    agent = GlobalAgent(env.task(lambda: scores))
    scores += drawn(resnet20_topology)  # they are only there when the search begins
    module = run_search(SearchModule(agent, env, 3, 0, {}), tmp_path)
    (widths,) = {row["widths"] for row in module.history}
    assert [row["cached"] for row in module.history] == [0, 1, 1] and module.history[0]["steps"] == 1
    assert widths.split() == [str(width) for width in agent.widths.tolist()]  # the environment leaves it as it is
    assert agent.state_dict() == {}


def test_ratios_are_of_what_is_still_kept(resnet20_topology: Topology) -> None:
    env = bandit(resnet20_topology)
    agent = GlobalAgent(env.task(lambda: drawn(resnet20_topology)))
    kept = torch.tensor([1.0, 0.9, 0.02]).unsqueeze(1).expand(3, 12)
    ratios = agent.propose(kept, NEVER)
    assert (ratios >= 0).all() and (ratios < 1).all()
    share = agent.widths / resnet20_topology.full_widths()
    torch.testing.assert_close(kept * (1 - ratios), torch.minimum(kept, share.expand_as(kept)))
