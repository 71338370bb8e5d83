"""A model as the judge of candidates: pairs in both orders, or scores by aspect.

Pairs follow MT-Bench (Zheng et al., 2023, section 3.4): each is asked in both orders, and an answer wins only if it
wins in both; anything else is a tie. So the verdict can't depend on the order, and how often the order alone decided is
reported as position bias. Aspects are those of UltraFeedback (Cui et al., 2023) unless the recipe names others.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.job import Job, part_name
from engine.schema import DATASETS, row_id
from generators import structured
from generators.backend import Answer, Backend, Failure, Sampling
from generators.rendering import Template

ASPECTS = {
    "helpfulness": "it does what was asked, usefully and completely",
    "honesty": "it says how sure it is, and claims no more than it knows",
    "instruction_following": "it keeps to every instruction, in content and in form",
    "truthfulness": "what it says is true, and fits the conversation",
}
WINNER = {
    "type": "object",
    "properties": {"winner": {"enum": ["A", "B", "tie"]}},
    "required": ["winner"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Question:
    """One thing to ask the judge.

    Attributes:
        subjects: the candidates it is about, in the order in which they are shown.
    """

    subjects: tuple[str, ...]
    text: str
    seed: int


def template(name: str) -> Template:
    """A template that comes with Flywheel, from generators/templates/."""
    return Template(files("generators").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8"), name)


def groups(job: Job, prompts: int, tag: str) -> list[tuple[str, list[list[dict[str, Any]]]]]:
    """Partitions that are not committed yet: name, and the candidates of each of its prompts together."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    columns = ["id", "prompt_id", "prompt", "completion", "reference", "model"]
    for artifact in job.all("candidates"):
        for row in artifact.to_table(columns).to_pylist():
            by_prompt.setdefault(row["prompt_id"], []).append(row)
    done, cut = job.committed(), list[tuple[str, list[list[dict[str, Any]]]]]()
    ordered = list(by_prompt.values())
    for index, start in enumerate(range(0, len(ordered), prompts)):
        chunk = ordered[start : start + prompts]
        name = part_name(index, [tag, *(row["id"] for group in chunk for row in group)])
        if name not in done:
            cut.append((name, chunk))
    return cut


def ask(
    backend: Backend, questions: Sequence[Question], sampling: Sampling, schema: dict[str, Any]
) -> list[dict[str, Any] | Failure]:
    """What the judge says to each question, as JSON that follows the schema."""
    conversations = [[{"role": "user", "content": question.text}] for question in questions]
    answers, _ = structured.complete(backend, conversations, sampling, [q.seed for q in questions], schema)
    return [json.loads(answer.text) if isinstance(answer, Answer) else answer for answer in answers]


def compare(job: Job, backend: Backend, judge: str, sampling: Sampling, criteria: str, partition: int) -> None:
    """Judge every pair of candidates of a prompt, and commit two verdicts a pair, one for each of the two.

    `value` is 1 for a win, 0 for a loss, 0.5 for a tie; `text` is JSON: `against`, what the judge said in both orders
    (`first` when the subject was shown first), and the digest of the template.
    """
    asked = template("pairwise")
    for name, chunk in groups(job, partition, "pairwise"):
        pairs = [pair for group in chunk for pair in itertools.combinations(group, 2)]
        questions = list[Question]()
        for one, other in pairs:
            for first, second in ((one, other), (other, one)):
                text = asked.render({
                    "prompt": one["prompt"], "criteria": criteria,
                    "first": first["completion"][-1]["content"], "second": second["completion"][-1]["content"],
                })  # fmt: skip
                ids = (first["id"], second["id"])
                questions.append(Question(ids, text, job.derive("judge", *ids)))
        said = ask(backend, questions, sampling, WINNER)
        kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
        for (one, other), forth, back in zip(pairs, said[::2], said[1::2], strict=True):
            if failure := next((answer for answer in (forth, back) if isinstance(answer, Failure)), None):
                rejected.append(_failed((one["id"], other["id"]), failure))
                continue
            assert not isinstance(forth, Failure) and not isinstance(back, Failure)
            value = verdict(forth["winner"], back["winner"])
            for row, versus, won, told in (
                (one, other, value, (forth["winner"], back["winner"])),
                (other, one, 1 - value, (back["winner"], forth["winner"])),
            ):
                text = {"against": versus["id"], "first": told[0], "second": told[1], "template": asked.digest}
                kept.append(_verdict(row, [row["id"], versus["id"]], "pairwise", won, text, judge))
        _commit(job, name, kept, rejected)


def verdict(shown_first: str, shown_second: str) -> float:
    """The value of an answer that was A in the first asking and B in the second: 1, 0 or 0.5."""
    if (shown_first, shown_second) == ("A", "B"):
        return 1.0
    return 0.0 if (shown_first, shown_second) == ("B", "A") else 0.5


def bias(job: Job) -> dict[str, float]:
    """How often the order alone decided, over all pairs: 0 is none, 1 is a judge that always takes the same place."""
    pairs = same = first = 0
    for name in job.committed():
        with job.store.fs.open(job.store.path("artifacts", job.artifact, "data", f"{name}.parquet"), "rb") as file:
            table = pq.read_table(file, columns=["metric", "text"])
        for metric, text in zip(table["metric"].to_pylist(), table["text"].to_pylist(), strict=True):
            if metric != "pairwise":
                continue
            told = json.loads(text)
            pairs += 1
            same += told["first"] == told["second"] != "tie"
            first += told["first"] == told["second"] == "A"
    return {"order_decided": same / pairs, "first_preferred": first / pairs} if pairs else {}


def rate(job: Job, backend: Backend, judge: str, sampling: Sampling, aspects: dict[str, str], partition: int) -> None:
    """Score every candidate from 1 to 5 on every aspect, and commit one verdict for each."""
    asked = template("rubric")
    whole = {"type": "integer", "minimum": 1, "maximum": 5}
    schema = {
        "type": "object", "properties": dict.fromkeys(aspects, whole), "required": list(aspects),
        "additionalProperties": False,
    }  # fmt: skip
    for name, chunk in groups(job, partition, "rubric"):
        rows = [row for group in chunk for row in group]
        questions = [
            Question(
                (row["id"],),
                asked.render({**row, "aspects": aspects, "completion": row["completion"][-1]["content"]}),
                job.derive("judge", row["id"]),
            )
            for row in rows
        ]
        kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
        for row, scores in zip(rows, ask(backend, questions, sampling, schema), strict=True):
            if isinstance(scores, Failure):
                rejected.append(_failed((row["id"],), scores))
                continue
            text = {"template": asked.digest}
            kept += [_verdict(row, [row["id"]], aspect, scores[aspect], text, judge) for aspect in aspects]
        _commit(job, name, kept, rejected)


def _verdict(
    row: dict[str, Any], parents: list[str], metric: str, value: float, text: dict[str, Any], judge: str
) -> dict[str, Any]:
    told = json.dumps({**text, "judge": judge}, sort_keys=True)
    return {
        "id": row_id("Verdict", judge, metric, *parents, told),
        "parents": parents,
        "subject": row["id"],
        "model": row["model"],
        "metric": metric,
        "value": float(value),
        "text": told,
    }


def _failed(subjects: tuple[str, ...], failure: Failure) -> dict[str, Any]:
    return {"id": row_id("Verdict", *subjects), "parents": list(subjects), "reason": failure.reason,
            "detail": failure.detail, "failed": True}  # fmt: skip


def _commit(job: Job, name: str, kept: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(kept, DATASETS["Verdict"])
    job.commit(name, table, pa.Table.from_pylist(rejected) if rejected else None)
