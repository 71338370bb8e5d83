"""The guard against hand-made runs; the best-of-n bound against closed forms."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from engine.errors import UserError
from engine.stage.drawing import Gains
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.view.report.charts import gains
from training.rl import kl
from training.rl.guard import Guard
from training.rl.guard_settings import GuardConfig
from training.rl.overoptimisation import Point, best, best_of_at_kl, held_out
from training.rl.ppo.stage import Ppo


class Optimised(Stage):
    """A stage whose metrics are those of a policy that is over-optimised."""

    gold: bool

    def run(self, job: Any) -> None:
        for step in range(1, 6):
            held_out = {"gold": math.sin(step)} if self.gold else {}
            job.metric(step, kl=0.2 * step, score=float(step), **held_out)
        job.commit("00000", pa.table({"id": ["a"], "parents": [["b"]], "text": ["x"]}))


def run(gold: list[float | None], disagreement: list[float] | None = None, error: float = 0.1) -> list[Point]:
    return [
        Point(i, i * 0.5, float(i), disagreement[i] if disagreement else None, g, error) for i, g in enumerate(gold)
    ]


def test_it_stops_when_the_held_out_score_has_fallen_beyond_doubt_and_keeps_the_best() -> None:
    guard = Guard(GuardConfig(patience=2))  # an error of 0.1 each is one of 0.14 of a difference
    stopped = None
    for point in run([0.0, 0.5, 1.0, 0.9, 0.8, 0.7, 0.6]):
        guard.add(point)
        if stopped is None and guard.stop():
            stopped = point.step
    assert stopped == 5  # 0.9 is within an error of the best, 0.8 and 0.7 are not
    assert guard.best().step == 2
    assert "learning the reward model's mistakes" in (guard.stop() or "")


def test_a_held_out_score_counts_prompts_not_answers() -> None:
    gold, error = held_out([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert gold == 0.5 and error == pytest.approx(np.std([1, 0], ddof=1) / math.sqrt(2))
    assert held_out([2.0], ["a"]) == (2.0, 0.0)


def test_a_score_that_goes_on_rising_or_only_trembles_stops_nothing() -> None:
    rising = Guard(points=run([0.1 * i for i in range(10)]))
    trembling = Guard(points=run([1.0, 0.95, 1.0, 0.92, 0.95, 0.93]))
    assert rising.stop() is None and trembling.stop() is None and rising.best().step == 9


def test_disagreement_stops_without_any_held_out_score() -> None:
    points = run([None] * 4, [0.1, 0.12, 0.19, 0.3])
    twice = GuardConfig(max_disagreement=2.0)
    assert Guard(twice, points[:3]).stop() is None
    assert "3.0 times as much" in (Guard(twice, points).stop() or "")
    assert Guard(twice, run([0.1 * i for i in range(4)], [0.1, 0.12, 0.19, 0.3])).stop() is None  # it gets better still
    assert best(points, 2.0).step == 2 and best(points, None).step == 3
    assert Guard(GuardConfig(max_disagreement=None), points).stop() is None


def test_a_guard_survives_a_checkpoint_and_a_step_that_is_done_again_counts_once() -> None:
    guard = Guard(points=run([0.0, 1.0, 0.2]))
    again = Guard.from_json(guard.config, guard.as_json())
    assert again == guard
    again.add(Point(2, 1.0, 2.0, None, 3.0))
    assert [p.step for p in again.points] == [0, 1, 2] and again.best().gold == 3.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"step 3: `gold` is (nan|inf), expected a finite number"):
        Guard().add(Point(3, 0.1, 0.0, None, value))
    with pytest.raises(UserError, match="no policy was measured"):
        best([])


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_bound_of_best_of_n_is_the_exact_divergence_where_no_answers_are_equal(n: int) -> None:
    """The best of n uniform numbers has the density n u^(n-1): KL = int n u^(n-1) log(n u^(n-1)) du."""
    u = (np.arange(400_000) + 0.5) / 400_000
    density = n * u ** (n - 1)
    assert kl.best_of_n(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-4)


def test_with_few_outcomes_the_bound_is_above_the_divergence() -> None:
    p = np.array([0.5, 0.3, 0.2])  # best last
    below = np.cumsum(p)
    chosen = below**4 - (below - p) ** 4
    assert float((chosen * np.log(chosen / p)).sum()) < kl.best_of_n(4)


def test_best_of_n_at_equal_kl_is_the_most_that_stay_within_it() -> None:
    for spent in (0.0, 0.1, 0.5, 1.0, 2.0):
        n = best_of_at_kl(spent)
        assert kl.best_of_n(n) <= spent < kl.best_of_n(n + 1)
    assert best_of_at_kl(-0.01) == 1


@pytest.mark.parametrize("gold", [True, False])
def test_the_report_draws_gold_against_proxy(gold: bool, build: Callable[..., Artifact]) -> None:
    metrics = build(Optimised, gold=gold).log("metrics.parquet")
    assert metrics is not None
    (drawing,) = (one for one in Ppo.drawings if isinstance(one, Gains))
    drawn = gains(pl.read_parquet(io.BytesIO(metrics)), drawing)
    assert all(word in drawn for word in ("gold", "proxy", "sqrt(KL)")) if gold else drawn == ""
