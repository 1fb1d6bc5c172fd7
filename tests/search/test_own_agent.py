"""The code of docs/adding-an-agent.md, as it stands there."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from searching import agent_of, bandit, run_search, without_time

from gnnrl_lightning.library.components import build
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology

PAGE = (Path(__file__).parents[2] / "docs" / "adding-an-agent.md").read_text()


def blocks(language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    """The page's configuration, whose agent Python finds."""
    (source, *_), (text,) = blocks("python"), blocks("yaml")
    (tmp_path / "cross_entropy.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cross_entropy", raising=False)
    node = OmegaConf.create(text)
    assert isinstance(node, DictConfig)
    return node


def searched(config: DictConfig, topology: Topology, folder: Path, episodes: int, iterations: int | None = None) -> Any:
    env = bandit(topology)
    agent = build(config, task=env.task(list))
    return run_search(SearchModule(agent, env, episodes, 0, {}), folder, iterations)


def test_the_agent_of_the_page_searches(config: DictConfig, resnet20_topology: Topology, tmp_path: Path) -> None:
    module = searched(config, resnet20_topology, tmp_path / "own", 160)
    baseline = SearchModule(agent_of("random", resnet20_topology), bandit(resnet20_topology), 160, 0, {})
    random = run_search(baseline, tmp_path / "random")
    assert module.best["reward"] > 0.85 * random.best["reward"]  # rewards are negative


def test_the_agent_of_the_page_resumes(config: DictConfig, resnet20_topology: Topology, tmp_path: Path) -> None:
    whole = searched(config, resnet20_topology, tmp_path / "whole", 50)
    searched(config, resnet20_topology, tmp_path / "stopped", 50, iterations=1)
    resumed = searched(config, resnet20_topology, tmp_path / "stopped", 50)
    assert len(whole.history) == 50 and without_time(resumed.history) == without_time(whole.history)


def test_ppo_of_another_library_trains_on_the_environment() -> None:
    made: dict[str, Any] = {}
    with torch.random.fork_rng():
        for block in blocks("python")[1:]:
            exec(compile(block, "adding-an-agent.md", "exec"), made)
    env, best, small = made["env"], made["best"], made["small"]
    assert made["agent"].num_timesteps == 128
    assert len(env.rewards) > 10 and all(env.cost(torch.tensor(widths)) <= env.allowed for widths in env.rewards)
    with torch.no_grad():
        right = small(made["images"][1000:]).argmax(1) == made["labels"][1000:]
    assert 100 * float(right.float().mean()) - 100 == pytest.approx(env.rewards[best]) == max(env.rewards.values())
    assert env.rewards[best] > -50  # of ten classes; chance is -90
