"""Pictures of what rows are like and what became of them: the funnel, histograms of kept and removed rows, clusters.

Any artifact takes part that holds `histograms.json`: statistic -> `edges` (n + 1 values), `kept` and `removed` (n counts),
`bounds` (the values outside of which a rule removes; null for none).
"""

from __future__ import annotations

from typing import Any

KEPT, REMOVED = "#2f6fde", "#e0a08a"
MOST = 9  # histograms of one artifact


def funnel(rows: list[tuple[str, int, dict[str, int]]]) -> Any:
    """A bar a stage: rows kept, and those that did not make it, by reason (the four most frequent by name).

    Args:
        rows: (stage, rows kept, reason -> rows removed).
    """
    import altair as alt

    values: list[dict[str, Any]] = []
    for name, kept, rejected in rows:
        values.append({"stage": name, "what": "kept", "rows": kept, "order": 0, "label": f"{kept:,}"})
        for place, (reason, count) in enumerate(sorted(rejected.items(), key=lambda item: -item[1]), 1):
            shown = reason if place <= 4 else "other reasons"
            values.append({"stage": name, "what": shown, "rows": count, "order": min(place, 5), "label": ""})
    ordered = ["kept", *dict.fromkeys(v["what"] for v in values if v["what"] != "kept")]
    palette = ["#e0a08a", "#d9b65c", "#a7b97a", "#b79ad1", "#8fb8c4", "#c98fa5", "#9aa3b2"]
    colours = [
        KEPT if w == "kept" else "#c3cbd8" if w == "other reasons" else palette[i % 7] for i, w in enumerate(ordered)
    ]
    chart = alt.Chart(alt.Data(values=values)).encode(y=alt.Y("stage:N", sort=None, title=None))
    bars = chart.mark_bar(height=16).encode(
        x=alt.X("sum(rows):Q", title="rows"),
        color=alt.Color("what:N", scale=alt.Scale(domain=ordered, range=colours), legend=alt.Legend(title=None)),
        order=alt.Order("order:Q"),
    )
    return bars.properties(width=520, height=24 * len(rows))


def histograms(given: dict[str, dict[str, Any]]) -> Any:
    """Small stacked charts, one a statistic: how many rows of each value were kept and how many removed; None if empty."""
    import altair as alt

    charts = [chart for name, entry in given.items() if (chart := _histogram(name, entry))][:MOST]
    return alt.concat(*charts, columns=3) if charts else None


def _histogram(name: str, entry: dict[str, Any]) -> Any:
    import altair as alt

    counts = [k + r for k, r in zip(entry["kept"], entry["removed"], strict=True)]
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return None
    values: list[dict[str, Any]] = []
    for i in range(filled[0], filled[-1] + 1):
        for side in ("kept", "removed"):
            values.append({"bin": _label(entry["edges"][i]), "side": side, "rows": entry[side][i], "order": side})
    low, high = entry["bounds"]
    bounds = [f"{sign} {_label(bound)}" for sign, bound in (("≥", low), ("≤", high)) if bound is not None]
    title = name.replace("_", " ") + (f" ({', '.join(bounds)})" if bounds else "")
    return (
        alt.Chart(alt.Data(values=values), title=title)
        .mark_bar()
        .encode(
            x=alt.X("bin:O", sort=None, title=None, axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("rows:Q", title=None),
            color=alt.Color(
                "side:N",
                scale=alt.Scale(domain=["kept", "removed"], range=[KEPT, REMOVED]),
                legend=alt.Legend(title=None),
            ),
            order=alt.Order("order:N"),
        )
        .properties(width=230, height=110)
    )


def _label(value: float) -> str:
    return (
        f"{value:,.0f}"
        if value == int(value) and value < 10_000
        else f"{value / 1000:,.0f}k"
        if value >= 10_000
        else f"{value:.3g}"
    )
