"""The regression gate's little language: what it says, and that it says nothing else."""

import pytest

from engine.errors import UserError
from training.evaluate.gate import parse

TABLE = {
    "sft": {"accuracy": 0.6, "kl": 0.0, "reward": None},
    "ppo-2": {"accuracy": 0.5, "kl": 2.0, "reward": 1.0},
    "sft best of 4": {"accuracy": 0.7, "kl": None, "reward": 2.0},
}
METRICS = ["accuracy", "kl", "reward"]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("ppo-2.accuracy < sft.accuracy - 0.05", True),
        ("ppo-2.accuracy < sft.accuracy - 0.15", False),
        ("ppo-2.accuracy < 0.9 * sft.accuracy", True),
        ("'sft best of 4'.accuracy > ppo-2.accuracy and ppo-2.kl > 1", True),
        ("ppo-2.kl > 1 and sft.accuracy > 0.9", False),
        ("sft.accuracy < 0.5 or ppo-2.kl >= 2.0", True),
        ("not ppo-2.kl < 3", False),
        ("0.4 < ppo-2.accuracy < 0.6", True),
        ("-ppo-2.kl == -2", True),
        ("(sft.accuracy + ppo-2.accuracy) / 2 < 0.5", False),
    ],
)
def test_conditions_are_worked_out(text: str, holds: bool) -> None:
    condition = parse(text, list(TABLE), METRICS)
    assert condition.holds(TABLE) is holds


def test_the_numbers_are_named() -> None:
    condition = parse("ppo-2.accuracy < sft.accuracy", list(TABLE), METRICS)
    assert condition.values_in(TABLE) == "ppo-2.accuracy = 0.5, sft.accuracy = 0.6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo.accuracy < 1", r"there is no model `ppo`. Did you mean `ppo-2`\?"),
        ("sft.acuracy < 1", r"there is no metric `acuracy`. Did you mean `accuracy`\?"),
        ("sft.accuracy <", "can't be read"),
        ("sft.accuracy", "can't be read"),
        ("__import__('os').system('true') < 1", "there is no model|can't be read"),
        ("abs(sft.kl) < 1", "can't be read"),
        ("sft.kl ** 9 < 1", "can't be read"),
        ("sft.kl < x", "can't be read"),
        ("sft.kl < True", "can't be read"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(text, list(TABLE), METRICS)


def test_what_was_not_measured_can_not_pass_unseen() -> None:
    with pytest.raises(UserError, match=r"sft\.reward was not measured"):
        parse("ppo-2.reward < sft.reward", list(TABLE), METRICS).holds(TABLE)
    with pytest.raises(UserError, match="divides by 0"):
        parse("ppo-2.kl / sft.kl > 1", list(TABLE), METRICS).holds(TABLE)
