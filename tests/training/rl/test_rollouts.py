"""Which prompts an iteration asks."""

from __future__ import annotations

from training.rl.rollouts import draw


def test_every_prompt_is_drawn_once_a_pass_whatever_the_iteration_that_starts_it() -> None:
    drawn = [i for iteration in range(7) for i in draw(10, 4, iteration, seed=5)]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10)) and drawn[:10] != drawn[10:20]
    assert draw(3, 8, 2, seed=5) == [i for k in range(3) for i in draw(3, 8, k, seed=5)][16:]
