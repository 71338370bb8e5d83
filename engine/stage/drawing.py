"""What a stage wants drawn of its result. The report draws it and knows no stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curves:
    """Metrics over steps, a small chart each: the first six of these names that were reported."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Intervals:
    """A metric of `table.json` for each model, between `METRIC_low` and `METRIC_high`. Shares: the axis goes from 0 to 1."""

    metric: str
    title: str


@dataclass(frozen=True)
class Gains:
    """What scores have gained since the first step, against the square root of a distance.

    Attributes:
        distance: the metric under the root, `axis` what to call it.
        scores: name in the picture -> metrics that may hold it; the first that was reported is drawn.
    """

    title: str
    note: str
    distance: str
    axis: str
    scores: dict[str, tuple[str, ...]]


Drawing = Curves | Intervals | Gains
