"""What `benchmarks.training` proves besides speed: the same loss however the work is cut, the same bytes however often it
is killed, adapters that are small and exact, and bad input that is refused in words.

Each proof returns numbers and the claims that follow from them. Models are tiny; parts are real: TRL, PEFT, processes that
are killed with SIGKILL, gloo, `vllm serve`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import torch

from engine.errors import FlywheelError
from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.store.digest import digest_json
from engine.store.schema import row_id
from engine.store.store import Store
from generators.text.chat_template import ChatTemplate
from tests.training import killed, tiny
from training.hardware import memory
from training.pretrain.stage import Pretrain
from training.pretrain.work import Pretraining
from training.sft.stage import Sft

AnyStage = TypeVar("AnyStage", bound=Stage)
Claims = list[dict[str, Any]]
SMALL: dict[str, Any] = {
    "size": {"depth": 2, "width": 32, "heads": 2}, "batch": 4, "steps": 12, "lr": 0.01, "seed": 1, "dtype": "float32",
}  # fmt: skip


def claim(name: str, value: Any, bar: Any, holds: bool) -> dict[str, Any]:
    return {"id": name, "value": value, "bar": bar, "holds": holds}


class Chats(Stage):
    """Conversations as they were given."""

    gives = "Conversation"
    turns: list[list[str]]

    def run(self, job: Job) -> None:
        import pyarrow as pa

        from engine.store.schema import DATASETS

        roles = ("user", "assistant")
        rows = [
            {
                "id": row_id("Conversation", index, *texts),
                "parents": [],
                "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)],
            }
            for index, texts in enumerate(self.turns)
        ]
        job.commit("00000", pa.Table.from_pylist(rows, DATASETS["Conversation"]))


class Tokens(Stage):
    """A decoder of random weights with a byte-level BPE of these texts."""

    gives = "Model"
    texts: list[str]
    width: int = 64
    depth: int = 2
    vocabulary: int = 4096
    context: int = 2048

    def run(self, job: Job) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

        from training.models.load import save
        from training.pretrain.llama import decoder_config
        from training.pretrain.size import Size

        raw: Any = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary, special_tokens=tiny.SPECIAL, show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )  # fmt: skip
        raw.train_from_iterator(self.texts, trainer)
        special: dict[str, Any] = {
            "eos_token": tiny.SPECIAL[0], "pad_token": tiny.SPECIAL[0], "extra_special_tokens": tiny.SPECIAL[1:],
        }  # fmt: skip
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
        set_seed(0)
        size = Size(depth=self.depth, width=self.width, heads=self.width // 32)
        end: Any = tokenizer.eos_token_id
        model = AutoModelForCausalLM.from_config(
            decoder_config(size, "llama", len(tokenizer), self.context, end, end), trust_remote_code=False
        )
        save(job, model, tokenizer)


def configured(kind: type[AnyStage], **config: Any) -> AnyStage:
    return kind.model_validate(config)


def made(store: Store, stage: Stage, **inputs: Artifact) -> Artifact:
    """The artifact of a stage on these inputs, by port."""
    name = f"{type(stage).__name__.lower()}{digest_json(stage.identity())[:6]}"
    return carry_out(store, name, stage, {port: {port: artifact} for port, artifact in inputs.items()})


def metrics(store: Store, stage: Stage, **inputs: Artifact) -> tuple[list[dict[str, Any]], Job]:
    """Every point of a stage's curves."""
    events: list[dict[str, Any]] = []
    name = f"run-{time.monotonic_ns()}"
    given = {port: {port: artifact} for port, artifact in inputs.items()}
    job = Job(store, name, stage.output({}), given, 3, emit=events.append)
    stage.run(job)
    return [event for event in events if event["event"] == "metric"], job


def apart(a: float, b: float) -> float:
    return abs(a - b) / abs(b)


