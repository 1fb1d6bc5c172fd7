"""Where networks come from: this package, torchvision, timm, the user. Their differences end here."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from math import floor
from typing import Any, NamedTuple, Protocol

import torchvision
from torch import nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.samples import Preprocessing
from gnnrl_lightning.models.module import Modules
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.models.shufflenet_v1 import shufflenet_v1


class Pretrained(NamedTuple):
    """What is known of a library's own weights (`weights=default`) without downloading them."""

    num_classes: int
    preprocessing: Preprocessing


class Source(Protocol):
    """A collection of networks by name."""

    as_is: bool
    """Whether its networks are the user's, and so not for us to adapt to small images."""

    def check(self, name: str) -> None:
        """Raise UserError when `build` cannot know the name; builds and downloads nothing."""

    def build(self, name: str, num_classes: int, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
        """The network [N, 3, H, W] -> [N, num_classes], in training mode; `pretrained` downloads its weights."""

    def pretrained(self, name: str) -> Pretrained | None:
        """Metadata of the library's own weights of this network, None when there are none."""


class Own:
    """Networks of this package, which come without weights.

    Args:
        source: Name of the collection, for messages.
        builders: What builds each network, called with the number of classes and kwargs.
    """

    as_is = False

    def __init__(self, source: str, builders: Mapping[str, Callable[..., nn.Module]]) -> None:
        self.source = source
        self.builders = builders

    def names(self) -> list[str]:
        """All names that `build` takes."""
        return list(self.builders)

    def check(self, name: str) -> None:
        """See Source."""
        _check_name(name, self.names(), self.source)

    def build(self, name: str, num_classes: int, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
        """See Source."""
        assert not pretrained
        return self.builders[name](num_classes=num_classes, **kwargs)

    def pretrained(self, name: str) -> None:
        """See Source."""
        return None


class Torchvision:
    """The classification networks of torchvision."""

    as_is = False

    def names(self) -> list[str]:
        """All names that `build` takes."""
        return torchvision.models.list_models(module=torchvision.models)

    def check(self, name: str) -> None:
        """See Source."""
        _check_name(name, self.names(), "torchvision")

    def build(self, name: str, num_classes: int, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
        """See Source."""
        weights = "DEFAULT" if pretrained else None
        return torchvision.models.get_model(name, weights=weights, num_classes=num_classes, **kwargs)

    def pretrained(self, name: str) -> Pretrained:
        """See Source."""
        weights = torchvision.models.get_model_weights(name).DEFAULT
        preset = weights.transforms()
        preprocessing = Preprocessing(
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            crop=preset.crop_size[0],
            resize=preset.resize_size[0],
            interpolation=preset.interpolation.value,
        )
        return Pretrained(len(weights.meta["categories"]), preprocessing)


class Timm:
    """The networks of timm, which is imported when the first of them is asked for: that takes seconds."""

    as_is = False

    def names(self) -> list[str]:
        """Architectures (`resnet18`) and architectures with the tag of their weights (`resnet18.a1_in1k`)."""
        import timm

        return sorted({*timm.list_models(), *timm.list_models(pretrained=True)})

    def check(self, name: str) -> None:
        """See Source."""
        _check_name(name, self.names(), "timm")

    def build(self, name: str, num_classes: int, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
        """See Source."""
        import timm

        # Refuses kwargs with a checkpoint_path, which older timm reads as a pickle: plans must not name files to run.
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, checkpoint_path=None, **kwargs)

    def pretrained(self, name: str) -> Pretrained | None:
        """See Source."""
        import timm
        from timm.data import resolve_data_config

        cfg = timm.get_pretrained_cfg(name)
        if cfg is None or not cfg.has_weights:
            return None
        data = resolve_data_config(pretrained_cfg=cfg.to_dict())
        crop = data["input_size"][-1]
        preprocessing = Preprocessing(
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            crop=crop,
            resize=floor(crop / data["crop_pct"]),
            interpolation=data["interpolation"],
        )
        return Pretrained(cfg.num_classes, preprocessing)


def _check_name(name: str, names: list[str], source: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=4) or names[:4]
        raise UserError(
            f"model.name={name} is not one of the {len(names)} networks of {source}; "
            f"use e.g. {', '.join(f'model.name={each}' for each in near)}."
        )


SOURCES: dict[str, Source] = {
    "cifar": Own("cifar", {f"resnet{depth}": partial(resnet_cifar, depth) for depth in (20, 32, 44, 56, 110)}),
    "own": Own("own", {"shufflenet_v1": shufflenet_v1}),
    "torchvision": Torchvision(),
    "timm": Timm(),
    "module": Modules(),
}
