"""`grounded`: questions answered from retrieved documents, with citations (retrieval-augmented generation; Lewis et al., 2020,
arXiv:2005.11401).

The rows are Candidates to the same prompts as any other model's, so that what retrieval gives can be judged beside what
fine-tuning gives: `judge` takes both. The model is told to cite passages as [1], [2]; what it cites is kept as ids.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pyarrow as pa
from pydantic import Field, model_validator

from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.parquet import read_parquet
from engine.store.schema import DATASETS, row_id
from generators.backends.protocol import Engine, Failure, Sampling, open_backend
from generators.backends.server.chat_completions import Server
from generators.candidates.stage import read_prompts, repeated_ids
from generators.drafts.drafts import template
from generators.grounded.retrieval import Passage, open_index

CITED = re.compile(r"\[(\d+(?:\s*,\s*\d+)*)\]")


class Grounded(Stage):
    """Answer questions from documents: retrieve passages, show them to the model, keep what it cites."""

    takes = {
        "documents": port("Document", many=True),
        "prompts": port("Prompt", "Conversation", many=True),
        "model": port("Model", optional=True),
    }
    gives = "Candidate"
    phase = "generation"
    random = True

    k: int = Field(4, ge=1, description="Passages shown with a question.")
    words: int = Field(150, ge=1, description="Words of a passage.")
    overlap: int = Field(30, ge=0, description="Words that a passage has in common with the one before.")
    n: int = Field(1, ge=1, description="Answers a question.")
    temperature: float = Field(0.0, ge=0, le=10, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    partition: int = Field(64, ge=1, description="Questions a partition.")
    engine: Engine = Field("vllm", description="vllm, or transformers: slow, but runs anywhere.")
    server: Server | None = Field(None, description="An OpenAI-compatible server that answers instead of a model.")

    @model_validator(mode="after")
    def _check(self) -> Grounded:
        if self.overlap >= self.words:
            raise ValueError(f"`overlap: {self.overlap}` should be less than `words: {self.words}`")
        return self

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "server": self.server.identity() if self.server else None}

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.n * rows["prompts"]

    def run(self, job: Job) -> None:
        index = open_index(job, "documents", self.words, self.overlap)
        repeated = repeated_ids(job)
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens, logprobs=False)
        backend, model = open_backend(job, self.server, self.engine, dtype="auto")
        used = template("grounded")
        settings = json.dumps({
            "temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens, "k": self.k,
            "words": self.words, "overlap": self.overlap, "template": used.digest,
        })  # fmt: skip
        with contextlib.closing(backend):
            for part in job.parts("prompts", rows=self.partition):
                asked, rejected = read_prompts(part, self.partition, repeated)
                conversations, shown, own = list[list[dict[str, str]]](), list[list[Passage]](), list[int]()
                for row in asked:
                    *before, last = row["prompt"] or [{"role": "user", "content": ""}]
                    found = [passage for passage, _ in index.search(last["content"], self.k)]
                    content = used.render({"question": last["content"], "passages": [one.text for one in found]})
                    conversation = [*before, {"role": "user", "content": content if last["content"].strip() else ""}]
                    conversations += [conversation] * self.n
                    shown.append(found)
                    own += [job.derive("grounded", row["id"], sample) for sample in range(self.n)]
                kept = list[dict[str, Any]]()
                for i, answer in enumerate(backend.complete(conversations, sampling, own)):
                    row, found, sample = asked[i // self.n], shown[i // self.n], i % self.n
                    if isinstance(answer, Failure):
                        if not sample:
                            rejected.append({**row, "reason": answer.reason, "detail": answer.detail, "failed": True})
                        continue
                    cited = citations(answer.text, len(found))
                    documents = list(dict.fromkeys(passage.document for passage in found))
                    kept.append({
                        "id": row_id("Candidate", row["id"], model, settings, own[i], sample, answer.text, *documents),
                        "parents": [row["id"], *documents],
                        "prompt_id": row["id"],
                        "prompt": row["prompt"],
                        "completion": [{"role": "assistant", "content": answer.text}],
                        "prompt_token_ids": answer.prompt_token_ids,
                        "token_ids": answer.token_ids,
                        "logprobs": None,
                        "finish_reason": answer.finish_reason,
                        "model": f"{model}+grounded",
                        "sampling": settings,
                        "seed": own[i],
                        "sample": sample,
                        "reference": row["reference"],
                        "retrieved": [f"{passage.document}:{passage.start}" for passage in found],
                        "cited": [f"{found[c - 1].document}:{found[c - 1].start}" for c in cited if c <= len(found)],
                        "bad_citations": sum(c > len(found) or c < 1 for c in _numbers(answer.text)),
                        "found": _has(found, row["reference"]),
                    })  # fmt: skip
                part.commit(pa.Table.from_pylist(kept, SCHEMA), pa.Table.from_pylist(rejected) if rejected else None)
        job.summary(model=model, asked=self.n * job.rows("prompts"), passages=len(index.passages), **_totals(job))


# Beside a Candidate's columns: passages as `document:character`, in the order shown; those cited; citations of passages
# that were not shown; whether a passage has the reference in it (null without one): what retrieval could give at best.
SCHEMA = pa.schema([
    *DATASETS["Candidate"], ("retrieved", pa.list_(pa.string())), ("cited", pa.list_(pa.string())),
    ("bad_citations", pa.int32()), ("found", pa.bool_()),
])  # fmt: skip


def _numbers(text: str) -> list[int]:
    return [int(number) for group in CITED.findall(text) for number in group.split(",")]


def citations(text: str, shown: int) -> list[int]:
    """The passages that an answer cites, of `shown`, each once, in the order of their first mention."""
    return list(dict.fromkeys(number for number in _numbers(text) if 1 <= number <= shown))


def _has(found: list[Passage], reference: str | None) -> bool | None:
    if not reference:
        return None
    return any(reference.lower() in passage.text.lower() for passage in found)


def _totals(job: Job) -> dict[str, Any]:
    """Shares over all answers: that cite something, that cite something not shown, and of questions with the reference found."""
    tables = list[pa.Table]()
    for name in sorted(job.committed()):
        with job.store.fs.open(job.store.path("artifacts", job.artifact, "data", f"{name}.parquet"), "rb") as file:
            tables.append(read_parquet(file, ["cited", "bad_citations", "found"]))
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    known = [row["found"] for row in rows if row["found"] is not None]
    facts: dict[str, Any] = {"delivered": len(rows)}
    if rows:
        facts["cites"] = round(sum(bool(row["cited"]) for row in rows) / len(rows), 6)
        facts["cites_what_was_not_shown"] = round(sum(row["bad_citations"] > 0 for row in rows) / len(rows), 6)
    if known:
        facts["reference_retrieved"] = round(sum(known) / len(known), 6)
    return facts
