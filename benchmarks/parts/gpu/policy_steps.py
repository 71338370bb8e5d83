"""Seconds that a step of GRPO takes on a 1.3B policy, sampling by vLLM included: the stage `grpo` as it is, and TRL's GRPOTrainer with vLLM
beside it in its process (`colocate`).

A step is of 128 answers of at most 256 tokens, eight a prompt, learnt from once. The reward is the length, so that neither waits for one.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.parts.gpu.rows import Skipped
from benchmarks.parts.gpu.scene import Scene
from training.hardware import flops
from training.rl.grpo_stage import Grpo

SAMPLES = 8
GPU_SHARE = 0.3  # of the memory, for vLLM
PASS = 32  # answers at once: what `grpo` finds to fit four gibibytes at this length, and TRL is given, too


def iterations(scene: Scene) -> int:
    return scene.whole(6, 2)


def rollouts(scene: Scene) -> int:
    return scene.whole(128, 16)


def longest(scene: Scene) -> int:
    return scene.whole(256, 8)


def prompts(scene: Scene) -> list[dict[str, Any]]:
    random = np.random.default_rng(2)
    return [
        {"id": f"{i:032x}", "prompt": [{"role": "user", "content": scene.text(random, words)}]}
        for i, words in enumerate(scene.lengths(64, scene.length // 8))
    ]


@dataclass
class Ticks:
    """Tells the middle one of the seconds that the steps after the first take, and most memory that torch has held."""

    scene: Scene
    seen: list[float] = field(default_factory=lambda: [])

    def step(self) -> None:
        self.scene.wait()
        self.seen.append(time.perf_counter())
        if len(self.seen) > 1:
            took = [after - before for before, after in zip(self.seen, self.seen[1:], strict=False)]
            self.scene.tell(
                steps=len(took), step_s=round(statistics.median(took), 4),
                memory_gib=round(flops.peak_memory(self.scene.device) / 2**30, 3),
            )  # fmt: skip


def ours(scene: Scene) -> None:
    ticks, parts = Ticks(scene), dict[str, list[float]]()

    def listen(event: dict[str, Any]) -> None:
        if event["event"] != "metric":
            return
        ticks.step()
        for name in ("seconds/sampling", "seconds/looking_back", "seconds/scoring", "length", "sampler_gap"):
            if len(ticks.seen) > 1 and name in event:
                parts.setdefault(name, []).append(event[name])
        scene.tell(**{name: round(statistics.median(values), 4) for name, values in parts.items()})

    stage = Grpo.model_validate({
        "iterations": iterations(scene), "rollouts": rollouts(scene), "samples": SAMPLES, "max_tokens": longest(scene),
        "rules": {"brief": "-0.01 * length"}, "checkpoint_every": 10_000, "gpu_share": GPU_SHARE, "seed": 0,
        "dtype": "auto" if scene.tiny else "bfloat16",
    })  # fmt: skip
    job = scene.job("grpo", listen, policy=scene.model("1.3B"), prompts=scene.rows("Prompt", prompts(scene)))
    scene.forget()
    stage.run(job)


def trl(scene: Scene) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    gpu = torch.cuda.is_available()
    if gpu and importlib.util.find_spec("vllm") is None:
        raise Skipped("`vllm` is not installed here")
    ticks = Ticks(scene)

    class Listener(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "train_runtime" not in logs:
                ticks.step()
                length = logs.get("completions/mean_length")
                scene.tell(**({} if length is None else {"length": length}))

    def brief(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [-0.01 * len(ids) for ids in completion_ids]

    folder, answers = scene.model("1.3B").location, rollouts(scene)
    size = min(PASS, answers)
    scene.forget()
    # Weights that are learnt are float32, as in `grpo`. On a CPU TRL samples by transformers: its vLLM wants a GPU.
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    args = GRPOConfig(
        output_dir=str(scene.folder / "trl"), max_steps=iterations(scene), per_device_train_batch_size=size,
        gradient_accumulation_steps=answers // size, num_generations=SAMPLES, max_completion_length=longest(scene),
        learning_rate=1e-6, beta=0.05, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        bf16=gpu, use_cpu=not gpu, dataloader_pin_memory=gpu, seed=0, use_vllm=gpu, vllm_mode="colocate",
        vllm_gpu_memory_utilization=GPU_SHARE, vllm_max_model_length=scene.length,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": row["prompt"]} for row in prompts(scene)])
    GRPOTrainer(
        model=model, reward_funcs=[brief], args=args, train_dataset=rows, processing_class=scene.tokenizer(),
        callbacks=[Listener()],
    ).train()  # fmt: skip
