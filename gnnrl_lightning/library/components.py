"""The parts of a search by name, without Hydra: agents, importances, recoveries, costs, with the settings of conf/."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gnnrl_lightning.core.checks import UserError

_CONF = Path(__file__).parents[1] / "conf"
_CACHE = Path.home() / ".cache" / "gnnrl_lightning"


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
    # Imported here: nobody needs Hydra to import the package.
    from hydra.utils import get_class
    from omegaconf import OmegaConf

    context = {"seed": seed, "paths": {"cache": str(_CACHE)}, "part": OmegaConf.load(_CONF / group / f"{name}.yaml")}
    settings: Any = OmegaConf.to_container(OmegaConf.create(context), resolve=True)
    part: dict[str, Any] = settings["part"]
    alongside = {key: value for key, value in part.items() if key != group} if group in part else {}
    part = part.get(group, part)
    target = get_class(part.pop("_target_"))
    unknown = given.keys() - inspect.signature(target).parameters.keys()
    if unknown:
        raise UserError(f"{group}={name!r} has no setting {', '.join(sorted(unknown))}; it has {', '.join(part)}.")
    merged: Any = OmegaConf.to_container(OmegaConf.merge(part, given))
    return lambda **needed: target(**needed, **merged), alongside


def by_name(choice: Any) -> bool:
    """Whether a part is asked for by name, and not given as an object."""
    return isinstance(choice, str | Mapping)
