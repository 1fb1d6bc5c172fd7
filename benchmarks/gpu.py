"""What one GPU makes of closed-form plans within 8 minutes. Run: make gpu DATA=FOLDER WEIGHTS=FOLDER.

DATA holds train and test, each a folder of class folders or a tar of them, of images of at most 64 pixels; WEIGHTS
the checkpoints resnet20*.th and resnet56*.th that were trained on them. It prints a table for docs/results.md and
writes outputs/gpu.json:

* closed form: the best of the few plans that the error curves give, by their rewards; its test top-1 once refitted, and
  once refitted layer after layer;
* fine-tuning of the refitted network, half on labels and half on the unpruned network's scores, for an equal share of
  what is left of the time for each seed;
* an iteration of the search over the bare forward passes of its networks, as in benchmarks/speed.py.

Images are held on the GPU as pixels, augmented and normalised there; training is in bfloat16, channels last.
To try the code without a GPU: --device cpu --minutes 1 --images 200 --depths 20. Of the time, only what the closed
forms leave goes into training, and every network is trained for a step at least.
"""

import argparse
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from on_device import BATCH, EVALUATED, SETTINGS, Images, fine_tuned, loaded, now
from speed import timed_search
from torch import nn

from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.core.numbers import fixed
from gnnrl_lightning.cost.flops import Flops
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.judge import Judge
from gnnrl_lightning.evaluation.recovery import BatchNormRecovery
from gnnrl_lightning.importance.reconstruction import ReconstructionError
from gnnrl_lightning.models.factory import ModelSpec, create_model
from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.pruning.verify import verified
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.settings import RefitConfig
from gnnrl_lightning.topology import trace

NOWHERE = "There is no GPU here, so nothing is measured: run make gpu where there is one."
RESERVE = 0.06
"""Share of the time that is kept for the start of Python and for the last tests."""
USED = ("lr", "momentum", "weight_decay", "distill", "temperature")


class ClosedForm:
    """The closed forms of one network, whose statistics serve every budget."""

    def __init__(self, name: str, weights: Path, classes: int, images: Images):
        self.name, self.images = name, images
        side = images.train.side
        self.model = create_model(ModelSpec("cifar", name), classes, side, str(weights)).eval()
        self.topology = trace(self.model, torch.zeros(1, 3, side, side), min_keep=0.1)
        self.model.to(images.device).to(memory_format=torch.channels_last)
        self.top1 = images.top1(self.model)
        settings = RefitConfig()
        self.reconstruction = Reconstruction(self.model, self.topology, images.held(settings.images)[0], settings)
        started = now(images.device)
        _ = self.reconstruction.orders
        self.seconds = now(images.device) - started

    def best(self, budget: float) -> tuple[nn.Module, dict[str, Any]]:
        """The refitted network of the best plan, and its row of the table."""
        images, started = self.images, now(self.images.device)
        env = PruningEnv(self.topology, Flops(self.topology), budget, lambda widths: evaluator(widths))
        task = env.task(lambda: evaluator.ranking.scores, reconstruction=self.reconstruction)
        recovery = BatchNormRecovery(512, 128)
        evaluator = Evaluator(
            self.model, task, prune, ReconstructionError(), recovery, images.held(recovery.images or 0),
            Judge(images.reward, None, EVALUATED, images.device),
        )  # fmt: skip
        rewards = {name: env.reward(widths) for name, widths in evaluator.plans.items()}
        best = max(rewards, key=rewards.__getitem__)
        widths = evaluator.plans[best]
        network, kept = evaluator.network(widths), evaluator.kept(widths)
        planned = now(images.device)
        again = verified(self.model, self.topology, kept, self.reconstruction.sequential_values(kept)).eval()
        sequential = now(images.device)
        row = {
            "network": self.name,
            "budget": budget,
            "cost_percent": 100 * int(env.cost(widths)) / env.full_cost,
            "plan": best,
            "widths": widths.tolist(),
            "rewards": rewards,
            "seconds": {
                "statistics": self.seconds,
                "plan": planned - started,
                "sequential": sequential - planned,
            },
            "top1": {"original": self.top1, "refitted": images.top1(network), "in sequence": images.top1(again)},
            "fine_tuned": [],
        }
        return network, row


