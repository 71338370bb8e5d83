"""Guarding a policy while it is optimised: when to stop, and which policy to keep (see `training.rl.overoptimisation`).

    guard = Guard(GuardConfig(patience=3))
    for step ...:
        guard.add(Point(step, kl, proxy, disagreement, gold, gold_error))
        if reason := guard.stop():
            break
    keep = guard.best().step

A `Watch` does so with a policy under training. It measures it before each iteration learns, on answers to held-out prompts
where there is something to measure them by, else by how much the heads of the reward model disagree. The best policy's
weights stand aside, in `best/` of the job's scratch; measuring an iteration again, after a kill, gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.errors import UserError
from engine.stage.job import Job
from generators.rules.rule import Rule
from training.loops import snapshot
from training.loops.checkpoint import Checkpoint, Checkpoints
from training.loops.distributed import from_lead, gathered, rank, wait_for_all
from training.rl.guard_settings import GuardConfig
from training.rl.overoptimisation import Point, best, disagreement_reason, held_out, held_out_reason
from training.rl.rollouts import Question, load_questions
from training.rl.sampler import Sampler
from training.rl.scoring import Scorer


@dataclass
class Guard:
    """What has been seen of a run, and whether to go on. As JSON it goes into a checkpoint and comes back."""

    config: GuardConfig = field(default_factory=GuardConfig)
    points: list[Point] = field(default_factory=lambda: [])

    def add(self, point: Point) -> None:
        """Take note of a policy.

        Raises:
            UserError: a number is NaN or infinite.
        """
        for name, value in asdict(point).items():
            if value is not None and not math.isfinite(value):
                raise UserError(f"step {point.step}: `{name}` is {value}, expected a finite number.")
        self.points = [p for p in self.points if p.step != point.step] + [point]

    def stop(self) -> str | None:
        """Why optimisation should end here, in words; None if it may go on."""
        if any(point.gold is not None for point in self.points):
            return held_out_reason(self.points, self.config.patience, self.config.z)
        return disagreement_reason(self.points, self.config.max_disagreement)

    def best(self) -> Point:
        """The policy to keep."""
        return best(self.points, self.config.max_disagreement)

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(point) for point in self.points]

    @classmethod
    def from_json(cls, config: GuardConfig, points: Sequence[dict[str, Any]]) -> Guard:
        return cls(config, [Point(**point) for point in points])


class Watch:
    """A guard, what it measures by, and the best policy so far.

    Args:
        gold: name -> what answers to the prompts of the port `held_out` are worth; the guard goes by disagreement if empty.
        every: iterations between two such measurements.
        points: what was seen before the run was interrupted.

    Raises:
        UserError: there are held-out prompts and nothing to measure by, or the other way round.
    """

    def __init__(
        self,
        job: Job,
        tokenizer: Any,
        config: GuardConfig,
        gold: Mapping[str, Rule],
        every: int,
        points: Sequence[dict[str, Any]],
    ) -> None:
        if bool(gold) != bool(job.all("held_out")):
            raise UserError("`gold` says what answers to the prompts of `held_out` are worth: give both, or neither.")
        self.guard = Guard.from_json(config, points)
        self.questions: list[Question] = load_questions(job, tokenizer, "held_out") if gold else []
        self.scorer = Scorer(None, gold, {}, base=job.base) if gold else None
        self.every = every
        self.job = job
        self.kept = Checkpoints(job.scratch / "best", keep=1)

    def look(
        self, iteration: int, sampler: Sampler, proxy: float, kl: float, disagreement: float | None, last: bool
    ) -> str | None:
        """Measure the sampler's policy as it is before this iteration learns. Why to stop, if there is a reason. All
        processes look, rank 0 judges the answers and keeps the best policy."""
        gold, error = None, 0.0
        scorer = self.scorer
        if scorer and (iteration % self.every == 0 or last):
            answers = sampler.sample(self.questions, -1 - iteration)
            scores = from_lead(lambda: scorer.score(answers)[0])
            gold, error = held_out(scores, [question.id for question in self.questions])
            self.job.metric(iteration + 1, gold=gold)
        self.guard.add(Point(iteration, kl, proxy, disagreement, gold, error))
        if self.guard.best().step == iteration:
            weights = {f"policy/{name}": p for name, p in sampler.policy.named_parameters() if p.requires_grad}
            checkpoint = Checkpoint(iteration, gathered(weights))
            if rank() == 0:
                self.kept.save(checkpoint, wait=True)
        return self.guard.stop()

    def restore_best(self, policy: Any) -> int:
        """Put the best policy's weights into this one. Returns the iterations that it had learnt from."""
        wait_for_all()
        best = self.kept.latest()
        assert best is not None and best.step == self.guard.best().step
        snapshot.put(best, {"policy": policy})
        return best.step
