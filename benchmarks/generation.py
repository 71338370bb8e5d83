"""Generation, measured against the raw engine and its peers, in one run on one machine; every claim with its bar.

    python -m benchmarks.generation --json          # as the project states its numbers
    python -m benchmarks.generation --json --quick  # does it run, not how well

Weights are random (Llamas made from configs), so nothing is downloaded; the work is the same as with trained ones.
distilabel has no release for this vLLM: it asks a local OpenAI-compatible server, as Flywheel then does, from an
environment of its own (`--peer-env`, made on first use).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.parts.moments import Moment, Moments
from engine.errors import FlywheelError, UserError
from engine.execution.worker import carry_out
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS
from engine.store.store import Store
from generators.backends.local_model import Local
from generators.backends.process.watched import WatchedEngine
from generators.backends.protocol import Backend, Completion, Sampling
from generators.candidates.stage import Candidates
from generators.text.chat_template import ChatTemplate
from generators.text.prompts import load_tokenizer

ROOT = Path(__file__).parents[1]
N, MAX_TOKENS, PARTITION = 4, 128, 512
TURNS = 2
MIN_STEPS = 80  # of a batch that is killed
ENDS = list(range(40, 48))  # of 287 ids: an answer of random weights has 36 tokens on average
FLYWHEEL = [sys.executable, "-c", "from engine.cli import main; main()"]


class Made(Stage):
    """A stage that commits the prompts of the benchmark."""

    gives = "Prompt"
    count: int
    first: int = 0

    def run(self, job: Any) -> None:
        import pyarrow as pa

        rows = [
            {"id": f"{i:032x}", "parents": [], "prompt": [{"role": "user", "content": f"What is {i} times {i * 7}?"}]}
            for i in range(self.first, self.first + self.count)
        ]
        job.commit("00000", pa.Table.from_pylist(rows, DATASETS["Prompt"]))


class Copied(Stage):
    gives = "Model"
    folder: str

    def run(self, job: Any) -> None:
        import shutil

        shutil.copytree(self.folder, job.output, dirs_exist_ok=True)


class Kept(Local):
    """A backend that outlives the stages it answers for."""

    def close(self) -> None: ...


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
    with patch("generators.candidates.work.open_model", lambda *a, **k: backend):  # pyright: ignore
        started = time.perf_counter()
        made = carry_out(
            store,
            "candidates",
            Candidates.model_validate({"seed": 0, "n": N, **config}),
            {"model": {"m": model}, "prompts": {"p": prompts}},
        )
        return made, time.perf_counter() - started


def against_engines(store: Store, folder: Path, count: int) -> dict[str, Any]:
    """Tokens/s after load: the stage, `LLM.generate` as a script would call it, and `transformers.generate`.

    They take turns, on the same prompts, so that whatever else the machine does slows them alike. Answers end where one of
    `ENDS` is drawn, as real ones do: at all lengths up to MAX_TOKENS.
    """
    from generators.backends.vllm.engine import VllmEngine

    model = carry_out(store, "ending", Copied.model_validate({"folder": str(small_llama(folder / "ending", ENDS))}), {})
    tokenizer = load_tokenizer(model.location)
    engine, bare = WatchedEngine("vllm", model.location, dtype="float32"), VllmEngine(model.location, dtype="float32")
    llm: Any = bare._llm  # pyright: ignore[reportPrivateUsage]
    tokens, seconds = defaultdict[str, int](int), defaultdict[str, float](float)
    per_turn = count // TURNS

    def clock(name: str, work: Callable[[], int]) -> None:
        started = time.perf_counter()
        tokens[name] += work()
        seconds[name] += time.perf_counter() - started

    def stage(prompts: Artifact) -> int:
        made, _ = candidates(store, model, prompts, Kept(engine, tokenizer), max_tokens=MAX_TOKENS, partition=PARTITION)
        return made.manifest["summary"]["tokens_out"]

    def script(ids: list[list[int]], seeded: bool) -> int:
        from vllm import SamplingParams

        params = [
            SamplingParams(
                n=N, temperature=1.0, max_tokens=MAX_TOKENS, logprobs=0, stop_token_ids=ENDS,
                seed=i if seeded else None,
            )
            for i in range(len(ids))
        ]  # fmt: skip
        outputs = llm.generate([{"prompt_token_ids": one} for one in ids], params, use_tqdm=False)
        return sum(len(c.token_ids) for o in outputs for c in o.outputs)

    for turn in range(TURNS):
        prompts = carry_out(store, "made", Made.model_validate({"count": per_turn, "first": turn * per_turn}), {})
        ids = [ChatTemplate(tokenizer).prompt(row["prompt"]) for row in prompts.to_table().to_pylist()]
        if not turn:
            for warm in (engine, bare):
                warm.generate(ids[:8], Sampling(max_tokens=8), range(8))
        clock("candidates", lambda prompts=prompts: stage(prompts))
        clock("bare_vllm", lambda ids=ids: script(ids, False))
        clock("bare_vllm_with_seeds", lambda ids=ids: script(ids, True))
        clock("transformers", lambda ids=ids: hf_generate(model, ids[: max(32, per_turn // 10)]))
    bare.close()
    engine.close()
    rates = {name: tokens[name] / seconds[name] for name in tokens}
    return {
        "tokens_per_s": {name: round(rate) for name, rate in rates.items()},
        "share_of_bare_vllm": round(rates["candidates"] / rates["bare_vllm"], 3),
        "share_of_bare_vllm_with_seeds": round(rates["candidates"] / rates["bare_vllm_with_seeds"], 3),
        "times_transformers": round(rates["candidates"] / rates["transformers"], 2),
        "prompts": count, "n": N, "max_tokens": MAX_TOKENS, "partition": PARTITION,
        "mean_tokens": round(tokens["candidates"] / (per_turn * TURNS * N), 1),
    }  # fmt: skip


def small_llama(folder: Path, ends: Sequence[int] = ()) -> Path:
    """Four layers 256 wide with random weights; `ends` are further ids that end an answer."""
    from tests.generators.conftest import build_model

    shape: dict[str, Any] = {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "initializer_range": 0.05,
    }  # fmt: skip
    if ends:
        shape["eos_token_id"] = list(ends)
    return build_model(folder, context=512, **shape)


def hf_generate(model: Artifact, ids: list[list[int]]) -> int:
    """Tokens that `transformers.generate` draws, 16 prompts a batch."""
    import torch
    from transformers import AutoModelForCausalLM

    policy: Any = AutoModelForCausalLM.from_pretrained(model.location, dtype=torch.float32, trust_remote_code=False)
    tokens = 0
    for start in range(0, len(ids), 16):
        batch = ids[start : start + 16]
        longest = max(map(len, batch))
        inputs = torch.tensor([[0] * (longest - len(one)) + one for one in batch])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in batch])
        made = policy.generate(
            input_ids=inputs, attention_mask=mask, do_sample=True, num_return_sequences=N, max_new_tokens=MAX_TOKENS,
            top_k=0, pad_token_id=0,
        )[:, longest:]  # fmt: skip
        ended = torch.isin(made, torch.tensor(ENDS)).cumsum(1)
        tokens += int(((ended == 0) | ((ended == 1) & torch.isin(made, torch.tensor(ENDS)))).sum())
    return tokens


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
    from generators.backends.protocol import Answer
    from generators.backends.server.chat_completions import ServerBackend
    from generators.backends.server.settings import ServerSettings
    from tests.generators.faulty_server import FaultyServer, said

    asked = [[{"role": "user", "content": f"question {i}"}] for i in range(count)]
    result: dict[str, Any] = {"requests": count}
    for name, share in (("clean", 0.0), ("faulty", 0.3)):
        with FaultyServer(share=share, capacity=32, seconds=0.2) as server:
            backend = ServerBackend(
                ServerSettings.model_validate({"model": "m", "url": server.url, "timeout_s": 20, "attempts": 20}),
                folder / f"{name}.sqlite",
            )
            started = time.perf_counter()
            answers = backend.complete(asked, Sampling(logprobs=False), range(count))
            seconds = time.perf_counter() - started
            backend.close()
        right = sum(isinstance(a, Answer) and a.text == said(asked[i], i) for i, a in enumerate(answers))
        result[name] = {
            "seconds": round(seconds, 2), "answered": right, "served_twice": sum(n > 1 for n in server.served.values()),
            "retries": backend.usage.retries, "faults": dict(server.faults),
        }  # fmt: skip
    result["times_clean"] = round(result["faulty"]["seconds"] / result["clean"]["seconds"], 2)
    return result


def guided(model: Artifact, rows: int) -> dict[str, Any]:
    """Rows of a random-weight model that parse and follow a nested schema; and what a schema without any row gives."""
    from generators.backends import json_answers
    from generators.backends.protocol import Answer
    from tests.generators.backends.nested_schema import SCHEMA

    backend = Local(WatchedEngine("vllm", model.location, dtype="float32"), load_tokenizer(model.location))
    asked = [[{"role": "user", "content": f"Make record {i}."}] for i in range(rows)]
    answers, repaired = json_answers.complete(backend, asked, Sampling(max_tokens=256), list(range(rows)), SCHEMA)
    impossible = {"type": "integer", "minimum": 5, "maximum": 3}
    try:
        told = str(json_answers.complete(backend, asked[:1], Sampling(), [0], impossible)[0])
    except UserError as error:
        told = f"UserError: {error}"
    backend.close()
    valid = sum(isinstance(a, Answer) and json_answers.problem(a.text, SCHEMA) is None for a in answers)
    return {"rows": rows, "valid": valid, "repaired": len(repaired), "impossible": told[:200]}


def kills(folder: Path, times: int) -> dict[str, Any]:
    """`kill -9` in the middle of a batch: of the vLLM worker within one run, and of Flywheel, run again each time."""
    from tests.generators.conftest import build_model

    model = build_model(folder / "small")
    prompts = [{"id": f"{i:032x}", "prompt": f"What is {i} times {i * 7}?"} for i in range(8 * (2 * times + 4))]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    recipe = folder / "kills.yaml"
    recipe.write_text(
        f"name: kills\nseed: 1\nstages:\n  made: {{kind: candidates, from: {{model: {model}, prompts: "
        f"./prompts.jsonl}}, n: 16, max_tokens: 100, min_tokens: {MIN_STEPS}, partition: 8, options: {{kv_cache_gib: 1}}}}\n"
    )
    truth = Run(folder / "calm", recipe)
    truth.wait()
    runs = {"worker": Run(folder / "worker", recipe), "flywheel": Run(folder / "flywheel", recipe)}
    results: dict[str, Any] = {"rows": truth.artifact.rows, "times": times}
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        killing = {
            "worker": pool.submit(runs["worker"].kill_the_engine, times, len(prompts) // 8),
            "flywheel": pool.submit(runs["flywheel"].kill_flywheel, truth.moments.draw(times, seed=7)),
        }
        told = {name: future.result() for name, future in killing.items()}
    for name, run in runs.items():
        rows = run.artifact.to_table(["prompt_id", "sample"]).to_pylist()
        results[name] = {
            "kills": told[name],
            "rows": run.artifact.rows,
            "distinct": len({(row["prompt_id"], row["sample"]) for row in rows}),
            "same_bytes": run.artifact.digest == truth.artifact.digest,
        }
    return {**results, "seconds": round(time.perf_counter() - started, 1)}


class Run:
    """`flywheel run` of one recipe in a store of its own."""

    def __init__(self, store: Path, recipe: Path) -> None:
        self.store, self.recipe = store, recipe
        self.moments = Moments(store.with_suffix(".moments"), store)
        self.log = store.with_suffix(".log")

    def attempt(self) -> int:
        """Until it ends; its exit code."""
        command = [*FLYWHEEL, "run", str(self.recipe), "--store", str(self.store)]
        env = {**os.environ, **self.moments.environment}
        with self.log.open("ab") as log:
            return subprocess.run(command, stdout=log, stderr=log, cwd=ROOT, env=env, start_new_session=True).returncode

    def wait(self) -> None:
        """To the end.

        Raises:
            RuntimeError: it did not get there.
        """
        self.moments.arm(None)
        if self.attempt():
            raise RuntimeError(f"flywheel run failed: {self.log.read_text()[-2000:]}")

    @property
    def artifact(self) -> Artifact:
        return Store(str(self.store)).find("kills/made")

    def kill_the_engine(self, times: int, batches: int) -> int:
        """Kill the engine's process in `times` of so many batches of one run, each at a step of its own."""
        chance = random.Random(7)
        for batch in chance.sample(range(batches), times):
            self.moments.fuse(batch, chance.randrange(MIN_STEPS))
        self.wait()
        return times - self.moments.fuses

    def kill_flywheel(self, moments: list[Moment]) -> int:
        """Kill Flywheel's own processes at each of these moments, and run it again."""
        for place, moment in enumerate(moments):
            # The command, the stage's process, or both at once: whoever is left has to notice.
            self.moments.arm(moment, ("command", "stage", "both")[place % 3])
            self.attempt()
            if self.moments.kills != place + 1:
                raise RuntimeError(f"a run that was to be killed ended: {self.log.read_text()[-2000:]}")
        self.wait()
        return self.moments.kills


