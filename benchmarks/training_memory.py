"""What each trainer takes of this machine, with a real vocabulary: memory against the plan, and CPU seconds.

    make weights
    python -m benchmarks.training --json --only memory [--before CHECKOUT]

SmolLM2-135M (49,152 ids; a lossy copy in four bits) learns by LoRA, each stage in a process of its own that tells its highest
resident memory, its CPU seconds and its losses. With `--before`, a checkout of an older version does the same work, and shares of its
CPU seconds and its losses stand beside.
"""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import Claim, claim

ROOT = Path(__file__).parents[1]
COUNTRIES = ROOT / "recipes" / "quickstart" / "countries.csv"
GIB = 2**30
LORA: dict[str, Any] = {"r": 16, "alpha": 32}
LEARNT: dict[str, Any] = {"lora": LORA, "max_length": 128, "lr": 5e-5, "seed": 7}
SAMPLED: dict[str, Any] = {"lora": LORA, "rollouts": 16, "max_tokens": 64, "iterations": 2, "lr": 5e-5, "seed": 7}
SUMS = {"right": "STRPOS(completion, reference) > 0"}
# kind -> settings, GiB at most, and the share of the CPU seconds of before at most
STAGES: dict[str, tuple[dict[str, Any], float, float | None]] = {
    "sft": ({**LEARNT, "batch": 4, "steps": 4}, 2, 0.65),
    "dpo": ({**LEARNT, "batch": 16}, 4, 0.5),
    "reward": ({**LEARNT, "batch": 16, "held_out": 0.0}, 4, 0.65),
    "kto": ({**LEARNT, "batch": 32}, 4, None),
    "grpo": ({**SAMPLED, "rules": SUMS, "samples": 8}, 6, None),
    "ppo": ({**SAMPLED, "rules": SUMS}, 5, 0.65),
}
# The same work at four times the batch, for the plan alone.
LARGER = {"sft": {"batch": 16, "steps": 1}, "dpo": {"batch": 64}, "reward": {"batch": 64}, "kto": {"batch": 128}}
TOLERANCE = 0.02  # of losses: two roundings to bfloat16's eight bits on the way


