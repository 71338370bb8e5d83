"""The fallback keeps the contract: its own seed for each row, log-probs of what was sampled from, no effect of padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from generators.backends.protocol import Sampling
from generators.backends.transformers_engine import TransformersEngine, processed

PROMPTS = [[i % 250 + 4 for i in range(start, start + 3 + start % 9)] for start in range(0, 120, 5)]
SEEDS = [7919 * (i + 1) for i in range(len(PROMPTS))]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_logprobs_and_ends(tiny: Path, log_softmax: Any, temperature: float) -> None:
    engine = TransformersEngine(str(tiny), batch=13)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    sampling = Sampling(temperature=temperature, max_tokens=24)
    made = engine.generate(PROMPTS, sampling, SEEDS)
    for prompt, one in zip(PROMPTS, made, strict=True):
        assert one.logprobs == pytest.approx(log_softmax(model, prompt, one.token_ids, temperature or 1.0), abs=1e-4)
        assert (one.token_ids[-1] == engine.ends[0]) == (one.finish_reason == "stop")
        assert engine.ends[0] not in one.token_ids[:-1] and len(one.token_ids) <= 24
    assert engine.generate(PROMPTS, sampling, SEEDS) == made


def test_greedy_is_what_vllm_says(engine: Any, tiny: Path) -> None:
    greedy = Sampling(temperature=0, max_tokens=30, min_tokens=5)
    ours = TransformersEngine(str(tiny)).generate(PROMPTS, greedy, SEEDS)
    theirs = engine.generate(PROMPTS, greedy, SEEDS)
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]


def test_cutting_a_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert processed(logits, Sampling(top_p=0.7)).exp().tolist()[0] == pytest.approx([0.625, 0.375, 0, 0])
    assert processed(logits, Sampling(top_k=3)).exp().tolist()[0] == pytest.approx(
        [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]
    )
    half = torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2
    assert processed(logits, Sampling(temperature=0.5)).exp()[0].tolist() == pytest.approx((half / half.sum()).tolist())
