import pytest

from training.loops.schedule import linear


def test_it_rises_then_falls_to_nothing() -> None:
    rates = [linear(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates.index(1.0) == 9
    assert rates[-1] == pytest.approx(1 / 91) and linear(0, 1, 0.05) == 1.0