def rows(kind: str) -> list[dict[str, Any]]:
    """Made-up rows whose lengths vary up to the 128 tokens that the stages take."""
    countries = list(csv.DictReader(COUNTRIES.open(encoding="utf-8")))
    draw = random.Random(7)

    def facts(count: int) -> str:
        return " ".join("The capital of {country} is {capital}.".format(**c) for c in draw.sample(countries, count))

    def turn(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    def made() -> Iterator[dict[str, Any]]:
        for i in range(32):
            prompt = [turn("user", f"Name the capitals of {i % 9 + 1} countries.")]
            row: dict[str, Any] = {"id": f"row{i}", "prompt_id": f"prompt{i}"}
            if kind == "Conversation":
                yield row | {"messages": [*prompt, turn("assistant", facts(i % 9 + 1))]}
            elif kind == "Preference":
                sides = (facts(i % 9 + 1), facts((i * 5) % 9 + 1).lower())
                yield row | {"prompt": prompt, **{s: [turn("assistant", t)] for s, t in zip(("chosen", "rejected"), sides, strict=True)}, "split": "train"}  # fmt: skip
            else:
                a, b = draw.randrange(10, 60), draw.randrange(10, 40)
                yield row | {"prompt": [turn("user", f"How much is {a} + {b}?")], "reference": str(a + b)}

    return list(made())


def one(kind: str, model: str, changed: dict[str, Any]) -> dict[str, Any]:
    """One stage, here and now: what it took, what was planned, what it learnt."""
    from benchmarks.parts.claims import artifact
    from engine.execution.worker import carry_out
    from engine.stage.stage import Device, load
    from engine.store.store import Store
    from tests.training import tiny_chat

    port, made_of, source = {
        "sft": ("model", "Conversation", "conversations"), "reward": ("model", "Preference", "preferences"),
        "dpo": ("policy", "Preference", "preferences"), "kto": ("policy", "Preference", "preferences"),
        "grpo": ("policy", "Prompt", "prompts"), "ppo": ("policy", "Prompt", "prompts"),
    }[kind]  # fmt: skip
    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        policy = tiny_chat.artifact(store, Path(model))
        given = artifact(store, made_of, rows(made_of))
        stage = load(kind).model_validate({**STAGES[kind][0], **changed})
        known = {"config": json.loads((Path(model) / "config.json").read_text())}
        planned = stage.forecast(
            {port: [known], source: [{"rows": 32}]}, Device("this machine", 2**50, False)
        )  # nothing does not fit: the plan's number alone is wanted
        started, spent = time.monotonic(), time.process_time()
        carry_out(store, kind, stage, {port: {"model": policy}, source: {"rows": given}}, emit=events.append)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        metrics = [event for event in events if "step" in event and "loss" in str(event)]
    return {
        "planned": round(planned.get("memory", 0) / GIB, 2),
        "needs": planned.get("needs"),
        "peak": round(usage.ru_maxrss * 1024 / GIB, 2),
        "cpu_s": round(time.process_time() - spent, 1),
        "seconds": round(time.monotonic() - started, 1),
        "metrics": metrics,
    }


def measure(kind: str, model: Path, checkout: Path = ROOT, /, **changed: Any) -> dict[str, Any]:
    """`one` in a process of its own, by the code of a checkout. On one thread: others would spin while they wait for a core."""
    from engine.stage.stage import load

    own = load(kind).environment if checkout == ROOT else {}  # older versions have none
    command = [sys.executable, "-P", __file__, kind, str(model), json.dumps(changed)]
    done = subprocess.run(
        command,
        env={**own, **os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{kind} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind:<8}{changed or ''} {found['planned']:>6} GiB planned {found['peak']:>6} GiB {found['cpu_s']:>7} CPU s", file=sys.stderr, flush=True)  # fmt: skip
    return found


def smollm2(folder: Path) -> Path:
    """The real model as a Hugging Face folder."""
    from benchmarks.real import MODEL, gguf_file
    from engine.plan.inputs import resolve
    from engine.store.store import Store

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MODEL).exists():
        (folder / MODEL).symlink_to(gguf_file())
    store = Store(str(folder / "store"))
    return resolve(MODEL, folder, ("Model",), store).adopt(store).path


def with_ids(model: Path, folder: Path, ids: int) -> Path:
    """The same model with a vocabulary of so many ids; the rows of the new ones are noise."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    wide: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, trust_remote_code=False)
    wide.resize_token_embeddings(ids)
    wide.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model, trust_remote_code=False).save_pretrained(folder)
    return folder


def about_memory(
    folder: Path, before: Path | None = None, kinds: Sequence[str] = tuple(STAGES)
) -> tuple[dict[str, Any], list[Claim]]:
    """Every stage as it is, at a larger batch, and with 152,000 ids; what is claimed of that.

    Args:
        before: a checkout of an older version, which does the same work.
    """
    model = smollm2(folder)
    found: dict[str, Any] = {}
    claims: list[Claim] = []

    def planned(name: str, one: dict[str, Any]) -> None:
        gap = one["planned"] / one["peak"] - 1
        claims.append(claim(f"{name}: the plan beside the peak", round(gap, 3), "within 0.15", abs(gap) <= 0.15))

    for kind in kinds:
        _, most, share = STAGES[kind]
        now = found[kind] = measure(kind, model)
        claims.append(claim(f"{kind}: peak, GiB", now["peak"], f"<= {most}", now["peak"] <= most))
        planned(kind, now)
        if before is None or share is None:
            continue
        then = found[f"{kind}, before"] = measure(kind, model, before)
        ratio = now["cpu_s"] / then["cpu_s"]
        claims.append(claim(f"{kind}: CPU seconds of before", round(ratio, 3), f"<= {share}", ratio <= share))
        first = [one["metrics"][0].get("loss") for one in (now, then)]
        if None not in first:
            apart = abs(first[0] / first[1] - 1)
            claims.append(claim(f"{kind}: first loss beside that of before", round(apart, 4), f"<= {TOLERANCE}", apart <= TOLERANCE))  # fmt: skip
    for kind, changed in LARGER.items():
        if kind in kinds:
            found[f"{kind}, four times the batch"] = more = measure(kind, model, **changed)
            planned(f"{kind}, four times the batch", more)
    wide = with_ids(model, folder / "wide", 152_000)
    for kind in ("sft", "dpo", "reward"):
        if kind in kinds:
            found[f"{kind}, 152,000 ids"] = more = measure(kind, wide)
            planned(f"{kind}, 152,000 ids", more)
    return found, claims


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])), default=str))
