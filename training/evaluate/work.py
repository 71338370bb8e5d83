"""Answering, measuring and tabulating, one line of the table after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from engine.errors import StageFailed, UserError
from engine.retrieval.retrieval_index import Method, RetrievalIndex
from engine.store.schema import row_id
from generators.rules.verify import measure
from generators.text.prompts import prompt_of
from training.evaluate import gate, metrics
from training.evaluate.perplexity import surprise
from training.evaluate.retrieval_measures import measured, sought, tabulate_retrieval
from training.evaluate.shared_engine import SharedEngine
from training.evaluate.stage import Evaluate
from training.evaluate.table import Line, as_text, side_by_side, tabulate
from training.models.load import load_model, quiet
from training.models.logprobs import token_logprobs
from training.rl.overoptimisation import best_of_at_kl
from training.rl.rollouts import Rollout, check_room
from training.rl.scoring import frame, make_scorer, same_tokenizer
from training.rl.stored import load_rollouts, score_rollouts

if TYPE_CHECKING:
    from engine.stage.job import Job
    from engine.store.artifact import Artifact

EMPTY = {
    "id": pl.String, "parents": pl.List(pl.String), "subject": pl.String, "model": pl.String, "metric": pl.String, "value": pl.Float64,
    "text": pl.String, "sample": pl.Int32,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One line of the table: a model, or answers that are stored, or the best of every `best_of` answers of one."""

    name: str
    label: str
    artifact: Artifact
    best_of: int = 1

    @property
    def stored(self) -> bool:
        return self.artifact.kind == "Candidate"


@dataclass(frozen=True)
class Way:
    """An index, and how it is searched: a line of the table."""

    index: RetrievalIndex
    method: Method


def evaluate(stage: Evaluate, job: Job) -> None:
    quiet()
    entries = table_lines(stage, job)
    names = [entry.name for entry in entries]
    ways = {
        f"{label} {method}": Way(index, method)
        for label, index in opened_indexes(job).items()
        for method in index.methods
    }
    known = metrics.columns(list(stage.checks), stage.cutoffs)
    conditions = [gate.parse(text, [*names, *ways], known) for text in stage.fail_if]
    parts = {entry.name: f"{i:05d}-{entry.name.replace(' ', '-')}" for i, entry in enumerate(entries)}
    done = job.committed()
    found = search(stage, job, ways)
    engine = SharedEngine(job, stage, job.inputs.get("models", {}))
    for i, entry in enumerate(entries):
        if parts[entry.name] not in done:
            job.commit(parts[entry.name], verdicts(stage, job, engine, entry))
        job.progress(i + 1, len(entries), "models")
    engine.close()
    read = [cast(pl.DataFrame, pl.from_arrow(job.read_part(part))) for part in parts.values()]
    rows = pl.concat(read) if read else pl.DataFrame(schema=EMPTY)
    chosen = {entry.name: entry.best_of for entry in entries if entry.best_of > 1}
    reference = stage.reference if stage.reference in names else None
    table = tabulate(rows, names, reference, list(stage.checks), job.seed, chosen)
    table |= found
    asked = questions_asked(job, entries)
    (job.output / "table.json").write_text(json.dumps(table, indent=1))
    (job.output / "samples.json").write_text(json.dumps(side_by_side(rows, asked[: stage.show], names), indent=1))
    job.summary(
        table=table,
        reference=stage.reference,
        prompts=len(asked),
        samples=stage.n,
        sampling={"temperature": stage.temperature, "top_p": stage.top_p, "max_tokens": stage.max_tokens},
        seed=job.seed,
        kl_estimator="k1",
        intervals="95 %, bootstrap over prompts",
        **({"ways_to_search": list(ways)} if ways else {}),
        # how many answers of the reference one may choose from, and not have moved further than the model has
        best_of_at_equal_kl={
            name: best_of_at_kl(float(cast(float, line["kl"])))
            for name, line in table.items()
            if line.get("kl") is not None and name != stage.reference
        },
    )
    failed = [condition for condition in conditions if condition.holds(table)]
    if failed:
        reasons = "\n".join(f"`fail_if: {one.text}` is true: {one.values_in(table)}." for one in failed)
        raise StageFailed(
            f"{reasons}\n{as_text(table)}\nThe table with its intervals is in {job.output / 'table.json'}."
        )


