"""`candidates`: n sampled answers to every prompt, with the token ids and log-probabilities as they were sampled.

Prompts are cut into partitions; each is one batch of the engine and one file. A sample's seed is derived from its
prompt and its number, and a batch depends on nothing that ran before it, so a run that was killed goes on at the next
partition and ends with the same bytes. While one batch is sampled, another is tokenised or written.

Several models, servers and temperatures are mixed by dealing: sample s of a prompt comes from who answers s modulo their
number, and each of them goes through the temperatures in turn. One after another is loaded, and answers everything
that is its.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import polars as pl
import pyarrow as pa
from pydantic import BeforeValidator, Field, field_validator, model_validator

from engine.errors import UserError
from engine.stage.job import Job, Part
from engine.stage.stage import NotIdentity, Stage, port
from engine.store.digest import digest_json
from engine.store.parquet import read_parquet
from engine.store.schema import DATASETS, row_id
from generators.backends import json_answers as structured
from generators.backends.in_flight import in_flight
from generators.backends.protocol import (
    Answer,
    Backend,
    Engine,
    Failure,
    Sampling,
    Usage,
    open_model,
    open_server,
    told,
)
from generators.backends.server.chat_completions import Server
from generators.text.prompts import Message, prompt_of

# Options of an engine that say where it runs: they are no part of what is made.
HARDWARE = {
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "gpu_memory_utilization", "kv_cache_gib",
    "kv_cache_memory_bytes", "distributed_executor_backend", "data_parallel_backend", "enforce_eager", "swap_space",
}  # fmt: skip


def listed(value: Any) -> Any:
    return value if isinstance(value, list) else [] if value is None else [value]


class Candidates(Stage):
    """Sample n answers to every prompt from a model, or from several."""

    takes = {
        "model": port("Model", "Adapter", optional=True, many=True),
        "prompts": port("Prompt", "Conversation", many=True),
    }
    gives = "Candidate"
    phase = "generation"
    random = True
    version = 2

    n: int = Field(4, ge=1, description="Answers a prompt.")
    temperature: Annotated[list[Annotated[float, Field(ge=0, le=10)]], BeforeValidator(listed)] = Field(
        [1.0], min_length=1, description="0 is greedy. Several are taken in turn."
    )
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 keeps every token.")
    max_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")
    min_tokens: int = Field(0, ge=0)
    distinct: bool = Field(
        False, description="Drop an answer that says what an earlier one of the same model to the same prompt says."
    )
    logprobs: bool = Field(True, description="Keep the log-probability of every sampled token.")
    json_schema: dict[str, Any] | None = Field(None, description="A JSON Schema that every answer must follow.")
    partition: int = Field(64, ge=1, description="Prompts a partition: one batch of the engine, one file.")
    engine: Engine = Field(
        "vllm", description="vllm; serve: a `vllm serve` of its own; transformers: slow, but runs anywhere."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the checkpoint's own.")
    max_model_len: int | None = Field(
        None, ge=2, description="Longest prompt plus answer; the model's own if left out."
    )
    options: dict[str, Any] = Field(
        {}, description="Further options of vLLM, by its names: speculative_config, tensor_parallel_size, quantization."
    )
    replicas: Annotated[int, NotIdentity] = Field(1, ge=1, description="Engines that share the partitions.")
    server: Annotated[list[Server], BeforeValidator(listed)] = Field(
        [], description="An OpenAI-compatible server that answers, or several; beside or instead of models."
    )

    @field_validator("json_schema")
    @classmethod
    def _check_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return value if value is None else structured.checked_schema(value)

    @model_validator(mode="after")
    def _check_engine(self) -> Candidates:
        if self.options and self.engine == "transformers":
            raise ValueError("`options` are vLLM's; `engine: transformers` has none")
        if self.replicas > 1 and self.engine == "serve":
            raise ValueError("`engine: serve` shares requests out by itself: `options: {data_parallel_size: ...}`")
        return self

    def identity(self) -> dict[str, Any]:
        options = {name: value for name, value in self.options.items() if name not in HARDWARE}
        return {**super().identity(), "server": [one.identity() for one in self.server], "options": options}

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None if self.distinct else self.n * rows["prompts"]

    def run(self, job: Job) -> None:
        answerers = self._answerers(job)
        repeated, done = repeated_ids(job), job.committed()
        spent: dict[str, Usage] = {}
        for place, (name, open_) in enumerate(answerers):
            share = Share(name, place, range(place, self.n, len(answerers)), self.temperature, len(answerers))

            def ask(part: Part, share: Share, backend: Backend) -> Batch:
                asked, rejected = read_prompts(part, self.partition, repeated)
                return self._ask(job, share, backend, asked, [] if share.place else rejected)

            parts = (part for part in job.parts("prompts", rows=self.partition) if share.part(part) not in done)
            with contextlib.closing(open_()) as backend:
                for part, batch in in_flight(
                    parts, backend.width, lambda part, share=share, backend=backend: ask(part, share, backend)
                ):
                    table, failed = self._rows(batch, share)
                    rejected = batch.rejected + failed
                    job.commit(share.part(part), table, pa.Table.from_pylist(rejected) if rejected else None)
                    told(job, backend.usage)
                spent[name] = backend.usage
        job.spent = {
            name: {"tokens_in": u.tokens_in, "tokens_out": u.tokens_out, "cost": u.cost, "retries": u.retries}
            for name, u in spent.items()
        }
        job.summary(asked=self.n * job.rows("prompts"), **totals(job))

    def _answerers(self, job: Job) -> list[tuple[str, Callable[[], Backend]]]:
        """Who answers: the name that goes into the rows, and how to begin.

        Raises:
            UserError: nobody does, or `n` is too small for all of them to.
        """
        options: dict[str, Any] = {"dtype": self.dtype, "max_model_len": self.max_model_len, "options": self.options}
        if self.engine == "transformers":
            options.pop("options")
        who: list[tuple[str, Callable[[], Backend]]] = [
            (model.id, lambda model=model: open_model(job, model, self.engine, self.replicas, **options))
            for model in job.all("model")
        ]
        who += [(server.model, lambda server=server: open_server(job, server)) for server in self.server]
        if not who:
            raise UserError(
                "who answers? Expected a model among the inputs (`from: {model: ...}`) or a `server:`, found neither."
            )
        if len({name for name, _ in who}) < len(who):
            raise UserError(f"who answers? One is named twice: {', '.join(name for name, _ in who)}.")
        if (pairs := len(who) * len(self.temperature)) > self.n:
            raise UserError(
                f"`n: {self.n}` is too small for {len(who)} who answer at {len(self.temperature)} temperatures: each "
                f"prompt gets one answer of each, so {pairs} at least."
            )
        return who

    def _ask(
        self, job: Job, share: Share, backend: Backend, asked: list[dict[str, Any]], rejected: list[dict[str, Any]]
    ) -> Batch:
        """Have the prompts of a partition answered."""
        sampling = Sampling(
            0.0,
            self.top_p,
            self.top_k,
            self.max_tokens,
            min_tokens=self.min_tokens,
            logprobs=self.logprobs,
        )
        seeds = [job.derive("candidates", row["id"], sample) for row in asked for sample in share.samples]
        conversations: list[list[Message]] = [row["prompt"] for row in asked for _ in share.samples]
        hot = [share.temperature(sample) for _ in asked for sample in share.samples]
        answers: list[Answer | Failure] = [Failure("", "")] * len(seeds)
        repaired = set[int]()
        for temperature in dict.fromkeys(hot):
            mine = [i for i, one in enumerate(hot) if one == temperature]
            drawn = replace(sampling, temperature=temperature)
            some, some_seeds = [conversations[i] for i in mine], [seeds[i] for i in mine]
            if self.json_schema is None:
                made = backend.complete(some, drawn, some_seeds)
            else:
                made, mended = structured.complete(backend, some, drawn, some_seeds, self.json_schema)
                repaired |= {mine[i] for i in mended}
            for i, one in zip(mine, made, strict=True):
                answers[i] = one
        return Batch(asked, rejected, seeds, answers, repaired)

    def _parameters(self, temperature: float, repaired: bool) -> str:
        """How a row was drawn, as JSON."""
        parameters: dict[str, Any] = {"temperature": temperature}
        parameters |= {name: getattr(self, name) for name in ("top_p", "top_k", "max_tokens", "min_tokens")}
        if self.json_schema is not None:
            parameters["json_schema"] = digest_json(self.json_schema)
        return json.dumps({**parameters, "repaired": True} if repaired else parameters)

    def _rows(self, batch: Batch, share: Share) -> tuple[pa.Table, list[dict[str, Any]]]:
        """The Candidate rows of one batch, and those that did not make it. A prompt that fails is one row."""
        asked, answers, seeds, model = batch.asked, batch.answers, batch.seeds, share.model
        n = len(share.samples)
        parameters = {
            (t, mended): self._parameters(t, mended) for t in self.temperature for mended in (False, True)
        }  # fmt: skip
        kept, ids, drawn, failed = list[int](), list[str](), list[str](), list[dict[str, Any]]()
        first: dict[tuple[str, str], str] = {}
        for index, (answer, seed) in enumerate(zip(answers, seeds, strict=True)):
            prompt, sample = asked[index // n], share.samples[index % n]
            if isinstance(answer, Failure):
                why = {"reason": answer.reason, "detail": answer.detail, "failed": True}
                if not (failed and failed[-1] == {**prompt, **why}):
                    failed.append({**prompt, **why})
                continue
            sampling = parameters[share.temperature(sample), index in batch.repaired]
            content = answer.text if answer.token_ids is None else repr(answer.token_ids)
            one = row_id("Candidate", prompt["id"], model, sampling, seed, sample, content)
            earlier = first.setdefault((prompt["id"], answer.text), one) if self.distinct else one
            if earlier == one:
                kept.append(index)
                ids.append(one)
                drawn.append(sampling)
            else:
                why = {"reason": "duplicate", "detail": f"says what {earlier} says", "failed": False}
                failed.append({**prompt, "id": one, **why})
        # Column by column: building rows of nested lists one by one took most of the time that is not the engine's.
        schema = DATASETS["Candidate"]
        prompts = pa.Table.from_pylist(
            asked, pa.schema([schema.field("id"), schema.field("prompt"), schema.field("reference")])
        )
        prompts = prompts.take(pa.array([index // n for index in kept], pa.int64()))
        given = [answer for index in kept if isinstance(answer := answers[index], Answer)]
        prompt_ids = prompts["id"].combine_chunks()
        lists = pa.ListArray.from_arrays(pa.array(range(len(kept) + 1), pa.int32()), prompt_ids)
        said = pa.StructArray.from_arrays(
            [
                pa.array(["assistant"] * len(kept), pa.string()),
                pa.array([answer.text for answer in given], pa.string()),
            ],
            ["role", "content"],
        )
        columns: dict[str, Any] = {
            "id": ids,
            "parents": lists,
            "prompt_id": prompt_ids,
            "prompt": prompts["prompt"],
            "completion": pa.ListArray.from_arrays(pa.array(range(len(kept) + 1), pa.int32()), said),
            "prompt_token_ids": [answer.prompt_token_ids for answer in given],
            "token_ids": [answer.token_ids for answer in given],
            "logprobs": [answer.logprobs for answer in given],
            "finish_reason": [answer.finish_reason for answer in given],
            "model": [model] * len(kept),
            "sampling": drawn,
            "seed": [seeds[index] for index in kept],
            "sample": [share.samples[index % n] for index in kept],
            "reference": prompts["reference"],
        }
        table = pa.table({
            field.name: value if isinstance(value := columns[field.name], pa.Array | pa.ChunkedArray)
            else pa.array(value, field.type)
            for field in schema
        })  # fmt: skip
        # Counted, not derived: a server that tells no ids tells how many there were.
        for name in COUNTED:
            table = table.append_column(name, pa.array([getattr(answer, name) for answer in given], pa.int32()))
        return table, failed


COUNTED = ("tokens_in", "tokens_out")


@dataclass(frozen=True)
class Share:
    """Which samples of every prompt one of those who answer makes.

    Attributes:
        model: the name that goes into the rows.
        place: among those who answer, from 0.
        answerers: how many those are.
    """

    model: str
    place: int
    samples: range
    temperatures: list[float]
    answerers: int

    def temperature(self, sample: int) -> float:
        return self.temperatures[sample // self.answerers % len(self.temperatures)]

    def part(self, part: Part) -> str:
        """The name of a partition of its rows."""
        return part.name if self.answerers == 1 else f"{part.name}-{self.place}"


@dataclass(frozen=True)
class Batch:
    """A partition that was answered: prompts, those that could not be asked, and for each sample its seed and answer."""

    asked: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    seeds: list[int]
    answers: list[Answer | Failure]
    repaired: set[int]


def repeated_ids(job: Job) -> dict[str, int]:
    """Ids that several prompts have, with the position of the first of them."""
    first, repeated, position = dict[str, int](), dict[str, int](), 0
    for artifact in job.all("prompts"):
        for batch in artifact.batches(["id"]):
            for one in batch.column("id").to_pylist():
                if first.setdefault(one, position) != position:
                    repeated[one] = first[one]
                position += 1
    return repeated


def read_prompts(part: Part, size: int, repeated: dict[str, int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The prompts of a partition (`id`, `prompt`, `reference`), and those whose id was there before.

    Args:
        size: prompts a partition.
        repeated: as `repeated_ids` gives it.
    """
    start = int(part.name.split("-")[0]) * size
    asked, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
    for position, row in enumerate(part.table.to_pylist(), start):
        messages, reference = prompt_of(row)
        prompt: dict[str, Any] = {"id": row["id"], "prompt": messages, "reference": reference}
        if repeated.get(row["id"], position) == position:
            asked.append(prompt)
        else:
            detail = f"the prompt with this id was there before, at row {repeated[row['id']]}"
            rejected.append({**prompt, "reason": "duplicate_id", "detail": detail, "failed": True})
    return asked, rejected


def totals(job: Job) -> dict[str, Any]:
    """Rows, tokens in and out and finish reasons over everything committed, and for each model."""
    frames = list[pl.DataFrame]()
    for name in sorted(job.committed()):
        with job.store.fs.open(job.store.path("artifacts", job.artifact, "data", f"{name}.parquet"), "rb") as file:
            frames.append(pl.DataFrame(read_parquet(file, ["model", "finish_reason", *COUNTED])))
    rows = pl.concat(frames) if frames else pl.DataFrame()
    if rows.is_empty():
        return {"delivered": 0}

    def count(some: pl.DataFrame) -> dict[str, Any]:
        finish = Counter[str](some["finish_reason"].to_list())
        sums = {name: int(some[name].sum()) for name in COUNTED}
        return {"delivered": len(some), **sums, "finish": dict(sorted(finish.items()))}

    models = sorted(rows["model"].unique().to_list())
    each = {model: count(rows.filter(pl.col("model") == model)) for model in models}
    return {**count(rows), "models": each}
