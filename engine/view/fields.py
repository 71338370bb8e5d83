"""The fields of a stage kind in words: what may stand there, what stands there if nothing does, what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel

from engine.text.visible import visible

TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
}
DEEPEST = 4  # a mapping in a mapping; a tree of them would have no end
LONGEST = 60  # characters of a default


@dataclass(frozen=True)
class FieldWords:
    """One field.

    Attributes:
        path: its name; a mapping's fields follow as `FIELD.NAME`, as `--set` takes them, and those of a list's as `FIELD[].NAME`.
        accepts: what may stand there.
        default: what stands there where the recipe says nothing.
        what: its documentation.
    """

    path: str
    accepts: str
    required: bool
    default: str
    what: str

    @property
    def told(self) -> str:
        """All of it but the name, on one line."""
        stands = "required" if self.required else f"default {self.default}"
        return f"{self.accepts}; {stands}." + (f" {self.what}" if self.what else "")


def fields_of(model: type[BaseModel]) -> list[FieldWords]:
    """Every field of a configuration, each followed by those of the mapping that it may hold."""
    schema = model.model_json_schema()
    return list(_Words(schema.get("$defs", {})).fields(schema, "", ()))


class _Words:
    """Args:
    definitions: of the JSON Schema, by name.
    """

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._told = set[str]()

    def fields(self, schema: dict[str, Any], prefix: str, above: tuple[str, ...]) -> Iterator[FieldWords]:
        required = schema.get("required", [])
        for name, node in cast("dict[str, dict[str, Any]]", schema.get("properties", {})).items():
            told = " ".join(str(node.get("description", "")).split())
            path = f"{prefix}{name}"
            default = json.dumps(node.get("default"), ensure_ascii=False)
            default = "left out" if default == "null" else default.replace('"', "") if default[0] == '"' else default
            shown = default if len(default) <= LONGEST else f"{default[:LONGEST]}…"
            yield FieldWords(path, self.accepts(node), name in required, visible(shown, one_line=True) or '""', told)
            for reference in self._references(node):
                if reference in above or reference in self._told or len(above) >= DEEPEST:
                    continue
                self._told.add(reference)
                within = {"array": "[].", "names": ".NAME."}.get(self._held(node), ".")
                yield from self.fields(self._definitions[reference], path + within, (*above, reference))

    def accepts(self, node: dict[str, Any]) -> str:
        """What a JSON Schema lets stand, in words."""
        if reference := _name(node):
            return self.accepts(self._definitions[reference])
        if choices := node.get("anyOf") or node.get("oneOf"):
            told = [self.accepts(one) for one in choices if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(told))
        if "allOf" in node:
            return self.accepts(node["allOf"][0])
        if "const" in node:
            return str(node["const"])
        if "enum" in node:
            return " | ".join(str(value) for value in node["enum"])
        kind = str(node.get("type", "any value"))
        if kind == "array":
            if items := node.get("prefixItems"):
                return f"[{', '.join(self.accepts(one) for one in items)}]"
            return f"list of {self.accepts(node.get('items', {}))}"
        more = node.get("additionalProperties")
        if kind == "object" and isinstance(more, dict):
            return f"mapping of names to {self.accepts(cast('dict[str, Any]', more))}"
        return TYPES.get(kind, kind) + _range(node)

    def _references(self, node: dict[str, Any]) -> list[str]:
        """Definitions of mappings that may stand there, also as items of a list."""
        if reference := _name(node):
            return [reference] if self._definitions[reference].get("properties") else []
        inner = [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]
        items = [one for one in (node.get("items"), node.get("additionalProperties")) if isinstance(one, dict)]
        return [name for one in [*inner, *items] for name in self._references(one)]

    def _held(self, node: dict[str, Any]) -> str:
        """Whether mappings stand there in a list alone (`array`), or under names of the recipe's own (`names`)."""
        inner = [one for one in node.get("anyOf", [node]) if one.get("type") != "null"]
        if all(one.get("type") == "array" for one in inner):
            return "array"
        return "names" if any(isinstance(one.get("additionalProperties"), dict) for one in inner) else ""


def _name(node: dict[str, Any]) -> str | None:
    return str(node["$ref"]).rpartition("/")[2] if "$ref" in node else None


def _range(node: dict[str, Any]) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    bounds = [
        *([f"{low:g} or more"] if low is not None else []),
        *([f"more than {above:g}"] if above is not None else []),
        *([f"{high:g} or less"] if high is not None else []),
        *([f"less than {below:g}"] if below is not None else []),
    ]
    return f", {', '.join(bounds)}" if bounds else ""
