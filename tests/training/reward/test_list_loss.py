"""Plackett-Luce against its product written out, Bradley-Terry, and the utilities that made simulated rankings."""

import math

import numpy as np
import pytest
import torch

from training.reward.list_loss import nll


def of(scores: list[float], ranks: list[int]) -> float:
    return nll(torch.tensor([scores], dtype=torch.float64)[..., None], torch.tensor([ranks])).item()


def test_two_items_are_bradley_terry() -> None:
    for a, b in ((0.3, -1.2), (2.0, 2.0), (-5.0, 4.0)):
        assert of([a, b], [1, 2]) == pytest.approx(math.log1p(math.exp(b - a)), abs=1e-12)
        assert of([a, b], [2, 1]) == pytest.approx(math.log1p(math.exp(a - b)), abs=1e-12)


def test_a_list_is_the_product_of_its_choices() -> None:
    s = [0.5, -0.3, 1.2, 0.1]
    e = [math.exp(x) for x in s]
    # order: item 2, item 0, item 3, item 1
    expected = -(s[2] - math.log(sum(e))) - (s[0] - math.log(e[0] + e[1] + e[3])) - (s[3] - math.log(e[1] + e[3]))
    assert of(s, [2, 4, 1, 3]) == pytest.approx(expected / 3, abs=1e-12)


def test_unranked_items_and_padding_change_nothing() -> None:
    assert of([0.5, 9.0, -0.3], [1, 0, 2]) == of([0.5, -0.3], [1, 2])
    scores = torch.zeros(1, 3, 1, requires_grad=True)
    nll(scores, torch.tensor([[1, 0, 0]])).sum().backward()
    assert scores.grad is not None and torch.isfinite(scores.grad).all() and (scores.grad == 0).all()


def test_a_tie_pulls_its_items_together() -> None:
    assert of([1.0, 1.0], [1, 1]) == pytest.approx(math.log(2)) and of([2.0, 0.0], [1, 1]) > math.log(2)


def test_it_recovers_the_utilities_behind_simulated_lists() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=10)
    ranks = np.zeros((5000, 10), dtype=np.int64)
    for row in ranks:
        shown = random.choice(10, size=4, replace=False)
        order = shown[np.argsort(-(truth[shown] + random.gumbel(size=4)))]  # Gumbel noise is Plackett-Luce
        row[order] = np.arange(1, 5)
    scores = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nll(scores.expand(5000, 10)[..., None], torch.tensor(ranks)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found = scores.detach().numpy()
    assert np.corrcoef(found, truth)[0, 1] > 0.998
    assert np.polyfit(truth, found, 1)[0] == pytest.approx(1, abs=0.05)  # on the scale of the truth, not just in order
