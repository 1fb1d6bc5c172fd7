"""How well the reward before fine-tuning foretells the accuracy after it: Kendall's τ of random plans, by recovery.

Takes the overrides of search.py. It is long work: every finished plan is written to --out at once, and a run that is
started again goes on from there.

python benchmarks/proxy.py --out outputs/proxy.json model=resnet20 data=cifar10 weights=$HOME/resnet20.th budget=0.5
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import kendalltau
from torch import Tensor

from gnnrl_lightning.config import SearchConfig, build, register, typed
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.measure import test_top1
from gnnrl_lightning.files import write_json
from gnnrl_lightning.fitting import device_of, fit
from gnnrl_lightning.launch import keep_freed_memory
from gnnrl_lightning.models.factory import ModelSpec, create_model, preprocessing_of
from gnnrl_lightning.run import data_of
from gnnrl_lightning.search.environment import PruningEnv
from gnnrl_lightning.start import starting_point

PLANS = 20
RECOVERIES = {
    "none": ["recovery=none"],
    "bn": ["recovery=bn"],
    "finetune, 4 steps": ["recovery=finetune", "recovery.images=512"],
    "finetune, 16 steps": ["recovery=finetune"],
}


def random_plans(env: PruningEnv, count: int) -> list[Tensor]:
    """Where the random agent's episodes end."""
    generator, plans = torch.Generator().manual_seed(0), []
    for _ in range(count):
        env.reset()
        over = False
        while not over:
            ratios = torch.rand(len(env.full_widths), generator=generator)
            _, _, over, _, info = env.step(ratios.numpy())
        plans.append(torch.tensor(info["widths"]))
    return plans


def study(overrides: list[str], out: Path) -> list[dict[str, Any]]:
    """Rewards under every recovery and top-1 after fine-tuning, in %, one row a plan."""
    configs = {name: compose("search", [*overrides, *extra]) for name, extra in RECOVERIES.items()}
    config = next(iter(configs.values()))
    cfg: SearchConfig = typed(config, SearchConfig)
    spec, device = ModelSpec.from_config(config.model), device_of(config)
    data = data_of(config, preprocessing_of(spec, cfg.weights))
    data.prepare_data()
    data.setup()
    original = create_model(spec, data.num_classes, data.image_size, cfg.weights)
    example = torch.zeros(1, 3, data.image_size, data.image_size)
    start = starting_point(original, example, spec, cfg, None)
    cost = build(config.cost, topology=start.topology, network=original, device=device)
    env = PruningEnv(start.topology, cost, cfg.budget, lambda widths: 0.0, cfg.max_steps)
    reward, task = data.tensors("reward"), env.task(list)
    evaluators = {}
    for name, each in configs.items():
        recovery, importance = build(each.recovery), build(each.importance)
        images = data.tensors("train", max(recovery.images, importance.images, 1))
        evaluators[name] = Evaluator(
            start.model, task, start.remove, importance, recovery, reward, images, int(cfg.reward_images or 0),
            data.eval_batch_size, device, config.trainer.precision,
        )  # fmt: skip
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else []
    for number, widths in enumerate(track(random_plans(env, PLANS), "plans")):
        if number < len(rows):
            continue
        row: dict[str, Any] = {"widths": widths.tolist()}
        row |= {name: evaluator(widths) for name, evaluator in evaluators.items()}
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        network = evaluators["bn"].network(widths)
        row["pruned"] = test_top1(network, data.test_dataloader(), device, "pruned")
        with tempfile.TemporaryDirectory() as folder:
            fit(network, data, cfg.finetune, "finetune", config, [], Path(folder) / "finetune.ckpt")
        row["fine-tuned"] = test_top1(network, data.test_dataloader(), device, "fine-tuned")
        rows.append(row)
        write_json(out, rows)
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    keep_freed_memory()
    register()
    quiet = ["paths.root=.", "paths.run=outputs/proxy", "callbacks=none", "logger=none"]
    with initialize(version_base="1.3", config_path="../conf"):
        rows = study([*arguments.overrides, *quiet], arguments.out)
    after = [row["fine-tuned"] for row in rows]
    table = Table(title=f"{len(rows)} random plans: reward before against top-1 after fine-tuning")
    for column in ("recovery", "Kendall's τ", "p", "mean reward"):
        table.add_column(column, justify="left" if column == "recovery" else "right")
    for name in RECOVERIES:
        rewards = [row[name] for row in rows]
        tau = kendalltau(rewards, after)
        table.add_row(name, f"{tau.statistic:.2f}", f"{tau.pvalue:.1g}", f"{sum(rewards) / len(rows):.1f}")
    Console().print(table)
    print(f"top-1 after fine-tuning: {min(after):.2f} to {max(after):.2f} %")


if __name__ == "__main__":
    main()
