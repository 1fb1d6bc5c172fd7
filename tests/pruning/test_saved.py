"""A network that is not the saved one is never returned."""

import copy
import json
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34

import gnnrl_lightning as gl
from gnnrl_lightning.models.resnet_cifar import resnet_cifar

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Swap(nn.Module):
    """By surgery it runs as well, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n, self.b = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.n(self.a(x)).relu()
        return self.b(torch.cat([h[:, 8:], h[:, :8]], 1))


def pruned(model: nn.Module) -> tuple[nn.Module, gl.PruningPlan]:
    plan = gl.uniform_plan(gl.trace(model, X[:1]), model, keep=0.75)
    return gl.apply_plan(model, plan), plan


@pytest.mark.parametrize(
    "moved",
    [
        lambda network: pickle.loads(pickle.dumps(network)),
        copy.deepcopy,
        lambda network: copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(network)))),
    ],
    ids=["pickled", "copied", "both"],
)
def test_a_rewritten_network_stays_one(moved: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    small, plan = pruned(Swap())
    small.train()
    again = moved(small)
    assert gl.is_rewritten(small) and gl.is_rewritten(again)
    assert [module.training for module in again.modules()] == [module.training for module in small.modules()]
    assert torch.equal(again.eval()(X), small.eval()(X))
    gl.save_pruned(tmp_path, again, plan)
    assert torch.equal(gl.load_pruned(tmp_path, Swap())(X), small(X))


def test_what_surgery_makes_of_a_rewritten_network_is_not_rewritten() -> None:
    once, _ = pruned(Swap())
    topology = gl.trace(once, X[:1])
    plan = gl.plan(topology, topology.full_widths())
    twice = gl.apply_plan(once, plan)
    assert not gl.is_rewritten(twice) and torch.equal(twice(X), once(X))


def test_a_plan_is_for_one_network() -> None:
    small, large = resnet18().eval(), resnet34().eval()
    x = torch.zeros(1, 3, 32, 32)
    plan = gl.uniform_plan(gl.trace(small, x), small)
    with pytest.raises(gl.UserError, match="for another network: it names 12 groups of channels, not layer"):
        gl.apply_plan(large, plan)
    with pytest.raises(gl.UserError, match=r"for another network: group layer.* and does not exist in ResNet"):
        gl.apply_plan(small, gl.uniform_plan(gl.trace(large, x), large))


def test_the_unpruned_network_is_not_saved_as_the_pruned_one(tmp_path: Path) -> None:
    model = resnet_cifar(8, 10).eval()
    small, plan = pruned(model)
    with pytest.raises(gl.UserError, match="has all channels that the plan removes; save what apply_plan"):
        gl.save_pruned(tmp_path / "whole", model, plan)
    assert not (tmp_path / "whole").exists()
    gl.save_pruned(tmp_path, small, plan)


def test_code_that_has_changed_since_is_noticed(tmp_path: Path) -> None:
    small, plan = pruned(Swap())
    gl.save_pruned(tmp_path, small, plan)

    class Changed(Swap):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.raises(gl.UserError, match="gives other scores than the network that was saved"):
        gl.load_pruned(tmp_path, Changed())


def test_patterns_of_a_file_are_not_run(tmp_path: Path) -> None:
    model = resnet_cifar(8, 10).eval()
    plan = gl.uniform_plan(gl.trace(model, X[:1], exclude=["conv1[.]weight$"]), model)
    assert set(plan.exclude) >= {"conv1.weight", "layer1.0.conv1.weight"}
    plan.save(tmp_path / "plan.json")
    written = json.loads((tmp_path / "plan.json").read_text())
    written["exclude"] = ["(.*.*.*.*.*.*.*.*.*)*x$"]
    (tmp_path / "plan.json").write_text(json.dumps(written))
    began = time.monotonic()
    with pytest.raises(gl.UserError, match="matches no parameter"):
        gl.apply_plan(model, gl.PruningPlan.load(tmp_path / "plan.json"))
    assert time.monotonic() - began < 5


def mutated(value: Any, draw: random.Random) -> Any:
    """Something in a JSON value is something else."""
    others = [0, -1, 10**30, 1.5, "x", "(a+)+$", None, True, [], {}, [[]], float("inf"), float("nan")]
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(sorted(value))
        if draw.random() < 0.2:
            return {name: each for name, each in value.items() if name != key}
        return value | {key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        place = draw.randrange(len(value))
        if draw.random() < 0.2:
            return value[:place] + value[place + 1 :]
        return [*value[:place], mutated(value[place], draw), *value[place + 1 :]]
    return draw.choice([other for other in others if repr(other) != repr(value)])


@pytest.mark.parametrize("rewritten", [False, True])
def test_damaged_files_give_the_saved_network_or_one_sentence(rewritten: bool, tmp_path: Path) -> None:
    model = Swap() if rewritten else resnet_cifar(8, 10).eval()
    small, plan = pruned(model)
    gl.save_pruned(tmp_path, small, plan)
    files = {name: (tmp_path / name).read_bytes() for name in ("plan.json", "pruned.safetensors")}
    draw = random.Random(0)
    refused = 0
    for number in range(100):
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        if number % 2:
            data = bytearray(files["pruned.safetensors"])
            for _ in range(draw.choice([1, 1, 8])):
                data[draw.randrange(len(data) if draw.random() < 0.5 else 600)] ^= 1 << draw.randrange(8)
            (tmp_path / "pruned.safetensors").write_bytes(data)
        else:
            value = mutated(json.loads(files["plan.json"]), draw)
            (tmp_path / "plan.json").write_text(json.dumps(value))
        began = time.monotonic()
        try:
            loaded = gl.load_pruned(tmp_path, copy.deepcopy(model))
        except gl.UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert torch.equal(loaded(X), small(X))
        assert time.monotonic() - began < 5
    assert refused > 90
