"""What would fail in a run is said before it, of the first rows alone."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from engine.errors import UserError
from engine.stage.preflight import Glimpse, Preflight
from engine.store.schema import DATASETS
from pipelines.dedup.stage import Dedup
from pipelines.filter.stage import Filter
from pipelines.mix.stage import Mix

ROWS = pa.Table.from_pylist(
    [{"id": "a", "parents": [], "text": "x", "metadata": '{"stars": "many"}'}], DATASETS["Document"]
)


def shown(rows: pa.Table | None = ROWS, **more: list[Glimpse]) -> Preflight:
    return Preflight({"documents": [Glimpse("docs", "Document", rows), Glimpse("more", "Document", rows)], **more})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"keep": {"own": "txt NOT LIKE 'x'"}}, "`keep.own`.*not there: txt. Did you mean `text`"),
        ({"keep": {"own": "LENGTH(text)"}}, "expected true or false"),
        ({"keep": {"own": "text = 'a' AND ("}}, "not an expression"),
        ({"keep": {"own": "words + text > 3"}}, "`keep.own`"),
        ({"min_quality": 0.5}, "needs the inputs `good` and `bad`"),
    ],
)
def test_a_filter_is_checked(config: dict[str, Any], message: str) -> None:
    stage = Filter.model_validate(config)
    with pytest.raises(UserError, match=message):
        stage.check(shown())


def test_what_can_be_known_of_rows_that_are_not_there_yet() -> None:
    Filter(keep={"own": "made_by_a_stage > 3"}).check(shown(None))
    with pytest.raises(UserError, match="not an expression"):
        Filter(keep={"own": "words >"}).check(shown(None))
    with pytest.raises(UserError, match="`bad` is missing"):
        Filter().check(shown(None, good=[Glimpse("g", "Document")]))


def test_rules_that_fit_pass() -> None:
    rules = {
        "short": "words < 400 AND LENGTH(text) > 1",
        "lang": "language = 'en' OR language_score < .5",
        "meta": "metadata IS NULL",
    }
    Filter(keep=rules, languages=["en"]).check(shown())
    Dedup(keep="best", quality="missing").check(shown())
    Mix(weights={"docs": 1, "more": 2}, curriculum="-length").check(shown())


def test_dedup_and_mix_are_checked() -> None:
    with pytest.raises(UserError, match="`index` is for `method: minhash`"):
        Dedup(method="exact").check(shown(index=[Glimpse("old", "Document")]))
    with pytest.raises(UserError, match="needs a model"):
        Dedup(method="semantic").check(shown())
    for stage in (Dedup(keep="best", quality="stars"), Mix(curriculum="stars")):
        with pytest.raises(UserError, match="should name numbers, found 'many'"):
            stage.check(shown())
    with pytest.raises(UserError, match=r"no input of this stage.*Did you mean `docs`"):
        Mix(weights={"dcos": 1, "more": 2}).check(shown())
