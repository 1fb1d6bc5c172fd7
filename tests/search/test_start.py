"""Searches that open with plans, and agents that begin at the best of them."""

from pathlib import Path

import pytest
import torch
from searching import agent_of, bandit, run_search, target, without_time
from torch import Tensor

from gnnrl_lightning.searching.agents.start import DrawsNear
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology

BEGINNERS = ("amc", "agmc", "closed_form", "evolution", "gnnrl", "gnnrl_ddpg", "random")


def plans(topology: Topology) -> dict[str, Tensor]:
    """Uniform widths, and what the analytic reward likes."""
    env = bandit(topology)
    ratios = (1 - 0.9 * target(topology)).unsqueeze(0)
    start = torch.ones_like(ratios, dtype=torch.float64)
    return {"uniform": env.task(list).uniform, "good": env.advance(start, ratios, 4)[1][0]}


@pytest.mark.parametrize("name", BEGINNERS)
def test_an_agent_begins_near_the_best_plan(resnet20_topology: Topology, name: str) -> None:
    agent = agent_of(name, resnet20_topology)
    kept = plans(resnet20_topology)["good"] / resnet20_topology.full_widths().double()
    whole, generator = torch.ones(32, 12), torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = 1 - agent.propose(whole, generator)
        agent.begin(kept)
        after = 1 - agent.propose(whole, generator)
    near, far = ((x.double() - kept).abs().mean() for x in (after, before))
    assert near < 0.12 and (near < far or name == "closed_form")
    if name != "closed_form":
        assert len(after.unique(dim=0)) == 32


def test_a_search_opens_with_plans_and_resumes_to_the_same_end(resnet20_topology: Topology, tmp_path: Path) -> None:
    def module() -> SearchModule:
        agent = agent_of("random", resnet20_topology, episodes_per_iteration=4)
        return SearchModule(agent, bandit(resnet20_topology), 14, 0, {}, lambda: plans(resnet20_topology))

    whole = run_search(module(), tmp_path / "whole")
    first = [[int(width) for width in row["widths"].split()] for row in whole.history[:2]]
    assert first == [plan.tolist() for plan in plans(resnet20_topology).values()] and len(whole.history) == 14
    assert isinstance(whole.agent, DrawsNear) and whole.agent.has_plan
    run_search(module(), tmp_path / "killed", iterations=2)
    resumed = run_search(module(), tmp_path / "killed")
    assert without_time(resumed.history) == without_time(whole.history)


def test_closed_form_evaluates_the_plans_and_nothing_else(resnet20_topology: Topology, tmp_path: Path) -> None:
    asked: list[Tensor] = []

    def evaluate(widths: Tensor) -> float:
        asked.append(widths)
        return -float(len(asked))

    env = bandit(resnet20_topology, evaluate=evaluate)
    module = SearchModule(agent_of("closed_form", resnet20_topology), env, 7, 0, {}, lambda: plans(resnet20_topology))
    searched = run_search(module, tmp_path)
    assert len(asked) == 2 and len(searched.history) == 7
    assert searched.best["widths"] == searched.history[-1]["widths"] == searched.history[0]["widths"]


def test_closed_form_needs_plans(resnet20_topology: Topology) -> None:
    from gnnrl_lightning.searching.agents.closed_form import ClosedFormAgent

    with pytest.raises(ValueError, match=r"agent=closed_form .* give start=closed_form\.$"):
        ClosedFormAgent(bandit(resnet20_topology).task(list))
