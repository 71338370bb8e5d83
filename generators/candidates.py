"""`candidates`: n sampled answers to every prompt, with the token ids and log-probabilities as they were sampled.

Prompts are cut into partitions; each is one batch of the engine and one file. A sample's seed is derived from its
prompt and its number, and a batch depends on nothing that ran before it, so a run that was killed goes on at the next
partition and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from engine.job import Job, Part
from engine.schema import DATASETS, row_id
from engine.stage import Stage, port
from engine.store import digest_json
from generators import structured
from generators.backend import Answer, Engine, Failure, Sampling, open_backend
from generators.openai_backend import Server
from generators.prompting import prompt_of


class Candidates(Stage):
    """Sample n answers to every prompt from a model."""

    takes = {"model": port("Model", optional=True), "prompts": port("Prompt", "Conversation", many=True)}
    gives = "Candidate"
    random = True

    n: int = Field(4, ge=1, description="Answers a prompt.")
    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 keeps every token.")
    max_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")
    min_tokens: int = Field(0, ge=0)
    distinct: bool = Field(False, description="Drop an answer that says what an earlier one to the same prompt says.")
    logprobs: bool = Field(True, description="Keep the log-probability of every sampled token.")
    json_schema: dict[str, Any] | None = Field(None, description="A JSON Schema that every answer must follow.")
    partition: int = Field(64, ge=1, description="Prompts a partition: one batch of the engine, one file.")
    engine: Engine = Field("vllm", description="vllm, or transformers: slow, but runs anywhere.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the checkpoint's own.")
    max_model_len: int | None = Field(
        None, ge=2, description="Longest prompt plus answer; the model's own if left out."
    )
    server: Server | None = Field(None, description="An OpenAI-compatible server that answers instead of a model.")

    @field_validator("json_schema")
    @classmethod
    def _check_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return value if value is None else structured.checked_schema(value)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "server": self.server.identity() if self.server else None}

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None if self.distinct else self.n * rows["prompts"]

    def run(self, job: Job) -> None:
        sampling = Sampling(
            self.temperature,
            self.top_p,
            self.top_k,
            self.max_tokens,
            min_tokens=self.min_tokens,
            logprobs=self.logprobs,
        )
        repeated = repeated_ids(job)
        backend, name = open_backend(job, self.server, self.engine, dtype=self.dtype, max_model_len=self.max_model_len)
        tokens_in = tokens_out = 0
        started = time.monotonic()
        with contextlib.closing(backend):
            for part in job.parts("prompts", rows=self.partition):
                asked, rejected = read_prompts(part, self.partition, repeated)
                seeds = [job.derive("candidates", row["id"], sample) for row in asked for sample in range(self.n)]
                conversations = [row["prompt"] for row in asked for _ in range(self.n)]
                repaired = set[int]()
                if self.json_schema is None:
                    answers = backend.complete(conversations, sampling, seeds)
                else:
                    answers, repaired = structured.complete(backend, conversations, sampling, seeds, self.json_schema)
                table, failed = self._rows(asked, answers, seeds, name, repaired)
                rejected += failed
                part.commit(table, pa.Table.from_pylist(rejected) if rejected else None)
                given = [answer for answer in answers if isinstance(answer, Answer)]
                tokens_in += sum(answer.tokens_in for answer in given)
                tokens_out += sum(answer.tokens_out for answer in given)
                job.emit({
                    "event": "tokens", "in": tokens_in, "out": tokens_out,
                    "out_per_s": round(tokens_out / (time.monotonic() - started)),
                })  # fmt: skip
        job.summary(model=name, asked=self.n * job.rows("prompts"), **totals(job))

    def _rows(
        self,
        asked: list[dict[str, Any]],
        answers: list[Answer | Failure],
        seeds: list[int],
        model: str,
        repaired: set[int],
    ) -> tuple[pa.Table, list[dict[str, Any]]]:
        """The Candidate rows of one batch, and those that did not make it. A prompt that fails is one row."""
        parameters = {
            name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "max_tokens", "min_tokens")
        }
        if self.json_schema is not None:
            parameters["json_schema"] = digest_json(self.json_schema)
        plain, mended = json.dumps(parameters), json.dumps({**parameters, "repaired": True})
        kept, ids, failed = list[int](), list[str](), list[dict[str, Any]]()
        first: dict[tuple[str, str], str] = {}
        for index, (answer, seed) in enumerate(zip(answers, seeds, strict=True)):
            prompt, sample = asked[index // self.n], index % self.n
            if isinstance(answer, Failure):
                why = {"reason": answer.reason, "detail": answer.detail, "failed": True}
                if not (failed and failed[-1] == {**prompt, **why}):
                    failed.append({**prompt, **why})
                continue
            sampling = mended if index in repaired else plain
            content = answer.text if answer.token_ids is None else repr(answer.token_ids)
            one = row_id("Candidate", prompt["id"], model, sampling, seed, sample, content)
            earlier = first.setdefault((prompt["id"], answer.text), one) if self.distinct else one
            if earlier == one:
                kept.append(index)
                ids.append(one)
            else:
                why = {"reason": "duplicate", "detail": f"says what {earlier} says", "failed": False}
                failed.append({**prompt, "id": one, **why})
        # Column by column: building rows of nested lists one by one took most of the time that is not the engine's.
        schema = DATASETS["Candidate"]
        prompts = pa.Table.from_pylist(
            asked, pa.schema([schema.field("id"), schema.field("prompt"), schema.field("reference")])
        )
        prompts = prompts.take(pa.array([index // self.n for index in kept], pa.int64()))
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
            "sampling": [mended if index in repaired else plain for index in kept],
            "seed": [seeds[index] for index in kept],
            "sample": [index % self.n for index in kept],
            "reference": prompts["reference"],
        }
        return pa.table({
            field.name: value if isinstance(value := columns[field.name], pa.Array | pa.ChunkedArray)
            else pa.array(value, field.type)
            for field in schema
        }), failed  # fmt: skip


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
    """Rows, tokens in and out and finish reasons over everything committed."""
    rows = tokens_in = tokens_out = 0
    finish: Counter[str] = Counter()
    for name in sorted(job.committed()):
        with job.store.fs.open(job.store.path("artifacts", job.artifact, "data", f"{name}.parquet"), "rb") as file:
            frame = pl.DataFrame(pq.read_table(file, columns=["prompt_token_ids", "token_ids", "finish_reason"]))
        rows += len(frame)
        tokens_in += int(frame["prompt_token_ids"].list.len().sum())  # null, and so 0, from a server
        tokens_out += int(frame["token_ids"].list.len().sum())
        finish.update(frame["finish_reason"].to_list())
    return {"delivered": rows, "tokens_in": tokens_in, "tokens_out": tokens_out, "finish": dict(sorted(finish.items()))}
