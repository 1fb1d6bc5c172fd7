"""The search from Python: any task, any structure of inputs, and what is called wrongly."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from two_inputs import TwoInputs

import gnnrl_lightning as gl
from gnnrl_lightning.app.config import register
from gnnrl_lightning.core.samples import IMAGENET
from gnnrl_lightning.library.components import build
from gnnrl_lightning.models.resnet_cifar import resnet_cifar

ROOT = Path(__file__).parents[1]
QUICK: dict[str, Any] = {"agent": "closed_form", "finish": {"steps": 4}}


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(128, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet_cifar(8, 10).eval()


def macs_share(found: gl.Found) -> float:
    topology = found.problem.prunable.unpruned
    return float(topology.macs(torch.tensor(found.plan.widths)) / topology.macs())


def check_files(found: gl.Found, original: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Path) -> None:
    """Saved, loaded, exported and reported."""
    page = found.report(out).read_text()
    assert "Before and after" in page and (out / "figures" / "reward.png").is_file()
    wanted = pytree.tree_leaves(found.model(*args, **kwargs))
    loaded = gl.load_pruned(out, original)
    exported = torch.export.export(loaded, args, kwargs).module()
    for network in (loaded, exported):
        torch.testing.assert_close(pytree.tree_leaves(network(*args, **kwargs)), wanted, rtol=1e-3, atol=1e-3)


def test_a_loader_with_targets_is_enough(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    labels = network(images).argmax(1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=48)
    seeded = torch.get_rng_state()
    found = gl.search(network, (images, labels), budget=0.5, episodes=12, finish={"steps": 4})
    assert torch.equal(torch.get_rng_state(), seeded), "the caller's random numbers are left alone"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert 0.45 < macs_share(found) <= 0.5
    assert len(found.history) == 12 and found.rewards["original"] == 0
    assert "MACs, M" in found.summary()
    check_files(found, network, (images,), {}, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [stage["reward"] for stage in results["networks"]] == list(found.rewards.values())
    assert results["agent"] == "gnnrl" and results["command"] is None
    again = gl.search(network, loader, budget=0.5, episodes=12, finish={"steps": 4})
    assert again.plan == found.plan and again.history[-1]["widths"] == found.history[-1]["widths"]


def test_several_inputs_by_name_and_no_targets(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TwoInputs().eval()
    data = {"image": images, "depth": images[:, :1] - images[:, 1:2]}
    found = gl.search(network, data, 0.5, reward="kl", **QUICK)
    assert 0.4 < macs_share(found) <= 0.5
    assert found.rewards["original"] == 0 and -1 < found.rewards["pruned"] < 0
    check_files(found, network, (), data, tmp_path)


def test_parts_may_be_objects(network: nn.Module, images: Tensor) -> None:
    class Even(nn.Module):
        episodes_per_iteration = 2

        def __init__(self, task: Any) -> None:
            super().__init__()
            self.groups = len(task.topology.groups)

        def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
            return torch.full_like(observations, 0.3)

        def learn(self, *_: Any) -> dict[str, float]:
            return {}

        def optimizer(self) -> None:
            return None

    class Parameters:
        name, unit = "mine", "M parameters"

        def __init__(self, topology: gl.Topology) -> None:
            self.topology = topology

        def __call__(self, widths: Tensor) -> Tensor:
            return self.topology.parameters(widths)

    found = gl.search(
        network, images, 0.5, reward="kl", agent=Even, cost=Parameters, start="paper", episodes=2, finish=False,
        importance={"name": "l1"}, recovery="none",
    )  # fmt: skip
    topology = found.problem.prunable.unpruned
    assert topology.parameters(torch.tensor(found.plan.widths)) <= 0.5 * topology.parameters()
    assert not found.delivered.finished and "cost, M parameters" in found.summary()


def test_the_same_search_by_command_and_by_library(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = resnet_cifar(20, 10)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    asked = ["model=resnet20", "data=digits", f"weights={tmp_path / 'weights.pt'}", "budget=0.5", "episodes=20"]
    more = ["finish.steps=4", "finetune.epochs=0", "logger=none", "trainer=cpu", f"paths.run={tmp_path / 'run'}"]
    ended = subprocess.run(
        [sys.executable, "search.py", *asked, *more], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    register()
    with initialize(version_base="1.3", config_path="../conf"):
        config = compose("search", [*asked, "paths.root=."])
    data = build(config.data, preprocessing=IMAGENET, seed=0)
    data.prepare_data()
    data.setup()
    found = gl.search(
        network, data.tensors("train", 1024), 0.5, reward_data=data.tensors("reward"), episodes=20, finish={"steps": 4}
    )
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    found.save(tmp_path / "found")
    mine = json.loads((tmp_path / "found" / "plan.json").read_text())
    # Only the command knows how to build the network and which images it saw.
    assert mine.pop("saved").keys() == plan.pop("saved").keys()  # the command shows the finish its images augmented
    assert mine.pop("model") is None is mine.pop("data") and plan.pop("model") and plan.pop("data")
    assert json.dumps(mine) == json.dumps(plan)
    weights = [(tmp_path / folder / "pruned.safetensors").read_bytes() for folder in ("run", "found")]
    assert len(weights[0]) == len(weights[1])


def test_wrapped_networks_are_unwrapped(network: nn.Module, images: Tensor) -> None:
    plans = [
        gl.search(each, images, 0.5, reward="kl", agent="closed_form", finish=False).plan
        for each in (network, nn.DataParallel(network), torch.compile(network))
    ]
    assert plans[0] == plans[1] == plans[2]


def test_a_topology_says_what_can_be_pruned(network: nn.Module, images: Tensor) -> None:
    topology = gl.trace(network, images[:1])
    said = topology.summary()
    assert repr(topology).startswith("Topology of CifarResNet: 6 groups, ")
    assert all(group.name in said for group in topology.groups) and "locked: 10 channels, network output" in said
    again = pickle.loads(pickle.dumps(topology))
    assert again.summary() == said and again.macs() == topology.macs()


def test_a_plan_of_widths(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    topology = gl.trace(network, images[:1])
    first = topology.groups[0]
    plan = gl.plan(topology, {first.name: 5})
    assert plan.widths == [5, *topology.full_widths().tolist()[1:]]
    assert gl.plan(topology, plan.widths) == plan
    plan.save(str(tmp_path / "plan.json"))
    assert gl.PruningPlan.load(str(tmp_path / "plan.json")) == plan
    for widths, said in (({"head": 3}, "no group head"), ([1, 2], "2 widths are given"), ({first.name: 0}, "keep 0")):
        with pytest.raises(gl.UserError, match=said):
            gl.plan(topology, widths)


WRONG: dict[str, tuple[Callable[[nn.Module, Tensor], Any], str]] = {
    "swapped": (lambda n, x: gl.search(x, n, 0.5), "model is a Tensor; it must be the trained network"),
    "state dict": (lambda n, x: gl.search(n.state_dict(), x, 0.5), "load_state_dict it into the network first"),
    "no parameters": (lambda n, x: gl.search(nn.ReLU(), x, 0.5), "ReLU has no parameters"),
    "numpy": (lambda n, x: gl.search(n, [np.zeros((4, 3, 16, 16))], 0.5), "convert arrays with torch.from_numpy"),
    "shape": (lambda n, x: gl.search(n, (4, 3, 16, 16), 0.5), "data"),
    "path": (lambda n, x: gl.search(n, "images/", 0.5), "data is a str; it must be a DataLoader"),
    "no batch": (lambda n, x: gl.search(n, [], 0.5), "data gives no batch"),
    "three parts": (lambda n, x: gl.search(n, [(x, x, x)], 0.5), "has 3 parts"),
    "dicts": (
        lambda n, x: gl.search(n, [{"pixels": x, "label": x}], 0.5),
        "batches of data are dicts with pixels, label",
    ),
    "one image": (lambda n, x: gl.search(n, x[:1], 0.5, reward="kl"), "data has one sample"),
    "targets from 1": (
        lambda n, x: gl.search(n, (x, torch.full((len(x),), 10)), 0.5, **QUICK),
        "a target is class 10, but the network gives 10 scores",
    ),
    "cost of fractions": (
        lambda n, x: gl.search(n, x, 0.5, reward="kl", cost=lambda topology: lambda widths: widths.double().sum(-1)),
        "cost failed (AssertionError: ",
    ),
    "no targets": (lambda n, x: gl.search(n, x, 0.5), 'give reward="kl"'),
    "targets of maps": (lambda n, x: gl.search(n, (x, x), 0.5, agent="uniform"), "top-1 wants scores"),
    "channels": (lambda n, x: gl.search(n, x[:, :1], 0.5, reward="kl"), "cannot be traced"),
    "budget of percent": (
        lambda n, x: gl.search(n, x, 50, reward="kl"),
        "budget=50 is not possible; it must be a fraction",
    ),
    "budget of text": (lambda n, x: gl.search(n, x, "0.5", reward="kl"), "budget='0.5' must be a number"),
    "budget too low": (lambda n, x: gl.search(n, x, 0.001, reward="kl"), "lowest feasible budget"),
    "agent": (lambda n, x: gl.search(n, x, 0.5, reward="kl", agent="ppo"), "agent='ppo' must be one of agmc, amc"),
    "agent's setting": (
        lambda n, x: gl.search(n, x, 0.5, reward="kl", agent={"name": "gnnrl", "rate": 1}),
        "agent='gnnrl' has no setting rate",
    ),
    "cost": (lambda n, x: gl.search(n, x, 0.5, reward="kl", cost="macs"), "cost='macs' must be one of flops"),
    "setting": (lambda n, x: gl.search(n, x, 0.5, episode=3), "search has no setting episode; it has seed"),
    "episodes": (lambda n, x: gl.search(n, x, 0.5, reward="kl", episodes=0), "episodes=0 is not possible"),
    "episodes of text": (
        lambda n, x: gl.search(n, x, 0.5, reward="kl", episodes="many"),
        "it must be a whole number",
    ),
    "reward": (lambda n, x: gl.search(n, x, 0.5, reward="map"), "reward=map is not possible"),
    "refit's setting": (lambda n, x: gl.search(n, x, 0.5, refit={"image": 3}), "refit has no setting image"),
    "finish": (lambda n, x: gl.search(n, x, 0.5, finish={"steps": 0}), "finish.steps=0 is not possible"),
    "score of nothing": (lambda n, x: gl.search(n, x, 0.5, score=lambda _: None, **QUICK), "score gave a NoneType"),
    "score of nan": (lambda n, x: gl.search(n, x, 0.5, score=lambda _: float("nan"), **QUICK), "score gave nan"),
    "score of many": (lambda n, x: gl.search(n, x, 0.5, score=lambda net: net(x), **QUICK), "score gave a Tensor"),
    "no score": (lambda n, x: gl.search(n, x, 0.5, score=0.9, **QUICK), "score is a float"),
    "exclude": (lambda n, x: gl.search(n, x, 0.5, reward="kl", exclude=["^head"]), "matches no parameter"),
    "exclude of text": (lambda n, x: gl.search(n, x, 0.5, reward="kl", exclude="^head"), "must be a list"),
    "labels needed": (lambda n, x: gl.search(n, x, 0.5, reward="kl", importance="taylor"), "Taylor needs targets"),
    "keep": (lambda n, x: gl.uniform_plan(gl.trace(n, x), n, keep="0.5"), "keep='0.5' must be a number in (0, 1]"),
    "plan of another": (
        lambda n, x: gl.apply_plan(resnet18(), gl.uniform_plan(gl.trace(n, x), n)),
        "the plan is for another network",
    ),
    "example": (lambda n, x: gl.trace(n, (1, 3, 16, 16)), "the example input is a tuple"),
    "refit": (lambda n, x: gl.search(n, x, 0.5, refit=5), "refit=5 is not possible; give a mapping of settings"),
    "exclude nothing": (
        lambda n, x: gl.search(n, x, 0.5, exclude=None),
        "exclude=None is not possible; it must be a list of st",
    ),
    "min_keep": (
        lambda n, x: gl.search(n, x, 0.5, min_keep="0.1"),
        "min_keep=0.1 is not possible; it must be a number",
    ),
    "images": (
        lambda n, x: gl.search(n, x, 0.5, refit={"images": None}),
        "refit.images=None is not possible; it must be",
    ),
    "agent made": (
        lambda n, x: gl.search(n, x, 0.5, reward="kl", agent=nn.Linear(1, 1)),
        "or a function of a Task that",
    ),
    "cost of widths": (
        lambda n, x: gl.search(n, x, 0.5, reward="kl", cost=lambda widths: widths.sum(-1)),
        "cost failed (AttributeError: 'Topology' object has no attribute 'sum'); it must be a function of a Topology",
    ),
    "nested setting": (
        lambda n, x: gl.search(n, x, 0.5, reward="kl", agent={"name": "gnnrl", "encoder": {"layers": 3}}),
        "encoder={'layers': 3} must be a mapping of some of feature_size,",
    ),
    "one input": (
        lambda n, x: gl.search(TwoInputs(), {"image": x, "depth": x[:, :1]}, 0.5, reward="kl", importance="genetic"),
        "importance=Genetic wants one input tensor",
    ),
    "width of half a channel": (lambda n, x: gl.plan(gl.trace(n, x[:1]), [8.0] * 6), "cannot keep 8.0 channels"),
    "widths": (lambda n, x: gl.plan(gl.trace(n, x[:1]), 5), "widths=5 must be one number a group"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_sentence(mistake: str, network: nn.Module, images: Tensor) -> None:
    call, said = WRONG[mistake]
    with pytest.raises(gl.UserError) as caught:
        call(network, images)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_import_is_light() -> None:
    heavy = ("lightning", "hydra", "omegaconf", "sklearn", "matplotlib", "wandb", "timm", "torch_geometric", "scipy")
    script = (
        "import time, sys, torch; t = time.perf_counter(); import gnnrl_lightning; "
        f"print(time.perf_counter() - t, [m for m in {heavy} if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, loaded = ended.stdout.split(maxsplit=1)
    print(f"import gnnrl_lightning takes {float(seconds):.2f} s on top of torch")
    assert loaded.strip() == "[]"
