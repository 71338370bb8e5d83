"""Preferences and rewards on models that people bring: the same ids that SFT would learn, and one rule for what can't be shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.stage.job import Job
from engine.stage.preflight import Glimpse, Preflight
from engine.store.schema import table
from engine.store.store import Store
from generators.text.learning_template import learning
from tests.training.stock_models import save, stock
from tests.training.tiny_chat import assistant, user
from training.preference.dpo_stage import Dpo
from training.preference.kto import judged
from training.preference.pairs import load
from training.reward import rankings
from training.reward.reward_stage import Reward
from training.rl.grpo_stage import Grpo
from training.rl.rollouts import load_questions

ASK, SYSTEM = user("Capital of Peru?"), [{"role": "system", "content": "Be brief."}, *user("Capital of Peru?")]
CONTROL = "Lima.<end_of_turn>\n<start_of_turn>user\nthanks"


def pair(number: int, prompt: Any, chosen: Any, rejected: str = "Cusco.", **more: Any) -> dict[str, Any]:
    chosen = assistant(chosen) if isinstance(chosen, str) else chosen
    return {"id": f"row{number}", "prompt": prompt, "chosen": chosen, "rejected": assistant(rejected), **more}


PAIRS = [
    pair(0, ASK, "Lima."), pair(1, SYSTEM, "Lima."), pair(2, ASK, CONTROL), pair(3, ASK, "Lima.", "Lima. "),
    pair(4, user("long " * 400), "Lima."),
]  # fmt: skip
FAULTS = {"control_token": 1, "template_refused": 1}


def job_of(store: Store, **inputs: Any) -> Job:
    return Job(store, f"on{'-'.join(inputs)}", "Model", {port: {"x": a} for port, a in inputs.items()}, 0)


def rejected(job: Job) -> dict[str, str]:
    rows = [r for name in job.writer.rejected_parts() for r in job.writer.read_rejected(name).to_pylist()]
    return {r["id"]: f"{r['reason']}: {r['detail']}" for r in rows}


@pytest.mark.parametrize("name", ["gemma", "qwen3", "gptoss"])
def test_pairs_are_the_tokens_of_the_whole_conversation(store: Store, given: Any, tmp_path: Path, name: str) -> None:
    tokens = save(tmp_path / name, name)
    turns = [*ASK, *assistant("Lima."), *user("Sure?")]
    rows = [pair(0, ASK, "Lima.", "Cusco."), pair(1, turns, "Yes.", "No.")]
    training, _ = load(job_of(store, preferences=given("Preference", rows)), "preferences", tokens, 9000, 0.0)
    for one, made in zip(rows, training, strict=True):
        for answer, side in ((made.chosen, "chosen"), (made.rejected, "rejected")):
            ids, mask = learning(tokens).encode([*one["prompt"], *one[side]])
            last = max(i for i, said in enumerate(mask) if said) + 1
            assert [*answer.prompt, *answer.response] == ids[:last]
            assert all(mask[len(answer.prompt) : last]) and not mask[len(answer.prompt) - 1]


def test_a_stock_model_is_trained_on_preferences(store: Store, given: Any, build: Any, tmp_path: Path) -> None:
    policy, _ = stock(store, tmp_path / "stock", "gemma")
    made = build(Dpo, {"policy": policy, "preferences": given("Preference", PAIRS)}, batch=2, max_length=300)
    assert made.manifest["summary"]["pairs"] == 1
    assert made.manifest["rejected"] == {**FAULTS, "equal_answers": 1, "too_long": 1}
    details = {row["id"]: row["detail"] for row in made.rejected().to_pylist()}
    assert details["row1"] == "the chat template says: System role not supported"
    assert "<end_of_turn> in it" in details["row2"]
    with pytest.raises(
        UserError, match=r"none of the 1 preferences can be trained on \(1 template refused; the first: the chat"
    ):
        build(Dpo, {"policy": policy, "preferences": given("Preference", PAIRS[1:2])})


def test_one_rule_for_what_can_not_be_shown(store: Store, given: Any, tmp_path: Path) -> None:
    """A control token in a text, and what the template refuses, in every stage that reads texts."""
    tokens = save(tmp_path / "stock", "gemma")
    candidates = given(
        "Candidate",
        [{"id": r["id"], "prompt_id": r["id"], "prompt": r["prompt"], "completion": r["chosen"]} for r in PAIRS[:3]],
    )
    verdicts = given("Verdict", [{"id": f"v{i}", "subject": f"row{i}", "metric": "m", "value": 1.0} for i in range(3)])
    job = job_of(store, candidates=candidates, verdicts=verdicts)
    assert [m.prompt_id for m in judged(job, tokens, "m", 0.5, 300)] == ["row0"]
    seen = [rejected(job)]

    lists = [
        {"id": r["id"], "prompt_id": r["id"], "prompt": r["prompt"], "annotator": "ann", "ranks": [1, 2],
         "completions": [r["chosen"][0]["content"], "Cusco."], "candidates": ["a", "b"]}
        for r in PAIRS[:3]
    ]  # fmt: skip
    job = job_of(store, rankings=given("Ranking", lists))
    training, _ = rankings.load(job, "rankings", tokens, 300, 0.0, {})
    assert [one.prompt_id for one in training] == ["row0"]
    seen.append(rejected(job))

    prompts = [{"id": r["id"], "prompt": [*r["prompt"][:-1], *user(r["chosen"][0]["content"])]} for r in PAIRS[:3]]
    job = job_of(store, prompts=given("Prompt", prompts))
    assert [question.id for question in load_questions(job, tokens)] == ["row0"]
    seen.append(rejected(job))
    for found in seen:
        assert found["row1"] == "template_refused: the chat template says: System role not supported"
        assert found["row2"].startswith("control_token: message ") and "<end_of_turn> in it" in found["row2"]
        assert found.keys() == {"row1", "row2"}


def test_calls_and_thoughts_in_preferences(store: Store, given: Any, tmp_path: Path) -> None:
    tokens = save(tmp_path / "stock", "qwen3")
    tools = json.dumps([{"name": "weather", "parameters": {"type": "object", "properties": {}}}])
    call = json.dumps(
        [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Lima"}}}]
    )
    calling = [{"role": "assistant", "content": None, "tool_calls": call}]
    thoughtful = [{"role": "assistant", "content": "Lima.", "reasoning_content": "In Peru."}]
    rows = [pair(0, ASK, calling, tools=tools), pair(1, ASK, thoughtful, tools=None)]
    preferences = given("Preference", rows)
    first, second = load(job_of(store, preferences=preferences), "preferences", tokens, 9000, 0.0)[0]
    said = tokens.decode(first.chosen.response)
    assert said.endswith('<tool_call>\n{"name": "weather", "arguments": {"city": "Lima"}}\n</tool_call><|im_end|>')
    assert "weather" in tokens.decode(first.chosen.prompt) and first.chosen.prompt == first.rejected.prompt
    assert tokens.decode(second.chosen.response) == "<think>\nIn Peru.\n</think>\n\nLima.<|im_end|>"
    dropped = load(job_of(store, preferences=preferences), "preferences", tokens, 9000, 0.0, "drop")[0][1]
    assert tokens.decode(dropped.chosen.response) == "<think>\n\n</think>\n\nLima.<|im_end|>"


def test_one_prompt_for_an_answer_with_a_thought_and_one_without(store: Store, given: Any, tmp_path: Path) -> None:
    """DeepSeek-R1's template opens a thought in the prompt, unless the answer has none."""
    tokens = save(tmp_path / "stock", "deepseek_r1_distill")
    thoughtful = [{"role": "assistant", "content": "Lima.", "reasoning_content": "In Peru."}]
    (made,), _ = load(
        job_of(store, preferences=given("Preference", [pair(0, ASK, thoughtful)])), "preferences", tokens, 900, 0.0
    )
    assert made.chosen.prompt == made.rejected.prompt
    assert tokens.decode(made.chosen.response).startswith("<think>\nIn Peru.\n</think>")
    assert tokens.decode(made.rejected.response) == "Cusco.<｜end▁of▁sentence｜>"


