"""What scores an answer is held together before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from engine.errors import UserError
from engine.stage.preflight import Glimpse, Preflight
from training.evaluate.stage import Evaluate
from training.rl.grpo_stage import Grpo
from training.rl.ppo.stage import Ppo


@pytest.mark.parametrize("stage", [Grpo, Ppo])
def test_weights_and_rewards(stage: Any) -> None:
    with pytest.raises(ValidationError, match=r"`weights` names `rihgt`, which is no rule. Did you mean `right`"):
        stage.model_validate({"rules": {"right": "length"}, "weights": {"rihgt": 2}})
    stage.model_validate({"rules": {"right": "length"}, "weights": {"right": 2, "reward": 1}}).check(Preflight())
    with pytest.raises(UserError, match="nothing says what an answer is worth"):
        stage.model_validate({}).check(Preflight())
    stage.model_validate({}).check(Preflight({"reward": [Glimpse("reward", "RewardModel")]}))


def test_gold_goes_with_held_out_prompts() -> None:
    held_out = Preflight({"held_out": [Glimpse("questions", "Prompt")]})
    guarded = Ppo.model_validate({"rules": {"a": "length"}, "gold": {"g": "length"}})
    guarded.check(held_out)
    for stage, known in ((guarded, Preflight()), (Ppo.model_validate({"rules": {"a": "length"}}), held_out)):
        with pytest.raises(UserError, match="give both, or neither"):
            stage.check(known)


def test_an_evaluation_names_its_inputs() -> None:
    known = Preflight(
        {"models": [Glimpse("sft", "Model"), Glimpse("ppo", "Model")], "candidates": [Glimpse("old", "Candidate")]}
    )
    Evaluate.model_validate({"reference": "sft"}).check(known)
    with pytest.raises(UserError, match=r"`reference` is stf, which is none of the models. Did you mean `sft`"):
        Evaluate.model_validate({"reference": "stf"}).check(known)
    with pytest.raises(UserError, match="`best_of` chooses by a reward model"):
        Evaluate.model_validate({"best_of": {"ppo": 4}}).check(known)
    with pytest.raises(UserError, match="a check can't be called `length`"):
        Evaluate.model_validate({"checks": {"length": "length"}}).check(known)
