"""The one door to networks: `model=…` of the configuration in, a network that fits the data out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.samples import IMAGENET, Preprocessing
from gnnrl_lightning.models.sources import SOURCES
from gnnrl_lightning.models.stem import adapt_head, adapt_stem
from gnnrl_lightning.models.weights import check_weights, fit_weights, read_weights


@dataclass(frozen=True)
class ModelSpec:
    """Which network: enough to build it again anywhere, so it is stored with every plan."""

    source: str
    """Where the network comes from: cifar, own, torchvision, timm, or module (the user's)."""
    name: str
    """The network's name there, e.g. resnet56, mobilenet_v2, ghostnet_100; of module the target, my_net.build."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the network's constructor, JSON values only, e.g. {width_mult: 0.5}."""

    @classmethod
    def from_config(cls, node: Mapping[str, Any]) -> "ModelSpec":
        """The spec of the configuration's `model` node, which may name code of the user's own."""
        # kwargs is null there, because Hydra refuses new keys in a mapping: model.kwargs={width_mult: 0.5} would fail.
        return cls(node["source"], node["target" if "target" in node else "name"], dict(node.get("kwargs") or {}))

    @classmethod
    def from_file(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """The spec that `to_dict` wrote into a file.

        Raises:
            UserError: If it is of a network of the user's own: to build that is to run the code that is named, and a
                file from elsewhere must never run code.
        """
        spec = cls(**values)
        if spec.source == "module":
            raise UserError(
                f"the plan is for a network of your own (model.target={spec.name!r}), and code that a file names is "
                "never run: where you trust that code type its name again, model=module model.target=…; in Python pass "
                "the network, gl.load_pruned(folder, model=…)."
            )
        return spec

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by `from_file`."""
        return asdict(self)

    @property
    def setting(self) -> str:
        """What names the network on the command line, for messages: model.name=resnet56."""
        return f"model.{'target' if self.source == 'module' else 'name'}={self.name}"


def check_model(spec: ModelSpec, num_classes: int, weights: str | None) -> None:
    """Raise UserError when there is no such network or its weights cannot be used; downloads and builds nothing.

    A network of the user's own is imported for this.
    """
    if spec.source not in SOURCES:
        raise UserError(f"model.source={spec.source} is not known; use model.source={'|'.join(SOURCES)}.")
    SOURCES[spec.source].check(spec.name)
    if weights != "default":
        check_weights(weights)
        return
    pretrained = SOURCES[spec.source].pretrained(spec.name)
    if pretrained is None:
        raise UserError(
            f"weights=default does not exist for {spec.source}'s {spec.name}; give weights=/path/to/checkpoint or "
            "weights=null (none)."
        )
    if pretrained.num_classes != num_classes:
        raise UserError(
            f"weights=default of {spec.name} has {pretrained.num_classes} classes and the data has {num_classes}; "
            "fine-tune it on the data first and give weights=/path/to/checkpoint, or use weights=null (none)."
        )


def create_model(spec: ModelSpec, num_classes: int, image_size: int, weights: str | None) -> nn.Module:
    """The network of spec for [N, 3, image_size, image_size] -> [N, num_classes], in training mode.

    `weights` is None (initialised from torch's global generator), "default" (the library's own, downloaded) or a path.
    Raises UserError when there is no such network, it does not take such images, or the weights cannot be used.
    """
    pretrained = weights == "default"
    check_model(spec, num_classes, weights if pretrained else None)
    state = None if weights is None or pretrained else read_weights(weights)
    try:
        model = SOURCES[spec.source].build(spec.name, num_classes, pretrained, spec.kwargs)
    except TypeError as error:
        if not spec.kwargs:
            raise
        raise UserError(
            f"model.kwargs={spec.kwargs} does not suit {spec.source}'s {spec.name} ({error}); mend or drop it."
        ) from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"weights=default of {spec.source}'s {spec.name} could not be downloaded or does not fit "
            f"({_first_line(error)}); give weights=/path/to/checkpoint or weights=null (none)."
        ) from error
    as_is = SOURCES[spec.source].as_is
    if not as_is:
        adapt_stem(model, image_size)
    _check_shapes(model, spec, num_classes, image_size)
    folds = {} if as_is else adapt_head(model, image_size)
    if weights is not None and state is not None:
        fit_weights(model, state, weights, folds)
    return model.train()


def preprocessing_of(spec: ModelSpec, weights: str | None) -> Preprocessing:
    """How images were prepared when the weights were evaluated, from metadata: nothing is downloaded.

    Known for `weights=default`; files carry no such metadata, so all others get ImageNet's common one.
    """
    pretrained = SOURCES[spec.source].pretrained(spec.name) if weights == "default" else None
    return pretrained.preprocessing if pretrained else IMAGENET


def _check_shapes(model: nn.Module, spec: ModelSpec, num_classes: int, image_size: int) -> None:
    """Run one blank image: a network for another image size says so now rather than in the middle of a run."""
    try:
        with torch.no_grad():
            scores = model.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # whatever a forward raises, the user's own among them
        raise UserError(
            f"{spec.setting} does not take {image_size}x{image_size} images ({_first_line(error)}); "
            "use another model= or data of another size, or set the size in model.kwargs if it has one."
        ) from error
    shape = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    if shape != [1, num_classes]:
        raise UserError(
            f"{spec.setting} gives {shape} for one image and not one score for each of {num_classes} classes; "
            "use a classification network or mend model.kwargs."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
