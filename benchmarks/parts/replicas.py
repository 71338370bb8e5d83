"""Engines that are handed on between stages, and replicas that share a stage's partitions.

    python -m benchmarks.parts.replicas

Weights are random; an answer ends where one of eight ids is drawn, at all lengths up to a bound.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.generation import Copied, Made, small_llama
from engine.execution.worker import carry_out
from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.backends.process.watched import WatchedEngine
from generators.backends.protocol import Completion, Failure, Sampling
from generators.candidates.stage import Candidates

ENDS = list(range(40, 48))  # of 287 ids: 36 tokens on average, and some many times as long
STAGES = """\
  hot: {{kind: candidates, from: {{model: {model}, prompts: {prompts}}}, n: 2, max_tokens: 24, partition: 16}}
  cold: {{kind: candidates, from: {{model: {model}, prompts: {prompts}}}, n: 2, max_tokens: 24, temperature: 0.5, partition: 16}}
  rated: {{kind: judge, from: {{model: {model}, candidates: hot}}, rubric: true, max_failed: 1.0, max_tokens: 96}}
  written: {{kind: corpus, from: {{model: {model}, records: {texts}}}, documents: 16, styles: [wrap_easy], max_failed: 1.0, max_tokens: 24}}
  found: {{kind: grounded, from: {{model: {model}, prompts: {prompts}, documents: {texts}}}, max_tokens: 24}}
  talked: {{kind: dialogue, from: {{model: {model}, prompts: {prompts}}}, turns: 2, max_tokens: 16, user_max_tokens: 16, partition: 16}}
"""
RUN = """\
import json, sys
import flywheel
recipe, store, *alone = sys.argv[1:]
made = {}
for only in [[name] for name in alone] or [None]:
    made |= flywheel.run(recipe, store=store, only=only)