def against_distilabel(folder: Path, count: int, home: Path) -> dict[str, Any]:
    """Rows/s of `candidates` and of distilabel from the same server: 64 requests at once, 0.1 s each."""
    try:
        python = peer_python(home)
    except (subprocess.CalledProcessError, OSError) as error:
        return {"failed": f"its environment can't be made: {error}"}
    texts = [f"What is {i} times {i * 7}?" for i in range(count)]
    prompts, out = folder / "texts.json", folder / "distilabel.json"
    prompts.write_text(json.dumps(texts))
    rows = [
        {"id": f"{i:032x}", "parents": [], "prompt": [{"role": "user", "content": text}]}
        for i, text in enumerate(texts)
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.generators.faulty_server", "0.1", "64"], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdout is not None and server.stdin is not None
    try:
        url = server.stdout.readline().strip()
        peer = subprocess.run(
            [python, str(ROOT / "benchmarks" / "peers" / "distilabel_generate.py"), url, str(prompts), str(out)],
            capture_output=True, text=True, timeout=300, cwd=folder,
        )  # fmt: skip
        store = Store(str(folder / "distilabel"))
        asked = carry_out(store, "given", Asked.model_validate({"rows": rows}), {})
        started = time.perf_counter()
        config = {"seed": 0, "n": 1, "server": {"model": "m", "url": url}, "logprobs": False, "partition": 512}
        made = carry_out(store, "candidates", Candidates.model_validate(config), {"prompts": {"p": asked}})
        ours = made.rows / (time.perf_counter() - started)
    finally:
        server.stdin.close()
        server.wait()
    if peer.returncode or not out.exists():
        return {"flywheel_rows_per_s": round(ours), "failed": peer.stderr[-500:]}
    told = json.loads(out.read_text())
    theirs = told["rows"] / told["seconds"]
    return {
        "rows": count, "flywheel_rows": made.rows, "distilabel_rows": told["rows"], "version": told["version"],
        "flywheel_rows_per_s": round(ours), "distilabel_rows_per_s": round(theirs), "ratio": round(ours / theirs, 2),
    }  # fmt: skip


class Asked(Stage):
    gives = "Prompt"
    rows: list[dict[str, Any]]

    def run(self, job: Any) -> None:
        import pyarrow as pa

        job.commit("00000", pa.Table.from_pylist(self.rows, DATASETS["Prompt"]))


def peer_python(home: Path) -> str:
    """The interpreter of distilabel's own environment, made and filled if need be."""
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, stdout=sys.stderr)
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
        pip = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
        subprocess.run([*pip, "-q", "distilabel[openai]==1.5.3", "requests"], check=True, stdout=sys.stderr)
    return str(python)