def markdown(results: dict[str, Any]) -> str:
    """The table, and a sentence on the search's iteration."""
    heads = (
        *("network", "budget", "closed form, s", "original, %", "refitted, %", "layer after layer, %"),
        *("fine-tuned, %", "each, s", "steps", "epochs", "images/s"),
    )
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in results["networks"]:
        runs, top1 = row["fine_tuned"], row["top1"]
        after = [run["top1"] for run in runs]
        spread = f" ± {statistics.stdev(after):.2f} ({len(runs)} seeds)" if len(runs) > 1 else ""

        def mean(name: str, digits: int, runs: list[dict[str, float]] = runs) -> str:
            return fixed(statistics.fmean(run[name] for run in runs) if runs else None, digits)

        closed = row["seconds"]["statistics"] + row["seconds"]["plan"]
        cells = [row["network"], f"{row['budget']:g}", f"{closed:.1f}", *(fixed(top1[name], 2) for name in top1)]
        cells += [mean("top1", 2) + spread, mean("seconds", 0), mean("steps", 0), mean("epochs", 1)]
        lines.append([*cells, mean("images_per_second", 0)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    search = results["search"]
    return (
        f"{table}\n\n{results['device']}, torch {results['torch']}, {results['seconds']:.0f} s in all. An iteration of "
        f"the search takes {search['ratio']:.2f} times as long as the bare forward passes of its networks "
        f"({search['iteration_seconds']:.2f} s, ResNet-{search['depth']}, {search['images']:,} images)."
    )


def measured(options: argparse.Namespace, device: torch.device, started: float) -> dict[str, Any]:
    """All of it; written after every training, so that nothing is lost."""
    deadline = started + 60 * options.minutes * (1 - RESERVE)
    files = {depth: checkpoint(options.weights, depth) for depth in options.depths}
    classes = options.classes
    images = loaded(options.data, classes, options.images, device)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
        "torch": torch.__version__,
        "minutes": options.minutes,
        "images": {"train": len(images.train.labels), "test": len(images.test[1])},
        "settings": {name: getattr(SETTINGS, name) for name in USED} | {"batch": BATCH},
        "networks": [],
    }
    closed = {depth: ClosedForm(f"resnet{depth}", file, classes, images) for depth, file in files.items()}
    networks = []
    for depth in options.depths:
        for budget in options.budgets:
            network, row = closed[depth].best(budget)
            networks.append((network, closed[depth].model))
            results["networks"].append(row)
    count = min(1000, options.images or 1000)
    clock, *_ = timed_search(device, max(options.depths), count)
    iteration = statistics.fmean(clock.whole[1:])
    results["search"] = {
        "ratio": clock.ratio, "iteration_seconds": iteration, "depth": max(options.depths), "images": count,
    }  # fmt: skip
    left = len(networks) * len(options.seeds)
    for seed in options.seeds:
        for (network, teacher), row in zip(networks, results["networks"], strict=True):
            share = max(deadline - now(device), 0.0) / left
            row["fine_tuned"].append(fine_tuned(network, teacher, images, seed, share))
            left -= 1
            results["seconds"] = now(device) - started
            write_json(options.out, results)
    return results


def checkpoint(folder: Path, depth: int) -> Path:
    """The weights of a network."""
    found = sorted(folder.glob(f"resnet{depth}[!0-9]*"))
    if not found:
        raise ValueError(f"{folder} holds no resnet{depth}*.th; give the folder of the checkpoints with WEIGHTS=….")
    return found[0]


def main(arguments: list[str] | None = None) -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description="Closed-form plans, fine-tuned for as long as the time allows.")
    parser.add_argument("--data", type=Path, help="folder that holds train and test")
    parser.add_argument("--weights", type=Path, help="folder that holds resnet20*.th and resnet56*.th")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, help="of each split at most")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu.json"))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NOWHERE)
        return
    if options.data is None or options.weights is None:
        parser.error("say where the images and the weights are: make gpu DATA=… WEIGHTS=…")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its hints are not about this run
    try:
        print(markdown(measured(options, torch.device(options.device), started)))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
