"""Preferences that can be learnt, and what DPO's formula gives for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from generators.text.learning_template import learning
from tests.training import tiny_chat
from tests.training.tiny_chat import assistant, user
from training.models.answers import EncodedAnswer, encode
from training.models.logprobs import token_logprobs


def preferences(pairs: int = 240, flip: Callable[[int], bool] = lambda i: False) -> list[dict[str, Any]]:
    """One pair a prompt: answers with "good" in them are better than those with "bad"; longer or shorter at random."""
    random = np.random.default_rng(0)
    colours = ["red", "blue", "green", "cat", "dog", "one", "two", "three"]
    rows: list[dict[str, Any]] = []
    for i in range(pairs):
        words = [str(w) for w in random.choice(colours, size=6)]
        cut = random.integers(0, 4, size=2)
        chosen = assistant(" ".join(["good", *words[: cut[0]]]))
        rejected = assistant(" ".join(["bad", *words[: cut[1]]]))
        if flip(i):
            chosen, rejected = rejected, chosen
        rows.append(
            {
                "id": f"row{i}",
                "prompt_id": f"prompt{i}",
                "prompt": user(" ".join(["what", "colour", *words[4:], "?"])),
                "chosen": chosen,
                "rejected": rejected,
                "margin": 1.0,
                "split": "validation" if i % 4 == 0 else "train",
            }
        )
    return rows


def answers_of(rows: list[dict[str, Any]]) -> list[EncodedAnswer]:
    template = learning(tiny_chat.tokenizer())
    return [encode(template, row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]


def by_hand(folder: Path, reference: Path, rows: list[dict[str, Any]], beta: float) -> float:
    """The mean loss of the rows under a policy and its reference, from log-probabilities that transformers gives."""
    from transformers import AutoModelForCausalLM

    totals: list[list[float]] = []
    for place in (folder, reference):
        model = AutoModelForCausalLM.from_pretrained(place).eval()
        totals.append([float(t.sum()) for t in token_logprobs(model, answers_of(rows))])
    ratios = [a - b for a, b in zip(*totals, strict=True)]
    gaps = [c - r for c, r in zip(ratios[0::2], ratios[1::2], strict=True)]
    return sum(math.log1p(math.exp(-beta * gap)) for gap in gaps) / len(gaps)
