"""transformers as a token engine: the slow fallback, for machines and models that vLLM does not do.

The same contract as `VllmEngine`: a seed a request, log-probabilities of the distribution a token was drawn from.
Tensor names carry their shape: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.errors import StageFailed
from engine.plan.model_folder import loading
from generators.backends.protocol import Completion, Sampling
from generators.backends.vllm.model_files import end_ids, model_config


class TransformersEngine:
    """One model in this process.

    Args:
        dtype: "auto" is the checkpoint's own.
        batch: prompts that are run together.
        adapter: a folder with a LoRA adapter that all requests go through, unmerged.

    Raises:
        UserError: there is no such model, or it can't be loaded.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "float32",
        max_model_len: int | None = None,
        batch: int = 64,
        adapter: str | None = None,
    ) -> None:
        config = model_config(model)
        self.ends = end_ids(model)
        self.batch = batch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        limit = int(getattr(config, "max_position_embeddings", 0) or 2**20)
        self.max_model_len = min(limit, max_model_len or limit)
        with loading(model):
            weights: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False)
        if adapter:
            from peft import PeftModel  # seconds, for adapters alone

            with loading(adapter, "adapter"):
                weights = PeftModel.from_pretrained(weights, adapter)
        self._model: Any = weights.to(self.device).eval()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One completion a prompt, each from its own seed.

        Raises:
            StageFailed: guided decoding was asked for, which this engine does not do.
        """
        if sampling.json_schema:
            raise StageFailed("the transformers engine has no guided decoding; use vLLM or a server for `json_schema`.")
        made = list[Completion]()
        for start in range(0, len(prompts), self.batch):
            end = start + self.batch
            made += self._batch([list(prompt) for prompt in prompts[start:end]], sampling, seeds[start:end])
        return made

    def _batch(self, prompts: list[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        longest, ends = max(map(len, prompts)), {*self.ends, *sampling.stop_token_ids}
        ids_BT = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=self.device)
        mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        tokens: list[list[int]] = [[] for _ in prompts]
        scores: list[list[float]] = [[] for _ in prompts]
        reason: list[str | None] = [None] * len(prompts)
        cache = None
        with torch.no_grad():
            while None in reason:
                positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
                out = self._model(
                    input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=cache,
                    use_cache=True,
                )  # fmt: skip
                cache = out.past_key_values
                logprobs_BV = processed(out.logits[:, -1].float().cpu(), sampling)
                if ends and any(len(made) < sampling.min_tokens for made in tokens):
                    short = [i for i, made in enumerate(tokens) if len(made) < sampling.min_tokens]
                    logprobs_BV[torch.tensor(short)[:, None], torch.tensor(sorted(ends))] = float("-inf")
                    logprobs_BV = logprobs_BV.log_softmax(-1)
                chosen = list[int]()
                for row, (generator, done) in enumerate(zip(draws, reason, strict=True)):
                    if done:
                        chosen.append(0)
                        continue
                    if sampling.temperature == 0:
                        token = int(logprobs_BV[row].argmax())
                    else:
                        token = int(torch.multinomial(logprobs_BV[row].exp(), 1, generator=generator))
                    chosen.append(token)
                    tokens[row].append(token)
                    scores[row].append(float(logprobs_BV[row, token]))
                    if token in ends:
                        reason[row] = "stop"
                    elif len(tokens[row]) >= min(sampling.max_tokens, self.max_model_len - len(prompts[row])):
                        reason[row] = "length"
                ids_BT = torch.tensor(chosen, device=self.device)[:, None]
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(prompts), 1)], dim=1)
        return [
            Completion(made, score if sampling.logprobs else None, str(why))
            for made, score, why in zip(tokens, scores, reason, strict=True)
        ]

    def close(self) -> None:
        """Give the memory back."""
        self._model = None


def processed(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities after temperature, top-k and top-p; what is cut off gets -inf."""
    if sampling.temperature > 0:
        logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        kth_B1 = logits_BV.topk(min(sampling.top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, float("-inf"))
    if sampling.top_p < 1:
        ordered_BV, order_BV = logits_BV.softmax(-1).sort(descending=True)
        beyond_BV = ordered_BV.cumsum(-1) - ordered_BV >= sampling.top_p  # the token that crosses the line stays
        logits_BV = logits_BV.masked_fill(beyond_BV.scatter(-1, order_BV, beyond_BV), float("-inf"))
    return logits_BV.log_softmax(-1)
