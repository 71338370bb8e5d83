"""SIGKILL at moments of a stage that trains a policy, drawn over what an undisturbed run does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.parts.claims import Claim, claim
from benchmarks.parts.moments import Moments
from benchmarks.parts.moments.sitecustomize import watch
from benchmarks.parts.policies import Bench
from engine.store.store import Store

ROOT = Path(__file__).parents[2]


def kills(bench: Bench, method: str, quick: bool) -> list[Claim]:
    """SIGKILL again and again, each time continued, against a run that was left alone."""
    from tests.training import tiny_chat
    from tests.training.preference_rows import preferences
    from tests.training.tiny_chat import PROMPTS

    count = 2 if quick else 10
    policy = tiny_chat.save(bench.folder / "policy")
    rules = {"right": "completion = reference", "brief": "-0.01 * length"}
    online = {"seed": 3, "rollouts": 64, "max_tokens": 8, "lr": 3e-3, "rules": rules}
    kind, rows, port, config = {
        "ppo": ("Prompt", PROMPTS, "prompts", {**online, "iterations": 12, "target": 1.0}),
        "grpo": ("Prompt", PROMPTS, "prompts", {**online, "iterations": 12, "minibatches": 2, "method": "dapo"}),
        "dpo": ("Preference", preferences(240), "preferences",
                {"seed": 3, "epochs": 40, "batch": 16, "lr": 1e-3, "checkpoint_every": 10}),
    }[method]  # fmt: skip
    given = bench.table(kind, rows)
    spec: dict[str, Any] = {
        "stage": f"training.{method}:{method.title()}",
        "config": config,
        "inputs": {"policy": {"p": ["Model", str(policy)]}, port: {"d": ["", given.id]}},
        "kill_at": None,
    }

    def store(name: str) -> Store:
        folder = bench.folder / name
        (folder / "artifacts").mkdir(parents=True)
        (folder / "artifacts" / given.id).symlink_to(bench.store.path("artifacts", given.id))
        return Store(str(folder))

    forge, whole, killed = Forge(bench.folder), store("whole"), store("killed")
    calm, storm = (Moments(Path(f"{one.root}-moments"), Path(one.root)) for one in (whole, killed))
    try:
        truth = whole.get(forge.run({**spec, "store": whole.url}, calm) or "")
        for moment in calm.draw(count, seed=7):
            storm.arm(moment, "stage")
            assert forge.run({**spec, "store": killed.url}, storm) is None, f"{method} outlived {moment}"
        storm.arm(None)
        end = killed.get(forge.run({**spec, "store": killed.url}, storm) or "")
    finally:
        forge.close()
    assert truth is not None and end is not None
    same = end.digest == truth.digest
    found = [
        claim(f"kill -9 of {method} at random moments: the same result", {"kills": storm.kills, "equal": same},
              f"{count} kills, digests equal", same and storm.kills == count)
    ]  # fmt: skip
    if method != "dpo":
        one, other = (
            Counter(
                (row["prompt_id"], tuple(row["token_ids"]))
                for file in sorted((a.path / "rollouts").glob("*.parquet"))
                for row in pq.read_table(file).to_pylist()
            )
            for a in (truth, end)
        )
        found.append(
            claim(f"{method}: the multiset of (prompt, rollout) consumed is the uninterrupted run's",
                  {"rollouts": one.total(), "distinct": len(one)}, "equal", other == one)
        )  # fmt: skip
    return found


class Forge:
    """A process that has imported everything and forks for every attempt, so that an attempt costs no imports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.alignment", "--forge"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, spec: dict[str, Any], moments: Moments) -> str | None:
        """The artifact's id, or None if it was killed."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({**spec, "moments": str(moments.folder)}) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip() or None

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def forge() -> None:
    """Read a specification a line; fork; answer with what the child made when it is gone."""
    import torch
    import trl.trainer.dpo_trainer  # pyright: ignore[reportUnusedImport]
    import trl.trainer.grpo_trainer  # noqa: F401  # pyright: ignore[reportUnusedImport]

    from generators.backends.vllm.options import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import vllm  # noqa: F401  # pyright: ignore

    torch.set_num_threads(1)
    from tests.training import killed

    told = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        spec = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)
            watch(spec["moments"])
            made = killed.run(spec)
            os.write(write, made.id.encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        print(answer, file=told, flush=True)
