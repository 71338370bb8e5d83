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
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from engine.job import Job, Part
from engine.schema import DATASETS, row_id
from engine.stage import Stage, port
from generators.prompting import Message, decode_all, encode_prompt, load_tokenizer, prompt_of
from generators.vllm_backend import Completion, Sampling, VllmEngine


@dataclass(frozen=True)
class Asked:
    """One prompt on its way through the engine."""

    id: str
    messages: list[Message]
    reference: str | None
    token_ids: list[int]


class Candidates(Stage):
    """Sample n answers to every prompt from a model."""

    takes = {"model": port("Model"), "prompts": port("Prompt", "Conversation", many=True)}
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
    partition: int = Field(64, ge=1, description="Prompts a partition: one batch of the engine, one file.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the checkpoint's own.")
    max_model_len: int | None = Field(
        None, ge=2, description="Longest prompt plus answer; the model's own if left out."
    )

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None if self.distinct else self.n * rows["prompts"]

    def run(self, job: Job) -> None:
        model = job.input("model")
        tokenizer = load_tokenizer(model.location)
        sampling = Sampling(
            self.temperature,
            self.top_p,
            self.top_k,
            self.max_tokens,
            min_tokens=self.min_tokens,
            logprobs=self.logprobs,
        )
        repeated = repeated_ids(job)
        engine: VllmEngine | None = None
        done = tokens_in = tokens_out = 0
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            for part in job.parts("prompts", rows=self.partition):
                # Loaded when there is something to do: a finished job that lost its manifest needs no engine.
                engine = engine or stack.enter_context(
                    VllmEngine(model.location, dtype=self.dtype, max_model_len=self.max_model_len)
                )
                asked, rejected = read_prompts(part, self.partition, tokenizer, engine.max_model_len, repeated)
                prompts = [prompt.token_ids for prompt in asked for _ in range(self.n)]
                seeds = [job.derive("candidates", prompt.id, sample) for prompt in asked for sample in range(self.n)]
                made = engine.generate(prompts, sampling, seeds)
                table, dropped = self._rows(asked, made, seeds, model.id, tokenizer)
                rejected += dropped
                part.commit(table, pa.Table.from_pylist(rejected) if rejected else None)
                done += len(part.table)
                tokens_in += sum(map(len, prompts))
                tokens_out += sum(len(completion.token_ids) for completion in made)
                rate = tokens_out / (time.monotonic() - started)
                job.progress(
                    done, None, "prompts", tokens_in=tokens_in, tokens_out=tokens_out, tokens_per_s=round(rate)
                )
        asked_for = self.n * job.rows("prompts")
        job.summary(model=model.id, asked=asked_for, **totals(job))

    def _rows(
        self, asked: list[Asked], made: list[Completion], seeds: list[int], model: str, tokenizer: Any
    ) -> tuple[pa.Table, list[dict[str, Any]]]:
        """The Candidate rows of one batch, and those dropped as duplicates."""
        sampling = json.dumps(
            {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "max_tokens": self.max_tokens,
             "min_tokens": self.min_tokens}
        )  # fmt: skip
        texts = decode_all(tokenizer, [completion.token_ids for completion in made])
        rows = list[dict[str, Any]]()
        for index, (completion, seed, text) in enumerate(zip(made, seeds, texts, strict=True)):
            prompt, sample = asked[index // self.n], index % self.n
            ids = completion.token_ids
            rows.append({
                "id": row_id("Candidate", prompt.id, model, sampling, seed, sample, " ".join(map(str, ids))),
                "parents": [prompt.id],
                "prompt_id": prompt.id,
                "prompt": prompt.messages,
                "completion": [{"role": "assistant", "content": text}],
                "prompt_token_ids": prompt.token_ids,
                "token_ids": ids,
                "logprobs": completion.logprobs,
                "finish_reason": completion.finish_reason,
                "model": model,
                "sampling": sampling,
                "seed": seed,
                "sample": sample,
                "reference": prompt.reference,
            })  # fmt: skip
        if not self.distinct:
            return pa.Table.from_pylist(rows, DATASETS["Candidate"]), []
        kept, dropped, first = list[dict[str, Any]](), list[dict[str, Any]](), dict[tuple[str, str], str]()
        for row in rows:
            earlier = first.setdefault((row["prompt_id"], row["completion"][0]["content"]), row["id"])
            if earlier == row["id"]:
                kept.append(row)
            else:
                dropped.append({**row, "reason": "duplicate", "detail": f"says what {earlier} says", "failed": False})
        return pa.Table.from_pylist(kept, DATASETS["Candidate"]), dropped


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


def read_prompts(
    part: Part, size: int, tokenizer: Any, context: int, repeated: dict[str, int]
) -> tuple[list[Asked], list[dict[str, Any]]]:
    """Tokenise the prompts of a partition; tell which can't be asked, and why.

    Args:
        size: prompts a partition.
        context: tokens the model can see, prompt and answer together.
    """
    start = int(part.name.split("-")[0]) * size
    asked, rejected = list[Asked](), list[dict[str, Any]]()
    for offset, row in enumerate(part.table.to_pylist()):
        messages, reference = prompt_of(row)
        reason = detail = None
        ids = list[int]()
        if repeated.get(row["id"], start + offset) != start + offset:
            reason, detail = "duplicate_id", f"prompt {row['id']} was there before, at row {repeated[row['id']]}"
        elif not any(message["content"].strip() for message in messages):
            reason, detail = "empty_prompt", "no message has any text"
        else:
            ids = encode_prompt(tokenizer, messages)
            if len(ids) >= context:
                reason, detail = "too_long", f"a prompt of {len(ids)} tokens leaves no room in a context of {context}"
        if reason:
            rejected.append({"id": row["id"], "prompt": messages, "reason": reason, "detail": detail, "failed": True})
        else:
            asked.append(Asked(row["id"], messages, reference, ids))
    return asked, rejected


def totals(job: Job) -> dict[str, Any]:
    """Rows, tokens in and out and finish reasons over everything committed."""
    rows = tokens_in = tokens_out = 0
    finish: Counter[str] = Counter()
    for name in sorted(job.committed()):
        with job.store.fs.open(job.store.path("artifacts", job.artifact, "data", f"{name}.parquet"), "rb") as file:
            frame = pl.DataFrame(pq.read_table(file, columns=["prompt_token_ids", "token_ids", "finish_reason"]))
        rows += len(frame)
        tokens_in += int(frame["prompt_token_ids"].list.len().sum())
        tokens_out += int(frame["token_ids"].list.len().sum())
        finish.update(frame["finish_reason"].to_list())
    return {"delivered": rows, "tokens_in": tokens_in, "tokens_out": tokens_out, "finish": dict(sorted(finish.items()))}
