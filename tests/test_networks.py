"""The networks of the papers, each through the whole search."""

import json
from pathlib import Path

import pytest
import torch
from commands import run
from torch.utils.flop_counter import FlopCounterMode

import gnnrl_lightning as gl

NETWORKS = (
    "resnet20,resnet32,resnet44,resnet56,resnet110,resnet18,resnet50,vgg16,vgg16_bn,"
    "mobilenet_v1,mobilenet_v2,shufflenet_v1,shufflenet_v2"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS.split(","))
def test_a_search_of_each_network_of_the_papers(name: str, tmp_path: Path) -> None:
    small = "data.test_images=100 reward_images=50 recovery.images=64 finetune.max_steps=2 base.max_steps=4 trainer=cpu"
    overrides = [f"model={name}", "budget=0.5", "debug=fast", *small.split(), f"hydra.run.dir={tmp_path / 'run'}"]
    outcome = run("search.py", overrides, tmp_path)
    assert outcome.code == 0, outcome.err
    stages = json.loads((tmp_path / "run" / "results.json").read_text())["networks"]
    original, pruned = stages[0], next(stage for stage in stages if stage["name"] == "pruned")
    assert 0.495 * original["macs"] < pruned["macs"] <= 0.5 * original["macs"]
    network = gl.load_pruned(tmp_path / "run")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert counter.get_total_flops() == 2 * pruned["macs"]


@pytest.mark.slow
def test_the_first_command_begins_with_a_network_that_has_learned(tmp_path: Path) -> None:
    overrides = "model=mobilenet_v2 budget=0.9 agent=random episodes=2 finetune.max_steps=0 trainer=cpu".split()
    outcome = run("search.py", [*overrides, f"hydra.run.dir={tmp_path / 'run'}"], tmp_path)
    assert outcome.code == 0, outcome.err
    original, *_ = json.loads((tmp_path / "run" / "results.json").read_text())["networks"]
    assert original["top1"] > 95
