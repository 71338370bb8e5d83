"""The contract of Argilla's search engine, against a brute-force reading of the same records.

Runs against any server (ARGILLA_API_URL), so that the embedded engine and Elasticsearch are held to the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from labeling.argilla.client import Argilla
from labeling.argilla.server.embedded.query_string import matches, parse
from labeling.tool.connection import ServerRefusal

CITIES = ["Paris", "Rome", "Oslo", "Quito", "Lima"]
COUNT = 40


@dataclass
class Corpus:
    """What was pushed, as plain dicts by external id, and how to ask for it."""

    client: Argilla
    id: str
    rows: dict[str, dict[str, Any]]
    properties: dict[str, str]  # metadata property name -> id
    ann: Argilla
    users: dict[str, str]

    def search(self, body: dict[str, Any] | None = None, *, who: Argilla | None = None, **page: int) -> list[str]:
        path = f"datasets/{self.id}/records/search"
        found = (who or self.client).call("POST", f"me/{path}" if who else path, json=body or {}, params=page)
        ids = [item["record"]["external_id"] for item in found["items"]]
        if not page:
            assert found["total"] == len(ids)
        return ids

    def text(self, query: str, field: str | None = None) -> set[str]:
        return set(self.search({"query": {"text": {"q": query, "field": field}}}))

    def filtered(self, *filters: dict[str, Any], who: Argilla | None = None) -> set[str]:
        return set(self.search({"filters": {"and": list(filters)}}, who=who))

    def where(self, condition: Callable[[dict[str, Any]], Any]) -> set[str]:
        return {id for id, row in self.rows.items() if condition(row)}


def terms(scope: dict[str, Any], *values: str) -> dict[str, Any]:
    return {"type": "terms", "scope": scope, "values": list(values)}


def between(scope: dict[str, Any], ge: Any = None, le: Any = None) -> dict[str, Any]:
    return {"type": "range", "scope": scope, "ge": ge, "le": le}


def metadata(name: str) -> dict[str, Any]:
    return {"entity": "metadata", "metadata_property": name}


def suggestion(question: str, property: str = "value") -> dict[str, Any]:
    return {"entity": "suggestion", "question": question, "property": property}


def record(property: str) -> dict[str, Any]:
    return {"entity": "record", "property": property}


STATUS = {"entity": "response", "property": "status"}


@pytest.fixture(scope="module")
def corpus(client: Argilla) -> Corpus:
    ann, _ = client.ensure_users(["ann", "bob"], "tests")
    body = {"name": f"search-{uuid4().hex[:12]}", "workspace_id": client.ensure_workspace("tests")}
    dataset = client.call("POST", "datasets", json=body)["id"]

    def make(part: str, **item: Any) -> dict[str, Any]:
        return client.call("POST", f"datasets/{dataset}/{part}", json={"title": item["name"], **item})

    make("fields", name="text", required=True, settings={"type": "text"})
    make("fields", name="chat", settings={"type": "chat"})
    scores = [{"value": value} for value in range(1, 6)]
    labels = [{"value": value, "text": value} for value in ("good", "bad", "odd")]
    questions = {
        name: make("questions", name=name, required=name == "score", settings=settings)["id"]
        for name, settings in {
            "score": {"type": "rating", "options": scores},
            'label "q"': {"type": "label_selection", "options": labels},
            "labels": {"type": "multi_label_selection", "options": labels},
        }.items()
    }
    properties = {
        name: make("metadata-properties", name=name, settings={"type": kind})["id"]
        for name, kind in (("city", "terms"), ("size", "integer"), ("größe", "float"))
    }
    make("vectors-settings", name="meaning", dimensions=3)
    client.call("PUT", f"datasets/{dataset}/publish")

    users = {user["username"]: user["id"] for user in client.call("GET", "users")["items"]}
    rows: dict[str, dict[str, Any]] = {}
    items: list[dict[str, Any]] = []
    for i in range(COUNT):
        row: dict[str, Any] = {
            "text": f"The capital number {i} is {CITIES[i % 5]}, said No. {i % 7}. Élan",
            "chat": [
                {"role": "user", "content": f"On {CITIES[(i + 1) % 5]} 東京" if i % 2 else "Hello there"},
                {"role": "assistant", "content": f"snake_case word{i}"},
            ],
            "city": [CITIES[i % 5], "world"] if i % 4 == 0 else CITIES[i % 5],
            "size": i * 10,
            "größe": i / 8,
            "vector": [math.cos(i), math.sin(i), (i % 4) / 2 - 1],
            "ann": (i % 5 + 1, "submitted") if i % 3 == 0 else None,
            "bob": (5 - i % 5, "draft") if i % 6 == 0 else None,
            "suggested": (i % 5 + 1, i / COUNT, f"judge-{i % 2}") if i % 2 == 0 else None,
            "labels": ["good", "odd"] if i % 4 == 1 else ["bad"],
        }
        if i == 39:
            row["size"] = None  # a record without a value
        rows[f"r{i:02d}"] = row
        given = {name: row[name] for name in ("city", "size", "größe") if row[name] is not None}
        item: dict[str, Any] = {
            "external_id": f"r{i:02d}",
            "fields": {"text": row["text"], "chat": row["chat"]},
            "metadata": given,
            "vectors": {"meaning": row["vector"]},
            "responses": [
                {
                    "user_id": users[name],
                    "status": row[name][1],
                    "values": {
                        "score": {"value": row[name][0]},
                        'label "q"': {"value": ("good", "bad")[i % 2]},
                        "labels": {"value": row["labels"]},
                    },
                }
                for name in ("ann", "bob")
                if row[name]
            ],
        }
        if row["suggested"]:
            value, score, agent = row["suggested"]
            item["suggestions"] = [
                {"question_id": questions["score"], "value": value, "score": score, "type": "model"},
                {"question_id": questions["labels"], "value": row["labels"], "type": "human"},
            ]
            for given in item["suggestions"]:
                given["agent"] = agent
        items.append(item)
    client.call("POST", f"datasets/{dataset}/records/bulk", json={"items": items})
    return Corpus(client, dataset, rows, properties, client.as_user(ann), users)


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "condition"),
    [
        ("paris", lambda row: "Paris" in row["text"] or "Paris" in row["chat"][0]["content"]),
        ("pari", lambda row: False),  # whole words
        ("pari*", lambda row: "Paris" in str(row)),
        ('"capital number 3"', lambda row: "capital number 3 " in row["text"]),
        ('"number capital"', lambda row: False),
        ("number capital paris", lambda row: "Paris" in str(row)),  # every word, any order, any field
        ("capital -paris", lambda row: "Paris" not in str(row)),
        ('capital -"is paris"', lambda row: "is Paris" not in row["text"]),
        ("rome | oslo", lambda row: "Rome" in str(row) or "Oslo" in str(row)),
        ("élan", lambda row: True),
        ("東京", lambda row: "東京" in str(row)),
        ("snake_case", lambda row: True),
        ('"said No 4"', lambda row: "No. 4." in row["text"]),  # punctuation parts words, no more
        ("hello", lambda row: "Hello" in row["chat"][0]["content"]),
        ("nowhere", lambda row: False),
    ],
)
def test_text(corpus: Corpus, query: str, condition: Callable[[dict[str, Any]], bool]) -> None:
    assert corpus.text(query) == corpus.where(condition)


def test_text_in_one_field(corpus: Corpus) -> None:
    assert corpus.text("rome", "text") == corpus.where(lambda row: "Rome" in row["text"])
    assert corpus.text("rome", "chat") == corpus.where(lambda row: "Rome" in row["chat"][0]["content"])


@pytest.mark.parametrize(
    ("query", "texts", "expected"),
    [
        ("", ["x"], True),
        ("((| ) -", ["x"], False),  # nothing is asked for that could be found
        ("???", ["x ???"], False),
        ("paris ???", ["Paris"], True),
        ("() paris", ["Paris"], True),
        ('"unterminated phrase', ["an unterminated phrase"], True),
        ("(rome|paris) capital", ["Paris, a capital"], True),
        ("-(rome|paris) capital", ["Paris, a capital"], False),
        ("-(rome paris) capital", ["Paris, a capital"], True),
        ("a b", ["a", "b"], True),
        ('"a b"', ["a", "b"], False),  # a phrase does not run from one field into the next
        ("don't", ["I don't"], True),
        ("x-ray", ["ray x"], False),
        ("%", ["100"], False),
        ("STRASSE", ["strasse"], True),
    ],
)
def test_query_language(query: str, texts: list[str], expected: bool) -> None:
    assert matches(parse(query), texts) is expected


# --- texts as they are written, and how well they answer --------------------------------------------


@dataclass
class Written:
    """A small dataset of texts of every kind of field."""

    client: Argilla
    id: str

    def hits(self, query: Any, **more: Any) -> list[tuple[str, float]]:
        body = {"query": {"text": {"q": query, **more}}}
        found = self.client.call("POST", f"datasets/{self.id}/records/search", json=body, params={"limit": 100})
        return [(item["record"]["external_id"], item["query_score"]) for item in found["items"]]

    def ids(self, query: Any, **more: Any) -> set[str]:
        return {id for id, _ in self.hits(query, **more)}


TEXTS = {
    "street": "Die Straße ist groß, sagt der Fußball-Fan aus İstanbul",
    "strasse": "Strasse",
    "hindi": "पानी साफ है",
    "other": "पिन कोड",
    "hebrew": "שָׁלוֹם",
    "escaped": "AT&amp;T and a Q&amp;A: x&lt;y",
    "lima": "Lima, Lima and Lima again",
    "long": "Lima " + "and other words " * 30,
    "once": "Lima",
    "emoji": "well done 😀",
    "marks": "well ???",
}


@pytest.fixture(scope="module")
def written(client: Argilla) -> Written:
    body = {"name": f"written-{uuid4().hex[:12]}", "workspace_id": client.ensure_workspace("tests")}
    dataset = client.call("POST", "datasets", json=body)["id"]
    custom = {"type": "custom", "template": "{{record.fields.facts.city}}", "advanced_mode": False}
    for name, settings in (("text", {"type": "text"}), ("picture", {"type": "image"}), ("facts", custom)):
        field = {"name": name, "title": name, "required": name == "text", "settings": settings}
        client.call("POST", f"datasets/{dataset}/fields", json=field)
    question = {"name": "q", "title": "q", "required": True, "settings": {"type": "text", "use_markdown": False}}
    client.call("POST", f"datasets/{dataset}/questions", json=question)
    for name, kind in (("n", "integer"), ("topic", "terms")):
        client.call(
            "POST",
            f"datasets/{dataset}/metadata-properties",
            json={"name": name, "title": name, "settings": {"type": kind}},
        )
    client.call("POST", f"datasets/{dataset}/vectors-settings", json={"name": "v", "title": "v", "dimensions": 3})
    client.call("PUT", f"datasets/{dataset}/publish")
    items: list[dict[str, Any]] = [
        {"external_id": id, "fields": {"text": text}, "metadata": {"n": n}}
        for n, (id, text) in enumerate(TEXTS.items())
    ]
    facts = {"city": "Quito", "metres": 2850, "capital": True, "inner": ["altitude", 1.5]}
    picture = "data:image/png;base64,iVBORw0KGgoAAAANS"
    items.append(
        {"external_id": "facts", "fields": {"text": "x", "picture": picture, "facts": facts}, "metadata": {"n": 1}}
    )
    client.call("POST", f"datasets/{dataset}/records/bulk", json={"items": items})
    return Written(client, dataset)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("straße", {"street", "strasse"}),
        ("strasse", {"street", "strasse"}),
        ("groß fußball istanbul", {"street"}),
        ("पानी", {"hindi"}),
        ("पिन", {"other"}),
        ("שָׁלוֹם", {"hebrew"}),
        ("AT&T", {"escaped"}),
        ("Q&A", {"escaped"}),
        ("x<y", {"escaped"}),
        ("amp", set()),
        ("2850", {"facts"}),
        (2850, {"facts"}),
        ("true quito 1.5", {"facts"}),
        ("base64", set()),
        ("ivborw0kggoaaaans", set()),
        ("😀", {"emoji"}),
        ("???", set()),
        ("", {*TEXTS, "facts"}),
    ],
)
def test_what_is_written_is_found(written: Written, query: Any, expected: set[str]) -> None:
    assert written.ids(query) == expected


def test_every_word_of_a_record_finds_it(written: Written) -> None:
    for id, text in TEXTS.items():
        for word in text.replace("&amp;", "&").replace("&lt;", "<").split():
            if any(letter.isalnum() for letter in word):
                assert id in written.ids(word.strip(",:")), (id, word)


def test_the_best_come_first_with_their_scores(written: Written) -> None:
    (first, second, third) = written.hits("lima")
    assert [first[0], second[0], third[0]] == ["lima", "once", "long"]
    assert first[1] > second[1] > third[1] > 0
    assert next(id for id, _ in written.hits("lima | straße | strasse")) == "strasse"  # what is rare says more
    everything = written.client.call("POST", f"datasets/{written.id}/records/search", json={})
    assert {item["query_score"] for item in everything["items"]} == {1.0}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": {"text": {"q": " ".join(f"w{i}" for i in range(1000))}}}, "1,000 words; at most 500"),
        ({"query": {"text": {"q": "(" * 3000 + "a"}}}, "3,000 brackets within each other"),
        ({"filters": {"and": [between(metadata("n"), ge="abc")]}}, "bounded by 'abc'; expected a number"),
        ({"filters": {"and": [between(metadata("n"), le="nan")]}}, "bounded by 'nan'"),
        ({"filters": {"and": [between(metadata("n"), ge=1, le="abc")]}}, "a number and a text"),
        ({"filters": {"and": [between(record("inserted_at"), ge="soon")]}}, "expected a time as 2026-01-31"),
        ({"filters": {"and": [between(record("status"), ge="done")]}}, "expected pending or completed"),
        ({"filters": {"and": [terms(STATUS, "lost")]}}, "no status 'lost'; expected"),
        ({"query": {"vector": {"name": "v", "value": [1.0, 2.0]}}}, "has 2 numbers; those of 'v' have 3"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(written: Written, body: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerRefusal) as caught:
        written.client.call("POST", f"datasets/{written.id}/records/search", json=body)
    assert caught.value.status == 422 and message in str(caught.value), str(caught.value)
    assert written.ids("quito") == {"facts"}  # the connection goes on


def test_a_query_that_has_only_brackets_finds_nothing(written: Written) -> None:
    assert written.hits("(" * 3000) == []


def test_a_changed_text_is_found_at_once(written: Written) -> None:
    path = f"datasets/{written.id}/records"
    written.ids("anything")  # what is kept in memory is older than the change
    for text, expected in (("zanzibar one", {"once"}), ("Lima", set[str]())):
        change = {"items": [{"external_id": "once", "fields": {"text": text}}]}
        written.client.call("PUT", f"{path}/bulk", json=change)
        assert written.ids("zanzibar") == expected


# --- filters --------------------------------------------------------------------------------------


def test_metadata_filters(corpus: Corpus) -> None:
    assert corpus.filtered(terms(metadata("city"), "Paris", "world")) == corpus.where(
        lambda row: row["city"] == "Paris" or "world" in row["city"]
    )
    assert corpus.filtered(between(metadata("size"), 100, 200)) == corpus.where(
        lambda row: row["size"] is not None and 100 <= row["size"] <= 200
    )
    assert corpus.filtered(between(metadata("größe"), ge=4.5)) == corpus.where(lambda row: row["größe"] >= 4.5)
    both = [terms(metadata("city"), "Rome"), between(metadata("size"), le=200)]
    assert corpus.filtered(*both) == corpus.where(
        lambda row: "Rome" in row["city"] and row["size"] is not None and row["size"] <= 200
    )


def test_response_filters(corpus: Corpus) -> None:
    score = {"entity": "response", "question": "score"}
    label = {"entity": "response", "question": 'label "q"'}
    many = {"entity": "response", "question": "labels"}

    def scores(row: dict[str, Any]) -> list[int]:
        return [row[name][0] for name in ("ann", "bob") if row[name]]

    assert corpus.filtered(between(score, 2, 3)) == corpus.where(lambda row: any(2 <= s <= 3 for s in scores(row)))
    assert corpus.filtered(terms(score, "5")) == corpus.where(lambda row: 5 in scores(row))
    odd = {id for i, (id, row) in enumerate(corpus.rows.items()) if i % 2 and scores(row)}
    assert corpus.filtered(terms(label, "bad")) == odd
    assert corpus.filtered(terms(many, "odd")) == corpus.where(lambda row: scores(row) and "odd" in row["labels"])
    # As an annotator: only one's own responses count.
    assert corpus.filtered(between(score, 2, 3), who=corpus.ann) == corpus.where(
        lambda row: row["ann"] and 2 <= row["ann"][0] <= 3
    )


def test_response_status_filters(corpus: Corpus) -> None:
    answered = corpus.where(lambda row: row["ann"] or row["bob"])
    assert corpus.filtered(terms(STATUS, "pending")) == set(corpus.rows) - answered
    assert corpus.filtered(terms(STATUS, "draft")) == corpus.where(lambda row: row["bob"])
    assert corpus.filtered(terms(STATUS, "pending"), who=corpus.ann) == corpus.where(lambda row: not row["ann"])
    assert corpus.filtered(terms(STATUS, "draft"), who=corpus.ann) == set()
    assert corpus.filtered(terms(STATUS, "pending", "submitted"), who=corpus.ann) == set(corpus.rows)
    assert corpus.filtered(terms(STATUS, "discarded")) == set()


def test_suggestion_filters(corpus: Corpus) -> None:
    def suggested(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["suggested"] or (0, -1.0, "")

    assert corpus.filtered(between(suggestion("score"), 4)) == corpus.where(lambda row: suggested(row)[0] >= 4)
    assert corpus.filtered(between(suggestion("score", "score"), le=0.25)) == corpus.where(
        lambda row: 0 <= suggested(row)[1] <= 0.25
    )
    assert corpus.filtered(terms(suggestion("score", "agent"), "judge-0")) == corpus.where(
        lambda row: suggested(row)[2] == "judge-0"
    )
    assert corpus.filtered(terms(suggestion("score", "type"), "human")) == set()
    assert corpus.filtered(terms(suggestion("labels", "type"), "human")) == corpus.where(lambda row: row["suggested"])
    assert corpus.filtered(terms(suggestion("labels"), "odd")) == corpus.where(
        lambda row: row["suggested"] and "odd" in row["labels"]
    )


def test_record_filters(corpus: Corpus) -> None:
    assert corpus.filtered(terms(record("external_id"), "r03", "r17", "none")) == {"r03", "r17"}
    done = corpus.where(lambda row: row["ann"])
    assert corpus.filtered(terms(record("status"), "completed")) == done
    assert corpus.filtered(between(record("inserted_at"), ge="2000-01-01T00:00:00")) == set(corpus.rows)
    assert corpus.filtered(between(record("inserted_at"), le="2000-01-01T00:00:00+02:00")) == set()


def test_text_and_filter_together(corpus: Corpus) -> None:
    body = {"query": {"text": {"q": "paris"}}, "filters": {"and": [between(metadata("size"), 100, 300)]}}
    assert set(corpus.search(body)) == corpus.where(
        lambda row: "Paris" in str([row["text"], row["chat"]]) and row["size"] and 100 <= row["size"] <= 300
    )


# --- order ----------------------------------------------------------------------------------------


def order(corpus: Corpus, scope: dict[str, Any], direction: str, **more: Any) -> list[str]:
    return corpus.search({"sort": [{"scope": scope, "order": direction}], **more})


def test_sorts(corpus: Corpus) -> None:
    rows = corpus.rows
    by_size = sorted((id for id in rows if rows[id]["size"] is not None), key=lambda id: rows[id]["size"])
    assert order(corpus, metadata("size"), "asc") == [*by_size, "r39"]
    assert order(corpus, metadata("size"), "desc") == [*by_size[::-1], "r39"]  # nothing to sort by: last
    assert order(corpus, record("external_id"), "desc") == sorted(rows, reverse=True)
    assert order(corpus, record("inserted_at"), "asc") == list(rows)

    suggested = order(corpus, suggestion("score", "score"), "desc")
    given = [id for id in rows if rows[id]["suggested"]]
    assert suggested[: len(given)] == sorted(given, key=lambda id: -rows[id]["suggested"][1])

    def mean(id: str) -> float:
        scores = [rows[id][name][0] for name in ("ann", "bob") if rows[id][name]]
        return sum(scores) / len(scores) if scores else math.inf

    means = [mean(id) for id in order(corpus, {"entity": "response", "question": "score"}, "asc")]
    assert means == sorted(means)
    cities = [rows[id]["city"] for id in order(corpus, metadata("city"), "asc")]
    least = [min(city) if isinstance(city, list) else city for city in cities]
    assert least == sorted(least)


def test_two_sorts_and_pages_without_gap_or_repetition(corpus: Corpus) -> None:
    sort = [
        {"scope": record("status"), "order": "asc"},
        {"scope": metadata("größe"), "order": "desc"},
    ]
    whole = corpus.search({"sort": sort})
    done = corpus.where(lambda row: row["ann"])
    weight = {id: -row["größe"] for id, row in corpus.rows.items()}
    expected = sorted(done, key=weight.__getitem__), sorted(set(corpus.rows) - done, key=weight.__getitem__)
    assert whole in ([*expected[0], *expected[1]], [*expected[1], *expected[0]])
    pages = [corpus.search({"sort": sort}, offset=offset, limit=7) for offset in range(0, COUNT, 7)]
    assert [id for page in pages for id in page] == whole


def test_every_annotator_has_an_order_of_their_own_that_stays(corpus: Corpus) -> None:
    (bob,) = corpus.client.ensure_users(["bob"], "tests")
    mine = corpus.search(who=corpus.ann)
    theirs = corpus.search(who=corpus.client.as_user(bob))
    assert sorted(mine) == sorted(theirs) == sorted(corpus.rows)
    assert mine != theirs != list(corpus.rows)
    assert corpus.search(who=corpus.ann) == mine
    pages = [corpus.search(who=corpus.ann, offset=offset, limit=9) for offset in range(0, COUNT, 9)]
    assert [id for page in pages for id in page] == mine
    # A filter takes records out and leaves the others in their order.
    pending = corpus.search({"filters": {"and": [terms(STATUS, "pending")]}}, who=corpus.ann)
    assert pending == [id for id in mine if not corpus.rows[id]["ann"]]


# --- vectors --------------------------------------------------------------------------------------


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def similar(corpus: Corpus, query: dict[str, Any], **body: Any) -> list[tuple[str, float]]:
    path = f"datasets/{corpus.id}/records/search"
    asked = {"query": {"vector": {"name": "meaning", **query}}, **body}
    items = corpus.client.call("POST", path, json=asked, params={"limit": 10})["items"]
    return [(item["record"]["external_id"], item["query_score"]) for item in items]


def test_similarity(corpus: Corpus) -> None:
    target = [0.3, -0.8, 0.5]
    cosines = {id: cosine(row["vector"], target) for id, row in corpus.rows.items()}
    nearest = similar(corpus, {"value": target})
    assert [id for id, _ in nearest] == sorted(cosines, key=lambda id: -cosines[id])[:10]
    assert [score for _, score in nearest] == pytest.approx([(1 + cosines[id]) / 2 for id, _ in nearest], abs=1e-5)

    furthest = similar(corpus, {"value": target, "order": "least_similar"})
    assert [id for id, _ in furthest] == sorted(cosines, key=lambda id: cosines[id])[:10]

    only = {"filters": {"and": [terms(metadata("city"), "Paris")]}}
    paris = corpus.where(lambda row: "Paris" in row["city"])
    expected = sorted(paris, key=lambda id: -cosines[id])[:10]
    assert [id for id, _ in similar(corpus, {"value": target}, **only)] == expected


def test_similarity_to_a_record_leaves_it_out(corpus: Corpus) -> None:
    body = {"filters": {"and": [terms(record("external_id"), "r05")]}}
    found = corpus.client.call("POST", f"datasets/{corpus.id}/records/search", json=body)["items"]
    nearest = [id for id, _ in similar(corpus, {"record_id": found[0]["record"]["id"]})]
    others = {id: cosine(row["vector"], corpus.rows["r05"]["vector"]) for id, row in corpus.rows.items()}
    others.pop("r05")
    assert nearest == sorted(others, key=lambda id: -others[id])[:10]


def test_there_are_as_many_most_similar_ones_as_were_asked_for(corpus: Corpus) -> None:
    """As Argilla's UI and its tests of engines have it: the total of the 7 most similar records is 7."""
    body = {"query": {"vector": {"name": "meaning", "value": [0.3, -0.8, 0.5]}}}
    found = corpus.client.call("POST", f"datasets/{corpus.id}/records/search", json=body, params={"limit": 7})
    assert found["total"] == len(found["items"]) == 7
    page = {"limit": 7, "offset": COUNT - 3}
    found = corpus.client.call("POST", f"datasets/{corpus.id}/records/search", json=body, params=page)
    assert (found["total"], len(found["items"])) == (COUNT, 3)


