"""The Llama and Qwen3 decoders, as plain PyTorch: the mathematics of transformers' classes, the parameters under the same
names, two to three times their speed in a small model's training loop.

Shapes: B blocks, T tokens, D width, H query heads, K key and value heads, E head width, F inner width of the MLP,
V vocabulary, N = B*T.

What is gained over transformers' forward, each of it proved equal in `tests/training/pretrain/test_llama.py`:
- one product for queries, keys and values, one for the two halves of the MLP;
- fused RMSNorm, and a rotary embedding that keeps nothing but its angles for the backward pass;
- the loss is taken in slices of rows, and the gradient of the logits with it, so that the N x V logits never exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from training.pretrain.size import Family, Size

IGNORE = -100  # a target with this value is not scored
# Elements of a slice of logits: 8 MiB in float32, about a core's share of cache; a GPU needs large products instead.
LOGITS_AT_ONCE, LOGITS_AT_ONCE_GPU = 1 << 21, 1 << 28


def decoder_config(size: Size, family: Family, vocabulary: int, context: int, eos: int, pad: int) -> PretrainedConfig:
    """The transformers config of a decoder of this size.

    Raises:
        UserError: widths don't divide.
    """
    settings: dict[str, Any] = {
        **size.settings(vocabulary),
        "max_position_embeddings": context,
        "rope_parameters": {"rope_type": "default", "rope_theta": size.rope_theta},
        "rms_norm_eps": 1e-6,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    return LlamaConfig(**settings) if family == "llama" else Qwen3Config(**settings)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


class Linear(nn.Linear):
    """A product in `dtype` with weights that are kept in their own: optimizers need float32, matrix units do not."""

    dtype = torch.float32

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, (self,))


def linear(x: Tensor, layers: Sequence[Linear]) -> Tensor:
    """The outputs of several layers of the same input, side by side, as one product."""
    dtype = layers[0].dtype
    weights = [layer.weight.to(dtype) for layer in layers]
    return F.linear(x.to(dtype), weights[0] if len(weights) == 1 else torch.cat(weights))


class Rotate(torch.autograd.Function):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34) with Llama's halves: pair i is (x_i, x_{i+E/2}).

    A rotation's transpose is the rotation back, so the backward pass needs the angles alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    if torch.compiler.is_compiling():  # a compiler fuses this itself, and can't follow writes into halves
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


class Attention(nn.Module):
    """Causal self-attention with grouped keys and values; Qwen3 normalises queries and keys by head."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        width, self.heads, self.groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head = head_width(config)
        self.q_proj = Linear(width, self.heads * self.head, bias=False)
        self.k_proj = Linear(width, self.groups * self.head, bias=False)
        self.v_proj = Linear(width, self.groups * self.head, bias=False)
        self.o_proj = Linear(self.heads * self.head, width, bias=False)
        if config.model_type == "qwen3":
            self.q_norm = RMSNorm(self.head, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        blocks, length, _ = x_BTD.shape
        heads = (
            linear(x_BTD, (self.q_proj, self.k_proj, self.v_proj)).view(blocks, length, -1, self.head).transpose(1, 2)
        )
        # Half precision attention takes a CPU twice as long.
        heads = heads.to(cos_TE.dtype)
        q_BHTE, k_BKTE, v_BKTE = heads.split([self.heads, self.groups, self.groups], dim=1)
        if hasattr(self, "q_norm"):
            q_BHTE, k_BKTE = self.q_norm(q_BHTE), self.k_norm(k_BKTE)
        q_BHTE = cast(Tensor, Rotate.apply(q_BHTE, cos_TE, sin_TE))
        k_BKTE = cast(Tensor, Rotate.apply(k_BKTE, cos_TE, sin_TE))
        y_BHTE = F.scaled_dot_product_attention(
            q_BHTE, k_BKTE, v_BKTE, mask_B1TT, is_causal=mask_B1TT is None, enable_gqa=self.groups != self.heads
        )
        return self.o_proj(y_BHTE.transpose(1, 2).reshape(blocks, length, -1))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(width, inner, bias=False)
        self.up_proj = Linear(width, inner, bias=False)
        self.down_proj = Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = linear(x_BTD, (self.gate_proj, self.up_proj)).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate_BTF) * up_BTF)


