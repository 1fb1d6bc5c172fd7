"""Where networks come from: our CIFAR ResNets, torchvision, timm. Their differences end here."""

from collections.abc import Mapping
from math import floor
from typing import Any, NamedTuple, Protocol

import torchvision
from torch import nn

from gnnrl_lightning.data.preprocessing import Preprocessing
from gnnrl_lightning.models.resnet_cifar import resnet_cifar


class Pretrained(NamedTuple):
    """What is known of a library's own weights (`weights=default`) without downloading them."""

    num_classes: int
    preprocessing: Preprocessing


class Source(Protocol):
    """A collection of networks by name."""

    def names(self) -> list[str]:
        """All names that `build` takes."""

    def build(self, name: str, num_classes: int, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
        """The network [N, 3, H, W] -> [N, num_classes], in training mode; `pretrained` downloads its weights."""

    def pretrained(self, name: str) -> Pretrained | None:
        """Metadata of the library's own weights of this network, None when there are none."""


class CifarResNets:
    """The CIFAR ResNets of this package, which come without weights."""

    depths = (20, 32, 44, 56, 110)

    def names(self) -> list[str]:
        """resnet20 to resnet110."""
        return [f"resnet{depth}" for depth in self.depths]

    def build(self, name: str, num_classes: int, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
        """See Source."""
        assert not pretrained
        return resnet_cifar(int(name.removeprefix("resnet")), num_classes, **kwargs)

    def pretrained(self, name: str) -> None:
        """See Source."""
        return None


class Torchvision:
    """The classification networks of torchvision."""

    def names(self) -> list[str]:
        """See Source."""
        return torchvision.models.list_models(module=torchvision.models)

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

    def names(self) -> list[str]:
        """Architectures (`resnet18`) and architectures with the tag of their weights (`resnet18.a1_in1k`)."""
        import timm

        return sorted({*timm.list_models(), *timm.list_models(pretrained=True)})

    def build(self, name: str, num_classes: int, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
        """See Source."""
        import timm

        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)

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


SOURCES: dict[str, Source] = {"cifar": CifarResNets(), "torchvision": Torchvision(), "timm": Timm()}