# --- metrics and progress -------------------------------------------------------------------------


def test_metadata_metrics(corpus: Corpus) -> None:
    def metrics(name: str) -> dict[str, Any]:
        return corpus.client.call("GET", f"metadata-properties/{corpus.properties[name]}/metrics")

    cities = Counter(
        city
        for row in corpus.rows.values()
        for city in (row["city"] if isinstance(row["city"], list) else [row["city"]])
    )
    found = metrics("city")
    assert {value["term"]: value["count"] for value in found["values"]} == cities
    assert found["total"] == cities.total()
    assert (metrics("size")["min"], metrics("size")["max"]) == (0, 380)
    assert (metrics("größe")["min"], metrics("größe")["max"]) == (0.0, 39 / 8)


def test_a_property_that_is_declared_later_takes_numbers_written_as_texts(client: Argilla) -> None:
    """Argilla refuses texts under a property that is declared a number, and keeps them under one that isn't yet."""
    body = {"name": f"late-{uuid4().hex[:12]}", "workspace_id": client.ensure_workspace("tests")}
    path = f"datasets/{client.call('POST', 'datasets', json=body)['id']}"
    client.call(
        "POST", f"{path}/fields", json={"name": "t", "title": "t", "required": True, "settings": {"type": "text"}}
    )
    question = {"name": "q", "title": "q", "required": True, "settings": {"type": "text", "use_markdown": False}}
    client.call("POST", f"{path}/questions", json=question)
    client.call("PUT", f"{path}/publish")
    values = {"a": "00012", "b": 7, "c": "12 km", "d": "-3.5", "e": "1" * 400, "f": None}
    items = [{"external_id": id, "fields": {"t": id}, "metadata": {"size": value}} for id, value in values.items()]
    client.call("POST", f"{path}/records/bulk", json={"items": items})
    late = {"name": "size", "title": "size", "settings": {"type": "float"}}
    made = client.call("POST", f"{path}/metadata-properties", json=late)

    def ids(ge: float | None, le: float | None) -> set[str]:
        asked = {"filters": {"and": [between(metadata("size"), ge, le)]}}
        found = client.call("POST", f"{path}/records/search", json=asked)["items"]
        return {item["record"]["external_id"] for item in found}

    assert (ids(7, 12), ids(7.5, None), ids(None, 0)) == ({"a", "b"}, {"a"}, {"d"})
    found = client.call("GET", f"metadata-properties/{made['id']}/metrics")
    assert (found["min"], found["max"]) == (-3.5, 12.0)


