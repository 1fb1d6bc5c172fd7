"""Plans and pruned networks on disk: round trips, and one sentence for what is damaged."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gnnrl_lightning.models.factory import ModelSpec, create_model
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.apply import apply_plan, uniform_plan
from gnnrl_lightning.pruning.plan import GroupPlan, PruningPlan
from gnnrl_lightning.pruning.saved import load_pruned, save_pruned
from gnnrl_lightning.topology import Topology, trace

PLAN = PruningPlan(
    groups=(GroupPlan("conv1", 16, (0, 3, 15)), GroupPlan("layer1.0.conv1", 8, tuple(range(8)))),
    input_shape=[1, 3, 32, 32],
    exclude=("^linear",),
    model={"spec": {"source": "cifar", "name": "resnet20", "kwargs": {}}, "num_classes": 10, "image_size": 32},
    data={"name": "digits"},
    rewritten=True,
    about={"budget": 0.5},
)


def test_a_plan_survives_the_round_trip(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == PLAN
    assert PLAN.widths == [3, 8]


def damaged(path: Path, **changed: Any) -> Path:
    PLAN.save(path)
    raw = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in raw.items() if value != "absent"}))
    return path


def group(**changed: Any) -> list[dict[str, Any]]:
    return [{"name": "conv1", "width": 4, "kept": [0, 2], **changed}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 99}, "its format is 99 and this version reads 1"),
        ({"format": "absent"}, "'format' is missing"),
        ({"groups": "absent"}, "'groups' is missing"),
        ({"groups": [{"name": "a"}]}, "'width' is missing"),
        ({"groups": group(kept=["x"])}, "invalid literal"),
        ({"groups": group(kept=[])}, "group conv1 must keep 1 to 4 distinct channels"),
        ({"groups": group(kept=[0, 0])}, "group conv1 must keep"),
        ({"groups": group(kept=[2, 1])}, "group conv1 must keep"),
        ({"groups": group(kept=[-1, 1])}, "group conv1 must keep"),
        ({"groups": group(kept=[0, 4])}, "group conv1 must keep"),
        ({"groups": group() * 2}, "names a group twice"),
        ({"input_shape": ["a", 3]}, "is not a pruning plan"),
        ({"input_shape": [1, 0, 3]}, "must be the shape of a batch"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_malformed_plan_is_one_sentence(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = damaged(tmp_path / "plan.json", **changed)
    with pytest.raises(ValueError, match=message) as caught:
        PruningPlan.load(path)
    assert str(caught.value).startswith(f"plan={path}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe\x00", pickle.dumps({"format": 1})])
def test_what_is_not_a_plan_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ValueError, match="is not a pruning plan") as caught:
        PruningPlan.load(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)


def test_a_missing_plan_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plan\.json does not exist"):
        PruningPlan.load(tmp_path / "plan.json")


def image() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_pruned_network_survives_the_round_trip(
    tmp_path: Path, resnet8: nn.Module, topology8: Topology, pruning: Any
) -> None:
    plan = uniform_plan(topology8, pruning.randomize(resnet8))
    small = apply_plan(resnet8, plan)
    save_pruned(tmp_path, small, plan)
    again = load_pruned(tmp_path, model=resnet_cifar(8, 10))
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(image()), small.eval()(image()))


def test_a_plan_that_names_its_network_needs_no_model(tmp_path: Path) -> None:
    spec = ModelSpec("cifar", "resnet20")
    torch.manual_seed(0)
    model = create_model(spec, 10, 16, weights=None).eval()
    topology = trace(model, torch.zeros(1, 3, 16, 16))
    network = {"spec": spec.to_dict(), "num_classes": 10, "image_size": 16}
    plan = replace(uniform_plan(topology, model), model=network)
    small = apply_plan(model, plan)
    save_pruned(tmp_path, small, plan)
    with torch.no_grad():
        assert torch.equal(load_pruned(str(tmp_path))(image()), small(image()))


def test_shared_weights_can_be_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(c, 6, 1, bias=False) for c in (3, 6, 6))
            self.b.weight = self.a.weight
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(self.stem(x)).relu()))

    model = Tied().eval()
    plan = uniform_plan(trace(model, torch.zeros(1, 3, 16, 16)), model)
    small = apply_plan(model, plan)
    save_pruned(tmp_path, small, plan)
    again: Any = load_pruned(tmp_path, Tied())
    assert again.b.weight is again.a.weight
    with torch.no_grad():
        assert torch.equal(again(image()), small(image()))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, folder = resnet_cifar(8, 10), tmp_path_factory.mktemp("written")
    plan = uniform_plan(trace(model, torch.zeros(1, 3, 16, 16)), model)
    save_pruned(folder, apply_plan(model, plan), plan)
    return folder


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize("left", [0, 5, 500, -7])
def test_truncated_weights_are_one_sentence(saved: Path, left: int) -> None:
    weights = saved / "pruned.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(ValueError, match="does not hold the weights of its plan") as caught:
        load_pruned(saved, resnet_cifar(8, 10))
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_run(saved: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (saved.joinpath("sprung").touch, ())

    (saved / "pruned.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="does not hold the weights of its plan"):
        load_pruned(saved, resnet_cifar(8, 10))
    assert not (saved / "sprung").exists()


def test_weights_of_other_widths_are_one_sentence(saved: Path, resnet8: nn.Module, topology8: Topology) -> None:
    uniform_plan(topology8, resnet8, keep=0.25).save(saved / "plan.json")
    with pytest.raises(ValueError, match=r"belongs to another plan\.json than the one beside it") as caught:
        load_pruned(saved, resnet_cifar(8, 10))
    assert "\n" not in str(caught.value)


def test_missing_weights_and_a_missing_model_are_one_sentence(saved: Path) -> None:
    with pytest.raises(ValueError, match="does not say how to build its network; pass it as model="):
        load_pruned(saved)
    (saved / "pruned.safetensors").unlink()
    with pytest.raises(ValueError, match="the run did not reach its end"):
        load_pruned(saved, resnet_cifar(8, 10))


@pytest.mark.parametrize(
    "model", [{}, {"spec": {"nonsense": 1}}, {"spec": None}, {"spec": {"source": "cifar", "name": "x"}}]
)
def test_a_plan_with_a_damaged_network_is_one_sentence(saved: Path, model: dict) -> None:
    plan = replace(PruningPlan.load(saved / "plan.json"), model=model)
    save_pruned(saved, load_pruned(saved, resnet_cifar(8, 10)), plan)
    with pytest.raises(ValueError, match="does not say how to build its network") as caught:
        load_pruned(saved)
    assert "\n" not in str(caught.value)


def test_what_is_written_is_what_is_read(saved: Path, resnet8: nn.Module) -> None:
    plan = PruningPlan.load(saved / "plan.json")
    small = apply_plan(resnet8, plan).state_dict()
    written = load_file(saved / "pruned.safetensors")
    assert written.keys() == small.keys()
    assert all(torch.equal(written[name], small[name]) for name in small)
