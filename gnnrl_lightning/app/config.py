"""The schema of both entry points: types, ranges and one line on every setting. Checked before any work."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from gnnrl_lightning.core.checks import UserError, require, require_fraction
from gnnrl_lightning.settings import FinishConfig, FitConfig, RefitConfig, SearchSettings


@dataclass
class SearchConfig(SearchSettings):
    """Settings of search.py."""

    model: Any = MISSING
    """Which network."""
    data: Any = MISSING
    """Which images."""
    agent: Any = MISSING
    """What proposes widths."""
    cost: Any = MISSING
    """What the budget counts."""
    importance: Any = MISSING
    """Which channels of a group go first."""
    recovery: Any = MISSING
    """What a pruned network may do before its reward is taken."""
    trainer: Any = MISSING
    """Devices and strategy."""
    logger: Any = None
    """Where metrics go."""
    callbacks: Any = None
    """Lightning callbacks of base training and fine-tuning."""
    paths: Any = MISSING
    """Where files go."""
    budget: float = MISSING
    """Fraction of the cost that may stay, in (0, 1]: 0.7 keeps 70 %."""
    weights: str | None = None
    """Checkpoint of the trained network (.pt, .pth, .th, .safetensors); default: the library's own; null: train one."""
    stages: int = 1
    """Prune and fine-tune this often, each time further; the budget is met at the end."""
    plan: str | None = None
    """The plan.json of a pruned network of this model, to prune it further; null: start from the whole one."""
    reward_split: str = "train"
    """Which images rewards are taken on: train, held_out (half of the test images, or val/), or a path of images."""
    export: list[str] = field(default_factory=list)
    """Files beside pruned.safetensors, each checked against it: torch_export, onnx."""
    base: FitConfig = field(default_factory=lambda: FitConfig(lr=0.05, weight_decay=5e-4))
    """Training of the network where it has no weights yet, done once and cached; its epochs are those of the data."""
    finetune: FitConfig = field(default_factory=lambda: FitConfig(max_steps=100))
    """Brief fine-tuning of the pruned network at the end; `train.py plan=…` does it at length."""

    def check(self) -> None:
        """Raise UserError for values out of range."""
        require_fraction("budget", self.budget)
        require(self.stages >= 1, "stages", self.stages, "at least 1")
        refinable = self.stages == 1 or (self.finetune.epochs > 0 and self.finetune.max_steps != 0)
        require(refinable, "stages", self.stages, "1 where nothing is fine-tuned in between, see finetune")
        super().check()
        self.base.check("base")
        self.finetune.check("finetune")
        require(self.base.distill == 0, "base.distill", self.base.distill, "0: there is no larger network yet")


@dataclass
class TrainConfig:
    """Settings of train.py."""

    plan: str | None = None
    """The plan.json of a finished search, to fine-tune its network; null: train a base network."""
    model: Any = None
    """Which network to train; a plan names its own, but for model=module."""
    data: Any = None
    """Which images; null: those of the plan's search."""
    trainer: Any = MISSING
    """Devices and strategy."""
    logger: Any = None
    """Where metrics go."""
    callbacks: Any = None
    """Lightning callbacks."""
    paths: Any = MISSING
    """Where files go."""
    weights: str | None = None
    """Checkpoint to start a base network from; null: from scratch. A plan starts from its pruned network."""
    teacher: str | None = None
    """Checkpoint of the plan's unpruned network, to learn from its scores as well; null: from the labels alone."""
    stage: str | None = None
    """base: train a network, finetune: a plan's, evaluate: neither; null: finetune with a plan, else base."""
    seed: int = 0
    """Of everything random."""
    export: list[str] = field(default_factory=list)
    """Further files of the network, each checked against it: torch_export, onnx."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(lr=0.005))
    """The training, as the paper fine-tunes on CIFAR-10; a base network wants `fit.lr=0.1` and more epochs."""

    def check(self) -> None:
        """Raise UserError for values out of range."""
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.stage in _STAGES, "stage", self.stage, "base, finetune or evaluate")
        fits = {"base": self.plan is None, "finetune": self.plan is not None}.get(str(self.stage), True)
        require(fits, "stage", self.stage, "finetune or evaluate with plan=…, base or evaluate without")
        self.fit.check("fit")
        if (self.fit.distill > 0) != (self.teacher is not None):
            raise UserError(
                f"teacher={self.teacher} and fit.distill={self.fit.distill} need each other: give the unpruned "
                f"network's weights and the share of the loss, e.g. teacher=resnet56.th fit.distill=0.5."
            )
        if self.teacher is not None and self.plan is None:
            raise UserError(f"teacher={self.teacher} is for the fine-tuning of a plan; add plan=….")
        if self.plan is None and (self.model is None or self.data is None):
            raise UserError(
                "nothing to train: give the plan.json of a search, plan=outputs/search/<run>/plan.json, "
                "or a network and images, e.g. model=resnet20 data=cifar10."
            )
        # Only a network of the user's own is named again: a plan must not say what code is run.
        named = self.model is not None and self.model.get("source") != "module"
        if self.plan is not None and (named or self.weights is not None):
            raise UserError(f"plan={self.plan} brings its own network and weights; drop model= and weights=.")


_STAGES = (None, "base", "finetune", "evaluate")


def typed(config: DictConfig, schema: type[SearchConfig] | type[TrainConfig]) -> Any:
    """A composed configuration as a checked dataclass, its groups as plain values.

    Raises:
        UserError: If a value is missing or out of range, with the override to type.
    """
    # A missing group first: settings that are taken from it could not be looked up.
    missing = [str(name) for name in config if OmegaConf.is_missing(config, name)] or OmegaConf.missing_keys(config)
    if missing:
        names = sorted(missing)
        raise UserError(
            f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} missing; "
            f"add {' '.join(f'{name}=…' for name in names)} (see --help)."
        )
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    values: dict[str, Any] = {}
    for name, each in schema.__dataclass_fields__.items():
        if each.type in (FitConfig, RefitConfig, FinishConfig):
            values[name] = each.type(**resolved[name])
        else:
            values[name] = resolved[name]
    result = schema(**values)
    result.check()
    return result


def register() -> None:
    """Makes the schemas known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="search_schema", node=SearchConfig)
    store.store(name="train_schema", node=TrainConfig)