print(json.dumps({name: artifact.digest for name, artifact in made.items()}))
"""


def handed_on(stages: int = 6) -> dict[str, Any]:
    """CPU seconds of small stages over one model: in one run, and in a run each, which hand nothing on."""
    from tests.generators.conftest import build_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_model(folder / "model", context=1024)
        rows = [{"id": f"{i:032x}", "prompt": f"What is {i} times {i * 7}?"} for i in range(16)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "texts.jsonl").write_text(
            "".join(json.dumps({"text": f"{i} is a number."}) + "\n" for i in range(16))
        )
        lines = STAGES.format(model=model, prompts="./prompts.jsonl", texts="./texts.jsonl").splitlines()[:stages]
        recipe = folder / "six.yaml"
        recipe.write_text("\n".join(["name: six", "seed: 7", "stages:", *lines]) + "\n")
        names = [line.strip().partition(":")[0] for line in lines]
        alone_s, alone = _run(recipe, folder / "alone", names)
        together_s, together = _run(recipe, folder / "together", [])
        return {
            "stages": len(lines), "alone_cpu_s": alone_s, "handed_on_cpu_s": together_s, "bar": 0.4,
            "ratio": round(together_s / alone_s, 3), "same_bytes": alone == together,
        }  # fmt: skip


def _run(recipe: Path, store: Path, alone: list[str]) -> tuple[float, dict[str, str]]:
    """CPU seconds of a run with all that it starts, and the digests that it ends with."""
    command = [sys.executable, "-c", RUN, str(recipe), str(store), *alone]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, spent = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the run of {recipe} ended with {process.returncode}")
    return round(spent.ru_utime + spent.ru_stime, 1), json.loads(said)


class Timed(WatchedEngine):
    """An engine whose batches are noted, and that outlives the stages it answers for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.batches: list[tuple[float, float]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        started = time.monotonic()
        try:
            return super().generate(prompts, sampling, seeds)
        finally:
            self.batches.append((started, time.monotonic()))


@contextmanager
def timed() -> Generator[list[Timed]]:
    """Within this, engines that stages start here are `Timed`: the first time each of them, later the same again, by number."""
    started: list[Timed] = []
    left: list[Timed] = []

    def start(*arguments: Any, **options: Any) -> Timed:
        if not left:
            left.append(Timed(*arguments, **options))
            started.append(left[-1])
        return left.pop()

    with (
        patch("generators.backends.open.WatchedEngine", start),
        patch.object(Timed, "close", lambda engine: left.append(engine)),
    ):
        yield started
    for engine in started:
        WatchedEngine.close(engine)


@dataclass
class Setting:
    """A model, prompts, and the stage over them, once in every store."""

    folder: Path
    model: Path
    prompts: int
    config: dict[str, Any]
    stores: int = 0

    def run(self, replicas: int) -> Artifact:
        store = Store(str(self.folder / f"store-{self.stores}"))
        self.stores += 1
        model = carry_out(store, "copied", Copied.model_validate({"folder": str(self.model)}), {})
        prompts = carry_out(store, "made", Made.model_validate({"count": self.prompts}), {})
        stage = Candidates.model_validate({"seed": 0, "replicas": replicas, **self.config})
        return carry_out(store, "candidates", stage, {"model": {"m": model}, "prompts": {"p": prompts}})


def unequal(folder: Path, prompts: int) -> Setting:
    """Batches of one answer each, of 1 to 400 tokens."""
    from tests.generators.conftest import build_model

    model = build_model(folder / "model", context=512, eos_token_id=ENDS, initializer_range=0.02)
    config = {"n": 1, "max_tokens": 400, "partition": 1, "options": {"kv_cache_gib": 1}}
    return Setting(folder, model, prompts, config)


def busy_share(replicas: int = 4, prompts: int = 240) -> dict[str, Any]:
    """The share of the time in which replicas have a batch, from when all are loaded to the last answer."""
    with tempfile.TemporaryDirectory() as name, timed() as engines:
        made = unequal(Path(name), prompts).run(replicas)
        lengths = [len(ids) for ids in made.to_table(["token_ids"])["token_ids"].to_pylist()]
        begin = max(engine.batches[0][0] for engine in engines)
        end = max(engine.batches[-1][1] for engine in engines)
        busy = sum(max(0.0, b - max(a, begin)) for engine in engines for a, b in engine.batches)
        return {
            "replicas": len(engines), "batches": [len(engine.batches) for engine in engines], "bar": 0.9,
            "busy": round(busy / (end - begin) / len(engines), 3), "seconds": round(end - begin, 1),
            "tokens": {"least": min(lengths), "mean": round(sum(lengths) / len(lengths), 1), "most": max(lengths)},
        }  # fmt: skip


def killed(replicas: int = 4, prompts: int = 80) -> dict[str, Any]:
    """One of the replicas is killed in the middle of a batch: rows that are lost, rows that are there twice, and the bytes."""
    with tempfile.TemporaryDirectory() as name, timed() as engines:
        setting = unequal(Path(name), prompts)
        truth = setting.run(1)
        answered = len(engines[0].batches)

        def kill() -> None:
            while sum(len(engine.batches) for engine in engines) < answered + prompts // 2:
                time.sleep(0.01)
            victim = engines[0].pid
            if victim:
                os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        made = setting.run(replicas)
        killer.join()
        rows = [(row["prompt_id"], row["sample"]) for row in made.to_table(["prompt_id", "sample"]).to_pylist()]
        return {
            "replicas": len(engines), "deaths": sum(engine.deaths for engine in engines), "prompts": prompts,
            "lost": prompts - len(set(rows)), "doubled": len(rows) - len(set(rows)),
            "same_bytes": made.digest == truth.digest,
        }  # fmt: skip


def over_bare(replicas: int = 2, prompts: int = 512, turns: int = 2) -> dict[str, Any]:
    """Tokens a second of the stage with replicas, over those of the same engines asked directly, each its part of the batches."""
    tokens, seconds = {"stage": 0, "bare": 0}, {"stage": 0.0, "bare": 0.0}
    with tempfile.TemporaryDirectory() as name, timed() as engines:
        folder = Path(name)
        config = {"n": 4, "max_tokens": 128, "partition": max(1, prompts // (8 * replicas))}
        setting = Setting(folder, small_llama(folder / "model", ENDS), prompts, config)
        asked = list[tuple[list[list[int]], Sampling, list[int]]]()
        generate = Timed.generate

        def heard(engine: Timed, prompts: Any, sampling: Sampling, seeds: Any) -> Any:
            asked.append((prompts, sampling, seeds))
            return generate(engine, prompts, sampling, seeds)

        with patch.object(Timed, "generate", heard):
            setting.run(replicas)  # loads them, and tells what is asked
        for _ in range(turns):
            made = setting.run(replicas)
            seconds["stage"] += made.manifest["timings"]["wall_s"]
            tokens["stage"] += made.manifest["summary"]["tokens_out"]
            started = time.monotonic()
            with ThreadPoolExecutor(replicas) as pool:
                parts = [asked[number::replicas] for number in range(replicas)]
                answers = list(pool.map(_answered, engines, parts))
            seconds["bare"] += time.monotonic() - started
            tokens["bare"] += sum(answers)
        rates = {name: tokens[name] / seconds[name] for name in tokens}
        return {
            "replicas": replicas, "tokens_per_s": {name: round(rate) for name, rate in rates.items()}, "bar": 0.95,
            "share": round(rates["stage"] / rates["bare"], 3), "tokens": tokens,
        }  # fmt: skip


def _answered(engine: Timed, batches: list[tuple[list[list[int]], Sampling, list[int]]]) -> int:
    made = [one for batch in batches for one in WatchedEngine.generate(engine, *batch)]
    return sum(len(one.token_ids) for one in made if isinstance(one, Completion))


if __name__ == "__main__":
    parts = {"handed_on": handed_on, "busy_share": busy_share, "killed": killed, "over_bare": over_bare}
    chosen = sys.argv[1:] or list(parts)
    print(json.dumps({name: parts[name]() for name in chosen}, indent=1))
