"""What a stage that goes to people tells of them, while they are at work and after. `flywheel ui` draws it and knows no stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class People:
    """What people make of one set of records.

    Attributes:
        name: what they see it called; empty where there is one alone.
        summary: how far they are, a sentence.
        agreement: measure (`alpha`, ...) -> `value`, `low` and `high` of its 95 % interval, `prompts`; None where it is not defined.
        over_time: (records judged twice so far, share of pairs of answers on which two agree).
        tables: each of `title`, `columns`, `rows`, and `links`, an address or None for each row.
    """

    name: str
    summary: str
    agreement: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {})
    over_time: Sequence[tuple[int, float]] = ()
    tables: Sequence[Mapping[str, Any]] = ()
