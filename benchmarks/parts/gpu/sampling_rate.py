"""Tokens a second that `candidates` samples from a 1.3B model, loading left out, and what vLLM alone gives a script: four answers a prompt
with their log-probabilities, each ending where one of many ids is drawn, so at all lengths up to 256.

vLLM's script takes its defaults and has ids turned into text; `candidates` asks an engine in a process of its own, with a seed for each
answer, turns ids into text itself, and writes rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.generation import Kept, candidates
from benchmarks.parts.gpu.scene import Scene
from generators.backends.open import open_engine
from generators.text.chat_template import ChatTemplate
from generators.text.prompts import load_tokenizer

N = 4
ROUNDS = 3
GPU_SHARE = 0.85


def longest(scene: Scene) -> int:
    return scene.whole(256, 16)


def options(scene: Scene) -> dict[str, Any]:
    return {
        "dtype": "auto",
        "max_model_len": scene.whole(1024, 64),
        "gpu_memory_utilization": GPU_SHARE,
        "kv_cache_gib": 1,
    }


def prompts(scene: Scene, turn: int) -> list[dict[str, Any]]:
    """Those of a round; of the one that warms up, which is 0, a few."""
    random, count = np.random.default_rng(3 + turn), scene.whole(768, 8) if turn else scene.whole(64, 4)
    return [
        {"id": f"{turn:02x}{i:030x}", "prompt": [{"role": "user", "content": scene.text(random, words)}]}
        for i, words in enumerate(scene.lengths(count, scene.length // 8))
    ]  # fmt: skip


def rate(scene: Scene, sample: Callable[[int], tuple[int, float]]) -> None:
    """Tell tokens a second over all rounds so far, after one that warms up.

    Args:
        sample: a round; its tokens and seconds.
    """
    tokens, seconds, each = 0, 0.0, list[int]()
    asked = len(prompts(scene, 1)) * N
    sample(0)
    for turn in range(1, 1 + scene.whole(ROUNDS, 1)):
        made, took = sample(turn)
        tokens, seconds = tokens + made, seconds + took
        each.append(round(made / took))
        scene.tell(
            tokens_per_s=round(tokens / seconds, 1), rounds=each, answers=len(each) * asked,
            mean_tokens=round(tokens / (len(each) * asked), 1),
        )  # fmt: skip


def ours(scene: Scene) -> None:
    model = scene.model("1.3B")
    tokenizer = load_tokenizer(model.location)
    engine = open_engine("vllm", model.location, **options(scene))

    def sample(turn: int) -> tuple[int, float]:
        rows = scene.rows("Prompt", prompts(scene, turn))
        made, seconds = candidates(
            scene.store, model, rows, Kept(engine, tokenizer), n=N, max_tokens=longest(scene), partition=512
        )
        return made.manifest["summary"]["tokens_out"], seconds

    rate(scene, sample)
    engine.close()


def bare(scene: Scene) -> None:
    model = scene.model("1.3B")
    template = ChatTemplate(load_tokenizer(model.location))
    engine = open_engine("vllm", model.location, apart=False, **options(scene))
    llm: Any = engine._llm  # pyright: ignore[reportPrivateUsage]

    def sample(turn: int) -> tuple[int, float]:
        from vllm import SamplingParams

        ids = [template.prompt(row["prompt"]) for row in prompts(scene, turn)]
        started = time.perf_counter()
        asked = SamplingParams(n=N, temperature=1.0, max_tokens=longest(scene), logprobs=0, stop_token_ids=scene.ends)
        outputs = llm.generate([{"prompt_token_ids": one} for one in ids], asked, use_tqdm=False)
        made = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
        return made, time.perf_counter() - started

    rate(scene, sample)
    engine.close()
