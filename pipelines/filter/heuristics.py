"""The published heuristic rules with their published constants: of whole documents, and of the lines in them."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from engine.text.normal_form import normal_form
from engine.text.words import words

TERMINALS = '.!?"”'  # C4: "a period, exclamation mark, question mark, or end quotation mark"


@dataclass(frozen=True)
class Rule:
    """A document passes if `low <= statistic <= high`."""

    name: str
    statistic: str
    low: float = -math.inf
    high: float = math.inf

    def bounded(self, low: float | None, high: float | None) -> Rule:
        """The same rule with other bounds; None is no bound."""
        return Rule(self.name, self.statistic, -math.inf if low is None else low, math.inf if high is None else high)


def _above(bound: float) -> float:
    return math.nextafter(bound, math.inf)  # a value equal to the bound does not pass


def _below(bound: float) -> float:
    return math.nextafter(bound, -math.inf)


SETS: dict[str, tuple[Rule, ...]] = {
    # Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", A.1.1, Quality Filtering.
    "gopher_quality": (
        Rule("gopher_words", "words", 50, 100_000),
        Rule("gopher_mean_word_length", "mean_word_length", 3, 10),
        Rule("gopher_hash_ratio", "hash_ratio", high=0.1),
        Rule("gopher_ellipsis_ratio", "ellipsis_ratio", high=0.1),
        Rule("gopher_bullet_lines", "bullet_lines", high=0.9),
        Rule("gopher_ellipsis_lines", "ellipsis_lines", high=0.3),
        Rule("gopher_alpha_words", "alpha_words", low=0.8),
        Rule("gopher_stop_words", "stop_words", low=2),
    ),
    # The same, Repetition Removal, Table A1.
    "gopher_repetition": (
        Rule("gopher_duplicate_lines", "duplicate_lines", high=0.30),
        Rule("gopher_duplicate_paragraphs", "duplicate_paragraphs", high=0.30),
        Rule("gopher_duplicate_line_characters", "duplicate_line_characters", high=0.20),
        Rule("gopher_duplicate_paragraph_characters", "duplicate_paragraph_characters", high=0.20),
        Rule("gopher_top_2gram", "top_2gram", high=0.20),
        Rule("gopher_top_3gram", "top_3gram", high=0.18),
        Rule("gopher_top_4gram", "top_4gram", high=0.16),
        Rule("gopher_duplicate_5grams", "duplicate_5grams", high=0.15),
        Rule("gopher_duplicate_6grams", "duplicate_6grams", high=0.14),
        Rule("gopher_duplicate_7grams", "duplicate_7grams", high=0.13),
        Rule("gopher_duplicate_8grams", "duplicate_8grams", high=0.12),
        Rule("gopher_duplicate_9grams", "duplicate_9grams", high=0.11),
        Rule("gopher_duplicate_10grams", "duplicate_10grams", high=0.10),
    ),
    # Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2.2: the
    # rules that remove whole pages. Those that remove lines are below; the list of bad words is not here.
    "c4": (
        Rule("c4_sentences", "sentences", low=3),
        Rule("c4_lorem_ipsum", "lorem_ipsum", high=0),
        Rule("c4_curly_brackets", "curly_brackets", high=0),
    ),
    # Penedo et al. 2024, "The FineWeb Datasets", 3.6: the three rules of their own.
    "fineweb": (
        Rule("fineweb_terminal_lines", "terminal_lines", low=_above(0.12)),
        Rule("fineweb_duplicate_line_characters", "duplicate_line_characters", high=_below(0.1)),
        Rule("fineweb_short_lines", "short_lines", high=_below(0.67)),
    ),
}

# Raffel et al. 2020, 2.2, on lines. FineWeb (3.5) uses all of them but the one on terminal punctuation, which took most.
LINE_SETS = {
    "c4": ("c4_terminal", "c4_short_line", "c4_javascript", "c4_policy"),
    "fineweb": ("c4_short_line", "c4_javascript", "c4_policy"),
}
LINE_WORDS = 5
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(r"\[(?:\d{1,3}|edit|citation needed)\]")


def clean_lines(text: str, rules: tuple[str, ...]) -> tuple[str, Counter[str]]:
    """The lines of a text that pass, without Wikipedia's citation marks; and how many lines each rule removed.

    Blank lines stay where they separate lines that stay.
    """
    removed: Counter[str] = Counter()
    kept: list[str] = []
    text, marks = CITATION.subn("", text)
    removed["c4_citation"] += marks
    for line in text.split("\n"):
        stripped = line.strip()
        if not stripped:
            if kept and kept[-1]:
                kept.append("")
            continue
        form = normal_form(stripped)
        if "c4_terminal" in rules and not stripped.endswith(tuple(TERMINALS)):
            removed["c4_terminal"] += 1
        elif "c4_short_line" in rules and len(words(stripped)) < LINE_WORDS:
            removed["c4_short_line"] += 1
        elif "c4_javascript" in rules and "javascript" in form:
            removed["c4_javascript"] += 1
        elif "c4_policy" in rules and any(phrase in form for phrase in POLICIES):
            removed["c4_policy"] += 1
        else:
            kept.append(line)
    return "\n".join(kept).rstrip("\n"), +removed
