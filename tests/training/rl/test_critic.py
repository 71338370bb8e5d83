"""Critics know nothing at first, and read where a token is chosen."""

from __future__ import annotations

import torch

from tests.training import tiny_chat
from training.models.answers import Answer
from training.models.logprobs import forward
from training.models.padding import pad
from training.rl.critic import Critic

ANSWERS = [Answer([5, 6], [7, 8, 1]), Answer([5], [9, 1])]


def test_critics_start_at_zero_and_read_where_the_token_is_chosen() -> None:
    model, batch = tiny_chat.policy(), pad(ANSWERS)
    shared, separate = Critic(32), Critic(32, tiny_chat.policy().model)
    hidden_BRD = forward(model, batch, hidden=True).hidden_BRD
    assert (shared(batch, hidden_BRD) == 0).all() and (separate(batch, None) == 0).all()
    torch.nn.init.normal_(shared.head.weight)
    separate.head.load_state_dict(shared.head.state_dict())
    mask = batch.mask_BR
    assert torch.allclose(shared(batch, hidden_BRD)[mask], separate(batch, None)[mask], atol=1e-5)