def bad_input(folder: Path, model: Artifact) -> dict[str, str]:
    """What each bad input comes to: the message and exit code, or the reason in `rejected`."""
    room, store = int(load_config(model)["max_position_embeddings"]), Store(str(folder / "bad"))
    rows = [
        {"id": name * 32, "parents": [], "prompt": [{"role": "user", "content": text}]}
        for name, text in (("a", "fine"), ("b", "word " * room), ("c", " "))
    ]
    asked = carry_out(store, "asked", Asked.model_validate({"rows": rows}), {})
    config = {"seed": 0, "n": 1, "max_tokens": 2, "engine": "transformers", "max_failed": 0.9}
    made = carry_out(
        store, "candidates", Candidates.model_validate(config), {"model": {"m": model}, "prompts": {"p": asked}}
    )
    reasons = {row["id"][0]: row["reason"] for row in (made.rejected() or DATASETS["Prompt"].empty_table()).to_pylist()}
    told = {"too_long": reasons.get("b", "delivered"), "empty": reasons.get("c", "delivered")}
    (folder / "twice.jsonl").write_text('{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}\n')
    (folder / "once.jsonl").write_text('{"id": "x", "prompt": "a"}\n')
    (folder / "facts.jsonl").write_text('{"text": "a", "country": "France"}\n')
    recipes = {
        "duplicate_ids": f"kind: candidates, from: {{model: {model.location}, prompts: ./twice.jsonl}}",
        "no_model": "kind: candidates, from: {model: ./nowhere, prompts: ./once.jsonl}",
        "undefined_name": "kind: corpus, from: {records: ./facts.jsonl}, documents: 1, templates: ['In {{ contry }}']",
        "no_schema": f"kind: candidates, from: {{model: {model.location}, prompts: ./once.jsonl}}, "
        "json_schema: {type: strin}",
    }
    for name, stage in recipes.items():
        recipe = folder / f"{name}.yaml"
        recipe.write_text(f"name: {name}\nseed: 1\nstages:\n  s: {{{stage}}}\n")
        ended = subprocess.run(
            [*FLYWHEEL, "run", str(recipe), "--store", str(store.url)], capture_output=True, text=True, cwd=ROOT
        )
        said = " ".join(ended.stderr.split())[-400:]
        told[name] = f"exit {ended.returncode}: {said}" if "Traceback" not in ended.stderr else "a traceback"
    return told


