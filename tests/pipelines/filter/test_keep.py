"""Rules of one's own are held to the columns before a document is read."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from engine.errors import UserError
from engine.stage.preflight import Glimpse, Preflight
from engine.store.schema import DATASETS
from pipelines.filter.stage import Filter
from pipelines.mix.stage import Mix

DOCUMENT = {"id": "d" * 32, "parents": [], "text": "Rome is a city.", "source": "s", "offset": 0, "metadata": "{}"}
ROWS = pa.Table.from_pylist([DOCUMENT], DATASETS["Document"]).append_column("stars", pa.array([3]))


def checked(keep: str, rows: Any, **config: Any) -> None:
    Filter.model_validate({"keep": {"mine": keep}, **config}).check(
        Preflight({"documents": [Glimpse("pages", "Document", rows)]})
    )


@pytest.mark.parametrize("rows", [ROWS, None], ids=["made", "to be made"])
@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (
            "txt NOT LIKE 'x'",
            r"`keep.mine`: `txt NOT LIKE 'x'` names a column that is not there: txt. Did you mean `text`",
        ),
        ("nowhere > 3", "names a column that is not there: nowhere"),
        ("len(text) > 3", "is not an expression Polars SQL understands: unsupported function 'len'"),
        ("text > 3", "cannot compare string with numeric type"),
        ("words", "gives Int64, expected true or false"),
        ("TRUE", "gives one value for all rows"),
        ("text LIKE", "is not an expression"),
        ("REGEXP_LIKE(text, '[')", "regex"),
        ("mypkg:keep", r"is not an expression of Polars SQL. To name a Python function: `\{python"),
    ],
)
def test_a_wrong_rule_is_refused_without_a_document(keep: str, says: str, rows: Any) -> None:
    with pytest.raises(UserError, match=says):
        checked(keep, rows)


@pytest.mark.parametrize(
    "keep", ["text NOT LIKE 'x' AND words > 5", "alpha_words > .5 AND curly_brackets = 0", "metadata LIKE '%a%'"]
)
def test_what_fits_passes(keep: str) -> None:
    checked(keep, ROWS)
    checked(keep, None)


def test_columns_beyond_the_kinds_own_are_there_where_somebody_brings_them() -> None:
    checked("stars > 2", ROWS)
    with pytest.raises(UserError, match=r"stars.* If the stage before this one adds that column, run that first"):
        checked("stars > 2", None)
    checked("language = 'en' AND quality > .5", None)  # an earlier filter may have added them
    with pytest.raises(UserError, match="names a column that is not there: language"):
        checked("language = 'en'", ROWS)
    checked("language = 'en'", ROWS, languages=["en"])


def test_a_mix_names_its_inputs() -> None:
    known = Preflight({"documents": [Glimpse("pages", "Document"), Glimpse("books", "Document")]})
    Mix.model_validate({"weights": {"pages": 1, "books": 2}, "size": 10}).check(known)
    with pytest.raises(
        UserError, match=r"`weights` names `book`, which is no input of this stage. Did you mean `books`"
    ):
        Mix.model_validate({"weights": {"pages": 1, "book": 2}}).check(known)
    with pytest.raises(UserError, match="`weights` leaves out books"):
        Mix.model_validate({"weights": {"pages": 1}}).check(known)
