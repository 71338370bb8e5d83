"""A model as the judge of candidates: pairs in both orders, or scores by aspect.

Pairs follow MT-Bench (Zheng et al., 2023, section 3.4): each is asked in both orders, and an answer wins only if it
wins in both; anything else is a tie. A graded judge says how much better, from 0 to 1, and the two orders are averaged.
Either way the verdict can't depend on the order, and how often the order alone decided is reported as position bias.
Principles are drawn one a pair (Bai et al., 2022, section 4.1). Aspects are those of UltraFeedback (Cui et al., 2023) unless the recipe names others.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from engine.stage.job import Job, part_name
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS, row_id
from generators.backends import json_answers
from generators.backends.in_flight import in_flight
from generators.backends.protocol import REFUSED, Backend, Failure, Sampling
from generators.judge import agreement_with_people
from generators.judge.distribution import distributions
from generators.text.templates import Template, Unrenderable, template

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


GRADE = {
    "type": "object",
    "properties": {"preference": {"type": "number", "minimum": 0, "maximum": 1}},
    "required": ["preference"],
    "additionalProperties": False,
}

Own = Mapping[str, Template]  # the recipe's templates, by prompt
Groups = list[list[dict[str, Any]]]  # candidates, those of a prompt together


@dataclass(frozen=True)
class Comparison:
    """How pairs are judged.

    Attributes:
        criteria: what by. principles: one of them is added to it, drawn for each pair.
        graded: the judge says how much better the first is, in [0, 1], instead of which is.
        against: pairs are of any answer and one of this model's; None: all pairs of a prompt.
    """

    criteria: str = ""
    principles: tuple[str, ...] = ()
    graded: bool = False
    against: str | None = None

    def pairs(self, group: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The pairs among the answers to one prompt."""
        if self.against is None:
            return list(itertools.combinations(group, 2))
        theirs = [row for row in group if row["model"] == self.against]
        return [(row, other) for row in group if row["model"] != self.against for other in theirs]

    def by(self, job: Job, one: str, other: str) -> str:
        """What a pair is judged by: the same in both orders, and whichever answer comes first."""
        if not self.principles:
            return self.criteria
        low, high = sorted((one, other))
        principle = self.principles[job.derive("principle", low, high) % len(self.principles)]
        return f"{self.criteria} {principle}".strip()


@dataclass(frozen=True)
class JudgeQuestion:
    """One thing to ask the judge.

    Attributes:
        subjects: the candidates it is about, in the order in which they are shown.
        text: or why the recipe's template can't be rendered for them.
    """

    subjects: tuple[str, ...]
    text: str | Failure
    seed: int


