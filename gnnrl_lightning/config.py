"""The schema of both entry points: types, ranges and one line on every setting. Checked before any work."""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class FitConfig:
    """Supervised training with SGD and a cosine schedule."""

    epochs: int = MISSING
    """Passes over the training images."""
    max_steps: int = -1
    """Stop after this many batches, whatever the epochs; -1: no such limit."""
    lr: float = MISSING
    """Initial learning rate, annealed to 0."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 4e-5
    """L2 penalty on all parameters."""
    gradient_clip: float | None = None
    """Largest norm of a step's gradient; null: no limit."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in [0, 1)."""
    mixup: float = 0.0
    """Blend pairs of images in shares drawn from Beta(mixup, mixup); 0: do not."""
    cutmix: float = 0.0
    """Paste a box of one image into another, its area drawn from Beta(cutmix, cutmix); 0: do not."""
    ema_decay: float | None = None
    """Keep the running average of the weights, with this decay a step, e.g. 0.999; null: the last weights."""
    distill: float = 0.0
    """Share of the loss that is the distance from the unpruned network's scores, in [0, 1]."""
    temperature: float = 4.0
    """What scores are divided by before that distance is taken."""

    def check(self, name: str) -> None:
        """Raise ValueError for values out of range."""
        _require(self.epochs >= 0, f"{name}.epochs", self.epochs, "at least 0")
        _require(self.max_steps >= -1, f"{name}.max_steps", self.max_steps, "at least 0, or -1 for no limit")
        _require(self.lr > 0, f"{name}.lr", self.lr, "above 0")
        _require(0 <= self.momentum < 1, f"{name}.momentum", self.momentum, "in [0, 1)")
        _require(self.weight_decay >= 0, f"{name}.weight_decay", self.weight_decay, "at least 0")
        clip = self.gradient_clip
        _require(clip is None or clip > 0, f"{name}.gradient_clip", clip, "above 0, or null for no limit")
        _require(0 <= self.label_smoothing < 1, f"{name}.label_smoothing", self.label_smoothing, "in [0, 1)")
        _require(self.mixup >= 0, f"{name}.mixup", self.mixup, "at least 0")
        _require(self.cutmix >= 0, f"{name}.cutmix", self.cutmix, "at least 0")
        decay = self.ema_decay
        _require(decay is None or 0 < decay < 1, f"{name}.ema_decay", decay, "in (0, 1), or null for none")
        _require(0 <= self.distill <= 1, f"{name}.distill", self.distill, "in [0, 1]")
        _require(self.temperature > 0, f"{name}.temperature", self.temperature, "above 0")


@dataclass
class RefitConfig:
    """New weights in closed form for the channels that stay, without training."""

    enabled: bool = True
    """Refit every candidate and the network that is handed on; false: weights are only cut."""
    images: int = 1024
    """Training images for the statistics of the layers; their labels are not used."""
    samples: float = 8.0
    """Samples for each input of a layer, where images have so many positions."""
    memory_gb: float = 4.0
    """Memory for these statistics and for activations, GiB."""
    sequential: bool = True
    """Refit what was found once more, layer after layer, where nothing is learned afterwards and rewards say so."""

    def check(self) -> None:
        """Raise ValueError for values out of range."""
        _require(self.images >= 1, "refit.images", self.images, "at least 1")
        _require(self.samples >= 2, "refit.samples", self.samples, "at least 2, fewer are worse than no refit")
        _require(self.memory_gb > 0, "refit.memory_gb", self.memory_gb, "above 0")


@dataclass
class FinishConfig:
    """What the pruned network learns from the unpruned one's activations, without labels; see `finish`."""

    enabled: bool = True
    """Finish what was found; false: leave it with its refitted or cut weights."""
    steps: int = 240
    """Steps of Adam."""
    batch_size: int = 32
    """Images a step."""
    lr: float = 5e-4
    """Learning rate at its highest."""

    def check(self) -> None:
        """Raise ValueError for values out of range."""
        _require(self.steps >= 1, "finish.steps", self.steps, "at least 1; finish.enabled=false does without")
        _require(self.batch_size >= 2, "finish.batch_size", self.batch_size, "at least 2, since one has no variance")
        _require(self.lr > 0, "finish.lr", self.lr, "above 0")