def cut_in_other_ways(store: Store) -> Claims:
    """Accumulation, processes and packing: the losses and gradient norms of whole batches, one process, one row at a time."""
    blocks = tiny.blocks(store)
    found: list[tuple[float, float]] = []
    for micro in (4, 1):
        stage = configured(Pretrain, **SMALL, micro_batch=micro, clip=1e9)
        run = Pretraining(stage, Job(store, f"micro{micro}", "Model", {"tokens": {"t": blocks}}, 1))
        loss, norm = run._step(0)  # pyright: ignore[reportPrivateUsage]
        found.append((float(loss), float(norm)))
    accumulated = max(apart(a, b) for a, b in zip(*found, strict=True))

    curves = [
        metrics(store, configured(Pretrain, **SMALL, log_every=1, processes=count, sharding=sharding), tokens=blocks)[0]
        for count, sharding in ((1, "replicate"), (2, "replicate"), (2, "shard"))
    ]
    worlds = max(
        apart(point[name], truth[name])
        for curve in curves[1:]
        for point, truth in zip(curve, curves[0], strict=True)
        for name in ("loss", "grad_norm")
        if name in truth
    )

    countries = ["France", "Japan", "Peru", "Italy", "Cuba", "Egypt"]
    chats = made(
        store, configured(Chats, turns=[[f"What is the capital of {c}?", c * (i + 1)] for i, c in enumerate(countries)])
    )
    plain: dict[str, Any] = {"lr": 0.01, "batch": 6, "steps": 1, "seed": 3, "max_length": 128}
    steps = [
        metrics(store, configured(Sft, **plain, **how), model=tiny.base(store), conversations=chats)[0][0]
        for how in ({}, {"packing": True}, {"micro_batch": 1})
    ]
    packed, single = (
        max(apart(step[name], steps[0][name]) for name in ("loss", "grad_norm")) for step in (steps[1], steps[2])
    )
    return [
        claim("accumulation: B x 1 against 1 x B, loss and gradient norm", accumulated, 1e-5, accumulated < 1e-5),
        claim("world 2 against world 1 (gloo, summed and FSDP2), 12 steps", worlds, 1e-3, worlds < 1e-3),
        claim("SFT: packed against padded, loss and gradient norm", packed, 1e-4, packed < 1e-4),
        claim("SFT: B x 1 against 1 x B, loss and gradient norm", single, 1e-4, single < 1e-4),
    ]


