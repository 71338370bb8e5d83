"""A sweep as a table, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.statistics.bootstrap import Interval
from engine.trials.comparison_text import number
from engine.trials.sweep import Measure, SettingLine, Sweep

PICTURES = 12


def title(measure: Measure) -> str:
    stage, model, metric = measure
    return f"{stage}: {metric} of {model}" if model else f"{stage}: {metric}, last"


def interval(told: Interval, sign: bool = False) -> str:
    """`.41 (.35 to .47)`; the value alone where nothing tells how sure it is."""
    form = "+.4g" if sign else ".4g"
    if told.low != told.low:
        return f"{told.value:{form}}"
    return f"{told.value:{form}} ({told.low:{form}} to {told.high:{form}})"


def lines(found: Sweep) -> Iterator[str]:
    """Each metric with a line a setting."""
    settings = list(dict.fromkeys(trial.setting for trial in found.trials))
    seeds = len(found.trials) // len(settings)
    yield f"{found.name}: {len(settings)} settings, {seeds} {'seed' if seeds == 1 else 'seeds'} each; {found.made} artifacts, {found.shared} of them shared."
    width = max(len(setting) for setting in settings)
    for measure, each in found.lines.items():
        yield ""
        yield f"{title(measure)}"
        for line in each:
            yield f"  {_row(line, width, seeds)}".rstrip()
    compared = [line for each in found.lines.values() for line in each if line.difference]
    if compared:
        beyond = sum(line.beyond_noise for line in compared)
        yield ""
        yield f"{beyond} of {len(compared)} differences to the first setting are beyond noise; of as many that are none, {len(compared) / 20:.1f} look so by chance."
    yield (
        "Intervals (95 %) count prompts and seeds as drawn from many."
        if seeds > 1
        else "Intervals (95 %) count prompts alone: with one seed nobody can tell what another would give (`--seeds 3`)."
    )
    for run, error in found.failed.items():
        yield f"{run} did not come to its end: {error}"


def _row(line: SettingLine, width: int, seeds: int) -> str:
    told = f"{line.setting:<{width}}  {interval(line.mean):<28}"
    if seeds > 1:
        told += f"  seeds: {' '.join(number(value) for value in line.seeds)}"
    if line.difference is None:
        return told
    unsure = line.difference.low != line.difference.low
    beyond = "" if unsure else "  beyond noise" if line.beyond_noise else "  within noise"
    return f"{told}  difference {interval(line.difference, sign=True)}{beyond}"


def as_json(found: Sweep) -> dict[str, Any]:
    """The same for machines."""
    from dataclasses import asdict

    return {
        "name": found.name,
        "trials": [asdict(trial) for trial in found.trials],
        "artifacts": {"made": found.made, "shared": found.shared},
        "metrics": [
            {
                "stage": measure[0], "model": measure[1], "metric": measure[2],
                "settings": [{**asdict(line), "beyond_noise": line.beyond_noise} for line in each],
            }
            for measure, each in found.lines.items()
        ],
        "failed": {run: str(error) for run, error in found.failed.items()},
    }  # fmt: skip


def draw(found: Sweep, to: Path) -> None:
    """Write an SVG: for each metric the settings with their intervals, and each seed as a small point."""
    import altair as alt

    from engine.store.whole_file import whole_file
    from engine.view.report.charts import ACCENT, MUTED, svg

    charts: list[Any] = []
    for measure, each in list(found.lines.items())[:PICTURES]:
        known = [line for line in each if line.mean.low == line.mean.low]
        means = [
            {"setting": line.setting, "value": line.mean.value, "low": line.mean.low, "high": line.mean.high}
            for line in known
        ]
        points = [{"setting": line.setting, "value": value} for line in each for value in line.seeds]
        order = [line.setting for line in each]
        y = alt.Y("setting:N", sort=order, title=None)
        x = alt.X("value:Q", title=measure[2], scale=alt.Scale(zero=False))
        seeds = alt.Chart(alt.Data(values=points)).mark_point(size=30, color=MUTED, opacity=0.9).encode(x=x, y=y)
        rules = alt.Chart(alt.Data(values=means)).mark_rule(strokeWidth=3, color=ACCENT, opacity=0.5)
        rules = rules.encode(x=alt.X("low:Q", title=measure[2], scale=alt.Scale(zero=False)), x2="high:Q", y=y)
        dots = (
            alt.Chart(alt.Data(values=means)).mark_point(filled=True, size=90, color=ACCENT, opacity=1).encode(x=x, y=y)
        )
        chart = (rules + seeds + dots).properties(width=360, height=max(40, 26 * len(each)), title=title(measure))
        charts.append(chart)
    if charts:
        with whole_file(to, lasting=False) as partial:
            partial.write_text(svg(alt.concat(*charts, columns=2).resolve_scale(x="independent", y="independent")))
