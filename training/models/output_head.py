"""Log-probabilities and entropies of tokens, from hidden states, without the logits ever being whole.

A table of tokens x ids is the largest thing that training could hold: 2,048 tokens of 152,000 ids are 1.2 GB in float32, and a loss
in plain code keeps three such. Here a slice of tokens is turned into logits, into what is wanted of them, and forgotten; the
backward pass makes them again (Wijmans et al. 2024, arXiv:2411.09009, section 4, by slices of tokens alone).

Shapes: N tokens, D width, V ids, B rows, T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from training.hardware.memory import LOGITS_AT_ONCE, LOGITS_AT_ONCE_GPU

IGNORE = -100  # a target with this value is not scored


@dataclass(frozen=True)
class Scaling:
    """What some models do to the product of hidden states and weights before it is logits.

    Attributes:
        factor: it is multiplied by.
        softcap: c in c tanh(x / c), after that; None without.
    """

    factor: float = 1.0
    softcap: float | None = None

    def logits(self, product: Tensor) -> Tensor:
        """In place."""
        if self.factor != 1.0:
            product.mul_(self.factor)
        return product if self.softcap is None else product.div_(self.softcap).tanh_().mul_(self.softcap)

    def back(self, grad: Tensor, logits: Tensor) -> Tensor:
        """The gradient of the product from that of the logits, in place."""
        if self.softcap is not None:  # d/dx c tanh(x / c) = 1 - tanh(x / c)^2
            grad.mul_(1 - (logits / self.softcap) ** 2)
        return grad if self.factor == 1.0 else grad.mul_(self.factor)


def scaling_of(config: Any) -> Scaling:
    """As a model's config says it: Gemma's softcap; the factors of Cohere, Granite and Falcon-H1."""
    text = config.get_text_config()
    factors = [getattr(text, name, None) for name in ("logit_scale", "lm_head_multiplier")]
    divisor = getattr(text, "logits_scaling", None)
    factor = next((float(value) for value in factors if value is not None), 1.0 / divisor if divisor else 1.0)
    return Scaling(factor, getattr(text, "final_logit_softcapping", None))


class Scored(NamedTuple):
    """What is known of each of N tokens.

    Attributes:
        logprobs_N: log p(target), in nats.
        entropy_N: of the distribution, in nats; None unless asked for.
        first_N: whether no other id is likelier than the target; no gradient.
    """

    logprobs_N: Tensor
    entropy_N: Tensor | None
    first_N: Tensor


class TokenScores(torch.autograd.Function):
    """`Scored` of hidden_ND @ weight_VD.T (+ bias_V), a slice of tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, scaling: Scaling, entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)  # an entropy that is only looked at has no gradient to be added
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        count = len(hidden_ND)
        picked_N, normaliser_N, most_N = (torch.empty(count, device=hidden_ND.device) for _ in range(3))
        entropy_N = torch.empty_like(picked_N) if entropy else None
        with torch.autocast(device, enabled=False):
            weight, bias = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
            for part in _slices(hidden_ND, weight):
                logits = scaling.logits(F.linear(hidden_ND[part].to(dtype), weight, bias).float())
                picked_N[part] = logits.gather(1, targets_N[part, None])[:, 0]
                most_N[part] = most = logits.amax(1)
                shifted = logits.sub_(most[:, None])
                if entropy_N is None:
                    normaliser_N[part] = shifted.exp_().sum(1).log_().add_(most)
                    continue
                weights = shifted.exp()
                sum_ = weights.sum(1)
                normaliser_N[part] = sum_.log() + most
                # H = log Z - E[logit]
                entropy_N[part] = sum_.log() - torch.linalg.vecdot(weights, shifted) / sum_
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normaliser_N, entropy_N)
        ctx.dtype, ctx.scaling = dtype, scaling
        first_N = picked_N >= most_N
        ctx.mark_non_differentiable(first_N)
        return picked_N - normaliser_N, entropy_N, first_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, normaliser_N, entropy_N = ctx.saved_tensors
        by_logprob_N, by_entropy_N = grads[:2]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        weight, bias = weight_VD.to(ctx.dtype), None if bias_V is None else bias_V.to(ctx.dtype)
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        grad_bias_V = torch.zeros(len(weight), device=weight.device) if needs_bias else None
        for part in _slices(hidden_ND, weight):
            x = hidden_ND[part].to(ctx.dtype)
            logits = ctx.scaling.logits(F.linear(x, weight, bias).float())
            kept = logits.clone() if ctx.scaling.softcap is not None else logits
            logprobs = logits.sub_(normaliser_N[part, None])
            if by_entropy_N is None:
                grad = logprobs.exp_()
                if by_logprob_N is not None:
                    grad.mul_(-by_logprob_N[part, None])
            else:  # dH / dlogit = -p (log p + H)
                scale = logprobs.add(entropy_N[part, None]).mul_(by_entropy_N[part, None])
                if by_logprob_N is not None:
                    scale.add_(by_logprob_N[part, None])
                grad = logprobs.exp_().mul_(scale.neg_())
            if by_logprob_N is not None:  # dlog p(target) / dlogit = onehot(target) - p
                grad.scatter_add_(1, targets_N[part, None], by_logprob_N[part, None].to(grad.dtype))
            grad = ctx.scaling.back(grad, kept).to(ctx.dtype)
            if grad_hidden_ND is not None:
                grad_hidden_ND[part] = (grad @ weight).to(hidden_ND.dtype)
            if grad_weight_VD is not None:
                if grad.dtype == torch.float32:
                    grad_weight_VD.addmm_(grad.T, x)
                else:
                    grad_weight_VD += grad.T @ x
            if grad_bias_V is not None:
                grad_bias_V += grad.sum(0, dtype=torch.float32)
        return (
            grad_hidden_ND, None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None else grad_bias_V.to(cast(Tensor, bias_V).dtype), None, None, None,
        )  # fmt: skip


def _slices(hidden_ND: Tensor, weight_VD: Tensor) -> list[slice]:
    most = LOGITS_AT_ONCE_GPU if hidden_ND.is_cuda else LOGITS_AT_ONCE
    rows = max(1, most // len(weight_VD))
    return [slice(start, start + rows) for start in range(0, len(hidden_ND), rows)]


def score(
    hidden_ND: Tensor, head: Any, targets_N: Tensor, scaling: Scaling = Scaling(), entropy: bool = False
) -> Scored:
    """What a linear output layer says of N tokens. Products are in autocast's type where that is on, in the hidden states' else.

    Args:
        targets_N: ids, none of them `IGNORE`.
    """
    return Scored(*_apply(hidden_ND, head.weight, head.bias, targets_N, scaling, entropy))


# Compilers leave it alone: the loop is as long as there are slices.
_apply: Any = torch.compiler.disable(TokenScores.apply)  # pyright: ignore
