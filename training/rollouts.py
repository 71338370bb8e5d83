"""Answers sampled while a policy learns: which prompts are asked, with which weights, and what came back.

Which prompts and which seeds an iteration has depends on its number alone, so that a continued run asks what the
uninterrupted one would have. What was learnt from is kept with the model, in `rollouts/`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import StageFailed, UserError
from engine.seeds import shuffled
from engine.stage.job import Job
from engine.store.parquet import encode
from training.models.answers import Answer, Message

if TYPE_CHECKING:
    from torch import Tensor

    from generators.backends.process.watched import WatchedEngine
    from generators.backends.protocol import Completion
    from generators.backends.vllm.engine import VllmEngine

    Engine = VllmEngine | WatchedEngine


@dataclass(frozen=True)
class Question:
    """A prompt as rows have it and as the model reads it."""

    id: str
    messages: list[Message]
    reference: str | None
    token_ids: list[int]

    @property
    def said(self) -> str:
        """The last thing the user said."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


@dataclass(frozen=True)
class Rollout:
    """A sampled answer. Where `finish_reason` is "stop", its last token is the one that ended it."""

    question: Question
    token_ids: list[int]
    text: str
    finish_reason: str

    @property
    def ended(self) -> bool:
        return self.finish_reason == "stop"

    @property
    def answer(self) -> Answer:
        return Answer(self.question.token_ids, self.token_ids)


def load_questions(job: Job, tokenizer: Any, port: str = "prompts") -> list[Question]:
    """The prompts of all artifacts of a port, in order, as token ids.

    Raises:
        UserError: there is none, or one is empty.
    """
    from generators.text.prompts import encode_prompt, prompt_of

    questions: list[Question] = []
    for artifact in job.all(port):
        for row in artifact.to_table().to_pylist():
            messages, reference = prompt_of(row)
            if not messages:
                raise UserError(f"prompt {row['id']} is empty: there is nothing to answer.")
            questions.append(Question(row["id"], messages, reference, encode_prompt(tokenizer, messages)))
    if not questions:
        raise UserError("there are no prompts to sample answers to.")
    return questions


def check_room(questions: Sequence[Question], max_tokens: int, config: Any) -> None:
    """Refuse prompts that leave no room for an answer.

    Raises:
        UserError: prompt and answer together are longer than the model's context.
    """
    room = getattr(config, "max_position_embeddings", None)
    for question in questions:
        if room is not None and len(question.token_ids) + max_tokens > room:
            raise UserError(
                f"prompt {question.id} has {len(question.token_ids)} tokens; with `max_tokens` {max_tokens} that is more "
                f"than the model's context of {room}. Leave out longer prompts or lower `max_tokens`."
            )