def opened_indexes(job: Job) -> dict[str, RetrievalIndex]:
    return {label: RetrievalIndex(artifact) for label, artifact in job.inputs.get("indexes", {}).items()}


def search(stage: Evaluate, job: Job, ways: dict[str, Way]) -> dict[str, Line]:
    """Search the indexes for what answers the prompts; a line of the table for each way, and the value for each question as Verdict rows."""
    if not ways:
        return {}
    rows = [row for artifact in job.all("prompts") for row in artifact.to_table().to_pylist()]
    asked = sought(rows)
    values: dict[str, dict[str, np.ndarray]] = {}
    for i, (name, way) in enumerate(ways.items()):
        values[name] = measured(way.index, way.method, asked, stage.cutoffs)
        verdicts = [
            {
                "id": row_id("Verdict", way.index.artifact.key, name, one.id, measure), "parents": [one.id], "subject": one.id, "model": name,
                "metric": measure, "value": float(each[at]), "text": None, "sample": 0,
            }
            for measure, each in values[name].items()
            for at, one in enumerate(asked)
        ]  # fmt: skip
        schema = {"value": pl.Float64, "text": pl.String, "sample": pl.Int32}
        job.commit(f"search-{i:05d}", pl.DataFrame(verdicts, schema_overrides=schema).to_arrow())
    if left := len(rows) - len(asked):
        job.say(f"{left:,} of {len(rows):,} prompts don't say what answers them (`gold`) and are not searched for")
    return tabulate_retrieval(values, [one.id for one in asked], stage.reference, job.seed)


def table_lines(stage: Evaluate, job: Job) -> list[Entry]:
    """The lines of the table, each model's best-of line after its own.

    Raises:
        UserError: a name in the configuration is no model's, or is taken.
    """
    artifacts = {**job.inputs.get("models", {}), **job.inputs.get("candidates", {})}
    models, stored = ([*job.inputs.get(port, {})] for port in ("models", "candidates"))
    stage.check_names(models, stored, job.maybe("reward") is not None, [*job.inputs.get("indexes", {})])
    entries: list[Entry] = []
    for label, artifact in artifacts.items():
        entries.append(Entry(label, label, artifact))
        if label in stage.best_of:
            n = stage.best_of[label]
            entries.append(Entry(f"{label} best of {n}", label, artifact, n))
    return entries


def questions_asked(job: Job, entries: list[Entry]) -> list[tuple[str, Any, str | None]]:
    """Id, messages and reference of every prompt, in order."""
    if job.all("prompts"):
        rows = [row for artifact in job.all("prompts") for row in artifact.to_table().to_pylist()]
        return [(row["id"], *prompt_of(row)) for row in rows]
    stored = [entry for entry in entries if entry.stored]
    questions = {r.question.id: r.question for entry in stored for r in load_rollouts(entry.artifact)}
    return [(q.id, q.messages, q.reference) for q in questions.values()]


def verdicts(stage: Evaluate, job: Job, engine: SharedEngine, entry: Entry) -> Any:
    """A line's answers and what is measured of each of them, as Verdict rows."""
    rollouts, values, read = answers(stage, job, engine, entry)
    seen = frame(rollouts)
    values = {**{name: measure(rule, seen, name, job.base) for name, rule in stage.checks.items()}, **values}
    if stage.utility is not None and rollouts:
        values["utility"] = measure(stage.utility, seen, "utility", job.base)
    values["length"] = np.array([len(r.token_ids) for r in rollouts], dtype=np.float64)
    rows: list[dict[str, Any]] = []

    def add(subject: str, sample: int, metric: str, value: float | None, text: str | None = None) -> None:
        rows.append(
            {
                "id": row_id("Verdict", entry.artifact.key, entry.name, subject, sample, metric, job.seed),
                "parents": [subject],
                "subject": subject,
                "model": entry.name,
                "metric": metric,
                "value": value,
                "text": text,
                "sample": sample,
            }
        )

    counted: dict[str, int] = {}
    for i, rollout in enumerate(rollouts):
        subject = rollout.question.id
        sample = counted[subject] = counted.get(subject, -1) + 1
        add(subject, sample, "sample", None, rollout.text)
        for metric in values:
            add(subject, sample, metric, float(values[metric][i]))
    for subject, facts in read.items():
        for metric, value in facts.items():
            add(subject, 0, metric, value)
    schema = {"value": pl.Float64, "text": pl.String, "sample": pl.Int32}
    return pl.DataFrame(rows, schema_overrides=schema).to_arrow()


