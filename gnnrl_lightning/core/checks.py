"""What the user is told of a value that is not possible."""

import math


class UserError(ValueError):
    """A mistake of whoever calls: one sentence with the value, what is allowed and what to do."""


def require_fraction(name: str, value: object) -> None:
    """Raise UserError unless a value is a number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name}={value!r} must be a number in (0, 1], e.g. {name}=0.5.")
    if not 0 < value <= 1:
        raise UserError(f"{name}={value} is not possible; it must be a fraction in (0, 1], e.g. {name}=0.5 keeps half.")


def require_whole(name: str, value: object, least: int) -> None:
    """Raise UserError unless a group's setting, which no schema types, is a whole number of at least `least`."""
    if type(value) is not int or value < least:
        raise UserError(f"{name}={value} must be a whole number of at least {least}.")


def require_number(name: str, value: object, above: float, below: float = math.inf) -> None:
    """Raise UserError unless a group's setting, which no schema types, is a number in (above, below)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < below:
        end = f" and below {below:g}" if math.isfinite(below) else ""
        raise UserError(f"{name}={value} must be a number above {above:g}{end}.")


def require_within(name: str, value: object, least: float, most: float) -> None:
    """Raise UserError unless a group's setting, which no schema types, is a number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{name}={value} must be in [{least:g}, {most:g}].")


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise UserError unless a condition holds that is named by what is allowed."""
    if not holds:
        raise UserError(f"{name}={value} is not possible; it must be {allowed}.")