@dataclass
class SearchConfig:
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
    """Fraction of the cost that may stay, in (0, 1]."""
    weights: str | None = None
    """Checkpoint of the trained network; default: the library's own; null: train one first."""
    stages: int = 1
    """Prune and fine-tune this often, each time further; the budget is met at the end."""
    plan: str | None = None
    """The plan.json of a pruned network of this model, to prune it further; null: start from the whole one."""
    seed: int = 0
    """Of everything random."""
    episodes: int = 200
    """Episodes of the search: networks proposed, all ranks together."""
    reward_images: int | None = 1000
    """Images of the reward split that a reward is taken on; null: all."""
    reward: str = "top1"
    """What a reward is: top1, minus the error in %; kl, minus the divergence from the unpruned network's scores."""
    reward_split: str = "train"
    """Which images rewards are taken on: train, held_out (half of the test images, or val/), or a path of images."""
    finalists: int = 5
    """How many of the best networks are measured again, on the whole reward split if rewards are taken on less."""
    max_steps: int = 5
    """Actions an episode may take to reach the budget."""
    min_keep: float = 0.1
    """Fraction of its channels that every group keeps at least."""
    divisor: int = 1
    """Keep multiples of this many channels, e.g. 8 for tensor cores."""
    keep_ends: bool = False
    """Keep all that the first layers write and all that the last layers read."""
    exclude: list[str] = field(default_factory=list)
    """Regular expressions of parameter names; groups that run through them stay whole."""
    export: list[str] = field(default_factory=list)
    """Further files of the network, each checked against it: torch_export, onnx."""
    refit: RefitConfig = field(default_factory=RefitConfig)
    """New weights in closed form."""
    start: str = "closed_form"
    """Where the search begins: closed_form, the plan of the error curves; paper, as the agent's paper says."""
    base: FitConfig = field(default_factory=FitConfig)
    """Training of the base network where there are no weights."""
    finish: FinishConfig = field(default_factory=FinishConfig)
    """What the pruned network learns without labels."""
    finetune: FitConfig = field(default_factory=FitConfig)
    """Fine-tuning of the pruned network at the end."""

    def check(self) -> None:
        """Raise ValueError for values out of range."""
        _require(0 < self.budget <= 1, "budget", self.budget, "a fraction in (0, 1], e.g. budget=0.7 keeps 70 %")
        _require(self.stages >= 1, "stages", self.stages, "at least 1")
        refinable = self.stages == 1 or (self.finetune.epochs > 0 and self.finetune.max_steps != 0)
        _require(refinable, "stages", self.stages, "1 where nothing is fine-tuned in between, see finetune")
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        _require(self.episodes >= 1, "episodes", self.episodes, "at least 1")
        if self.reward_images is not None:
            _require(self.reward_images >= 1, "reward_images", self.reward_images, "at least 1, or null for all")
        _require(self.reward in ("top1", "kl"), "reward", self.reward, "top1 or kl")
        _require(self.finalists >= 1, "finalists", self.finalists, "at least 1")
        _require(self.max_steps >= 1, "max_steps", self.max_steps, "at least 1")
        _require(0 <= self.min_keep <= 1, "min_keep", self.min_keep, "a fraction in [0, 1]")
        _require(self.divisor >= 1, "divisor", self.divisor, "at least 1")
        _require(self.start in ("closed_form", "paper"), "start", self.start, "closed_form or paper")
        self.refit.check()
        self.finish.check()
        self.base.check("base")
        self.finetune.check("finetune")
        _require(self.base.distill == 0, "base.distill", self.base.distill, "0: there is no larger network yet")


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
    fit: FitConfig = field(default_factory=FitConfig)
    """The training."""

    def check(self) -> None:
        """Raise ValueError for values out of range."""
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        _require(self.stage in _STAGES, "stage", self.stage, "base, finetune or evaluate")
        fits = {"base": self.plan is None, "finetune": self.plan is not None}.get(str(self.stage), True)
        _require(fits, "stage", self.stage, "finetune or evaluate with plan=…, base or evaluate without")
        self.fit.check("fit")
        if (self.fit.distill > 0) != (self.teacher is not None):
            raise ValueError(
                f"teacher={self.teacher} and fit.distill={self.fit.distill} need each other: give the unpruned "
                f"network's weights and the share of the loss, e.g. teacher=resnet56.th fit.distill=0.5."
            )
        if self.teacher is not None and self.plan is None:
            raise ValueError(f"teacher={self.teacher} is for the fine-tuning of a plan; add plan=….")
        if self.plan is None and (self.model is None or self.data is None):
            raise ValueError(
                "nothing to train: give the plan.json of a search, plan=outputs/search/<run>/plan.json, "
                "or a network and images, e.g. model=resnet20 data=cifar10."
            )
        # Only a network of the user's own is named again: a plan must not say what code is run.
        named = self.model is not None and self.model.get("source") != "module"
        if self.plan is not None and (named or self.weights is not None):
            raise ValueError(f"plan={self.plan} brings its own network and weights; drop model= and weights=.")


