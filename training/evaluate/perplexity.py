"""How well a model foresees text it was not trained on: bits a byte, and perplexity.

Bits a byte compare models of any tokenizer (Gao et al. 2020, "The Pile", section 3.1); perplexity, e to the nats a token,
only models of the same one. A text longer than the context is read in windows that overlap by half, and each token is
scored once, with at least half a context before it (Press et al. 2021, "Shortformer", on sliding windows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.models.answers import Answer
from training.models.logprobs import token_logprobs


@dataclass(frozen=True)
class Surprise:
    """What a text cost a model.

    Attributes:
        nats: negative log-likelihood of the whole text.
        tokens, size: how many tokens were scored, and the text's bytes of UTF-8.
    """

    nats: float
    tokens: int
    size: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / (math.log(2) * max(self.size, 1))


def windows(ids: Sequence[int], start: int | None, context: int) -> list[Answer]:
    """A text as (what is seen, what is scored), each at most a context long. Without a start token, the first token is
    only seen."""
    seen = [start] if start is not None else list(ids[:1])
    rest = list(ids) if start is not None else list(ids[1:])
    whole = [*seen, *rest]
    parts: list[Answer] = []
    at = len(seen)
    while at < len(whole):
        before = whole[max(0, at - (context // 2 if at > len(seen) else at)) : at]
        until = min(len(whole), at + context - len(before))
        parts.append(Answer(before, whole[at:until]))
        at = until
    return parts


def surprise(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[Surprise]:
    """What each text costs a causal model. It starts after the token that ends a document, where there is one."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    context = int(getattr(model.config, "max_position_embeddings", None) or 2048)
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    parts = [windows(ids, start, context) for ids in encoded]
    logprobs = iter(token_logprobs(model, [part for text in parts for part in text]))
    costs: list[Surprise] = []
    for text, own in zip(texts, parts, strict=True):
        nats = [-float(next(logprobs).double().sum()) for _ in own]
        costs.append(Surprise(sum(nats), sum(len(part.response) for part in own), len(text.encode())))
    return costs
