from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run_all
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gnnrl_lightning.app.config import SearchConfig, TrainConfig, register, typed

CONF = Path(__file__).resolve().parents[1] / "conf"
OPTIONS = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
SEARCH_ONLY = {"method", "agent", "cost", "importance", "recovery", "hparams_search", "experiment", "debug"}


@pytest.fixture(autouse=True)
def stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_STAMP", "now")
    register()


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, ["paths.root=/root", "paths.run=/run", *overrides])


def search_config(*overrides: str) -> SearchConfig:
    return typed(composed("search", "model=resnet20", "budget=0.5", *overrides), SearchConfig)


def targets(node: object) -> Iterator[str]:
    """Every `_target_` of a configuration in plain containers."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)


@pytest.mark.parametrize("path", OPTIONS, ids=str)
def test_every_option_composes(path: Path) -> None:
    group, option = path.parts[0], path.stem
    if group == "hydra":
        pytest.skip("Hydra composes its own settings only in a run; every test of the command line uses them")
    if option == "slurm":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    search = composed("search", *dict.fromkeys(("model=resnet20", "budget=0.5", f"{group}={option}")))
    named = list(targets(OmegaConf.to_container(search, resolve=False)))
    assert len(named) > 3 and all(callable(get_object(name)) for name in named)
    if group not in SEARCH_ONLY:
        composed("train", f"{group}={option}")


@pytest.mark.parametrize("name", ["search", "train"])
def test_every_setting_has_its_line(name: str) -> None:
    """A field of the schema without a word on what it is for is a field that nobody can set."""
    schema = {"search": SearchConfig, "train": TrainConfig}[name]
    package = CONF.parent / "gnnrl_lightning"
    source = [
        *(package / "app" / "config.py").read_text().splitlines(),
        *(package / "settings.py").read_text().splitlines(),
    ]
    for field in schema.__dataclass_fields__:
        places = [index for index, line in enumerate(source) if line.startswith(f"    {field}: ")]
        assert places and all(source[place + 1].strip().startswith('"""') for place in places), field


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("budget=0", "budget=0.0"),
        ("budget=1.5", "budget=1.5"),
        ("budget=-0.1", "budget=-0.1"),
        ("budget=nan", "budget=nan"),
        ("seed=-1", "seed=-1"),
        ("episodes=0", "episodes=0"),
        ("reward_images=0", "reward_images=0"),
        ("finalists=0", "finalists=0"),
        ("reward=top5", "reward=top5"),
        ("max_steps=0", "max_steps=0"),
        ("min_keep=-0.1", "min_keep=-0.1"),
        ("min_keep=1.1", "min_keep=1.1"),
        ("divisor=0", "divisor=0"),
        ("base.epochs=-1", "base.epochs=-1"),
        ("base.lr=0", "base.lr=0.0"),
        ("finetune.max_steps=-2", "finetune.max_steps=-2"),
        ("finetune.momentum=1", "finetune.momentum=1.0"),
        ("finetune.weight_decay=-1", "finetune.weight_decay=-1.0"),
    ],
)
def test_values_out_of_range(override: str, named: str) -> None:
    with pytest.raises(ValueError) as error:
        search_config(override)
    text = str(error.value)
    assert text.startswith(f"{named} is not possible; it must be ") and text.endswith(".") and "\n" not in text


@pytest.mark.parametrize("override", ["budget=1", "reward_images=null", "min_keep=0", "min_keep=1", "seed=7"])
def test_values_at_the_edge_of_their_range(override: str) -> None:
    name, value = override.split("=")
    assert getattr(search_config(override), name) == (None if value == "null" else float(value))


@pytest.mark.parametrize(
    "override", ["budget=abc", "episodes=1.5", "base.epochs=many", "budgte=0.5", "base.momentun=0"]
)
def test_wrong_types_and_names_are_refused(override: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)):
        search_config(override)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"budget is missing; add budget="):
        typed(composed("search", "model=resnet20"), SearchConfig)


@pytest.mark.parametrize("group", ["agent", "data", "trainer"])
def test_a_group_that_is_missing_is_named(group: str) -> None:
    with pytest.raises(ValueError, match=rf"^{group} is missing; add {group}="):
        typed(composed("search", "model=resnet20", "budget=0.5", f"~{group}"), SearchConfig)


@pytest.mark.parametrize(("source", "key"), [("torchvision", "name"), ("timm", "name"), ("module", "target")])
def test_a_network_must_be_named(source: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.{key} is missing; add model\.{key}="):
        typed(composed("search", f"model={source}", "budget=0.5"), SearchConfig)


def test_the_schema_is_what_a_run_gets() -> None:
    config = search_config("data=cifar10", "finetune.lr=0.2", "exclude=[conv1,fc]")
    assert isinstance(config, SearchConfig) and type(config.budget) is float
    assert config.base.epochs == 200  # those of the data
    assert config.finetune.lr == 0.2 and config.exclude == ["conv1", "fc"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to train"),
        (["model=resnet20"], "nothing to train"),
        (["plan=some/plan.json", "model=resnet20"], "brings its own network"),
        (["plan=some/plan.json", "weights=some.pt"], "brings its own network"),
        (["model=resnet20", "data=digits", "fit.lr=0"], r"fit\.lr=0\.0"),
    ],
)
def test_what_cannot_be_trained(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        typed(composed("train", *overrides), TrainConfig)


def test_help_and_configuration_are_printed(tmp_path: Path) -> None:
    lines = [
        ["search.py", "--help"],
        ["train.py", "--help"],
        ["search.py", "model=resnet20", "budget=0.5", "--cfg", "job"],
        ["train.py", "model=resnet20", "data=digits", "--cfg", "job"],
    ]
    outcomes = run_all(lines, tmp_path)
    for outcome in outcomes:
        assert outcome.code == 0 and outcome.err == ""
    help_, train_help, config, train_config = (outcome.out for outcome in outcomes)
    for text in (help_, train_help):
        assert "python search.py model=mobilenet_v2 budget=0.7" in text and "README.md" in text
    for option in ("resnet56", "cifar100", "gnnrl", "flops", "wandb"):
        assert option in help_
    assert OmegaConf.create(config).budget == 0.5
    assert OmegaConf.create(train_config).fit.epochs == 100
    assert not list(tmp_path.glob("outputs"))
