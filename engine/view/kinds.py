"""Stage kinds in words: what `stages` and `schema` print."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

from engine.stage.stage import kinds, load
from engine.view.output import put


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


def describe_kind(kind: str) -> None:
    """Print a stage kind's documentation and fields."""
    stage = load(kind)
    put(cleandoc(stage.__doc__ or ""))
    for name, port in stage.takes.items():
        put(
            f"  takes {name}: {' or '.join(port.kinds)}{' (any number)' if port.many else ''}{' (optional)' if port.optional else ''}"
        )
    put(f"  gives {stage.gives}\n")
    for name, field in stage.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        put(f"  {name}: {field.description or ''} ({default})")
    if stage.template_variables:
        put("\nPrompts that it sends, and what a `template` of your own may use in them:")
    for prompt, variables in stage.template_variables.items():
        put(f"  {prompt}")
        for name, meaning in variables.items():
            put(f"    {{{{ {name} }}}}  {meaning}")


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
