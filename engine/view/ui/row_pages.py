"""Pages of rows: a table that one searches, a row as one reads it, its lineage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from engine.errors import UserError
from engine.store.artifact import Artifact, read_artifact
from engine.store.schema import DATASETS
from engine.text.visible import visible
from engine.view import row_view
from engine.view.graph_picture import graph_svg
from engine.view.lineage import inputs_of, rows_by_id
from engine.view.removed import POINTERS
from engine.view.ui.lineage_boxes import boxes_of_row
from engine.view.ui.rendering import Rendering, address, link_to
from engine.view.ui.row_query import RowQuery, Searches

PAGE = 50  # rows


@dataclass
class RowPages:
    rendering: Rendering
    searches: Searches = field(default_factory=Searches)

    def rows(self, request: Request) -> Response:
        artifact = self.rendering.artifact(request)
        return self.rendering.page(
            "rows.jinja", artifact=artifact, **self.values(request, artifact, "rejected" in request.query_params)
        )

    def values(self, request: Request, artifact: Artifact, rejected: bool) -> dict[str, Any]:
        """What a table of rows is made of: those that the address asks for."""
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
        told = asked.get("start", "")[:12]
        start = int(told) if told.isdecimal() else 0
        fault, places, search = "", list[int](), None
        try:
            search = self.searches.search(artifact, query, rejected)
            places = search.page(start, PAGE + 1)
        except UserError as error:
            fault = str(error)
        more, places = len(places) > PAGE, places[:PAGE]
        found = files.at(places)
        chosen = [name for name in asked.getlist("column") if name in files.fields]
        return {
            "files": files, "query": query, "start": start, "page": PAGE, "fault": fault, "places": places, "found": found,
            "rejected": rejected, "chosen": chosen, "shown": chosen or _columns(files.fields, found),
            "known": search.matches if search and (search.done or not query.narrows) else None,
            "more": more, "reasons": artifact.manifest["rejected"], "here": [(n, v) for n, v in asked.multi_items() if n not in ("start", "sort", "order")],
        }  # fmt: skip

    def count(self, request: Request) -> Response:
        """How many rows a query finds in all: it looks at every one, while the first page is there already."""
        artifact = self.rendering.artifact(request)
        values = self.values(request, artifact, "rejected" in request.query_params)
        total = self.searches.search(artifact, values["query"], values["rejected"]).count()
        return HTMLResponse(f"{total:,}")

    def row(self, request: Request) -> Response:
        artifact, place = self.rendering.artifact(request), request.path_params["place"]
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
        return self.rendering.page(
            "row.jinja", artifact=artifact, title=self.rendering.title(artifact.id), row=row, place=place, rejected=rejected, rows=files.rows,
            passages=row_view.sections(row), facts=row_view.facts(row),
            held=[(name, others[i], row_view.changes(row_view.plain(others[i]), row_view.plain(row))) for name, i in against if i in others],
            removed=[(one, row_view.changes(row_view.plain(row), row_view.plain(one))) for one in removed],
            pair=row_view.changes(pair[1], pair[0]) if pair and all(pair) else [],
        )  # fmt: skip

    def row_lineage(self, request: Request) -> Response:
        artifact = self.rendering.artifact(request)
        rows = self.searches.files(artifact, "rejected" in request.query_params).at([request.path_params["place"]])
        if not rows:
            raise UserError("there is no such row.")
        boxes = boxes_of_row(self.rendering.store, artifact, {"parents": [], **rows[0]}, link_to)
        return HTMLResponse(visible(graph_svg(boxes, "where this row comes from and what came of it")))

    def find_row(self, request: Request) -> Response:
        """From a row's id to its page: in this artifact, or in what it was made from."""
        artifact, row = self.rendering.artifact(request), request.path_params["row"]
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
