"""Watching a policy while it is optimised: when to stop, and which policy to keep (see `training.overoptimisation`).

The policy is measured before each iteration learns, on answers to held-out prompts where there is something to measure
them by, else by how much the heads of the reward model disagree. The best policy's weights stand aside, in `best/` of the
job's scratch; measuring an iteration again, after a kill, gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from engine.stage.job import Job
from generators.rules.rule import Rule
from training import overoptimisation
from training.loops import snapshot
from training.loops.checkpoint import Checkpoint, Checkpoints
from training.overoptimisation import Guard, GuardConfig, Point
from training.reward_function import Scorer
from training.rollouts import Question, Rollout, load_questions

if TYPE_CHECKING:
    from torch import Tensor, nn


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
        gold: dict[str, Rule],
        every: int,
        points: list[dict[str, Any]],
    ) -> None:
        if bool(gold) != bool(job.all("held_out")):
            raise UserError("`gold` says what answers to the prompts of `held_out` are worth: give both, or neither.")
        self.guard = Guard.from_json(config, points)
        self.questions: list[Question] = load_questions(job, tokenizer, "held_out") if gold else []
        self.scorer = Scorer(None, gold, {}) if gold else None
        self.every = every
        self.job = job
        self.kept = Checkpoints(job.scratch / "best", keep=1)

    def look(
        self,
        iteration: int,
        policy: nn.Module,
        proxy: float,
        kl: float,
        disagreement: float | None,
        answer: Callable[[list[Question]], list[Rollout]],
        last: bool,
    ) -> str | None:
        """Measure the policy as it is before this iteration learns. Why to stop, if there is a reason. All processes look,
        rank 0 judges the answers and keeps the best policy."""
        from training.loops.distributed import from_lead, gathered, rank

        gold, error = None, 0.0
        scorer = self.scorer
        if scorer and (iteration % self.every == 0 or last):
            answers = answer(self.questions)
            scores = from_lead(lambda: scorer.score(answers)[0])
            gold, error = overoptimisation.held_out(scores, [question.id for question in self.questions])
            self.job.metric(iteration + 1, gold=gold)
        self.guard.add(Point(iteration, kl, proxy, disagreement, gold, error))
        if self.guard.best().step == iteration:
            weights: dict[str, Tensor] = {
                f"policy/{name}": p for name, p in policy.named_parameters() if p.requires_grad
            }
            checkpoint = Checkpoint(iteration, gathered(weights))
            if rank() == 0:
                self.kept.save(checkpoint, wait=True)
        return self.guard.stop()

    def restore_best(self, policy: nn.Module) -> int:
        """Put the best policy's weights into this one. Returns the iterations that it had learnt from."""
        from training.loops.distributed import wait_for_all

        wait_for_all()
        best = self.kept.latest()
        assert best is not None and best.step == self.guard.best().step
        snapshot.put(best, {"policy": policy})
        return best.step
