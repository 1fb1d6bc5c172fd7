"""Numbers as text, the same in the terminal, in the figures and on the page."""

from collections.abc import Sequence

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
NO_BREAK = "\N{NO-BREAK SPACE}"


def fixed(value: float | None, digits: int) -> str:
    """A number with `digits` decimals, a true minus sign and no "-0.00"; a dash for None."""
    if value is None:
        return MISSING
    text = f"{value:,.{digits}f}"
    if not any("1" <= character <= "9" for character in text):
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def signed(value: float, digits: int) -> str:
    """A difference: always with its sign, except for zero."""
    text = fixed(value, digits)
    return f"+{text}" if value > 0 and text != fixed(0, digits) else text


def short(value: float | None) -> str:
    """A positive number with three significant digits or all before the point: 0.853, 7.21, 125.5, 4,089."""
    size = 0.0 if value is None else value
    return fixed(value, 3 if size < 1 else 2 if size < 10 else 1 if size < 1000 else 0)


def millions(count: float) -> str:
    """A count in millions, short and without the unit: 125485706 → 125.5."""
    return short(count / 1e6)


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage: 0.499 → 49.9 %."""
    return f"{fixed(100 * fraction, digits)}{NO_BREAK}%"


def faster(ratio: float | None, interval: Sequence[float] | None = None) -> str:
    """How many times faster than the original: 1.52 → 1.52×; or that no difference can be seen.

    Args:
        ratio: Of the medians.
        interval: In which it lies; None: nobody knows.
    """
    if ratio is None:
        return MISSING
    if interval is not None and uncertain(interval):
        return f"no difference seen, {fixed(interval[0], 2)} to {fixed(interval[1], 2)}{TIMES}"
    return f"{fixed(ratio, 2)}{TIMES}"


def uncertain(interval: Sequence[float]) -> bool:
    """Whether a ratio in this interval may be 1; that of a network to itself is 1."""
    return interval[0] <= 1 <= interval[1] and interval[0] < interval[1]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in text: the first column to the left, the last as it is, those between to the right."""
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [cell.rjust(length) for cell, length in zip(middle, lengths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(lengths[0]), *cells, last]).rstrip())
    return lines


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
