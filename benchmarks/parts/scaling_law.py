"""Whether four small pretrainings foretell a fifth: `flywheel scaling`'s law, fitted to four widths of two layers that read Shakespeare by characters,
against the loss of a model that is trained after it was foretold.

A model reads twenty tokens a parameter, which for the largest is the text four times over: beyond that, what is read again teaches less (Muennighoff
et al. 2023, arXiv:2305.16264).
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from benchmarks.parts.claims import Claim, claim
from engine.execution.worker import carry_out
from engine.store import run_records
from engine.store.artifact import Artifact
from engine.store.store import Store
from training.pretrain.scaling_forecast import as_json, forecast
from training.pretrain.stage import Pretrain

WIDTHS, NEXT = (24, 32, 48, 64), 96
SEEDS = (0, 1)


def size(width: int) -> dict[str, int]:
    return {"depth": 2, "width": width, "heads": 2, "inner": width * 8 // 3}


def about_scaling(tokens: Artifact, store: Store, quick: bool) -> tuple[dict[str, Any], list[Claim]]:
    """Train, foretell, and train what was foretold.

    Args:
        quick: hardly any tokens, to see that it runs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices of these widths gain nothing from a second
    settings: dict[str, Any] = {
        "batch": 16,
        "validation_blocks": 10_000,
        "validation_every": 10**9,
        "tokens_per_parameter": 0.2 if quick else 20,
    }

    def trained(width: int, seed: int) -> Artifact:
        stage = Pretrain(size=size(width), seed=seed, **settings)  # pyright: ignore[reportArgumentType]
        return carry_out(store, "pretrain", stage, {"tokens": {"tokens": tokens}})

    started = time.monotonic()
    for width in WIDTHS:
        for seed in SEEDS:
            entry = {"artifact": trained(width, seed).id, "kind": "pretrain"}
            run_records.update(
                store, f"sizes,base.size.width={width},seed={seed}", lambda _, entry=entry: {"stages": {"base": entry}}
            )
    found = forecast(store, "sizes", [json.dumps(size(NEXT))])
    four = time.monotonic() - started
    (told,) = found.foretold
    made = [trained(NEXT, seed) for seed in SEEDS]
    losses: list[float] = [one.manifest["summary"]["bits_per_byte"] for one in made]
    seconds = [one.manifest["timings"]["wall_s"] for one in made]
    torch.set_num_threads(threads)
    off = max(abs(told.interval.value / loss - 1) for loss in losses)
    result = {
        **as_json(found), "trained": losses, "seconds": {"the four": round(four), "foretold": told.size.seconds, "next": seconds},
        "inside": [told.interval.low <= loss <= told.interval.high for loss in losses],
    }  # fmt: skip
    return result, [
        claim("scaling law of four sizes: the next size's bits a byte, furthest off of its seeds", round(off, 4), "<= .02",
              off <= 0.02, minutes_of_the_four=round(four / 60, 1)),
    ]  # fmt: skip
