"""Preference rows as pairs of token sequences, split by prompt into training and validation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from engine.seeds import generator
from training.models.answers import Answer, encode

if TYPE_CHECKING:
    from engine.stage.job import Job


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, one of them preferred.

    Attributes:
        weight: how much this row counts, at least 0.
        margin: difference of the utilities in log-odds, 0 where unknown.
        agreement: share of the annotators that preferred `chosen`, 1 where unknown.
        source: the recipe's name for where the row is from.
        shown_first: +1 the chosen one was seen first, -1 the rejected one, 0 unknown.
    """

    prompt_id: str
    chosen: Answer
    rejected: Answer
    margin: float = 0.0
    agreement: float = 1.0
    weight: float = 1.0
    source: str = ""
    shown_first: int = 0

    @property
    def answers(self) -> tuple[Answer, Answer]:
        return self.chosen, self.rejected


def load(job: Job, port: str, tokenizer: Any, max_length: int, held_out: float) -> tuple[list[Pair], list[Pair]]:
    """(training, validation) pairs of all Preference artifacts of a port, in order.

    Validation is where `split` says so. Where no row does, this share of the prompts is held out.
    What can't teach anything is left out, counted in the summary and said: two equal answers, an answer or prompt that
    is empty, a pair longer than `max_length` tokens.

    Raises:
        UserError: a number is not finite, or no pair is left.
    """
    rows = [(label, row) for label, a in job.inputs.get(port, {}).items() for row in a.to_table().to_pylist()]
    dropped = {"equal answers": 0, "empty": 0, "too long": 0}
    pairs: list[tuple[Pair, str | None]] = []
    for source, row in rows:
        margin, agreement = row.get("margin") or 0.0, row.get("agreement")
        weight = row.get("weight")
        numbers = {"margin": margin, "agreement": agreement or 0.0, "weight": weight or 0.0}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise UserError(f"preference {row['id']}: `{name}` is {value}, expected a finite number.")
        if not (row["prompt"] and row["chosen"] and row["rejected"]):
            dropped["empty"] += 1
            continue
        if row["chosen"][-1]["content"].strip() == row["rejected"][-1]["content"].strip():
            dropped["equal answers"] += 1
            continue
        chosen = encode(tokenizer, row["prompt"], row["chosen"])
        rejected = encode(tokenizer, row["prompt"], row["rejected"])
        if max(len(chosen), len(rejected)) > max_length:
            dropped["too long"] += 1
            continue
        prompt_id = row["prompt_id"] or str([(m["role"], m["content"]) for m in row["prompt"]])
        pair = Pair(
            prompt_id,
            chosen,
            rejected,
            float(margin),
            1.0 if agreement is None else float(agreement),
            1.0 if weight is None else float(weight),
            source,
        )
        pairs.append((pair, row.get("split")))
    left_out = {reason: count for reason, count in dropped.items() if count}
    job.summary(pairs=len(pairs), left_out=left_out)
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        job.say(f"{sum(left_out.values())} of {len(rows)} preferences say nothing and are left out: {reasons}.")
    if not pairs:
        raise UserError(
            f"none of the {len(rows)} preferences can be trained on ({left_out}). Expected rows with `prompt`, `chosen` "
            f"and `rejected` that differ and are at most {max_length} tokens long (`max_length`)."
        )
    if not any(split == "validation" for _, split in pairs):
        prompts = {pair.prompt_id for pair, _ in pairs}
        out = {name for name in prompts if generator("validation", name).random() < held_out}
        pairs = [(pair, "validation" if pair.prompt_id in out else "train") for pair, _ in pairs]
    training = [pair for pair, split in pairs if split != "validation"]
    if not training:
        raise UserError(f"all {len(pairs)} preferences are in the split `validation`: nothing is left to train on.")
    return training, [pair for pair, split in pairs if split == "validation"]
