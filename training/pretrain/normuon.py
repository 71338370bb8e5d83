"""NorMuon (Li et al. 2025, arXiv:2510.05491, algorithm 1): Muon's orthogonal update, whose rows are made as long as each other.

Newton and Schulz's iteration leaves some neurons with several times the step of others. Each row is divided by the root of a
running mean of its square, and the whole is scaled to the root mean square of AdamW's steps, so that one learning rate serves both.

Matrices of one shape go through the iteration as one batched product: in a small model the calls cost more than the products.

Shapes: M matrices of R rows and C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from training.loops.distributed import is_split, own_part, whole

JORDAN = (3.4445, -4.775, 2.0315)  # the quintic's coefficients, Jordan et al. 2024
STEPS = 5
RMS = 0.2  # of an update at a learning rate of 1, as AdamW's (Liu et al. 2025, arXiv:2502.16982, eq. 4)
AT_ONCE = 1 << 24  # elements of matrices that are orthogonalised together


class NorMuon(torch.optim.Optimizer):
    """For the matrices of layers. Split ones are put together one at a time, and each process keeps its part.

    Args:
        momentum: of the gradient, with Nesterov's step.
        second: decay of the rows' mean square.
        dtype: of the iteration's products.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float,
        second: float = 0.95, dtype: torch.dtype = torch.bfloat16,
    ) -> None:  # fmt: skip
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "second": second})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for matrices in together([p for p in group["params"] if p.grad is not None]):
                updates_MRC = torch.stack([whole(self._momentum(p, group["momentum"])) for p in matrices])
                updates_MRC = self._even(orthogonal(updates_MRC, self.dtype), matrices, group["second"])
                for parameter, update_RC in zip(matrices, updates_MRC, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(own_part(update_RC, parameter).to(parameter.dtype), alpha=-group["lr"])

    def _momentum(self, parameter: Tensor, decay: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - decay)
        return gradient.lerp(state["momentum_buffer"], decay)

    def _even(self, updates_MRC: Tensor, matrices: list[torch.nn.Parameter], decay: float) -> Tensor:
        """Updates with rows of equal length over time."""
        squares_MR1 = updates_MRC.square().mean(2, keepdim=True)
        zeros_R1 = torch.zeros_like(squares_MR1[0])
        kept_MR1 = torch.stack([self.state[p].get("row_square", zeros_R1) for p in matrices])  # whole in each process
        kept_MR1.lerp_(squares_MR1, 1 - decay)
        for parameter, kept_R1 in zip(matrices, kept_MR1, strict=True):
            self.state[parameter]["row_square"] = kept_R1.clone()
        updates_MRC = updates_MRC * kept_MR1.clamp(min=1e-20).rsqrt()
        return updates_MRC * (RMS / updates_MRC.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-10))


def together(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Parameters of one shape, as many as go through the iteration at once."""
    for _, alike in groupby(sorted(parameters, key=lambda p: p.shape), key=lambda p: p.shape):
        same = list(alike)
        count = 1 if is_split(same[0]) else max(1, AT_ONCE // same[0].numel())
        yield from (same[at : at + count] for at in range(0, len(same), count))


def orthogonal(gradients_MRC: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrices, or nearly so: singular values between about .7 and 1.2. In float32."""
    tall = gradients_MRC.shape[1] > gradients_MRC.shape[2]
    x = gradients_MRC.mT if tall else gradients_MRC
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    a, b, c = JORDAN
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()
