"""The pages of `flywheel ui`. Each is read from the store when it is asked for; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from engine.errors import FlywheelError, UserError
from engine.redaction import redacted
from engine.stage.stage import Stage, load
from engine.store.artifact import Artifact, read_artifact
from engine.store.schema import DATASETS
from engine.store.store import Store
from engine.text.visible import visible
from engine.view import row_view
from engine.view.graph_picture import graph_svg
from engine.view.lineage import inputs_of, rows_by_id
from engine.view.removed import POINTERS, largest_clusters
from engine.view.report import charts
from engine.view.report.flow import flow_svg
from engine.view.report.page import as_number, bounded_columns, is_web
from engine.view.rows import quote as quoted
from engine.view.spending import by_answerer, in_words
from engine.view.times import date, duration
from engine.view.ui import judgements
from engine.view.ui.lineage_boxes import boxes_of_artifact, boxes_of_row
from engine.view.ui.row_query import RowQuery, Searches
from engine.view.ui.run_facts import curves_of, metrics_of, run_state
from engine.view.unfinished import find, read_unfinished

HERE = Path(__file__).parent
PAGE = 50  # rows
MOST_ANSWERS = 200  # answers of a page


@dataclass
class Site:
    """The pages over one store."""

    store: Store
    searches: Searches = field(default_factory=Searches)

    def __post_init__(self) -> None:
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        known: dict[str, Any] = {
            "address": address, "date": date, "duration": duration, "number": as_number, "short": row_view.short, "json": _json,
            "in_words": in_words, "web": is_web, "quoted": quoted, "store": self.store.url,
        }  # fmt: skip
        self.templates.globals.update(known)

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
            "/artifact/{artifact}/rows": self.rows,
            "/artifact/{artifact}/count": self.count,
            "/artifact/{artifact}/row/{place:int}": self.row,
            "/artifact/{artifact}/row/{place:int}/lineage": self.row_lineage,
            "/artifact/{artifact}/find/{row}": self.find_row,
            "/artifact/{artifact}/annotator/{annotator:path}": self.annotator,
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
                return self._page("fault.jinja", code, error=redacted(str(error)))

        return answer

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(visible(self.templates.get_template(template).render(**values)), status)

    # -- runs --------------------------------------------------------------------------------------------------------

    def runs(self, request: Request) -> Response:
        states = [run_state(self.store, name) for name in self.store.runs() if self.store.run(name)]
        states.sort(key=lambda state: -(state.began or 0))
        part = "runs_table.jinja" if "hx-request" in request.headers else "runs.jinja"
        return self._page(part, runs=states)

    def run(self, request: Request) -> Response:
        return self._page("run.jinja", **self._run_values(request))

    def run_live(self, request: Request) -> Response:
        return self._page("run_live.jinja", **self._run_values(request))

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
        return self._page("costs.jinja", run=state, stages=[pair for pair in stages if pair[1]], title=self._title)

    def run_curves(self, request: Request) -> Response:
        state = run_state(self.store, request.path_params["run"])
        drawn = [
            (one.stop, svg)
            for one in state.stages
            if (metrics := metrics_of(self.store, one.stop.artifact, one.stop.folder)) is not None
            and (svg := charts.curves({one.stop.name: metrics}, curves_of(one.stop.stage)))
        ]
        return self._page("run_curves.jinja", run=state, drawn=drawn)

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
        return self._page(
            "curves.jinja", known=known, chosen=chosen, svg=charts.curves(series, drawing) if series else ""
        )

    # -- artifacts ---------------------------------------------------------------------------------------------------

    def _artifact(self, request: Request) -> Artifact:
        name = request.path_params["artifact"]
        return self.store.get(name) or read_unfinished(self.store, name) or find(self.store, name)

    def _title(self, name: str) -> str:
        found = self.store.get(name)
        return self.store.title(found) if found else name

    def artifact(self, request: Request) -> Response:
        artifact = self._artifact(request)
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
            "title": self.store.title(artifact),
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
            "told": json.loads(artifact.log("tables.json") or b"[]") if not unfinished else [],
            "histograms": "",
            "curves": metrics_of(self.store, None if unfinished else artifact, artifact.id) is not None,
            "lineage": graph_svg(boxes_of_artifact(self.store, artifact, link_to), "what it was made from")
            if artifact.kind not in DATASETS and not unfinished
            else "",
            "rejected": rejected,
        }
        if artifact.kind in DATASETS or rejected:
            values |= self._rows_values(request, artifact, rejected)
        return self._page("artifact.jinja", **values)

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
        artifact = self._artifact(request)
        live = "unfinished" in artifact.manifest
        metrics = metrics_of(self.store, None if live else artifact, artifact.id)
        svg = (
            charts.curves({self.store.title(artifact): metrics}, curves_of(_stage(artifact)))
            if metrics is not None
            else ""
        )
        return self._page("artifact_curves.jinja", artifact=artifact, svg=svg, live=live)

    # -- rows --------------------------------------------------------------------------------------------------------

    def rows(self, request: Request) -> Response:
        artifact = self._artifact(request)
        return self._page(
            "rows.jinja", artifact=artifact, **self._rows_values(request, artifact, "rejected" in request.query_params)
        )

    def _rows_values(self, request: Request, artifact: Artifact, rejected: bool) -> dict[str, Any]:
        asked = request.query_params
        files = self.searches.files(artifact, rejected)
        equal = tuple(
            (name.removeprefix("is."), value) for name, value in asked.multi_items() if name.startswith("is.") and value
        )
        query = RowQuery(
            asked.get("q", "").strip(),
            asked.get("where", "").strip(),
            equal,
            asked.get("sort", ""),
            asked.get("order") == "down",
        )
        start = max(0, int(asked.get("start", "0"))) if asked.get("start", "0").isdecimal() else 0
        fault, places, search = "", list[int](), None
        try:
            search = self.searches.search(artifact, query, rejected)
            places = search.page(start, PAGE)
        except UserError as error:
            fault = str(error)
        found = files.at(places)
        chosen = [name for name in asked.getlist("column") if name in files.fields]
        return {
            "files": files, "query": query, "start": start, "page": PAGE, "fault": fault, "places": places, "found": found,
            "rejected": rejected, "chosen": chosen, "shown": chosen or _columns(files.fields, found),
            "known": search.matches if search and (search.done or not query.narrows) else None,
            "more": len(places) == PAGE and (search is None or search.page(start + PAGE, 1) != []),
            "reasons": artifact.manifest["rejected"], "here": [(n, v) for n, v in asked.multi_items() if n not in ("start", "sort", "order")],
        }  # fmt: skip

    def count(self, request: Request) -> Response:
        """How many rows a query finds in all: it looks at every one, while the first page is there already."""
        artifact = self._artifact(request)
        values = self._rows_values(request, artifact, "rejected" in request.query_params)
        total = self.searches.search(artifact, values["query"], values["rejected"]).count()
        return HTMLResponse(f"{total:,}")

    def row(self, request: Request) -> Response:
        artifact, place = self._artifact(request), request.path_params["place"]
        rejected = "rejected" in request.query_params
        files = self.searches.files(artifact, rejected)
        found = files.at([place])
        if not found:
            raise UserError(f"{artifact.id} has no row {place:,}: it has {files.rows:,}.")
        row = found[0]
        against = [(name, other) for column, name in POINTERS.items() if (other := row.get(column))]
        others = _others(artifact, {identity for _, identity in against})
        removed: list[dict[str, Any]] = []
        if not rejected and artifact.rejected_parts() and "kept_id" in self.searches.files(artifact, True).fields:
            search = self.searches.search(artifact, RowQuery(equal=(("kept_id", str(row["id"])),)), True)
            removed = self.searches.files(artifact, True).at(search.page(0, PAGE))
        pair = (
            [row_view.plain({"messages": row[side]}) for side in ("chosen", "rejected")]
            if artifact.kind == "Preference" and not rejected
            else []
        )
        return self._page(
            "row.jinja", artifact=artifact, title=self.store.title(artifact), row=row, place=place, rejected=rejected, rows=files.rows,
            passages=row_view.passages(row), facts=row_view.facts(row),
            held=[(name, others[i], row_view.changes(row_view.plain(others[i]), row_view.plain(row))) for name, i in against if i in others],
            removed=[(one, row_view.changes(row_view.plain(row), row_view.plain(one))) for one in removed],
            pair=row_view.changes(pair[1], pair[0]) if pair and all(pair) else [],
        )  # fmt: skip

    def row_lineage(self, request: Request) -> Response:
        artifact = self._artifact(request)
        rows = self.searches.files(artifact, "rejected" in request.query_params).at([request.path_params["place"]])
        if not rows:
            raise UserError("there is no such row.")
        boxes = boxes_of_row(self.store, artifact, {"parents": [], **rows[0]}, link_to)
        return HTMLResponse(visible(graph_svg(boxes, "where this row comes from and what came of it")))

    def find_row(self, request: Request) -> Response:
        """From a row's id to its page: in this artifact, or in what it was made from."""
        artifact, row = self._artifact(request), request.path_params["row"]
        if not self.searches.files(artifact).names and artifact.rows:
            return RedirectResponse(link_to(artifact.id), 303)  # token blocks are no text to read
        for source in [artifact, *_made_from(artifact)]:
            for rejected in (False, True) if source.kind in DATASETS else ():
                if "id" not in self.searches.files(source, rejected).fields:
                    continue
                if places := self.searches.search(source, RowQuery(equal=(("id", row),)), rejected).page(0, 1):
                    mark = "?rejected=1" if rejected else ""
                    return RedirectResponse(address("artifact", source.id, "row", places[0]) + mark, 303)
        raise UserError(f"{artifact.id} has no row `{row}`, nor has what it was made from.")

    # -- people and answers ------------------------------------------------------------------------------------------

    def annotator(self, request: Request) -> Response:
        artifact, name = self._artifact(request), request.path_params["annotator"]
        if artifact.kind != "Ranking":
            raise UserError(f"{artifact.id} holds no rankings, but {artifact.kind} rows.")
        found = judgements.unlike_others(artifact, name)
        return self._page(
            "annotator.jinja",
            artifact=artifact,
            title=self.store.title(artifact),
            annotator=name,
            found=found[:MOST_ANSWERS],
            total=len(found),
            ranking=row_view.ranking,
        )

    def answers(self, request: Request) -> Response:
        """The answers behind a number of an evaluation's table."""
        artifact, asked = self._artifact(request), request.query_params
        model, column = asked.get("model", ""), asked.get("metric", "")
        found = judgements.behind(_stage(artifact), artifact, column)
        if found is None:
            raise UserError(f"nothing is known of the answers behind `{column}` in {artifact.id}.")
        metric, against = found
        reference = artifact.manifest["summary"].get("reference")
        table: dict[str, dict[str, Any]] = artifact.read_json("table.json")
        values: dict[str, Any] = {
            "artifact": artifact,
            "title": self.store.title(artifact),
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
            return self._page(
                "outcomes.jinja", **values, reference=reference, pairs=pairs[:MOST_ANSWERS], counts=counts, only=only
            )
        measured = judgements.measured(artifact, model, metric)
        return self._page("measured.jinja", **values, measured=measured[:MOST_ANSWERS], total=len(measured))

    def compare(self, request: Request) -> Response:
        """Answers of two models side by side; blind, who wrote which is told when one asks."""
        artifact, asked = self._artifact(request), request.query_params
        if "table.json" not in artifact.manifest["files"] or artifact.kind != "Verdict":
            raise UserError(f"{artifact.id} is no evaluation: it holds no answers of several models.")
        models = list(artifact.read_json("table.json"))
        first, second = asked.get("a", models[0]), asked.get("b", models[-1])
        metric = asked.get("metric", "") or next(
            (found[0] for c in ("gold_win_rate",) if (found := judgements.behind(_stage(artifact), artifact, c))), ""
        )
        pairs = judgements.compared(artifact, first, second, metric, blind="blind" in asked)
        return self._page(
            "compare.jinja", artifact=artifact, title=self.store.title(artifact), models=models, a=first, b=second, blind="blind" in asked,
            pairs=pairs[:MOST_ANSWERS], total=len(pairs),
        )  # fmt: skip


def address(*parts: object, **query: Any) -> str:
    """An address of this site, of parts that may hold anything."""
    told = "/" + "/".join(quote(str(part), safe="") for part in parts)
    return told + (f"?{urlencode(query)}" if query else "")


def link_to(artifact: str, row: str = "") -> str:
    return address("artifact", artifact, "find", row) if row else address("artifact", artifact)


def _stage(artifact: Artifact) -> type[Stage]:
    try:
        return load(artifact.manifest["stage"]["kind"])
    except UserError:  # no longer installed
        return Stage


def _columns(fields: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Columns of a table: those that hold something, without ids and numbers of tokens."""
    return [n for n in fields if n not in row_view.QUIET and any(row.get(n) not in (None, "", []) for row in rows)][:9]


def _others(artifact: Artifact, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Rows that a row that did not make it is held against, in this artifact and what it was made from."""
    found: dict[str, dict[str, Any]] = {}
    for source in [artifact, *_made_from(artifact)]:
        if source.kind in DATASETS and ids - found.keys():
            found |= rows_by_id(source, ids - found.keys())
    return found


def _made_from(artifact: Artifact) -> list[Artifact]:
    return [found for name in dict.fromkeys(inputs_of(artifact)) if (found := read_artifact(artifact.store, name))]


def _json(value: Any) -> str:
    return redacted(json.dumps(value, ensure_ascii=False, default=str))
