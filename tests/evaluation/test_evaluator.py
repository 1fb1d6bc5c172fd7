import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from searching import bandit
from torch import Tensor, nn

from gnnrl_lightning.data import IMAGENET, HeldImages
from gnnrl_lightning.evaluation import measure
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.judge import Judge
from gnnrl_lightning.evaluation.measure import speeds, test_top1, weight_bytes
from gnnrl_lightning.evaluation.recovery import BatchNormRecovery, FinetuneRecovery, NoRecovery
from gnnrl_lightning.evaluation.reward import correct, divergence
from gnnrl_lightning.importance.magnitude import Magnitude
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.topology import Topology, trace

test_top1.__test__ = False  # a function of the package, not a test
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet_cifar(8, 4).eval()


@pytest.fixture(scope="module")
def topology(network: nn.Module) -> Topology:
    return trace(network, torch.zeros(1, 3, 16, 16))


def images_of(count: int, seed: int) -> tuple[HeldImages, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 16, 16), generator=generator).byte()
    return HeldImages(pixels, IMAGENET), torch.randint(4, (count,), generator=generator)


REWARD, TRAIN = images_of(60, 0), images_of(32, 1)


def evaluator_of(
    network: nn.Module,
    topology: Topology,
    recovery: object = None,
    reward_images: int = 60,
    precision: str = "32-true",
    unpruned: nn.Module | None = None,
    importance: object = None,
) -> Evaluator:
    model = copy.deepcopy(network)
    recovery = recovery or NoRecovery()
    importance = importance or Magnitude(1)
    task = bandit(topology).task(list)
    judge = Judge(REWARD, reward_images, 16, CPU, precision, unpruned)
    return Evaluator(model, task, prune, importance, recovery, TRAIN, judge)  # type: ignore[arg-type]


def half(topology: Topology) -> Tensor:
    return topology.full_widths() // 2


def test_reward_of_the_whole_network_is_its_accuracy(network: nn.Module, topology: Topology) -> None:
    images, labels = REWARD
    with torch.no_grad():
        top1 = 100 * (network(images[:]).argmax(1) == labels).float().mean()
    reward = evaluator_of(network, topology)(topology.full_widths())
    assert reward == pytest.approx(float(top1) - 100, abs=1e-4)


class Seen(BatchNormRecovery):
    """Notes whether it was called in half precision."""

    half = False

    def __call__(self, model: nn.Module, images: HeldImages, labels: Tensor) -> None:
        self.half = torch.is_autocast_enabled("cpu")
        super().__call__(model, images, labels)


@pytest.mark.parametrize(("precision", "half"), [("32-true", False), ("16-mixed", False), ("bf16-mixed", True)])
def test_rewards_follow_the_trainers_precision(
    precision: str, half: bool, network: nn.Module, topology: Topology
) -> None:
    recovery = Seen(32, 16)
    reward = evaluator_of(network, topology, recovery, precision=precision)(topology.full_widths())
    assert recovery.half == half
    assert reward == pytest.approx(evaluator_of(network, topology, recovery)(topology.full_widths()), abs=5)


class Trained(FinetuneRecovery):
    """Keeps what its training made of the classifier."""

    weights = torch.empty(0)

    def __call__(self, model: nn.Module, images: HeldImages, labels: Tensor) -> None:
        super().__call__(model, images, labels)
        self.weights = model.get_parameter("linear.weight").detach().clone()


def test_training_in_half_precision_goes_where_it_does_in_single(network: nn.Module, topology: Topology) -> None:
    recoveries = [Trained(images=32, batch_size=8, epochs=3, lr=0.05) for _ in range(2)]
    for recovery, precision in zip(recoveries, ("32-true", "bf16-mixed"), strict=True):
        evaluator_of(network, topology, recovery, precision=precision)(topology.full_widths())
    before = network.get_parameter("linear.weight").detach()
    single, half_ = (recovery.weights - before for recovery in recoveries)
    assert (single - half_).norm() < 0.1 * single.norm()