class Layer(nn.Module):
    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_TE, sin_TE, mask_B1TT)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """A causal language model. Its state dict is that of transformers' class for the same config."""

    _no_split_modules = ("Layer",)  # as in transformers: what FSDP2 gathers at once

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is that of matrix products; weights, norms, residuals and the loss are float32."""
        super().__init__()
        self.config, self.dtype, self.recompute = config, dtype, False
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        for module in self.modules():
            if isinstance(module, Linear):
                module.dtype = dtype
        self._angles: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None, starts_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); with targets, the summed cross-entropy in nats over those that aren't `IGNORE`.

        Args:
            starts_BT: the number of the document each token belongs to, within its block. Tokens then see their own
                document only.
        """
        x_BTD = self.model.embed_tokens(tokens_BT)
        cos_TE, sin_TE = self.angles(tokens_BT.shape[1], x_BTD.device)
        mask_B1TT = None if starts_BT is None else document_mask(starts_BT)
        for layer in self.model.layers:
            if self.recompute and torch.is_grad_enabled():
                x_BTD = cast(Tensor, checkpoint(layer, x_BTD, cos_TE, sin_TE, mask_B1TT, use_reentrant=False))
            else:
                x_BTD = layer(x_BTD, cos_TE, sin_TE, mask_B1TT)
        x_BTD = self.model.norm(x_BTD)
        if targets_BT is None:
            return self.lm_head(x_BTD)
        x_ND, weight_VD = x_BTD.flatten(0, 1).to(self.dtype), self.lm_head.weight.to(self.dtype)
        return head_loss(x_ND, weight_VD, targets_BT.flatten())

    def recomputed(self) -> None:
        """Make activations again in the backward pass, layer by layer."""
        self.recompute = True

    def angles(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of position * theta^(-2i/E), each (T, E/2), in the type attention is computed in."""
        if (length, device) not in self._angles:
            width = head_width(self.config)
            exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
            rates = 1.0 / self.config.rope_parameters["rope_theta"] ** exponents
            angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), rates)
            dtype = torch.float32 if device.type == "cpu" else self.dtype
            self._angles[length, device] = angles.cos().to(dtype), angles.sin().to(dtype)
        return self._angles[length, device]


def initial_model(config: PretrainedConfig, seed: int, dtype: torch.dtype) -> Llama:
    """Random weights: normal, 0.02 wide for tables and 1/sqrt(fan in) for matrices; those that write into the residual
    stream are smaller by sqrt(2 layers), so that its variance does not grow with depth (Radford et al. 2019, 2.3)."""
    generator = torch.Generator().manual_seed(seed)
    model = Llama(config, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue  # norms start at one
            std = 0.02 if ".layers." not in name else parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * config.num_hidden_layers)
            parameter.normal_(0.0, std, generator=generator)
    return model


def to_transformers(weights: dict[str, torch.Tensor], config: PretrainedConfig) -> Any:
    """These weights in transformers' class, in float32."""
    twin = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    twin.load_state_dict(weights)
    return twin


def head_width(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def document_mask(documents_BT: Tensor) -> Tensor:
    """True where a token may look: at itself and what came before it in its own document. (B, 1, T, T)"""
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same.tril()[:, None]


class HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of x @ weight.T, without the logits ever being whole.

    The gradient of the sum of cross-entropies with respect to the logits is softmax(logits) - onehot(target), known as
    soon as the logits are; each slice turns it at once into its share of both gradients.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        learns = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        total = x_ND.new_zeros((), dtype=torch.float32)
        grad_x_ND = torch.empty_like(x_ND) if learns else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if learns else None
        rows = max(1, (LOGITS_AT_ONCE_GPU if x_ND.is_cuda else LOGITS_AT_ONCE) // weight_VD.shape[0])
        for start in range(0, len(x_ND), rows):
            x, targets = x_ND[start : start + rows], targets_N[start : start + rows]
            scored = targets != IGNORE
            index = torch.where(scored, targets, 0)[:, None]
            logits = F.linear(x, weight_VD).float()
            # log p = logit - logsumexp; softmax is kept, as it is the gradient but for the one-hot
            picked = logits.gather(1, index)[:, 0]
            normaliser = torch.logsumexp(logits, 1)
            total += torch.where(scored, normaliser - picked, 0.0).sum()
            if grad_x_ND is None or grad_weight_VD is None:
                continue
            grad = logits.sub_(normaliser[:, None]).exp_()
            grad.scatter_add_(1, index, grad.new_full(index.shape, -1.0))
            grad = grad.mul_(scored[:, None]).to(x.dtype)
            torch.mm(grad, weight_VD, out=grad_x_ND[start : start + rows])
            if grad.dtype == torch.float32:
                grad_weight_VD.addmm_(grad.T, x)
            else:
                grad_weight_VD += grad.T @ x
        if grad_x_ND is not None and grad_weight_VD is not None:
            ctx.save_for_backward(grad_x_ND, grad_weight_VD)
            ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        return grad_x_ND * grads[0], (grad_weight_VD * grads[0]).to(ctx.weight_dtype), None


def _head_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    return cast(Tensor, HeadLoss.apply(x_ND, weight_VD, targets_N))


# It does by hand what a compiler would not think of, the gradient in the forward pass: compilers leave it alone.
head_loss: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.compiler.disable(_head_loss)  # pyright: ignore
