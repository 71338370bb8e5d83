"""One self-contained HTML page about a run: the flow, the evaluation, samples, curves, what was rejected, the time it took and who took it.

Pictures are SVG drawn here and now (altair, vl-convert); the page loads nothing and opens offline. Stages take part by what
they declare (`engine.stage.drawing`) and what their artifacts hold: `table.json` and `samples.json` (evaluations), `logs/metrics.parquet` (curves), `logs/tables.json`
(tables that depend on the clock: title, columns, rows, and an address or null for each row), `histograms.json`
(distributions), rejected rows with `kept_id` (clusters), `summary.json` (of it, `headline` is shown on top).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup, escape

from engine.errors import UserError
from engine.redaction import redacted
from engine.stage.drawing import Curves, Gains, Intervals
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.store.whole_file import whole_file
from engine.text.visible import visible
from engine.view.efforts import efforts
from engine.view.removed import examples, largest_clusters
from engine.view.report import charts, distributions
from engine.view.report.findings import findings, last_rows
from engine.view.report.flow import Stop, colours, flow_svg, stops_of
from engine.view.report.judge_scores import judge_scores, rule_of
from engine.view.row_view import facts, sections
from engine.view.rows import quote, turns
from engine.view.spending import in_words, spending
from engine.view.times import date, duration


def evaluation_table(store: Store, run: str) -> dict[str, dict[str, Any]]:
    """Model name -> metrics, from the run's evaluations; later stages win where names agree.

    Raises:
        UserError: the run has no finished evaluation.
    """
    table: dict[str, dict[str, Any]] = {}
    for stop in stops_of(store, run):
        if stop.artifact and "table.json" in stop.artifact.manifest["files"]:
            table |= stop.artifact.read_json("table.json")
    if not table:
        raise UserError(f"run `{run}` has no finished evaluation yet: it needs an `evaluate` stage, run to its end.")
    return table


def write_report(store: Store, run: str, to: Path) -> Path:
    """Write the page to a file, whole or not at all; returns where."""
    stops = stops_of(store, run)
    done = [(s, s.artifact) for s in stops if s.artifact]
    tables = [(s, a, a.read_json("table.json")) for s, a in done if "table.json" in a.manifest["files"]]
    scores = judge_scores(stops)
    samples = [(s.name, a.read_json("samples.json")) for s, a in done if "samples.json" in a.manifest["files"]]
    metrics = [(s, frame) for s, a in done if (frame := a.metrics()) is not None]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = coded
    page = environment.from_string((Path(__file__).parent / "report.html.jinja").read_text()).render(
        run=run,
        stops=stops,
        about=redacted(str((store.run(run) or {}).get("about", ""))),
        finished=len(done) == len(stops),
        flow=flow_svg(stops),
        phases=colours(stops),
        tables=[
            (
                s.name,
                bounded_columns(table),
                table,
                [charts.intervals(table, d) for d in _drawings(s, Intervals)],
                _rules(s, a, table),
            )
            for s, a, table in tables
        ],
        samples=[(name, [{**s, "prompt": turns(s["prompt"])} for s in shown]) for name, shown in samples],
        told=[(s, json.loads(found)) for s, a in done if (found := a.log("tables.json"))],
        curves=[(s, svg) for s, frame in metrics if (svg := charts.curves({s.name: frame}, _curves(s)))],
        gains=[(d, s, svg) for s, frame in metrics for d in _drawings(s, Gains) if (svg := charts.gains(frame, d))],
        rejected=[(s, a) for s, a in done if a.manifest["rejected"]],
        funnel=[(s, a, _rows_in(store, a)) for s, a in done if a.manifest["kind"] == "dataset"],
        narrowing=_funnel(done),
        headlines=[(s, a.manifest["summary"]["headline"]) for s, a in done if "headline" in a.manifest["summary"]],
        findings=findings(stops, scores),
        kinds=_kinds(stops),
        facts=_facts(store, run, done),
        scores=scores,
        rows=[(s, [(sections(row), facts(row)) for row in found]) for s, found in last_rows(stops)],
        agreements=[
            (s, a.manifest["summary"]) for s, a in done if isinstance(a.manifest["summary"].get("agreement"), dict)
        ],
        distributions=[(s, svg) for s, a in done for svg in [_histograms(a)] if svg],
        clusters=[(s, found) for s, a in done for found in [largest_clusters(a)] if found],
        examples=[(s, examples(a, 1)) for s, a in done if a.manifest["rejected"]],
        efforts=[(s, told) for s, a in done if (told := efforts(a))],
        spent=[(s, one) for s, a in done if (one := spending([a]))],
        total=spending(a for _, a in done),
        in_words=in_words,
        times=charts.bars([(s.name, a.manifest["timings"].get("wall_s", 0.0)) for s, a in done], "seconds"),
        summaries=[(s, a) for s, a in done if a.manifest["summary"]],
        packages={k: v for _, a in done for k, v in a.manifest["packages"].items()},
        number=as_number,
        web=is_web,
        quote=quote,
        json=lambda value: redacted(json.dumps(value, ensure_ascii=False, default=str)),  # pyright: ignore
    )
    with whole_file(to) as partial:
        partial.write_text(visible(page), encoding="utf-8")
    return to


def coded(text: str) -> Markup:
    """A sentence as HTML, its `names` as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _facts(store: Store, run: str, done: list[tuple[Stop, Artifact]]) -> list[tuple[str, str]]:
    """When, what, where: what one asks of a page that somebody sends."""
    timings = [a.manifest["timings"] for _, a in done]
    starts = [one["started"] for one in timings if isinstance(one.get("started"), int | float)]
    ends = [one["started"] + one.get("wall_s", 0) for one in timings if isinstance(one.get("started"), int | float)]
    total = spending(a for _, a in done)
    machines = dict.fromkeys(one["machine"] for one in timings if one.get("machine"))
    seeds = dict.fromkeys(str(a.manifest["seed"]) for _, a in done if a.manifest.get("seed") is not None)
    seconds = sum(one.get("wall_s", 0) for one in timings)
    return [
        (name, told)
        for name, told in [
            ("date", f"{date(min(starts))} to {date(max(ends))}" if starts else ""),
            ("recipe", str((store.run(run) or {}).get("recipe", ""))),
            ("seed", ", ".join(seeds)),
            ("machine", "; ".join(machines)),
            ("time", f"{duration(seconds)} of work"),
            ("cost", in_words(total) if total else "no model was asked for answers"),
        ]
        if told
    ]


