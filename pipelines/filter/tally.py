"""What a filter counts of documents, and which rule removes which of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.filter.histograms import Histograms
from pipelines.filter.stage import Filter


@dataclass
class Tally:
    """What a filter counts of the documents that it looks at.

    Attributes:
        broken: rule -> documents that break it, whether or not another rule removed them before.
        lines: rule -> lines removed.
        pii, pii_documents: kind -> how many there are, and in how many documents.
        languages: language -> documents, of those that were still there.
    """

    rows: int = 0
    broken: Counter[str] = field(default_factory=Counter[str])
    lines: Counter[str] = field(default_factory=Counter[str])
    pii: Counter[str] = field(default_factory=Counter[str])
    pii_documents: Counter[str] = field(default_factory=Counter[str])
    languages: Counter[str] = field(default_factory=Counter[str])
    histograms: Histograms = field(default_factory=Histograms)

    def add(self, other: Tally) -> None:
        self.rows += other.rows
        self.broken.update(other.broken)
        self.lines.update(other.lines)
        self.pii.update(other.pii)
        self.pii_documents.update(other.pii_documents)
        self.languages.update(other.languages)
        self.histograms.merge(other.histograms)

    def summary(self, stage: Filter) -> dict[str, Any]:
        facts: dict[str, Any] = {"break_rule": dict(self.broken.most_common())}
        if stage.lines:
            facts["lines_removed"] = dict(self.lines.most_common())
        if stage.languages:
            facts["languages_found"] = dict(self.languages.most_common(20))
        if stage.pii:
            facts["pii_found"] = {
                kind: {"action": action, "found": self.pii[kind], "documents": self.pii_documents[kind]}
                for kind, action in stage.pii.items()
            }
        return facts

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "histograms": self.histograms.to_json({})}

    @staticmethod
    def from_json(known: dict[str, Any]) -> Tally:
        counters = {k: Counter[str](v) for k, v in known.items() if k not in ("rows", "histograms")}
        return Tally(known["rows"], **counters, histograms=Histograms.from_json(known["histograms"]))


class Removals:
    """For each row the first rule it broke and the value that broke it; and how many rows break each rule."""

    def __init__(self, count: int, broken: Counter[str]) -> None:
        self.stays = np.ones(count, bool)
        self.reason = np.full(count, None, object)
        self.detail = np.full(count, None, object)
        self.broken = broken

    def apply(self, rule: str, passes: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
        self.broken[rule] += int((~passes).sum())
        for index in np.flatnonzero(~passes & self.stays):
            self.reason[index], self.detail[index] = rule, _spelling(values[index])
        self.stays &= passes

    def remove(self, index: int, rule: str, value: str) -> None:
        self.broken[rule] += 1
        self.reason[index], self.detail[index], self.stays[index] = rule, value, False


def _spelling(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
