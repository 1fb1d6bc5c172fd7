import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.outline import write_layers

MakeRun = Callable[..., Path]

_EVERYTHING = {
    "recovery_curve": [{"images": 0, "top1": 85.7}, {"images": 12800, "top1": 88.1}, {"images": 25600, "top1": 90.12}],
    "reward_top1_original": 93.3,
    "levels": {"uniform": -13.5, "closed_form": -11.0, "random": -60.0},
    "weights": {"from": "refitted", "rewards": {}},
    "budget_check": {
        "quantity": "latency at batch 32",
        "unit": "ms",
        "predicted": [80.0, 48.0],
        "measured": [78.9, 48.9],
    },
}
"""What results.json holds besides where there was a fine-tuning, a baseline or a predicted cost."""


def write_curves(folder: Path, groups: int, width: int = 16) -> None:
    """Error curves that halve with each channel; the found network keeps one half, uniform widths a quarter."""
    errors = [2.0 ** (10 - kept) for kept in range(width)] + [0.0]
    of = [
        {"name": f"layer{index}.conv<1>", "width": width, "kept": width // 2, "errors": errors}
        for index in range(groups)
    ]
    content = {"groups": of, "plans": {"error": [width // 2] * groups, "uniform": [width // 4] * groups}}
    (folder / "curves.json").write_text(json.dumps(content))


@pytest.fixture
def make_run() -> MakeRun:
    """Write the three files of a finished search and return its folder."""

    def make(
        folder: Path,
        rewards: tuple[float, ...] = (-40.0, -12.5, -9.25, -30.0),
        groups: int = 3,
        **changed: Any,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"layer{index}.conv<1>" for index in range(groups)]
        lines = ["episode,iteration,steps,reward,best_reward,cost,cost_ratio,cached,seconds,widths"]
        best = float("-inf")
        for number, reward in enumerate(rewards, start=1):
            best = max(best, reward)
            widths = " ".join(str(1 + (number + index) % 16) for index in range(groups))
            ratio = 0.5 - number / 10_000
            lines.append(f"{number},0,2,{reward},{best},{ratio * 1e8:.0f},{ratio},0,0.5,{widths}")
        (folder / "history.csv").write_text("\n".join(lines) + "\n")
        chosen = 1 + max(range(len(rewards)), key=lambda index: rewards[index])
        plan = [
            {"name": name, "width": 16, "kept": list(range(1 + (chosen + index) % 16))}
            for index, name in enumerate(names)
        ]
        (folder / "plan.json").write_text(
            json.dumps({"format": 1, "groups": plan, "model": {"spec": {"source": "cifar"}}})
        )
        small = {"macs": 49_990_000, "params": 400_000, "latency_ms": 8.0, "latency_ratio": 1.5}
        results = {
            "model": "resnet56",
            "data": "digits",
            "agent": "gnnrl",
            "importance": "l1",
            "recovery": "bn",
            "budget": 0.5,
            "cost": "flops",
            "cost_unit": "MMACs",
            "cost_values": {"original": 100_000_000, "used": 49_990_000},
            "seed": 0,
            "speed": {
                name: [
                    {
                        "batch": batch,
                        "median_ms": ms * batch,
                        "p95_ms": 2 * ms * batch,
                        "images_per_second": 1000 / ms,
                        "peak_bytes": size * batch,
                        "ratio": 12.0 / ms,
                        "interval": [11.9 / ms, 12.1 / ms] if name == "pruned" else [1.0, 1.0],
                    }
                    for batch in (1, 32)
                ]
                for name, ms, size in (("original", 12.0, 2**20), ("pruned", 8.0, 2**19))
            },
            "weight_bytes": {"original": 2**22, "pruned": 2**21},
            "layout": "channels last",
            "command": "search.py model=resnet56 budget=0.5",
            "device": "CPU, 2 threads",
            "images": {"train": 100, "reward": 50, "test": 1234},
            "episodes": len(rewards),
            "evaluations": len(rewards),
            "seconds": {"base": 1.5, "search": 75.0, "finetune": 3700.0},
            "networks": [
                {
                    "name": "original",
                    "top1": 93.31,
                    "macs": 100_000_000,
                    "params": 800_000,
                    "latency_ms": 12.0,
                    "latency_ratio": 1.0,
                },
                {"name": "pruned", "top1": 80.0, **small},
                {"name": "fine-tuned", "top1": 92.1, **small},
            ],
            "allowed": {"cost": 50_000_000, "fraction": 0.5},
            "reward": {"best_seen": best, "whole_split": best - 1},
            "versions": {"torch": "2.9.0"},
        }
        (folder / "results.json").write_text(json.dumps(results | changed))
        return folder

    return make


@pytest.fixture
def full_run(tmp_path: Path, make_run: MakeRun, resnet20_topology: Topology) -> Path:
    """The folder of a search that wrote all that a report can show."""
    folder = make_run(tmp_path / "full", **_EVERYTHING)
    write_layers(folder / "layers.json", resnet20_topology, resnet20_topology.min_widths())
    write_curves(folder, 3)
    return folder
