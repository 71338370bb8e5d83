"""Who answers while a policy learns: vLLM, with the policy's weights as they are at that moment.

Every process that trains has a `Sampler`. Rank 0's has the engine; the others hand over their parts of the weights and
get the answers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import Parameter

from engine.errors import StageFailed
from engine.stage.job import Job
from generators.backends.open import open_engine
from generators.backends.protocol import Completion, Failure, Sampling
from generators.backends.replicas import gpus
from generators.text.chat_template import ChatTemplate
from generators.text.prompts import decode_all
from training.loops.distributed import from_lead, is_split, rank, wait_for_all, whole, world
from training.models.load import base_of, is_adapter
from training.rl.rollouts import Question, Rollout

if TYPE_CHECKING:
    from generators.backends.process.watched import WatchedEngine
    from generators.backends.vllm.engine import VllmEngine

    Engine = VllmEngine | WatchedEngine


def start_engine(
    location: str, questions: Sequence[Question], max_tokens: int, gpu_share: float, job: Job, apart: bool = False
) -> Engine:
    """vLLM with room for the longest prompt and answer. An adapter's engine starts from its base.

    vLLM occupies the process group of its process, and the interpreter while it samples. Beside several processes that
    train, or `apart` from one that does at the same time, it runs in one of its own, on the last GPU if none trains there.
    """
    longest = max(len(question.token_ids) for question in questions) + max_tokens
    folder = base_of(location, job) if is_adapter(location) else location
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": longest, "kv_cache_gib": 1}
    if world() == 1 and not apart:
        return open_engine("vllm", folder, apart=False, **options, gpu_memory_utilization=gpu_share)
    seen = gpus()
    spare = len(seen) > world()
    return open_engine(
        "vllm", folder, say=job.say, devices=(seen[-1] if spare else seen[0]) if seen else None,
        **options, gpu_memory_utilization=0.9 if spare else gpu_share,
    )  # fmt: skip


@dataclass
class Sampler:
    """Asks a policy for answers, at temperature 1: the samples are the policy's own.

    Attributes:
        engine: rank 0's.
        ready: answers that were sampled ahead, by the number of their iteration.
    """

    job: Job
    engine: Engine | None
    policy: Any
    tokenizer: Any
    max_tokens: int
    ready: dict[int, list[Completion]] = field(default_factory=lambda: {})
    _coming: tuple[int, Future[list[Completion]]] | None = field(default=None, init=False)
    _background: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1), init=False)

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    def sample(self, questions: Sequence[Question], number: int) -> list[Rollout]:
        """One answer to each question: of those that are ready, or of the policy as it is now.

        Args:
            number: of the iteration; gives the seeds.

        Raises:
            StageFailed: an answer can't be had.
        """
        completions = self.ready.pop(number, None)
        if completions is None:
            self._hand_over()
            completions = from_lead(partial(self._generate, questions, number))
        texts = decode_all(self.tokenizer, [c.token_ids for c in completions])
        texts = [self.template.apart(c.token_ids, text)[1] for c, text in zip(completions, texts, strict=True)]
        return [
            Rollout(question, c.token_ids, text, c.finish_reason, c.logprobs or [])
            for question, c, text in zip(questions, completions, texts, strict=True)
        ]

    def sample_ahead(self, questions: Sequence[Question], number: int) -> None:
        """Begin to sample these answers by the policy as it is now, while it goes on to learn."""
        self._hand_over()
        coming = self._background.submit(self._generate, questions, number) if rank() == 0 else Future()
        self._coming = number, coming

    def wait(self) -> dict[int, list[Completion]]:
        """What is ready, once what was begun ahead is: the part of the sampler that belongs into a checkpoint."""
        if self._coming:
            number, coming = self._coming
            self.ready[number], self._coming = from_lead(coming.result), None
        return self.ready

    def close(self) -> None:
        self._background.shutdown()
        if self.engine is not None:
            self.engine.close()

    def _hand_over(self) -> None:
        """Let the engine answer as the policy does now."""
        wait_for_all()  # rank 0 may have had to load a reward model or to write a checkpoint
        named = weights(self.policy)
        if self.engine:
            self.engine.load_weights(named)
        elif any(map(is_split, self.policy.parameters())):
            for _ in named:
                pass

    def _generate(self, questions: Sequence[Question], number: int) -> list[Completion]:
        """Rank 0's part: the answers of the weights that the engine has."""
        assert self.engine is not None
        seeds = [self.job.derive("rollout", number, i) for i in range(len(questions))]
        stops = self.template.stop_ids(tools=any(q.tools for q in questions))
        sampling = Sampling(max_tokens=self.max_tokens, stop_token_ids=stops)
        answers = self.engine.generate([q.token_ids for q in questions], sampling, seeds)
        if lost := [answer.detail for answer in answers if isinstance(answer, Failure)]:
            raise StageFailed(f"{len(lost)} of {len(questions)} prompts got no answer: {lost[0]}")
        return [answer for answer in answers if isinstance(answer, Completion)]


def weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors a sampler needs to answer as this model does; an adapter's update is added to the weights it is for.
    Those of a split model are gathered one by one; all processes must go through them.

    Each adapted layer is merged in a copy of its own: merging and taking back would leave rounding behind in the base,
    which is the reference.
    """
    if not isinstance(model, PeftModel):
        yield from ((name, whole(tensor)) for name, tensor in model.named_parameters())
        return
    base: Any = model.get_base_model()
    adapted: list[tuple[str, Any]] = [(n, m) for n, m in base.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, module in adapted:
        parts = list(module.parameters())
        # What is copied already is not copied again: parts that are split are put together instead.
        together = {id(p): Parameter(whole(p).detach().clone(), False) for p in parts if is_split(p)}
        merged: Any = copy.deepcopy(module, together)
        merged.get_base_layer().float()  # narrower weights would round the update
        merged.merge()
        for part, tensor in merged.get_base_layer().named_parameters():
            yield f"{name}.{part}", tensor
    inside = tuple(f"{name}." for name, _ in adapted)
    yield from ((name, whole(tensor)) for name, tensor in base.named_parameters() if not name.startswith(inside))
