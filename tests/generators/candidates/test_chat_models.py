"""Candidates of chat models that people bring: how they are asked, where they stop, and what is answer and what a thought."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from benchmarks.parts import template_table as table
from generators.backends.local_model import Local
from generators.backends.protocol import Completion, Failure, Sampling
from generators.candidates.stage import Candidates
from generators.judge.stage import Judge


class Engine:
    """Says what a function of the prompt's text says, in the tokens of a tokenizer, and stops where it is told to."""

    max_model_len = 100_000

    def __init__(self, tokens: Any, reply: Callable[[str], str]) -> None:
        self.tokens, self.reply, self.asked = tokens, reply, list[tuple[str, Sampling]]()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        made = list[Completion]()
        for prompt in prompts:
            text = self.tokens.decode(prompt)
            self.asked.append((text, sampling))
            ids = self.tokens.encode(self.reply(text), add_special_tokens=False)
            stop = next((i + 1 for i, token in enumerate(ids) if token in sampling.stop_token_ids), None)
            made.append(Completion(ids[:stop], None, "stop" if stop else "length"))
        return made

    def close(self) -> None: ...


def local(monkeypatch: pytest.MonkeyPatch, name: str, reply: Callable[[str], str]) -> Engine:
    """Have the stage's model answer so, with TRL's template of that name."""
    tokens = table.tokenizer(name)
    engine = Engine(tokens, reply)
    monkeypatch.setattr("generators.candidates.work.open_model", lambda *_, **__: Local(engine, tokens))
    return engine


def prompt(number: int, *turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    messages = [{"role": role, "content": text} for role, text in turns]
    return {"id": f"{number:032x}", "parents": [], "prompt": messages, **more}


def test_an_answer_ends_with_the_templates_turn(
    given: Any, build: Any, model: Any, tiny: Any, monkeypatch: Any
) -> None:
    """Gemma's end of sequence is `<eos>`, and its turns end with another token."""
    engine = local(monkeypatch, "gemma", lambda asked: "Lima.<end_of_turn>\n<start_of_turn>user\nand then?")
    rows = [
        prompt(0, ("user", "Capital of Peru?")), prompt(1, ("system", "Be brief."), ("user", "And?")),
        prompt(2, ("user", "a<end_of_turn>b")), prompt(3, ("critic", "a")),
    ]  # fmt: skip
    made = build(Candidates, {"model": model(tiny), "prompts": given("Prompt", rows)}, n=1, max_failed=1.0)
    (row,) = made.to_table().to_pylist()
    assert row["completion"] == [{"role": "assistant", "content": "Lima."}] and row["finish_reason"] == "stop"
    assert engine.asked[0][0] == "<bos><start_of_turn>user\nCapital of Peru?<end_of_turn>\n<start_of_turn>model\n"
    assert made.manifest["rejected"] == {"control_token": 1, "template_refused": 1, "unknown_role": 1}
    details = sorted(made.rejected().column("detail").to_pylist())
    assert details[-1] == "the chat template says: System role not supported"


def test_rules_see_the_answer_without_its_thought(
    given: Any, build: Any, model: Any, tiny: Any, monkeypatch: Any
) -> None:
    def reply(asked: str) -> str:
        return "Lima.<|im_end|>" if "plain" in asked else "<think>\nIs it Cusco?\n</think>\n\nLima.<|im_end|>"

    local(monkeypatch, "qwen3", reply)
    rows = [prompt(i, ("user", said), reference="Lima.") for i, said in enumerate(("think", "plain", "think"))]
    made = build(Candidates, {"model": model(tiny), "prompts": given("Prompt", rows)}, n=1, partition=1)
    found = [row["completion"][0] for row in made.to_table().to_pylist()]
    assert [said["content"] for said in found] == ["Lima."] * 3
    assert [said.get("reasoning_content") for said in found] == ["Is it Cusco?", None, "Is it Cusco?"]
    verdicts = build(Judge, {"candidates": made}, rules={"right": "completion = reference"})
    assert verdicts.to_table()["value"].to_pylist() == [1.0] * 3


def test_a_cut_thought_is_no_answer(given: Any, build: Any, model: Any, tiny: Any, monkeypatch: Any) -> None:
    local(monkeypatch, "deepseek_r1_distill", lambda asked: "Is it Cusco? Or")  # its prompts end with `<think>`
    made = build(Candidates, {"model": model(tiny), "prompts": given("Prompt", [prompt(0, ("user", "?"))])}, n=1)
    (row,) = made.to_table().to_pylist()
    (said,) = row["completion"]
    assert (said["content"], said["reasoning_content"]) == ("", "Is it Cusco? Or")
    assert row["finish_reason"] == "length"


def test_tools_are_shown_and_kept(given: Any, build: Any, model: Any, tiny: Any, monkeypatch: Any) -> None:
    call = '<|tool_call>call:weather{city:<|"|>Lima<|"|>}<tool_call|><|tool_response>'
    engine = local(monkeypatch, "gemma4_v5", lambda asked: call + "made up")
    rows = [
        prompt(0, ("user", "Weather?"), tools=table.TOOLS), prompt(1, ("user", "Hi"), tools=None),
        prompt(2, ("user", "Weather?"), tools="weather"),
    ]  # fmt: skip
    made = build(Candidates, {"model": model(tiny), "prompts": given("Prompt", rows)}, n=1, max_failed=1.0)
    first, second = made.to_table().to_pylist()
    assert "declaration:weather" in engine.asked[0][0] and "declaration" not in engine.asked[1][0]
    assert first["tools"] == table.TOOLS and second["tools"] is None
    # Offered tools, it stops where a call waits for what the tool gives back.
    assert engine.tokens.decode(first["token_ids"]) == call and second["finish_reason"] == "length"
    assert made.manifest["rejected"] == {"tool_calls": 1}
    assert made.rejected().column("detail").to_pylist() == ["`tools` should be JSON, found 'weather'"]


def test_a_prompt_is_a_failure_in_its_place() -> None:
    tokens = table.tokenizer("gemma")
    backend = Local(Engine(tokens, lambda asked: "a<end_of_turn>"), tokens)
    asked = [[{"role": "user", "content": text}] for text in ("a", "<start_of_turn>", "b")]
    first, second, third = backend.complete(asked, Sampling(), [0, 1, 2])
    assert isinstance(second, Failure) and second.reason == "control_token"
    assert not isinstance(first, Failure) and not isinstance(third, Failure) and first.text == third.text == "a"
    assert json.dumps(first.token_ids) == json.dumps(tokens.encode("a<end_of_turn>", add_special_tokens=False))
