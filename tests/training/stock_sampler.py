"""An engine by transformers: a new vLLM takes longer to start than all else in a test of processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from generators.backends.protocol import Completion, Sampling


class StockSampler:
    """What PPO and GRPO ask of an engine."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        given = {name: tensor.detach().clone() for name, tensor in named}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(given[name])

    def generate(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Completion]:
        return [self._complete(prompt, sampling.max_tokens, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _complete(self, prompt: list[int], most: int, seed: int) -> Completion:
        random = torch.Generator().manual_seed(seed)
        ids, logprobs = list[int](), list[float]()
        with torch.no_grad():
            while len(ids) < most and 1 not in ids:
                logprobs_V = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1].log_softmax(-1)
                ids.append(int(torch.multinomial(logprobs_V.exp(), 1, generator=random)))
                logprobs.append(float(logprobs_V[ids[-1]]))
        return Completion(ids, logprobs, "stop" if ids[-1] == 1 else "length")

    def close(self) -> None: ...
