"""What a PPO run has beside its formulas (`training.ppo`): its models and where they come from, who answers and who judges
the answers, checkpoints it goes on from, and what it hands over at its end."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from engine.stage.job import Job
from training import kl
from training.loops import snapshot
from training.loops.checkpoint import Checkpoints
from training.models.load import load_model, quiet, save
from training.reward_function import make_scorer
from training.rollouts import (
    Question,
    Rollout,
    answered,
    ask,
    check_room,
    consumed,
    draw,
    hand_over,
    load_questions,
    sample,
    start_engine,
)  # fmt: skip
from training.watch import Watch

if TYPE_CHECKING:
    import numpy as np

    from generators.backends.protocol import Completion
    from training.critic import Critic
    from training.ppo import Ppo


class Run:
    """Everything that outlives an iteration, as it was when the last one before an interruption ended. All processes have
    one; rank 0's alone samples, scores and writes.

    Attributes:
        reference: None where it is the policy without its adapter.
        iterations: those that are left. With a guard the last policy is looked at, too.
    """

    def __init__(self, stage: Ppo, job: Job) -> None:
        import torch

        from generators.backends.protocol import Completion
        from training.loops.distributed import rank, spread

        quiet()
        torch.use_deterministic_algorithms(True, warn_only=True)
        if stage.rollouts % stage.samples:
            raise UserError(f"`rollouts` is {stage.rollouts}, which `samples` ({stage.samples}) does not divide.")
        self.stage, self.job, self.leads = stage, job, rank() == 0
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.location = job.input("policy").location
        self.policy: Any
        self.policy, self.tokenizer = load_model(self.location, job)
        given = job.maybe("reference")
        # With an adapter the policy without it is the reference: one copy of the weights.
        self.reference: Any = (
            None if stage.lora and not given else load_model((given or job.input("policy")).location, job)[0]
        )
        self.critic = make_critic(stage.critic, self.policy, self.location, job)
        if stage.lora:
            from peft import get_peft_model

            from training.models.lora import peft_config

            self.policy = get_peft_model(self.policy, peft_config(stage.lora))
        for module in (self.policy, self.reference, self.critic):
            if module is not None:
                module.to(device).eval()  # dropout off: rho is 1 before the first step
                spread(module, stage.sharding)
        self.scorer = (
            make_scorer(job, self.tokenizer, stage.rules, stage.weights, stage.pessimism, device)
            if self.leads
            else None
        )
        self.questions = load_questions(job, self.tokenizer)
        check_room(self.questions, stage.max_tokens, self.policy.config)

        parameters = [p for p in (*self.policy.parameters(), *self.critic.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=stage.lr, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)
        self.modules = {"policy": self.policy, "critic": self.critic}
        self.checkpoints = Checkpoints(job.scratch / "checkpoints")
        found = snapshot.restore(self.checkpoints, self.modules, self.optimizer)
        facts: dict[str, Any] = found.facts if found else {"beta": stage.beta, "points": [], "ahead": []}
        self.controller = kl.Controller(facts["beta"], stage.target)
        self.watch: Watch | None = None
        self.stopped: str | None = None
        if stage.guard:
            self.watch = Watch(job, self.tokenizer, stage.guard, stage.gold, stage.gold_every, facts["points"])
            check_room(self.watch.questions, stage.max_tokens, self.policy.config)
        self.iterations = range(found.step if found else 0, stage.iterations + bool(self.watch))
        self.ready = [Completion(**completion) for completion in facts["ahead"]]
        self.coming: Future[list[Completion]] | None = None
        self.background = ThreadPoolExecutor(1)
        everything = [*self.questions, *(self.watch.questions if self.watch else [])]
        self.engine = (
            start_engine(self.location, everything, stage.max_tokens, stage.gpu_share, job, stage.ahead)
            if self.leads and self.iterations
            else None
        )

    def asked(self, iteration: int) -> list[Question]:
        drawn = draw(len(self.questions), self.stage.rollouts // self.stage.samples, iteration, self.job.seed)
        return [self.questions[i] for i in drawn for _ in range(self.stage.samples)]

    def answers(self, questions: list[Question], number: int) -> tuple[list[Rollout], list[Completion]]:
        """The policy's as it is now; `number` gives the seeds."""
        return ask(self.job, self.engine, self.policy, self.tokenizer, questions, self.stage.max_tokens, number)

    def sample(self, iteration: int) -> tuple[list[Rollout], list[Completion]]:
        """The rollouts of an iteration: those that are there already, or the answers of the policy as it is now."""
        asked = self.asked(iteration)
        if self.ready:
            return answered(self.tokenizer, asked, self.ready), self.ready
        return self.answers(asked, iteration)

    def sample_ahead(self, iteration: int) -> None:
        """With `ahead`, begin to sample this iteration's answers by the policy as it is now. `save` waits for them."""
        if self.stage.ahead and iteration in self.iterations:
            hand_over(self.engine, self.policy)
            arguments = self.job, self.engine, self.asked(iteration), self.stage.max_tokens, iteration
            self.coming = self.background.submit(sample, *arguments) if self.leads else Future()

    def score(self, rollouts: list[Rollout]) -> tuple[np.ndarray, dict[str, float]]:
        from training.loops.distributed import from_lead

        def judge() -> tuple[np.ndarray, dict[str, float]]:
            assert self.scorer is not None
            return self.scorer.score(rollouts)

        return from_lead(judge)

    def ends(self, iteration: int, score: float, kl: float, disagreement: float | None) -> bool:
        """Let the guard look at the policy before an iteration learns. Whether it does not any more."""
        if not self.watch:
            return False
        last = iteration == self.stage.iterations
        self.stopped = self.watch.look(
            iteration, self.policy, score, kl, disagreement,
            lambda questions: self.answers(questions, -1 - iteration)[0], last,
        )  # fmt: skip
        return last or bool(self.stopped)

    def save(self, iterations: int) -> None:
        """All that the next iteration depends on, after so many."""
        from training.loops.distributed import from_lead

        self.ready = from_lead(self.coming.result) if self.coming else []
        self.coming = None
        facts = {
            "beta": self.controller.beta,
            "points": self.watch.guard.as_json() if self.watch else [],
            "ahead": [asdict(completion) for completion in self.ready],
        }
        checkpoint = snapshot.take(iterations, self.modules, self.optimizer, facts)
        if self.leads:
            self.checkpoints.save(checkpoint)

    def finish(self) -> None:
        """Say what was learnt from, and write the policy: the last one, or the best that the guard saw."""
        from training.loops.distributed import put_together

        self.checkpoints.wait()
        self.background.shutdown()
        if self.engine is not None:
            self.engine.close()
        # The same digest of `consumed` says: the same answers to the same prompts, in the same order, were learnt from.
        digest, learnt_from = consumed(self.job)
        self.job.summary(consumed=digest, episodes=learnt_from, beta=self.controller.beta)
        if self.watch:
            if self.stopped:
                self.job.say(f"Stopped before iteration {learnt_from // self.stage.rollouts + 1}: {self.stopped}")
            self.job.summary(kept_iteration=self.watch.restore_best(self.policy), stopped=self.stopped or "")
        lora = self.stage.lora
        policy = self.policy.merge_and_unload() if lora and lora.merge else self.policy
        policy = put_together(policy, lambda: load_model(self.location, self.job)[0])
        if self.leads:
            save(self.job, policy, self.tokenizer, self.job.input("policy").id if lora and not lora.merge else "")


def make_critic(kind: str, policy: Any, location: str, job: Job) -> Critic:
    from training.critic import Critic

    width = int(policy.config.hidden_size)
    if kind == "shared":
        return Critic(width)
    copy: Any = load_model(location, job)[0]
    return Critic(width, copy.base_model)
