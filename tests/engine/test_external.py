"""Plain files as inputs: rows of one's own belong to their prompts; the same files are the same artifact, wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.plan.inputs import PlainInput, resolve
from engine.store.artifact import Artifact
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


def test_candidates_without_a_prompt_id_belong_to_their_prompt(adopt: Any) -> None:
    """However the prompt is written: as a text or as messages."""
    rows = [{"prompt": f"Q{p}?", "completion": f"A{a}"} for a in range(3) for p in range(2)]
    made = adopt("Candidate", rows)
    table = made.to_table().to_pylist()
    assert [row["prompt_id"] for row in table] == [prompt_id(f"Q{i % 2}?") for i in range(6)]
    assert [row["sample"] for row in table] == [0, 0, 1, 1, 2, 2]
    assert table[3]["completion"] == [{"role": "assistant", "content": "A1"}] and table[3]["prompt"] == ask("Q1?")
    messages = adopt("Candidate", [{"prompt": ask("Q1?"), "completion": [{"role": "assistant", "content": "A"}]}])
    assert messages.to_table()["prompt_id"].to_pylist() == [prompt_id("Q1?")]


def test_a_prompt_id_of_ones_own_is_kept(adopt: Any) -> None:
    row = {"prompt": ask("Q?"), "completion": [{"role": "assistant", "content": "A"}]}
    made = adopt("Candidate", [{**row, "prompt_id": "mine"}])
    assert made.to_table()["prompt_id"].to_pylist() == ["mine"] and made.to_table()["sample"].to_pylist() == [None]
    some = adopt("Candidate", [{**row, "prompt_id": "mine"}, {**row, "prompt_id": None}])
    assert some.to_table()["prompt_id"].to_pylist() == ["mine", prompt_id("Q?")]


def test_the_same_rows_have_the_same_key_wherever_they_lie(tmp_path: Path, store: Store) -> None:
    for folder, text in (("one", "Q?"), ("two", "Q?"), ("three", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    one, two, three = (
        resolve(f"./{name}/own.jsonl", tmp_path, ("Prompt",), store).key for name in ("one", "two", "three")
    )
    assert one == two != three
    mapped = PlainInput("./one/own.jsonl", {"reference": "prompt"})
    assert resolve(mapped, tmp_path, ("Prompt",), store).key != one


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
        ("Candidate", {"prompt": "Q?"}, r"own.jsonl:2: a Candidate needs a `prompt` and a `completion`; the columns are `prompt`"),
        ("Candidate", {"prompt": [{"content": "Q"}], "completion": "A"}, "own.jsonl:2: `prompt[0]`: expected a `role`; it has `content`"),
        ("Verdict", {"subject": None, "metric": "m", "value": 1.0}, "own.jsonl:2: `subject`: there is none"),
        ("Verdict", {"subject": "s", "value": 1.0}, "own.jsonl:2: `metric`: there is none; a Verdict needs one"),
    ],
)  # fmt: skip
def test_what_belongs_to_nothing_is_set_aside_by_file_and_line(adopt: Any, kind: str, row: Any, words: str) -> None:
    good: dict[str, dict[str, Any]] = {
        "Candidate": {"prompt": row.get("prompt"), "completion": "A", "prompt_id": "p"},
        "Verdict": {"subject": "s", "metric": "m", "value": 1.0},
    }
    if kind == "Candidate":
        good[kind]["prompt"] = "Q?"
    made = adopt(kind, [good[kind], row])
    assert made.rows == 1 and made.manifest["failed"] == 1
    (told,) = made.rejected().to_pylist()
    assert told["detail"].startswith(words)
    with pytest.raises(UserError, match=r"no row of .*own\.jsonl can be read as"):
        adopt(kind, [row])


def test_a_file_that_changes_after_the_plan_is_not_taken_for_what_it_was(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"prompt": "before"}) + "\n")
    source = resolve("./own.jsonl", tmp_path, ("Prompt",), store)
    file.write_text(json.dumps({"prompt": "after"}) + "\n")
    with pytest.raises(UserError, match=r"own\.jsonl changed after this run was planned"):
        source.adopt(store)
    assert store.get(source.folder) is None
    made = resolve("./own.jsonl", tmp_path, ("Prompt",), store).adopt(store)
    assert made.to_table()["prompt"].to_pylist() == [ask("after")]
    file.write_text(json.dumps({"prompt": "before"}) + "\n")
    assert source.adopt(store).to_table()["prompt"].to_pylist() == [ask("before")]
