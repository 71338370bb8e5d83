"""`evaluate`: models and prompts -> one table of how good their answers are, and every measurement behind it.

Each model answers every prompt `n` times, with the same seeds for all models. An answer is measured by `checks` (rules
that are true or false, and verifiers), by `utility` (a rule that says how good it is: the gold preference), by a reward
model, by its length, and by its KL to the reference model:

    KL(model || reference) = E[sum_t log model(y_t) - log reference(y_t)],  y from the model

estimated by the mean over answers (k1 in `training.kl`: no bias, may be slightly negative).

`best_of: {sft: 4}` adds a line: of every four answers of `sft`, the one that the reward model likes best. It is what
reinforcement learning has to beat, and moves `sft` by log n - (n - 1)/n nats at most.

`candidates` are answers that were sampled before: they are measured by the same rules, and by whatever reward model is
given, without a token being generated. `texts` are documents that models read, for their bits a byte.

All intervals are 95 %, by resampling prompts. Each line of the table is one partition: a killed evaluation goes on with
the next.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, ValidationInfo, field_validator

from engine.errors import StageFailed, UserError, nearest
from engine.stage.job import Job
from engine.stage.stage import Audit, NotIdentity, Stage, port
from engine.store.schema import row_id
from engine.store.store import Artifact
from training.evaluate import gate
from training.evaluate import table as evaluation_table
from training.evaluate.perplexity import surprise
from training.evaluate.table import side_by_side, tabulate
from training.models.load import load_model, quiet
from training.models.logprobs import token_logprobs
from training.overoptimisation import best_of_at_kl
from training.reward_function import make_scorer, same_tokenizer
from training.rollouts import Question, Rollout, check_room, load_questions
from training.rules import Rule, frame, measure
from training.stored_rollouts import load_rollouts, score_rollouts

if TYPE_CHECKING:
    from generators.backends.vllm.engine import VllmEngine


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


class Evaluate(Stage):
    """Compare models, or answers that are stored, on the same prompts, with intervals."""

    takes = {
        "models": port("Model", many=True, optional=True, labelled=True),
        "prompts": port("Prompt", "Conversation", many=True, optional=True),
        "candidates": port("Candidate", many=True, optional=True, labelled=True),
        "texts": port("Document", many=True, optional=True),
        "reward": port("RewardModel", optional=True),
    }
    gives = "Verdict"
    random = True

    reference: str | None = Field(
        None, description="The model that win rates and KL refer to, by its name in the recipe."
    )
    n: int = Field(4, ge=1, description="Answers of each model to a prompt.")
    temperature: float = Field(1.0, ge=0, description="KL is only measured at 1, where answers are the model's own.")
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(64, ge=1)
    checks: dict[str, Rule] = Field(
        {}, description="Name -> rule over completion, reference, prompt, length, finish_reason; or a verifier."
    )
    utility: Rule | None = Field(None, description="A rule that is higher for the better of two answers.")
    best_of: dict[str, int] = Field(
        {}, description="Model -> how many of its answers the reward model chooses from, for a line `MODEL best of N`."
    )
    fail_if: list[str] = Field(
        [], description="Conditions that fail the stage, such as `ppo.accuracy < sft.accuracy - 0.05`."
    )
    show: int = Field(8, ge=0, description="Prompts whose answers are put side by side in samples.json.")
    gpu_share: Annotated[float, NotIdentity] = Field(0.5, gt=0, lt=1)
    contamination: Annotated[bool, NotIdentity] = Field(
        True, description="Also tell which prompts stand in what the models were trained on, by a stage of its own."
    )

    def audit(self) -> Audit | None:
        return Audit("contamination", models="models", rows="prompts") if self.contamination else None

    @field_validator("fail_if", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("best_of")
    @classmethod
    def _several(cls, value: dict[str, int]) -> dict[str, int]:
        for model, n in value.items():
            if n < 2:
                raise ValueError(f"the best of {n} answers of `{model}` is no choice; expected 2 or more")
        return value

    @field_validator("fail_if")
    @classmethod
    def _readable(cls, value: list[str], info: ValidationInfo) -> list[str]:
        for text in value:
            try:
                gate.parse(text, None, evaluation_table.columns(list(info.data.get("checks", {}))))
            except UserError as error:
                raise ValueError(str(error).removesuffix(".")) from None
        return value

    def output(self, given: dict[str, list[str]]) -> str:
        """Also checks that there is something to measure, before anything runs."""
        asked, read = given.get("models") and given.get("prompts"), given.get("models") and given.get("texts")
        if not (asked or read or given.get("candidates")):
            raise UserError(
                "evaluate needs `models` and `prompts` (or `texts`), or `candidates` that were sampled before."
            )
        if given.get("models") and not (asked or read):
            raise UserError("evaluate got `models` and neither `prompts` to answer nor `texts` to read.")
        return super().output(given)

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None

    def run(self, job: Job) -> None:
        quiet()
        entries = self.entries(job)
        names = [entry.name for entry in entries]
        conditions = [gate.parse(text, names, evaluation_table.columns(list(self.checks))) for text in self.fail_if]
        parts = {entry.name: f"{i:05d}-{entry.name.replace(' ', '-')}" for i, entry in enumerate(entries)}
        done = job.committed()
        sampler = Sampler(job, self, job.inputs.get("models", {}))
        for i, entry in enumerate(entries):
            if parts[entry.name] not in done:
                job.commit(parts[entry.name], self.measure(job, sampler, entry))
            job.progress(i + 1, len(entries), "models")
        sampler.close()
        rows = pl.concat([read_part(job, part) for part in parts.values()])
        chosen = {entry.name: entry.best_of for entry in entries if entry.best_of > 1}
        table = tabulate(rows, names, self.reference, list(self.checks), job.seed, chosen)
        asked = self.asked(job, entries)
        (job.output / "table.json").write_text(json.dumps(table, indent=1))
        (job.output / "samples.json").write_text(json.dumps(side_by_side(rows, asked[: self.show], names), indent=1))
        job.summary(
            table=table,
            reference=self.reference,
            prompts=len(asked),
            samples=self.n,
            sampling={"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens},
            seed=job.seed,
            kl_estimator="k1",
            intervals="95 %, bootstrap over prompts",
            # how many answers of the reference one may choose from, and not have moved further than the model has
            best_of_at_equal_kl={
                name: best_of_at_kl(float(line["kl"]))
                for name, line in table.items()
                if line["kl"] is not None and name != self.reference
            },
        )
        failed = [condition for condition in conditions if condition.holds(table)]
        if failed:
            told = "\n".join(f"`fail_if: {one.text}` is true: {one.told(table)}." for one in failed)
            raise StageFailed(
                f"{told}\n{evaluation_table.as_text(table)}\nThe table with its intervals is in {job.output / 'table.json'}."
            )

    def entries(self, job: Job) -> list[Entry]:
        """The lines of the table, each model's best-of line after its own.

        Raises:
            UserError: a name in the configuration is no model's, or is taken.
        """
        given = {**job.inputs.get("models", {}), **job.inputs.get("candidates", {})}
        if len(given) < len(job.inputs.get("models", {})) + len(job.inputs.get("candidates", {})):
            raise UserError(
                "a model and stored candidates have the same name: call one of them something else in `from`."
            )
        for field, named in (("reference", [self.reference] if self.reference else []), ("best_of", self.best_of)):
            for name in named:
                if name not in given:
                    raise UserError(
                        f"`{field}` is {name}, which is none of the models.{nearest(name, given)} Models: {', '.join(given)}."
                    )
        if self.best_of and not job.maybe("reward"):
            raise UserError("`best_of` chooses by a reward model: give one as `reward`.")
        reserved = {"sample", "utility", "nats", "bytes", "tokens", *evaluation_table.columns([])}
        for name in sorted(reserved & set(self.checks)):
            raise UserError(f"a check can't be called `{name}`: that is measured already. Choose another name.")
        entries: list[Entry] = []
        for label, artifact in given.items():
            entries.append(Entry(label, label, artifact))
            if label in self.best_of:
                n = self.best_of[label]
                entries.append(Entry(f"{label} best of {n}", label, artifact, n))
        return entries

    def asked(self, job: Job, entries: list[Entry]) -> list[tuple[str, Any, str | None]]:
        """Id, messages and reference of every prompt, in order."""
        if job.all("prompts"):
            from generators.text.prompts import prompt_of

            rows = [row for artifact in job.all("prompts") for row in artifact.to_table().to_pylist()]
            return [(row["id"], *prompt_of(row)) for row in rows]
        stored = [entry for entry in entries if entry.stored]
        questions = {r.question.id: r.question for entry in stored for r in load_rollouts(entry.artifact)}
        return [(q.id, q.messages, q.reference) for q in questions.values()]

    def measure(self, job: Job, sampler: Sampler, entry: Entry) -> Any:
        """A line's answers and what is measured of each of them, as Verdict rows."""
        rollouts, values, read = self.answers(job, sampler, entry)
        seen = frame(rollouts)
        values = {**{name: measure(rule, seen, name) for name, rule in self.checks.items()}, **values}
        if self.utility is not None and rollouts:
            values["utility"] = measure(self.utility, seen, "utility")
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
        self, job: Job, sampler: Sampler, entry: Entry
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
            questions = load_questions(job, tokenizer)
            check_room(questions, self.max_tokens, model.config)
            rollouts = sampler.sample(entry.artifact, model, tokenizer, questions, self.n * entry.best_of)
            if job.maybe("reward"):
                values["reward"] = make_scorer(job, tokenizer, {}, {}, 0.0, "cpu").score(rollouts)[0]
        if entry.best_of > 1:
            return (*best_of(rollouts, values, entry), read)
        if rollouts and (divergence := self.divergence(job, entry.label, model, tokenizer, rollouts)) is not None:
            values["kl"] = divergence
        texts = [row for artifact in job.all("texts") for row in artifact.to_table(["id", "text"]).to_pylist()]
        for row, cost in zip(texts, surprise(model, tokenizer, [row["text"] for row in texts]), strict=True):
            read[row["id"]] = {"nats": cost.nats, "bytes": float(cost.size), "tokens": float(cost.tokens)}
        return rollouts, values, read

    def divergence(
        self, job: Job, label: str, model: Any, tokenizer: Any, rollouts: Sequence[Rollout]
    ) -> np.ndarray | None:
        """log model(y) - log reference(y) of each answer; None where that estimates no KL.

        It does not at another temperature than 1, nor for a model that is prompted in another way than the reference.
        """
        models = job.inputs["models"]
        if self.reference not in models or (self.temperature, self.top_p) != (1.0, 1.0):
            return None
        if label == self.reference:
            return np.zeros(len(rollouts))
        reference, its_tokenizer = load_model(models[self.reference].location, job)
        if not same_tokenizer(tokenizer, its_tokenizer):
            return None
        reference.eval()
        answers = [rollout.answer for rollout in rollouts]
        ours, theirs = token_logprobs(model, answers), token_logprobs(reference, answers)
        return np.array([float((a.double() - b.double()).sum()) for a, b in zip(ours, theirs, strict=True)])


