"""`filter`: documents -> the documents that pass every rule. What a rule removes is kept, with the rule and the value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, model_validator

from engine.errors import UserError, nearest
from engine.expression import column
from engine.job import Job
from engine.stage import Port, Stage, port
from pipelines.statistics import STATISTICS, SUBSTRINGS, measure


@dataclass(frozen=True)
class Rule:
    """A document passes if `low <= statistic <= high`."""

    name: str
    statistic: str
    low: float = -np.inf
    high: float = np.inf


def _above(bound: float) -> float:
    return float(np.nextafter(bound, np.inf))  # a value equal to the bound does not pass


def _below(bound: float) -> float:
    return float(np.nextafter(bound, -np.inf))


# The published sets with their published constants.
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
    # rules that remove whole pages. (Those that remove lines, and the list of bad words, are not here.)
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


class Filter(Stage):
    """Keep the documents that pass every rule; rules are tried in the order given here, sets first.

    A removed row carries the first rule it broke as `reason` and the value that broke it as `detail`.
    """

    takes: ClassVar[dict[str, Port]] = {"documents": port("Document", many=True)}
    gives: ClassVar[str] = "Document"

    rules: list[Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]] = Field(
        default_factory=lambda: [], description="Published sets of rules, with their published constants."
    )
    bounds: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=lambda: {},
        description="Other bounds for rules of these sets, by rule: `gopher_words: [20, null]`. null is no bound.",
    )
    min_words: int | None = Field(None, ge=0)
    max_words: int | None = Field(None, ge=0)
    min_chars: int | None = Field(None, ge=0)
    max_chars: int | None = Field(None, ge=0)
    keep: dict[str, str] = Field(
        default_factory=lambda: {},
        description="Rules of your own: name -> a Polars SQL expression over the columns and statistics, true for what "
        "stays: `short_enough: LENGTH(text) < 400 AND words > 5`.",
    )

    @model_validator(mode="after")
    def _rules_are_known(self) -> Filter:
        try:
            self.compile()
        except UserError as error:
            raise ValueError(str(error)) from None  # so that the recipe's error names its line
        return self

    def run(self, job: Job) -> None:
        rules = self.compile()
        for part in job.parts("documents"):
            kept, rejected = self.split(part.table, rules)
            part.commit(kept, rejected)

    def compile(self) -> list[Rule]:
        """The rules over statistics, in order.

        Raises:
            UserError: `bounds` names a rule that is in none of the sets.
        """
        rules = [rule for name in self.rules for rule in SETS[name]]
        known = [rule.name for rule in rules]
        for name in self.bounds:
            if name not in known:
                there = f"Rules: {', '.join(known)}." if known else "`rules` names no set."
                raise UserError(
                    f"`bounds` names `{name}`, which is no rule of these sets.{nearest(name, known)} {there}"
                )
        rules = [_bounded(rule, *self.bounds[rule.name]) if rule.name in self.bounds else rule for rule in rules]
        own = (
            ("min_words", "words", self.min_words, None),
            ("max_words", "words", None, self.max_words),
            ("min_chars", "characters", self.min_chars, None),
            ("max_chars", "characters", None, self.max_chars),
        )
        for name, statistic, low, high in own:
            if low is not None or high is not None:
                rules.append(_bounded(Rule(name, statistic), low, high))
        return rules

    def split(self, table: pa.Table, rules: list[Rule]) -> tuple[pa.Table, pa.Table]:
        """(kept, rejected) rows of a table of documents."""
        used = {rule.statistic for rule in rules} | {n for n in STATISTICS for e in self.keep.values() if n in e}
        measured = measure(table.column("text"), not used.isdisjoint(SUBSTRINGS)) if used else None
        reason = np.full(len(table), None, dtype=object)
        detail = np.full(len(table), None, dtype=object)

        def remove(name: str, passes: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
            for index in np.flatnonzero(~passes & (reason == None)):  # noqa: E711 (element by element)
                reason[index] = name
                detail[index] = _shown(values[index])

        for rule in rules:
            assert measured is not None
            values = measured.column(rule.statistic).to_numpy()
            remove(rule.name, (values >= rule.low) & (values <= rule.high), values)
        if self.keep:
            frame = cast(pl.DataFrame, pl.from_arrow(table))
            if measured is not None:
                extra = [name for name in measured.column_names if name not in frame.columns]
                frame = frame.hstack(cast(pl.DataFrame, pl.from_arrow(measured.select(extra))))
            for name, expression in self.keep.items():
                where = f"`keep.{name}`"
                verdict = column(expression, frame, where)
                if verdict.dtype != pl.Boolean:
                    raise UserError(f"{where}: `{expression}` gives {verdict.dtype}, expected true or false.")
                if len(verdict) != len(frame):
                    raise UserError(f"{where}: `{expression}` gives {len(verdict)} values for {len(frame)} rows.")
                values = np.array(["null" if v is None else expression for v in verdict], dtype=object)
                remove(name, verdict.fill_null(False).to_numpy(), values)
        stays = pa.array(reason == None)  # noqa: E711
        gone = pa.array(reason != None)  # noqa: E711
        rejected = table.filter(gone)
        for name, values in (("reason", reason), ("detail", detail)):
            rejected = rejected.append_column(name, pa.array(values[gone.to_numpy(False)], pa.string()))
        return table.filter(stays), rejected


def _bounded(rule: Rule, low: float | None, high: float | None) -> Rule:
    return Rule(rule.name, rule.statistic, -np.inf if low is None else low, np.inf if high is None else high)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
