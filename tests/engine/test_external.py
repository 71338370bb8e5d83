"""Plain files as inputs: rows of one's own belong to their prompts, and only files whose rows gain by that have a new key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.plan.inputs import resolve
from engine.store.artifact import Artifact
from engine.store.digest import digest_json
from engine.store.schema import messages_digest, row_id
from engine.store.store import Store


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prompt_id(text: str) -> str:
    return row_id("Prompt", messages_digest(ask(text)))


@pytest.fixture
def adopt(store: Store, tmp_path: Path) -> Callable[[str, list[dict[str, Any]]], Artifact]:
    """The artifact of this kind that a JSONL file with these rows becomes."""

    def make(kind: str, rows: list[dict[str, Any]]) -> Artifact:
        file = tmp_path / "own.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return resolve(str(file), tmp_path, (kind,), store).adopt(store)

    return make


def old_key(kind: str, tmp_path: Path) -> str:
    """Kind, names and digests of the files: what a key has been made of from the beginning."""
    return digest_json([kind, [["own.jsonl", hashlib.sha256((tmp_path / "own.jsonl").read_bytes()).hexdigest()]]])


def test_candidates_without_a_prompt_id_belong_to_their_prompt(adopt: Any, tmp_path: Path) -> None:
    """However the prompt is written: as a text or as messages."""
    rows = [{"prompt": f"Q{p}?", "completion": f"A{a}"} for a in range(3) for p in range(2)]
    made = adopt("Candidate", rows)
    table = made.to_table().to_pylist()
    assert [row["prompt_id"] for row in table] == [prompt_id(f"Q{i % 2}?") for i in range(6)]
    assert [row["sample"] for row in table] == [0, 0, 1, 1, 2, 2]
    assert table[3]["completion"] == [{"role": "assistant", "content": "A1"}] and table[3]["prompt"] == ask("Q1?")
    assert made.key != old_key("Candidate", tmp_path)
    messages = adopt("Candidate", [{"prompt": ask("Q1?"), "completion": [{"role": "assistant", "content": "A"}]}])
    assert messages.to_table()["prompt_id"].to_pylist() == [prompt_id("Q1?")]


def test_a_prompt_id_of_ones_own_is_kept_and_so_is_the_key(adopt: Any, tmp_path: Path) -> None:
    row = {"prompt": ask("Q?"), "completion": [{"role": "assistant", "content": "A"}]}
    made = adopt("Candidate", [{**row, "prompt_id": "mine"}])
    assert made.to_table()["prompt_id"].to_pylist() == ["mine"] and made.to_table()["sample"].to_pylist() == [None]
    assert made.key == old_key("Candidate", tmp_path)
    some = adopt("Candidate", [{**row, "prompt_id": "mine"}, {**row, "prompt_id": None}])
    assert some.to_table()["prompt_id"].to_pylist() == ["mine", prompt_id("Q?")]
    assert some.key != old_key("Candidate", tmp_path)
    for kind, other in (
        ("Prompt", {"prompt": "Q?"}),
        ("Preference", {"prompt": "Q?", "chosen": "a", "rejected": "b"}),
        ("Verdict", {"subject": "s", "metric": "m", "value": 1.0}),
        ("Conversation", {"messages": ask("Q?")}),
    ):
        assert adopt(kind, [other]).key == old_key(kind, tmp_path)


def test_rankings_of_ones_own_have_a_prompt_and_candidates(adopt: Any) -> None:
    rows = [
        {"prompt": "Q?", "completions": texts, "ranks": [1, 2], "annotator": name}
        for name, texts in (("ann", ["a", "b"]), ("bob", ["b", "a"]))
    ]
    ann, bob = adopt("Ranking", rows).to_table().to_pylist()
    assert ann["prompt_id"] == bob["prompt_id"] == prompt_id("Q?")
    assert ann["candidates"] == bob["candidates"][::-1] and len(set(ann["candidates"])) == 2


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("Candidate", {"prompt": "Q?"}, r"own\.jsonl: row 1 has no `completion`; a Candidate needs one"),
        (
            "Candidate",
            {"prompt": [{"from": "human"}], "completion": "A"},
            r"own\.jsonl: row 1 has neither a `prompt_id`",
        ),
        ("Verdict", {"subject": None, "metric": "m", "value": 1.0}, r"own\.jsonl: row 1 has no `subject`; a Verdict"),
        ("Verdict", {"subject": "s", "value": 1.0}, r"own\.jsonl: row 1 has no `metric`; a Verdict needs one"),
    ],
)
def test_what_belongs_to_nothing_is_refused_by_file_and_row(adopt: Any, kind: str, row: Any, words: str) -> None:
    good: dict[str, dict[str, Any]] = {
        "Candidate": {"prompt": row.get("prompt"), "completion": "A", "prompt_id": "p"},
        "Verdict": {"subject": "s", "metric": "m", "value": 1.0},
    }
    with pytest.raises(UserError, match=words):
        adopt(kind, [good[kind], row])
