"""What a stage wants drawn of its result. The report draws it and knows no stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Curves:
    """Metrics over steps, a small chart each: the first six of these names that were reported.

    Attributes:
        units: of a metric, where it has one: "nats a token".
        step: what a step is.
    """

    names: tuple[str, ...]
    units: Mapping[str, str] = field(default_factory=lambda: {})
    step: str = "step"


@dataclass(frozen=True)
class Intervals:
    """A metric of `table.json` for each model, between `METRIC_low` and `METRIC_high`. Shares: the axis goes from 0 to 1.

    Attributes:
        made_of: the metric of single answers (of the rows) that it compares with the reference's.
    """

    metric: str
    title: str
    made_of: str = ""


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
