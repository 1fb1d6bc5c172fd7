"""The network that is handed on, and what it learns of the unpruned one's activations."""

import copy
from collections.abc import Iterator

import pytest
import torch
from searching import bandit
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import shufflenet_v2_x0_5

from gnnrl_lightning.data import IMAGENET, HeldImages
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.final import final_network
from gnnrl_lightning.evaluation.finished import Finished, finished
from gnnrl_lightning.evaluation.judge import Judge
from gnnrl_lightning.evaluation.recovery import BatchNormRecovery, recalibrate
from gnnrl_lightning.importance.reconstruction import ReconstructionError
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.program import tensors_of
from gnnrl_lightning.pruning.rewrite import is_rewritten, rewrite
from gnnrl_lightning.pruning.verify import provable, verified
from gnnrl_lightning.reconstruction.finish import _loss, _Recorder, targets
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.settings import FinishConfig, RefitConfig
from gnnrl_lightning.topology import trace

CPU = torch.device("cpu")


def images_of(count: int, side: int, seed: int) -> HeldImages:
    """Coarse noise: there is something to learn from one image about another."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 4, side // 4, generator=generator)
    return HeldImages(F.interpolate(255 * coarse, scale_factor=4, mode="bilinear").byte(), IMAGENET)


def searched(model: nn.Module, side: int = 16, images: int = 256) -> Evaluator:
    """What a search has when it ends, for a network with random weights whose BatchNorm knows its images."""
    train, reward = images_of(images, side, 0), images_of(100, side, 1)
    recalibrate(model, train, 64)
    topology, remove = provable(model.eval(), trace(model, torch.zeros(1, 3, side, side)))
    closed_form = Reconstruction(model, topology, train, RefitConfig(images=images))
    task = bandit(topology).task(list, reconstruction=closed_form)
    labels = torch.zeros(images, dtype=torch.long)
    judge = Judge((reward, labels[:100]), None, 50, CPU)
    return Evaluator(model, task, remove, ReconstructionError(), BatchNormRecovery(64, 64), (train, labels), judge)


def shown(images: HeldImages, seed: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield images[torch.randint(len(images), (32,), generator=generator)]


@pytest.fixture(scope="module")
def search() -> Evaluator:
    torch.manual_seed(0)
    return searched(resnet_cifar(8, 10))


def halved(search: Evaluator) -> list[list[int]]:
    return search.kept(search.topology.full_widths() // 2)


def learn(search: Evaluator, network: nn.Module, kept: list[list[int]], **settings: float) -> Finished:
    found = finished(
        search, kept, network, shown(images_of(256, 16, 0)), FinishConfig(**{"steps": 60, "lr": 1e-3, **settings})
    )  # type: ignore[arg-type]
    assert found is not None
    return found


def test_the_network_comes_nearer_to_the_unpruned_one(search: Evaluator) -> None:
    kept = halved(search)
    network = final_network(search, kept).network
    before = copy.deepcopy(network.state_dict())
    found = learn(search, network, kept)
    assert found.taken and found.divergence[1] < 0.8 * found.divergence[0]
    assert found.error[1] < 0.8 * found.error[0]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), "the network that was given is unchanged"
    for name, value in found.network.state_dict().items():
        assert torch.equal(value, before[name]) == ("running" in name or "num_batches" in name), name
    again = learn(search, network, kept)
    assert all(torch.equal(a, b) for a, b in zip(found.network.parameters(), again.network.parameters(), strict=True))


def test_with_nothing_removed_there_is_nothing_to_learn(search: Evaluator) -> None:
    kept = [list(range(group.width)) for group in search.topology.groups]
    network = verified(search.model, search.topology, kept).eval()
    found = learn(search, network, kept, steps=3)
    assert found.error == (0, 0) and not found.taken and found.network is network


def test_what_made_it_worse_is_not_taken(search: Evaluator) -> None:
    kept = halved(search)
    network = final_network(search, kept).network
    found = learn(search, network, kept, lr=3.0)
    assert found.divergence[1] > found.divergence[0] and found.network is network


@pytest.mark.parametrize(("after", "taken"), [(-20.0, True), (-26.0, True), (-35.0, False)])
def test_a_finish_that_costs_more_accuracy_than_chance_is_not_taken(after: float, taken: bool) -> None:
    found = Finished(nn.Identity(), (0.5, 0.4), (0.3, 0.1), None, (-20.0, after), 8.0)
    assert found.taken == taken


def test_a_learning_rate_that_diverges_is_named(search: Evaluator, caplog: pytest.LogCaptureFixture) -> None:
    kept = halved(search)
    network = final_network(search, kept).network
    found = learn(search, network, kept, lr=1e12)
    assert found.network is network and "finish.lr=1e+11" in caplog.text


def test_a_network_that_is_no_graph_stays_as_it_is(
    search: Evaluator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no rule")

    kept = halved(search)
    network = final_network(search, kept).network
    monkeypatch.setattr("gnnrl_lightning.evaluation.finished.rewrite", fails)
    with caplog.at_level("INFO"):
        assert finished(search, kept, network, shown(images_of(8, 16, 0)), FinishConfig()) is None
    assert "ResNet does not run as a graph (no rule)" in caplog.text


def test_frozen_networks_stay_as_they_are(search: Evaluator) -> None:
    kept = halved(search)
    network = final_network(search, kept).network
    search.model.requires_grad_(False)
    try:
        assert finished(search, kept, network, shown(images_of(8, 16, 0)), FinishConfig()) is None
    finally:
        search.model.requires_grad_(True)


def test_a_rewritten_network_learns_too() -> None:
    torch.manual_seed(0)
    search = searched(shufflenet_v2_x0_5(num_classes=10), 32, 64)
    kept = search.kept((0.75 * search.topology.full_widths()).long())
    network = final_network(search, kept).network
    found = finished(search, kept, network, shown(images_of(64, 32, 0)), FinishConfig(steps=30, lr=1e-3))
    assert found is not None and is_rewritten(network) and is_rewritten(found.network)
    assert found.error[1] < found.error[0]


def test_the_loss_is_what_hooks_on_the_readers_see() -> None:
    """Both networks as they are, their layers' inputs caught by hooks, against what the graphs record."""
    torch.manual_seed(0)
    model = resnet_cifar(8, 10).eval()
    topology = trace(model, torch.zeros(1, 3, 16, 16))
    kept = [list(range(0, group.width, 2)) for group in topology.groups]
    mask, images = topology.keep_mask(kept), images_of(8, 16, 0)[:]
    small = verified(model, topology, kept).eval()
    compared = targets(topology, mask)
    graphs = rewrite(model, topology, kept).eval(), rewrite(model, topology, topology.all_channels()).eval()
    recorders = [_Recorder(graph, {target.node for target in compared}) for graph in graphs]
    inputs: list[dict[str, Tensor]] = []
    for network, recorder in zip((small, model), recorders, strict=True):
        recorder.run(images)
        caught: dict[str, Tensor] = {}
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_pre_hook(lambda _, x, name=name, into=caught: into.update({name: x[0]}))
        network(images)
        inputs.append(caught)
    errors = []
    for name, x in list(inputs[0].items())[1:]:  # the first reads the images
        slots = topology.slots[f"{name}.weight", 1]
        whole = inputs[1][name].detach()[:, mask[slots] | (slots < 0)]
        per_channel = whole.transpose(0, 1).flatten(1)
        scale = per_channel.var(1) + 0.1 * per_channel.var(1).mean()
        errors.append(((x - whole).square().transpose(0, 1).flatten(1).mean(1) / scale).mean())
    by_reader = {}
    for target in compared:
        loss = _loss([target], recorders[0].seen, recorders[1].seen, {})
        by_reader[target.node] = float(loss)
    scores = [network(images) for network in (small, model)]
    share = (scores[0] - scores[1]).square().mean(0) / (scores[1].var(0) + 0.1 * scores[1].var(0).mean())
    # In the order of the network, whose shortcuts read nothing; the scores come last.
    assert list(by_reader.values()) == pytest.approx([*map(float, errors), float(share.mean())], rel=1e-4)
    assert tensors_of(small).keys() == tensors_of(graphs[0]).keys()


def test_refitted_weights_that_have_a_worse_reward_are_not_taken(
    search: Evaluator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = halved(search)
    monkeypatch.setattr(
        search.judge, "_expected", search.judge.log_probabilities(search.model)
    )  # rewards are minus the divergence
    found = final_network(search, kept)
    assert found.weights == "refitted" and found.rewards["refitted"] > found.rewards["cut"]
    values = search.values(kept)
    monkeypatch.setattr(search, "values", lambda _: {name: torch.randn_like(value) for name, value in values.items()})
    found = final_network(search, kept)
    assert found.weights == "cut" and found.rewards["cut"] > found.rewards["refitted"]
    assert "weights are only cut" in caplog.text
    assert search.judge.of_finished(found.network) == found.rewards["cut"]
