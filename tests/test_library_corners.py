"""Networks and callers that are not like the others."""

import os
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import rich
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gnnrl_lightning as gl
from gnnrl_lightning.core.numbers import millions
from gnnrl_lightning.library.notebook import visible_bars

QUICK: dict[str, Any] = {"agent": "closed_form", "finish": {"steps": 3}}
X = F.interpolate(torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0)), scale_factor=4, mode="bilinear")


class Net(nn.Module):
    def __init__(self, out: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(),
            nn.Dropout(0.5),
        )  # fmt: skip
        self.head = nn.Linear(16, out)
        self.eval()

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).mean((2, 3)))


class OneNumber(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


class Starred(Net):
    def forward(self, *parts: Tensor) -> Tensor:
        return super().forward(parts[0] + parts[1])


class TwiceStarred(Net):
    def forward(self, **parts: Tensor) -> Tensor:
        return super().forward(parts["a"] + parts["b"])


class Scaled(Net):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(x * scale)


class Remembers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.linspace(0, 1, 16).view(4, 4)
        return self.head((self.features(x) * self.grid).mean((2, 3)))


def test_one_score_is_that_of_one_of_two_classes() -> None:
    found = gl.search(Net(1), X, 0.5, reward="kl", **QUICK)
    assert -1 < found.rewards["pruned"] < 0 and found.rewards["original"] == 0


def test_outputs_of_one_dimension() -> None:
    found = gl.search(OneNumber(), X, 0.5, score=lambda _: 0.5, **QUICK)
    assert found.model(X).shape == (64,)
    with pytest.raises(gl.UserError, match="no output of floating point numbers"):
        gl.search(OneNumber(), X, 0.5, reward="kl", **QUICK)


@pytest.mark.parametrize(("network", "data"), [(Starred(), ((X, X),)), (TwiceStarred(), {"a": X, "b": X})])
def test_arguments_with_stars(network: nn.Module, data: Any) -> None:
    found = gl.search(network, data, 0.5, reward="kl", **QUICK)
    assert found.delivered.finish is not None


def test_a_number_that_all_share(tmp_path: Path) -> None:
    scale = torch.tensor(2.0)
    found = gl.search(Scaled(), {"x": X, "scale": scale}, 0.5, reward="kl", **QUICK)
    assert not scale.requires_grad and scale.grad is None
    found.save(tmp_path)
    small = gl.load_pruned(tmp_path, Scaled())
    torch.testing.assert_close(small(X, scale), found.model(X, scale))


def test_a_number_may_stand_before_the_images(tmp_path: Path) -> None:
    class First(Net):
        def forward(self, scale: Tensor, x: Tensor) -> Any:
            return scale * super().forward(x)

    batches = [((torch.tensor(2.0), part), torch.zeros(len(part))) for part in X.split(16)]
    found = gl.search(First(), batches, 0.5, reward="kl", **QUICK)
    found.save(tmp_path)
    wanted = found.model(torch.tensor(2.0), X)
    torch.testing.assert_close(gl.load_pruned(tmp_path, First())(torch.tensor(2.0), X), wanted)


def test_what_a_forward_keeps_does_not_stop_training() -> None:
    found = gl.search(Remembers(), X, 0.5, reward="kl", agent="closed_form", finish=False)
    found.model.train()(X).sum().backward()


def test_the_callers_state_is_left_alone() -> None:
    L.seed_everything(42, workers=True, verbose=False)
    network, seeds = Net(), {name: value for name, value in os.environ.items() if name.startswith("PL_")}
    loader = DataLoader(TensorDataset(X, network(X).argmax(1)), batch_size=24, shuffle=True)
    before = torch.get_rng_state()
    gl.search(network, loader, 0.5, **QUICK)
    assert torch.equal(before, torch.get_rng_state())
    assert {name: value for name, value in os.environ.items() if name.startswith("PL_")} == seeds


def test_a_score_gets_networks_as_they_are_used() -> None:
    network = Net()
    wanted = network(X).argmax(1)
    seen = []

    def agreement(candidate: nn.Module) -> Tensor:
        seen.append(candidate.training or torch.is_grad_enabled())
        return (candidate(X).argmax(1) == wanted).float().mean()

    found = gl.search(network, X, 0.5, score=agreement, **QUICK)
    assert found.rewards["original"] == 1 and len(seen) > 3 and not any(seen)


def test_a_score_may_do_what_it_likes_with_a_network() -> None:
    def score(network: nn.Module) -> np.float32:
        network.train().half()
        return np.float32(1.0)

    found = gl.search(Net(), X, 0.5, score=score, agent="closed_form", finish=False)
    assert not found.model.training and found.model.head.weight.dtype == torch.float32
    assert found.rewards["pruned"] == 1


def test_who_stops_a_search_is_told() -> None:
    def stopped(_: nn.Module) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gl.search(Net(), X, 0.5, score=stopped, **QUICK)


def test_targets_that_nobody_needs_may_be_anything() -> None:
    loader = [(X[:32], torch.zeros(32, 7)), (X[32:], torch.zeros(32, 9))]
    gl.search(Net(), loader, 0.5, score=lambda _: 0.5, **QUICK)
    with pytest.raises(gl.UserError, match="no targets"):
        gl.search(Net(), (X, torch.zeros(5).long()), 0.5, **QUICK)


def test_importances_by_gradients_want_classes_of_one_input() -> None:
    for network, data in ((Net(), (X, torch.rand(64))), (Starred(), ((X, X), torch.zeros(64).long()))):
        with pytest.raises(gl.UserError, match=r"importance=Taylor trains on classes \[N\] of one input tensor"):
            gl.search(network, data, 0.5, importance="taylor", score=lambda _: 0.5)


def test_batches_may_name_their_parts_in_any_order() -> None:
    loader = [{"a": X[:32], "b": X[:32]}, {"b": X[32:], "a": X[32:]}]
    gl.search(TwiceStarred(), loader, 0.5, reward="kl", agent="uniform", finish=False)


def test_costs_have_their_unit() -> None:
    found = gl.search(Net(), X, 0.6, reward="kl", cost="memory", agent="closed_form", finish=False)
    cost = found.problem.cost(found.problem.prunable.unpruned.full_widths())
    assert re.search(rf"cost, MB +{millions(int(cost))} ", found.summary())


def test_a_network_whose_input_may_not_be_noise() -> None:
    """It is checked on the samples that there are: of noise its logarithm is no number."""

    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
            self.head = nn.Linear(16, 10)

        def forward(self, powers: Tensor) -> Tensor:
            return self.head(self.body(powers.log()).mean((2, 3)))

    torch.manual_seed(0)
    found = gl.search(Logarithm().eval(), 0.1 + torch.rand(64, 3, 8, 8), 0.6, reward="kl", **QUICK)
    assert found.model(torch.rand(1, 3, 8, 8) + 0.1).isfinite().all()


class Table(nn.Module):
    """Adds rows of a table that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.row = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)), nn.Linear(5, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.head(self.image(image).mean((2, 3)) + self.row(table).sum(0))


@pytest.mark.parametrize("rows", [16, 32])
def test_a_table_that_all_samples_share(rows: int) -> None:
    """It may have as many rows as a batch of the loader, or as one of the search."""
    torch.manual_seed(0)
    images, table = torch.randn(72, 3, 8, 8), torch.randn(rows, 5)
    loader = [((batch, table),) for batch in images.split(16)]
    found = gl.search(Table().eval(), loader, 0.6, reward="kl", **QUICK)
    assert found.model(images, table).shape == (72, 10)
    assert found.rewards["original"] == 0 > found.rewards["pruned"]


def test_a_network_that_keeps_what_it_computed() -> None:
    class Keeps(Net):
        def forward(self, x: Tensor) -> Any:
            self.last = self.features(x)
            return self.head(self.last.mean((2, 3)))

    network = Keeps()
    network(X)
    assert gl.search(network, X, 0.5, reward="kl", **QUICK).model(X).shape == (64, 10)
    network.lock = threading.Lock()
    with pytest.raises(gl.UserError, match="Keeps cannot be copied"):
        gl.search(network, X, 0.5, reward="kl", **QUICK)


class Point(NamedTuple):
    x: Tensor
    y: Tensor


class Nested(Net):
    def forward(self, parts: Any) -> Any:
        first, second = (parts.x, parts.y) if isinstance(parts, Point) else (parts[0], parts[1])
        extra = parts.__add__([first]) if isinstance(parts, list) else [first]  # as a list alone can
        return super().forward(extra[-1] + second)


@pytest.mark.parametrize("kind", ["list", "numbered", "named"])
def test_nested_inputs_are_loaded_again(kind: str, tmp_path: Path) -> None:
    parts: Any = {"list": [X, X], "numbered": {0: X, 1: X}, "named": Point(X, X)}[kind]
    found = gl.search(Nested(), [((parts,), torch.zeros(len(X)))], 0.5, reward="kl", **QUICK)
    found.save(tmp_path)
    example = ((parts,),)[0] if kind == "named" else None
    loaded = gl.load_pruned(tmp_path, Nested(), example)
    torch.testing.assert_close(loaded(parts), found.model(parts))


def test_a_score_that_runs_out_of_data_is_no_end_of_the_search() -> None:
    batches = iter([X] * 6)
    with pytest.raises(RuntimeError, match="StopIteration in the score"):
        gl.search(
            Net(), X, 0.5, score=lambda network: float(network(next(batches)).mean()), episodes=24, agent="random"
        )


def test_one_score_against_targets_of_two_classes() -> None:
    network = Net(1)
    found = gl.search(network, (X, (network(X)[:, 0] > 0).long()), 0.5, **QUICK)
    assert found.rewards["original"] == 0 and found.rewards["pruned"] > -60


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_another_default_type(kind: torch.dtype) -> None:
    torch.set_default_dtype(kind)
    try:
        found = gl.search(Net().float(), X.float(), 0.5, reward="kl", episodes=18, finish=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(found.history) == 18


def test_agents_and_costs_are_checked_once_they_are_made() -> None:
    class Lazy(nn.Module):
        def __init__(self, task: Any) -> None:
            super().__init__()

    wrong = {
        "is no nn.Module": {"agent": lambda task: None},
        "Lazy that lacks propose, learn, optimizer": {"agent": Lazy},
        "cost failed": {"cost": lambda topology: lambda widths: widths.sum()},
        "seed=4294967296 is not possible": {"seed": 2**32},
    }
    for said, given in wrong.items():
        with pytest.raises(gl.UserError, match=said):
            gl.search(Net(), X, 0.5, reward="kl", **{**QUICK, **given})
    assert len(gl.search(Net(), X, 0.5, reward="kl", seed=np.int64(3), episodes=np.int64(2), finish=False).history) == 2
    with pytest.raises(gl.UserError, match="reward_data is data itself"):
        gl.search(Net(), X, 0.5, reward_data=X, reward="kl", **QUICK)


def test_inside_inference_mode() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    with torch.inference_mode():
        found = gl.search(network.eval(), torch.randn(64, 3, 8, 8), 0.6, reward="kl", **QUICK)
    assert found.delivered.finish is not None


def test_a_mask_that_is_the_same_in_all_batches() -> None:
    class Masked(Net):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x * mask)

    loader = [((batch, torch.ones(len(batch), 1, 16, 16)),) for batch in X.split(16)]
    found = gl.search(Masked(), loader, 0.6, reward="kl", **QUICK)
    assert found.model(X[:3], torch.ones(3, 1, 16, 16)).shape == (3, 10)


def test_a_score_has_data_of_its_own() -> None:
    """Nothing is put aside for it, and reward_data is not read."""

    def never() -> Any:
        raise AssertionError
        yield

    found = gl.search(Net(), X, 0.6, score=lambda network: 1.0, reward_data=never(), **QUICK)
    assert len(found.explored.prepared.training[0]) == len(X)


def test_nested_settings_are_merged() -> None:
    found = gl.search(
        Net(), X, 0.6, reward="kl", agent={"name": "amc", "ddpg": {"warmup": 3}}, episodes=4, finish=False
    )
    assert found.explored.module.agent.ddpg.warmup == 3  # type: ignore[union-attr]


def test_a_search_without_a_terminal_says_how_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        gl.search(Net(), X, 0.6, reward="kl", agent="amc", episodes=20, finish=False)
    lines = [message for message in caplog.messages if message.startswith("search: ")]
    assert 5 <= len(lines) <= 10 and lines[-1].startswith("search: 20 of 20 episodes: best divergence ")


def test_a_plan_of_a_network_that_takes_neither_noise_nor_zeros() -> None:
    class Logarithm(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.log())

    network, powers = Logarithm(), X + 0.1
    plan = gl.uniform_plan(gl.trace(network, powers[:2]), network, keep=0.5)
    with pytest.raises(gl.UserError, match="or give an example of inputs"):
        gl.apply_plan(network, plan)
    assert gl.apply_plan(network, plan, example=powers[:2])(powers).isfinite().all()


def test_data_that_comes_class_by_class_is_split_at_random(caplog: pytest.LogCaptureFixture) -> None:
    network = Net(4)
    labels = network(X).argmax(1)
    order = labels.argsort()
    with caplog.at_level("WARNING"):
        found = gl.search(network, (X[order], labels[order]), 0.5, refit={"images": 20}, **QUICK)
    prepared = found.explored.prepared
    assert set(prepared.reward[1].tolist()) == set(prepared.training[1].tolist()) == set(labels.tolist())
    assert "comes class by class" not in caplog.text  # all of it was read
    with caplog.at_level("WARNING"):
        few = {"refit": {"images": 20}, "importance": "l1", "recovery": "none"}
        gl.search(network, (X[order], labels[order]), 0.5, reward_data=(X, labels), **few, **QUICK)
    assert "data comes class by class, and only" in caplog.text


def test_rewards_that_tell_nothing_apart_are_said_to(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        gl.search(Net(), X, 0.5, score=lambda network: 1.0, **QUICK)
    assert "networks have the same reward, so nothing was chosen between them" in caplog.text


def test_what_is_found_is_shown_in_short() -> None:
    found = gl.search(Net(), (X, Net()(X).argmax(1)), 0.5, **QUICK)
    assert repr(found) == found.summary() and "original top-1 100.00 %, pruned top-1" in repr(found)
    assert repr(found.plan).startswith("PruningPlan of 2 groups: ")
    rewards = dict(found.rewards)
    found.model.apply(lambda module: [parameter.data.zero_() for parameter in module.parameters(recurse=False)])
    assert found.rewards == rewards, "they are of the network that was found"


def test_a_batch_as_loaders_make_them_is_enough() -> None:
    batch = next(iter(DataLoader(TensorDataset(X, Net()(X).argmax(1)), batch_size=64)))
    assert isinstance(batch, list)
    assert len(gl.search(Net(), batch, 0.5, **QUICK).explored.prepared.training[1]) == 32


def test_bars_are_text_where_widgets_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class CapturingDisplayPublisher:
        pass

    console = rich.get_console()
    shell = SimpleNamespace(display_pub=CapturingDisplayPublisher())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(console, "is_jupyter", True)
    with visible_bars():
        assert not console.is_jupyter
    assert console.is_jupyter
