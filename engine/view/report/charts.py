"""Pictures of a run: intervals, curves, bars, as SVG."""

from __future__ import annotations

from typing import Any, cast

import altair as alt
import polars as pl
import vl_convert as vlc

from engine.stage.drawing import Gains, Intervals
from engine.text.visible import visible

INK, ACCENT, MUTED = "#1c2430", "#2f6fde", "#8792a2"


def intervals(table: dict[str, dict[str, Any]], drawing: Intervals) -> str:
    """A metric of each model with its interval; empty if there is none."""
    low, high = f"{drawing.metric}_low", f"{drawing.metric}_high"
    rows = [
        {"model": name, "rate": row[drawing.metric], "low": row[low], "high": row[high]}
        for name, row in table.items()
        if row.get(drawing.metric) is not None and row.get(low) is not None
    ]
    if not rows:
        return ""
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("model:N", sort=None, title=None))
    rule = base.mark_rule(strokeWidth=3, color=ACCENT, opacity=0.5).encode(
        x=alt.X("low:Q", scale=alt.Scale(domain=[0, 1]), title=drawing.title), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=90, color=ACCENT, opacity=1).encode(x="rate:Q")
    half = alt.Chart(alt.Data(values=[{"x": 0.5}])).mark_rule(strokeDash=[4, 4], color=MUTED).encode(x="x:Q")
    return svg((half + rule + points).properties(width=520, height=34 * len(rows)))


def curves(metrics: pl.DataFrame, names: list[str]) -> str:
    """Small charts of the first six of these metrics; of any, if none of them was reported."""
    known = [n for n in names if n in metrics.columns] or [n for n in metrics.columns if n != "step"]
    charts: list[Any] = []
    for name in known[:6]:
        points = metrics.select("step", value=pl.col(name)).drop_nulls().filter(pl.col("value").is_finite())
        if len(points) < 2:
            continue
        every = max(1, len(points) // 300)
        values = points.gather_every(every).to_dicts()
        charts.append(
            alt.Chart(alt.Data(values=values), title=name)
            .mark_line(color=ACCENT, strokeWidth=1.6)
            .encode(
                x=alt.X("step:Q", title=None),
                y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            )
            .properties(width=230, height=120)
        )
    return svg(alt.concat(*charts, columns=3)) if charts else ""


def gains(metrics: pl.DataFrame, drawing: Gains) -> str:
    """What each score has gained, over the root of a distance; empty where one was not measured twice."""
    columns = {
        name: next((one for one in names if one in metrics.columns), None) for name, names in drawing.scores.items()
    }
    scores = {name: column for name, column in columns.items() if column}
    if len(scores) < len(columns) or drawing.distance not in metrics.columns:
        return ""
    distance = pl.col(drawing.distance).clip(0).sqrt().alias("distance")
    seen = metrics.select("step", distance, **{n: pl.col(c) for n, c in scores.items()}).drop_nulls()
    if len(seen) < 2:
        return ""
    rows = seen.with_columns(pl.col(*scores) - pl.col(*scores).first()).unpivot(
        on=list(scores), index=["step", "distance"], variable_name="score"
    )
    chart = (
        alt.Chart(alt.Data(values=rows.to_dicts()))
        .mark_line(point=True, strokeWidth=1.6)
        .encode(
            x=alt.X("distance:Q", title=drawing.axis),
            y=alt.Y("value:Q", title="gain over the start"),
            color=alt.Color("score:N", scale=alt.Scale(domain=list(scores), range=[ACCENT, MUTED]), title=None),
            order="step:Q",
        )
    )
    return svg(chart.properties(width=520, height=220))


def bars(rows: list[tuple[str, float]], unit: str) -> str:
    if not rows:
        return ""
    values = [{"stage": name, "value": value} for name, value in rows]
    chart = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("stage:N", sort=None, title=None), x=alt.X("value:Q", title=unit)
    )
    bars = chart.mark_bar(color=ACCENT, height=11)
    text = chart.mark_text(align="left", dx=4, color=INK).encode(text=alt.Text("value:Q", format=".1f"))
    return svg((bars + text).properties(width=520, height=20 * len(rows)))


def svg(chart: Any) -> str:
    chart = (
        chart.configure(font="system-ui, sans-serif", background="transparent")
        .configure_view(stroke=None)
        .configure_axis(gridColor="#e6e9ef", domainColor="#c8ced8", tickColor="#c8ced8", labelColor=INK, titleColor=INK)
        .configure_title(fontSize=12, fontWeight="normal", color=INK, anchor="start")
    )
    return vlc.vegalite_to_svg(_shown(chart.to_dict()))


def _shown(value: Any) -> Any:
    """A specification whose names, from rows and recipes, are text that a page can hold."""
    if isinstance(value, str):
        return visible(value, one_line=True)
    if isinstance(value, dict):
        return {_shown(key): _shown(one) for key, one in cast(dict[Any, Any], value).items()}
    return [_shown(one) for one in cast(list[Any], value)] if isinstance(value, list) else value