class Sampler:
    """One vLLM engine for all models of one architecture; their weights are swapped in.

    An answer ends where any of the models would end one, so that all are held to the same rule.
    """

    def __init__(self, job: Job, stage: Evaluate, models: dict[str, Artifact]) -> None:
        self.job, self.stage, self.models = job, stage, models
        self.engine: VllmEngine | None = None
        self.architecture: dict[str, Any] = {}

    def sample(
        self, artifact: Artifact, model: Any, tokenizer: Any, questions: list[Question], n: int
    ) -> list[Rollout]:
        """`n` answers to each question, one after the other; the first are the same however many are asked for."""
        from generators.backends.vllm.engine import Sampling, end_ids
        from generators.text.prompts import decode

        stage = self.stage
        engine = self.engine_for(artifact, model, questions)
        ends = tuple(sorted({end for other in self.models.values() for end in end_ids(other.location)}))
        sampling = Sampling(
            temperature=stage.temperature,
            top_p=stage.top_p,
            max_tokens=stage.max_tokens,
            stop_token_ids=ends,
            logprobs=False,
        )
        asked = [question for question in questions for _ in range(n)]
        seeds = [self.job.derive("evaluate", q.id, i % n) for i, q in enumerate(asked)]
        completions = engine.generate([q.token_ids for q in asked], sampling, seeds)
        return [
            Rollout(question, c.token_ids, decode(tokenizer, c.token_ids), c.finish_reason)
            for question, c in zip(asked, completions, strict=True)
        ]

    def engine_for(self, artifact: Artifact, model: Any, questions: list[Question]) -> VllmEngine:
        """The running engine with this model's weights, or a new one where another architecture is needed."""
        from generators.backends.vllm.engine import VllmEngine

        wanted = architecture(model.config)
        if self.engine is not None and wanted == self.architecture:
            self.engine.load_weights(model.named_parameters())
            return self.engine
        self.close()
        # Room for every model: a chat template adds tokens that a base model's plain text does not have.
        prompts = [*questions, *(q for other in self.models.values() for q in questions_for(self.job, other))]
        longest = max(len(question.token_ids) for question in prompts) + self.stage.max_tokens
        limit = getattr(model.config, "max_position_embeddings", None) or longest
        self.engine = VllmEngine(
            artifact.location,
            dtype="float32",
            max_model_len=min(longest, limit),
            gpu_memory_utilization=self.stage.gpu_share,
            kv_cache_gib=1,
        )
        self.architecture = wanted
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def questions_for(job: Job, artifact: Artifact) -> list[Question]:
    from generators.text.prompts import load_tokenizer

    return load_questions(job, load_tokenizer(artifact.location))


def architecture(config: Any) -> dict[str, Any]:
    """What must agree for one model's weights to run in another's engine."""
    skip = ("token_id", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    return {k: v for k, v in config.to_dict().items() if not k.endswith(skip)}


def read_part(job: Job, part: str) -> pl.DataFrame:
    data = job.store.read("artifacts", job.artifact, "data", f"{part}.parquet")
    return pl.read_parquet(io.BytesIO(data))


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
