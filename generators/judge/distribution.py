"""How the values of each metric are spread: what a summary tells of scores."""

from __future__ import annotations

from typing import Any

import polars as pl

MOST_VALUES = 12  # a metric with more of them is told by its quartiles alone


def distributions(verdicts: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Metric -> how many answers were scored, mean, least, quartiles, most, and where values are few, how many got each.

    Args:
        verdicts: columns `metric` and `value`.
    """
    told: dict[str, dict[str, Any]] = {}
    for (metric,), rows in verdicts.drop_nulls("value").group_by("metric", maintain_order=True):
        value = rows["value"]
        facts: dict[str, Any] = {"answers": len(value), "mean": _plain(value.mean())}
        quantiles = {"least": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "most": 1.0}
        facts |= {name: _plain(value.quantile(share, "linear")) for name, share in quantiles.items()}
        if value.n_unique() <= MOST_VALUES:
            counts = value.value_counts().sort("value")
            facts["counts"] = {f"{one:g}": times for one, times in counts.iter_rows()}
        told[str(metric)] = facts
    return dict(sorted(told.items()))


def _plain(value: Any) -> float | None:
    return None if value is None else round(float(value), 6)