def test_progress(corpus: Corpus) -> None:
    done = len(corpus.where(lambda row: row["ann"]))
    overall = corpus.client.call("GET", f"datasets/{corpus.id}/progress")
    assert (overall["total"], overall["completed"], overall["pending"]) == (COUNT, done, COUNT - done)
    mine = corpus.ann.call("GET", f"me/datasets/{corpus.id}/metrics")["responses"]
    assert mine == {"total": COUNT, "submitted": done, "discarded": 0, "draft": 0, "pending": COUNT - done}


def test_a_write_is_found_at_once_and_a_deleted_record_is_not(corpus: Corpus) -> None:
    path = f"datasets/{corpus.id}/records"
    item = {"external_id": "late", "fields": {"text": "zanzibar"}, "vectors": {"meaning": [0.3, -0.8, 0.5]}}
    created = corpus.client.call("POST", f"{path}/bulk", json={"items": [item]})["items"][0]
    try:
        assert corpus.text("zanzibar") == {"late"}
        assert similar(corpus, {"value": [0.3, -0.8, 0.5]})[0][0] == "late"
    finally:
        corpus.client.call("DELETE", path, params={"ids": created["id"]})
    assert corpus.text("zanzibar") == set()
    assert similar(corpus, {"value": [0.3, -0.8, 0.5]})[0][0] != "late"
