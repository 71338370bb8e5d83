"""One self-contained HTML page about a run: the flow, the evaluation, samples, curves, what was rejected, the time it took.

Pictures are SVG drawn here and now (altair, vl-convert); the page loads nothing and opens offline. Stages take part by what
their artifacts hold: `table.json` and `samples.json` (evaluations), `logs/metrics.parquet` (curves), `logs/tables.json`
(tables that depend on the clock: title, columns, rows, and an address or null for each row), `histograms.json`
(distributions), rejected rows with `kept_id` (clusters), `summary.json` (of it, `headline` is shown on top).
"""

from __future__ import annotations

import html
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UserError, nearest
from engine.store.store import Artifact, Store
from engine.view.artifact import quote, turns
from engine.view.removed import examples, largest_clusters
from engine.view.report import distributions

INK, PAPER, ACCENT, MUTED = "#1c2430", "#ffffff", "#2f6fde", "#8792a2"
NAME = 13  # characters of a stage's name that fit on one line of its box
ROOMS = {
    "pipelines": "#2a9d8f",
    "generators": "#7b5cd6",
    "labeling": "#e08a1e",
    "training": "#2f6fde",
}  # by the package a stage kind lives in
CURVES = ("loss", "validation_bpb", "val_loss", "accuracy", "reward", "kl", "margin", "rewards/accuracies", "rewards/margins",
          "entropy", "length", "explained_variance", "clip_fraction")  # fmt: skip


@dataclass(frozen=True)
class Stop:
    """One stage of the run as the report sees it."""

    name: str
    kind: str
    inputs: list[str]
    artifact: Artifact | None
    room: str


def stops_of(store: Store, run: str) -> list[Stop]:
    """The stages of a run's record, in order.

    Raises:
        UserError: no run of this name.
    """
    record = store.run(run)
    if record is None:
        raise UserError(
            f"no run `{run}` in the store {store.url}.{nearest(run, store.runs())} `flywheel status` lists them."
        )
    names = {entry["artifact"]: name for name, entry in record["stages"].items()}
    return [
        Stop(
            name,
            entry["kind"],
            list(dict.fromkeys(names.get(f, f) for given in entry["inputs"].values() for _, f in given)),
            store.get(entry["artifact"]),
            _room(entry["kind"]),
        )
        for name, entry in record["stages"].items()
    ]


def _room(kind: str) -> str:
    from importlib.metadata import entry_points

    return next((e.value.split(".")[0] for e in entry_points(group="flywheel.stages") if e.name == kind), "")


def evaluation_table(store: Store, run: str) -> dict[str, dict[str, Any]]:
    """Model name -> metrics, from the run's evaluations; later stages win where names agree.

    Raises:
        UserError: the run has no finished evaluation.
    """
    table: dict[str, dict[str, Any]] = {}
    for stop in stops_of(store, run):
        if stop.artifact and "table.json" in stop.artifact.manifest["files"]:
            table |= json.loads(store.read("artifacts", stop.artifact.id, "table.json"))
    if not table:
        raise UserError(f"run `{run}` has no finished evaluation yet: it needs an `evaluate` stage, run to its end.")
    return table


