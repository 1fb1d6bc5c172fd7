from pathlib import Path

import pytest
import torch
from commands import Outcome, run

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.topology import Topology, trace

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="session")
def resnet20_topology() -> Topology:
    return trace(resnet_cifar(20, 10), IMAGE, min_keep=0.1)


@pytest.fixture(scope="session")
def resnet56_topology() -> Topology:
    return trace(resnet_cifar(56, 10), IMAGE, min_keep=0.1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a search that takes seconds; all that use them share one base network."""
    settings = (
        "model=resnet20 budget=0.5 episodes=24 agent.episodes_per_iteration=2 base.epochs=2 base.max_steps=10 "
        "finish.steps=2 finetune.max_steps=1 reward_images=50 finalists=2 recovery.images=64 trainer=cpu"
    )
    return [*settings.split(), f"paths.cache={tmp_path_factory.mktemp('cache')}"]


@pytest.fixture(scope="session")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder of a search that ran from beginning to end in a process of its own, and how it ended."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run("search.py", [*tiny, f"hydra.run.dir={folder}"], folder.parent)
