"""Sampling from one model after the other."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from generators.backends.open import open_engine
from generators.backends.protocol import Sampling
from generators.backends.vllm.model_files import end_ids
from generators.text.chat_template import ChatTemplate
from generators.text.prompts import decode, load_tokenizer
from training.evaluate.stage import Evaluate
from training.rl.rollouts import Question, Rollout, load_questions

if TYPE_CHECKING:
    from engine.stage.job import Job
    from engine.store.artifact import Artifact
    from generators.backends.vllm.engine import VllmEngine


class SharedEngine:
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
        stage = self.stage
        engine = self.engine_for(artifact, model, questions)
        template = ChatTemplate(tokenizer)
        sampling = Sampling(
            temperature=stage.temperature,
            top_p=stage.top_p,
            max_tokens=stage.max_tokens,
            stop_token_ids=self.ends,
            logprobs=False,
        )
        asked = [question for question in questions for _ in range(n)]
        seeds = [self.job.derive("evaluate", q.id, i % n) for i, q in enumerate(asked)]
        completions = engine.generate([q.token_ids for q in asked], sampling, seeds)
        return [
            Rollout(
                question, c.token_ids, template.apart(c.token_ids, decode(tokenizer, c.token_ids))[1], c.finish_reason
            )
            for question, c in zip(asked, completions, strict=True)
        ]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer of any of the models."""
        folders = [model.location for model in self.models.values()]
        ends = {end for folder in folders for end in end_ids(folder)}
        ends |= {end for folder in folders for end in ChatTemplate(load_tokenizer(folder)).stop_ids()}
        return tuple(sorted(ends))

    @cached_property
    def asked(self) -> dict[str, list[Question]]:
        """The prompts that every one of the models can be shown, as each of them reads them, by artifact id.

        Raises:
            UserError: there is none.
        """
        read = {model.id: questions_for(self.job, model) for model in self.models.values()}
        common = set.intersection(*({question.id for question in own} for own in read.values()))
        if not common:
            raise UserError("no prompt can be shown to all of the models, so there is nothing to compare them by.")
        return {name: [question for question in own if question.id in common] for name, own in read.items()}

    def engine_for(self, artifact: Artifact, model: Any, questions: list[Question]) -> VllmEngine:
        """The running engine with this model's weights, or a new one where another architecture is needed."""
        wanted = architecture(model.config)
        if self.engine is not None and wanted == self.architecture:
            self.engine.load_weights(model.named_parameters())
            return self.engine
        self.close()
        # Room for every model: a chat template adds tokens that a base model's plain text does not have.
        prompts = [*questions, *(question for own in self.asked.values() for question in own)]
        longest = max(len(question.token_ids) for question in prompts) + self.stage.max_tokens
        limit = getattr(model.config, "max_position_embeddings", None) or longest
        self.engine = open_engine(
            "vllm",
            artifact.location,
            apart=False,
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
    return load_questions(job, load_tokenizer(artifact.location), rejected_as=artifact.id)


def architecture(config: Any) -> dict[str, Any]:
    """What must agree for one model's weights to run in another's engine."""
    skip = ("token_id", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    return {k: v for k, v in config.to_dict().items() if not k.endswith(skip)}
