"""The judge of mathematics against expressions that are written from known values, some of each of ten kinds."""

from __future__ import annotations

import pytest

from benchmarks.parts.expressions import KINDS, expressions, ours


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_is_known_in_other_writings_and_told_from_other_values(kind: str) -> None:
    made = [one for one in expressions(6, seed=1) if one.kind == kind]
    assert len(made) == 6
    for one in made:
        assert ours(one.text, one.text) and ours(one.text, one.same), (one.text, one.same)
        assert not ours(one.text, one.other), (one.text, one.other)


def test_there_are_fifty_of_each_of_ten_kinds_and_none_is_another() -> None:
    made = expressions()
    assert len(made) == 500 and len(KINDS) == 10
    assert all(one.text != one.same and one.other not in (one.text, one.same) for one in made)
