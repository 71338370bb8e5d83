"""The value function of PPO: V(s_t), the score to be expected before token t is chosen.

It starts at exactly 0 everywhere, so that the first advantages are the returns and not noise.

Shapes: B answers, T tokens of the longest prompt and answer, R tokens of the longest answer, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.models.padding import PaddedBatch


class Critic(nn.Module):
    """A linear head, on the policy's last hidden state or on that of a backbone of its own.

    Args:
        width: D.
        backbone: a decoder without its output head; None shares the policy's.
    """

    def __init__(self, width: int, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: PaddedBatch, policy_hidden_BRD: Tensor | None) -> Tensor:
        """values_BR; columns past a row's response hold no meaning."""
        hidden_BRD = policy_hidden_BRD
        if self.backbone is not None:
            hidden_BTD: Any = self.backbone(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
            steps_R = torch.arange(int(batch.response_B.max()), device=batch.ids_BT.device)
            place_BR = (batch.prompt_B[:, None] - 1 + steps_R[None]).clamp(max=hidden_BTD.shape[1] - 1)
            hidden_BRD = hidden_BTD.gather(1, place_BR[..., None].expand(-1, -1, hidden_BTD.shape[-1])).float()
        assert hidden_BRD is not None
        with torch.autocast(hidden_BRD.device.type, enabled=False):  # one column of products: in float32
            return self.head(hidden_BRD)[..., 0]