def draw(prompts: int, count: int, iteration: int, seed: int) -> list[int]:
    """The prompts of an iteration: the next `count` of an endless row of shuffled passes over all prompts."""
    first = iteration * count
    passes = {
        p: shuffled(range(prompts), seed, "prompts", p)
        for p in range(first // prompts, (first + count - 1) // prompts + 1)
    }
    return [passes[i // prompts][i % prompts] for i in range(first, first + count)]


def start_engine(
    location: str, questions: Sequence[Question], max_tokens: int, gpu_share: float, job: Job, apart: bool = False
) -> Engine:
    """vLLM with room for the longest prompt and answer. An adapter's engine starts from its base.

    vLLM occupies the process group of its process, and the interpreter while it samples. Beside several processes that
    train, or `apart` from one that does at the same time, it runs in one of its own, on the last GPU if none trains there.
    """
    from generators.backends.process.watched import WatchedEngine
    from generators.backends.replicas import gpus
    from generators.backends.vllm.engine import VllmEngine
    from training.loops.distributed import world
    from training.models.load import base_of, is_adapter

    longest = max(len(question.token_ids) for question in questions) + max_tokens
    folder = base_of(location, job) if is_adapter(location) else location
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": longest, "kv_cache_gib": 1}
    if world() == 1 and not apart:
        return VllmEngine(folder, **options, gpu_memory_utilization=gpu_share)
    seen = gpus()
    spare = len(seen) > world()
    return WatchedEngine(
        "vllm", folder, job.say, (seen[-1] if spare else seen[0]) if seen else None,
        **options, gpu_memory_utilization=0.9 if spare else gpu_share,
    )  # fmt: skip


def ask(
    job: Job,
    engine: Engine | None,
    model: Any,
    tokenizer: Any,
    asked: Sequence[Question],
    max_tokens: int,
    iteration: int,
) -> tuple[list[Rollout], list[Completion]]:
    """One answer of the model as it is now to each question, at temperature 1: the samples are the model's own.

    Args:
        engine: rank 0's; None in the other processes, which hand over their parts of the weights and get the answers.

    Raises:
        StageFailed: an answer can't be had.
    """
    from training.loops.distributed import from_lead

    hand_over(engine, model)
    completions = from_lead(partial(sample, job, engine, asked, max_tokens, iteration))
    return answered(tokenizer, asked, completions), completions


def hand_over(engine: Engine | None, model: Any) -> None:
    """Let the engine answer as the model does now."""
    from training.loops.distributed import is_split, wait_for_all

    wait_for_all()  # rank 0 may have had to load a reward model or to write a checkpoint
    named = weights(model)
    if engine:
        engine.load_weights(named)
    elif any(map(is_split, model.parameters())):
        for _ in named:
            pass


def sample(
    job: Job, engine: Engine | None, asked: Sequence[Question], max_tokens: int, iteration: int
) -> list[Completion]:
    """Rank 0's part of `ask`: the answers of the weights that the engine has."""
    from generators.backends.protocol import Completion, Failure, Sampling

    assert engine is not None
    seeds = [job.derive("rollout", iteration, i) for i in range(len(asked))]
    answers = engine.generate([q.token_ids for q in asked], Sampling(max_tokens=max_tokens), seeds)
    if lost := [answer.detail for answer in answers if isinstance(answer, Failure)]:
        raise StageFailed(f"{len(lost)} of {len(asked)} prompts got no answer: {lost[0]}")
    return [answer for answer in answers if isinstance(answer, Completion)]


def answered(tokenizer: Any, asked: Sequence[Question], completions: Sequence[Completion]) -> list[Rollout]:
    from generators.text.prompts import decode_all

    texts = decode_all(tokenizer, [c.token_ids for c in completions])
    return [
        Rollout(question, c.token_ids, text, c.finish_reason)
        for question, c, text in zip(asked, completions, texts, strict=True)
    ]


def weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors a sampler needs to answer as this model does; an adapter's update is added to the weights it is for.
    Those of a split model are gathered one by one; all processes must go through them.

    Each adapted layer is merged in a copy of its own: merging and taking back would leave rounding behind in the base,
    which is the reference.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    from training.loops.distributed import whole

    if not isinstance(model, PeftModel):
        yield from ((name, whole(tensor)) for name, tensor in model.named_parameters())
        return
    base: Any = model.get_base_model()
    adapted = [(name, module) for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        merged: Any = copy.deepcopy(module)
        merged.merge()
        for part, tensor in merged.get_base_layer().named_parameters():
            yield f"{name}.{part}", tensor
    inside = tuple(f"{name}." for name, _ in adapted)
    yield from ((name, tensor) for name, tensor in base.named_parameters() if not name.startswith(inside))


def keep(job: Job, iteration: int, rollouts: Sequence[Rollout], scores: np.ndarray) -> None:
    """Put what an iteration learns from beside the model: `rollouts/ITERATION.parquet`, one row an answer, in order."""
    import pyarrow as pa

    table = pa.table(
        {
            "iteration": pa.array([iteration] * len(rollouts), pa.int32()),
            "prompt_id": [r.question.id for r in rollouts],
            "prompt": [r.question.said for r in rollouts],
            "completion": [r.text for r in rollouts],
            "token_ids": pa.array([r.token_ids for r in rollouts], pa.list_(pa.int32())),
            "finish_reason": [r.finish_reason for r in rollouts],
            "score": pa.array(scores, pa.float64()),
        }
    )
    folder = job.output / "rollouts"
    folder.mkdir(exist_ok=True)
    partial = job.scratch / "rollouts.partial"
    partial.write_bytes(encode(table))
    partial.replace(folder / f"{iteration:05d}.parquet")


def consumed(job: Job) -> tuple[str, int]:
    """(a digest of everything that was learnt from: each prompt's id and sampled ids, in order; how many answers)."""
    from engine.store.parquet import read_parquet

    digest, count = hashlib.blake2b(digest_size=16), 0
    for file in sorted((job.output / "rollouts").glob("*.parquet")):
        for row in read_parquet(file, ["prompt_id", "token_ids"]).to_pylist():
            digest.update(f"{row['prompt_id']}:{row['token_ids']};".encode())
            count += 1
    return digest.hexdigest(), count


def warn_of_sameness(job: Job, iteration: int, rollouts: Sequence[Rollout], scores: np.ndarray) -> None:
    """Say so when an iteration can teach nothing."""
    if len({tuple(rollout.token_ids) for rollout in rollouts}) == 1:
        job.say(
            f"Iteration {iteration + 1}: all {len(rollouts)} answers are equal, so that no advantage can be seen. "
            "The policy has collapsed: a larger `beta` or a smaller `lr` would have kept it alive."
        )
    elif np.ptp(scores) == 0:
        job.say(
            f"Iteration {iteration + 1}: all {len(rollouts)} answers score {scores[0]:.4g}. A constant reward teaches "
            "nothing but the KL penalty."
        )
