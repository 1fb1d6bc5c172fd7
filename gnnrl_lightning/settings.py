"""What a search and a training can be told: types, defaults and one line on every setting. The one place for them."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from gnnrl_lightning.core.checks import require


def check_types(settings: Any, prefix: str = "") -> None:
    """Raise UserError for settings that are of another type than the fields of their dataclass."""
    for each in fields(settings):
        value, name, kind = getattr(settings, each.name), prefix + each.name, str(each.type)
        if is_dataclass(value):
            check_types(value, f"{name}.")
        elif each.type == list[str]:
            texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
            require(texts, name, value, "a list of strings")
        elif each.type is bool or each.type is str:
            require(isinstance(value, each.type), name, value, "True or False" if each.type is bool else "a string")
        elif not (value is None and "None" in kind):
            whole = "float" not in kind
            number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            require(number, name, value, "a whole number" if whole else "a number")


@dataclass
class FitConfig:
    """Supervised training with SGD and a cosine schedule."""

    epochs: int = 100
    """Passes over the training images."""
    max_steps: int = -1
    """Stop after this many batches, whatever the epochs; -1: no such limit."""
    lr: float = 0.01
    """Initial learning rate, annealed to 0."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 4e-5
    """L2 penalty on all parameters."""
    gradient_clip: float | None = None
    """Largest norm of a step's gradient, e.g. 1.0 where a network without BatchNorm does not learn; null: no limit."""
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
        """Raise UserError for values out of range."""
        require(self.epochs >= 0, f"{name}.epochs", self.epochs, "at least 0")
        require(self.max_steps >= -1, f"{name}.max_steps", self.max_steps, "at least 0, or -1 for no limit")
        require(self.lr > 0, f"{name}.lr", self.lr, "above 0")
        require(0 <= self.momentum < 1, f"{name}.momentum", self.momentum, "in [0, 1)")
        require(self.weight_decay >= 0, f"{name}.weight_decay", self.weight_decay, "at least 0")
        clip = self.gradient_clip
        require(clip is None or clip > 0, f"{name}.gradient_clip", clip, "above 0, or null for no limit")
        require(0 <= self.label_smoothing < 1, f"{name}.label_smoothing", self.label_smoothing, "in [0, 1)")
        require(self.mixup >= 0, f"{name}.mixup", self.mixup, "at least 0")
        require(self.cutmix >= 0, f"{name}.cutmix", self.cutmix, "at least 0")
        decay = self.ema_decay
        require(decay is None or 0 < decay < 1, f"{name}.ema_decay", decay, "in (0, 1), or null for none")
        require(0 <= self.distill <= 1, f"{name}.distill", self.distill, "in [0, 1]")
        require(self.temperature > 0, f"{name}.temperature", self.temperature, "above 0")


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
        """Raise UserError for values out of range."""
        require(self.images >= 1, "refit.images", self.images, "at least 1")
        require(self.samples >= 2, "refit.samples", self.samples, "at least 2, fewer are worse than no refit")
        require(self.memory_gb > 0, "refit.memory_gb", self.memory_gb, "above 0")


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
    """Learning rate at its highest; 1e-3 or more where there are thousands of images."""

    def check(self) -> None:
        """Raise UserError for values out of range."""
        require(self.steps >= 1, "finish.steps", self.steps, "at least 1; finish.enabled=false does without")
        require(self.batch_size >= 2, "finish.batch_size", self.batch_size, "at least 2, since one has no variance")
        require(self.lr > 0, "finish.lr", self.lr, "above 0")


@dataclass
class SearchSettings:
    """Settings of a search, by command and by `gl.search`."""

    seed: int = 0
    """Seed of all random numbers: the agent's, the sampling of images, training."""
    episodes: int = 200
    """Episodes of the search: networks proposed, all ranks together."""
    reward_images: int | None = 1000
    """Images of the reward split that a reward is taken on; null: all."""
    reward: str = "top1"
    """What a reward is: top1, minus the error in %; kl, minus the divergence from the unpruned network's scores."""
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
    """Regular expressions of parameter names, e.g. '["^conv1[.]"]'; groups that run through them stay whole."""
    refit: RefitConfig = field(default_factory=RefitConfig)
    """New weights in closed form."""
    start: str = "closed_form"
    """Where the search begins: closed_form, the plan of the error curves; paper, as the agent's paper says."""
    finish: FinishConfig = field(default_factory=FinishConfig)
    """What the pruned network learns without labels."""

    def check(self) -> None:
        """Raise UserError for values out of range."""
        for name, least in (("seed", 0), ("episodes", 1), ("finalists", 1), ("max_steps", 1), ("divisor", 1)):
            value = getattr(self, name)
            require(type(value) is int and value >= least, name, value, f"a whole number of at least {least}")
        require(self.seed < 2**32, "seed", self.seed, "below 2**32")
        if self.reward_images is not None:
            require(self.reward_images >= 1, "reward_images", self.reward_images, "at least 1, or null for all")
        require(self.reward in ("top1", "kl"), "reward", self.reward, "top1 or kl")
        require(0 <= self.min_keep <= 1, "min_keep", self.min_keep, "a fraction in [0, 1]")
        require(self.start in ("closed_form", "paper"), "start", self.start, "closed_form or paper")
        self.refit.check()
        self.finish.check()
