"""TRL's trainers without a reference (CPO, SimPO, ORPO), by log-probabilities of tokens instead of whole logits.

Shapes: B pairs, T tokens of the longest answer with its prompt; chosen answers first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from training.models.output_head import IGNORE


def without_logits(trainer: type[Any]) -> type[Any]:
    """One of these trainers, whose forward pass ends at the log-probabilities of the tokens that are scored."""

    class WithoutLogits(trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            model = self.accelerator.unwrap_model(self.model)
            inner = model.get_base_model() if hasattr(model, "peft_config") else model
            add_fused_lm_head(inner, outputs=("log_probs", "mean_logits"))

        def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, ...]:
            """(log-probabilities of chosen answers, of rejected ones, mean logits of both, the chosen ones' loss): the sum over
            an answer's tokens, or their mean where the loss is of that."""
            odds = not hasattr(self, "cpo_alpha")
            both = self.concatenated_inputs(
                batch,
                is_encoder_decoder=False,
                padding_value=self.padding_value if odds else self.pad_token_id,
                device=self.accelerator.device,
            )
            answers, count = both["concatenated_labels"], len(batch["chosen_labels"])
            ids, mask = both["concatenated_input_ids"], both["concatenated_attention_mask"]
            labels = answers.clone()
            if odds:  # ORPO learns the chosen conversation whole
                labels[:count] = torch.where(mask[:count] == 1, ids[:count], IGNORE)
            found = model(ids, attention_mask=mask, labels=labels, fused_lm_head=True)
            answered, learnt = answers[:, 1:] != IGNORE, labels[:, 1:] != IGNORE
            logprobs_B = torch.where(answered, found.log_probs, 0.0).sum(1)
            if odds or self.loss_type in ("ipo", "simpo"):
                logprobs_B = logprobs_B / answered.sum(1)
            loss = torch.zeros((), device=ids.device)
            if odds or self.cpo_alpha:
                loss = -found.log_probs[:count].sum() / learnt[:count].sum()
            means = (found.mean_logits[rows][answered[rows]] for rows in (slice(count), slice(count, None)))
            return logprobs_B[:count], logprobs_B[count:], *means, loss

    return WithoutLogits
