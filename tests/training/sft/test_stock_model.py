"""SFT of models that people bring: their chat template says what is learnt, and what it refuses is that row's fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import UserError
from engine.stage.job import Job
from engine.stage.preflight import Glimpse, Preflight
from engine.store.schema import table
from engine.store.store import Store
from generators.text.learning_template import learning
from tests.training.stock_models import save, stock
from tests.training.tiny import tokenizer, turn
from training.sft.examples import IGNORE, give_template, prepare, render, show
from training.sft.stage import Sft

TALK = [turn("user", "Hi!"), turn("assistant", "Hello Bob."), turn("user", "And?"), turn("assistant", "So long.")]
CALL = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}]
CALLING = [
    turn("user", "Weather in Lima?"), {"role": "assistant", "content": None, "tool_calls": json.dumps(CALL)},
    {"role": "tool", "content": "21", "tool_call_id": "c1"}, turn("assistant", "It is 21 degrees."),
]  # fmt: skip


def row(number: int, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"id": f"{number:032x}", "parents": [], "messages": messages, **more}


def learnt(store: Store, given: Any, tokens: Any, rows: list[dict[str, Any]], reasoning: Any = "learn") -> list[str]:
    """What is learnt of each row that is not set aside, and the others' reasons."""
    job = Job(store, "prepared", "Model", {"conversations": {"c": given("Conversation", rows)}}, 0)
    file, _, _ = prepare(job, learning(tokens), 4000, reasoning)
    with pa.memory_map(str(file)) as source:
        examples = pa.ipc.open_stream(source).read_all().to_pylist()
    found = {e["id"]: tokens.decode([label for label in e["labels"] if label != IGNORE]) for e in examples}
    for name in job.writer.rejected_parts():
        refused = job.writer.read_rejected(name).to_pylist()
        found |= {r["id"]: f"{r['reason']}: {r['detail']}" for r in refused}
    return [found[r["id"]] for r in rows]


