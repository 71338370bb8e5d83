"""`reward_bench`: how often reward models pick the right answer, in the formats of RewardBench and RewardBench 2.

RewardBench (Lambert et al. 2024): rows of `prompt`, `chosen`, `rejected` and `subset`. A pair is right when the chosen
one scores higher; a section (chat, chat hard, safety, reasoning) is the mean over its pairs, with mathematics counted
as much as all of code, and the score is the mean over sections.

RewardBench 2 (Malik et al. 2025): rows of `prompt`, lists `chosen` and `rejected`, `subset`. Best of four: right when a
correct answer scores highest, 1 / m when it shares the highest score with m - 1 others. In the subset Ties, prompts have
many correct answers (`tied:ID`) or are the same question with one (`ref:ID`): half of the score asks that every correct
answer beats every wrong one, the rest that correct answers are closer to each other than to the best wrong one.
The score is the mean over subsets.

Beside every accuracy: what picking the longer answer gets.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import Field

from engine.stage.stage import NotIdentity, Stage, port
from training.reward.benchmark_file import contents


class RewardBench(Stage):
    """Measure reward models on a file in the format of RewardBench or RewardBench 2."""

    takes = {"rewards": port("RewardModel", many=True, labelled=True)}
    gives = "Verdict"
    phase = "training"
    work = "training.reward.benchmark:benchmark"
    random = True  # the resampling of intervals
    version = 2

    file: Annotated[str, NotIdentity] = Field(
        description="A .parquet, .jsonl or .json file with `prompt`, `chosen`, `rejected`, `subset`, `id`, relative to the recipe."
    )

    def sources(self, base: str) -> dict[str, str]:
        return {Path(self.file).name: hashlib.sha256(contents(Path(base) / self.file)).hexdigest()}