def write_report(store: Store, run: str, to: Path) -> Path:
    """Write the page to a file, whole or not at all; returns where."""
    import jinja2

    stops = stops_of(store, run)
    done = [(s, s.artifact) for s in stops if s.artifact]
    tables = [(s.name, _json(a, "table.json")) for s, a in done if "table.json" in a.manifest["files"]]
    samples = [(s.name, _json(a, "samples.json")) for s, a in done if "samples.json" in a.manifest["files"]]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string((Path(__file__).parent / "report.html.jinja").read_text()).render(
        run=run,
        stops=stops,
        finished=len(done) == len(stops),
        seconds=sum(a.manifest["timings"].get("wall_s", 0) for _, a in done),
        flow=flow_svg(stops),
        tables=[(name, _columns(table), table, _win_rates(table)) for name, table in tables],
        samples=[(name, [{**s, "prompt": turns(s["prompt"])} for s in shown]) for name, shown in samples],
        told=[(s, json.loads(found)) for s, a in done if (found := a.log("tables.json"))],
        curves=[(s, svg) for s, a in done for svg in [_curves(a)] if svg],
        optimisation=[(s, svg) for s, a in done for svg in [_optimisation(a)] if svg],
        rejected=[(s, a) for s, a in done if a.manifest["rejected"]],
        funnel=[(s, a, _rows_in(store, a)) for s, a in done if a.manifest["kind"] == "dataset"],
        narrowing=_funnel(done),
        headlines=[(s.name, a.manifest["summary"]["headline"]) for s, a in done if "headline" in a.manifest["summary"]],
        distributions=[(s, svg) for s, a in done for svg in [_histograms(a)] if svg],
        clusters=[(s, found) for s, a in done for found in [largest_clusters(a)] if found],
        examples=[(s, examples(a, 1)) for s, a in done if a.manifest["rejected"]],
        times=_bars([(s.name, a.manifest["timings"].get("wall_s", 0.0)) for s, a in done], "seconds"),
        summaries=[(s, a) for s, a in done if a.manifest["summary"]],
        packages={k: v for _, a in done for k, v in a.manifest["packages"].items()},
        machine=next((a.manifest["timings"]["machine"] for _, a in done if a.manifest["timings"]), ""),
        number=_number,
        quote=quote,
        json=lambda value: json.dumps(value, ensure_ascii=False, default=str),  # pyright: ignore
    )
    partial = to.with_name(to.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(page, encoding="utf-8")
    partial.replace(to)
    return to


def _json(artifact: Artifact, name: str) -> Any:
    return json.loads(artifact.store.read("artifacts", artifact.id, name))


def _funnel(done: list[tuple[Stop, Artifact]]) -> str:
    """What became of rows on their way through stages that take rows away; empty if none did."""
    rows = [
        (s.name, a.rows, a.manifest["rejected"])
        for s, a in done
        if s.room == "pipelines" and a.kind != "TokenBlock" and a.rows
    ]
    return _svg(distributions.funnel(rows)) if any(rejected for _, _, rejected in rows) else ""


def _histograms(artifact: Artifact) -> str:
    if "histograms.json" not in artifact.manifest["files"]:
        return ""
    chart = distributions.histograms(_json(artifact, "histograms.json"))
    return _svg(chart) if chart else ""


def _rows_in(store: Store, artifact: Artifact) -> int:
    return sum(
        found.rows
        for given in artifact.manifest["inputs"].values()
        for entry in given
        if (found := store.get(entry["artifact"]))
    )


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 0.001 else f"{value:.3f}" if 0 < abs(value) < 0.1 else f"{value:.2f}"


def _columns(table: dict[str, dict[str, Any]]) -> list[str]:
    """The metrics to show as columns: bounds are folded into the metric they bound."""
    names = dict.fromkeys(name for row in table.values() for name in row)
    return [n for n in names if not n.endswith(("_low", "_high"))]


def _win_rates(table: dict[str, dict[str, Any]]) -> str:
    """Gold win rates with their intervals as a picture; empty if there are none."""
    rows = [
        {
            "model": name,
            "rate": row["gold_win_rate"],
            "low": row["gold_win_rate_low"],
            "high": row["gold_win_rate_high"],
        }
        for name, row in table.items()
        if row.get("gold_win_rate") is not None and row.get("gold_win_rate_low") is not None
    ]
    if not rows:
        return ""
    import altair as alt

    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("model:N", sort=None, title=None))
    rule = base.mark_rule(strokeWidth=3, color=ACCENT, opacity=0.5).encode(
        x=alt.X("low:Q", scale=alt.Scale(domain=[0, 1]), title="gold preference against the reference, 95 % interval"),
        x2="high:Q",
    )
    points = base.mark_point(filled=True, size=90, color=ACCENT, opacity=1).encode(x="rate:Q")
    half = alt.Chart(alt.Data(values=[{"x": 0.5}])).mark_rule(strokeDash=[4, 4], color=MUTED).encode(x="x:Q")
    return _svg((half + rule + points).properties(width=520, height=34 * len(rows)))


def _curves(artifact: Artifact) -> str:
    """Small charts of an artifact's metrics, one a metric; empty if it reported none."""
    data = artifact.log("metrics.parquet")
    if data is None:
        return ""
    import altair as alt
    import polars as pl

    frame = pl.read_parquet(io.BytesIO(data))
    names = [n for n in CURVES if n in frame.columns] or [n for n in frame.columns if n != "step"]
    charts: list[Any] = []
    for name in names[:6]:
        points = frame.select("step", value=pl.col(name)).drop_nulls().filter(pl.col("value").is_finite())
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
    return _svg(alt.concat(*charts, columns=3)) if charts else ""


def _optimisation(artifact: Artifact) -> str:
    """Gold against proxy over the distance from the reference, sqrt(KL); empty where no gold score was measured.

    Both start at 0. Where gold falls while the proxy rises, the policy learns the reward model's mistakes.
    """
    data = artifact.log("metrics.parquet")
    if data is None:
        return ""
    import altair as alt
    import polars as pl

    frame = pl.read_parquet(io.BytesIO(data))
    proxy = next((name for name in ("proxy", "score", "reward") if name in frame.columns), None)
    if proxy is None or not {"kl", "gold"} <= set(frame.columns):
        return ""
    seen = frame.select("step", pl.col("kl").clip(0).sqrt().alias("distance"), proxy=proxy, gold="gold").drop_nulls()
    if len(seen) < 2:
        return ""
    long = seen.with_columns(pl.col("proxy", "gold") - pl.col("proxy", "gold").first()).unpivot(
        on=["gold", "proxy"], index=["step", "distance"], variable_name="score"
    )
    chart = (
        alt.Chart(alt.Data(values=long.to_dicts()))
        .mark_line(point=True, strokeWidth=1.6)
        .encode(
            x=alt.X("distance:Q", title="distance from the reference, sqrt(KL) in nats"),
            y=alt.Y("value:Q", title="gain over the start"),
            color=alt.Color("score:N", scale=alt.Scale(domain=["gold", "proxy"], range=[ACCENT, MUTED]), title=None),
            order="step:Q",
        )
    )
    return _svg(chart.properties(width=520, height=220))