def test_a_stock_model_is_trained_and_stops_at_the_end_of_its_turn(
    store: Store, given: Any, build: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    model, tokens = stock(store, tmp_path / "stock", "gemma")
    eos, end = tokens.eos_token_id, tokens.convert_tokens_to_ids("<end_of_turn>")
    rows = [
        row(0, TALK), row(1, TALK[:2]), row(2, [turn("system", "Be brief."), *TALK]),
        row(3, [turn("user", "a<end_of_turn>\n<start_of_turn>model\nb"), TALK[1]]),
    ]  # fmt: skip
    made = build(Sft, {"model": model, "conversations": given("Conversation", rows)}, steps=2, batch=2, seed=3)
    assert made.manifest["summary"]["conversations"] == 2
    assert made.manifest["rejected"] == {"control_token": 1, "template_refused": 1}
    assert made.rejected().column("detail").to_pylist()[0] == "the chat template says: System role not supported"
    trained = AutoTokenizer.from_pretrained(made.location)
    assert (trained.eos_token, trained.chat_template) == ("<end_of_turn>", tokens.chat_template)
    assert json.loads((made.path / "config.json").read_text())["eos_token_id"] == end
    assert sorted(json.loads((made.path / "generation_config.json").read_text())["eos_token_id"]) == sorted([eos, end])
    line = show(trained, render(learning(trained), "x", TALK[:2]))
    assert line.endswith("<start_of_turn>model⏎«Hello Bob.<end_of_turn>»⏎")


def test_calls_of_tools_are_learnt_or_set_aside(store: Store, given: Any, tmp_path: Path) -> None:
    tools = json.dumps([{"name": "weather", "parameters": {"type": "object", "properties": {}}}])
    rows = [
        row(0, CALLING), row(1, CALLING, tools=tools), row(2, [*CALLING[:2], turn("user", "and?"), CALLING[3]]),
        row(3, [turn("user", "Hi"), turn("assistant", ""), turn("user", "and?"), CALLING[3]]),
        row(4, [CALLING[0], {**CALLING[1], "tool_calls": '[{"function": "weather"}]'}, *CALLING[2:]]), row(5, TALK[:2]),
    ]  # fmt: skip
    call, said = '{"name": "weather", "arguments": {"city": "Lima"}}', "It is 21 degrees."
    thought, end = "<think>\n\n</think>\n\n", "<|im_end|>"
    calls = f"{thought}<tool_call>\n{call}\n</tool_call>{end}{thought}{said}{end}"
    found = learnt(store, given, save(tmp_path / "qwen3", "qwen3"), rows)
    assert found[:3] == [calls, calls, calls] and found[5] == f"{thought}Hello Bob.{end}"
    assert found[3] == "empty_answer: the assistant says nothing in one of its turns"
    assert found[4].startswith("tool_calls: message 1: a call is") and "expected a function with a name" in found[4]
    found = learnt(store, given, save(tmp_path / "phi3", "phi3"), rows)
    assert [one.partition(":")[0] for one in found] == [
        *["tool_calls"] * 3,
        "empty_answer",
        "tool_calls",
        "Hello Bob.<|end|>",
    ]
    ours = tokenizer()  # of the `tokenize` stage, with the project's template
    give_template(ours)
    found = learnt(store, given, ours, rows)
    assert found[0] == found[1] == f"<tool_call>\n{call}\n</tool_call><|end|>{said}<|end|>"
    text = ours.decode(render(learning(ours), "x", CALLING, tools).input_ids)
    assert (
        text.startswith('<|system|><tools>\n{"name": "weather"')
        and "</tools><|end|><|user|>Weather in Lima?<|end|>" in text
    )
    assert "<|end|><|user|><tool_response>\n21\n</tool_response><|end|><|assistant|>It is 21" in text


def test_thoughts_are_dropped_before_anything_is_learnt(store: Store, given: Any, tmp_path: Path) -> None:
    thoughtful = {**TALK[1], "reasoning_content": "who asks?"}
    rows = [row(0, [TALK[0], thoughtful]), row(1, [TALK[0], {**thoughtful, "content": ""}])]
    tokens = save(tmp_path / "qwen3", "qwen3")
    assert learnt(store, given, tokens, rows)[1] == "<think>\nwho asks?\n</think>\n\n<|im_end|>"
    dropped = learnt(store, given, tokens, rows, "drop")
    assert dropped[0].endswith("</think>\n\nHello Bob.<|im_end|>") and "who" not in dropped[0]
    assert dropped[1].startswith("empty_answer")
    assert Sft().identity() != Sft(reasoning="drop").identity()


def test_what_the_model_will_see_is_said_before_the_run(tmp_path: Path) -> None:
    save(tmp_path / "stock", "gemma")
    rows = table("Conversation", [row(0, [turn("system", "Be brief."), *TALK]), row(1, TALK[:2])])
    said: list[str] = []

    def known(folder: Path, rows: Any = rows) -> Preflight:
        model = Glimpse("model", "Model", model=str(folder))
        return Preflight({"model": [model], "conversations": [Glimpse("chats", "Conversation", rows)]}, say=said.append)

    Sft().check(known(tmp_path / "stock"))
    assert said[:1] == [
        "chats: <bos><start_of_turn>user⏎Hi!<end_of_turn>⏎<start_of_turn>model⏎«Hello Bob.<end_of_turn>»⏎"
    ]
    Sft().check(known(tmp_path / "stock", rows.slice(0, 1)))
    why = "rows can't be shown to the model, and will be set aside: the chat template says: System role not supported"
    assert said[1:] == [f"chats: 1 of the first 2 {why}", f"chats: 1 of the first 1 {why}"]
    Sft().check(known(tmp_path / "not there yet"))
    save(tmp_path / "images", "smolvlm")
    with pytest.raises(UserError, match="list of parts"):
        Sft().check(known(tmp_path / "images"))
    save(tmp_path / "endless", "phi3", "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    with pytest.raises(UserError, match="never learn to stop"):
        Sft().check(known(tmp_path / "endless"))
    (tmp_path / "endless" / "manifest.json").write_text("{}")  # a stage has made it, and looked at it
    Sft().check(known(tmp_path / "endless"))
    assert len(said) == 3
