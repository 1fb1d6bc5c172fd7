"""Pruning in stages: plans compose, the budget is the original's, and what has ended is not run again."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from commands import run
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


def test_stages_meet_the_budget_of_the_original(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = [*tiny, "budget=0.25", "stages=2", "episodes=4", f"hydra.run.dir={folder}"]
    outcome = run("search.py", short, tmp_path)
    assert outcome.code == 0, outcome.err
    first, last = (json.loads((at / "results.json").read_text()) for at in (folder / "stages" / "1", folder))
    assert (first["budget"], last["budget"]) == (0.5, 0.25)
    original, pruned, tuned = last["stages"]
    assert original["macs"] == first["stages"][0]["macs"]
    for results, budget in ((first, 0.5), (last, 0.25)):
        assert 0.9 * budget < results["stages"][1]["macs"] / original["macs"] <= budget
    assert pruned["macs"] == tuned["macs"] == last["cost_values"]["used"]
    assert last["cost_values"]["original"] == original["macs"]
    plan, before = (PruningPlan.load(at / "plan.json") for at in (folder, folder / "stages" / "1"))
    for now, then in zip(plan.groups, before.groups, strict=True):
        assert set(now.kept) <= set(then.kept)
    network = gl.load_pruned(folder)
    assert sum(parameter.numel() for parameter in network.parameters()) == tuned["params"]

    history = (folder / "stages" / "1" / "history.csv").stat().st_mtime_ns
    again = run("search.py", short, tmp_path)
    assert again.code == 0, again.err
    assert (folder / "stages" / "1" / "history.csv").stat().st_mtime_ns == history
    for changed in ("seed=1", "finetune.lr=0.5"):
        other = run("search.py", [*short, changed], tmp_path)
        assert other.code == 1
        assert "resume with the same settings" in other.err and changed.partition("=")[0] in other.err
    assert [row["folder"] for row in sweep_rows(folder.parent)] == ["run"]

    within = run("search.py", [*tiny, "budget=0.9", f"plan={folder / 'plan.json'}"], tmp_path)
    assert within.code == 1
    assert "is within budget=0.9 already" in within.err
    both = run("search.py", [*tiny, "budget=0.1", "stages=2", f"plan={folder / 'plan.json'}"], tmp_path)
    assert both.code == 1
    assert "stages=1 with plan=" in both.err
    excluded = run(
        "search.py", [*tiny, "budget=0.1", 'exclude=["^conv1[.]"]', f"plan={folder / 'plan.json'}"], tmp_path
    )
    assert excluded.code == 1
    assert "(conv1)" in excluded.err and "exclude" in excluded.err
    shuffled = run("search.py", [*tiny, "model=shufflenet_v2", "budget=0.25", "stages=2"], tmp_path)
    assert shuffled.code == 1
    assert "stages=1" in shuffled.err
    stranger = run("search.py", [*tiny, "model=resnet32", f"plan={folder / 'plan.json'}"], tmp_path)
    assert stranger.code == 1
    assert "is not for" in stranger.err
