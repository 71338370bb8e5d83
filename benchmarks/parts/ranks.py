"""Training that several ranks (gloo, on this machine) share, against one rank's: the same rows, losses and weights; killed, continued.

    python -m benchmarks.training --json --only ranks [--quick] [--keep FOLDER]

1. Each of sft, dpo, kto, reward and grpo, with all weights and with an adapter, by one rank; then by two and by three, with copies
   and split (FSDP2): 50 steps.
2. Each of these once more: rank 0 gets SIGKILL at ten random steps, and as many ranks go on. The same bytes as left alone.
3. Each kind, all weights and adapter: SIGKILL at ten random steps, and each time another number of ranks, split or not, goes on.

Models have some ten thousand weights, so that most of the time is that of starting. What was found stands in `--keep FOLDER`, a line
a claim: who starts it again with that folder goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.parts.claims import Claim, claim
from engine.errors import FlywheelError, StageFailed
from engine.execution.worker import carry_out
from engine.stage.stage import load
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training import killed, tiny_chat
from tests.training.preference_rows import preferences
from tests.training.stock_sampler import StockSampler
from tests.training.tiny_chat import PROMPTS, assistant, user

LOSS, WEIGHT = 1e-4, 1e-4  # how far losses (nats) and weights may be from one rank's after 50 steps
EVERY = 4  # steps between checkpoints; GRPO's are between iterations of two
ROWS = 99  # 25 steps of 4, the last of an epoch a short one
CHATS = [
    {"id": str(i), "messages": [*user("what ?"), *assistant("blue " * (i % 5 + 1) + "cat " * (i % 3))]}
    for i in range(ROWS)
]
PAIRS = [{**row, "split": "train"} for row in preferences(ROWS)]
COMMON: dict[str, Any] = {"seed": 3, "dtype": "float32", "lr": 3e-3}
LEARNT: dict[str, Any] = {**COMMON, "batch": 4, "epochs": 2, "checkpoint_every": EVERY}
POLICY: dict[str, Any] = {
    **COMMON, "iterations": 25, "minibatches": 2, "rollouts": 12, "samples": 4, "max_tokens": 4, "checkpoint_every": 1,
    "rules": {"round": "completion LIKE '%o%'"},
}  # fmt: skip
KINDS: dict[str, tuple[str, str, str, list[dict[str, Any]], dict[str, Any]]] = {
    "sft": ("model", "conversations", "Conversation", CHATS, LEARNT),
    "dpo": ("policy", "preferences", "Preference", PAIRS, LEARNT),
    "kto": ("policy", "preferences", "Preference", PAIRS, {**LEARNT, "batch": 8}),
    "reward": ("model", "preferences", "Preference", PAIRS, LEARNT),
    "grpo": ("policy", "prompts", "Prompt", PROMPTS, POLICY),
}
WAYS = [(2, "replicate"), (2, "shard"), (3, "replicate"), (3, "shard")]
MOVES = [(2, "shard"), (3, "replicate"), (1, "replicate"), (3, "shard"), (2, "replicate")]


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
        losses: by step.
        rows: by step, a digest of the batch; of GRPO one of all answers as well, under 0.
    """

    artifact: Artifact
    losses: dict[int, float]
    rows: dict[int, str]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        (file,) = self.artifact.path.glob("*model.safetensors")
        return load_file(file)


