"""What the user wants to stay whole: layers by name, and both ends of the network."""

import re
from collections.abc import Iterable, Sequence

import torch

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.topology.label_vectors import LOCKED
from gnnrl_lightning.topology.labels import Labels
from gnnrl_lightning.topology.layers import LOCKED_ROW
from gnnrl_lightning.topology.rules import OUTPUT


def keep_both_ends(labels: Labels) -> None:
    """Locks what the first layers write and what the last layers read."""
    united = torch.from_numpy(labels.united())
    outputs = [united[found] for reason, found in labels.locks if reason == OUTPUT]
    for product in labels.products:
        if product.rows is not None and product.columns is not None:
            if bool((united[product.columns] == united[LOCKED]).all()) and product.columns is not LOCKED_ROW:
                labels.lock(product.rows, "keep_ends=true")
            if any(bool(torch.isin(united[product.rows], found).all()) for found in outputs):
                labels.lock(product.columns, "keep_ends=true")


def exclude_layers(labels: Labels, patterns: Sequence[str]) -> None:
    """Locks the channels that run through parameters whose names match.

    Raises:
        UserError: If a pattern is no regular expression, or matches nothing.
    """
    for pattern in patterns:
        matched = matching(labels.program.shapes, [pattern])
        for (name, _), vector in labels.dimensions.items():
            computed = labels.sources(name) if name in labels.folded else set()
            if name in matched or computed & set(matched):
                labels.lock(vector, f"exclude={pattern}")


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that any of these regular expressions matches.

    Raises:
        UserError: If one is no regular expression, or matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        try:
            matched = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise UserError(f"exclude={pattern!r} is not a regular expression ({error}).") from error
        if not matched:
            raise UserError(f"exclude={pattern!r} matches no parameter of the network; see its named_parameters().")
        found |= dict.fromkeys(matched)
    return list(found)
