from __future__ import annotations

import math

import pytest

from raygf.config import fields as checks
from raygf.errors import ConfigError


def message(check, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as error:
        check(*args, **kwargs)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    return str(error.value)


def test_whole():
    checks.whole("f", 0)
    checks.whole("f", 3, 3, 5)
    checks.whole("f", 5, 3, 5)
    assert message(checks.whole, "a.b", -1) == "a.b = -1: must be a whole number of at least 0"
    assert message(checks.whole, "a", 6, 3, 5) == "a = 6: must be a whole number from 3 to 5"
    for value in (1.0, "1", True, None, math.nan):
        assert message(checks.whole, "a", value).startswith(f"a = {value!r}: must be")


def test_whole_or_none():
    checks.whole_or_none("f", None)
    checks.whole_or_none("f", 1)
    assert message(checks.whole_or_none, "f", 0) == "f = 0: must be a whole number of at least 1"


def test_number():
    checks.number("f", 0, 0, 1)
    checks.number("f", 1.0, 0, 1)
    checks.number("f", -1e300)
    checks.number("f", 1e-300, 0, open_low=True)
    assert message(checks.number, "f", 0.0, 0, open_low=True) == "f = 0.0: must be a finite number above 0"
    assert message(checks.number, "f", 2, 0, 1) == "f = 2: must be a finite number at least 0 and at most 1"
    assert message(checks.number, "f", "x") == "f = 'x': must be a finite number"
    for value in (math.nan, math.inf, -math.inf, True, None, "1", 1j):
        assert message(checks.number, "f", value).startswith(f"f = {value!r}: must be a finite number")


def test_amount():
    for value in (0, 1e-4, 0.5, 1 / 3, 1.5, 64):
        checks.amount("f", value)
    for value in (0, 0.5, 1, 2.0, 8):
        checks.amount("f", value, whole_above_one=True)
    assert message(checks.amount, "f", 1e-5) == "f = 1e-05: must be 0, or at least 0.0001"
    assert message(checks.amount, "f", -1) == "f = -1: must be a finite number at least 0"
    assert (
        message(checks.amount, "f", 1.5, whole_above_one=True)
        == "f = 1.5: must be at most 1, or a whole number"
    )


def test_at_most():
    checks.at_most("f", 3, 3)
    assert message(checks.at_most, "f", 4, 3) == "f = 4: must be at most 3"


def test_one_of():
    checks.one_of("f", "a", ("a", "b"))
    assert message(checks.one_of, "f", "c", ("a", "b")) == "f = 'c': must be one of a, b"
    assert message(checks.one_of, "f", None, ("a",)) == "f = None: must be one of a"
    assert message(checks.one_of, "f", ["a"], ("a",)) == "f = ['a']: must be one of a"


def test_flag():
    checks.flag("f", True)
    checks.flag("f", False)
    for value in (0, 1, "True", None):
        assert message(checks.flag, "f", value) == f"f = {value!r}: must be True or False"


def test_text():
    checks.text("f", "")
    checks.text("f", "x", empty=False)
    assert message(checks.text, "f", 3) == "f = 3: must be a text"
    assert message(checks.text, "f", "  ", empty=False) == "f = '  ': must be a text that is not empty"
