"""What says how much an answer is worth, as a recipe has it: held together before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.errors import UserError, nearest
from generators.rules.rule import Rule

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight


def check_weights(weights: Mapping[str, float], rules: Mapping[str, Rule]) -> None:
    """
    Raises:
        ValueError: a weight is for nothing that is scored.
    """
    known = [*rules, "reward"]
    for name in weights:
        if name not in known:
            raise ValueError(
                f"`weights` names `{name}`, which is no rule.{nearest(name, known)} Known: {', '.join(known)}"
            )


def check_rewards(rules: Mapping[str, Rule], known: Preflight) -> None:
    """For `Stage.check`.

    Raises:
        UserError: nothing scores an answer; or a function of one's own can't be called.
    """
    from generators.rules import reward_function

    if not rules and not known.inputs.get("reward"):
        raise UserError("nothing says what an answer is worth: give a reward model (`reward`) or `rules`.")
    reward_function.check(rules.values(), known)