def _bars(rows: list[tuple[str, float]], unit: str) -> str:
    if not rows:
        return ""
    import altair as alt

    values = [{"stage": name, "value": value} for name, value in rows]
    chart = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("stage:N", sort=None, title=None), x=alt.X("value:Q", title=unit)
    )
    bars = chart.mark_bar(color=ACCENT, height=11)
    text = chart.mark_text(align="left", dx=4, color=INK).encode(text=alt.Text("value:Q", format=".1f"))
    return _svg((bars + text).properties(width=520, height=20 * len(rows)))


def _svg(chart: Any) -> str:
    import vl_convert as vlc

    chart = (
        chart.configure(font="system-ui, sans-serif", background="transparent")
        .configure_view(stroke=None)
        .configure_axis(gridColor="#e6e9ef", domainColor="#c8ced8", tickColor="#c8ced8", labelColor=INK, titleColor=INK)
        .configure_title(fontSize=12, fontWeight="normal", color=INK, anchor="start")
    )
    return vlc.vegalite_to_svg(chart.to_dict())


def flow_svg(stops: list[Stop]) -> str:
    """The stages as boxes, each to the right of what it takes from, with the rows that came out of each."""
    depth: dict[str, int] = {}
    for stop in stops:
        depth[stop.name] = 1 + max((depth.get(name, -1) for name in stop.inputs), default=-1)
    columns: dict[int, list[Stop]] = {}
    for stop in stops:
        columns.setdefault(depth[stop.name], []).append(stop)
    wide, gap_x, gap_y = 124, 16, 14
    high = 46 if all(len(stop.name) <= NAME for stop in stops) else 54
    tallest = max((len(c) for c in columns.values()), default=0)
    place: dict[str, tuple[float, float]] = {}
    for x, column in sorted(columns.items()):
        # Near the mean height of its inputs, so that lines stay short.
        wish = {s.name: _mean([place[n][1] for n in s.inputs if n in place]) for s in column}
        column.sort(key=lambda s: wish[s.name])
        top = (tallest - len(column)) * (high + gap_y) / 2
        for y, stop in enumerate(column):
            place[stop.name] = (x * (wide + gap_x), top + y * (high + gap_y))
    width = max((x for x, _ in place.values()), default=0) + wide + 4
    height = tallest * (high + gap_y) + 4
    parts = [f'<svg viewBox="-2 -2 {width:.0f} {height:.0f}" role="img" aria-label="flow of the run" class="flow">']
    for stop in stops:
        x2, y2 = place[stop.name][0], place[stop.name][1] + high / 2
        for name in stop.inputs:
            if name in place:
                x1, y1 = place[name][0] + wide, place[name][1] + high / 2
                bend = max(18.0, (x2 - x1) / 2)
                parts.append(f'<path d="M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}"/>')
    for stop in stops:
        x, y = place[stop.name]
        colour = ROOMS.get(stop.room, MUTED)
        rows = (
            f"{stop.artifact.rows:,} rows"
            if stop.artifact and stop.artifact.rows
            else stop.artifact.kind
            if stop.artifact
            else "–"
        )
        lost = sum(stop.artifact.manifest["rejected"].values()) if stop.artifact else 0
        note = rows + (f", {lost:,} out" if lost else "")
        parts.append(
            f'<g transform="translate({x},{y})"><rect width="{wide}" height="{high}" rx="7" fill="{colour}"/>'
            f'<text y="{19 if len(stop.name) <= NAME else 15}" class="name">{_name(stop.name)}</text>'
            f'<text x="8" y="{high - 10}" class="rows">{html.escape(note)}</text></g>'
        )
    return "".join([*parts, "</svg>"])


def _name(name: str) -> str:
    """A stage's name on one line or, where it is too long for its box, on two."""
    words = name.split("_")
    cut = next((n for n in range(len(words) - 1, 0, -1) if len("_".join(words[:n])) < NAME), 0)
    lines = [name] if len(name) <= NAME or not cut else ["_".join(words[:cut]) + "_", "_".join(words[cut:])]
    return "".join(f'<tspan x="8" dy="{13 * bool(i)}">{html.escape(line)}</tspan>' for i, line in enumerate(lines))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
