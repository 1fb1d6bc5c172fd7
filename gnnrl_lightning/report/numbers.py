"""Numbers as text, the same in the terminal, in the figures and on the page."""

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


def millions(count: float) -> str:
    """A count in millions with at least three significant digits, without the unit: 125485706 → 125.5."""
    value = count / 1e6
    return fixed(value, 3 if value < 1 else 2 if value < 10 else 1 if value < 1000 else 0)


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage: 0.499 → 49.9 %."""
    return f"{fixed(100 * fraction, digits)}{NO_BREAK}%"


def faster(ratio: float | None) -> str:
    """How many times faster than the original: 1.52 → 1.52×."""
    return MISSING if ratio is None else f"{fixed(ratio, 2)}{TIMES}"


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
