"""Model FLOPs utilisation of `pretrain`: its own step (reading, passes, clipping, AdamW) over the fastest product of this GPU.

Weights are float32 and products bfloat16, as the stage has them. What is recomputed in the backward pass does not count as work.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import torch

from benchmarks.parts.gpu.scene import Scene
from engine.store.artifact import Artifact
from training.hardware import flops
from training.hardware.memory import Shape, pretraining
from training.pretrain import llama
from training.pretrain.stage import Pretrain
from training.pretrain.work import Pretraining

GIB = 2**30
SECONDS = 8.0  # of steps that are counted


@dataclass(frozen=True)
class Way:
    """How a step's blocks go through the model."""

    batch: int
    micro_batch: int
    recompute: bool = False


# A step is long enough that the optimizer, which reads 28 bytes a weight, is a small part of it.
WAYS = {
    "350M": [Way(64, 16)],
    "1.3B": [Way(32, 8)],
    "7B": [Way(16, 1), Way(16, 4, recompute=True)],
}


def utilisation(scene: Scene, size: str) -> None:
    peak = flops.measured_peak(scene.device, torch.bfloat16, scene.whole(20, 2))
    scene.tell(peak_tflops=round(peak / 1e12, 6), length=scene.length)
    tokens, found = scene.tokens(scene.whole(64, 8)), list[dict[str, Any]]()
    for way in WAYS[size]:
        measure(scene, size, Way(4, 2, way.recompute) if scene.tiny else way, tokens, peak, found)
        gc.collect()
        scene.forget()


def measure(scene: Scene, size: str, way: Way, tokens: Artifact, peak: float, found: list[dict[str, Any]]) -> None:
    """Add to `found` and tell what one way gives, as it is and compiled."""
    about = {"batch": way.batch, "micro_batch": way.micro_batch, "recompute": way.recompute}
    stage = Pretrain.model_validate({
        "size": scene.size(size), "batch": way.batch, "micro_batch": way.micro_batch, "recompute": way.recompute,
        "dtype": "bfloat16", "steps": 1000, "seed": 0,
    })  # fmt: skip
    job = scene.job(f"pretrain-{size}-{len(found)}", lambda event: None, tokens=tokens)
    try:
        with patch("training.pretrain.work.initial_model", on_device(scene.device)):
            run = Pretraining(stage, job)
    except torch.OutOfMemoryError as error:
        found.append({**about, "out_of_memory": first_line(error)})
        scene.tell(ways=found)
        return
    parameters = sum(p.numel() for p in run.model.parameters())
    shape = cast(Shape, run.config)
    need = pretraining(shape, way.micro_batch, scene.length, recompute=way.recompute).total / GIB
    # A CPU's compiler takes longer than all else here.
    for compiled in (False, True) if torch.cuda.is_available() else (False,):
        run.forward = torch.compile(run.model) if compiled else run.model
        one: dict[str, Any] = {**about, "compiled": compiled, "counted_memory_gib": round(need, 2)}
        scene.forget()
        try:
            seconds = step_seconds(scene, run)
        except torch.OutOfMemoryError as error:
            one["out_of_memory"] = first_line(error)
            for optimizer in run.optimizers:
                optimizer.zero_grad(set_to_none=True)
        else:
            rate = way.batch * scene.length / seconds
            mfu = flops.by_token(shape, scene.length) * rate / peak
            memory = flops.peak_memory(scene.device) / GIB
            one |= {
                "step_s": round(seconds, 4),
                "tokens_per_s": round(rate),
                "mfu": round(mfu, 4),
                "memory_gib": round(memory, 2),
            }
        found.append(one)
        reached = [way["mfu"] for way in found if "mfu" in way]
        scene.tell(ways=found, parameters=parameters, **({"mfu": max(reached)} if reached else {}))


def step_seconds(scene: Scene, run: Pretraining) -> float:
    """Seconds a step, on average over some seconds of them after two that warm up."""
    step: Callable[[int], Any] = run._step  # pyright: ignore[reportPrivateUsage]
    for number in range(2):
        step(number)
    scene.wait()
    started, done = time.perf_counter(), 0
    while done < 2 or (time.perf_counter() - started < SECONDS and not scene.tiny):
        step(done)
        done += 1
        scene.wait()
    return (time.perf_counter() - started) / done


def on_device(device: torch.device) -> Callable[..., llama.Llama]:
    """Random weights made where they are used, in a second: a CPU takes a minute to draw seven billion. Only what they are worth is another
    matter, which nobody asks here."""

    def made(config: Any, seed: int, dtype: torch.dtype) -> llama.Llama:
        torch.manual_seed(seed)
        with device:
            model = llama.Llama(config, dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.02 if ".layers." not in name else parameter.shape[1] ** -0.5)
        return model

    return made


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
