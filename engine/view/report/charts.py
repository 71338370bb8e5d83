"""Pictures of a run: intervals, curves, bars, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import altair as alt
import polars as pl
import vl_convert as vlc

from engine.stage.drawing import Curves, Gains, Intervals
from engine.text.visible import visible

# Ink is the page's own, light or dark.
INK, ACCENT, MUTED = "currentColor", "#2f6fde", "#8792a2"


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


def curves(series: Mapping[str, pl.DataFrame], drawing: Curves) -> str:
    """Small charts of the first six metrics of a drawing, or of any if none of them was reported; of several runs over each other.

    Args:
        series: what a line is called -> its metrics, a row a step.
    """
    reported = list(dict.fromkeys(name for metrics in series.values() for name in metrics.columns if name != "step"))
    known = [name for name in drawing.names if name in reported] or reported
    charts = [chart for name in known[:6] if (chart := _curve(series, name, drawing))]
    return svg(alt.concat(*charts, columns=3)) if charts else ""


def _curve(series: Mapping[str, pl.DataFrame], name: str, drawing: Curves) -> Any:
    values: list[dict[str, Any]] = []
    for label, metrics in series.items():
        if name in metrics.columns:
            points = metrics.select("step", value=pl.col(name)).drop_nulls().filter(pl.col("value").is_finite())
            every = max(1, len(points) // 300)
            values += [{**point, "run": label} for point in points.gather_every(every).to_dicts()]
    if len(values) < 2:
        return None
    line = alt.Chart(alt.Data(values=values), title=name.replace("_", " ")).mark_line(color=ACCENT, strokeWidth=1.6)
    line = line.encode(
        x=alt.X("step:Q", title=drawing.step, axis=alt.Axis(tickMinStep=1, tickCount=6)),
        y=alt.Y("value:Q", title=drawing.units.get(name, name.replace("_", " ")), scale=alt.Scale(zero=False)),
    )
    if len(series) > 1:
        line = line.encode(color=alt.Color("run:N", sort=list(series), scale=alt.Scale(scheme="tableau10"), title=None))
    return line.properties(width=250, height=140)


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
        .configure_axis(
            gridColor=INK,
            gridOpacity=0.14,
            domainColor=INK,
            domainOpacity=0.4,
            tickColor=INK,
            tickOpacity=0.4,
            labelColor=INK,
            titleColor=INK,
            titleFontWeight="normal",
        )
        .configure_legend(labelColor=INK, titleColor=INK)
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
