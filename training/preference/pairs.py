"""Preference rows as pairs of token sequences, split by prompt into training and validation."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.errors import UserError
from engine.seeds import generator
from engine.store.schema import messages_digest
from generators.text.chat_template import Unusable
from generators.text.learning_template import LearningTemplate, learning
from generators.text.thoughts import Reasoning
from training.loops.distributed import rank
from training.models.answers import EncodedAnswer, encode
from training.models.splits import check_split

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
    chosen: EncodedAnswer
    rejected: EncodedAnswer
    margin: float = 0.0
    agreement: float = 1.0
    weight: float = 1.0
    source: str = ""
    shown_first: int = 0

    @property
    def answers(self) -> tuple[EncodedAnswer, EncodedAnswer]:
        return self.chosen, self.rejected


def load(
    job: Job, port: str, tokenizer: Any, max_length: int, held_out: float, reasoning: Reasoning = "learn"
) -> tuple[list[Pair], list[Pair]]:
    """(training, validation) pairs of all Preference artifacts of a port, in order.

    Validation is where `split` says so. Where no row does, this share of the prompts is held out. Test rows are left out.
    What can't teach anything is a rejected row, counted in the summary and said: two equal answers, an answer or prompt that
    is empty, a pair longer than `max_length` tokens, and what the chat template can't show the model.

    Raises:
        UserError: a number is not finite, or no pair is left.
    """
    rows = [(label, row) for label, a in job.inputs.get(port, {}).items() for row in a.to_table().to_pylist()]
    template = learning(tokenizer)
    rejected: list[dict[str, Any]] = []
    pairs: list[tuple[Pair, str | None]] = []
    for source, row in rows:
        margin, agreement = row.get("margin") or 0.0, row.get("agreement")
        weight = row.get("weight")
        numbers = {"margin": margin, "agreement": agreement or 0.0, "weight": weight or 0.0}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise UserError(f"preference {row['id']}: `{name}` is {value}, expected a finite number.")
        try:
            check_split(row, "validation")
            chosen, other = encode_pair(template, row, max_length, reasoning)
        except Unusable as fault:
            rejected.append({**row, "reason": fault.reason, "detail": fault.detail, "failed": False})
            continue
        prompt_id = row["prompt_id"] or str([(m["role"], m["content"]) for m in row["prompt"]])
        pair = Pair(
            prompt_id,
            chosen,
            other,
            float(margin),
            1.0 if agreement is None else float(agreement),
            1.0 if weight is None else float(weight),
            source,
        )
        pairs.append((pair, row.get("split")))
    left_out = set_aside(job, port, rejected)
    job.summary(pairs=len(pairs), left_out=left_out)
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items())
    first = f"; the first: {rejected[0]['detail']}" if rejected else ""
    if left_out:
        job.say(f"{len(rejected)} of {len(rows)} preferences are left out: {reasons}{first}.")
    if not pairs:
        raise UserError(
            f"none of the {len(rows)} preferences can be trained on ({reasons}{first}). Expected rows with `prompt`, `chosen` "
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


def encode_pair(
    template: LearningTemplate, row: dict[str, Any], max_length: int, reasoning: Reasoning
) -> tuple[EncodedAnswer, EncodedAnswer]:
    """The chosen and the rejected answer of a row, with one prompt: what both begin with.

    Raises:
        Unusable: nothing can be learnt from them.
    """
    if not (row["prompt"] and row["chosen"] and row["rejected"]):
        raise Unusable("empty", "prompt, chosen or rejected has no messages")
    if _answer(row["chosen"]) == _answer(row["rejected"]):
        raise Unusable("equal_answers", "chosen says what rejected says")
    chosen, rejected = (
        encode(template, row["prompt"], row[side], row.get("tools"), reasoning) for side in ("chosen", "rejected")
    )
    if (longest := max(len(chosen), len(rejected))) > max_length:
        raise Unusable("too_long", f"{longest} tokens with the prompt, of at most {max_length} (`max_length`)")
    # Some templates end a prompt otherwise before an answer with a thought than before one without.
    shared = [a for a, _ in takewhile(lambda two: two[0] == two[1], zip(chosen.prompt, rejected.prompt, strict=False))]
    return chosen.after(len(shared)), rejected.after(len(shared))


def set_aside(job: Job, port: str, rejected: list[dict[str, Any]]) -> dict[str, int]:
    """Keep the rows of a port that nothing is learnt from, with their reasons; how many there are of each."""
    if rejected and rank() == 0:
        job.reject(port, pa.Table.from_pylist(rejected))
    return dict(sorted(Counter(row["reason"] for row in rejected).items()))


def _answer(messages: list[dict[str, Any]]) -> str:
    return messages_digest([{**m, "content": (m["content"] or "").strip()} for m in messages])
