"""A real engine: repeatable batches, log-probs that transformers confirms, weights that are really swapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from generators.backends.protocol import Sampling
from generators.backends.vllm.engine import VllmEngine

PROMPTS = [[i % 250 + 4 for i in range(start, start + 3 + start % 9)] for start in range(0, 240, 5)]
SEEDS = [7919 * (i + 1) for i in range(len(PROMPTS))]
SAMPLING = Sampling(max_tokens=24)


def swap(engine: VllmEngine, folder: Path) -> None:
    engine.load_weights(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


@pytest.mark.slow
def test_a_batch_gives_the_same_tokens_after_others_and_in_a_fresh_engine(engine: VllmEngine, tiny: Path) -> None:
    first = engine.generate(PROMPTS, SAMPLING, SEEDS)
    engine.generate(PROMPTS[::-1], Sampling(temperature=0.7, max_tokens=9), SEEDS)
    assert engine.generate(PROMPTS, SAMPLING, SEEDS) == first
    assert engine.generate(PROMPTS, SAMPLING, SEEDS[::-1]) != first
    with VllmEngine(str(tiny), kv_cache_gib=1) as fresh:
        assert fresh.generate(PROMPTS, SAMPLING, SEEDS) == first


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_logprobs_are_those_of_the_distribution_sampled_from(
    engine: VllmEngine, tiny: Path, log_softmax: Any, temperature: float
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    sampling = Sampling(temperature=temperature, max_tokens=24)
    for prompt, made in zip(PROMPTS, engine.generate(PROMPTS, sampling, SEEDS), strict=True):
        assert made.logprobs == pytest.approx(log_softmax(model, prompt, made.token_ids, temperature or 1.0), abs=1e-4)


def test_sampling_follows_the_distribution(engine: VllmEngine, tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        expected_V = torch.softmax(model(torch.tensor([PROMPTS[3]])).logits[0, -1].double(), -1)
    n = 4000
    drawn = engine.generate([PROMPTS[3]] * n, Sampling(max_tokens=1, logprobs=False), range(n))
    counts_V = torch.bincount(torch.tensor([made.token_ids[0] for made in drawn]), minlength=len(expected_V))
    # Six standard deviations of each count: a wrong distribution fails, a right one fails once in 10^6.
    assert ((counts_V - n * expected_V).abs() <= 6 * (n * expected_V * (1 - expected_V)).sqrt() + 3).all()


def test_more_prompts_than_one_step_can_take(engine: VllmEngine) -> None:
    prompts = [[i % 250 + 4] * 100 for i in range(120)]  # 12,000 tokens; a step takes 4,096
    made = engine.generate(prompts, Sampling(max_tokens=2, min_tokens=2), range(120))
    assert [len(one.token_ids) for one in made] == [2] * 120


def test_a_completion_ends_with_the_id_that_ended_it(engine: VllmEngine) -> None:
    end = engine.ends[0]
    made = engine.generate(PROMPTS * 4, Sampling(max_tokens=40), range(len(PROMPTS) * 4))
    stopped = [c for c in made if c.finish_reason == "stop"]
    assert stopped and len(stopped) < len(made)
    assert all(c.token_ids[-1] == end and end not in c.token_ids[:-1] for c in stopped)
    assert all(len(c.token_ids) == 40 and end not in c.token_ids for c in made if c.finish_reason == "length")
    other = made[0].token_ids[3]
    again = engine.generate(PROMPTS[:1], Sampling(max_tokens=40, stop_token_ids=(other,)), [0])[0]
    assert again.finish_reason == "stop"
    assert again.token_ids == made[0].token_ids[: made[0].token_ids.index(other) + 1]
    long = engine.generate(PROMPTS, Sampling(max_tokens=12, min_tokens=12), SEEDS)
    assert all(len(c.token_ids) == 12 and end not in c.token_ids[:-1] for c in long)


def test_swapping_weights_with_a_tied_head(
    engine: VllmEngine, tiny: Path, tmp_path: Path, make_model: Any, log_softmax: Any
) -> None:
    before = engine.generate(PROMPTS, SAMPLING, SEEDS)
    other = make_model(tmp_path / "other", seed=5)
    swap(engine, other)
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    after = engine.generate(PROMPTS, SAMPLING, SEEDS)
    for prompt, made in zip(PROMPTS, after, strict=True):
        assert made.logprobs == pytest.approx(log_softmax(model, prompt, made.token_ids), abs=1e-4)
    with pytest.raises(ValueError, match="tensors are missing"):
        engine.load_weights((n, p) for n, p in model.named_parameters() if "mlp" not in n)
    swap(engine, tiny)
    assert engine.generate(PROMPTS, SAMPLING, SEEDS) == before


def test_swapping_weights_with_an_untied_head(untied: Path, tmp_path: Path, make_model: Any, log_softmax: Any) -> None:
    other = make_model(tmp_path / "other", tied=False, seed=6)
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    with VllmEngine(str(untied), kv_cache_gib=1) as engine:
        swap(engine, other)
        for prompt, made in zip(PROMPTS, engine.generate(PROMPTS, SAMPLING, SEEDS), strict=True):
            assert made.logprobs == pytest.approx(log_softmax(model, prompt, made.token_ids), abs=1e-4)
