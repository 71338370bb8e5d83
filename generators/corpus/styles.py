"""The styles of `corpus`; the prompt of each is a file in generators/templates/corpus/."""

from __future__ import annotations

from typing import Literal

Style = Literal[
    "textbook", "story", "wiki", "dialogue", "wrap_easy", "wrap_medium", "wrap_hard", "wrap_qa", "nemotron_wikipedia",
    "nemotron_diverse_qa", "nemotron_distill", "nemotron_extract", "nemotron_list",
]  # fmt: skip
REPHRASED = ("wrap_", "nemotron_")  # styles that say what the record says: no audience, no persona, and nothing cut off
