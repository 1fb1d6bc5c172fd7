"""How well the reward before fine-tuning foretells the accuracy after it: Kendall's τ of plans, by kind of reward.

Random plans of the budget, and plans near the best in closed form, which is where searches end; fine-tuned from the
refitted weights.

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
import numpy as np
import torch
from hydra import compose, initialize
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import kendalltau
from torch import Tensor

from gnnrl_lightning.app.asked import Asked, ask
from gnnrl_lightning.app.config import SearchConfig, register, typed
from gnnrl_lightning.app.launch import keep_freed_memory
from gnnrl_lightning.app.prepared import prepare
from gnnrl_lightning.app.run import open_run
from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.measure import test_top1
from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.searching.agents.start import DrawsNear
from gnnrl_lightning.training.fitting import fit

PLANS = 20
"""Of each kind."""
KINDS = ("random", "near")
REWARDS = {
    "cut, no recovery": ["refit.enabled=false", "recovery=none"],
    "cut, bn": ["refit.enabled=false", "recovery=bn"],
    "cut, finetune, 4 steps": ["refit.enabled=false", "recovery=finetune", "recovery.images=512"],
    "refitted, bn": ["recovery=bn"],
    "refitted, bn, kl": ["recovery=bn", "reward=kl"],
}
SAME = ["importance=reconstruction", "start=closed_form"]
"""Which channels go is the same for all."""


def plans_of(env: PruningEnv, kind: str, best: Tensor) -> list[Tensor]:
    """Where episodes of the random agent end: anywhere, or near the best of the closed-form plans."""
    generator, plans = torch.Generator().manual_seed(0), []
    near = DrawsNear(len(env.full_widths))
    near.begin(best / torch.as_tensor(env.full_widths))
    for _ in range(PLANS):
        env.reset()
        over, first = False, True
        while not over:
            ratios = torch.rand(len(env.full_widths), generator=generator)
            if kind == "near":
                ratios = 1 - near.near(1, generator)[0] if first else torch.full_like(ratios, 1 - 1e-6)
            _, _, over, _, info = env.step(ratios.numpy())
            first = False
        plans.append(torch.tensor(info["widths"]))
    return plans


def study(overrides: list[str], out: Path) -> list[dict[str, Any]]:
    """Every kind of reward, and top-1 after fine-tuning in %, one row a plan."""
    searches = {name: _search([*overrides, *SAME, *extra]) for name, extra in REWARDS.items()}
    evaluators = {name: evaluator for name, (_, _, evaluator) in searches.items()}
    asked, env, refitted = searches["refitted, bn"]
    # All remove the same channels: those that go first where weights are refitted.
    for evaluator in evaluators.values():
        evaluator.ranking = refitted.ranking
    best = max(refitted.plans.values(), key=refitted)
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else []
    todo = [(kind, widths) for kind in KINDS for widths in plans_of(env, kind, best)]
    data, device = asked.data, asked.run.device
    for number, (kind, widths) in enumerate(track(todo, "plans")):
        if number < len(rows):
            continue
        row: dict[str, Any] = {"kind": kind, "widths": widths.tolist()}
        row |= {name: evaluator(widths) for name, evaluator in evaluators.items()}
        L.seed_everything(asked.cfg.seed, workers=True, verbose=False)
        network = refitted.network(widths)
        row["pruned"] = test_top1(network, data.test_dataloader(), device, "pruned")
        with tempfile.TemporaryDirectory() as folder:
            fit(network, data, asked.cfg.finetune, "finetune", asked.run, Path(folder) / "finetune.ckpt")
        row["fine-tuned"] = test_top1(network, data.test_dataloader(), device, "fine-tuned")
        rows.append(row)
        write_json(out, rows)
    return rows


def _search(overrides: list[str]) -> tuple[Asked, PruningEnv, Evaluator]:
    """A search that could begin."""
    config = compose("search", overrides)
    cfg: SearchConfig = typed(config, SearchConfig)
    asked = ask(open_run(config), cfg)
    prepared, _ = prepare(asked)
    return (
        asked,
        prepared.env,
        prepared.make_evaluator(asked.run.device, asked.data.eval_batch_size, cfg.trainer["precision"]),
    )


def interval(rewards: list[float], after: list[float]) -> tuple[float, float]:
    """What holds 95 % of the τ of 2,000 bootstrap samples of the plans."""
    draws = np.random.default_rng(0).integers(len(after), size=(2000, len(after)))
    taus = [kendalltau(np.array(rewards)[rows], np.array(after)[rows]).statistic for rows in draws]
    low, high = np.nanquantile(taus, (0.025, 0.975))
    return float(low), float(high)


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
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        after = [row["fine-tuned"] for row in own]
        title = f"{len(own)} plans, {kind}: reward before against top-1 after fine-tuning"
        table = Table(title=title, caption=f"top-1 after fine-tuning: {min(after):.2f} to {max(after):.2f} %")
        for column in ("reward", "Kendall's τ", "95 % of bootstraps", "p", "mean reward"):
            table.add_column(column, justify="left" if column == "reward" else "right")
        for name in [*REWARDS, "test top-1 before"]:
            rewards = [row["pruned" if name == "test top-1 before" else name] for row in own]
            tau, (low, high) = kendalltau(rewards, after), interval(rewards, after)
            cells = [f"{tau.statistic:.2f}", f"{low:.2f} to {high:.2f}", f"{tau.pvalue:.1g}"]
            table.add_row(name, *cells, f"{sum(rewards) / len(own):.2f}")
        Console().print(table)


if __name__ == "__main__":
    main()
