from __future__ import annotations

from benchmarks.parts.door_fuzz import fuzz, trials


def test_no_row_is_nowhere_and_nothing_is_a_traceback() -> None:
    """A sample; `benchmarks.doors` brings all of them."""
    told = fuzz(300, seed=3)
    assert told["tracebacks"] == [] and told["lost"] == []
    assert told["kept"] + told["rejected"] == told["rows"] and told["kept"] > 300 and told["rejected"] > 100
    assert len(list(trials())) > 2000
