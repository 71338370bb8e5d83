"""How a page of `flywheel ui` is written: a template, whatever is in it shown as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from engine.errors import UserError
from engine.redaction import redacted
from engine.store.artifact import Artifact
from engine.store.store import FOLDER, Store
from engine.text.visible import visible
from engine.view import row_view
from engine.view.report.page import as_number, is_web
from engine.view.rows import quote as quoted
from engine.view.spending import in_words
from engine.view.times import date, duration
from engine.view.unfinished import find, read_unfinished, spec_of

HERE = Path(__file__).parent


@dataclass
class Rendering:
    """A store, and the templates of its pages."""

    store: Store

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

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(visible(self.templates.get_template(template).render(**values)), status)

    def artifact(self, request: Request) -> Artifact:
        """What the address names, finished or not.

        Raises:
            UserError: there is no such artifact.
        """
        name = request.path_params["artifact"]
        if FOLDER.fullmatch(name):
            if found := self.store.get(name) or read_unfinished(self.store, name):
                return found
            if name in self.store.damage:
                raise UserError(f"{self.store.damage[name]} `flywheel repair {name}` makes it anew.")
            raise UserError(f"nothing of {name} is in this store yet: its stage has not begun.")
        return find(self.store, name)

    def title(self, name: str) -> str:
        """What people call an artifact, by its folder, finished or not."""
        if found := self.store.get(name):
            return self.store.title(found)
        spec = spec_of(self.store, name) or {}
        return f"{spec['run']}/{spec['stage']}" if spec.get("run") and spec.get("stage") else name


def address(*parts: object, **query: Any) -> str:
    """An address of this site, of parts that may hold anything."""
    told = "/" + "/".join(quote(str(part), safe="") for part in parts)
    return told + (f"?{urlencode(query)}" if query else "")


def link_to(artifact: str, row: str = "") -> str:
    return address("artifact", artifact, "find", row) if row else address("artifact", artifact)


def _json(value: Any) -> str:
    return redacted(json.dumps(value, ensure_ascii=False, default=str))