def load_config(model: Artifact) -> dict[str, Any]:
    return json.loads((model.path / "config.json").read_text())


def claims(result: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """Each line that has to be shown: what was measured, the bar, and whether it holds."""
    told = list[dict[str, Any]]()

    def claim(part: str, name: str, bar: str, value: Callable[[Any], Any], holds: Callable[[Any], bool]) -> None:
        entry: dict[str, Any] = {"id": name, "value": None, "bar": bar, "holds": False}
        measured = result.get(part)
        if measured is None or "failed" in measured:
            entry["why"] = "not run" if measured is None else str(measured["failed"])
        else:
            entry["value"] = value(measured)
            entry["holds"] = bool(holds(measured))
        told.append(entry)

    claim("engines", "share_of_bare_vllm", ">= 0.97", lambda m: m["share_of_bare_vllm"], lambda m: m["share_of_bare_vllm"] >= 0.97)  # fmt: skip
    claim("engines", "share_of_bare_vllm_with_seeds", ">= 0.97", lambda m: m["share_of_bare_vllm_with_seeds"], lambda m: m["share_of_bare_vllm_with_seeds"] >= 0.97)  # fmt: skip
    claim("engines", "times_transformers", ">= 3", lambda m: m["times_transformers"], lambda m: m["times_transformers"] >= 3)  # fmt: skip
    claim("distilabel", "times_distilabel", ">= 1 (rows/s, same server)", lambda m: m["ratio"], lambda m: m["ratio"] >= 1 and m["flywheel_rows"] == m["rows"])  # fmt: skip
    claim("overhead", "microseconds_per_row", "< 100", lambda m: m["microseconds_per_row"], lambda m: m["microseconds_per_row"] < 100)  # fmt: skip
    claim("faults", "rows_exactly_once", "all", lambda m: m["faulty"]["answered"], lambda m: m["faulty"]["answered"] == m["requests"])  # fmt: skip
    claim("faults", "faulty_times_clean", "<= 1.5", lambda m: m["times_clean"], lambda m: m["times_clean"] <= 1.5)
    for name in ("worker", "flywheel"):

        def whole(m: Any, name: str = name) -> bool:
            run = m[name]
            return run["same_bytes"] and run["kills"] >= m["times"] and run["rows"] == run["distinct"] == m["rows"]

        claim("kills", f"{name}_killed", "10 kills, same rows, same bytes", lambda m, name=name: m[name], whole)
    claim("guided", "guided_rows_valid", "all", lambda m: m["valid"], lambda m: m["valid"] == m["rows"])
    claim("guided", "impossible_schema", "a clear error", lambda m: m["impossible"], lambda m: "can't be enforced" in m["impossible"])  # fmt: skip
    expected = {
        "too_long": ("too_long",), "empty": ("empty_prompt",), "duplicate_ids": ("exit 2", "unique"),
        "no_model": ("exit 2", "nowhere"), "undefined_name": ("exit 2", "contry"),
        "no_schema": ("exit 2", "not a JSON Schema"),
    }  # fmt: skip

    def told_why(m: dict[str, str]) -> bool:
        return all(word in m[name] for name, words in expected.items() for word in words)

    claim("bad_input", "bad_input", "a reason, or exit code 2 and what is wrong", lambda m: m, told_why)
    if quick:
        for entry in told:
            entry["quick"] = True
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the work")
    parser.add_argument("--peer-env", type=Path, default=Path(tempfile.gettempdir()) / "flywheel-distilabel")
    parser.add_argument("--only", nargs="*", metavar="PART", help="some parts only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(str(folder / "store"))
        built = small_llama(folder / "model")
        model = carry_out(store, "copied", Copied.model_validate({"folder": str(built)}), {})

        def scaled(full: int) -> int:
            return max(64, full // 20) if options.quick else full

        work: dict[str, Callable[[], dict[str, Any]]] = {
            "engines": lambda: against_engines(store, folder, scaled(2000)),
            "overhead": lambda: overhead(store, model, scaled(100_000)),
            "faults": lambda: faults(folder, scaled(5000)),
            "distilabel": lambda: against_distilabel(folder, scaled(5000), options.peer_env),
            "guided": lambda: guided(model, scaled(1000)),
            "kills": lambda: kills(folder, 1 if options.quick else 10),
            "bad_input": lambda: bad_input(folder, model),
        }
        result: dict[str, Any] = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "transformers", "openai")}, "quick": options.quick,
        }  # fmt: skip
        for part in options.only or work:
            started, cpu = time.perf_counter(), sum(os.times()[:4])
            try:
                result[part] = work[part]()
            except (FlywheelError, RuntimeError, OSError, subprocess.SubprocessError) as error:
                result[part] = {"failed": f"{type(error).__name__}: {error}"[-800:]}
            took = {"wall_s": time.perf_counter() - started, "cpu_s": sum(os.times()[:4]) - cpu}
            result.setdefault("took", {})[part] = {name: round(value, 1) for name, value in took.items()}
            if not options.json:
                print(part, json.dumps(result[part], indent=1), flush=True)
        result["claims"] = claims(result, options.quick)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