def answers(
    stage: Evaluate, job: Job, engine: SharedEngine, entry: Entry
) -> tuple[list[Rollout], dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Sampled or stored answers, what only their model can tell of them, and what texts cost it."""
    values: dict[str, np.ndarray] = {}
    read: dict[str, dict[str, float]] = {}
    if entry.stored:
        rollouts = load_rollouts(entry.artifact)
        if job.maybe("reward"):
            values["reward"] = score_rollouts(job, rollouts)
        return (*best_of(rollouts, values, entry), read)
    model, tokenizer = load_model(entry.artifact.location, job)
    model.eval()
    rollouts: list[Rollout] = []
    if job.all("prompts"):
        questions = engine.asked[entry.artifact.id]
        check_room(questions, stage.max_tokens, model.config)
        rollouts = engine.sample(entry.artifact, model, tokenizer, questions, stage.n * entry.best_of)
        if job.maybe("reward"):
            values["reward"] = make_scorer(job, tokenizer, {}, {}, 0.0, "cpu").score(rollouts)[0]
    if entry.best_of > 1:
        return (*best_of(rollouts, values, entry), read)
    if rollouts and (log_ratios := divergence(stage, job, entry.label, model, tokenizer, rollouts)) is not None:
        values["kl"] = log_ratios
    texts = [row for artifact in job.all("texts") for row in artifact.to_table(["id", "text"]).to_pylist()]
    for row, cost in zip(texts, surprise(model, tokenizer, [row["text"] for row in texts]), strict=True):
        read[row["id"]] = {"nats": cost.nats, "bytes": float(cost.size), "tokens": float(cost.tokens)}
    return rollouts, values, read


def divergence(
    stage: Evaluate, job: Job, label: str, model: Any, tokenizer: Any, rollouts: Sequence[Rollout]
) -> np.ndarray | None:
    """log model(y) - log reference(y) of each answer; None where that estimates no KL.

    It does not at another temperature than 1, nor for a model that is prompted in another way than the reference.
    """
    models = job.inputs["models"]
    if stage.reference not in models or (stage.temperature, stage.top_p) != (1.0, 1.0):
        return None
    if label == stage.reference:
        return np.zeros(len(rollouts))
    reference, its_tokenizer = load_model(models[stage.reference].location, job)
    if not same_tokenizer(tokenizer, its_tokenizer):
        return None
    reference.eval()
    encoded = [rollout.answer for rollout in rollouts]
    ours, theirs = token_logprobs(model, encoded), token_logprobs(reference, encoded)
    return np.array([float((a.double() - b.double()).sum()) for a, b in zip(ours, theirs, strict=True)])


def best_of(
    rollouts: list[Rollout], values: dict[str, np.ndarray], entry: Entry
) -> tuple[list[Rollout], dict[str, np.ndarray]]:
    """Of every `entry.best_of` answers to a prompt, the one with the highest reward, the first where several have it.

    Raises:
        UserError: a prompt has fewer answers than that.
    """
    if entry.best_of == 1:
        return rollouts, values
    by_question: dict[str, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        by_question.setdefault(rollout.question.id, []).append(i)
    kept: list[int] = []
    for question, own in by_question.items():
        groups = [own[at : at + entry.best_of] for at in range(0, len(own) - entry.best_of + 1, entry.best_of)]
        if not groups:
            raise UserError(
                f"{entry.label} has {len(own)} answers to prompt {question}, and `best_of` asks for {entry.best_of}."
            )
        kept += [max(group, key=lambda i: float(values["reward"][i])) for group in groups]
    return [rollouts[i] for i in kept], {name: value[kept] for name, value in values.items()}
