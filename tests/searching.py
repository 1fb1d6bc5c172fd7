"""A search without images: agents as configured, an environment with an analytic reward, and a real trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from gnnrl_lightning.library.components import build
from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.searching.callbacks import SearchState
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology

AGENTS = Path(__file__).resolve().parents[1] / "conf" / "agent"


def agent_of(name: str, topology: Topology, seed: int = 0, **changed: Any) -> Any:
    """An agent with the settings of conf/agent, initialised from a seed."""
    torch.manual_seed(seed)
    scores = [torch.arange(float(group.width)) for group in topology.groups]
    return build(settings(name, **changed), task=bandit(topology).task(lambda: scores, plans=dict))


def settings(name: str, **changed: Any) -> DictConfig:
    """What conf/agent says of an agent; one that says more than that has it under `agent`."""
    found = OmegaConf.load(AGENTS / f"{name}.yaml")
    merged = OmegaConf.merge(found.get("agent", found), changed)
    assert isinstance(merged, DictConfig)
    return merged


def in_iterations_of(name: str, episodes: int) -> dict[str, int]:
    """The setting with which an agent learns after so many episodes, if it has one."""
    key = "episodes_per_iteration"
    return {key: episodes} if key in OmegaConf.load(AGENTS / f"{name}.yaml") else {}


def target(topology: Topology) -> Tensor:
    """The fractions that the analytic reward wants kept: the later a group, the more; [G]."""
    return torch.linspace(0.2, 1.0, len(topology.groups))


def bandit(
    topology: Topology, budget: float = 0.5, max_steps: int = 5, evaluate: Callable[[Tensor], float] | None = None
) -> PruningEnv:
    """The reward is how near the kept fractions are to `target`; no network is evaluated."""

    def near(widths: Tensor) -> float:
        return -100 * float((widths / topology.full_widths() - target(topology)).abs().mean())

    return PruningEnv(topology, topology.macs, budget, evaluate or near, max_steps)


def run_search(module: SearchModule, folder: Path, iterations: int | None = None, **options: Any) -> SearchModule:
    """Searches in a real trainer, as the application does; goes on where the folder's checkpoint stands."""
    state = SearchState(folder)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=module.iterations if iterations is None else iterations,
        logger=False,
        callbacks=[state],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, ckpt_path=state.found, weights_only=True)
    return module


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history as it must repeat: all of it but the seconds."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]