def groups(job: Job, prompts: int, tag: str) -> list[tuple[str, Groups]]:
    """Partitions that are not committed yet: name, and the candidates of each of its prompts together."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for artifact in job.all("candidates"):
        for row in _rows(artifact):
            by_prompt.setdefault(row["prompt_id"], []).append(row)
    done, cut = job.committed(), list[tuple[str, Groups]]()
    ordered = list(by_prompt.values())
    for index, start in enumerate(range(0, len(ordered), prompts)):
        chunk = ordered[start : start + prompts]
        name = part_name(index, [tag, *(row["id"] for group in chunk for row in group)])
        if name not in done:
            cut.append((name, chunk))
    return cut


def _rows(artifact: Artifact) -> Iterator[dict[str, Any]]:
    """What a judge sees of candidates: of grounded ones also the texts they were written from."""
    columns = ["id", "prompt_id", "prompt", "completion", "reference", "model"]
    for name in artifact.parts():
        with artifact.parquet(name) as file:
            grounded = ["passages"] if "passages" in file.schema_arrow.names else []
        for row in artifact.read_table(name, [*columns, *grounded]).to_pylist():
            passages = row.get("passages") or []
            yield {**row, "passages": [passages] if isinstance(passages, str) else passages}


def _passages(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[str]]:
    """The passages of two answers: once where only one has any, or both the same; else each beside its answer."""
    one, other = first["passages"], second["passages"]
    if not one or not other or one == other:
        return {"passages": one or other, "first_passages": [], "second_passages": []}
    return {"passages": [], "first_passages": one, "second_passages": other}


def ask(
    backend: Backend, questions: Sequence[JudgeQuestion], sampling: Sampling, schema: dict[str, Any]
) -> list[dict[str, Any] | Failure]:
    """What the judge says to each question, as JSON that follows the schema."""
    asked = [question for question in questions if not isinstance(question.text, Failure)]
    conversations = [[{"role": "user", "content": str(question.text)}] for question in asked]
    answers, _ = json_answers.complete(backend, conversations, sampling, [q.seed for q in asked], schema)
    said = iter([one if isinstance(one, Failure) else one.refused or json.loads(one.text) for one in answers])
    return [question.text if isinstance(question.text, Failure) else next(said) for question in questions]


def _question(asked: Template, values: Mapping[str, Any]) -> str | Failure:
    try:
        return asked.render(values)
    except Unrenderable as error:
        return Failure("unrenderable", str(error))


def compare(
    job: Job, backend: Backend, judge: str, sampling: Sampling, comparison: Comparison, partition: int, own: Own
) -> None:
    """Judge pairs of candidates of a prompt, and commit two verdicts a pair, one for each of the two.

    `value` is 1 for a win, 0 for a loss, 0.5 for a tie; graded, what lies between as well. `text` is JSON: `against`,
    what the judge said in both orders (`first` when the subject was shown first), and the digest of the template.
    """
    kind = "graded" if comparison.graded else "pairwise"
    asked = own.get(kind) or template(kind)

    def judged(part: tuple[str, Groups]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        _, chunk = part
        pairs = [pair for group in chunk for pair in comparison.pairs(group)]
        questions = list[JudgeQuestion]()
        for one, other in pairs:
            criteria = comparison.by(job, one["id"], other["id"])
            for first, second in ((one, other), (other, one)):
                text = _question(asked, {
                    "prompt": one["prompt"], "criteria": criteria,
                    "first": first["completion"][-1]["content"], "second": second["completion"][-1]["content"],
                    **_passages(first, second),
                })  # fmt: skip
                ids = (first["id"], second["id"])
                questions.append(JudgeQuestion(ids, text, job.derive("judge", *ids)))
        said = ask(backend, questions, sampling, GRADE if comparison.graded else WINNER)
        kept, rejected = list[dict[str, Any]](), [row for group in chunk for row in _unpaired(comparison, group)]
        for (one, other), forth, back in zip(pairs, said[::2], said[1::2], strict=True):
            if failure := next((answer for answer in (forth, back) if isinstance(answer, Failure)), None):
                rejected.append(_failed((one["id"], other["id"]), failure))
                continue
            assert not isinstance(forth, Failure) and not isinstance(back, Failure)
            if comparison.graded:
                there, here = float(forth["preference"]), float(back["preference"])
                value = (there + (1 - here)) / 2
            else:
                there, here = forth["winner"], back["winner"]
                value = verdict(there, here)
            for row, versus, won, told in ((one, other, value, (there, here)), (other, one, 1 - value, (here, there))):
                text = {"against": versus["id"], "first": told[0], "second": told[1], "template": asked.digest}
                kept.append(_verdict(row, [row["id"], versus["id"]], "pairwise", won, text, judge))
        return kept, rejected

    for (name, _), rows in in_flight(groups(job, partition, "pairwise"), backend.width, judged):
        _commit(job, name, *rows)


def verdict(shown_first: str, shown_second: str) -> float:
    """The value of an answer that was A in the first asking and B in the second: 1, 0 or 0.5."""
    if (shown_first, shown_second) == ("A", "B"):
        return 1.0
    return 0.0 if (shown_first, shown_second) == ("B", "A") else 0.5


def report(job: Job, against: str | None) -> dict[str, Any]:
    """What the verdicts come to: how scores are spread, position bias, win rates, and where people ranked the same answers, agreement_with_people.

    `order_decided` is the share of pairs in which the same place won in both orders, `first_preferred` that of the
    first place: 0 is none, 1 is a judge that always takes the first.
    """
    prompts, lengths = dict[str, str](), dict[str, int]()
    for artifact in job.all("candidates"):
        table = artifact.to_table(["id", "prompt_id", "completion"])
        prompts.update(zip(table["id"].to_pylist(), table["prompt_id"].to_pylist(), strict=True))
        lengths.update((one, len(said[-1]["content"])) for one, said in zip(
            table["id"].to_pylist(), table["completion"].to_pylist(), strict=True))  # fmt: skip
    pairs = same = first = 0
    won: dict[str, dict[str, list[float]]] = {}
    compared, scored = dict[tuple[str, str], float](), dict[str, dict[str, float]]()
    for name in sorted(job.committed()):
        for row in job.read_part(name, ["subject", "model", "metric", "value", "text"]).to_pylist():
            if row["metric"] != "pairwise":
                scored.setdefault(row["metric"], {})[row["subject"]] = row["value"]
                continue
            told = json.loads(row["text"])
            at_first, at_second = _place(told["first"]), _place(told["second"])
            pairs += 1
            same += at_first == at_second != "tie"
            first += at_first == at_second == "A"
            compared[row["subject"], told["against"]] = row["value"]
            if row["model"] != against:
                won.setdefault(row["model"], {}).setdefault(prompts[row["subject"]], []).append(row["value"])
    facts: dict[str, Any] = {}
    if scored:
        flat = [{"metric": metric, "value": value} for metric, values in scored.items() for value in values.values()]
        facts["scores"] = distributions(pl.DataFrame(flat))
    if pairs:
        facts |= {"order_decided": same / pairs, "first_preferred": first / pairs}
        if len(won) > 1 or against:
            facts["win_rates"] = agreement_with_people.win_rates(won, job.seed)
    rankings = [row for artifact in job.all("rankings") for row in artifact.to_table().to_pylist()]
    if rankings:
        judged = {"pairwise": compared} if compared else dict[str, dict[tuple[str, str], float]]()
        for metric, values in scored.items():
            judged[metric] = _by_difference(rankings, values)
        facts["calibration"] = {
            metric: agreement_with_people.calibrate(agreement_with_people.items(rankings, values, lengths), job.seed)
            for metric, values in judged.items()
        }
    return facts


def _place(told: str | float) -> str:
    """Which place won: A, B or tie; a grade is that of the answer in place A."""
    if isinstance(told, str):
        return told
    return "A" if told > 0.5 else "B" if told < 0.5 else "tie"


def _by_difference(rankings: list[dict[str, Any]], values: dict[str, float]) -> dict[tuple[str, str], float]:
    """Scores as comparisons: the higher one wins."""
    judged = dict[tuple[str, str], float]()
    for row in rankings:
        known = [one for one in row["candidates"] if one in values]
        for one, other in itertools.permutations(known, 2):
            judged[one, other] = 0.5 + 0.5 * ((values[one] > values[other]) - (values[one] < values[other]))
    return judged


def rate(
    job: Job, backend: Backend, judge: str, sampling: Sampling, aspects: dict[str, str], partition: int, own: Own
) -> None:
    """Score every candidate from 1 to 5 on every aspect, and commit one verdict for each."""
    asked = own.get("rubric") or template("rubric")
    whole = {"type": "integer", "minimum": 1, "maximum": 5}
    schema = {
        "type": "object", "properties": dict.fromkeys(aspects, whole), "required": list(aspects),
        "additionalProperties": False,
    }  # fmt: skip

    def judged(part: tuple[str, Groups]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        _, chunk = part
        rows = [row for group in chunk for row in group]
        questions = [
            JudgeQuestion(
                (row["id"],),
                _question(asked, {**row, "aspects": aspects, "completion": row["completion"][-1]["content"]}),
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
        return kept, rejected

    for (name, _), rows in in_flight(groups(job, partition, "rubric"), backend.width, judged):
        _commit(job, name, *rows)


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
            "detail": failure.detail, "failed": failure.reason not in REFUSED}  # fmt: skip


def _unpaired(comparison: Comparison, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers to a prompt that gives no pair."""
    if comparison.pairs(group):
        return []
    detail = "the prompt has one answer, and a pair needs two"
    if comparison.against is not None:
        detail = f"the prompt has no answer of `{comparison.against}` beside another model's"
    return [
        {"id": row_id("Verdict", row["id"]), "parents": [row["id"]], "reason": "no_pair", "detail": detail,
         "failed": False} for row in group
    ]  # fmt: skip


def _commit(job: Job, name: str, kept: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(kept, DATASETS["Verdict"])
    job.commit(name, table, pa.Table.from_pylist(rejected) if rejected else None)