def test_the_network_handed_on_is_recovered_in_single_precision(network: nn.Module, topology: Topology) -> None:
    evaluators = [
        evaluator_of(network, topology, BatchNormRecovery(32, 16), precision=p) for p in ("32-true", "bf16-mixed")
    ]
    first, second = (evaluator.network(half(topology)).state_dict() for evaluator in evaluators)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_reward_is_taken_on_the_first_images(network: nn.Module, topology: Topology) -> None:
    evaluator = evaluator_of(network, topology, reward_images=20)
    hits = correct(evaluator.network(half(topology)), REWARD[0], REWARD[1][:20], 7)
    assert evaluator(half(topology)) == 100 * hits / 20 - 100
    hits = correct(evaluator.network(half(topology)), *REWARD, 60)
    assert evaluator.whole_split(half(topology)) == 100 * hits / 60 - 100


def test_the_network_is_smaller_and_the_original_unchanged(network: nn.Module, topology: Topology) -> None:
    evaluator = evaluator_of(network, topology, BatchNormRecovery(images=32, batch_size=16))
    before = copy.deepcopy(evaluator.model.state_dict())
    small = evaluator.network(half(topology))
    assert not small.training
    assert sum(p.numel() for p in small.parameters()) == int(topology.parameters(half(topology)))
    assert all(torch.equal(value, before[name]) for name, value in evaluator.model.state_dict().items())


def test_the_same_widths_have_one_reward(network: nn.Module, topology: Topology) -> None:
    evaluator = evaluator_of(network, topology, BatchNormRecovery(images=32, batch_size=16))
    assert len({evaluator(half(topology)) for _ in range(3)}) == 1


class Watching:
    """A recovery that notes what it is shown."""

    images = 32

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, model: nn.Module, images: HeldImages, labels: Tensor) -> None:
        self.seen.append(images.pixels)


def test_recovery_sees_training_images_and_no_others(network: nn.Module, topology: Topology) -> None:
    recovery = Watching()
    evaluator = evaluator_of(network, topology, recovery, reward_images=20)
    reward = evaluator(half(topology))
    evaluator.winner([half(topology)], reward)
    assert len(recovery.seen) == 2
    assert all(torch.equal(pixels, TRAIN[0].pixels) for pixels in recovery.seen)


