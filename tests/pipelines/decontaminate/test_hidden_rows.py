"""Evaluation rows are found however training text writes them: 11 ways, ten rows each."""

from __future__ import annotations

import pytest

from benchmarks.parts.hidden_rows import HIDINGS, ROWS, hidden_rows
from engine.store.store import Store


@pytest.mark.parametrize("kind", HIDINGS)
def test_every_row_is_hidden(kind: str) -> None:
    language, hide = HIDINGS[kind]
    rows = ROWS[language]
    assert len(set(rows)) == 10 and not any(row in hide(row) for row in rows)


def test_hidden_rows_are_found_and_nothing_else(store: Store) -> None:
    assert {claim["id"]: claim["value"] for claim in hidden_rows(store)["claims"]} == {
        "hidden_rows_decontaminate": "110 of 110",
        "hidden_rows_exact": "110 of 110",
        "hidden_rows_minhash": "110 of 110",
        "hidden_rows_clean_lost": 0,
        "hidden_rows_near": "11 of 11",
    }
