"""The rows of `benchmarks.gpu`: what each runs, and the lines of proof that are drawn from them.

The standard library alone: where nothing else is installed, this can still be told.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Numbers = Mapping[str, Mapping[str, Any]]  # what each row told
SFT = ("transformers", "peft", "datasets", "trl.trainer.sft_trainer")
GRPO = ("transformers", "peft", "datasets", "trl.trainer.grpo_trainer", "vllm")


class Skipped(Exception):
    """A row can't be had here; the words say what it needs."""


@dataclass(frozen=True)
class Row:
    """A process.

    Attributes:
        work: `module:function` of this folder, called with a `Scene` and `given`.
        minutes: after which it is cut.
        ahead: modules that it imports while the row before it is under way.
    """

    work: str
    given: Mapping[str, Any]
    minutes: float
    ahead: tuple[str, ...] = ("transformers",)


@dataclass(frozen=True)
class Line:
    """What is to be shown, of the numbers of some rows.

    Attributes:
        value: None, or a KeyError, where they did not tell enough.
    """

    words: str
    rows: tuple[str, ...]
    value: Callable[[Numbers], float | None]
    bar: float
    reaches: Callable[[float, float], bool] = field(default=operator.ge)


# The most valuable first: what there is no time for is the end.
ROWS = {
    "mfu_350M": Row("utilisation:utilisation", {"size": "350M"}, 2.5),
    "mfu_1.3B": Row("utilisation:utilisation", {"size": "1.3B"}, 2.5),
    "sft_lora": Row("fine_tuning:ours", {"method": "lora"}, 1.5, SFT),
    "sft_lora_trl": Row("fine_tuning:trl", {"method": "lora"}, 1.5, SFT),
    "sft_qlora": Row("fine_tuning:ours", {"method": "qlora"}, 1.5, (*SFT, "bitsandbytes")),
    "sft_qlora_trl": Row("fine_tuning:trl", {"method": "qlora"}, 1.5, (*SFT, "bitsandbytes")),
    "candidates": Row("sampling_rate:ours", {}, 2.5, ("transformers", "polars")),
    "candidates_bare": Row("sampling_rate:bare", {}, 2.5, ("transformers", "vllm")),
    "grpo": Row("policy_steps:ours", {}, 2.5, GRPO),
    "grpo_trl": Row("policy_steps:trl", {}, 2.5, GRPO),
    "mfu_7B": Row("utilisation:utilisation", {"size": "7B"}, 3.5),
    "sft_full": Row("fine_tuning:ours", {"method": "full"}, 1.5, SFT),
}


def of_peak(size: str) -> Line:
    words = f"pretrain at {size} parameters, bfloat16: FLOPs utilisation, of the measured peak: >= .58"
    return Line(words, (f"mfu_{size}",), lambda numbers: numbers[f"mfu_{size}"]["mfu"], 0.58)


def over(row: str, peer: str, number: str, words: str, bar: float, reaches: Callable[[float, float], bool]) -> Line:
    """A number of one row over the same number of another."""
    return Line(words, (row, peer), lambda told: told[row][number] / told[peer][number], bar, reaches)


def beside_trl(method: str) -> dict[str, Line]:
    row, name = f"sft_{method}", {"lora": "LoRA", "qlora": "QLoRA"}[method]
    of = f"sft of 1.3B with {name} over TRL's SFTTrainer"
    return {
        f"{row}_speed": over(row, f"{row}_trl", "tokens_per_s", f"{of}: tokens/s, >= 1", 1, operator.ge),
        f"{row}_memory": over(row, f"{row}_trl", "memory_gib", f"{of}: most memory, <= 1", 1, operator.le),
    }


LINES = {
    **{f"mfu_{size}": of_peak(size) for size in ("350M", "1.3B", "7B")},
    **beside_trl("lora"),
    **beside_trl("qlora"),
    "candidates_over_bare_vllm": over(
        "candidates", "candidates_bare", "tokens_per_s", "candidates over bare vLLM: tokens/s, >= .97", 0.97, operator.ge
    ),
    "grpo_step_over_trl": over(
        "grpo", "grpo_trl", "step_s", "grpo over TRL's GRPOTrainer, both with vLLM: seconds a step, <= 1", 1, operator.le
    ),
}  # fmt: skip


def claims(told: Numbers, problems: Mapping[str, str], names: list[str]) -> list[dict[str, Any]]:
    """The lines that concern these rows, each with its value, whether it holds, and why there is none.

    Args:
        told: the numbers of each row that told any.
        problems: of the rows that did not come to their end, in words.
    """
    made: list[dict[str, Any]] = []
    for id, line in LINES.items():
        if not set(line.rows) & set(names):
            continue
        try:
            value = line.value(told)
        except (KeyError, ZeroDivisionError):
            value = None
        one: dict[str, Any] = {"id": id, "value": None if value is None else round(value, 4), "bar": line.words}
        one["holds"] = value is not None and line.reaches(value, line.bar)
        words = {row: "not asked for" for row in line.rows if row not in names} | {
            row: problems[row] for row in line.rows if row in problems
        }
        if value is None or words:  # a row that was cut told what it had until then
            one["why"] = "; ".join(f"{row}: {said}" for row, said in words.items()) or "no such number was told"
        made.append(one)
    return made
