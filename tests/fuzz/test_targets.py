from __future__ import annotations

import pytest

from tests.fuzz.__main__ import TARGETS, fuzz


@pytest.mark.parametrize("target", TARGETS)
def test_garbage_ends_in_words(target: str) -> None:
    """Known cases, good ones and a few changed ones; `make fuzz` goes on for ten minutes."""
    told = fuzz(target, seconds=2, seed=0)
    assert told["faults"] == [] and told["cases"] > 0
    assert told["peak_mb"] < 2048
