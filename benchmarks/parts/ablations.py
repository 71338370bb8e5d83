"""What each part of the best recipe for Shakespeare by characters is worth: the recipe with that part changed, over three seeds.

A part's worth is the validation loss at the same number of steps, seed by seed less the recipe's, with Student's interval over seeds.
How many steps the changed recipe would need to the published loss follows from how the recipe's own loss falls with its steps. Time is
told in CPU milliseconds a step, of a machine that may do other things.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

from benchmarks.parts.claims import Claim, claim
from engine.stage.job import Job
from engine.statistics.differences import crossed_mean
from engine.store.artifact import Artifact
from engine.store.store import Store
from training.pretrain.stage import Pretrain
from training.pretrain.work import Pretraining

PUBLISHED = 1.88  # nanoGPT's README, validation loss of the CPU recipe
SHAPE = {"depth": 4, "heads": 4, "width": 128}
BEST: dict[str, Any] = {
    "batch": 12, "steps": 360, "optimizer": "normuon", "family": "qwen3", "lr": 1e-2, "schedule": "wsd", "decay": 0.5, "final_lr": 0.0,
    "warmup": 36,
}  # fmt: skip
SEEDS = (0, 1, 2)
# What of the recipe is taken back, and what is put in its place.
PARTS: dict[str, dict[str, Any]] = {
    "rows of Muon's updates made equal (NorMuon)": {"optimizer": "muon"},
    "an orthogonal update (AdamW in its place)": {"optimizer": "adamw", "lr": 5e-3},
    "queries and keys normalised (Qwen3; Llama in its place)": {"family": "llama"},
    "a rate that stays and then falls in a line (cosine in its place)": {"schedule": "cosine"},
    "falling over a half (the last three tenths in its place)": {"decay": 0.3},
    "falling to nothing (to a tenth in its place)": {"final_lr": 0.1},
    "a rise over a tenth of the steps (none in its place)": {"warmup": 1},
    "weights that decay": {"weight_decay": 0.0},
}
# What others do and the recipe doesn't: worse, or not better beyond noise.
OTHERS: dict[str, dict[str, Any]] = {
    "twice the rate": {"lr": 2e-2},
    "half the rate": {"lr": 5e-3},
    "falling from the start": {"decay": 1.0},
    "a head of its own": {"size": {**SHAPE, "tied": False}},
    "gradients as long as they are": {"clip": 1e6},
}


def held_out(data: np.ndarray, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(data)
    count = (len(ids) - 1) // block
    return ids[: count * block].view(-1, block), ids[1 : count * block + 1].view(-1, block)


def started(stage: Pretrain, artifact: Artifact, store: Store) -> Pretraining:
    return Pretraining(
        stage, Job(store, f"run-{time.monotonic_ns()}", "Model", {"tokens": {"t": artifact}}, stage.seed or 0)
    )


def trained(
    artifact: Artifact, data: np.ndarray, store: Store, seed: int, config: dict[str, Any]
) -> tuple[float, float]:
    """(nats a character of all that is held out, CPU seconds a step)."""
    settings: dict[str, Any] = {"size": SHAPE, **BEST, **config}
    run = started(Pretrain(seed=seed, **settings), artifact, store)
    clock = time.process_time()
    for number in range(run.steps):
        run._step(number)  # pyright: ignore[reportPrivateUsage]
    seconds = (time.process_time() - clock) / run.steps
    x_NT, y_NT = held_out(data, 64)
    with torch.no_grad():
        nats = sum(float(run.model(x, y)) for x, y in zip(x_NT.split(100), y_NT.split(100), strict=True))
    return nats / y_NT.numel(), seconds


def about_ablations(
    artifact: Artifact, data: np.ndarray, store: Store, quick: bool
) -> tuple[dict[str, Any], list[Claim]]:
    """Train the recipe, the recipe in fewer and more steps, and the recipe with each part changed.

    Args:
        data: the ids that are held out.
        quick: hardly any steps, to see that it runs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices of these widths gain little from a second
    steps = 8 if quick else int(BEST["steps"])
    data = data[: 64 * 40 + 1] if quick else data
    found: dict[str, Any] = {}

    def over_seeds(name: str, config: dict[str, Any]) -> np.ndarray:
        many = {"steps": steps, "warmup": steps // 10, **config}
        runs = [trained(artifact, data, store, seed, many) for seed in SEEDS]
        losses = np.array([loss for loss, _ in runs])
        found[name] = {
            "loss": losses.round(4).tolist(),
            "cpu_ms_a_step": round(1000 * min(s for _, s in runs), 1),
        }
        return losses

    whole = over_seeds("the recipe", {})
    horizons = {steps: whole}
    for share in (3, 5):
        horizon = steps * share // 4
        horizons[horizon] = over_seeds(f"in {horizon} steps", {"steps": horizon, "warmup": horizon // 10})
    fall = float(np.polyfit(np.log(list(horizons)), [losses.mean() for losses in horizons.values()], 1)[0])

    def needed(losses: np.ndarray) -> int | None:
        """Steps to the published loss, as far as the recipe's own fall tells."""
        return round(steps * math.exp((PUBLISHED - losses.mean()) / fall)) if fall < 0 else None

    found["the recipe"]["steps_to_published"] = needed(whole)
    claims: list[Claim] = []
    for name, config in (PARTS | OTHERS).items():
        losses = over_seeds(name, config)
        told = crossed_mean((losses - whole)[None])
        found[name] |= {"more": [told.value, told.low, told.high], "steps_to_published": needed(losses)}
        if name in PARTS:
            claims.append(
                claim(f"best recipe: {name} lowers the loss at {steps} steps, by nats a character", round(told.value, 4),
                      "> 0 beyond noise, three seeds", told.low > 0, interval=[told.low, told.high])
            )  # fmt: skip
        else:
            claims.append(
                claim(f"best recipe: {name} would not lower the loss, by nats a character", round(-told.value, 4),
                      "not > 0 beyond noise, three seeds", told.high >= 0, interval=[-told.high, -told.low])
            )  # fmt: skip
    torch.set_num_threads(threads)
    return {"nats_by_log_steps": fall, "runs": found}, claims
