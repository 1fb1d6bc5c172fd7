import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from gnnrl_lightning.core.samples import IMAGENET
from gnnrl_lightning.models.factory import ModelSpec, check_model, create_model, preprocessing_of
from gnnrl_lightning.pruning.apply import uniform_plan
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.saved import load_pruned, save_pruned
from gnnrl_lightning.topology import trace

CODE = """
from pathlib import Path

from torch import nn


def build(num_classes=5, width=8, stride=2):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=stride, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, num_classes),
    ).eval()


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


def mark(path="ran", **kwargs):
    Path(path).touch()
    return 0


def fails():
    raise KeyError("first line\\nsecond line")


def two_outputs():
    return Twice()


class Twice(Net):
    def __init__(self):
        super().__init__(5)

    def forward(self, x):
        return self.fc(x.mean((2, 3))), x


class Picky(Net):
    def __init__(self):
        super().__init__(5)

    def forward(self, x):
        return {}["missing"]


constant = 3
"""


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory holds code of the user's that nothing else knows of."""
    (tmp_path / "my_net.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("import torch\nnonsense\n")
    (tmp_path / "lacking.py").write_text("import there_is_no_such_library\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").write_text("")
    (tmp_path / "my_package/net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    names = ("my_net", "broken", "lacking", "my_package", "my_package.net")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path  # type: ignore[misc]
    for name in names:
        sys.modules.pop(name, None)


def spec(target: str = "my_net.build", **kwargs: Any) -> ModelSpec:
    return ModelSpec("module", target, kwargs)


def sentence(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize("target", ["my_net.build", "my_net.Net", "my_package.net.build"])
def test_code_of_the_current_directory_is_found(target: str) -> None:
    check_model(spec(target, num_classes=7), 7, None)
    model = create_model(spec(target, num_classes=7), 7, 32, None)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_configuration_names_it() -> None:
    conf = str(Path(__file__).resolve().parents[2] / "conf")
    kwargs = "model.kwargs={num_classes: 7, width: 4}"
    with initialize_config_dir(conf, version_base="1.3"):
        named = compose("model/module", ["model.target=my_net.build", kwargs]).model
        plain = compose("model/module", ["model.target=my_net.build"]).model
        library = compose("model/mobilenet_v2", ["model.kwargs={width_mult: 0.5}"]).model
    assert ModelSpec.from_config(named) == spec(num_classes=7, width=4)
    assert ModelSpec.from_config(plain) == spec()
    assert ModelSpec.from_config(library) == ModelSpec("torchvision", "mobilenet_v2", {"width_mult": 0.5})


def test_it_is_trained_whatever_mode_it_came_in() -> None:
    assert create_model(spec(), 5, 32, None).training  # Lightning leaves modes alone


def test_it_is_taken_as_it_is() -> None:
    model = create_model(spec(stride=2), 5, 32, None)
    assert model[0].stride == (2, 2)  # a library's network would be adapted to small images
    assert preprocessing_of(spec(), None) is IMAGENET


def test_weights_come_back(beside: Path) -> None:
    source = create_model(spec(), 5, 32, None)
    torch.save(source.state_dict(), beside / "weights.pt")
    model = create_model(spec(), 5, 32, str(beside / "weights.pt"))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    assert sentence(lambda: check_model(spec(), 5, "default")).startswith(
        "weights=default does not exist for module's my_net.build; give weights=/path"
    )


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("build", "is not package.function, e.g. model.target=my_net.build"),
        ("my_net.build()", "is not package.function"),
        ("../my_net.build", "is not package.function"),
        ("", "is not package.function"),
        ("absent.build", "cannot be imported (there is no module absent in "),
        ("my_package.absent.build", "cannot be imported (there is no module my_package.absent in "),
        ("lacking.build", "cannot be imported (ModuleNotFoundError: No module named 'there_is_no_such_library')"),
        ("broken.build", "cannot be imported (NameError: name 'nonsense' is not defined)"),
        ("my_net.buidl", "does not exist; name a function or class of my_net"),
        ("my_net.constant", "cannot be called; name a function or class of my_net"),
    ],
)
def test_what_cannot_be_found(target: str, told: str) -> None:
    text = sentence(lambda: check_model(spec(target), 5, None))
    assert text.startswith(f"model.target={target} {told}")


def test_the_number_of_classes_is_that_of_the_data() -> None:
    assert create_model(spec("my_net.build"), 7, 32, None)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("target", "kwargs", "told"),
    [
        ("my_net.fails", {}, "failed with model.kwargs={} (KeyError: 'first line\\nsecond line'); mend either"),
        ("my_net.build", {"widht": 3}, "failed with model.kwargs={'widht': 3} (TypeError: build() got an unexpected"),
        ("my_net.mark", {}, "gives int and not a torch.nn.Module; name a function or class"),
        ("my_net.Picky", {}, "does not take 32x32 images ('missing'); "),
        ("my_net.two_outputs", {}, "gives tuple for one image and not one score for each of 5 classes"),
        ("my_net.build", {"num_classes": 3}, "gives [1, 3] for one image and not one score for each of 5 classes"),
    ],
)
def test_what_is_no_classification_network(target: str, kwargs: dict[str, Any], told: str) -> None:
    text = sentence(lambda: create_model(spec(target, **kwargs), 5, 32, None))
    assert text.startswith(f"model.target={target} {told}")


def saved(folder: Path, target: str, **kwargs: Any) -> PruningPlan:
    """A run's folder, as a search of a network of the user's own writes it."""
    torch.manual_seed(0)
    model = create_model(spec(), 5, 32, None)
    plan = uniform_plan(trace(model, torch.zeros(1, 3, 32, 32)), model, keep=1.0)
    network = {"spec": spec(target, **kwargs).to_dict(), "num_classes": 5, "image_size": 32}
    plan = replace(plan, model=network)
    save_pruned(folder, model, plan)
    return plan


def test_a_plan_comes_back_with_the_network(beside: Path) -> None:
    plan = saved(beside / "run", "my_net.build")
    assert plan.model is not None and plan.model["spec"] == {"source": "module", "name": "my_net.build", "kwargs": {}}
    small = load_pruned(beside / "run", model=create_model(spec(), 5, 32, None))
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("target", ["my_net.mark", "os.mkdir", "my_net.build", "x\ny.z"])
def test_a_plan_never_runs_the_code_that_it_names(target: str, beside: Path) -> None:
    saved(beside / "run", target, path=str(beside / "ran"))
    sys.modules.pop("my_net", None)
    text = sentence(lambda: load_pruned(beside / "run"))
    assert f"(model.target={target!r})" in text
    assert "gl.load_pruned(folder, model=…)" in text and "model=module model.target=…" in text
    assert not (beside / "ran").exists() and "my_net" not in sys.modules


def test_the_code_that_a_file_names_would_have_run(beside: Path) -> None:
    stored = json.loads(json.dumps(spec("my_net.mark", path=str(beside / "ran")).to_dict()))
    assert "never run" in sentence(lambda: ModelSpec.from_file(stored))
    typed = OmegaConf.create({"source": "module", "target": stored["name"], "kwargs": stored["kwargs"]})
    assert isinstance(typed, DictConfig)
    with pytest.raises(ValueError, match="gives int"):
        create_model(ModelSpec.from_config(typed), 5, 32, None)
    assert (beside / "ran").exists()  # so the refusals above are what kept it from running


def test_networks_of_libraries_come_from_files() -> None:
    stored = ModelSpec("torchvision", "mobilenet_v2", {"width_mult": 0.5})
    assert ModelSpec.from_file(stored.to_dict()) == stored
