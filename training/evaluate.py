"""`evaluate`: models and prompts -> one table of how good their answers are, and every measurement behind it.

Each model answers every prompt `n` times, with the same seeds for all models. An answer is measured by `checks` (rules
that are true or false), by `utility` (a rule that says how good it is: the gold preference), by a reward model, by its
length, and by its KL to the reference model:

    KL(model || reference) = E[sum_t log model(y_t) - log reference(y_t)],  y from the model

estimated by the mean over answers (k1 in `training.kl`: no bias, may be slightly negative).

All intervals are 95 %, by resampling prompts. Each model is one partition: a killed evaluation goes on with the next.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field

from engine.errors import UserError, nearest
from engine.job import Job
from engine.schema import row_id
from engine.stage import Audit, NotIdentity, Stage, port
from engine.store import Artifact
from training import bootstrap, win_rate
from training.logprobs import token_logprobs
from training.rollouts import Question, Rollout, check_room, load_questions
from training.scoring import frame, make_scorer, measure, same_tokenizer
from training.trl_stage import load_model, quiet

if TYPE_CHECKING:
    from generators.vllm_backend import VllmEngine


class Evaluate(Stage):
    """Compare models on the same prompts, with intervals."""

    takes = {
        "models": port("Model", many=True, labelled=True),
        "prompts": port("Prompt", "Conversation", many=True),
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
    checks: dict[str, str] = Field(
        {}, description="Name -> rule over completion, reference, prompt, length, finish_reason."
    )
    utility: str | None = Field(None, description="A rule that is higher for the better of two answers.")
    show: int = Field(8, ge=0, description="Prompts whose answers are put side by side in samples.json.")
    gpu_share: Annotated[float, NotIdentity] = Field(0.5, gt=0, lt=1)
    contamination: Annotated[bool, NotIdentity] = Field(
        True, description="Also tell which prompts stand in what the models were trained on, by a stage of its own."
    )

    def audit(self) -> Audit | None:
        return Audit("contamination", models="models", rows="prompts") if self.contamination else None

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None

    def run(self, job: Job) -> None:
        quiet()
        models = job.inputs["models"]
        if self.reference is not None and self.reference not in models:
            raise UserError(
                f"`reference` is {self.reference}, which is none of the models.{nearest(self.reference, models)} "
                f"Models: {', '.join(models)}."
            )
        for name in {"reward", "kl", "length", "sample", "n", "utility", "gold_win_rate"} & set(self.checks):
            raise UserError(f"a check can't be called `{name}`: that is measured already. Choose another name.")
        parts = {label: f"{i:05d}-{label}" for i, label in enumerate(models)}
        done = job.committed()
        sampler = Sampler(job, self, models)
        for i, (label, artifact) in enumerate(models.items()):
            if parts[label] not in done:
                job.commit(parts[label], self.measure(job, sampler, label, artifact))
            job.progress(i + 1, len(models), "models")
        sampler.close()
        rows = pl.concat([read_part(job, part) for part in parts.values()])
        table = tabulate(rows, list(models), self.reference, list(self.checks), job.seed)
        asked = questions_for(job, next(iter(models.values())))
        (job.output / "table.json").write_text(json.dumps(table, indent=1))
        (job.output / "samples.json").write_text(
            json.dumps(side_by_side(rows, asked[: self.show], list(models)), indent=1)
        )
        job.summary(
            table=table,
            reference=self.reference,
            prompts=len(asked),
            samples=self.n,
            sampling={"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens},
            seed=job.seed,
            kl_estimator="k1",
            intervals="95 %, bootstrap over prompts",
        )

    def measure(self, job: Job, sampler: Sampler, label: str, artifact: Artifact) -> Any:
        """Sample a model's answers and measure each of them. Returns Verdict rows."""
        model, tokenizer = load_model(artifact.location, job)
        model.eval()
        questions = load_questions(job, tokenizer)
        check_room(questions, self.max_tokens, model.config)
        rollouts = sampler.sample(artifact, model, tokenizer, questions)
        seen = frame(rollouts)
        values: dict[str, Any] = {name: measure(rule, seen, name) for name, rule in self.checks.items()}
        if self.utility is not None:
            values["utility"] = measure(self.utility, seen, "utility")
        if job.maybe("reward"):
            values["reward"] = make_scorer(job, tokenizer, {}, {}, 0.0, "cpu").score(rollouts)[0]
        values["length"] = np.array([len(r.token_ids) for r in rollouts], dtype=np.float64)
        if (divergence := self.divergence(job, label, model, tokenizer, rollouts)) is not None:
            values["kl"] = divergence
        rows: list[dict[str, Any]] = []
        for i, rollout in enumerate(rollouts):
            sample = i % self.n
            for metric in ("sample", *values):
                value = None if metric == "sample" else float(values[metric][i])
                rows.append(
                    {
                        "id": row_id("Verdict", artifact.key, label, rollout.question.id, sample, metric, job.seed),
                        "parents": [rollout.question.id],
                        "subject": rollout.question.id,
                        "model": label,
                        "metric": metric,
                        "value": value,
                        "text": rollout.text if metric == "sample" else None,
                        "sample": sample,
                    }
                )
        schema = {"value": pl.Float64, "text": pl.String, "sample": pl.Int32}
        return pl.DataFrame(rows, schema_overrides=schema).to_arrow()

    def divergence(
        self, job: Job, label: str, model: Any, tokenizer: Any, rollouts: Sequence[Rollout]
    ) -> np.ndarray | None:
        """log model(y) - log reference(y) of each answer; None where that estimates no KL.

        It does not at another temperature than 1, nor for a model that is prompted in another way than the reference.
        """
        if self.reference is None or (self.temperature, self.top_p) != (1.0, 1.0):
            return None
        if label == self.reference:
            return np.zeros(len(rollouts))
        reference, its_tokenizer = load_model(job.inputs["models"][self.reference].location, job)
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

    def sample(self, artifact: Artifact, model: Any, tokenizer: Any, questions: list[Question]) -> list[Rollout]:
        from generators.prompting import decode
        from generators.vllm_backend import Sampling, end_ids

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
        asked = [question for question in questions for _ in range(stage.n)]
        seeds = [self.job.derive("evaluate", q.id, i % stage.n) for i, q in enumerate(asked)]
        completions = engine.generate([q.token_ids for q in asked], sampling, seeds)
        return [
            Rollout(question, c.token_ids, decode(tokenizer, c.token_ids), c.finish_reason)
            for question, c in zip(asked, completions, strict=True)
        ]

    def engine_for(self, artifact: Artifact, model: Any, questions: list[Question]) -> VllmEngine:
        """The running engine with this model's weights, or a new one where another architecture is needed."""
        from generators.vllm_backend import VllmEngine

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
    from generators.prompting import load_tokenizer

    return load_questions(job, load_tokenizer(artifact.location))


