"""What every importance of conf/importance has in common."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from oracle import Pruning
from tiny_networks import traced
from torch import Tensor, nn

from gnnrl_lightning.data import IMAGENET, HeldImages
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.library.components import build
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.verify import provable
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.settings import RefitConfig
from gnnrl_lightning.topology import Topology, trace

FOLDER = Path(__file__).parents[2] / "conf" / "importance"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PIXELS = torch.randint(256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
IMAGES, LABELS = HeldImages(PIXELS, IMAGENET), torch.arange(16) % 4
SMALL: dict[str, dict[str, Any]] = {
    "genetic": {"generations": 10},
    "soft": {"batch_size": 8, "epochs": 2},
    "group_fisher": {"batch_size": 8, "interval": 2, "channels_per_step": 8},
}
TRAINED = ("soft", "group_fisher")
BY_IMAGES = ("taylor", "fisher", "hrank", "genetic", *TRAINED)


def importance(name: str, **settings: Any) -> Any:
    node = OmegaConf.create({"seed": 0, "importance": OmegaConf.load(FOLDER / f"{name}.yaml")})
    node.importance.update({**SMALL.get(name, {}), **settings})
    return build(node.importance)


def task_of(topology: Topology) -> Task:
    """Half of every group may stay."""
    half = torch.tensor([max(1, group.width // 2) for group in topology.groups])
    return Task(topology, topology.macs, int(topology.macs(half)), half, lambda: [])


def rank(name: str, model: nn.Module, topology: Topology, **settings: Any) -> Ranking:
    found = Reconstruction(model, topology, IMAGES, RefitConfig(images=len(IMAGES)))
    return importance(name, **settings)(model, replace(task_of(topology), reconstruction=found), IMAGES, LABELS)


@cache
def residual() -> tuple[nn.Module, Topology]:
    torch.manual_seed(0)
    model = Pruning().randomize(resnet_cifar(8, 4))
    return model, trace(model, torch.zeros(1, 3, 8, 8))


def silence(model: nn.Module, topology: Topology, slots: Tensor) -> nn.Module:
    """A copy in which some channels are always 0: all that writes or shifts them is."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        for dimension in range(parameter.dim()):
            if topology.labels.readers.get(name) != dimension and (name, dimension) in topology.slots:
                dead = torch.isin(topology.slots[name, dimension], slots)
                parameter.data.index_fill_(dimension, dead.nonzero().flatten(), 0.0)
    return model


@pytest.mark.parametrize("name", sorted({*NAMES} - {"random"}))
def test_dead_channels_go_first(name: str) -> None:
    """In a group that residual sums couple, and in one inside a block."""
    model, topology = residual()
    trunk = next(i for i, g in enumerate(topology.groups) if any(m.parameter == "conv1.weight" for m in g.members))
    inner = next(i for i, g in enumerate(topology.groups) if len(g.members) < 8)
    first = topology.full_widths().cumsum(0) - topology.full_widths()
    dead = {trunk: [1, 4], inner: [0, 5]}
    slots = torch.cat([first[group] + torch.tensor(channels) for group, channels in dead.items()])
    ranking = rank(name, silence(model, topology, slots), topology)
    for group, channels in dead.items():
        scores, alive = ranking.scores[group], [c for c in range(topology.groups[group].width) if c not in channels]
        assert scores[channels].max() <= scores[alive].min()
        kept = ranking.kept(task_of(topology).uniform)[group]
        assert len(kept) == topology.groups[group].width // 2 and not set(kept) & set(channels)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"bn_scale"}))
def test_it_ranks_channels_that_are_shuffled(name: str) -> None:
    """… whose network is rewritten, and whose groups mix the layers of two branches."""
    model, topology = traced("shuffle v2")
    ranking = rank(name, model, topology)
    assert [len(scores) for scores in ranking.scores] == [group.width for group in topology.groups]
    assert all(scores.isfinite().all() and scores.device.type == "cpu" for scores in ranking.scores)
    assert any(scores.min() < scores.max() for scores in ranking.scores)
    _, remove = provable(model, topology)
    small = remove(ranking.model or model, topology, ranking.kept(task_of(topology).uniform))
    assert small(IMAGES[:]).shape == (16, 4)


@pytest.mark.parametrize("name", NAMES)
def test_it_changes_nothing_and_equal_seeds_give_equal_scores(name: str) -> None:
    model, topology = residual()
    before = copy.deepcopy(model.state_dict())
    first = rank(name, model, topology)
    torch.rand(5)  # no score reads the global generator …
    state = torch.get_rng_state()
    second = rank(name, model, topology)
    assert torch.equal(torch.get_rng_state(), state)  # … nor moves it
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.scores, second.scores, strict=True))
    half = task_of(topology).uniform
    assert first.kept(half) == second.kept(half)
    if name in TRAINED:
        assert first.model is not None and not first.model.training
        assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(first.model.parameters(), model.parameters(), strict=True))
    else:
        assert first.model is None


@pytest.mark.parametrize("name", TRAINED)
def test_the_seed_is_that_of_the_training(name: str) -> None:
    model, topology = residual()
    one, other = (rank(name, model, topology, seed=seed).model for seed in (0, 1))
    assert one is not None and other is not None
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["taylor", "fisher", "hrank"])
def test_how_images_are_batched_is_of_no_matter(name: str) -> None:
    model, topology = residual()
    one, other = (torch.cat(rank(name, model, topology, batch_size=size).scores) for size in (16, 5))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", BY_IMAGES)
def test_wrong_settings_are_named(name: str) -> None:
    least = 2 if name in TRAINED else 1
    assert importance(name, images=None).images is None and importance(name, images=least).images == least
    for setting, value in (("images", least - 1), ("images", 2.5), ("batch_size", least - 1)):
        said = rf"importance\.{setting}={value} must be a whole number of at least {least}\."
        with pytest.raises(ValueError, match=said):
            importance(name, **{setting: value})


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("random", "seed", -1),
        ("genetic", "samples", 0),
        ("genetic", "population", 2),
        ("genetic", "generations", -1),
        ("genetic", "crossover", 1.5),
        ("genetic", "mutation", 0),
        ("soft", "seed", -1),
        ("group_fisher", "seed", -1),
        ("soft", "epochs", 0),
        ("soft", "lr", 0),
        ("soft", "p", 3),
        ("group_fisher", "lr", float("nan")),
        ("group_fisher", "interval", 0),
        ("group_fisher", "channels_per_step", 0),
    ],
)
def test_settings_of_one_are_named(name: str, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"importance\.{setting}={value} must be"):
        importance(name, **{setting: value})
