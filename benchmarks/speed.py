"""How much of a search is anything but the forward passes that rewards cost. Run: make bench.

Two ratios on ResNet-56 with random weights and images, all measured in one process:

* iteration: roll-outs, surgery, rewards and PPO of 16 episodes, over the bare forward passes of the same 16 pruned
  networks on the same 1,000 images (bar: 1.3);
* step: environment and policy, per episode and step, in milliseconds (bar: 5).
"""

import time

import lightning as L
import torch
from hydra import compose, initialize
from rich.console import Console
from rich.table import Table

from gnnrl_lightning.config import build, register
from gnnrl_lightning.cost.flops import Flops
from gnnrl_lightning.evaluation.evaluator import Evaluator, correct
from gnnrl_lightning.evaluation.recovery import NoRecovery
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.importance import Magnitude
from gnnrl_lightning.search.environment import PruningEnv
from gnnrl_lightning.search.module import SearchModule
from gnnrl_lightning.topology import trace
from gnnrl_lightning.topology.hierarchy import hierarchical_graph

IMAGES, BATCH, ITERATIONS = 1000, 250, 3


class Clock(L.Callback):
    """Seconds of every iteration, and the bare forward passes of its networks right after it."""

    def __init__(self, evaluator: Evaluator, images: torch.Tensor, labels: torch.Tensor):
        self.evaluator, self.images, self.labels = evaluator, images, labels
        self.whole: list[float] = []
        self.bare: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: SearchModule, *_: object) -> None:
        self.whole.append(time.perf_counter() - self.started)
        rows = module.history[-16:]
        networks = [self.evaluator.network(torch.tensor(list(map(int, row["widths"].split())))) for row in rows]
        started = time.perf_counter()
        for network in networks:
            correct(network, self.images, self.labels, BATCH)
        self.bare.append(time.perf_counter() - started)


def main() -> None:
    register()
    with initialize(version_base="1.3", config_path="../conf"):
        config = compose("search", ["model=resnet56", "budget=0.5"])
    L.seed_everything(0, verbose=False)
    model = resnet_cifar(56, 10).eval()
    topology = trace(model, torch.zeros(1, 3, 32, 32), min_keep=0.1)
    images, labels = torch.randn(IMAGES, 3, 32, 32), torch.randint(10, (IMAGES,))
    images = images.to(memory_format=torch.channels_last)
    evaluator = Evaluator(
        model, topology, Magnitude(1), NoRecovery(), (images, labels), (images, labels), IMAGES, BATCH,
        torch.device("cpu"),
    )  # fmt: skip
    env = PruningEnv(topology, Flops(topology), 0.5, evaluator)
    agent = build(config.agent, graph=hierarchical_graph(topology))
    module = SearchModule(agent, env, 16 * ITERATIONS, seed=0, settings={})
    clock = Clock(evaluator, images, labels)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=ITERATIONS, logger=False, callbacks=[clock], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)

    generator = torch.Generator().manual_seed(0)
    kept = torch.ones(16, len(topology.groups), dtype=torch.float64)
    milliseconds = []
    for _ in range(20):
        started = time.perf_counter()
        with torch.no_grad():
            ratios = agent.propose(kept.float(), generator)
        env.advance(kept, ratios, 0)
        milliseconds.append(1000 * (time.perf_counter() - started) / 16)

    table = Table(title=f"speed of the search, ResNet-56, {torch.get_num_threads()} threads")
    for column in ("what", "value", "bar"):
        table.add_column(column, justify="right" if column != "what" else "left")
    # The first iteration warms the kernels up.
    ratio = sum(clock.whole[1:]) / sum(clock.bare[1:])
    table.add_row("iteration of 16 episodes / bare forward passes", f"{ratio:.2f}×", "1.30×")
    table.add_row("environment + policy, per episode and step", f"{sorted(milliseconds)[10]:.2f} ms", "5 ms")
    Console().print(table)


if __name__ == "__main__":
    main()