def architecture(config: Any) -> dict[str, Any]:
    """What must agree for one model's weights to run in another's engine."""
    skip = ("token_id", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    return {k: v for k, v in config.to_dict().items() if not k.endswith(skip)}


def read_part(job: Job, part: str) -> pl.DataFrame:
    data = job.store.read("artifacts", job.artifact, "data", f"{part}.parquet")
    return pl.read_parquet(io.BytesIO(data))


def tabulate(
    rows: pl.DataFrame, models: Sequence[str], reference: str | None, checks: Sequence[str], seed: int
) -> dict[str, dict[str, float | int | None]]:
    """Model -> metrics, from Verdict rows: the mean over prompts of each prompt's mean over answers.

    Checks and the win rate come with `_low` and `_high`. A metric that was not measured is null. The reference wins
    against itself half of the time by definition.
    """
    table: dict[str, dict[str, float | int | None]] = {}
    utilities = {model: by_subject(rows, model, "utility") for model in models}
    for model in models:
        own = rows.filter(model=model)
        line: dict[str, float | int | None] = {}
        for check in checks:
            measured = own.filter(metric=check)
            found = bootstrap.mean(measured["value"].to_numpy(), measured["subject"].to_list(), seed, check)
            line |= {check: found.value, f"{check}_low": found.low, f"{check}_high": found.high}
        if reference is not None and utilities[reference]:
            found = win_rate.against(utilities[model], utilities[reference], seed)
            if model == reference:
                found = bootstrap.Interval(0.5, 0.5, 0.5)
            line |= {"gold_win_rate": found.value, "gold_win_rate_low": found.low, "gold_win_rate_high": found.high}
        else:
            line |= {"gold_win_rate": None, "gold_win_rate_low": None, "gold_win_rate_high": None}
        for metric in ("reward", "kl", "length"):
            means = [float(np.mean(values)) for values in by_subject(rows, model, metric).values()]
            line[metric] = float(np.mean(means)) if means else None
        line["n"] = len(own.filter(metric="sample"))
        table[model] = {name: round(value, 6) if isinstance(value, float) else value for name, value in line.items()}
    return table


def by_subject(rows: pl.DataFrame, model: str, metric: str) -> dict[str, list[float]]:
    """Prompt -> the values of a model's answers to it, in the order of the samples."""
    picked = rows.filter(model=model, metric=metric).sort("subject", "sample")
    found: dict[str, list[float]] = {}
    for subject, value in picked.select("subject", "value").iter_rows():
        found.setdefault(subject, []).append(value)
    return found


def side_by_side(rows: pl.DataFrame, questions: Sequence[Question], models: Sequence[str]) -> list[dict[str, Any]]:
    """The first answers of every model to some prompts."""
    first = rows.filter(metric="sample", sample=0)
    texts = {(s, m): t for s, m, t in first.select("subject", "model", "text").iter_rows()}
    return [
        {
            "prompt": question.messages,
            "reference": question.reference,
            "answers": {model: texts[question.id, model] for model in models},
        }
        for question in questions
    ]
