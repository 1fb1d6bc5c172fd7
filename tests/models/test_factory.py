import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_lightning.core.samples import IMAGENET, Preprocessing
from gnnrl_lightning.models.factory import ModelSpec, check_model, create_model, preprocessing_of
from gnnrl_lightning.models.resnet_cifar import CifarResNet, resnet_cifar
from gnnrl_lightning.models.sources import SOURCES
from gnnrl_lightning.models.stem import adapt_stem

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "conf/model"
NAMED = sorted(path for path in CONFIG_FOLDER.glob("*.yaml") if path.stem != "module")
CIFAR = {f"resnet{depth}" for depth in (20, 32, 44, 56, 110)}
SHARED = Path(__file__).resolve().parents[3] / "shared"
RESNET18 = ModelSpec("torchvision", "resnet18")


def configured(path: Path) -> ModelSpec:
    node = OmegaConf.load(path)
    assert isinstance(node, DictConfig)
    if OmegaConf.is_missing(node, "name"):
        node.name = {"torchvision": "shufflenet_v2_x0_5", "timm": "ghostnet_100"}[path.stem]
    return ModelSpec.from_config(node)


@pytest.mark.parametrize("path", NAMED, ids=lambda path: path.stem)
def test_every_model_config_learns_from_small_images(path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(configured(path), num_classes=7, image_size=32, weights=None)
    assert model.training
    maps = record_maps(model)
    scores = model(torch.randn(2, 3, 32, 32))
    assert scores.shape == (2, 7)
    # Of one pixel a batch of one would leave BatchNorm a single value.
    assert min(map(min, maps)) >= 2
    # VGG's 25088 would be 49 copies of 512.
    assert max(m.in_features for m in model.modules() if isinstance(m, nn.Linear)) <= 4096
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def record_maps(model: nn.Module) -> list[torch.Size]:
    maps: list[torch.Size] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0].shape[2:]))
    return maps or [torch.Size([2, 2])]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem.startswith("vgg") else [])
        for path in NAMED
        if path.stem not in CIFAR
    ],
)
def test_weights_of_every_configured_network_come_back(path: Path, tmp_path: Path) -> None:
    spec = configured(path)
    source = SOURCES[spec.source].build(spec.name, 7, False, spec.kwargs).eval()
    file = tmp_path / "weights.pt"
    torch.save(source.state_dict(), file)
    model = create_model(spec, 7, 64, str(file)).eval()
    # As the library made it, but for the stem, which is adapted in both.
    adapt_stem(source, 64)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(x), source(x), rtol=1e-4, atol=1e-5 * float(source(x).abs().max()))
    again = tmp_path / "again.safetensors"
    save_file(model.state_dict(), again)
    loaded = create_model(spec, 7, 64, str(again)).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stem", ["mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50", "shufflenet_v2", "vgg16"])
def test_librarys_own_weights_are_known(stem: str) -> None:
    spec = configured(CONFIG_FOLDER / f"{stem}.yaml")
    check_model(spec, 1000, "default")
    assert preprocessing_of(spec, "default").crop == 224


def test_mobilenet_v1_is_that_of_the_paper() -> None:
    model = create_model(configured(CONFIG_FOLDER / "mobilenet_v1.yaml"), 1000, 224, None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224))
    # Howard et al. 2017, https://arxiv.org/abs/1704.04861, Table 8: 569 M, 4.2 M parameters.
    assert counter.get_total_flops() // 2 == 568_740_352
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_231_976


def test_spec_survives_json() -> None:
    node = OmegaConf.create({"source": "torchvision", "name": "mobilenet_v2", "kwargs": {"width_mult": 0.5}})
    spec = ModelSpec.from_config(node)
    again = ModelSpec.from_file(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    model = create_model(again, 10, 32, None)
    assert model.features[0][0].out_channels == 16


def test_same_seed_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(create_model(ModelSpec("cifar", "resnet20"), 10, 32, None).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        (ModelSpec("torchvision", "mobilnet_v2"), "model.name=mobilenet_v2"),
        (ModelSpec("cifar", "resnet65"), "model.name=resnet56"),
        (ModelSpec("timm", "ghostnet100"), "model.name=ghostnet_100"),
        (ModelSpec("timm", "resnet18.nonsense"), "model.name=resnet18."),
        (ModelSpec("cifar", "%"), "model.name=resnet20"),
    ],
)
def test_unknown_name(spec: ModelSpec, near: str) -> None:
    with pytest.raises(ValueError) as error:
        check_model(spec, 10, None)
    text = str(error.value)
    assert text.startswith(f"model.name={spec.name} is not one of the ") and near in text and "\n" not in text


def test_unknown_source() -> None:
    with pytest.raises(
        ValueError, match=r"^model.source=keras is not known; use model.source=cifar\|own\|torchvision\|timm\|module.$"
    ):
        check_model(ModelSpec("keras", "resnet18"), 10, None)


def test_unknown_argument() -> None:
    with pytest.raises(ValueError, match=r"^model.kwargs=\{'widht': 2\} does not suit torchvision's resnet18 .*widht"):
        create_model(ModelSpec("torchvision", "resnet18", {"widht": 2}), 10, 32, None)


def test_weights_have_one_door() -> None:
    # Older timm reads this file as a pickle, and the kwargs may come from a plan.
    with pytest.raises(ValueError, match=r"does not suit timm's resnet18 .*checkpoint_path"):
        create_model(ModelSpec("timm", "resnet18", {"checkpoint_path": "evil.pth"}), 10, 32, None)