_STAGES = (None, "base", "finetune", "evaluate")


def typed(config: DictConfig, schema: type[SearchConfig] | type[TrainConfig]) -> Any:
    """The scalars of a composed configuration as a checked dataclass; groups stay as configuration nodes.

    Raises:
        ValueError: If a value is missing or out of range, with the override to type.
    """
    # A missing group first: settings that are taken from it could not be looked up.
    missing = [str(name) for name in config if OmegaConf.is_missing(config, name)] or OmegaConf.missing_keys(config)
    if missing:
        names = sorted(missing)
        raise ValueError(
            f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} missing; "
            f"add {' '.join(f'{name}=…' for name in names)} (see --help)."
        )
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    values: dict[str, Any] = {}
    for name, each in schema.__dataclass_fields__.items():
        if each.type in (FitConfig, RefitConfig, FinishConfig):
            values[name] = each.type(**resolved[name])
        else:
            values[name] = config[name] if each.type is Any else resolved[name]
    result = schema(**values)
    result.check()
    return result


def build(node: DictConfig, **arguments: Any) -> Any:
    """Instantiates a group's `_target_`; what the configuration cannot hold comes as an argument.

    Hydra only binds the values: a call through it would copy dataclasses and wrap the constructor's own errors.

    Raises:
        ValueError: If a value is none of the target's, as where method= sets one and another choice takes its place.
    """
    factory = instantiate(node, _partial_=True, _convert_="all")
    parameters = inspect.signature(factory.func).parameters
    unknown = factory.keywords.keys() - parameters.keys()
    if unknown and inspect.Parameter.VAR_KEYWORD not in {each.kind for each in parameters.values()}:
        raise ValueError(
            f"{', '.join(sorted(unknown))} cannot be set of {factory.func.__name__}; drop method=…, or the choice that "
            f"does not go with it."
        )
    return factory(**arguments)


def register() -> None:
    """Makes the schemas known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="search_schema", node=SearchConfig)
    store.store(name="train_schema", node=TrainConfig)


def require_whole(name: str, value: object, least: int) -> None:
    """Raise ValueError unless a group's setting, which no schema types, is a whole number of at least `least`."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name}={value} must be a whole number of at least {least}.")


def require_number(name: str, value: object, above: float, below: float = math.inf) -> None:
    """Raise ValueError unless a group's setting, which no schema types, is a number in (above, below)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < below:
        end = f" and below {below:g}" if math.isfinite(below) else ""
        raise ValueError(f"{name}={value} must be a number above {above:g}{end}.")


def require_within(name: str, value: object, least: float, most: float) -> None:
    """Raise ValueError unless a group's setting, which no schema types, is a number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name}={value} must be in [{least:g}, {most:g}].")


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value} is not possible; it must be {allowed}.")
