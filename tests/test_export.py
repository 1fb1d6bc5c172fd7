import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gnnrl_lightning.app import export as module
from gnnrl_lightning.app.export import FORMATS, check_formats, check_saved, export
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.apply import apply_plan, uniform_plan
from gnnrl_lightning.pruning.saved import save_pruned
from gnnrl_lightning.topology import trace

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Shuffled(nn.Module):
    """Has numbers of channels in its forward, so that what is left of it is a rewritten graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.norm(self.first(x)).relu().split(4, 1)
        return self.head(self.second(torch.cat([right, left], 1)).mean((2, 3)))


def halved(model: nn.Module) -> nn.Module:
    return apply_plan(model, uniform_plan(trace(model, IMAGES), model))


@pytest.mark.parametrize("build", [lambda: resnet_cifar(8, 4), Shuffled])
@pytest.mark.parametrize("name", FORMATS)
def test_the_file_computes_what_the_network_does(build: Callable[[], nn.Module], name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = halved(build()).train()
    assert isinstance(network, fx.GraphModule) == (build is Shuffled)
    written = export(network, IMAGES, [name], tmp_path)[name]
    assert network.training and written["difference"] < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [written["file"]]
    assert written["bytes"] == (tmp_path / written["file"]).stat().st_size
    _, _, run = FORMATS[name]
    with torch.no_grad():
        torch.testing.assert_close(run(tmp_path / written["file"], IMAGES[:3]), network.eval()(IMAGES[:3]))


def test_the_exported_program_needs_torch_alone(tmp_path: Path) -> None:
    network = halved(resnet_cifar(8, 4))
    export(network, IMAGES, ["torch_export"], tmp_path)
    code = (
        "import sys, torch; scores = torch.export.load('network.pt2').module()(torch.zeros(5, 3, 16, 16));"
        "assert scores.shape == (5, 4) and 'gnnrl_lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_a_wrong_file_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write, run = FORMATS["torch_export"]
    monkeypatch.setitem(FORMATS, "torch_export", (file, write, lambda path, images: run(path, images) + 1e-3))
    with pytest.raises(
        ValueError, match=r"export=\[torch_export\] failed \(it differs .* by 1.0e-03\); leave"
    ) as caught:
        export(halved(resnet_cifar(8, 4)), IMAGES, ["torch_export"], tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_an_unknown_format_and_a_missing_package_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    check_formats(["torch_export"])
    with pytest.raises(ValueError, match=r"export=\[coreml\] is not known; give any of export=\[torch_export,onnx\]"):
        check_formats(["coreml"])

    def missing(name: str) -> Any:
        if name == "onnxruntime":
            raise ImportError(f"No module named {name!r}\nand more")
        return importlib.import_module(name)

    monkeypatch.setattr(module, "importlib", type("Stub", (), {"import_module": staticmethod(missing)}))
    with pytest.raises(
        ValueError, match=r"export=\[onnx\] needs onnxruntime \(No module named 'onnxruntime'\);"
    ) as caught:
        check_formats(["onnx"])
    assert "\n" not in str(caught.value)


def test_what_was_saved_is_loaded_again_and_compared(tmp_path: Path) -> None:
    model = resnet_cifar(8, 4)
    plan = uniform_plan(trace(model, IMAGES), model)
    small = apply_plan(model, plan)
    save_pruned(tmp_path, small, plan)
    assert check_saved(small, model, IMAGES, tmp_path)["safetensors"]["difference"] == 0
    nn.init.normal_(next(small.parameters()))
    with pytest.raises(ValueError, match="gives another network than was saved"):
        check_saved(small, model, IMAGES, tmp_path)
