"""Pretraining against its peers, in one run on this machine.

    python -m benchmarks.training --json [--steps 2000] [--data FOLDER]

1. nanoGPT's Shakespeare-by-characters recipe for a CPU: nanoGPT as it is, our loop with the same numbers, and our best
   recipe. They take turns, a few steps each, so that whatever else the machine does slows them alike; a clock counts each
   one's own steps. All are scored on the whole held-out tenth.
2. Tokens/s of the same Llama, batch and type: transformers' Trainer, a bare loop over transformers' model, and ours.

The text is fetched by nobody: `--data` holds `input.txt` (the first megabyte of Shakespeare that char-rnn made known).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.peers.nanogpt import Recipe, Trainer
from engine.job import Job
from engine.stage import Stage
from engine.store import Artifact, Store
from engine.worker import carry_out
from training.pretrain import Pretrain, Run

DATA = Path(__file__).parents[1] / ".." / "shared" / "data" / "tinyshakespeare"
PUBLISHED = 1.88  # nanoGPT's README, validation loss of the CPU recipe
SHAPE = {"depth": 4, "heads": 4, "width": 128}
SAME = {
    "batch": 12, "lr": 1e-3, "final_lr": 0.1, "warmup": 100, "betas": (0.9, 0.99), "weight_decay": 0.1, "dtype": "float32",
}  # fmt: skip
BEST = {
    "batch": 12, "steps": 400, "optimizer": "muon", "lr": 1e-2, "schedule": "wsd", "decay": 0.5, "final_lr": 0.0,
    "warmup": 40,
}  # fmt: skip


class Characters(Stage):
    """Shards of one text, a token a character; the last tenth is held out."""

    gives = "TokenBlock"
    file: str
    block: int

    def run(self, job: Any) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        text = Path(self.file).read_text()
        ids, names = encode(text)
        vocabulary = {"<|endoftext|>": 0, **{c: i + 1 for i, c in enumerate(names)}}
        raw: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
        raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        raw.decoder = decoders.Fuse()
        special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(str(job.output / "tokenizer"))
        cut = int(0.9 * len(ids))
        for name, part in (("data", ids[:cut]), ("validation", ids[cut:])):
            tokens_NT = part[: len(part) // self.block * self.block].reshape(-1, self.block)
            column = pa.FixedSizeListArray.from_arrays(pa.array(tokens_NT.ravel(), pa.uint16()), self.block)
            table = pa.table({
                "id": [f"{name}-{i}" for i in range(len(tokens_NT))],
                "tokens": column,
                "starts": pa.array([[]] * len(tokens_NT), pa.list_(pa.int32())),
            })  # fmt: skip
            (job.output / name).mkdir()
            file = str(job.output / name / "00000.arrow")
            with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)


def encode(text: str) -> tuple[np.ndarray, list[str]]:
    names = sorted(set(text))
    table = {c: i + 1 for i, c in enumerate(names)}
    return np.array([table[c] for c in text]), names


@dataclass
class Contestant:
    """Someone who trains: one step at a time, and the mean loss (nats a character) of what it has become."""

    name: str
    steps: int
    step: Callable[[int], Any]
    loss: Callable[[], float]
    seconds: float = 0.0
    done: int = 0
    curve: list[tuple[int, float, float]] = field(default_factory=lambda: [])

    def go(self, count: int) -> None:
        end = min(self.steps, self.done + count)
        started = time.perf_counter()
        for number in range(self.done, end):
            self.step(number)
        self.seconds += time.perf_counter() - started
        self.done = end
        self.curve.append((self.done, self.seconds, self.loss()))

    def reached(self, loss: float) -> dict[str, float] | None:
        """The steps and seconds it took to a validation loss."""
        for step, seconds, now in self.curve:
            if now <= loss:
                return {"steps": step, "seconds": round(seconds, 1)}
        return None


def held_out(data: np.ndarray, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(data)
    count = (len(ids) - 1) // block
    return ids[: count * block].view(-1, block), ids[1 : count * block + 1].view(-1, block)


def shakespeare(artifact: Artifact, data: np.ndarray, vocabulary: int, steps: int, store: Store) -> dict[str, Any]:
    cut = int(0.9 * len(data))
    x_NT, y_NT = held_out(data[cut:], 64)

    def mean(summed: Callable[[torch.Tensor, torch.Tensor], float]) -> float:
        with torch.no_grad():
            return sum(summed(x, y) for x, y in zip(x_NT.split(128), y_NT.split(128), strict=True)) / y_NT.numel()

    torch.manual_seed(0)
    peer = Trainer(Recipe(steps=steps), torch.from_numpy(data[:cut]), vocabulary)
    contestants = [
        Contestant("nanogpt", steps, peer.step, lambda: mean(lambda x, y: float(peer.model(x, y)) * y.numel()))
    ]
    for name, config in (("ours, same numbers", {**SAME, "steps": steps}), ("ours, best recipe", BEST)):
        run = started(Pretrain(size=SHAPE, seed=0, **config), artifact, store)  # pyright: ignore[reportArgumentType]
        contestants.append(
            Contestant(name, run.steps, run._step, lambda run=run: mean(lambda x, y: float(run.model(x, y))))  # pyright: ignore[reportPrivateUsage]
        )
    while any(c.done < c.steps for c in contestants):
        for contestant in contestants:
            if contestant.done < contestant.steps:
                contestant.go(40)
    peer_seconds = (contestants[0].reached(PUBLISHED) or {"seconds": contestants[0].seconds})["seconds"]
    result: dict[str, Any] = {"published_loss": PUBLISHED}
    for c in contestants:
        reached = c.reached(PUBLISHED)
        result[c.name] = {
            "steps": c.steps,
            "seconds": round(c.seconds, 1),
            "loss": round(c.curve[-1][2], 4),
            "reached_published": reached,
            "time_of_nanogpts": round(reached["seconds"] / peer_seconds, 3) if reached else None,
            "tokens_per_s": round(c.done * 12 * 64 / c.seconds),
        }
    return result


def started(stage: Pretrain, artifact: Artifact, store: Store) -> Run:
    return Run(stage, Job(store, f"run-{time.monotonic_ns()}", "Model", {"tokens": {"t": artifact}}, stage.seed or 0))


def throughput(artifact: Artifact, store: Store, rounds: int) -> dict[str, Any]:
    """The fastest of some steps of each, taken in turns."""
    from transformers import AutoModelForCausalLM, TrainingArguments
    from transformers import Trainer as HuggingFaceTrainer

    stage = Pretrain(size=SHAPE, seed=0, steps=10**6, **SAME)  # pyright: ignore[reportArgumentType]
    run = started(stage, artifact, store)
    tokens = stage.batch * run.shards.block
    bare: Any = AutoModelForCausalLM.from_config(run.config)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3, fused=True)

    def bare_step(number: int) -> None:
        tokens_BT, targets_BT, _ = run._batch(run.shards, run._indices(number))  # pyright: ignore[reportPrivateUsage]
        logits = bare(input_ids=tokens_BT).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), ignore_index=-100).backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def trainer_seconds(steps: int) -> float:
        """Seconds a step of transformers' Trainer, from inside its loop."""
        rows = [
            {"input_ids": row, "labels": row} for row in run.shards.tokens(list(range(stage.batch * steps))).tolist()
        ]
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=stage.batch, report_to="none",
                disable_tqdm=True, save_strategy="no", logging_strategy="no", dataloader_pin_memory=False,
            )  # fmt: skip
            trainer = HuggingFaceTrainer(model=bare, args=args, train_dataset=rows)  # pyright: ignore[reportArgumentType]
            clock = time.perf_counter()
            trainer.train()
            return (time.perf_counter() - clock) / steps

    def seconds(step: Callable[[int], Any], number: int, count: int) -> float:
        clock = time.perf_counter()
        for index in range(count):
            step(number + index)
        return (time.perf_counter() - clock) / count

    best = {"transformers Trainer": 1e9, "bare loop": 1e9, "ours": 1e9}
    for turn in range(rounds):
        for name, measured in (
            ("transformers Trainer", trainer_seconds(20)),
            ("bare loop", seconds(bare_step, turn * 20, 20)),
            ("ours", seconds(run._step, turn * 20, 20)),  # pyright: ignore[reportPrivateUsage]
        ):
            best[name] = min(best[name], measured)
    read = min(seconds(lambda n: run._batch(run.shards, run._indices(n)), turn, 20) for turn in range(rounds))  # pyright: ignore[reportPrivateUsage]
    rates = {name: round(tokens / s) for name, s in best.items()}
    return {
        "tokens_per_s": rates,
        "times_the_trainer": round(rates["ours"] / rates["transformers Trainer"], 2),
        "times_the_bare_loop": round(rates["ours"] / rates["bare loop"], 2),
        "reading_share": round(read / best["ours"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    file = (options.data / "input.txt").resolve()
    if not file.exists():
        raise SystemExit(f"there is no {file}: put the text of tiny Shakespeare there, or name its folder with --data.")
    data, names = encode(file.read_text())
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        artifact = carry_out(store, "characters", Characters.model_validate({"file": str(file), "block": 64}), {})
        result = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "shakespeare": shakespeare(artifact, data, len(names) + 1, options.steps, store),
            "throughput": throughput(artifact, store, options.rounds),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
