"""A corpus has the number of documents that was asked for, each drawn from the seed and its own number."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

import generators.corpus.work
from engine.errors import StageFailed, UserError
from generators.corpus.stage import Corpus
from tests.generators.planned import Planned

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
    monkeypatch.setattr(generators.corpus.work, "WITHOUT_MODEL", 7)
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


TEXTS = [{"id": f"{i:032x}", "parents": [], "text": f"Fact {i}.", "source": "w", "offset": i} for i in range(6)]


def test_a_grid_of_styles_audiences_and_personas(given: Any, build: Any, monkeypatch: Any) -> None:
    backend = Planned(lambda text, seed: f"Here is what you asked for:\n\nwritten {seed}")
    monkeypatch.setattr("generators.corpus.work.open_backend", lambda *a, **k: (backend, "planned"))
    grid: dict[str, Any] = {
        "styles": ["textbook", "story"],
        "audiences": ["children", "surgeons"],
        "personas": ["a nun"],
    }
    settings: dict[str, Any] = {**grid, "server": {"model": "m", "url": "http://127.0.0.1:1"}}
    made = build(Corpus, {"records": given("Document", TEXTS)}, documents=24, **settings)
    first, cells = backend.asked, list[tuple[str, str, str]]()
    for row, asked in zip(made.to_table().to_pylist(), first, strict=True):
        facts = json.loads(row["metadata"])
        cell = (row["parents"][0], facts["style"], facts["audience"])
        cells.append(cell)
        assert facts["persona"] == "a nun" and row["text"] == f"written {facts['seed']}"
        assert ("a story" in asked) == (facts["style"] == "story") and f"readers: {facts['audience']};" in asked
        assert "You write as a nun" in asked and f"Fact {int(row['parents'][0], 16)}." in asked
    # 6 records x 4 cells: every pair once; and after 12 documents every record twice and every cell three times.
    assert len(set(cells)) == 24
    assert set(Counter(one for one, _, _ in cells[:12]).values()) == {2}
    assert set(Counter(cell[1:] for cell in cells[:12]).values()) == {3}
    backend.asked = []
    again = build(Corpus, {"records": given("Document", TEXTS)}, documents=25, partition=7, **settings)
    assert backend.asked[:24] == first  # the same grid gives the same requests, however they are cut
    assert again.to_polars().head(24).equals(made.to_polars())
    backend.asked = []
    build(Corpus, {"records": given("Document", TEXTS)}, documents=24, seed=5, **settings)
    assert backend.asked != first and sorted(backend.asked) == sorted(first)


def test_rephrasing_is_whole_or_rejected(given: Any, build: Any, monkeypatch: Any) -> None:
    class Cutting(Planned):
        def complete(self, conversations: Any, sampling: Any, seeds: Any) -> Any:
            answers = super().complete(conversations, sampling, seeds)
            return [replace(a, finish_reason="length") if "Fact 3" in c[0]["content"] else a  # pyright: ignore
                    for a, c in zip(answers, conversations, strict=True)]  # fmt: skip

    backend = Cutting(lambda text, seed: text.split("\n\n")[-1].upper())
    monkeypatch.setattr("generators.corpus.work.open_backend", lambda *a, **k: (backend, "planned"))
    styles = ["wrap_easy", "wrap_medium", "wrap_hard", "wrap_qa", "nemotron_wikipedia", "nemotron_diverse_qa",
              "nemotron_distill", "nemotron_extract", "nemotron_list"]  # fmt: skip
    made = build(
        Corpus, {"records": given("Document", TEXTS)}, documents=54, styles=styles,
        server={"model": "m", "url": "http://127.0.0.1:1"},
    )  # fmt: skip
    said = Counter((r["text"], json.loads(r["metadata"])["style"]) for r in made.to_table().to_pylist())
    assert said == {(f"FACT {i}.", style): 1 for i in (0, 1, 2, 4, 5) for style in styles}
    assert made.manifest["rejected"] == {"cut_off": 9}


def test_mistakes_about_styles(given: Any, build: Any) -> None:
    for config, message in (
        ({}, "at least one template is needed"),
        ({"styles": ["story"], "templates": ["x"]}, "or from `styles`"),
        ({"styles": ["wrap_qa"], "audiences": ["all"]}, "are for the styles textbook"),
        ({"styles": ["storry"]}, "Input should be 'textbook'"),
    ):
        with pytest.raises(ValidationError, match=message):
            Corpus.model_validate({"documents": 3, **config})
    with pytest.raises(UserError, match="are what a model writes"):
        build(Corpus, {"records": given("Document", TEXTS)}, documents=3, styles=["story"])
    plain = Corpus.model_validate({"documents": 3, "templates": ["x"]}).identity()
    assert not {"styles", "audiences", "personas"} & set(plain)


def test_a_model_writes_the_documents(given: Any, build: Any, model: Any, tiny: Any) -> None:
    settings: dict[str, Any] = {
        "documents": 11,
        "templates": TEMPLATES,
        "max_tokens": 12,
        "partition": 4,
        "engine": "transformers",
    }
    made = build(Corpus, {"records": given("Document", FACTS), "model": model(tiny)}, **settings)
    assert made.rows == 11
    rows = made.to_polars()
    assert rows["text"].str.len_chars().min() > 0
    facts = rows["metadata"].str.json_decode(pl.Struct({"model": pl.String, "seed": pl.Int64}))
    assert facts.struct.field("model").n_unique() == 1 and facts.struct.field("seed").n_unique() == 11
