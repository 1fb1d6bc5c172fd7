import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from searching import agent_of, bandit, in_iterations_of, run_search, without_time
from torch import Tensor, nn

from gnnrl_lightning.searching.module import HISTORY, SearchModule
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.training.checkpoints import read_checkpoint

SETTINGS = {"budget": 0.5, "model": {"name": "resnet20"}, "seed": 3}


def module_of(
    topology: Topology, agent: str = "gnnrl", episodes: int = 14, seed: int = 3, **changed: Any
) -> SearchModule:
    changed = in_iterations_of(agent, 4) | changed
    return SearchModule(agent_of(agent, topology, **changed), bandit(topology), episodes, seed, SETTINGS)


@pytest.mark.parametrize(("episodes", "iterations"), [(14, 4), (12, 3), (3, 1), (1, 1), (13, 4)])
def test_as_many_episodes_as_asked_for(
    resnet20_topology: Topology, tmp_path: Path, episodes: int, iterations: int
) -> None:
    """Also where they are no multiple of an iteration's, down to a last iteration of a single episode."""
    module = run_search(module_of(resnet20_topology, episodes=episodes), tmp_path)
    assert len(module.history) == episodes
    assert module.history[-1]["iteration"] == iterations - 1
    assert [row["episode"] for row in module.history] == list(range(episodes))
    assert all(parameter.isfinite().all() for parameter in module.agent.parameters())


@pytest.mark.parametrize("agent", ["gnnrl", "random", "uniform"])
def test_history(resnet20_topology: Topology, tmp_path: Path, agent: str) -> None:
    module = run_search(module_of(resnet20_topology, agent), tmp_path)
    best = -float("inf")
    seen = set()
    for row in module.history:
        assert tuple(row) == HISTORY
        widths = torch.tensor([int(width) for width in row["widths"].split()])
        assert row["cost"] == int(resnet20_topology.macs(widths))
        assert row["cost_ratio"] == pytest.approx(row["cost"] / int(resnet20_topology.macs()), abs=1e-6)
        assert 0.495 <= row["cost_ratio"] <= 0.5
        assert row["reward"] == module.env.evaluate(widths)
        best = max(best, row["reward"])
        assert row["best_reward"] == best
        assert row["cached"] == (row["widths"] in seen)
        seen.add(row["widths"])
        assert 1 <= row["steps"] <= 5 and row["seconds"] >= 0
    assert len(seen) == (1 if agent == "uniform" else 14)
    assert module.best["reward"] == best

    with (tmp_path / "history.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [{name: str(value) for name, value in row.items()} for row in module.history] == written
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "history.csv", "last.ckpt"]


def test_finalists_are_the_best_distinct_networks(resnet20_topology: Topology) -> None:
    module = module_of(resnet20_topology)
    for reward, widths in [(-3.0, "1 2"), (-1.0, "3 4"), (-1.0, "3 4"), (-2.0, "5 6"), (-9.0, "7 8")]:
        module.history.append({"reward": reward, "widths": widths})
    assert [widths.tolist() for widths in module.finalists(3)] == [[3, 4], [5, 6], [1, 2]]
    assert len(module.finalists(99)) == 4


def parameters(module: SearchModule) -> list[Tensor]:
    return [value.clone() for value in module.agent.state_dict().values()]


@pytest.mark.parametrize("agent", ["gnnrl", "random"])
def test_the_seed_decides(resnet20_topology: Topology, tmp_path: Path, agent: str) -> None:
    runs = [
        run_search(module_of(resnet20_topology, agent, seed=seed), tmp_path / str(i))
        for i, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (without_time(run.history) for run in runs)
    assert first == again
    assert [row["widths"] for row in first] != [row["widths"] for row in other]
    assert all(torch.equal(a, b) for a, b in zip(parameters(runs[0]), parameters(runs[1]), strict=True))


@pytest.mark.parametrize("agent", ["gnnrl", "random"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_search_ends_as_the_uninterrupted_one(
    resnet20_topology: Topology, tmp_path: Path, agent: str, stop_after: int
) -> None:
    whole = run_search(module_of(resnet20_topology, agent), tmp_path / "whole")
    run_search(module_of(resnet20_topology, agent), tmp_path / "stopped", iterations=stop_after)
    torch.manual_seed(99)  # what the new process would draw must not matter
    resumed = run_search(module_of(resnet20_topology, agent), tmp_path / "stopped")
    assert len(resumed.history) == 14
    assert without_time(resumed.history) == without_time(whole.history)
    for ours, theirs in zip(parameters(resumed), parameters(whole), strict=True):
        assert torch.equal(ours, theirs)


def test_the_seconds_of_all_parts_of_a_search_count(resnet20_topology: Topology, tmp_path: Path) -> None:
    def seconds() -> float:
        return float(read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["search"]["seconds"])

    first = run_search(module_of(resnet20_topology), tmp_path, iterations=1)
    before = seconds()
    assert before > 0 and first.seconds_before == 0
    resumed = run_search(module_of(resnet20_topology), tmp_path)
    assert resumed.seconds_before == before < seconds()


def test_resuming_a_finished_search_changes_nothing(resnet20_topology: Topology, tmp_path: Path) -> None:
    done = run_search(module_of(resnet20_topology), tmp_path)
    again = run_search(module_of(resnet20_topology), tmp_path)
    assert again.history == done.history


def test_a_checkpoint_of_another_search_is_refused(resnet20_topology: Topology, tmp_path: Path) -> None:
    run_search(module_of(resnet20_topology), tmp_path, iterations=1)
    other = module_of(resnet20_topology)
    other.settings = SETTINGS | {"budget": 0.3}
    with pytest.raises(ValueError, match=r"budget=0\.5.*resume with the same settings") as error:
        run_search(other, tmp_path)
    assert "\n" not in str(error.value) and "model" not in str(error.value)


def test_rewards_of_a_resumed_search_are_not_computed_again(resnet20_topology: Topology, tmp_path: Path) -> None:
    stopped = run_search(module_of(resnet20_topology), tmp_path, iterations=2)
    resumed = module_of(resnet20_topology)
    asked: list[str] = []
    near = resumed.env.evaluate
    resumed.env.evaluate = lambda widths: asked.append(" ".join(map(str, widths.tolist()))) or near(widths)
    run_search(resumed, tmp_path)
    assert asked and not {row["widths"] for row in stopped.history} & set(asked)


def test_a_second_rank_goes_on_with_its_own_random_numbers() -> None:
    """`Generator.set_state` of torch 2.14.1 reads past a view: a search on two ranks could not be resumed."""
    fit_loop = SimpleNamespace(max_epochs=1)
    changed = {"global_rank": 1, "trainer": SimpleNamespace(fit_loop=fit_loop), "iterations": 1}
    module: Any = type("Second", (SearchModule,), changed).__new__(type("Second", (SearchModule,), changed))
    nn.Module.__init__(module)
    module.seed = 0
    module._generator_state = torch.stack([torch.Generator().manual_seed(seed).get_state() for seed in (3, 4)])
    module.on_fit_start()
    wanted = torch.rand(3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(torch.rand(3, generator=module._generator), wanted)