def test_the_winner_is_the_best_on_the_whole_split(
    network: nn.Module, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = evaluator_of(network, topology, reward_images=20)
    finalists = [topology.full_widths(), half(topology), half(topology) + 1]
    whole = [evaluator.whole_split(widths) for widths in finalists]
    for best in range(3):
        rewards = {tuple(w.tolist()): -10.0 - (index != best) for index, w in enumerate(finalists)}
        monkeypatch.setattr(evaluator, "whole_split", lambda widths, rewards=rewards: rewards[tuple(widths.tolist())])
        widths, reward = evaluator.winner(finalists, -9.0)
        assert torch.equal(widths, finalists[best]) and reward == -10.0
    monkeypatch.undo()
    assert evaluator.winner(finalists, -9.0)[1] == max(whole)


def test_rewards_on_the_whole_split_are_not_taken_again(network: nn.Module, topology: Topology) -> None:
    recovery = Watching()
    evaluator = evaluator_of(network, topology, recovery, reward_images=60)
    finalists = [half(topology), topology.full_widths()]
    reward = evaluator(finalists[0])
    assert reward == evaluator.whole_split(finalists[0])
    seen = len(recovery.seen)
    widths, again = evaluator.winner(finalists, reward)
    assert torch.equal(widths, finalists[0]) and again == reward and len(recovery.seen) == seen


def divergence_of(unpruned: nn.Module, pruned: nn.Module, count: int) -> float:
    """KL(unpruned ‖ pruned) in nats on the first reward images, by its definition in double precision."""
    with torch.no_grad():
        p, q = (net.double()(REWARD[0][:count].double()).softmax(1) for net in map(copy.deepcopy, (unpruned, pruned)))
    by_hand = float((p * (p.log() - q.log())).sum() / count)
    torchs = F.kl_div(q.log(), p, reduction="batchmean")
    assert by_hand == pytest.approx(float(torchs)) and by_hand > 0
    return by_hand


@pytest.mark.parametrize("reward_images", [20, 60])
def test_the_divergence_is_that_of_its_definition(network: nn.Module, topology: Topology, reward_images: int) -> None:
    evaluator = evaluator_of(network, topology, reward_images=reward_images, unpruned=copy.deepcopy(network))
    pruned = evaluator.network(half(topology))
    assert evaluator(half(topology)) == pytest.approx(-divergence_of(network, pruned, reward_images), rel=1e-4)
    assert evaluator.whole_split(half(topology)) == pytest.approx(-divergence_of(network, pruned, 60), rel=1e-4)
    assert evaluator(topology.full_widths()) == pytest.approx(0, abs=1e-6)


def test_the_divergence_is_from_the_network_that_was_given(network: nn.Module, topology: Topology) -> None:
    """Of a second stage that is not the one that is pruned; nor a copy that an importance has trained."""
    torch.manual_seed(1)
    other = resnet_cifar(8, 4).eval()

    class Replacing(Magnitude):
        def __call__(self, *args: Any) -> Ranking:
            return replace(super().__call__(*args), model=copy.deepcopy(other))

    evaluator = evaluator_of(network, topology, unpruned=network, importance=Replacing(1))
    assert evaluator(topology.full_widths()) == pytest.approx(-divergence_of(network, other, 60), rel=1e-4)
    evaluator = evaluator_of(network, topology, unpruned=other)
    assert evaluator(topology.full_widths()) == pytest.approx(-divergence_of(other, network, 60), rel=1e-4)


def test_divergences_need_no_labels(network: nn.Module, topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = evaluator_of(network, topology, unpruned=network)(half(topology))
    monkeypatch.setitem(globals(), "REWARD", (REWARD[0], torch.zeros_like(REWARD[1])))
    assert evaluator_of(network, topology, unpruned=network)(half(topology)) == reward


def test_a_network_whose_scores_are_no_numbers_has_a_bad_divergence() -> None:
    said = torch.full((2, 4), 0.25).log()
    broken = torch.stack([said[0], torch.full((4,), torch.nan)])
    assert divergence([said], [broken]) == 500
    assert divergence([said], [said]) == 0


def test_top1_of_a_loader(network: nn.Module) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(REWARD[0][:], REWARD[1]), batch_size=16)
    assert test_top1(network, loader, CPU, "it") == pytest.approx(100 * correct(network, *REWARD, 60) / 60)


def test_speed_is_of_each_network() -> None:
    wide = nn.Sequential(*[nn.Conv2d(3, 3, 5, padding=2) for _ in range(40)])
    slow, fast = speeds([wide, nn.Conv2d(3, 3, 1)], torch.zeros(4, 3, 32, 32), CPU)
    assert slow.median_ms > 3 * fast.median_ms > 0
    assert slow.ratio == 1 and slow.interval == (1, 1) and 1 < fast.interval[0] <= fast.ratio <= fast.interval[1]
    for speed in (slow, fast):
        assert speed.p95_ms >= speed.median_ms and speed.batch == 4
        assert speed.images_per_second == pytest.approx(4000 / speed.median_ms)


def test_the_interval_of_a_ratio_holds_the_true_median_as_often_as_it_says() -> None:
    torch.manual_seed(0)
    held = 0
    for _ in range(400):
        first, other = ((1 + torch.rand(25)).tolist() for _ in range(2))  # the median of their ratios is 1
        low, high = measure._interval(first, other)
        held += low <= 1 <= high
    assert 0.93 <= held / 400 <= 0.995


def test_peak_memory_is_what_is_held_at_a_time() -> None:
    """The second layer's input and output, in a chain of three: 8 and 16 of 8, 16 and 4 channels."""
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1))
    (speed,) = speeds([chain], torch.zeros(2, 3, 32, 32), CPU)
    assert weight_bytes(chain) == 4 * (8 * 4 + 16 * 9 + 4 * 17)
    assert speed.peak_bytes - weight_bytes(chain) == pytest.approx(4 * 2 * 24 * 32 * 32, rel=0.1)