class StepClock:
    """CPU seconds from the start of the first training step of a TRL trainer to the end of the last."""

    def __enter__(self) -> StepClock:
        from trl.trainer import sft_trainer

        trainer_class: Any = sft_trainer.SFTTrainer
        self.first, self.last = 0.0, 0.0
        self.step_of = step_of = trainer_class.training_step

        def timed(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            self.first = self.first or time.process_time()
            loss = step_of(trainer, *args, **kwargs)
            self.last = time.process_time()
            return loss

        trainer_class.training_step = timed
        return self

    def __exit__(self, *_: object) -> None:
        from trl.trainer import sft_trainer

        trainer_class: Any = sft_trainer.SFTTrainer
        trainer_class.training_step = self.step_of


def packing(store: Store, answers: Path, count: int) -> tuple[dict[str, Any], Claims]:
    """One epoch of AlpacaEval's answers as one optimizer step, padded and packed: the same rows, so the same loss."""
    names = (
        "SFT packing on AlpacaEval's lengths, times the tokens/s of padding",
        "SFT packing, the same loss over them",
    )
    if not answers.exists():
        return {"skipped": f"there is no {answers}"}, [
            claim(name, None, bar, False) for name, bar in zip(names, (3, 1e-4), strict=True)
        ]
    table = pq.read_table(answers, columns=["instruction", "output"]).to_pylist()
    rows = random.Random(0).sample([row for row in table if row["output"].strip()], count)
    texts = [[row["instruction"], row["output"]] for row in rows]
    model = made(store, configured(Tokens, texts=[text for pair in texts for text in pair]))
    chats = made(store, configured(Chats, turns=texts))
    common: dict[str, Any] = {"seed": 3, "epochs": 1, "max_length": 2048}
    result: dict[str, Any] = {"conversations": count}
    for name, how in (
        ("padded", {"batch": count, "micro_batch": 32}),
        ("packed", {"batch": count, "micro_batch": 1, "packing": True}),
    ):
        with StepClock() as clock:
            (point,), _ = metrics(store, configured(Sft, **common, **how), model=model, conversations=chats)
        seconds = clock.last - clock.first
        tokens = point["num_tokens"]
        result[name] = {"tokens": tokens, "cpu_s": round(seconds, 2), "tokens_per_cpu_s": round(tokens / seconds), "loss": point["loss"]}  # fmt: skip
    times = result["packed"]["tokens_per_cpu_s"] / result["padded"]["tokens_per_cpu_s"]
    differ = apart(result["packed"]["loss"], result["padded"]["loss"])
    return result, [claim(names[0], round(times, 2), 3, times >= 3), claim(names[1], differ, 1e-4, differ < 1e-4)]


def kills(store: Store, folder: Path, count: int) -> Claims:
    """SIGKILL at so many random steps of pretraining, SFT and LoRA: the digest of a run that nobody killed."""
    model, blocks = tiny.base(store), tiny.blocks(store)
    chats = made(store, configured(Chats, turns=[[f"What is {i}?", f"It is {i}."] for i in range(16)]))
    tuned: dict[str, Any] = {"lr": 0.01, "batch": 4, "seed": 3, "steps": 24, "checkpoint_every": 2}
    cases: dict[str, tuple[str, dict[str, Any], dict[str, Artifact]]] = {
        "pretraining": (
            "training.pretrain.stage:Pretrain",
            {**SMALL, "steps": 30, "checkpoint_every": 2, "log_every": 1},
            {"tokens": blocks},
        ),
        "SFT": ("training.sft.stage:Sft", tuned, {"model": model, "conversations": chats}),
        "LoRA": (
            "training.sft.stage:Sft",
            {**tuned, "lora": {"r": 4, "dropout": 0.1, "merge": False}},
            {"model": model, "conversations": chats},
        ),
    }
    claims: Claims = []
    for name, (stage, config, inputs) in cases.items():
        spec = {
            "store": store.url,
            "stage": stage,
            "config": config,
            "inputs": {port: {port: ["", artifact.id]} for port, artifact in inputs.items()},
        }
        place = folder / name
        place.mkdir()
        steps = sorted(random.Random(7).sample(range(3, config["steps"]), count))
        for step in steps:
            killed.start(spec, place, kill_at=step)
        resumed = killed.start(spec, place, kill_at=None)
        other = place / "never-killed"
        (other / "artifacts").mkdir(parents=True)
        for artifact in inputs.values():
            killed.link(artifact, str(other))
        whole = killed.start({**spec, "store": str(other)}, place, kill_at=None)
        same = bool(resumed and whole and resumed.digest == whole.digest)
        claims.append(
            claim(f"{name}: killed at {count} random steps, bitwise equal", f"killed after {steps}", True, same)
        )
    return claims


def adapters(store: Store, folder: Path, serve: bool) -> tuple[dict[str, Any], Claims]:
    """LoRA of a tiny Llama: its file, its merged logits, and what `vllm serve` answers with it and with the plain model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from training.models.load import load_model

    countries = {
        "France": "Paris",
        "Japan": "Tokyo",
        "Peru": "Lima",
        "Italy": "Rome",
        "Cuba": "Havana",
        "Egypt": "Cairo",
    }
    turns = [[f"What is the capital of {country}?", f"{city}."] for country, city in countries.items()]
    model = made(
        store,
        configured(Tokens, texts=[t for pair in turns for t in pair], width=256, depth=4, vocabulary=300, context=128),
    )
    chats = made(store, configured(Chats, turns=turns))
    shape = memory.read_shape(model.path)
    assert shape is not None
    common: dict[str, Any] = {"seed": 3, "batch": 6, "steps": 20, "lr": 5e-3}
    table: dict[str, Any] = {}
    found: dict[str, Artifact] = {}
    for name, lora in (
        ("full", None),
        ("LoRA", {"r": 2, "merge": False}),
        ("DoRA", {"r": 2, "merge": False, "dora": True}),
    ):
        with StepClock() as clock:
            stage = configured(Sft, **{**common, "lr": 1e-3 if lora is None else 5e-3}, lora=lora)  # pyright: ignore[reportArgumentType]
            found[name] = made(store, stage, model=model, conversations=chats)
        weights = next(found[name].path.glob("*model.safetensors")).stat().st_size
        share = found[name].manifest["summary"]["trainable_share"]
        counted = memory.FineTuning(shape, 64, "lora" if lora else "full", r=2, gpu=False).memory(6).total
        table[name] = {
            "counted_memory_mib": round(counted / 2**20, 1),
            "trainable_share": round(share, 4),
            "file_bytes": weights,
            "cpu_s": round(clock.last - clock.first, 2),
        }
    share = table["LoRA"]["file_bytes"] / table["full"]["file_bytes"]

    adapter = found["LoRA"]
    tokens = torch.arange(5, 69)[None]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(model.location, trust_remote_code=False)
        unmerged = PeftModel.from_pretrained(plain, adapter.location)(tokens).logits
        merged, _ = load_model(adapter.location, Job(store, "merge", "Model", {}, 0))
        differ = float((merged(tokens).logits - unmerged).abs().max())
    claims = [
        claim("LoRA: adapter file as a share of the weights", round(share, 4), 0.02, share < 0.02),
        claim("LoRA: merged logits against unmerged, greatest difference", differ, 1e-5, differ < 1e-5),
    ]
    tokenizer = AutoTokenizer.from_pretrained(adapter.location, trust_remote_code=False)
    prompts = [ChatTemplate(tokenizer).prompt([{"role": "user", "content": question}]) for question, _ in turns]
    names = (
        "LoRA: vllm serves the adapter unmerged, same greedy tokens",
        "`vllm serve` of a model artifact by path, same greedy tokens",
    )
    if not serve:
        return table, [*claims, *(claim(name, None, True, False) for name in names)]
    served = ask_vllm(model, adapter, prompts, folder)
    for name, label, truth in zip(
        names,
        ("adapter", "base"),
        (merged, AutoModelForCausalLM.from_pretrained(model.location, trust_remote_code=False)),
        strict=True,
    ):
        expected = [greedy(truth, prompt) for prompt in prompts]
        same = sum(a == b for a, b in zip(served[label], expected, strict=True))
        claims.append(claim(name, f"{same} of {len(prompts)}", len(prompts), same == len(prompts)))
    return table, claims


def greedy(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None)
    return out[0, ids.shape[1] :].tolist()


def ask_vllm(model: Artifact, adapter: Artifact, prompts: list[list[int]], folder: Path) -> dict[str, list[list[int]]]:
    """Greedy token ids of `vllm serve ARTIFACT --enable-lora`, from the model and from the adapter on top of it."""
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [  # `vllm serve`, by its module: the command asks for the version of `vllm`, which the CPU build is not called
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model.location, "--served-model-name", "base", "--enable-lora",
        "--max-lora-rank", "8", "--lora-modules", f"adapter={adapter.location}", "--port", str(port), "--host", "127.0.0.1",
        "--dtype", "float32", "--max-model-len", "128", "--enforce-eager",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "vllm.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 300
            while True:
                try:
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"vllm serve did not start: {(folder / 'vllm.log').read_text()[-2000:]}")
                time.sleep(1)
            answers: dict[str, list[list[int]]] = {}
            for name in ("base", "adapter"):
                body = {
                    "model": name, "prompt": prompts, "max_tokens": 8, "temperature": 0, "ignore_eos": True,
                    "return_token_ids": True,
                }  # fmt: skip
                choices = httpx.post(f"{url}/v1/completions", json=body, timeout=120).json()["choices"]
                answers[name] = [choice["token_ids"] for choice in sorted(choices, key=lambda c: c["index"])]
            return answers
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def bad_input(store: Store) -> Claims:
    """What is wrong is said in words, and nothing half-made is left."""
    base, blocks = tiny.base(store), tiny.blocks(store)
    beyond = tiny.blocks(store, beyond=True)
    silent = made(store, configured(Chats, turns=[["Is anybody there?"]]))
    mixed = made(store, configured(Chats, turns=[["Is anybody there?"], ["Hello?", "Yes."]]))

    def nan() -> None:
        stage = configured(Pretrain, **SMALL)
        run = Pretraining(stage, Job(store, "nan", "Model", {"tokens": {"t": blocks}}, 1))
        next(run.model.parameters()).data.fill_(math.nan)
        run.train()

    def nan_rows() -> None:
        chats = made(store, configured(Chats, turns=[["Hello?", f"Yes {i}."] for i in range(4)]))
        metrics(store, configured(Sft, seed=3, batch=2, steps=4, lr=1e30, clip=1e30), model=base, conversations=chats)

    def empty() -> None:
        other = Store(str(store.scratch("empty")))
        artifact = tiny.blocks(other)
        for file in (artifact.path / "data").glob("*.arrow"):
            file.unlink()
        made(other, configured(Pretrain, **SMALL), tokens=artifact)

    def strange_tokenizer() -> None:
        other = Store(str(store.scratch("strange")))
        artifact = tiny.blocks(other)
        file = artifact.path / "tokenizer" / "tokenizer.json"
        file.write_text(file.read_text().replace('"Ġcapital"', '"Ġcapitol"'))
        made(other, configured(Pretrain, **SMALL), tokens=artifact)

    def full_disk() -> None:
        # A real one, of a few KiB: a file can't grow beyond the limit, as if the disk were full.
        import resource
        import signal

        from training.loops.checkpoint import Checkpoint, Checkpoints

        checkpoints = Checkpoints(store.scratch("disk") / "checkpoints")
        checkpoints.save(Checkpoint(1, {"w": torch.zeros(1000)}), wait=True)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            checkpoints.save(Checkpoint(2, {"w": torch.zeros(100_000)}), wait=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
            found = checkpoints.latest()
            assert found is not None and found.step == 1

    cases: dict[str, tuple[Callable[[], Any], str]] = {
        "ids beyond the vocabulary": (
            lambda: made(store, configured(Pretrain, **{**SMALL, "batch": 24}), tokens=beyond),
            "token id",
        ),
        "shards of another tokenizer": (strange_tokenizer, "tokenizer.json is damaged"),
        "an empty dataset": (empty, "is damaged (it is missing)"),
        "no conversation with an assistant turn": (
            lambda: made(store, configured(Sft, seed=3, steps=1, batch=1), model=base, conversations=silent),
            "no_assistant_turn",
        ),
        "a loss that is no number, pretraining": (nan, "The batch was of blocks"),
        "a loss that is no number, SFT": (nan_rows, "The batch was of the rows"),
        "a full disk while checkpointing": (full_disk, "goes on from the checkpoint before"),
    }
    claims: Claims = []
    for name, (work, wanted) in cases.items():
        try:
            work()
            said = "nothing was said"
        except FlywheelError as error:
            said = str(error)
        claims.append(claim(f"bad input: {name}", said[:200], wanted, wanted in said))
    one = made(store, configured(Sft, seed=3, steps=1, batch=1), model=base, conversations=mixed).manifest["rejected"]
    claims.append(claim("bad input: a conversation without an assistant turn is set aside", one, {"no_assistant_turn": 1}, one == {"no_assistant_turn": 1}))  # fmt: skip
    return claims


def prove(store: Store, folder: Path, data: Path, quick: bool) -> tuple[dict[str, Any], Claims]:
    """All of it. `quick`: fewer rows and kills, no server."""
    packed, claims = packing(store, data / "alpaca_eval" / "outputs.parquet", 32 if quick else 96)
    table, about_adapters = adapters(store, folder, serve=not quick)
    claims += [*cut_in_other_ways(store), *kills(store, folder, 2 if quick else 10), *about_adapters, *bad_input(store)]
    return {"sft_packing": packed, "lora": table}, claims


def main() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        chosen = globals()[sys.argv[1]] if len(sys.argv) > 1 else None
        store = Store(f"{folder}/store")
        data = Path(__file__).parents[1] / ".." / "shared" / "data"
        arguments: dict[str, list[Any]] = {
            "cut_in_other_ways": [], "packing": [data / "alpaca_eval" / "outputs.parquet", 64], "kills": [Path(folder), 2],
            "adapters": [Path(folder), True], "bad_input": [],
        }  # fmt: skip
        result = chosen(store, *arguments[sys.argv[1]]) if chosen else prove(store, Path(folder), data, True)
        print(json.dumps(result, indent=1, default=str))


if __name__ == "__main__":
    main()