class Case:
    """One kind, with all weights or an adapter."""

    def __init__(self, kind: str, lora: bool, folder: Path, steps: int) -> None:
        self.kind, self.lora, self.steps = kind, lora, steps
        self.folder = folder / f"{kind}-{'lora' if lora else 'full'}"
        self.port, self.source, made_of, rows, config = KINDS[kind]
        rate = {"lr": 1e-2} if lora else {}
        self.config: dict[str, Any] = {**config, **rate, "lora": {"r": 4} if lora else None}
        if steps < 50:
            self.config |= {"iterations": steps // 2} if kind == "grpo" else {"epochs": 1}
            rows = rows if kind == "grpo" else rows[: self.config["batch"] * steps // (2 if kind == "kto" else 1) - 1]
        self.model = tiny_chat.save(folder / "policy")
        self.given = _rows(folder, made_of, rows)

    @property
    def name(self) -> str:
        return f"{self.kind}, {'adapter' if self.lora else 'all weights'}"

    def inputs(self, store: Store) -> dict[str, dict[str, Artifact]]:
        return {self.port: {"m": tiny_chat.artifact(store, self.model)}, self.source: {"d": self.given}}

    def train(self, name: str, ways: list[tuple[int, str]], kills: list[int]) -> Trained:
        """In a store of its own: killed after these steps, each time gone on with in the next way, until it is done."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for turn, kill_at in enumerate([*kills, None]):
            count, sharding = ways[turn % len(ways)]
            self.attempt(place, {**self.config, "processes": count, "sharding": sharding}, kill_at)
        made = Store(str(place / "store")).get((place / "made").read_text())
        assert made is not None
        metrics = made.metrics()
        assert metrics is not None
        told = metrics.select("step", "loss").drop_nulls().to_dicts()
        rows = {line["step"]: line["rows"] for line in map(json.loads, (place / "rows").read_text().splitlines())}
        if self.kind == "grpo":
            rows[0] = made.manifest["summary"]["consumed"]
        return Trained(made, {row["step"]: row["loss"] for row in told}, rows)

    def attempt(self, place: Path, config: dict[str, Any], kill_at: int | None) -> None:
        process = context().Process(target=_child, args=(self, place, config, kill_at))
        process.start()
        try:
            process.join(300)
            if process.exitcode != (0 if kill_at is None else -signal.SIGKILL):
                raise StageFailed(f"{self.name}: ended with {process.exitcode}: {(place / 'log').read_text()[-2000:]}")
        finally:
            process.kill()


def context() -> ForkServerContext:
    return killed.ready(["training.rl.grpo", "trl.trainer.grpo_trainer", __name__])


def _rows(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Artifact:
    from benchmarks.parts import claims

    return claims.artifact(Store(str(folder / "given")), kind, rows)


# -- in a process of its own ---------------------------------------------------------------------------------------------


def _child(case: Case, place: Path, config: dict[str, Any], kill_at: int | None) -> None:
    with (place / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    killed.share_forkserver()
    torch.set_num_threads(1)
    seen = _watch_batches()
    if case.kind == "grpo":
        from training.rl import grpo

        grpo.start_engine = lambda *_, **__: StockSampler(tiny_chat.policy())  # pyright: ignore

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "metric":
            with (place / "rows").open("a") as file:
                print(json.dumps({"step": event["step"], "rows": seen[-1]}), file=file)
            if event["step"] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    store = Store(str(place / "store"))
    stage = load(case.kind).model_validate(config)
    made = carry_out(store, case.kind, stage, case.inputs(store), emit=emit)
    (place / "made").write_text(made.id)
    sys.stdout.flush()
    os._exit(0)


def _watch_batches() -> list[str]:
    """A list whose last entry is always a digest of the batch of the optimizer step under way, as rank 0 reads it."""
    from transformers import Trainer

    from training.reward import fit

    seen: list[str] = []
    batches_of, learn = Trainer.get_batch_samples, fit.learn

    def get_batch_samples(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        batches, count = batches_of(trainer, *args, **kwargs)
        seen.append(_digest(batches[0]))  # of a step; GRPO reads those of its iteration again for each part of a step
        return batches, count

    def learnt(stage: Any, heads: Any, batch: Any, *rest: Any) -> Any:
        seen.append(_digest([[(answer.prompt, answer.response) for answer in one.answers] for one in batch]))
        return learn(stage, heads, batch, *rest)

    Trainer.get_batch_samples = get_batch_samples  # pyright: ignore[reportAttributeAccessIssue]
    fit.learn = learnt
    return seen


def _digest(value: Any) -> str:
    def plain(one: Any) -> Any:
        if isinstance(one, torch.Tensor):
            return one.tolist()
        if hasattr(one, "items"):
            return sorted((str(name), plain(part)) for name, part in one.items())
        return [plain(part) for part in one] if isinstance(one, list | tuple) else one

    return hashlib.blake2b(repr(plain(value)).encode(), digest_size=8).hexdigest()


# -- what is claimed -----------------------------------------------------------------------------------------------------


def beside(ours: Trained, truth: Trained) -> tuple[dict[str, Any], bool]:
    """How far a run is from one rank's, and whether that is near enough and the rows are the same."""
    assert ours.losses.keys() == truth.losses.keys()
    own, known = ours.weights, truth.weights
    assert own.keys() == known.keys()
    losses = max(abs(ours.losses[step] - loss) for step, loss in truth.losses.items())
    weights = max(float((own[name] - tensor).abs().max()) for name, tensor in known.items())
    same = sum(ours.rows.get(step) == rows for step, rows in truth.rows.items())
    value = {
        "losses": losses,
        "weights": weights,
        "steps": len(truth.losses),
        "same_rows": f"{same} of {len(truth.rows)}",
    }
    return value, losses <= LOSS and weights <= WEIGHT and ours.rows == truth.rows


def found(case: Case, kills: int) -> Iterator[tuple[str, Callable[[str], Claim]]]:
    """(id of a claim, what finds it out), in order; later ones need the earlier ones' runs, which are made when they are asked for."""
    runs: dict[str, Trained] = {}
    near = f"losses within {LOSS:g} and weights within {WEIGHT:g} of one rank's, each step of the same rows"
    drawn = sorted(random.Random(f"{case.name}").sample(range(3, case.steps), kills))

    def run(name: str, ways: list[tuple[int, str]], at: list[int]) -> Trained:
        if name not in runs:
            runs[name] = case.train(name, ways, at)
        return runs[name]

    def one() -> Trained:
        return run("1", [(1, "replicate")], [])

    def compared(id: str, name: str, way: tuple[int, str]) -> Claim:
        value, holds = beside(run(name, [way], []), one())
        moved = max(float((value - start[key]).abs().max()) for key, value in one().weights.items() if key in start)
        return claim(
            id, {**value, "moved": moved}, near, holds and moved > 100 * WEIGHT and len(one().losses) == case.steps
        )

    def again(id: str, name: str, way: tuple[int, str]) -> Claim:
        ours, truth = run(f"{name}-killed", [way], drawn), run(name, [way], [])
        same = ours.artifact.digest == truth.artifact.digest
        value = {"killed after": drawn, "digests": "equal" if same else "differ", "same rows": ours.rows == truth.rows}
        return claim(
            id,
            value,
            f"SIGKILL at {kills} steps: equal bytes, each step of the same rows",
            same and ours.rows == truth.rows,
        )

    def elsewhere(id: str) -> Claim:
        value, holds = beside(run("moved", MOVES, drawn), one())
        return claim(id, {**value, "killed after": drawn, "ranks": MOVES}, f"SIGKILL at {kills} steps: {near}", holds)

    start = load_file(case.model / "model.safetensors")
    for count, sharding in WAYS:
        name = f"{count}-{sharding}"
        told = f"{case.name}, {count} ranks, {sharding}"
        yield f"{told}: that of one rank", lambda id, name=name, way=(count, sharding): compared(id, name, way)
        yield f"{told}: killed and gone on with", lambda id, name=name, way=(count, sharding): again(id, name, way)
    yield f"{case.name}: killed and gone on with by other numbers of ranks", elsewhere


def about_ranks(folder: Path, quick: bool, kinds: list[str] | None = None) -> list[Claim]:
    """All of it; what this folder has from another time is not measured again."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "claims.jsonl"
    known = {one["id"]: one for one in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    steps, kills = (10, 2) if quick else (50, 10)
    claims: list[Claim] = []
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for kind in kinds or list(KINDS):
            for lora in (False, True):
                case = Case(kind, lora, folder, steps)
                for id, find in found(case, kills):
                    clock = time.monotonic()
                    one = known.get(id) or {**measured(id, find), "seconds": round(time.monotonic() - clock, 1)}
                    claims.append(one)
                    if id not in known:
                        with kept.open("a") as file:
                            print(json.dumps(one), file=file)
                        print(
                            f"{'holds' if one['holds'] else 'FAILS'}  {one['seconds']:6.1f} s  {id}",
                            file=sys.stderr,
                            flush=True,
                        )
                shutil.rmtree(case.folder, ignore_errors=True)
    except KeyboardInterrupt:  # what was found is told
        claims.append(claim("ranks: all of it was measured", "stopped", "all", False))
    finally:
        signal.signal(signal.SIGTERM, before)
        forkserver._forkserver._stop()  # pyright: ignore
    return claims


def measured(id: str, find: Callable[[str], Claim]) -> Claim:
    try:
        return find(id)
    except (FlywheelError, AssertionError) as error:  # the others are measured all the same
        return claim(id, f"{type(error).__name__}: {error}", "it ends", False)
