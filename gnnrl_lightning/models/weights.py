"""Reads weights from files of any origin, without ever running code from them."""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError

_WRAPPERS = ("state_dict", "model")
# DataParallel, Lightning modules and torch.compile put these before the names of the network that they hold.
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")


def check_weights(weights: str | None) -> None:
    """Raise UserError when `weights` names a file that is absent, damaged or would run code.

    The file is really read, which costs a second at most: a check of its name would find the damage too late.
    None (no weights) and "default" (the library's own) pass.
    """
    if weights is not None and weights != "default":
        read_weights(weights)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill every parameter and buffer of model from a file, cast to the model's precision.

    Raises UserError, before anything in the model changes, when the file is absent, damaged, would run code, or holds
    the weights of another network.
    """
    fit_weights(model, read_weights(path), path)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a `.safetensors` file or a torch checkpoint, without an outer {"state_dict": …}.

    Raises UserError when the file is absent, damaged, would run code, or holds no tensors by name.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"weights={path} is not a file; give weights=/path/to/checkpoint, weights=default (the library's own) "
            "or weights=null (none)."
        )
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_checkpoint(file)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not (isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values())):
        raise UserError(
            f"weights={path} holds no tensors by name; give weights= a file that "
            "torch.save(model.state_dict(), path) wrote."
        )
    return dict(content)


def fit_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    path: str | Path,
    folds: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> None:
    """Load tensors by name into model, strictly.

    Args:
        model: Filled in place.
        state: Tensors by name.
        path: Where they come from, named in the UserError when they do not fit.
        folds: What `adapt_head` gave for the model, so that weights of the unadapted network fit as well.
    """
    own = model.state_dict()
    state = _without_prefix(dict(state), list(own))
    for name, fold in (folds or {}).items():
        if name in state:
            state[name] = fold(state[name])
    # Checkpoints from before PyTorch 0.4.1 lack BatchNorm's counters of batches: the model keeps its own.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        found = [
            f"{len(names)} {what}, first {names[0]}"
            for names, what in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        ]
        raise UserError(
            f"weights={path} belongs to another network than this {type(model).__name__} with {len(own)} tensors "
            f"({'; '.join(found)}); give the model= that it was trained as, or other weights=."
        )
    unequal = {name: (state[name].shape, own[name].shape) for name in state if state[name].shape != own[name].shape}
    if unequal:
        raise UserError(_shape_sentence(unequal, path))
    own.update(state)
    model.load_state_dict(own)


def _read_safetensors(file: Path) -> Any:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"weights={file} is damaged or no safetensors file ({_first_line(error)}); fetch it again or give other "
            "weights=."
        ) from error


def _read_checkpoint(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # said better below, if it matters
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes make the reader raise anything, from EOFError to KeyError
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
        problem = (
            f"would run code when it is read ({code[1]}), which is refused"
            if code
            else "is truncated, no checkpoint, or a pickle of more than tensors, and was not read"
        )
        raise UserError(
            f"weights={file} {problem}; give weights= a file that torch.save(model.state_dict(), path) wrote."
        ) from error


def _without_prefix(state: dict[str, Tensor], own: list[str]) -> dict[str, Tensor]:
    """Remove the prefixes that all names in the file share and the model's names do not."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state) and not all(name.startswith(prefix) for name in own):
            return _without_prefix({name.removeprefix(prefix): value for name, value in state.items()}, own)
    return state


def _shape_sentence(unequal: dict[str, tuple[torch.Size, torch.Size]], path: str | Path) -> str:
    name, (in_file, in_model) = next(iter(unequal.items()))
    # Only the last layer differs, and only in its outputs: these are weights for other classes.
    classes = len({name.rpartition(".")[0] for name in unequal}) == 1 and all(
        file[1:] == model[1:] and file[:1] == in_file[:1] for file, model in unequal.values()
    )
    advice = (
        f"set data.num_classes={in_file[0]} with data that has as many classes, or give other weights="
        if classes
        else "give the model= that it was trained as, or other weights="
    )
    more = f" and {len(unequal) - 1} more tensors differ" if len(unequal) > 1 and not classes else ""
    return (
        f"weights={path} does not fit: {name} is {_shape(in_file)} in the file and {_shape(in_model)} in the model"
        f"{more}; {advice}."
    )


def _shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
