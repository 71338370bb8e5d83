"""Values that are fitted, against ridge regressions that numpy solves one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training import tiny_chat
from training.models.answers import EncodedAnswer
from training.models.logprobs import forward
from training.models.padding import pad
from training.rl import fitted_values as fitted
from training.rl.fitted_values import FOLDS, SHRINKAGES, features, fitted_values


def tokens(answers: int, features: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(features, targets, answers) of answers of one to six tokens, far from 0 and of several scales."""
    random = np.random.default_rng(seed)
    answer_N = np.repeat(np.arange(answers), random.integers(1, 7, answers))
    x_NF = random.normal(3.0, 1.0, (len(answer_N), features)) * random.uniform(0.01, 10, features)
    y_N = 1.0 + 0.3 * x_NF[:, 0] + random.normal(0, 0.5, len(answer_N))
    return torch.tensor(x_NF).float(), torch.tensor(y_N).float(), torch.tensor(answer_N)


def by_numpy(x_NF: np.ndarray, y_N: np.ndarray, known_N: np.ndarray, shrinkage: float) -> np.ndarray:
    """Least squares over the known rows, one row more a feature for what its standardised weight costs."""
    mean_F, deviation_F, mean = x_NF[known_N].mean(0), x_NF[known_N].std(0), y_N[known_N].mean()
    if shrinkage == float("inf"):
        return np.full(len(y_N), mean)
    z_NF = (x_NF - mean_F) / deviation_F
    penalty_FF = np.sqrt(shrinkage * known_N.sum()) * np.eye(x_NF.shape[1])
    weights_F = np.linalg.lstsq(
        np.concatenate([z_NF[known_N], penalty_FF]), np.concatenate([y_N[known_N] - mean, np.zeros(x_NF.shape[1])])
    )[0]
    return mean + z_NF @ weights_F


@pytest.mark.parametrize(("answers", "width"), [(40, 5), (9, 30), (2, 3)])
def test_each_fold_is_foretold_by_the_others_with_the_shrinkage_that_foretells_best(answers: int, width: int) -> None:
    x_NF, y_N, answer_N = tokens(answers, width, seed=answers)
    x, y, fold_N = x_NF.double().numpy(), y_N.double().numpy(), answer_N.numpy() % FOLDS
    tried = {
        shrinkage: np.concatenate(
            [by_numpy(x, y, fold_N != fold, shrinkage)[fold_N == fold] for fold in range(FOLDS) if (fold_N == fold).any()]
        )
        for shrinkage in SHRINKAGES
    }  # fmt: skip
    order = np.concatenate([np.flatnonzero(fold_N == fold) for fold in range(FOLDS)])
    best = min(tried.values(), key=lambda values: float(((values - y[order]) ** 2).sum()))
    assert fitted_values(x_NF, y_N, answer_N)[order].numpy() == pytest.approx(best, abs=1e-4)


def test_no_value_has_seen_what_its_own_answer_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted, "SHRINKAGES", (0.1,))  # which is chosen by all of them
    x_NF, y_N, answer_N = tokens(30, 4, seed=1)
    before = fitted_values(x_NF, y_N, answer_N)
    after = fitted_values(x_NF, torch.where(answer_N == 7, y_N + 100, y_N), answer_N)
    unmoved = before == after
    assert unmoved[answer_N == 7].all() and unmoved[answer_N % FOLDS == 7 % FOLDS].all()
    assert not unmoved[answer_N % FOLDS != 7 % FOLDS].any()


def test_states_that_say_nothing_leave_the_mean_of_the_others() -> None:
    _, y_N, answer_N = tokens(40, 2, seed=2)
    same = fitted_values(torch.full((len(y_N), 6), 12.345), y_N, answer_N)
    for fold in range(FOLDS):
        mean = float(y_N[answer_N % FOLDS != fold].mean())
        assert same[answer_N % FOLDS == fold].numpy() == pytest.approx(mean, abs=1e-6)


def test_a_wide_state_is_thinned() -> None:
    assert torch.equal(features(torch.arange(1024)), torch.arange(1024))
    assert torch.equal(features(torch.arange(2049)), torch.arange(0, 2049, 3))


def test_what_a_word_is_worth_is_known_before_the_answer_ends() -> None:
    """An answer that began with word 7 brings 1, another 0. A model with random weights shows in its states which it was."""
    random = np.random.default_rng(0)
    answers = [
        EncodedAnswer([5, 6], [int(random.choice([7, 8])), *random.integers(9, 28, 3).tolist()]) for _ in range(64)
    ]
    batch = pad(answers)
    with torch.no_grad():
        hidden_BRD = forward(tiny_chat.policy(), batch, hidden=True).hidden_BRD
    assert hidden_BRD is not None
    worth_B = torch.tensor([float(answer.response[0] == 7) for answer in answers])
    values_BR = fitted_values(
        hidden_BRD.flatten(0, 1), worth_B.repeat_interleave(4), torch.arange(64).repeat_interleave(4)
    ).view(64, 4)  # fmt: skip
    assert (values_BR[:, 0] - worth_B.mean()).abs().max() < 0.2  # nothing is said yet
    assert (values_BR[:, 1] - worth_B).abs().mean() < 0.2
