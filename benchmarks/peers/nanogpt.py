"""nanoGPT's model and training step (Karpathy, github.com/karpathy/nanoGPT, model.py and train.py), written down again as
the peer that `benchmarks.training` measures against: same layers, same initial weights' law, same optimizer groups, same
schedule, same way to draw a batch. Dropout and biases are off, as in its CPU recipe for Shakespeare by characters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """`config/train_shakespeare_char.py` with the overrides that nanoGPT's README gives for a CPU."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    block: int = 64
    batch: int = 12
    steps: int = 2000
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup: int = 100
    beta2: float = 0.99
    weight_decay: float = 0.1
    clip: float = 1.0


class Block(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.heads = recipe.heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.mlp_c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        blocks, length, width = x_BTD.shape
        q, k, v = (
            t.view(blocks, length, self.heads, -1).transpose(1, 2)
            for t in self.c_attn(self.ln_1(x_BTD)).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(blocks, length, width)
        x_BTD = x_BTD + self.c_proj(y)
        return x_BTD + self.mlp_c_proj(F.gelu(self.c_fc(self.ln_2(x_BTD))))


class GPT(nn.Module):
    def __init__(self, recipe: Recipe, vocabulary: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, recipe.width)
        self.wpe = nn.Embedding(recipe.block, recipe.width)
        self.h = nn.ModuleList(Block(recipe) for _ in range(recipe.layers))
        self.ln_f = nn.LayerNorm(recipe.width, bias=False)
        self.lm_head = nn.Linear(recipe.width, vocabulary, bias=False)
        self.wte.weight = self.lm_head.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 / math.sqrt(2 * recipe.layers) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(parameter, 0.0, std)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        x_BTD = self.wte(tokens_BT) + self.wpe.weight[: tokens_BT.shape[1]]
        for block in self.h:
            x_BTD = block(x_BTD)
        return F.cross_entropy(self.lm_head(self.ln_f(x_BTD)).flatten(0, 1), targets_BT.flatten())


class Trainer:
    """One step of train.py at a time."""

    def __init__(self, recipe: Recipe, data: Tensor, vocabulary: int) -> None:
        self.recipe, self.data = recipe, data
        self.model = GPT(recipe, vocabulary)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2))

    def learning_rate(self, step: int) -> float:
        recipe = self.recipe
        if step < recipe.warmup:
            return recipe.lr * (step + 1) / (recipe.warmup + 1)
        done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
        return recipe.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (recipe.lr - recipe.min_lr)

    def batch(self) -> tuple[Tensor, Tensor]:
        block = self.recipe.block
        starts = torch.randint(len(self.data) - block, (self.recipe.batch,))
        x = torch.stack([self.data[i : i + block] for i in starts.tolist()])
        return x, torch.stack([self.data[i + 1 : i + 1 + block] for i in starts.tolist()])

    def step(self, number: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        self.model(*self.batch()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
