"""Stage kinds in words: what `stages` and `schema` print."""

from __future__ import annotations

import shutil
import textwrap
from inspect import cleandoc
from typing import Any

from engine.stage.stage import kinds, load
from engine.view.fields import fields_of


def describe_kinds(only: str | None = None) -> list[dict[str, Any]]:
    """Every stage kind, or one: what it takes, gives and does, and what its prompts may use.

    Raises:
        UserError: there is no such kind.
    """
    return [
        {
            "kind": kind,
            "takes": {
                n: " or ".join(p.kinds) + ("..." if p.many else "") + ("?" if p.optional else "")
                for n, p in c.takes.items()
            },
            "gives": c.gives,
            "what": (c.__doc__ or "").strip().split("\n")[0],
            "template_variables": c.template_variables,
        }
        for kind, c in ((kind, load(kind)) for kind in ([only] if only else kinds()))
    ]


def describe_kind(kind: str) -> str:
    """A stage kind's documentation, what it takes and gives, and its fields, each with what may stand there.

    Raises:
        UserError: there is no such kind.
    """
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    told = [cleandoc(load(kind).__doc__ or "")]
    for title, rows in kind_sections(kind):
        told += ["", f"{title}:"]
        for name, meaning in rows:
            told.append(f"  {name}")
            told += textwrap.wrap(meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(told)


def kind_sections(kind: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """What one wants to know of a stage kind, as titles with names and what they mean.

    Raises:
        UserError: there is no such kind.
    """
    stage = load(kind)
    ports = [
        (name, f"{' or '.join(p.kinds)}{' (any number)' if p.many else ''}{' (optional)' if p.optional else ''}")
        for name, p in stage.takes.items()
    ]
    told = [
        ("Takes (--from)", ports or [("nothing", "it reads files itself, or needs none")]),
        ("Gives", [(stage.gives, "")]),
    ]
    told.append(("Fields (--set FIELD=VALUE)", [(one.path, one.told) for one in fields_of(stage)]))
    for prompt, variables in stage.template_variables.items():
        title = f"A template of your own for the prompt `{prompt}` may use"
        told.append((title, [(f"{{{{ {name} }}}}", meaning) for name, meaning in variables.items()]))
    return told


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe: each stage by its `kind`."""
    choices: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for kind in kinds():
        schema = load(kind).model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        schema["properties"] = {"kind": {"const": kind}, "from": {}, **schema.get("properties", {})}
        schema["required"] = ["kind", *schema.get("required", [])]
        choices.append(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Flywheel recipe",
        "type": "object",
        "required": ["stages"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "description": {"type": "string"},
            "seed": {"type": "integer", "minimum": 0},
            "store": {"type": "string"},
            "stages": {"type": "object", "additionalProperties": {"oneOf": choices}},
        },
        "$defs": definitions,
    }
