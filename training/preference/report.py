"""What a policy that was trained on preferences is worth on the pairs that were held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.statistics import bootstrap
from training.loops.distributed import is_split
from training.models.logprobs import token_logprobs

if TYPE_CHECKING:
    from engine.stage.job import Job
    from training.preference.pairs import Pair


def report(
    job: Job, policy: Any, reference: Any, pairs: Sequence[Pair], beta: float, against_reference: bool = True
) -> None:
    """How often the policy's implicit reward orders held-out pairs as people did.

    The reward is beta log(pi/pi_ref); of losses without a reference, beta times the mean log-probability of a token.

    Args:
        reference: None for the policy without its adapter.
        against_reference: False for losses without a reference.
    """
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    ours = token_logprobs(policy, answers)
    if not against_reference:
        ratios = [float(a.mean()) for a in ours]
    else:
        with policy.disable_adapter() if reference is None else nullcontext():
            theirs = token_logprobs(reference or policy, answers)
        ratios = [float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)]
    difference = np.array(ratios[0::2]) - np.array(ratios[1::2])
    accuracy = bootstrap.mean((np.sign(difference) + 1) / 2, [p.prompt_id for p in pairs], job.seed, "accuracy")
    # The shorter answer wins this often: what a policy that only learnt to be brief (or long) would get, or 1 less it.
    shorter = np.mean([np.sign(len(p.rejected.response) - len(p.chosen.response)) / 2 + 0.5 for p in pairs])
    job.summary(
        validation_pairs=len(pairs),
        accuracy=round(accuracy.value, 6),
        accuracy_low=round(accuracy.low, 6),
        accuracy_high=round(accuracy.high, 6),
        accuracy_of_length=round(float(max(shorter, 1 - shorter)), 6),
        chosen_logratio=round(float(np.mean(ratios[0::2])), 6),
        rejected_logratio=round(float(np.mean(ratios[1::2])), 6),
        reward_margin=round(beta * float(difference.mean()), 6),
    )


def whole_reference(reference: Any, load: Callable[[], Any]) -> Any:
    """The reference; loaded again where it was split over processes, so that one of them can ask it alone."""
    if reference is None or not any(map(is_split, reference.parameters())):
        return reference
    return load().to(next(reference.parameters()).device).eval()
