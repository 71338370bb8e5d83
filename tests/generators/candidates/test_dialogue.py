"""Conversations of several turns, whose ids are, one for one, those that the model saw and gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import UserError
from generators.backends.process.watched import WatchedEngine
from generators.backends.protocol import Completion, Sampling
from generators.backends.transformers_engine import TransformersEngine
from generators.candidates.dialogue_stage import PLAY, Dialogue
from generators.text.chat_template import MARK, ChatTemplate
from generators.text.prompts import load_tokenizer
from tests.generators.faulty_server import FaultyServer

PROMPTS = [{"id": f"{i:032x}", "parents": [], "prompt": [{"role": "user", "content": f"Say {i}!"}]} for i in range(6)]


def says(messages: list[dict[str, str]], seed: int) -> str:
    """The simulated user: counts what was said so far. In the conversation about 5 it leaves after one answer."""
    assert messages[0] == {"role": "user", "content": PLAY}
    assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
    return "" if messages[1]["content"] == "Say 5!" else f"And {len(messages)}?"


@pytest.fixture
def seen(monkeypatch: Any, tiny: Path) -> list[tuple[list[int], Completion]]:
    """Everything that the engine was asked and gave, in this process."""
    exchanged = list[tuple[list[int], Completion]]()
    engine = TransformersEngine(str(tiny), max_model_len=128)

    def generate(self: Any, prompts: Any, sampling: Sampling, seeds: Any) -> list[Completion]:
        made = engine.generate(prompts, sampling, seeds)
        exchanged.extend((list(prompt), one) for prompt, one in zip(prompts, made, strict=True))
        return made

    monkeypatch.setattr(WatchedEngine, "generate", generate)
    monkeypatch.setattr(WatchedEngine, "max_model_len", 128)
    return exchanged


def test_training_ids_are_the_sampled_ids(
    given: Any, build: Any, model: Any, tiny: Path, log_softmax: Any, seen: list[tuple[list[int], Completion]]
) -> None:
    with FaultyServer(share=0.1, answer=says) as faulty:
        made = build(
            Dialogue, {"model": model(tiny), "prompts": given("Prompt", PROMPTS)}, turns=3, n=2, max_tokens=12,
            engine="transformers", partition=4, user_server={"model": "person", "url": faulty.url},
        )  # fmt: skip
    rows = made.to_table().to_pylist()
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(p["id"], s) for p in PROMPTS for s in range(2)]
    tokenizer, weights = load_tokenizer(str(tiny)), AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    answers = {tuple(prompt + one.token_ids): one for prompt, one in seen}
    assert len(answers) == 5 * 2 * 3 + 2
    for row in rows:
        turns = 1 if row["prompt"][0]["content"] == "Say 5!" else 3
        assert [m["role"] for m in row["completion"]] == ["assistant", "user"] * (turns - 1) + ["assistant"]
        assert row["prompt_token_ids"] == ChatTemplate(tokenizer).prompt(row["prompt"])
        ids = row["prompt_token_ids"] + row["token_ids"]
        assert len(row["sampled"]) == len(row["logprobs"]) == len(row["token_ids"])
        # Each answer of the engine, to a prompt that is all that came before it, ends where `sampled` says.
        ends = [i + 1 for i, (here, after) in enumerate(zip(row["sampled"], [*row["sampled"][1:], False], strict=True))
                if here and not after]  # fmt: skip
        assert len(ends) == turns
        for end in ends:
            one = answers[tuple(row["prompt_token_ids"] + row["token_ids"][:end])]
            start = end - len(one.token_ids)
            assert row["token_ids"][start:end] == one.token_ids
            assert row["logprobs"][start:end] == pytest.approx(one.logprobs)
        expected = log_softmax(weights, row["prompt_token_ids"], row["token_ids"])
        for logprob, given_, true in zip(row["logprobs"], row["sampled"], expected, strict=True):
            assert (logprob is None) != given_
            assert logprob is None or logprob == pytest.approx(true, abs=1e-4)
        text = tokenizer.decode(ids)
        for message in [*row["prompt"], *(m for m in row["completion"] if m["role"] == "user")]:
            assert text.count(f"<|user|>{message['content']}<|end|><|assistant|>") == 1
        assert "<|end|><|end|>" not in text
        assert json.loads(row["sampling"])["user"]["model"] == "person"


def test_a_conversation_ends_where_the_context_does(
    given: Any, build: Any, model: Any, tiny: Path, seen: list[tuple[list[int], Completion]]
) -> None:
    with FaultyServer(share=0, answer=says) as faulty:
        made = build(
            Dialogue, {"model": model(tiny), "prompts": given("Prompt", PROMPTS[:2])}, turns=9, max_tokens=40,
            engine="transformers", user_server={"model": "person", "url": faulty.url},
        )  # fmt: skip
    for row in made.to_table().to_pylist():
        assert row["completion"][-1]["role"] == "assistant" and len(row["completion"]) < 17
        assert len(row["prompt_token_ids"] + row["token_ids"]) <= 128
        assert row["finish_reason"] == "length"


def test_what_stands_between_two_answers(tiny: Path, untied: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    end = tokenizer.eos_token_id
    assert tokenizer.decode(ChatTemplate(tokenizer).between([5], "Why?")) == "<|end|><|user|>Why?<|end|><|assistant|>"
    assert [end, *ChatTemplate(tokenizer).between([end], "Why?")] == ChatTemplate(tokenizer).between([5], "Why?")
    turns = [("user", "Hi."), ("assistant", MARK), ("user", "Why?")]
    whole = ChatTemplate(tokenizer).prompt([{"role": role, "content": text} for role, text in turns])
    assert whole[-len(ChatTemplate(tokenizer).between([5], "Why?")) :] == ChatTemplate(tokenizer).between([5], "Why?")
    plain = load_tokenizer(str(untied))
    assert plain.decode(ChatTemplate(plain).between([5], "Why?")) == "\nWhy?\n"
    tokenizer.chat_template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="leaves out the assistant's earlier answers"):
        ChatTemplate(tokenizer).between([5], "Why?")
