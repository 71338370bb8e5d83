"""NorMuon's steps, worked out by singular values and rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.pretrain.normuon import NorMuon, orthogonal, together


def by_singular_values(gradient_RC: np.ndarray) -> np.ndarray:
    """The iteration is a polynomial of the singular values alone."""
    left, values, right = np.linalg.svd(gradient_RC / np.linalg.norm(gradient_RC), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return (left * values) @ right


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_a_batch_is_orthogonalised_as_each_alone(shape: tuple[int, int]) -> None:
    gradients = torch.randn((3, *shape), generator=torch.Generator().manual_seed(1))
    found = orthogonal(gradients, torch.float32)
    for one, gradient in zip(found, gradients, strict=True):
        assert one.numpy() == pytest.approx(by_singular_values(gradient.double().numpy()), abs=1e-3)
    half = orthogonal(gradients, torch.bfloat16)
    assert half.dtype == torch.float32 and (half - found).norm() / found.norm() < 0.05


def test_three_steps_are_those_of_the_paper() -> None:
    """Algorithm 1, with decoupled weight decay: rows of one shape go on together and alone."""
    random, lr, decay = np.random.default_rng(0), 0.01, 0.1
    starts = [random.normal(size=shape) for shape in ((8, 12), (12, 8), (8, 12))]
    weights = [torch.nn.Parameter(torch.tensor(start).float()) for start in starts]
    optimizer = NorMuon(weights, lr, decay, 0.9, second=0.8, dtype=torch.float32)
    momenta, squares = [np.zeros_like(w) for w in starts], [np.zeros((len(w), 1)) for w in starts]
    for _ in range(3):
        for number, weight in enumerate(weights):
            gradient = random.normal(size=weight.shape) * random.uniform(0.1, 10, (len(weight), 1))
            weight.grad = torch.tensor(gradient).float()
            momenta[number] = 0.9 * momenta[number] + 0.1 * gradient
            update = by_singular_values(0.9 * momenta[number] + 0.1 * gradient)
            squares[number] = 0.8 * squares[number] + 0.2 * (update**2).mean(1, keepdims=True)
            update = update / np.sqrt(squares[number])
            update = 0.2 * np.sqrt(update.size) * update / np.linalg.norm(update)
            starts[number] = (1 - lr * decay) * starts[number] - lr * update
        optimizer.step()
    for weight, expected in zip(weights, starts, strict=True):
        assert weight.detach().numpy() == pytest.approx(expected, abs=2e-5)


def test_what_goes_through_at_once_is_of_one_shape_and_bounded() -> None:
    shapes = [(4, 8), (8, 4), (4, 8), (5000, 1800), (5000, 1800)]
    parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    found = list(together(parameters))
    assert [[tuple(p.shape) for p in batch] for batch in found] == [
        [(4, 8), (4, 8)], [(8, 4)], [(5000, 1800)], [(5000, 1800)],
    ]  # fmt: skip
    assert {id(p) for batch in found for p in batch} == set(map(id, parameters))
