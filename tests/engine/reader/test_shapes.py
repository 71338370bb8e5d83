"""The shapes that the field uses, and what each becomes: written out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from engine.plan.inputs import resolve
from engine.store.schema import spoken
from engine.store.store import Store

Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def says(text: str) -> Row:
    return {"role": "assistant", "content": text}


def system(text: str) -> Row:
    return {"role": "system", "content": text}


def write(tmp_path: Path, *rows: Row) -> str:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "own.jsonl"


CALL = [{"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Lima"}}}]
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}

CONVERSATIONS: list[tuple[Row, list[Row], Row, str]] = [
    ({"messages": [user("Hi?"), says("Yes.")]}, [user("Hi?"), says("Yes.")], {}, "conversations"),
    ({"prompt": [user("Hi?")], "completion": [says("Yes.")]}, [user("Hi?"), says("Yes.")], {}, "prompts with completions"),
    ({"prompt": "Hi?", "completion": "Yes.", "n": 1}, [user("Hi?"), says("Yes.")], {"n": 1}, "prompts with completions"),
    (
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}], "system": "Be brief."},
        [system("Be brief."), user("Hi?"), says("Yes.")], {}, "ShareGPT conversations",
    ),
    (
        {"messages": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]},
        [system("S"), user("Hi?"), says("Yes.")], {}, "ShareGPT conversations",
    ),
    ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, [user("Add.\n\n1 and 2"), says("3")], {}, "Alpaca instructions"),
    ({"instruction": "Add.", "input": "", "output": "3"}, [user("Add."), says("3")], {}, "Alpaca instructions"),
    (
        {"instruction": "And 3?", "output": "6", "history": [["1 and 2?", "3"]], "system": "S"},
        [system("S"), user("1 and 2?"), says("3"), user("And 3?"), says("6")], {}, "Alpaca instructions",
    ),
    ({"question": "Q?", "answer": "A", "level": "easy"}, [user("Q?"), says("A")], {"level": "easy"}, "question and answer"),
    ({"query": "Q?", "response": "A"}, [user("Q?"), says("A")], {}, "query and response"),
    ({"input": "Q?", "output": "A"}, [user("Q?"), says("A")], {}, "input and output"),
    ({"problem": "Q?", "solution": 5}, [user("Q?"), says("5")], {}, "problem and solution"),
    (
        {"messages": [user("Hi?"), {"role": "assistant", "content": [{"type": "text", "text": "Ye"}, {"type": "text", "text": "s."}]}]},
        [user("Hi?"), says("Yes.")], {}, "conversations",
    ),
    ({"messages": json.dumps([user("Hi?"), says("Yes.")])}, [user("Hi?"), says("Yes.")], {}, "conversations"),
    (
        {"messages": [user("W?"), {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
                      {"role": "tool", "content": "21", "tool_call_id": "c1", "name": "weather"}, says("21 degrees.")]},
        [user("W?"), {**says(""), "tool_calls": CALL}, {"role": "tool", "content": "21", "tool_call_id": "c1", "name": "weather"},
         says("21 degrees.")], {}, "conversations",
    ),
    (
        {"conversations": [{"from": "human", "value": "W?"}, {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Lima"}}'},
                           {"from": "observation", "value": "21"}, {"from": "gpt", "value": "21 degrees."}]},
        [user("W?"), {**says(""), "tool_calls": [{k: v for k, v in CALL[0].items() if k != "id"}]}, {"role": "tool", "content": "21"},
         says("21 degrees.")], {}, "ShareGPT conversations",
    ),
    (
        {"messages": [user("Hi?"), {**says("Yes."), "reasoning_content": "Polite."}], "id": 7},
        [user("Hi?"), {**says("Yes."), "reasoning_content": "Polite."}], {}, "conversations",
    ),
    (
        {"messages": [{**user("Hi?"), "timestamp": 5}, says("Yes.")]},
        [user("Hi?"), says("Yes.")], {"messages_fields": {"0": {"timestamp": 5}}}, "conversations",
    ),
    ({"Question ": "Q?", "Answer": "A", "Level": 1}, [user("Q?"), says("A")], {"Level": 1}, "question and answer"),
    ({"messages": [{"role": "developer", "content": "S"}, user("Hi?"), says("Yes.")]}, [system("S"), user("Hi?"), says("Yes.")], {}, "conversations"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "wanted", "more", "shape"), CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_conversations(bring: Any, tmp_path: Path, given: Row, wanted: list[Row], more: Row, shape: str) -> None:
    said: list[str] = []
    (row,) = bring(write(tmp_path, given), "Conversation", said).to_table().to_pylist()
    assert spoken(row["messages"]) == wanted
    assert json.loads(row["metadata"]) == more
    assert f"1 row: {shape}" in said[-1]


PROMPT, GOOD, BAD = [user("Hi?")], [says("Yes.")], [says("No.")]
PREFERENCES: list[tuple[Row, list[Row], list[Row], list[Row]]] = [
    ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}, PROMPT, GOOD, BAD),
    ({"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}, PROMPT, GOOD, BAD),
    ({"chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}, PROMPT, GOOD, BAD),
    ({"prompt": "Hi?", "chosen": PROMPT + GOOD, "rejected": PROMPT + BAD, "score_chosen": 8.5}, PROMPT, GOOD, BAD),
    ({"prompt": PROMPT, "chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}, PROMPT, GOOD, BAD),
    ({"prompt": "Hi?", "chosen": [system("S"), *PROMPT, *GOOD], "rejected": [system("S"), *PROMPT, *BAD]}, [system("S"), *PROMPT], GOOD, BAD),
    ({"question": "Hi?", "system": "S", "chosen": "Yes.", "rejected": "No."}, [system("S"), *PROMPT], GOOD, BAD),
    ({"conversations": [{"from": "human", "value": "Hi?"}], "chosen": {"from": "gpt", "value": "Yes."}, "rejected": {"from": "gpt", "value": "No."}}, PROMPT, GOOD, BAD),
    ({"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}, PROMPT, GOOD, BAD),
    ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, [user("The sky is")], [says(" blue.")], [says(" black.")]),
    ({"input": {"messages": PROMPT, "tools": []}, "preferred_output": GOOD, "non_preferred_output": BAD}, PROMPT, GOOD, BAD),
    ({"question": "Hi?", "response_j": "Yes.", "response_k": "No."}, PROMPT, GOOD, BAD),
    ({"chosen": [user("A?"), says("B"), user("C?"), says("D")], "rejected": [user("A?"), says("B"), user("C?"), says("E")]},
     [user("A?"), says("B"), user("C?")], [says("D")], [says("E")]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "prompt", "chosen", "rejected"), PREFERENCES, ids=range(len(PREFERENCES)))
def test_preferences(
    bring: Any, tmp_path: Path, given: Row, prompt: list[Row], chosen: list[Row], rejected: list[Row]
) -> None:
    (row,) = bring(write(tmp_path, given), "Preference").to_table().to_pylist()
    assert (row["prompt"], row["chosen"], row["rejected"]) == (prompt, chosen, rejected)
    if "score_chosen" in given:
        assert json.loads(row["metadata"]) == {"score_chosen": 8.5}


FAULTS: list[tuple[str, Row, str, str]] = [
    ("Preference", {"prompt": "Hi?", "chosen": "Yes."}, "missing_column", "`rejected`: there is none beside `chosen`"),
    ("Preference", {"prompt": "Hi?", "chosen": [says("Yes.")], "rejected": [{"role": "assistant", "content": None}]}, "no_content", "`rejected[0]`"),
    ("Preference", {"prompt": "Hi?", "chosen": [user("Other?"), says("Yes.")], "rejected": [user("Other?"), says("No.")]}, "other_prompt", "`chosen`"),
    ("Preference", {"chosen": "Yes.", "rejected": "No."}, "no_prompt", "don't begin with the same words"),
    ("Preference", {"prompt": "Hi?", "chosen": [user("Hi?")], "rejected": "No."}, "no_answer", "`chosen`: the last to speak is not the assistant"),
    ("Conversation", {"messages": "oops"}, "bad_type", "`messages`: expected a list of messages, found the text oops"),
    ("Conversation", {"messages": [{"content": "?"}]}, "bad_message", "`messages[0]`: expected a `role`; it has `content`"),
    ("Conversation", {"messages": [user("a"), {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "not_text", "a part of type `image_url`"),
    ("Conversation", {"messages": []}, "no_messages", "a conversation without a message"),
    ("Conversation", {"messages": [user("a"), {**says("b"), "weight": 0}]}, "unlearnt_turn", "marked not to be learnt"),
    ("Conversation", {"text": "a"}, "missing_column", "a Conversation needs `messages`, or a `prompt` with a `completion`; the columns are `text`"),
    ("Prompt", {"prompt": 1.5, "reference": "ok\0"}, "nul_bytes", "`reference`: a NUL at character 2"),
    ("Candidate", {"prompt": "q", "completion": "a", "label": "perhaps"}, "bad_type", "`label`: expected true or false, found the text perhaps"),
    ("Verdict", {"subject": "s", "metric": "m", "value": "high"}, "bad_type", "`value`: expected a number, found the text high"),
    ("Ranking", {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2.5], "annotator": "x"}, "bad_type", "`ranks`: expected a whole number"),
    ("Ranking", {"prompt": "q", "completions": ["a", "b"], "ranks": [1], "annotator": "x"}, "bad_ranking", "2 completions, 1 ranks"),
    ("Candidate", {"prompt": "q", "completion": "a", "seed": 2**70}, "bad_type", "`seed`: 1180591620717411303424 does not fit into 64 bits"),
    ("Conversation", {"messages": [user("a"), says("b")], "tools": "none"}, "bad_type", "`tools`: expected a list of tools as JSON"),
    ("Conversation", {"messages": [system("a"), user("b"), says("c")], "system": "other"}, "two_systems", "`system`"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "bad", "reason", "words"), FAULTS, ids=range(len(FAULTS)))
def test_a_row_that_cant_be_understood_is_set_aside_with_its_column(
    bring: Any, tmp_path: Path, kind: str, bad: Row, reason: str, words: str
) -> None:
    good: dict[str, Row] = {
        "Preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "Conversation": {"messages": [user("q"), says("a")]},
        "Prompt": {"prompt": "q"},
        "Candidate": {"prompt": "q", "completion": "a"},
        "Verdict": {"subject": "s", "metric": "m", "value": 1},
        "Ranking": {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "annotator": "x"},
    }
    made = bring(write(tmp_path, good[kind], bad), kind)
    (told,) = made.rejected().to_pylist()
    assert made.rows == 1 and told["reason"] == reason
    assert told["detail"].startswith("own.jsonl:2: ") and words in told["detail"]


def test_system_label_tools_split_and_metadata_keep_their_meaning(bring: Any, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    rows = [
        {"prompt": "q", "completion": "a", "label": True, "tools": [tool], "score": 3},
        {"prompt": "q", "completion": "b", "label": "no", "tools": json.dumps([tool]), "split": "Validation_sft"},
        {"prompt": "q", "completion": "c", "split": "fold1", "metadata": {"url": "u"}},
    ]
    first, second, third = bring(write(tmp_path, *rows), "Candidate").to_table().to_pylist()
    assert [row["label"] for row in (first, second, third)] == [True, False, None]
    assert json.loads(first["tools"]) == json.loads(second["tools"]) == [tool] and third["tools"] is None
    assert second["split"] == "validation" and json.loads(first["metadata"]) == {"score": 3}
    assert json.loads(third["metadata"]) == {"url": "u", "split": "fold1"}


def test_other_names_by_columns(bring: Any, tmp_path: Path) -> None:
    rows = [{"ask": "q", "answers": [{"text": "a", "by": "x"}, {"text": "b"}], "id": "same"}] * 2
    mapped = {"prompt": "ask", "chosen": "{{ answers[0].text }}", "rejected": "{{ answers[1].text }}", "id": None}
    made = bring(write(tmp_path, *rows), "Preference", columns=mapped).to_table().to_pylist()
    assert made[0]["prompt"] == [user("q")] and made[0]["chosen"] == [says("a")] and made[0]["rejected"] == [says("b")]
    assert made[0]["id"] != made[1]["id"]
    told = json.loads(made[0]["metadata"])
    assert told == {"id": "same", "answers": rows[0]["answers"]}
    turns = {"messages": "{{ [{'role': 'user', 'content': ask}, {'role': 'assistant', 'content': answers[0].text}] }}"}
    (row, _) = bring("own.jsonl", "Conversation", columns=turns).to_table().to_pylist()
    assert row["messages"] == [user("q"), says("a")]
    text = bring("own.jsonl", "Document", columns={"text": "Q: {{ ask }}\nA: {{ answers[1].text }}"})
    assert text.to_table()["text"].to_pylist() == ["Q: q\nA: b"] * 2
    with pytest.raises(UserError, match="is not a Jinja template"):
        bring("own.jsonl", "Document", columns={"text": "{{ ask"})
    with pytest.raises(UserError, match=r"own\.jsonl:1: `text`: UndefinedError: 'aks' is undefined"):
        bring("own.jsonl", "Document", columns={"text": "{{ aks }}"})


def test_a_file_is_of_the_kind_its_rows_are(tmp_path: Path, store: Store) -> None:
    every = ("Document", "Prompt", "Conversation", "Candidate", "Preference", "Ranking", "Verdict")
    for row, kind in (
        ({"text": "a"}, "Document"),
        ({"prompt": "q"}, "Prompt"),
        ({"question": "q", "answer": "a"}, "Prompt"),
        ({"messages": [user("q")]}, "Conversation"),
        ({"prompt": "q", "completion": "a"}, "Candidate"),
        ({"chosen": "a", "rejected": "b", "prompt": "q"}, "Preference"),
        ({"subject": "s", "metric": "m", "value": 1}, "Verdict"),
    ):
        assert resolve("./" + write(tmp_path, row), tmp_path, every, store).kind == kind, row
    assert (
        resolve("./" + write(tmp_path, {"prompt": "q", "response": "a"}), tmp_path, ("Conversation",), store).kind
        == "Conversation"
    )


def test_conversations_from_parquet_hold_no_more_than_they_say(bring: Any, tmp_path: Path) -> None:
    """In Arrow every message has the fields that any message has."""
    messages = [
        [user("W?"), {**says(""), "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"a": 1, "b": None}}}]}],
        [user("V?"), {**says(""), "tool_calls": [{"type": "function", "function": {"name": "v", "arguments": {"a": None, "b": 2}}}]}],
        [user("Hi?"), says("Yes.")],
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist([{"messages": turns} for turns in messages]), tmp_path / "a.parquet")
    made = [spoken(row["messages"]) for row in bring("a.parquet", "Conversation").to_table().to_pylist()]
    assert made[0][1]["tool_calls"][0]["function"] == {"name": "w", "arguments": {"a": 1}}
    assert made[1][1]["tool_calls"][0]["function"] == {"name": "v", "arguments": {"b": 2}}
    assert made[2] == messages[2]


def test_a_tool_call_far_down_widens_all_parts(bring: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.reader.typed_rows.PART_ROWS", 2)
    plain: list[Row] = [{"messages": [user(f"{i}?"), says("a")]} for i in range(5)]
    rows = [*plain, {"messages": [user("W?"), {**says(""), "tool_calls": [OPENAI_CALL]}], "split": "test", "tools": []}]
    made = bring(write(tmp_path, *rows), "Conversation")
    assert len({str(made.read_table(name).schema) for name in made.parts()}) == 1
    read = made.to_table().to_pylist()
    assert [spoken(row["messages"])[0] for row in read[:5]] == [user(f"{i}?") for i in range(5)]
    assert (
        spoken(read[5]["messages"])[1]["tool_calls"] == CALL and read[5]["split"] == "test" and read[0]["split"] is None
    )


def test_documents_with_numbers_for_ids_are_deduplicated(bring: Any, build: Any, tmp_path: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog and then sleeps for the rest of a long afternoon"
    pq.write_table(
        pa.table({"id": [11, 12, 13], "text": [text, text, text.upper() + " or so, another day"]}),
        tmp_path / "c.parquet",
    )
    made = build("dedup", {"documents": bring("c.parquet", "Document")})
    assert made.to_table()["id"].to_pylist()[0] == "11" and made.rows == 2
    assert [row["id"] for row in made.rejected().to_pylist()] == ["12"]