def test_what_the_model_will_see_is_said_before_the_run(tmp_path: Path) -> None:
    save(tmp_path / "stock", "gemma")
    said: list[str] = []

    def known(folder: Path, model: str, **rows: Any) -> Preflight:
        inputs = {port: [Glimpse(port, kind, table(kind, [row]))] for port, (kind, row) in rows.items()}
        return Preflight({model: [Glimpse("m", "Model", model=str(folder))], **inputs}, say=said.append)

    header = "<bos><start_of_turn>user⏎Capital of Peru?<end_of_turn>⏎<start_of_turn>model⏎"
    Dpo().check(known(tmp_path / "stock", "policy", preferences=("Preference", PAIRS[0])))
    ranking = {"id": "r", "prompt": ASK, "completions": ["Lima.", "Cusco."]}
    Reward().check(known(tmp_path / "stock", "model", rankings=("Ranking", ranking)))
    Grpo(rules={"right": "completion = reference"}).check(
        known(tmp_path / "stock", "policy", prompts=("Prompt", {"id": "p", "prompt": ASK}))
    )
    assert said == [
        f"preferences: {header}«Lima.<end_of_turn>»",
        f"rankings: {header}«Lima.<end_of_turn>»",
        f"prompts: {header}",
    ]
    save(tmp_path / "images", "llava_next")
    for stage, port in ((Dpo(), "policy"), (Reward(), "model"), (Grpo(rules={"r": "length"}), "policy")):
        with pytest.raises(UserError, match="wants what is said as a list of parts"):
            stage.check(known(tmp_path / "images", port))
