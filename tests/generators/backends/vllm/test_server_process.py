"""A real `vllm serve`, killed under its requests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from generators.backends.protocol import Completion, Sampling
from generators.backends.vllm import server_process as served
from generators.backends.vllm.server_process import ServedEngine, flags
from tests.generators.backends.frail import alive


@pytest.mark.slow
@pytest.mark.usefixtures("among_namesakes")
def test_a_served_model_answers_as_it_should_and_survives_being_killed(
    tiny: Path, tmp_path: Path, log_softmax: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[i % 250 + 4, 7, 9] for i in range(64)]
    sampling = Sampling(max_tokens=100)
    said, first, sent = list[str](), 0, 0

    async def send(client: Any, request: dict[str, Any], original: Any = served._send) -> Any:
        nonlocal sent
        sent += 1
        if sent == 40:  # the others before it are under way
            os.killpg(first, signal.SIGKILL)
        return await original(client, request)

    monkeypatch.setattr(served, "_send", send)
    with ServedEngine(str(tiny), tmp_path, said.append, kv_cache_gib=1) as engine:
        assert engine.max_model_len == 128
        first = engine.pid or 0
        assert first
        made = engine.generate(prompts, sampling, range(64))
        assert engine.deaths == 1 and engine.pid != first
        assert said == ["vLLM's server died (exit code -9); starting another."]
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        for prompt, one in zip(prompts, made, strict=True):
            assert isinstance(one, Completion)
            assert (one.token_ids[-1] == engine.ends[0]) == (one.finish_reason == "stop")
            assert one.logprobs == pytest.approx(log_softmax(model, prompt, one.token_ids), abs=1e-4)
        asked = sent
        assert engine.generate(prompts, sampling, range(64)) == made and sent == asked  # from the cache
        last = engine.pid
        assert last is not None
    assert not alive(last)


def test_options_become_flags() -> None:
    assert flags({"max_model_len": 5, "enforce_eager": True, "enable_prefix_caching": False, "seed": None}) == [
        "--max-model-len", "5", "--enforce-eager", "--no-enable-prefix-caching",
    ]  # fmt: skip
    assert flags({"speculative_config": {"method": "ngram"}}) == ["--speculative-config", '{"method": "ngram"}']
