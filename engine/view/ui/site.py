"""The pages of `flywheel ui`. Each is read from the store when it is asked for; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from engine.errors import FlywheelError, UserError
from engine.redaction import redacted
from engine.stage.people import People
from engine.stage.stage import Stage, load
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS
from engine.store.store import Store
from engine.view import row_view
from engine.view.graph_picture import graph_svg
from engine.view.removed import largest_clusters
from engine.view.report import charts
from engine.view.report.flow import flow_svg
from engine.view.report.page import bounded_columns
from engine.view.spending import by_answerer
from engine.view.ui import judgements
from engine.view.ui.lineage_boxes import boxes_of_artifact
from engine.view.ui.rendering import HERE, Rendering, address, link_to
from engine.view.ui.row_pages import RowPages
from engine.view.ui.run_facts import curves_of, metrics_of, run_state

MOST_ANSWERS = 200  # answers of a page


@dataclass
class Site:
    """The pages over one store."""

    store: Store

    def __post_init__(self) -> None:
        self.rendering = Rendering(self.store)
        self.row_pages = RowPages(self.rendering)

    def app(self) -> Starlette:
        pages: dict[str, Callable[[Request], Response]] = {
            "/": self.runs,
            "/run/{run}": self.run,
            "/run/{run}/live": self.run_live,
            "/run/{run}/costs": self.costs,
            "/run/{run}/curves": self.run_curves,
            "/curves": self.curves,
            "/artifact/{artifact}": self.artifact,
            "/artifact/{artifact}/curves": self.artifact_curves,
            "/artifact/{artifact}/rows": self.row_pages.rows,
            "/artifact/{artifact}/count": self.row_pages.count,
            "/artifact/{artifact}/row/{place:int}": self.row_pages.row,
            "/artifact/{artifact}/row/{place:int}/lineage": self.row_pages.row_lineage,
            "/artifact/{artifact}/find/{row}": self.row_pages.find_row,
            "/artifact/{artifact}/annotator/{annotator:path}": self.annotator,
            "/artifact/{artifact}/people": self.people,
            "/artifact/{artifact}/answers": self.answers,
            "/artifact/{artifact}/compare": self.compare,
        }
        routes = [Route(path, self._told(page), methods=["GET"]) for path, page in pages.items()]
        return Starlette(routes=[*routes, Mount("/static", StaticFiles(directory=HERE / "static"))])

    def _told(self, page: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """A page whose faults are told in words."""

        def answer(request: Request) -> Response:
            try:
                return page(request)
            except FlywheelError as error:
                code = 404 if isinstance(error, UserError) else 500
                return self.rendering.page("fault.jinja", code, error=redacted(str(error)))

        return answer

    # -- runs --------------------------------------------------------------------------------------------------------

    def runs(self, request: Request) -> Response:
        states = [run_state(self.store, name) for name in self.store.runs() if self.store.run(name)]
        states.sort(key=lambda state: -(state.began or 0))
        part = "runs_table.jinja" if "hx-request" in request.headers else "runs.jinja"
        return self.rendering.page(part, runs=states)

    def run(self, request: Request) -> Response:
        return self.rendering.page("run.jinja", **self._run_values(request))

    def run_live(self, request: Request) -> Response:
        return self.rendering.page("run_live.jinja", **self._run_values(request))

    def _run_values(self, request: Request) -> dict[str, Any]:
        state = run_state(self.store, request.path_params["run"])
        marks = {
            one.stop.name: f"{one.state}, {one.share:.0%}" if one.share is not None else one.state
            for one in state.stages
            if one.state != "done"
        }
        stops = [one.stop for one in state.stages]
        return {"run": state, "flow": flow_svg(stops, lambda stop: address("artifact", stop.folder), marks)}

    def costs(self, request: Request) -> Response:
        state = run_state(self.store, request.path_params["run"])
        stages = [(one.stop, by_answerer(one.stop.artifact)) for one in state.stages if one.stop.artifact]
        return self.rendering.page(
            "costs.jinja", run=state, stages=[pair for pair in stages if pair[1]], title=self.rendering.title
        )

    def run_curves(self, request: Request) -> Response:
        state = run_state(self.store, request.path_params["run"])
        drawn = [
            (one.stop, svg)
            for one in state.stages
            if (metrics := metrics_of(self.store, one.stop.artifact, one.stop.folder)) is not None
            and (svg := charts.curves({one.stop.name: metrics}, curves_of(one.stop.stage)))
        ]
        return self.rendering.page("run_curves.jinja", run=state, drawn=drawn)

    def curves(self, request: Request) -> Response:
        """Curves of several stages of any runs, over each other."""
        chosen = request.query_params.getlist("of")
        known: dict[str, Any] = {}
        for run in self.store.runs():
            for one in run_state(self.store, run).stages if self.store.run(run) else []:
                if one.stop.artifact is None or one.stop.artifact.log("metrics.parquet"):
                    known[f"{run}/{one.stop.name}"] = one.stop
        series = {
            name: metrics
            for name in chosen
            if name in known
            and (metrics := metrics_of(self.store, known[name].artifact, known[name].folder)) is not None
        }
        kinds = {known[name].stage for name in series}
        drawing = curves_of(kinds.pop()) if len(kinds) == 1 else curves_of(Stage)
        return self.rendering.page(
            "curves.jinja", known=known, chosen=chosen, svg=charts.curves(series, drawing) if series else ""
        )

    # -- artifacts ---------------------------------------------------------------------------------------------------

    def artifact(self, request: Request) -> Response:
        artifact = self.rendering.artifact(request)
        stage = _stage(artifact)
        unfinished = artifact.manifest.get("unfinished")
        rejected = "rejected" in request.query_params or (
            artifact.kind not in DATASETS and bool(artifact.rejected_parts())
        )
        files = artifact.manifest["files"]
        table: dict[str, dict[str, Any]] = (
            artifact.read_json("table.json") if "table.json" in files and not unfinished else {}
        )
        columns = bounded_columns(table)
        values: dict[str, Any] = {
            "artifact": artifact,
            "title": self.rendering.title(artifact.id),
            "inputs": [(e["name"], e["artifact"]) for given in artifact.manifest["inputs"].values() for e in given],
            "unfinished": unfinished,
            "table": table,
            "columns": columns,
            "links": {c: judgements.behind(stage, artifact, c) for c in columns} if artifact.kind == "Verdict" else {},
            "pictures": [charts.intervals(table, d) for d in stage.drawings if isinstance(d, judgements.Intervals)]
            if table
            else [],
            "clusters": largest_clusters(artifact) if not unfinished else [],
            "annotators": self._annotators(artifact),
            "overseen": bool(stage.oversight),
            "tables": [] if unfinished or stage.oversight else json.loads(artifact.log("tables.json") or b"[]"),
            "histograms": "",
            "curves": metrics_of(self.store, None if unfinished else artifact, artifact.id) is not None,
            "lineage": graph_svg(boxes_of_artifact(self.store, artifact, link_to), "what it was made from")
            if artifact.kind not in DATASETS and not unfinished
            else "",
            "rejected": rejected,
        }
        if artifact.kind in DATASETS or rejected:
            values |= self.row_pages.values(request, artifact, rejected)
        return self.rendering.page("artifact.jinja", **values)

    def _annotators(self, artifact: Artifact) -> list[dict[str, Any]]:
        """Who judged: in how many rankings, and what is known of how well."""
        if artifact.kind == "Ranking" and artifact.parts():
            return [
                {"name": name, "rankings": count, "in": artifact.id}
                for name, count in judgements.annotators(artifact).items()
            ]
        known = artifact.manifest["summary"].get("annotators")
        if artifact.kind != "Preference" or not isinstance(known, dict):
            return []
        given = [e["artifact"] for e in artifact.manifest["inputs"].get("rankings", [])]
        return [{"name": name, **entry, "in": given[0] if given else ""} for name, entry in known.items()]

    def artifact_curves(self, request: Request) -> Response:
        artifact = self.rendering.artifact(request)
        live = "unfinished" in artifact.manifest
        metrics = metrics_of(self.store, None if live else artifact, artifact.id)
        svg = (
            charts.curves({self.rendering.title(artifact.id): metrics}, curves_of(_stage(artifact)))
            if metrics is not None
            else ""
        )
        return self.rendering.page("artifact_curves.jinja", artifact=artifact, svg=svg, live=live)

    # -- people and answers ------------------------------------------------------------------------------------------

    def annotator(self, request: Request) -> Response:
        artifact, name = self.rendering.artifact(request), request.path_params["annotator"]
        if artifact.kind != "Ranking":
            raise UserError(f"{artifact.id} holds no rankings, but {artifact.kind} rows.")
        found = judgements.unlike_others(artifact, name)
        return self.rendering.page(
            "annotator.jinja",
            artifact=artifact,
            title=self.rendering.title(artifact.id),
            annotator=name,
            found=found[:MOST_ANSWERS],
            total=len(found),
            ranking=row_view.ranking,
        )

    def people(self, request: Request) -> Response:
        """How people do at what a stage asks them, while they are at work and after."""
        artifact = self.rendering.artifact(request)
        function = _stage(artifact).oversight
        if not function:
            raise UserError(f"{artifact.id} was not made by people: there is nobody to look at.")
        found: list[People] = []
        fault = ""
        try:
            module, _, name = function.partition(":")
            found = getattr(import_module(module), name)(artifact)
        except FlywheelError as error:  # the page asks again by itself
            fault = redacted(str(error))
        part = "people_live.jinja" if "hx-request" in request.headers else "people.jinja"
        title, live = self.rendering.title(artifact.id), "unfinished" in artifact.manifest
        return self.rendering.page(part, artifact=artifact, title=title, live=live, people=found, fault=fault)

    def answers(self, request: Request) -> Response:
        """The answers behind a number of an evaluation's table."""
        artifact, asked = self.rendering.artifact(request), request.query_params
        model, column = asked.get("model", ""), asked.get("metric", "")
        found = judgements.behind(_stage(artifact), artifact, column)
        if found is None:
            raise UserError(f"nothing is known of the answers behind `{column}` in {artifact.id}.")
        metric, against = found
        reference = artifact.manifest["summary"].get("reference")
        table: dict[str, dict[str, Any]] = artifact.read_json("table.json")
        values: dict[str, Any] = {
            "artifact": artifact,
            "title": self.rendering.title(artifact.id),
            "model": model,
            "column": column,
            "metric": metric,
            "line": table.get(model, {}),
        }
        if against and reference and reference != model:
            pairs = judgements.compared(artifact, model, reference, metric)
            counts = {outcome: sum(p.outcome == outcome for p in pairs) for outcome in ("won", "tied", "lost")}
            only = asked.get("outcome", "")
            pairs = [pair for pair in pairs if not only or pair.outcome == only]
            return self.rendering.page(
                "outcomes.jinja",
                **values,
                reference=reference,
                pairs=pairs[:MOST_ANSWERS],
                total=len(pairs),
                counts=counts,
                only=only,
            )
        measured = judgements.measured(artifact, model, metric)
        return self.rendering.page("measured.jinja", **values, measured=measured[:MOST_ANSWERS], total=len(measured))

    def compare(self, request: Request) -> Response:
        """Answers of two models side by side; blind, who wrote which is told when one asks."""
        artifact, asked = self.rendering.artifact(request), request.query_params
        if "table.json" not in artifact.manifest["files"] or artifact.kind != "Verdict":
            raise UserError(f"{artifact.id} is no evaluation: it holds no answers of several models.")
        models = list(artifact.read_json("table.json"))
        first, second = asked.get("a", models[0]), asked.get("b", models[-1])
        metric = asked.get("metric", "") or next(
            (found[0] for c in ("gold_win_rate",) if (found := judgements.behind(_stage(artifact), artifact, c))), ""
        )
        pairs = judgements.compared(artifact, first, second, metric, blind="blind" in asked)
        return self.rendering.page(
            "compare.jinja", artifact=artifact, title=self.rendering.title(artifact.id), models=models, a=first, b=second, blind="blind" in asked,
            pairs=pairs[:MOST_ANSWERS], total=len(pairs), prompts=len({pair.subject for pair in pairs}),
        )  # fmt: skip


def _stage(artifact: Artifact) -> type[Stage]:
    try:
        return load(artifact.manifest["stage"]["kind"])
    except UserError:  # no longer installed
        return Stage
