"""The table of operations finds how times follow the widths, and is measured once."""

import json
import statistics
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from gnnrl_lightning.cost import latency, timing
from gnnrl_lightning.cost.latency import Latency
from gnnrl_lightning.cost.timing import Times, measure
from gnnrl_lightning.evaluation.measure import speeds
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.rewrite import rewrite
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.topology import Topology, trace

CPU = torch.device("cpu")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples of few rounds: what is tested is not how exact they are."""
    monkeypatch.setattr(timing, "_SAMPLES", 5)
    monkeypatch.setattr(timing, "_MOST", 3)


def random_widths(topology: Topology, count: int, seed: int) -> Tensor:
    kept = torch.rand(count, len(topology.groups), generator=torch.Generator().manual_seed(seed))
    full = topology.full_widths()
    return torch.maximum((kept * full).round().long(), topology.min_widths())


def planted(topology: Topology, operation: str, widths: Tensor) -> Tensor:
    """Seconds of a device that computes output channels in blocks of 16, [N]."""
    counts = [fixed + widths.double() @ vector.double() for fixed, vector in latency._counts(topology, operation)]
    if operation.startswith("conv"):
        rows, columns = counts
        return 1e-6 * (5 + columns * 16 * (rows / 16).ceil() / 64)
    return 1e-6 * (2 + (0.1 * counts[0] if counts else torch.zeros(len(widths), dtype=torch.float64)))


def test_a_staircase_that_was_planted_is_found(
    resnet20_topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = resnet20_topology
    operations = [node.name for node in topology.program.graph.nodes if node.op == "call_function"]

    def fake(*_: object) -> Times:
        widths = torch.cat([topology.full_widths()[None], random_widths(topology, 31, seed=0)])
        return Times(operations, widths, torch.stack([planted(topology, o, widths) for o in operations], 1), 1e-5)

    monkeypatch.setattr(latency, "measure", fake)
    cost = Latency(topology, resnet_cifar(20, 10), CPU, 1, str(tmp_path))
    unseen = torch.cat([topology.full_widths()[None], random_widths(topology, 50, seed=1)])
    expected = 1e9 * (1e-5 + torch.stack([planted(topology, o, unseen) for o in operations]).sum(0))
    # A batch of any shape, as the environment asks.
    predicted = cost(unseen.reshape(3, 17, -1)).flatten().double()
    assert predicted == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("hasty")
def test_a_table_is_measured_once_for_a_network_a_batch_and_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resnet_cifar(20, 10).eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8), min_keep=0.1)
    counted = []

    def counting(*arguments: object) -> Times:
        counted.append(arguments)
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(latency, "measure", counting)
    first = Latency(topology, model, CPU, 2, str(tmp_path))
    again = Latency(topology, model, CPU, 2, str(tmp_path))
    assert len(counted) == 1
    some = random_widths(topology, 5, seed=0)
    assert first(some).tolist() == again(some).tolist()
    Latency(topology, model, CPU, 1, str(tmp_path))
    assert len(counted) == 2
    table = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert sum("conv2d" in row["where"] for row in table["operations"]) == 19
    assert all(row["ms"] > 0 for row in table["operations"])
    # Noise is never taken for a gain.
    assert all(value >= 0 for row in table["operations"] for value in row["coefficients"])
    assert int(first(topology.min_widths())) < int(first(topology.full_widths()))


@pytest.mark.usefixtures("hasty")
def test_the_network_can_still_be_trained_and_widths_need_not_vary(tmp_path: Path) -> None:
    model = resnet_cifar(20, 10)
    topology = trace(model, torch.zeros(1, 3, 8, 8), divisor=16)  # no sample has a width that is not aligned
    cost = Latency(topology, model, CPU, 1, str(tmp_path))
    assert 0 < int(cost(topology.min_widths())) < int(cost(topology.full_widths()))
    model.train()(torch.zeros(2, 3, 8, 8)).sum().backward()
    trace(model, torch.zeros(1, 3, 8, 8))


@pytest.mark.usefixtures("hasty")
def test_operations_without_channels_may_be_alike(tmp_path: Path) -> None:
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=10).eval()
    topology = trace(model, torch.zeros(1, 3, 32, 32), min_keep=0.1)
    cost = Latency(topology, rewrite(model, topology, topology.all_channels()), CPU, 1, str(tmp_path))
    assert 0 < int(cost(topology.min_widths())) < int(cost(topology.full_widths()))


@pytest.mark.usefixtures("hasty")
def test_other_images_have_another_table_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    model = resnet_cifar(20, 10)
    for side in (8, 12):
        Latency(trace(model, torch.zeros(1, 3, side, side)), model, CPU, 1, str(tmp_path))
    tables = list(tmp_path.glob("*.json"))
    assert len(tables) == 2
    for content in ("", "{}", '{"between_ms": 1, "operations": [{"name": "conv2d", "coefficients": [1]}]}'):
        for table in tables:
            table.write_text(content)
        with pytest.raises(ValueError, match=r"latency-\w+[.]json is no table of operations .* delete it"):
            Latency(trace(model, torch.zeros(1, 3, 8, 8)), model, CPU, 1, str(tmp_path))


@pytest.mark.slow
def test_the_prediction_is_what_is_measured(tmp_path: Path) -> None:
    model = resnet_cifar(56, 10).eval()
    topology = trace(model, torch.zeros(1, 3, 32, 32), min_keep=0.1)
    cost = Latency(topology, model, CPU, 32, str(tmp_path))
    full, errors = topology.full_widths(), []
    for widths in random_widths(topology, 5, seed=3).maximum(full // 3):
        small = prune(model, topology, [range(width) for width in widths.tolist()])
        before, after = speeds([model, small], torch.randn(32, 3, 32, 32), CPU)
        errors.append(int(cost(widths)) / int(cost(full)) / (after.median_ms / before.median_ms) - 1)
    assert abs(statistics.median(errors)) < 0.1


@pytest.mark.parametrize("batch", [0, 1.5, None])
def test_a_batch_must_be_a_whole_number(tmp_path: Path, batch: object, resnet20_topology: Topology) -> None:
    with pytest.raises(ValueError, match=r"cost\.batch_size"):
        Latency(resnet20_topology, resnet_cifar(20, 10), CPU, batch, str(tmp_path))  # type: ignore[arg-type]