@pytest.mark.parametrize("name", ["inception_v3", "vit_b_16"])
def test_network_that_cannot_take_the_images(name: str) -> None:
    with pytest.raises(ValueError) as error:
        create_model(ModelSpec("torchvision", name), 10, 32, None)
    assert str(error.value).startswith(f"model.name={name} does not take 32x32 images (")
    assert "\n" not in str(error.value)


def test_network_that_does_not_classify() -> None:
    with pytest.raises(ValueError, match=r"^model.name=resnet18 gives list for one image"):
        create_model(ModelSpec("timm", "resnet18", {"features_only": True}), 10, 32, None)


def test_weights_from_a_file_reach_the_adapted_network(tmp_path: Path) -> None:
    source = SOURCES["torchvision"].build("resnet18", 10, False, {})
    path = tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)
    model = create_model(RESNET18, 10, 32, str(path))
    assert model.conv1.stride == (1, 1)
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    with pytest.raises(
        ValueError, match=r"fc.weight is 10x512 in the file and 5x512 in the model; set data.num_classes=10"
    ):
        create_model(RESNET18, 5, 32, str(path))


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pt"
    torch.save(resnet_cifar(20, 10).state_dict(), path)
    loaded, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: loaded.append(file) or load(file, **options))
    create_model(ModelSpec("cifar", "resnet20"), 10, 32, str(path))
    assert loaded == [path]


def test_bad_weights_are_found_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(SOURCES["torchvision"]), "build", lambda *_: pytest.fail("was built"))
    with pytest.raises(ValueError, match=r"absent\.pt is not a file"):
        create_model(RESNET18, 10, 32, str(tmp_path / "absent.pt"))


def test_default_weights_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"^weights=default does not exist for cifar's resnet20; give weights=/path"):
        check_model(ModelSpec("cifar", "resnet20"), 10, "default")
    with pytest.raises(ValueError, match=r"^weights=default does not exist for timm's ghostnet_050;"):
        check_model(ModelSpec("timm", "ghostnet_050"), 10, "default")


@pytest.mark.parametrize("spec", [RESNET18, ModelSpec("timm", "ghostnet_100")])
def test_default_weights_for_other_classes(spec: ModelSpec) -> None:
    with pytest.raises(ValueError, match=rf"^weights=default of {spec.name} has 1000 classes and the data has 10; "):
        check_model(spec, 10, "default")
    check_model(spec, 1000, "default")


def test_default_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError) as error:
        create_model(ModelSpec("torchvision", "squeezenet1_1"), 1000, 224, "default")
    text = str(error.value)
    assert text.startswith("weights=default of torchvision's squeezenet1_1 could not be downloaded")
    assert "not known" in text and "weights=/path/to/checkpoint" in text and "\n" not in text


def test_default_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    donor = SOURCES["torchvision"].build("squeezenet1_1", 1000, False, {}).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: donor)
    model = create_model(ModelSpec("torchvision", "squeezenet1_1"), 1000, 224, "default")
    assert all(torch.equal(value, donor[name]) for name, value in model.state_dict().items())


def test_preprocessing_is_that_of_the_weights() -> None:
    assert preprocessing_of(ModelSpec("torchvision", "efficientnet_b1"), "default") == Preprocessing(
        mean=IMAGENET.mean, std=IMAGENET.std, crop=240, resize=255, interpolation="bilinear"
    )
    ghostnet = preprocessing_of(ModelSpec("timm", "ghostnet_100"), "default")
    assert ghostnet == Preprocessing(IMAGENET.mean, IMAGENET.std, crop=224, resize=256, interpolation="bicubic")
    inception = preprocessing_of(ModelSpec("timm", "inception_v3.tf_in1k"), "default")
    assert inception.mean == (0.5, 0.5, 0.5) and (inception.crop, inception.resize) == (299, 341)


def test_preprocessing_without_metadata_is_imagenets() -> None:
    assert preprocessing_of(RESNET18, None) is IMAGENET
    assert preprocessing_of(RESNET18, "/some/file.pt") is IMAGENET
    assert preprocessing_of(ModelSpec("cifar", "resnet20"), None) is IMAGENET


def test_all_default_weights_of_torchvision_have_metadata() -> None:
    for name in SOURCES["torchvision"].names():
        pretrained = SOURCES["torchvision"].pretrained(name)
        assert pretrained is not None and pretrained.num_classes == 1000
        assert pretrained.preprocessing.resize >= pretrained.preprocessing.crop >= 224


def test_shared_checkpoint_through_the_factory() -> None:
    path = SHARED / "weights/cifar10/resnet20-12fca82f.th"
    if not path.exists():
        pytest.skip("needs ../shared")
    model = create_model(ModelSpec("cifar", "resnet20"), 10, 32, str(path))
    assert isinstance(model, CifarResNet)
    with pytest.raises(ValueError, match="belongs to another network than this CifarResNet"):
        create_model(ModelSpec("cifar", "resnet56"), 10, 32, str(path))


def test_own_networks_are_all_listed() -> None:
    assert SOURCES["cifar"].names() == ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]
    for name in SOURCES["cifar"].names():
        assert repr(SOURCES["cifar"].build(name, 3, False, {})) == repr(resnet_cifar(int(name[6:]), 3))
