"""How much of a search is anything but the forward passes that rewards cost. Run: make bench.

On ResNet-56 with random weights and images, all measured in one process:

* iteration: roll-outs, surgery, rewards and PPO of 16 episodes, over the bare forward passes of the same 16 pruned
  networks on the same 1,000 images (bar: 1.3);
* step: whole roll-outs of 16 episodes without their rewards, the landing on the budget included, over the steps that
  the episodes took, in milliseconds (bar: 5);
* closed form: the statistics of the readers, the error curves and the plans together, and one refit, over one reward
  evaluation with all defaults (bars: 4 and 0.05); and the memory of its moments;
* frozen encoder: learning from 16 episodes with agent.freeze_encoder=true over learning with all of the agent, by
  turns, and what that makes of the time of an iteration.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from gnnrl_lightning.app.config import register
from gnnrl_lightning.cost.flops import Flops
from gnnrl_lightning.data import IMAGENET, HeldImages
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.judge import Judge
from gnnrl_lightning.evaluation.recovery import BatchNormRecovery, NoRecovery, recalibrate
from gnnrl_lightning.importance.magnitude import Magnitude
from gnnrl_lightning.importance.reconstruction import ReconstructionError
from gnnrl_lightning.library.components import build
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.settings import RefitConfig
from gnnrl_lightning.topology import trace

IMAGES, BATCH, EPISODES, ITERATIONS, ROLL_OUTS, REPEATS = 1000, 250, 16, 3, 20, 5
BUDGET = 0.5


class Clock(L.Callback):
    """Seconds of every iteration, and the bare forward passes of its networks right after it."""

    def __init__(self, evaluator: Evaluator, images: torch.Tensor):
        self.evaluator, self.images = evaluator, images
        self.whole: list[float] = []
        self.bare: list[float] = []

    def now(self) -> float:
        """Seconds; what a GPU was told to do is done by then."""
        if self.images.is_cuda:
            torch.cuda.synchronize(self.images.device)
        return time.perf_counter()

    @property
    def ratio(self) -> float:
        """Of an iteration to its bare forward passes; the first one warms the kernels up."""
        return sum(self.whole[1:]) / sum(self.bare[1:])

    def on_train_batch_start(self, *_: object) -> None:
        self.started = self.now()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        self.whole.append(self.now() - self.started)
        assert isinstance(module, SearchModule)
        rows = module.history[-EPISODES:]
        networks = [self.evaluator.network(torch.tensor(list(map(int, row["widths"].split())))) for row in rows]
        started = self.now()
        with torch.inference_mode():
            for network in networks:
                for batch in self.images.split(BATCH):
                    network(batch)
        self.bare.append(self.now() - started)


def milliseconds_per_step(module: SearchModule) -> float:
    """Median over roll-outs of the time of one step of one episode."""
    module.env = PruningEnv(module.env.topology, module.env.cost, BUDGET, lambda widths: 0.0)
    times = []
    for _ in range(ROLL_OUTS):
        started = time.perf_counter()
        episodes, _ = module._roll_out(EPISODES)
        times.append(1000 * (time.perf_counter() - started) / int(episodes.active.sum()))
    return statistics.median(times)


def step_down(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def frozen_over_trained(module: SearchModule, config: DictConfig, task: Task) -> tuple[float, float]:
    """Ratio of the times that learning takes with the encoder frozen and trained; and the latter, in seconds."""
    episodes, _ = module._roll_out(EPISODES)
    agents = [build(config.agent, task=task) for _ in range(2)]
    agents[1].policy.encoder.requires_grad_(False)
    agents[1].freeze_encoder = True
    times: list[list[float]] = [[], []]
    for turn in range(2 * REPEATS):
        agent = agents[turn % 2]
        descend = partial(step_down, agent.optimizer())
        started = time.perf_counter()
        agent.learn(episodes, 0.5, torch.Generator(), descend)
        times[turn % 2].append(time.perf_counter() - started)
    trained, frozen = map(statistics.median, times)
    return frozen / trained, trained


@dataclass
class ClosedForm:
    """Seconds of one reward evaluation and of what is found in closed form; bytes of the statistics."""

    reward: float
    finding: float
    refit: float
    peak_bytes: int


def closed_form(device: torch.device, depth: int = 56) -> ClosedForm:
    """Times what comes before a search against the rewards of one, each several times by turns."""
    L.seed_everything(0, verbose=False)
    model = resnet_cifar(depth, 10).eval()
    topology = trace(model, torch.zeros(1, 3, 32, 32), min_keep=0.1)
    images = HeldImages(torch.randint(256, (1024, 3, 32, 32), dtype=torch.uint8), IMAGENET)
    data = images, torch.zeros(len(images), dtype=torch.long)
    recalibrate(model, images, BATCH)
    env = PruningEnv(topology, Flops(topology), BUDGET, lambda widths: 0.0)
    times: dict[str, list[float]] = {"reward": [], "finding": [], "refit": []}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times[name].append(time.perf_counter() - started)
        return result

    def found() -> Evaluator:
        task = env.task(list, reconstruction=Reconstruction(model, topology, images.to(device), RefitConfig()))
        recovery = BatchNormRecovery(512, 128)
        judge = Judge(data, IMAGES, BATCH, device)
        evaluator = Evaluator(model, task, prune, ReconstructionError(), recovery, data, judge)
        assert evaluator.plans
        return evaluator

    for _ in range(REPEATS):
        evaluator = timed("finding", found)
        widths = next(iter(evaluator.plans.values()))
        timed("refit", partial(evaluator.values, evaluator.kept(widths)))
        timed("reward", partial(evaluator, widths))
    statistics_of = evaluator.reconstruction.statistics.moments
    held = [each for moments in statistics_of for each in (moments.gram, moments.mean, moments.sensitivity)]
    # Both halves of the images have sums of their own.
    return ClosedForm(
        **{name: statistics.median(values) for name, values in times.items()},
        peak_bytes=2 * sum(each.numel() * each.element_size() for each in held),
    )


def timed_search(
    device: torch.device, depth: int = 56, count: int = IMAGES
) -> tuple[Clock, SearchModule, DictConfig, Task]:
    """Searches a ResNet with random weights on so many random images, by the clock."""
    register()
    with initialize(version_base="1.3", config_path="../conf"):
        config = compose("search", [f"model=resnet{depth}", f"budget={BUDGET}"])
    L.seed_everything(0, verbose=False)
    model = resnet_cifar(depth, 10).eval()
    topology = trace(model, torch.zeros(1, 3, 32, 32), min_keep=0.1)
    images = HeldImages(torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), IMAGENET)
    data = images, torch.randint(10, (count,))
    env = PruningEnv(topology, Flops(topology), BUDGET, lambda widths: evaluator(widths))
    task = env.task(lambda: evaluator.ranking.scores)
    evaluator = Evaluator(model, task, prune, Magnitude(1), NoRecovery(), data, Judge(data, count, BATCH, device))
    module = SearchModule(build(config.agent, task=task), env, EPISODES * ITERATIONS, seed=0, settings={})
    clock = Clock(evaluator, images.to(device, memory_format=torch.channels_last)[:])
    trainer = L.Trainer(
        accelerator=device.type, devices=1, max_epochs=ITERATIONS, logger=False, callbacks=[clock],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    return clock, module, config, task


def main() -> None:
    clock, module, config, task = timed_search(torch.device("cpu"))
    table = Table(title=f"speed of the search, ResNet-56 (CPU, {torch.get_num_threads()} threads)")
    for column in ("what", "value", "bar"):
        table.add_column(column, justify="right" if column != "what" else "left")
    table.add_row(f"iteration of {EPISODES} episodes / bare forward passes", f"{clock.ratio:.2f}×", "1.30×")
    table.add_row("roll-out, per episode and step", f"{milliseconds_per_step(module):.2f} ms", "5 ms")
    frozen, learning = frozen_over_trained(module, config, task)
    iteration = sum(clock.whole[1:]) / len(clock.whole[1:])
    found = closed_form(torch.device("cpu"))
    table.add_row("statistics + selection + plans / a reward", f"{found.finding / found.reward:.2f}×", "4.00×")
    table.add_row("refit / a reward", f"{found.refit / found.reward:.3f}×", "0.050×")
    table.add_row("moments held in float64", f"{found.peak_bytes / 2**20:.0f} MiB", "")
    table.add_row("learning, encoder frozen / trained", f"{frozen:.2f}×", "")
    table.add_row("iteration, encoder frozen / trained", f"{1 - (1 - frozen) * learning / iteration:.2f}×", "")
    Console().print(table)


if __name__ == "__main__":
    main()
