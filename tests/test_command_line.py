import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from commands import Outcome, run_all
from wandb_file import read

import gnnrl_lightning as gl
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.plan import PruningPlan

OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        layers = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3)
        self.body = nn.Sequential(*layers, nn.ReLU(), nn.MaxPool2d(14))
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x):
        return self.head(self.body(x).view(x.size(0), -1))  # which no channels-last network can

build = Net
"""
FOLDER = {
    "plan.json",
    "pruned.safetensors",
    "history.csv",
    "results.json",
    "report.html",
    "README.md",
    "search.log",
    "config.yaml",
    ".hydra/config.yaml",
    ".hydra/overrides.yaml",
    "checkpoints/last.ckpt",
    "figures/reward.svg",
    "figures/groups.svg",
    "figures/cost.svg",
}


def test_a_search_from_beginning_to_end(finished: tuple[Path, Outcome]) -> None:
    folder, outcome = finished
    assert outcome.code == 0, outcome.err
    for word in ("original", "pruned", "fine-tuned", "top-1", "MMACs allowed", "24/24 episodes", "gl.load_pruned"):
        assert word in outcome.out
    assert "Traceback" not in outcome.err and "Warning" not in outcome.err
    assert "GPU available" not in outcome.out + outcome.err, "Lightning's hints"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert not FOLDER - files
    assert not [name for name in files if "tmp" in name]
    with (folder / "history.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 24


def test_the_network_of_a_run_is_what_the_report_says(finished: tuple[Path, Outcome]) -> None:
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    network = gl.load_pruned(folder)
    assert not network.training and network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    whole = gl.trace(resnet_cifar(20, 10), torch.zeros(1, 3, 32, 32))
    small = gl.trace(network, torch.zeros(1, 3, 32, 32))
    plan = PruningPlan.load(folder / "plan.json")
    macs = int(whole.macs(torch.tensor(plan.widths)))
    original, *others = results["networks"]
    pruned = [stage for stage in others if stage["name"] != "closed-form"]
    assert original["macs"] == int(whole.macs()) and {stage["macs"] for stage in pruned} == {macs}
    assert int(small.macs()) == macs <= 0.5 * int(whole.macs())
    assert sum(p.numel() for p in network.parameters()) == pruned[0]["params"]
    assert results["reward"]["best_seen"] <= 0 and results["episodes"] == 24


@pytest.fixture(scope="module")
def more(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """Other things to do, in one process."""
    folder = tmp_path_factory.mktemp("more")
    quick = [*tiny, "episodes=2", "start=paper"]
    lines = [
        ["search.py", "-m", *quick, "budget=0.3,0.7", f"hydra.sweep.dir={folder}/sweep", "logger=none"],
        ["search.py", *quick, "logger=wandb", f"hydra.run.dir={folder}/wandb", "agent=random"],
        [
            "search.py",
            *quick,
            "logger=[csv,wandb]",
            f"hydra.run.dir={folder}/both",
            "recovery=finetune",
            "recovery.epochs=2",
            "export=[torch_export]",
        ],
        ["search.py", *quick, "budget=0.4", "logger=none", f"hydra.run.dir={folder}/both"],
        ["train.py", f"plan={folder}/both/plan.json", "fit.max_steps=1", "trainer=cpu", f"hydra.run.dir={folder}/plan"],
        [
            *("train.py", "model=resnet20", "data=digits", "fit.max_steps=1", "trainer=cpu", "logger=null"),
            f"hydra.run.dir={folder}/base",
        ],
        [
            *("search.py", *quick, "model=module", "model.target=own_net.build", "model.kwargs={width: 6}"),
            *("exclude=['^body[.]0[.]']", f"hydra.run.dir={folder}/own", "logger=none", "recovery.images=null"),
        ],
        [
            *("train.py", f"plan={folder}/own/plan.json", "model=module", "model.target=own_net.build"),
            *("fit.max_steps=1", "trainer=cpu", f"hydra.run.dir={folder}/own_plan"),
        ],
    ]
    (folder / "own_net.py").write_text(OWN)
    return folder, run_all(lines, folder)


def test_a_sweep(more: tuple[Path, list[Outcome]]) -> None:
    folder, (sweep, *_) = more
    assert sweep.code == 0, sweep.err
    for job, budget in (("0", 0.3), ("1", 0.7)):
        results = json.loads((folder / "sweep" / job / "results.json").read_text())
        assert results["budget"] == budget
        assert results["networks"][1]["macs"] <= budget * results["networks"][0]["macs"]
    with (folder / "sweep" / "summary.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    assert "summary.csv" in sweep.out


def test_weights_and_biases(more: tuple[Path, list[Outcome]]) -> None:
    folder, (_, wandb, both, *_) = more
    assert wandb.code == 0 and both.code == 0, wandb.err + both.err
    for name in ("wandb", "both"):
        runs = list((folder / name).glob("wandb/offline-run-*/run-*.wandb"))
        assert len(runs) == 1 and runs[0].stat().st_size > 0
    assert not (folder / "wandb" / "metrics").exists()
    (path,) = (folder / "both").glob("wandb/offline-run-*/run-*.wandb")
    kept = read(path)
    assert kept.job_type == "search" and kept.exit_code == 0
    assert kept.config["budget"] == 0.5
    assert {"search/episodes", "figures/reward", "figures/cost", "figures/groups"} <= kept.history
    files = {"plan.json", "pruned.safetensors", "README.md", "report.html", "results.json"}
    assert kept.artifacts["resnet20-digits"] == files
    (metrics,) = (folder / "both" / "metrics").rglob("metrics.csv")
    assert {"search/best_reward", "losses/approx_kl", "test_top1/pruned"} <= set(
        metrics.read_text().split("\n")[0].split(",")
    )


def test_the_card_says_how_it_is_loaded(more: tuple[Path, list[Outcome]]) -> None:
    folder, _ = more
    results = json.loads((folder / "both" / "results.json").read_text())
    card = (folder / "both" / "README.md").read_text()
    assert f"| test top-1 %, fine-tuned | {results['networks'][-1]['top1']:.2f} |" in card
    assert "torch.export.load" in card and "onnxruntime" not in card and "gl.load_pruned" in card
    assert set(results["export"]) == {"safetensors", "torch_export"}
    program = torch.export.load(folder / "both" / "network.pt2")
    assert program.module()(torch.zeros(3, 3, 32, 32)).shape == (3, 10)


def test_a_folder_of_another_search_is_refused(more: tuple[Path, list[Outcome]]) -> None:
    folder, (*_, other, _, _, _, _) = more
    assert other.code == 1
    assert other.err.startswith("error: ") and "budget=0.5" in other.err and len(other.err.splitlines()) == 1
    assert json.loads((folder / "both" / "results.json").read_text())["budget"] == 0.5
    assert yaml.safe_load((folder / "both" / "config.yaml").read_text())["budget"] == 0.5
    assert len(list((folder / "both" / "metrics").iterdir())) == 1


def test_training(more: tuple[Path, list[Outcome]]) -> None:
    folder, (*_, plan, base, _, _) = more
    assert plan.code == 0 and base.code == 0, plan.err + base.err
    fine_tuned, searched = gl.load_pruned(folder / "plan"), gl.load_pruned(folder / "both")
    assert fine_tuned.conv1.weight.shape == searched.conv1.weight.shape
    before, after = json.loads((folder / "plan" / "results.json").read_text())["recovery_curve"]
    assert after["images"] == 128
    # One step may make it worse, and then the weights before it are the best.
    assert torch.equal(fine_tuned.conv1.weight, searched.conv1.weight) == (after["top1"] < before["top1"])
    tuned, found = (PruningPlan.load(folder / each) for each in ("plan", "both"))
    assert replace(tuned, saved={}) == replace(found, saved={})
    assert (folder / "base" / "resnet20.safetensors").is_file()


def test_a_network_of_the_users_own(more: tuple[Path, list[Outcome]]) -> None:
    folder, (*_, search, train) = more
    assert search.code == 0 and train.code == 0, search.err + train.err
    assert (folder / "own_plan" / "pruned.safetensors").is_file()
    results = json.loads((folder / "own" / "results.json").read_text())
    typed = shlex.split(results["command"])
    assert "model.kwargs={width: 6}" in typed and "exclude=['^body[.]0[.]']" in typed
    assert "model=…)" in search.out and "model=…)" in (folder / "own" / "report.html").read_text()


BAD = {
    "zero": ("budget=0", "budget=0.0 is not possible; it must be a fraction"),
    "above": ("budget=1.5", "budget=1.5 is not possible; it must be a fraction"),
    "word": ("budget=abc", "budget=abc must be a number"),
    "infeasible": ("budget=0.001", "lowest feasible budget"),
    "model": ("model=nonsense", "nonsense"),
    "name": ("model=timm model.name=nonsense", "model.name=nonsense"),
    "root": ("data=folder data.num_classes=10 data.root=/nowhere", "data.root=/nowhere"),
    "classes": ("data=folder", "data.num_classes and data.root are missing"),
    "absent": ("weights=/nowhere.pt", "weights=/nowhere.pt"),
    "other": ("weights={folder}/other.pt", "other.pt"),
    "truncated": ("weights={folder}/truncated.pt", "truncated.pt"),
    "default": ("weights=default", "weights=default"),
    "divisor": ("divisor=0", "divisor=0"),
    "exclude": ("exclude=[nonsense]", "nonsense"),
    "string": ("exclude=conv1", "exclude=conv1 must be a list, e.g. exclude=[conv1]"),
    "scale": ("model=vgg16 importance=bn_scale", "importance=bn_scale needs BatchNorm behind every channel"),
    "steps": ("episodes=1.5", "episodes=1.5 must be a whole number"),
    "agent": ("agent.episodes_per_iteration=1", "agent.episodes_per_iteration=1"),
    "unknown": ("budgte=0.5", "there is no setting budgte, do you mean budget; --help lists all"),
    "option": ("agent.lrr=1", "there is no setting agent.lrr; --help lists all"),
    "dotted": ("finetune.epoch=3", "there is no setting finetune.epoch, do you mean finetune.epochs;"),
    "other command": ("stage=evaluate", "there is no setting stage: it is one of train.py;"),
    "no option": ("agent=ppo", "there is no agent=ppo; agent is one of agmc, amc, closed_form,"),
    "switch": ("refit=false", "refit=false is not possible; refit has settings of its own, e.g. refit.enabled=false"),
    "space": ("budget 0.5", "budget is no setting with a value; write e.g. budget=0.5"),
    "several": ("seed=1,2", "seed=1,2 has several values; give them with -m"),
    "quotes": ("exclude=^conv1", "exclude=^conv1 must be quoted"),
    "null": ("data=null", "data is missing"),
    "plan of another kind": ("plan={folder}/other.pt", "other.pt is not a pruning plan"),
    "stages": ("stages=2 finetune.max_steps=0", "stages=2 is not possible"),
    "batch": ("cost=memory cost.batch_size=0", "cost.batch_size=0"),
    "format": ("export=[coreml]", "export=[coreml] is not known"),
}


@pytest.fixture(scope="module")
def bad(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Outcome]]:
    folder = tmp_path_factory.mktemp("bad")
    torch.save(resnet_cifar(56, 10).state_dict(), folder / "other.pt")
    torch.save(resnet_cifar(20, 10).state_dict(), folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    lines = [
        ["search.py", *tiny, *override.format(folder=folder).split(), f"hydra.run.dir={folder / name}"]
        for name, (override, _) in BAD.items()
    ]
    lines.append(["search.py", "model=resnet20", f"hydra.run.dir={folder / 'none'}"])
    lines.append(["train.py", f"plan={folder}/nowhere.json", f"hydra.run.dir={folder / 'plan'}"])
    return folder, dict(zip([*BAD, "none", "plan"], run_all(lines, folder), strict=True))


@pytest.mark.parametrize("name", [*BAD, "none", "plan"])
def test_bad_input_is_one_sentence(bad: tuple[Path, dict[str, Outcome]], name: str) -> None:
    folder, outcomes = bad
    outcome = outcomes[name]
    expected = {"none": "budget is missing", "plan": "nowhere.json does not exist"} | {k: v[1] for k, v in BAD.items()}
    assert outcome.code in (1, 2)
    lines = outcome.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.err
    assert expected[name] in lines[0]
    assert "Traceback" not in outcome.out + outcome.err
    assert not (folder / name).exists()
