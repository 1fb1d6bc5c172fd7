"""Pruning in stages: plans compose, the budget is the original's, and what has ended is not run again."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from commands import run, run_all
from torch import nn

import gnnrl_lightning as gl
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.plan import GroupPlan, PruningPlan
from gnnrl_lightning.report.tables import sweep_rows

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "build",
    [
        lambda: resnet_cifar(20, 10),
        lambda: torchvision.models.vgg11_bn(num_classes=10),
        lambda: torchvision.models.googlenet(num_classes=10, init_weights=False),  # a rewritten graph, twice
    ],
)
def test_two_plans_are_one(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build().eval()
    first = gl.uniform_plan(gl.trace(model, IMAGES), model, 0.75)
    once = gl.apply_plan(copy.deepcopy(model), first).eval()
    gl.save_pruned(tmp_path / "first", once, first)
    first = PruningPlan.load(tmp_path / "first" / "plan.json")
    second = gl.uniform_plan(gl.trace(once, IMAGES), once, 0.5)
    twice = gl.apply_plan(once, second).eval()
    both = first.then(second)
    assert both.widths == second.widths
    assert [group.width for group in both.groups] == [group.width for group in first.groups]
    gl.save_pruned(tmp_path, twice, both)
    with torch.no_grad():
        expected = twice(IMAGES)
        torch.testing.assert_close(gl.load_pruned(tmp_path, model)(IMAGES), expected)
        torch.testing.assert_close(gl.apply_plan(model, both).eval()(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_lost_a_group_cannot_be_composed() -> None:
    first = PruningPlan((GroupPlan("a", 4, (0, 2)), GroupPlan("b", 4, (1,))), (1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"\(b\).*stages=1"):
        first.then(PruningPlan((GroupPlan("a", 2, (0,)),), (1, 3, 8, 8)))
    with pytest.raises(ValueError, match="in another order"):
        first.then(PruningPlan((GroupPlan("b", 1, (0,)), GroupPlan("a", 2, (0,))), (1, 3, 8, 8)))


def test_stages_meet_the_budget_of_the_original(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = [*tiny, "budget=0.25", "episodes=4", "stages=2", f"hydra.run.dir={folder}"]
    outcome = run("search.py", short, tmp_path)
    assert outcome.code == 0, outcome.err
    first, last = (json.loads((at / "results.json").read_text()) for at in (folder / "stages" / "1", folder))
    assert (first["budget"], last["budget"]) == (0.5, 0.25)
    original = last["networks"][0]
    assert original["macs"] == first["networks"][0]["macs"]
    for results, budget in ((first, 0.5), (last, 0.25)):
        for stage in results["networks"][1:]:
            assert 0.9 * budget < stage["macs"] / original["macs"] <= budget
    sizes = {stage["name"]: stage["macs"] for stage in last["networks"]}
    assert sizes["pruned"] == sizes["fine-tuned"] == last["cost_values"]["used"]
    assert last["cost_values"]["original"] == original["macs"]
    plan, before = (PruningPlan.load(at / "plan.json") for at in (folder, folder / "stages" / "1"))
    for now, then in zip(plan.groups, before.groups, strict=True):
        assert set(now.kept) <= set(then.kept)
    network = gl.load_pruned(folder)
    assert sum(parameter.numel() for parameter in network.parameters()) == last["networks"][-1]["params"]

    (folder / "results.json").unlink()  # as if it had been killed in the last stage
    history, then = ((folder / at / "history.csv").stat().st_mtime_ns for at in ("stages/1", ""))
    further = f"plan={folder / 'plan.json'}"
    refused = {
        "seed": ["seed=1", "stages=2", f"hydra.run.dir={folder}"],
        "finetune.lr": ["finetune.lr=0.5", "stages=2", f"hydra.run.dir={folder}"],
        "is within budget=0.9 already": ["budget=0.9", further],
        "stages=1 with plan=": ["budget=0.1", "stages=2", further],
        "other settings of exclude": ["budget=0.1", 'exclude=["^conv1[.]"]', further],
        "shuffles channels": ["model=shufflenet_v2", "budget=0.25", "stages=2"],
        "is not for": ["model=resnet32", further],
    }
    outcomes = run_all(
        [["search.py", *short], *(["search.py", *short[:-2], *line] for line in refused.values())], tmp_path
    )
    assert outcomes[0].code == 0, outcomes[0].err
    assert (folder / "stages" / "1" / "history.csv").stat().st_mtime_ns == history
    assert (folder / "results.json").is_file() and (folder / "history.csv").stat().st_mtime_ns == then
    for reason, other in zip(refused, outcomes[1:], strict=True):
        assert other.code == 1
        assert reason in other.err
    assert [row["folder"] for row in sweep_rows(tmp_path)] == ["run"]  # its stage is no job of a sweep
