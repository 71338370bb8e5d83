"""A corpus has the number of documents that was asked for, each drawn from the seed and its own number."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

import generators.corpus
from engine.errors import StageFailed, UserError
from generators.corpus import Corpus

CITIES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Kenya": "Nairobi"}
FACTS = [
    {"id": f"{i:032x}", "parents": [], "text": "", "metadata": json.dumps({"country": country, "capital": city})}
    for i, (country, city) in enumerate(CITIES.items())
]
TEMPLATES = ["The capital of {{ country }} is {{ capital }}.", "{{ capital }} lies in {{ country }}."]


def test_documents_say_what_their_records_say(given: Any, build: Any) -> None:
    facts = given("Document", FACTS)
    made = build(Corpus, {"records": facts}, documents=500, records=3, templates=TEMPLATES, separator=" / ")
    assert made.rows == 500 and made.rejected() is None
    name = {row["id"]: json.loads(row["metadata"]) for row in FACTS}
    drawn: Counter[str] = Counter()
    styles: Counter[int] = Counter()
    for row in made.to_table().to_pylist():
        parts = row["text"].split(" / ")
        assert len(parts) == len(set(row["parents"])) == 3
        for parent, part in zip(row["parents"], parts, strict=True):
            country, capital = name[parent]["country"], name[parent]["capital"]
            said = [f"The capital of {country} is {capital}.", f"{capital} lies in {country}."]
            drawn[country] += 1
            styles[said.index(part)] += 1
    # 1,500 draws: each country 300 times, each template 750 times, within five standard deviations.
    assert all(abs(drawn[country] - 300) < 5 * (500 * 0.6 * 0.4) ** 0.5 for country in CITIES)
    assert abs(styles[0] - 750) < 5 * (1500 / 4) ** 0.5
    assert made.to_polars()["id"].n_unique() == 500
    assert made.to_polars()["offset"].to_list() == list(range(500))


def test_the_corpus_is_the_same_however_it_is_cut(given: Any, build: Any, monkeypatch: Any) -> None:
    facts = given("Document", FACTS)
    settings: dict[str, Any] = {"records": 2, "templates": TEMPLATES}
    whole = build(Corpus, {"records": facts}, documents=40, **settings).to_polars()
    monkeypatch.setattr(generators.corpus, "WITHOUT_MODEL", 7)
    # `max_failed` is no part of what is made, `documents` is: the same key would be the same artifact.
    cut = build(Corpus, {"records": facts}, documents=41, **settings).to_polars()
    assert cut.head(40).equals(whole)
    other = build(Corpus, {"records": facts}, documents=40, seed=1, **settings).to_polars()
    assert not other["text"].equals(whole["text"])


def test_records_that_cannot_be_rendered_are_drawn_around(given: Any, build: Any) -> None:
    hole = {"id": "f" * 32, "parents": [], "text": "", "metadata": json.dumps({"country": "Atlantis"})}
    made = build(Corpus, {"records": given("Document", [*FACTS, hole])}, documents=300, templates=TEMPLATES[:1])
    assert made.rows == 300
    assert not made.to_polars()["text"].str.contains("Atlantis").any()
    only = given("Document", [{**FACTS[0], "metadata": json.dumps({"country": "x", "capital": ""})}])
    with pytest.raises(StageFailed, match="no row came out: empty"):
        build(Corpus, {"records": only}, documents=20, templates=["{% if capital %}{{ capital }}{% endif %}"])


def test_mistakes_are_told_before_anything_is_made(given: Any, build: Any, store: Any) -> None:
    facts = given("Document", FACTS)
    with pytest.raises(UserError, match=r"`templates\[0\]` uses `captial`, which no row has. Did you mean `capital`"):
        build(Corpus, {"records": facts}, documents=3, templates=["{{ captial }}"])
    with pytest.raises(UserError, match="only 5 records came in"):
        build(Corpus, {"records": facts}, documents=3, records=6, templates=TEMPLATES)
    with pytest.raises(ValidationError, match="not a Jinja template"):
        Corpus(documents=3, templates=["{{ oh"])
    assert [a.id for a in store.artifacts() if a.id.startswith("corpus")] == []


def test_a_model_writes_the_documents(given: Any, build: Any, model: Any, tiny: Any) -> None:
    settings: dict[str, Any] = {"documents": 11, "templates": TEMPLATES, "max_tokens": 12, "partition": 4}
    made = build(Corpus, {"records": given("Document", FACTS), "model": model(tiny)}, **settings)
    assert made.rows == 11
    rows = made.to_polars()
    assert rows["text"].str.len_chars().min() > 0
    facts = rows["metadata"].str.json_decode(pl.Struct({"model": pl.String, "seed": pl.Int64}))
    assert facts.struct.field("model").n_unique() == 1 and facts.struct.field("seed").n_unique() == 11
