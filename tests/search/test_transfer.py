"""An encoder that has learned on one network serves another one, frozen or not (GNN-RL, Fig. 8)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from searching import agent_of, bandit, run_search
from torch import Tensor

from gnnrl_lightning.nn.message_passing import LearnedPooling
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology


@pytest.fixture(scope="module")
def source(resnet56_topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short search on ResNet-56."""
    folder = tmp_path_factory.mktemp("source")
    agent = agent_of("gnnrl", resnet56_topology, 7, ppo_epochs=2)
    run_search(SearchModule(agent, bandit(resnet56_topology), 16, 7, {}), folder)
    return folder


def encoder_of(agent: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in agent.policy.encoder.state_dict().items()}


def test_all_but_pooling_is_taken_over(resnet20_topology: Topology, source: Path) -> None:
    there = torch.load(source / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    plain, taken = (
        agent_of("gnnrl", resnet20_topology, encoder_from=folder and str(folder)) for folder in (None, source)
    )
    pools = {f"{name}.weight" for name, m in taken.policy.encoder.named_modules() if isinstance(m, LearnedPooling)}
    before, after = encoder_of(plain), encoder_of(taken)
    assert len(pools) == 2
    for name, value in after.items():
        if name in pools:
            assert torch.equal(value, before[name])
        elif name != "_random":
            assert torch.equal(value, there[f"agent.policy.encoder.{name}"])
    assert not torch.equal(after["node.weight"], before["node.weight"])


def test_a_frozen_encoder_stays_and_the_heads_learn(resnet20_topology: Topology, source: Path, tmp_path: Path) -> None:
    agent = agent_of("gnnrl", resnet20_topology, encoder_from=str(source), freeze_encoder=True)
    before, head = encoder_of(agent), agent.policy.graph_head[0].weight.clone()
    module = run_search(SearchModule(agent, bandit(resnet20_topology), 96, 0, {}), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in encoder_of(agent).items())
    assert not torch.equal(agent.policy.graph_head[0].weight, head)
    rewards = [row["reward"] for row in module.history]
    assert sum(rewards[-16:]) > 0.85 * sum(rewards[:16])


def test_embedding_once_an_update_changes_nothing(resnet20_topology: Topology, source: Path, tmp_path: Path) -> None:
    states = []
    for once in (True, False):
        agent = agent_of("gnnrl", resnet20_topology, encoder_from=str(source), freeze_encoder=True)
        agent.freeze_encoder = once  # else every epoch embeds anew
        run_search(SearchModule(agent, bandit(resnet20_topology), 32, 0, {}), tmp_path / str(once))
        states.append(agent.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])


def test_what_is_no_encoder_is_refused(resnet20_topology: Topology, source: Path, tmp_path: Path) -> None:
    def take(folder: Path, **changed: Any) -> None:
        agent_of("gnnrl", resnet20_topology, encoder_from=str(folder), **changed)

    with pytest.raises(ValueError, match=r"agent\.encoder_from=.*is not the folder of a search: .*last\.ckpt does not"):
        take(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"agent\.encoder_from=.*has another encoder \(.*give the agent\.encoder\.…"):
        take(source, encoder={"hidden_size": 40})
    run_search(SearchModule(agent_of("random", resnet20_topology), bandit(resnet20_topology), 2, 0, {}), tmp_path)
    with pytest.raises(ValueError, match=r"has no encoder; it must be the folder of a search with agent=gnnrl"):
        take(tmp_path)