def _kinds(stops: list[Stop]) -> list[tuple[str, str, list[str]]]:
    """What each kind of stage does, by the first line of what it says of itself, and which stages are of it."""
    kinds = {stop.kind: (stop.stage.__doc__ or "").strip().partition("\n")[0] for stop in stops}
    return [(kind, does, [stop.name for stop in stops if stop.kind == kind]) for kind, does in kinds.items()]


def _rules(stop: Stop, artifact: Artifact, table: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Column of a table -> the rule of the recipe that it is worked out by, where there is one."""
    made_of = {drawing.metric: drawing.made_of for drawing in _drawings(stop, Intervals) if drawing.made_of}
    columns = [name for name in bounded_columns(table) if any(row.get(name) is not None for row in table.values())]
    return [(name, rule) for name in columns if (rule := rule_of(artifact, made_of.get(name, name)))]


D = TypeVar("D", Intervals, Gains)


def _drawings(stop: Stop, kind: type[D]) -> list[D]:
    return [drawing for drawing in stop.stage.drawings if isinstance(drawing, kind)]


def _curves(stop: Stop) -> Curves:
    return next((drawing for drawing in stop.stage.drawings if isinstance(drawing, Curves)), Curves(()))


def _funnel(done: list[tuple[Stop, Artifact]]) -> str:
    """What became of rows on their way through stages that take rows away; empty if none did."""
    rows = [(s.name, a.rows, a.manifest["rejected"]) for s, a in done if s.stage.narrows and a.rows]
    return charts.svg(distributions.funnel(rows)) if any(rejected for _, _, rejected in rows) else ""


def _histograms(artifact: Artifact) -> str:
    if "histograms.json" not in artifact.manifest["files"]:
        return ""
    chart = distributions.histograms(artifact.read_json("histograms.json"))
    return charts.svg(chart) if chart else ""


def _rows_in(store: Store, artifact: Artifact) -> int:
    return sum(
        found.rows
        for given in artifact.manifest["inputs"].values()
        for entry in given
        if (found := store.get(entry["artifact"]))
    )


def is_web(link: Any) -> bool:
    """Whether a link leads to a page, and does nothing else."""
    return isinstance(link, str) and re.match(r"https?://[^\s]+\Z", link, re.IGNORECASE) is not None


def as_number(value: Any) -> str:
    """A number at a glance: with commas, or three digits."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 0.001 else f"{value:.3f}" if 0 < abs(value) < 0.1 else f"{value:.2f}"


def bounded_columns(table: dict[str, dict[str, Any]]) -> list[str]:
    """The metrics to show as columns: bounds are folded into the metric they bound."""
    names = dict.fromkeys(name for row in table.values() for name in row)
    return [n for n in names if not n.endswith(("_low", "_high"))]
