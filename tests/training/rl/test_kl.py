"""KL estimators against the exact divergence of two small distributions."""

import numpy as np
import pytest
import torch

from training.rl.kl import Controller, estimate


def two_distributions() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    logits = torch.tensor(random.normal(size=(2, 12)))
    return torch.log_softmax(logits[0], 0), torch.log_softmax(logits[0] + 0.7 * logits[1], 0)


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    """Expectations taken exactly, over all 12 outcomes."""
    p, q = two_distributions()
    exact = (p.exp() * (p - q)).sum().item()
    expectation = {k: (p.exp() * estimate(p, q, k)).sum().item() for k in ("k1", "k2", "k3")}
    assert expectation["k1"] == pytest.approx(exact, abs=1e-14)
    assert expectation["k3"] == pytest.approx(exact, abs=1e-14)
    assert abs(expectation["k2"] - exact) > 0.01 * exact


def test_k3_has_less_variance_than_k1_and_is_never_negative() -> None:
    p, q = two_distributions()

    def variance(k: str) -> float:
        values = estimate(p, q, k)  # type: ignore[arg-type]
        mean = (p.exp() * values).sum()
        return (p.exp() * (values - mean) ** 2).sum().item()

    assert variance("k3") < variance("k1")
    assert (estimate(p, q, "k3") >= 0).all() and (estimate(p, q, "k1") < 0).any()


def test_k3_of_equal_distributions_is_exactly_zero_in_float32() -> None:
    p = two_distributions()[0].float()
    assert (estimate(p, p.clone(), "k3") == 0).all()
    assert estimate(p, p + 1e-4, "k3").min() >= 0


def test_the_adaptive_controller_moves_by_the_clipped_rule() -> None:
    controller = Controller(beta=0.2, target=6.0, gain=0.1 / 256)
    controller.update(kl=6.6, rollouts=256)
    assert controller.beta == pytest.approx(0.2 * (1 + 0.1 * 0.1))
    controller = Controller(beta=0.2, target=6.0)
    controller.update(kl=60.0, rollouts=256)
    assert controller.beta == pytest.approx(0.2 * (1 + 0.1 * 0.2))
    controller.update(kl=0.0, rollouts=256)
    assert controller.beta == pytest.approx(0.2 * (1 + 0.02) * (1 - 0.02))


def test_a_fixed_controller_stays() -> None:
    controller = Controller(beta=0.05)
    controller.update(kl=100.0, rollouts=512)
    assert controller.beta == 0.05
