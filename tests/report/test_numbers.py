import pytest

from gnnrl_lightning.core.numbers import duration, faster, fixed, millions, percent, short, signed


@pytest.mark.parametrize(
    ("count", "text"),
    [(125_485_706, "125.5"), (853_018, "0.853"), (4_089_000_000, "4,089"), (3_504_872, "3.50")],
)
def test_millions_keep_three_digits(count: int, text: str) -> None:
    assert millions(count) == text


def test_signs_and_missing_numbers() -> None:
    assert fixed(-6.416, 2) == "\N{MINUS SIGN}6.42"
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(None, 2) == short(None) == "\N{EN DASH}"
    assert signed(1.14, 2) == "+1.14"
    assert signed(0.001, 2) == "0.00"
    assert signed(-1.14, 2) == "\N{MINUS SIGN}1.14"


def test_units() -> None:
    assert percent(0.499) == "49.9\N{NO-BREAK SPACE}%"
    assert faster(1.513) == "1.51\N{MULTIPLICATION SIGN}"
    assert faster(None) == "\N{EN DASH}"
    assert [duration(s) for s in (12.34, 59.99, 119.7, 3730)] == ["12.3 s", "60.0 s", "2 min 00 s", "1 h 02 min"]
