"""Generation, measured against the raw engine, in one run on one machine.

    python -m benchmarks.generation --json              # 2,000 prompts, as the project states its numbers
    python -m benchmarks.generation --json --scale 0.05 # a quick look

Weights are random (a Llama made from a config), so nothing is downloaded; the work is the same as with trained ones.
distilabel is not part of this run: it has no release for this vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from engine.schema import DATASETS
from engine.stage import Stage
from engine.store import Artifact, Store
from engine.worker import carry_out
from generators.backend import Backend, Completion, Local, Sampling
from generators.candidates import Candidates
from generators.engine_process import WatchedEngine
from generators.prompting import encode_prompt, load_tokenizer

N, MAX_TOKENS, PARTITION = 4, 64, 512


class Made(Stage):
    """A stage that commits the prompts of the benchmark."""

    gives = "Prompt"
    count: int

    def run(self, job: Any) -> None:
        import pyarrow as pa

        rows = [
            {"id": f"{i:032x}", "parents": [], "prompt": [{"role": "user", "content": f"What is {i} times {i * 7}?"}]}
            for i in range(self.count)
        ]
        job.commit("00000", pa.Table.from_pylist(rows, DATASETS["Prompt"]))


class Copied(Stage):
    gives = "Model"
    folder: str

    def run(self, job: Any) -> None:
        import shutil

        shutil.copytree(self.folder, job.output, dirs_exist_ok=True)


class Stub:
    """An engine that takes no time: what is left is ours."""

    max_model_len = 4096

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return [Completion([70, 71, 72, 73, 74, 75, 76, 77], [-1.0] * 8, "stop") for _ in prompts]

    def close(self) -> None: ...


def candidates(
    store: Store, model: Artifact, prompts: Artifact, backend: Backend, **config: Any
) -> tuple[Artifact, float]:
    """The stage with a backend that is loaded already; its artifact, and the seconds it took."""
    with patch("generators.candidates.open_backend", lambda *a, **k: (backend, model.id)):  # pyright: ignore
        started = time.perf_counter()
        made = carry_out(
            store,
            "candidates",
            Candidates.model_validate({"seed": 0, "n": N, **config}),
            {"model": {"m": model}, "prompts": {"p": prompts}},
        )
        return made, time.perf_counter() - started


def against_engines(store: Store, model: Artifact, count: int) -> dict[str, Any]:
    """Tokens/s after load: the stage, a bare `LLM.generate` and `transformers.generate`, on the same prompts."""
    from generators.vllm_backend import VllmEngine

    tokenizer = load_tokenizer(model.location)
    prompts = carry_out(store, "made", Made.model_validate({"count": count}), {})
    asked = [row["prompt"] for row in prompts.to_table().to_pylist()]
    ids = [encode_prompt(tokenizer, messages) for messages in asked]

    engine = WatchedEngine("vllm", model.location, dtype="float32")
    warm = Sampling(max_tokens=8)
    engine.generate(ids[:8], warm, range(8))
    made, seconds = candidates(
        store, model, prompts, Local(engine, tokenizer), max_tokens=MAX_TOKENS, partition=PARTITION
    )
    ours = made.manifest["summary"]["tokens_out"] / seconds

    bare = VllmEngine(model.location, dtype="float32")
    bare.generate(ids[:8], warm, range(8))
    from vllm import SamplingParams

    llm: Any = bare._llm  # pyright: ignore[reportPrivateUsage]
    started = time.perf_counter()
    outputs = llm.generate(
        [{"prompt_token_ids": one} for one in ids],
        SamplingParams(n=N, temperature=1.0, max_tokens=MAX_TOKENS, logprobs=0),
        use_tqdm=False,
    )
    raw = sum(len(c.token_ids) for o in outputs for c in o.outputs) / (time.perf_counter() - started)
    bare.close()
    return {
        "candidates_tokens_per_s": round(ours),
        "bare_vllm_tokens_per_s": round(raw),
        "transformers_tokens_per_s": round(slow := hf_generate(model, ids[: max(64, count // 10)])),
        "share_of_bare_vllm": round(ours / raw, 3),
        "times_transformers": round(ours / slow, 2),
        "prompts": count,
    }


def hf_generate(model: Artifact, ids: list[list[int]]) -> float:
    """Tokens/s of `transformers.generate`, batch by batch."""
    import torch
    from transformers import AutoModelForCausalLM

    policy: Any = AutoModelForCausalLM.from_pretrained(model.location, dtype=torch.float32)
    tokens, started = 0, time.perf_counter()
    for start in range(0, len(ids), 16):
        batch = ids[start : start + 16]
        longest = max(map(len, batch))
        inputs = torch.tensor([[0] * (longest - len(one)) + one for one in batch])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in batch])
        made = policy.generate(
            input_ids=inputs, attention_mask=mask, do_sample=True, num_return_sequences=N, max_new_tokens=MAX_TOKENS,
            pad_token_id=0,
        )  # fmt: skip
        tokens += int((made[:, longest:] != 0).sum())
    return tokens / (time.perf_counter() - started)


def overhead(store: Store, model: Artifact, rows: int) -> dict[str, Any]:
    """Microseconds a row that are not the engine's."""
    prompts = carry_out(store, "made", Made.model_validate({"count": rows // N}), {})
    backend = Local(Stub(), load_tokenizer(model.location))
    cpu = time.process_time()
    made, seconds = candidates(store, model, prompts, backend, partition=2048)
    cpu = time.process_time() - cpu
    assert made.rows == rows // N * N
    return {
        "rows": made.rows,
        "microseconds_per_row": round(seconds / made.rows * 1e6, 1),
        "cpu_microseconds_per_row": round(cpu / made.rows * 1e6, 1),
    }


def faults(folder: Path, count: int) -> dict[str, Any]:
    """A server that fails 30 % of attempts, against the same server without faults."""
    from generators.backend import Answer
    from generators.openai_backend import Server, ServerBackend
    from tests.generators.faulty_server import FaultyServer, said

    asked = [[{"role": "user", "content": f"question {i}"}] for i in range(count)]
    result: dict[str, Any] = {"requests": count}
    for name, share in (("clean", 0.0), ("faulty", 0.3)):
        with FaultyServer(share=share, capacity=32, seconds=0.2) as server:
            backend = ServerBackend(
                Server.model_validate({"model": "m", "url": server.url, "timeout_s": 20, "attempts": 20}),
                folder / f"{name}.jsonl",
            )
            started = time.perf_counter()
            answers = backend.complete(asked, Sampling(logprobs=False), range(count))
            seconds = time.perf_counter() - started
            backend.close()
        right = sum(isinstance(a, Answer) and a.text == said(asked[i], i) for i, a in enumerate(answers))
        result[name] = {
            "seconds": round(seconds, 2), "answered": right, "served_twice": sum(n > 1 for n in server.served.values()),
            "retries": backend.retries, "faults": dict(server.faults),
        }  # fmt: skip
    result["times_clean"] = round(result["faulty"]["seconds"] / result["clean"]["seconds"], 2)
    return result


def guided(model: Artifact, rows: int) -> dict[str, Any]:
    """Rows of a random-weight model that parse and follow a nested schema."""
    from generators import structured
    from generators.backend import Answer
    from tests.generators.test_structured import SCHEMA

    backend = Local(WatchedEngine("vllm", model.location, dtype="float32"), load_tokenizer(model.location))
    asked = [[{"role": "user", "content": f"Make record {i}."}] for i in range(rows)]
    answers, repaired = structured.complete(backend, asked, Sampling(max_tokens=256), list(range(rows)), SCHEMA)
    backend.close()
    valid = sum(isinstance(a, Answer) and structured.problem(a.text, SCHEMA) is None for a in answers)
    return {"rows": rows, "valid": valid, "repaired": len(repaired)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full work")
    parser.add_argument("--only", nargs="*", default=["engines", "overhead", "faults", "guided"])
    options = parser.parse_args()
    from tests.generators.conftest import build_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(str(folder / "store"))
        built = build_model(
            folder / "model", context=512, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
            num_attention_heads=8, num_key_value_heads=4, initializer_range=0.05,
        )  # fmt: skip
        model = carry_out(store, "copied", Copied.model_validate({"folder": str(built)}), {})

        def scaled(full: int) -> int:
            return max(64, int(full * options.scale))

        work: dict[str, Callable[[], dict[str, Any]]] = {
            "engines": lambda: against_engines(store, model, scaled(2000)),
            "overhead": lambda: overhead(store, model, scaled(100_000)),
            "faults": lambda: faults(folder, scaled(5000)),
            "guided": lambda: guided(model, scaled(1000)),
        }
        result: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "scale": options.scale}
        for part in options.only:
            result[part] = work[part]()
            if not options.json:
                print(part, json.dumps(result[part], indent=1))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
