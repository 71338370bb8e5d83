"""What a search, a filter and an order find, against Polars over all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.view.ui import row_query
from engine.view.ui.row_query import RowQuery, Searches, row_files
from tests.engine.view.ui.small_run import build


@pytest.fixture
def pages(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setattr(row_query, "BLOCK", 20)  # blocks end within files
    return build(store, tmp_path)["pages"]


def places(artifact: Artifact, query: RowQuery, start: int = 0, rows: int = 1000) -> list[int]:
    return Searches().search(artifact, query).page(start, rows)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (RowQuery(), pl.lit(True)),
        (RowQuery(search="TWICE"), pl.col("text").str.contains("twice")),
        (RowQuery(search="Text 1"), pl.col("text").str.contains("Text 1", literal=True)),
        (RowQuery(search="onerror=\""), pl.col("text").str.contains('onerror="', literal=True)),
        (RowQuery(where="score > 7 AND text LIKE '%river%'"), (pl.col("score") > 7) & pl.col("text").str.contains("river")),
        (RowQuery(where="LENGTH(text) < 25"), pl.col("text").str.len_chars() < 25),
        (RowQuery(equal=(("offset", "700"),)), pl.col("offset") == 700),
        (RowQuery(search="twice", where="score < 5"), (pl.col("score") < 5) & pl.col("text").str.contains("twice")),
    ],
)  # fmt: skip
def test_what_is_found_is_what_polars_finds(pages: Artifact, query: RowQuery, expected: pl.Expr) -> None:
    frame = pages.to_polars().with_row_index("place")
    wanted = frame.filter(expected)["place"].to_list()
    assert len(wanted) > 0 and places(pages, query) == wanted
    search = Searches().search(pages, query)
    assert search.count() == len(wanted)
    assert [p for start in range(0, len(wanted), 7) for p in search.page(start, 7)] == wanted
    assert row_files(pages).at(wanted[:5]) == frame.drop("place")[wanted[:5]].to_dicts()


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("column", ["score", "text", "offset"])
def test_the_order_is_that_of_polars(pages: Artifact, column: str, down: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_query, "DEEPEST", 30)
    frame = pages.to_polars().with_row_index("place")
    for where, kept in (("", pl.lit(True)), ("score > 3", pl.col("score") > 3)):
        wanted = frame.filter(kept).sort([column, "place"], descending=[down, False])["place"].to_list()
        assert places(pages, RowQuery(where=where, sort=column, descending=down)) == wanted[:30]


def test_conversations_are_texts(store: Store, tmp_path: Path) -> None:
    chats = build(store, tmp_path)["chats"]
    assert (
        places(chats, RowQuery(search="it is NOON")) == [0]
        and places(chats, RowQuery(where="messages LIKE '%midnight%'")) == []
    )


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"where": "txt LIKE 'x'"}, "Did you mean `text`"),
        ({"where": "LENGTH(text)"}, "not true or false"),
        ({"where": "text LIKE"}, "not an expression"),
        ({"sort": "scor"}, "Did you mean `score`"),
        ({"equal": (("reason", "x"),)}, "no column `reason`"),
    ],
)
def test_a_wrong_query_is_told_in_words(pages: Artifact, query: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        places(pages, RowQuery(**query))
