import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.models.weights import check_weights, load_weights

SHARED = Path(__file__).resolve().parents[3] / "shared"


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.path),)


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def sentence(error: pytest.ExceptionInfo[ValueError], path: Path) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and text.startswith(f"weights={path}")
    return text


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


@pytest.mark.parametrize(
    "wrap",
    [
        plain,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.model.{name}": value for name, value in state.items()}},
        lambda state: {f"net._orig_mod.{name}": value for name, value in state.items()},
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_every_layout_load(wrap: Callable, zipped: bool, tmp_path: Path) -> None:
    source, model = resnet_cifar(8, 10), resnet_cifar(8, 10)
    path = tmp_path / "weights.pt"
    torch.save(wrap(source.state_dict()), path, _use_new_zipfile_serialization=zipped)
    check_weights(str(path))
    assert not states_equal(source, model)
    load_weights(model, path)
    assert states_equal(source, model)


def test_safetensors_load(tmp_path: Path) -> None:
    source, model = resnet_cifar(8, 10), resnet_cifar(8, 10)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    load_weights(model, path)
    assert states_equal(source, model)


def test_networks_whose_own_names_have_a_prefix_load(tmp_path: Path) -> None:
    source, model = (nn.ModuleDict({"model": nn.Linear(2, 3)}) for _ in range(2))
    path = tmp_path / "weights.pt"
    torch.save({f"module.{name}": value for name, value in source.state_dict().items()}, path)
    load_weights(model, path)
    assert states_equal(source, model)


def test_networks_with_versioned_layout_load_from_safetensors(tmp_path: Path) -> None:
    source, model = get_model("mnasnet0_5", num_classes=3), get_model("mnasnet0_5", num_classes=3)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    load_weights(model, path)  # its own loader asks for a version tag, which safetensors do not keep
    assert states_equal(source, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_to_the_models(dtype: torch.dtype, tmp_path: Path) -> None:
    source, model = resnet_cifar(8, 10).to(dtype), resnet_cifar(8, 10)
    path = tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)
    load_weights(model, path)
    assert model.conv1.weight.dtype == torch.float32
    assert states_equal(source.float(), model)


def test_mobilenet_of_shared_loads() -> None:
    path = SHARED / "weights/imagenet/mobilenet_v2.pt"
    if not path.exists():
        pytest.skip("needs ../shared")
    model = get_model("mobilenet_v2")
    load_weights(model, path)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    in_file = torch.load(path, weights_only=True)["classifier.1.weight"]
    assert in_file.dtype == torch.float16
    assert torch.equal(model.classifier[1].weight, in_file.float())


def test_absent_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.pt"
    with pytest.raises(ValueError) as error:
        check_weights(str(path))
    assert "is not a file; give weights=/path" in sentence(error, path)
    with pytest.raises(ValueError, match="is not a file"):
        check_weights(str(tmp_path))


def test_no_file_to_check() -> None:
    check_weights(None)
    check_weights("default")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_truncated_checkpoint(kept: float, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(resnet_cifar(8, 10).state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError) as error:
        check_weights(str(path))
    assert "truncated" in sentence(error, path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.6, 0.99])
def test_truncated_safetensors(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(resnet_cifar(8, 10).state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError) as error:
        check_weights(str(path))
    assert "damaged" in sentence(error, path)


@pytest.mark.parametrize("content", [b"hello\nworld", b"<!DOCTYPE html>", b"\x89PNG\r\n\x1a\n", bytes(range(256))])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        check_weights(str(path))
    assert "no checkpoint" in sentence(error, path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(2)], torch.ones(2), {"state_dict": {"a": 1}}])
def test_checkpoint_without_weights(content: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ValueError) as error:
        check_weights(str(path))
    assert "no tensors by name" in sentence(error, path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "protocol 0", "protocol 2", "protocol 4", "nested"])
@pytest.mark.filterwarnings("error")
def test_code_in_a_pickle_never_runs(kind: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "executed"
    bomb = Malicious(trace)
    if kind.startswith("protocol"):
        path.write_bytes(pickle.dumps({"state_dict": bomb}, protocol=int(kind[-1])))
    else:
        state = {"state_dict": {"a": torch.ones(2), "b": bomb}} if kind == "nested" else bomb
        torch.save(state, path, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(ValueError) as error:
        load_weights(resnet_cifar(8, 10), path)
    assert "code" in sentence(error, path) or "pickle of more than tensors" in str(error.value)
    assert not trace.exists()
    # The file was dangerous: Python's own reader does what it says.
    if kind.startswith("protocol"):
        pickle.loads(path.read_bytes())
        assert trace.exists()


def test_whole_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(resnet_cifar(8, 10), path)
    with pytest.raises(ValueError) as error:
        check_weights(str(path))
    assert "would run code when it is read (gnnrl_lightning.models.resnet_cifar.CifarResNet)" in sentence(error, path)


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(resnet_cifar(14, 10).state_dict(), path)
    model = resnet_cifar(8, 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_weights(model, path)
    # One more block in each of three stages: 2 convolutions and 2 BatchNorms of 5 tensors.
    assert "36 unexpected, first layer1.1.conv1.weight" in sentence(error, path)
    assert "missing" not in str(error.value) and "model=" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    torch.save(get_model("squeezenet1_1").state_dict(), path)
    with pytest.raises(ValueError, match=r"37 missing, first conv1.weight; 52 unexpected, first features.0.weight"):
        load_weights(model, path)


def test_weights_for_other_classes(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(resnet_cifar(8, 10).state_dict(), path)
    with pytest.raises(ValueError) as error:
        load_weights(resnet_cifar(8, 100), path)
    text = sentence(error, path)
    assert "linear.weight is 10x64 in the file and 100x64 in the model" in text
    assert "data.num_classes=10" in text


def test_weights_of_another_width(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(get_model("mobilenet_v2", width_mult=0.5).state_dict(), path)
    with pytest.raises(ValueError) as error:
        load_weights(get_model("mobilenet_v2"), path)
    text = sentence(error, path)
    assert "features.0.0.weight is 16x3x3x3 in the file and 32x3x3x3 in the model and" in text
    assert "num_classes" not in text
