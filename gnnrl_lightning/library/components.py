"""The parts of a search, from the files of conf/: agents, importances, recoveries, costs."""

import inspect
import pkgutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gnnrl_lightning.core.checks import UserError

_CONF = Path(__file__).parents[1] / "conf"


def component(group: str, choice: Any, seed: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What makes a part of a search.

    Args:
        group: agent, importance, recovery or cost.
        choice: A name, as the command line has it; or a mapping with a `name` and settings of it.
        seed: Of the search, for parts that have one of their own.

    Returns:
        A function of what else the part needs; and settings of the search that come with it.

    Raises:
        UserError: If there is no such part, or it has no such setting.
    """
    given = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = given.pop("name", None)
    options = sorted(path.stem for path in (_CONF / group).glob("*.yaml"))
    if name not in options:
        raise UserError(f"{group}={name!r} must be one of {', '.join(options)}, or an object; see docs/library.md.")
    from omegaconf import OmegaConf  # imported here: nobody needs it to import the package

    context = {"seed": seed, "paths": {"cache": str(_cache())}, "part": OmegaConf.load(_CONF / group / f"{name}.yaml")}
    settings: Any = OmegaConf.to_container(OmegaConf.create(context), resolve=True)
    part: dict[str, Any] = settings["part"]
    alongside = {key: value for key, value in part.items() if key != group} if group in part else {}
    part = part.get(group, part)
    path = part.pop("_target_")
    unknown = given.keys() - inspect.signature(target(path)).parameters.keys()
    if unknown:
        raise UserError(f"{group}={name!r} has no setting {', '.join(sorted(unknown))}; it has {', '.join(part)}.")
    return partial(build, {"_target_": path} | _merged(part, given, name)), alongside


def _cache() -> Path:
    """Where measured latencies are kept: in the user's home, if there is one."""
    try:
        return Path.home() / ".cache" / "gnnrl_lightning"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "gnnrl_lightning"


def _merged(settings: dict[str, Any], given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings with others in their place, also inside of those that are mappings themselves."""
    result = dict(settings)
    for key, value in given.items():
        inner = settings.get(key)
        if isinstance(inner, dict):
            if not isinstance(value, Mapping) or value.keys() - inner.keys():
                raise UserError(f"{name}: {key}={value!r} must be a mapping of some of {', '.join(inner)}.")
            value = _merged(inner, value, name)
        result[key] = value
    return result


def default(group: str) -> str:
    """The part that a search has unless another is asked for, by its name in conf/search.yaml."""
    from omegaconf import OmegaConf

    chosen: Any = OmegaConf.to_container(OmegaConf.load(_CONF / "search.yaml"))
    names = [each[group] for each in chosen["defaults"] if isinstance(each, dict) and group in each]
    return str(names[0])


def by_name(choice: Any) -> bool:
    """Whether a part is asked for by name, and not given as an object."""
    return isinstance(choice, str | Mapping)


def target(path: str) -> Callable[..., Any]:
    """What a `_target_` names.

    Raises:
        UserError: If there is no such thing.
    """
    try:
        found: Callable[..., Any] = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_={path} cannot be imported ({error}).") from error
    return found


def build(part: Mapping[str, Any], **arguments: Any) -> Any:
    """Makes a part from its settings.

    Args:
        part: `_target_`, the dotted name of a class or function, and its arguments.
        arguments: Those that no configuration can hold; they outweigh these.

    Raises:
        UserError: If a value is none of the target's, as where method= sets one and another choice takes its place.
    """
    factory = target(part["_target_"])
    values = {name: value for name, value in part.items() if name != "_target_"}
    parameters = inspect.signature(factory).parameters
    unknown = values.keys() - parameters.keys()
    if unknown and inspect.Parameter.VAR_KEYWORD not in {each.kind for each in parameters.values()}:
        raise UserError(
            f"{', '.join(sorted(unknown))} cannot be set of {factory.__name__}; drop method=…, or the choice that "
            f"does not go with it."
        )
    return factory(**values | arguments)
