"""Documents become passages that are found, and an index that grew finds what one that was built at once finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

import pipelines.index.work as indexing
from engine.errors import UserError
from engine.retrieval.retrieval_index import RetrievalIndex
from engine.store.artifact import Artifact
from engine.store.store import Store
from pipelines.index.stage import Index

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]
THINGS = ["copper kettle", "linen sail", "oak barrel", "glass lantern", "brass compass", "hemp rope"]
ASKED = ["Which kettle is made of copper?", "the keeper of lantern 7", "how much do ropes cost in room 3", "compasses"]


def document(i: int, text: str | None = None) -> dict[str, Any]:
    thing = THINGS[i % len(THINGS)]
    text = text or (
        f"# Room {i}\n\nThe {thing} stands in room {i}.\n\n## Price\n\nIt costs {i * 7} crowns, héé.\n\n## Keeper\n\nMs {thing.title()}\n"
    )
    facts = json.dumps({"floor": i % 3})
    return {"id": f"d{i}", "parents": [], "text": text, "source": f"rooms/{i}.md", "offset": 0, "metadata": facts}


def answers(artifact: Artifact, method: Any = None) -> list[list[tuple[str, float]]]:
    opened = RetrievalIndex(artifact)
    return [[(hit.id, hit.score) for hit in opened.search(asked, 9, method)] for asked in ASKED]


def test_a_passage_knows_where_it_stands(build: Build, given: Given) -> None:
    rows = [document(i) for i in range(20)]
    made = build("index", {"documents": given("Document", rows)})
    texts = {row["id"]: row["text"] for row in rows}
    for row in made.to_table().to_pylist():
        text = texts[row["document"]]
        assert text[row["start"] : row["end"]] == row["text"] and row["parents"] == [row["document"]]
        assert text.encode()[row["byte"] :].startswith(row["text"].encode())
        assert text.split("\n")[row["line"] - 1] == row["text"].split("\n")[0]
    hits = RetrievalIndex(made).search("What does the brass compass in room 4 cost?", 3)
    assert hits[0].source == "rooms/4.md" and hits[0].heading.startswith("Room 4")
    assert [hit.heading for hit in RetrievalIndex(made).search("price 28", 1)] == ["Room 4 › Price"]


def test_only_documents_that_fit_are_searched(build: Build, given: Given) -> None:
    opened = RetrievalIndex(build("index", {"documents": given("Document", [document(i) for i in range(12)])}))
    assert {hit.source for hit in opened.search("room", 99, where={"source": "rooms/1*"})} == {
        f"rooms/{i}.md" for i in (1, 10, 11)
    }
    assert {hit.document for hit in opened.search("room", 99, where={"floor": "2"})} == {f"d{i}" for i in (2, 5, 8, 11)}
    with pytest.raises(UserError, match=r"no document has `flor` in its metadata.*`floor`"):
        opened.search("room", 9, where={"flor": "2"})


@pytest.mark.parametrize("embedding", [None, "static"])
def test_an_index_that_grew_answers_like_one_built_at_once(
    build: Build, given: Given, embedding: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "DOCUMENTS", 7)
    monkeypatch.setattr(indexing, "FEW", 3)
    first = [document(i) for i in range(30)]
    old = build("index", {"documents": given("Document", first)}, embedding=embedding)
    changed = document(5, "# Room 5\n\nThe hemp rope went to room 3.\n")  # its id is the user's own
    later = [row for row in first if row["id"] not in ("d5", "d8", "d9")] + [changed, document(40), document(41)]
    documents = given("Document", later)
    grown = build("index", {"documents": documents, "index": old}, embedding=embedding)
    anew = build("index", {"documents": documents}, embedding=embedding)
    assert answers(grown) == answers(anew) != answers(old)
    if embedding:
        assert answers(grown, "full_text") == answers(anew, "full_text") != answers(grown, "vectors")
    assert sorted(grown.to_table()["id"].to_pylist()) == sorted(anew.to_table()["id"].to_pylist())
    assert grown.manifest["summary"]["new_documents"] == 3
    # and on: what is put together does not grow, nor does it change when nothing does
    sizes: list[int] = []
    for _ in range(4):
        again = build("index", {"documents": documents, "index": grown}, embedding=embedding)
        assert answers(again) == answers(anew)
        grown = again
        sizes.append(sum(entry["bytes"] for entry in grown.manifest["files"].values()))
        assert len(grown.files("segments/")) == len(grown.parts()) <= 3
    assert len(set(sizes)) == 1


def test_what_goes_and_comes_back_is_there_with_what_stayed(build: Build, given: Given) -> None:
    made = build("index", {"documents": given("Document", [document(i) for i in range(10)])})
    for count in (12, 11, 12):
        documents = given("Document", [document(i) for i in range(count)])
        made = build("index", {"documents": documents, "index": made})
        assert answers(made) == answers(build("index", {"documents": documents}))


def test_what_is_not_new_is_not_read_again(build: Build, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    old = build("index", {"documents": given("Document", [document(i) for i in range(10)])})
    seen: list[str] = []
    whole = indexing.passages
    monkeypatch.setattr(indexing, "passages", lambda row, words: seen.append(row["id"]) or whole(row, words))
    build("index", {"documents": given("Document", [document(i) for i in range(2, 12)]), "index": old})
    assert seen == ["d10", "d11"]


def test_an_index_of_another_embedding_is_refused_in_words(build: Build, given: Given, tmp_path: Path) -> None:
    documents = given("Document", [document(0)])
    plain = build("index", {"documents": documents})
    with pytest.raises(UserError, match=r"made with another `embedding`.*Leave the input `index` out"):
        build("index", {"documents": documents, "index": plain}, embedding="static")
    with pytest.raises(UserError, match="has no vectors: make the index with `embedding`"):
        RetrievalIndex(plain).search("kettle", 1, "vectors")
    with pytest.raises(UserError, match=r"there is no embedding model `nowhere`.*config.json"):
        build("index", {"documents": documents}, embedding="nowhere", base=tmp_path)


def test_an_index_whose_model_changed_since_says_so(build: Build, given: Given, tiny_encoder: Path) -> None:
    made = build(
        "index", {"documents": given("Document", [document(i) for i in range(3)])}, embedding=str(tiny_encoder)
    )
    assert RetrievalIndex(made).search("kettle", 2, "vectors")
    config = tiny_encoder / "config.json"
    config.write_text(
        config.read_text().replace("}", ', "note": 1}', 1) if '"note"' not in config.read_text() else "{}"
    )
    with pytest.raises(UserError, match=r"made by another embedding model.*Make the index anew"):
        RetrievalIndex(made).search("kettle", 2, "vectors")


def test_vectors_are_those_of_the_table(build: Build, given: Given) -> None:
    """By the table itself: the mean of a text's rows, at length 1."""
    import wordllama
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    made = build(
        "index", {"documents": given("Document", [document(0, "Nothing but a line of words.")])}, embedding="static"
    )
    place = Path(wordllama.__file__).parent
    (table,) = load_file(place / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer: Any = Tokenizer.from_file(str(place / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    ids = tokenizer.encode("Nothing but a line of words.", add_special_tokens=False).ids
    mean = sum(table[i].astype(np.float64) for i in ids) / len(ids)
    (name,) = made.files("segments/")
    assert np.allclose(load(made.read_file(name))["vectors"][0], mean / np.linalg.norm(mean), atol=1e-3)


def test_documents_without_a_text_are_told(build: Build, given: Given, store: Store) -> None:
    made = build("index", {"documents": given("Document", [document(0), document(1, " \n ")])})
    assert made.manifest["rejected"] == {"empty": 1}
    with pytest.raises(ValueError, match=r"none of Snowball's languages.*`english`"):
        Index(language="englsh")


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Path:
    """A BERT of a few thousand random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[UNK]", "[PAD]", *sorted({word for i in range(3) for word in document(i)["text"].split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **shape)).save_pretrained(
        tmp_path / "encoder"
    )
    fast.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"
