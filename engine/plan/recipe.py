"""A recipe: YAML with named stages and what each takes from. Checked whole before anything runs.

    name: quickstart
    seed: 7
    stages:
      docs:   {kind: read, paths: ["docs/*.md"]}
      clean:  {kind: filter, from: docs}
      shards: {kind: tokenize, from: [clean, facts]}        # several artifacts of one kind
      dpo:    {kind: dpo, from: {policy: sft, preferences: prefs}}

`from` is a stage, a list of stages, or port -> stage(s). Without port names each input goes to the only port that accepts
its kind. An input may also be a file, a folder or `hub:NAME`, or a mapping with `path` that says how it is read (see
`engine.plan.inputs`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from engine.errors import UserError, nearest
from engine.plan.inputs import parse_input
from engine.stage.stage import Stage, load

TOP = {"name": str, "description": str, "seed": int, "store": str, "stages": dict}
# libyaml's where PyYAML was built with it: a tenth of the time.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Lines = dict[tuple[str | int, ...], int]


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, by the name the recipe gives it.

    Attributes:
        given: its `from`, as written.
        line: where it stands in the file.
    """

    name: str
    kind: str
    config: Stage
    given: Any
    line: int


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe. `base` is the folder that relative paths in it are relative to."""

    name: str
    seed: int
    steps: dict[str, Step]
    base: Path
    file: str
    store: str | None = None
    lines: Lines = field(default_factory=lambda: {})


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe file.

    Args:
        overrides: `STAGE.FIELD=VALUE` (the value is YAML) or `seed=VALUE`, as `--set` takes them.

    Raises:
        UserError: with file, line and the nearest valid spelling.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no recipe {file}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} can't be read as a recipe: {error}.") from error
    data, lines = parse_yaml(text, str(file))
    for override in overrides or []:
        _override(data, override)
    return build_recipe(data, lines, str(file), file.parent)


def build_recipe(data: dict[str, Any], lines: Lines, file: str, base: Path) -> Recipe:
    """Turn parsed YAML into a recipe; `file` is what error messages call it."""

    def fail(where: tuple[str | int, ...], text: str) -> UserError:
        line = next((lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines), 1)
        return UserError(f"{file}:{line}: {text}")

    for key in data:
        if key not in TOP:
            raise fail((key,), f"`{key}` is not a recipe key.{nearest(str(key), TOP)} Keys: {', '.join(TOP)}.")
        if not isinstance(data[key], TOP[key]) or isinstance(data[key], bool):
            raise fail((key,), f"`{key}` should be a {TOP[key].__name__}, found {data[key]!r}.")
    stages = data.get("stages")
    if not stages:
        raise fail(("stages",), "a recipe needs `stages:`, a mapping of names to stages.")
    seed = data.get("seed", 0)
    if seed < 0:
        raise fail(("seed",), f"`seed` should be 0 or more, found {seed}.")

    steps: dict[str, Step] = {}
    for name, body in stages.items():
        where = ("stages", name)
        if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
            raise fail(where, f"a stage's name is letters, digits, `-` and `_`; found `{name}`.")
        if not isinstance(body, dict) or "kind" not in body:
            raise fail(where, f"stage `{name}` needs a mapping with `kind:`.")
        body = cast(dict[str, Any], body)
        try:
            stage_class = load(str(body["kind"]))
        except UserError as error:
            raise fail((*where, "kind"), str(error)) from None
        fields = {key: value for key, value in body.items() if key not in ("kind", "from")}
        for key in fields:
            if key not in stage_class.model_fields:
                known = [*stage_class.model_fields, "kind", "from"]
                raise fail(
                    (*where, key),
                    f"`{key}` is not a field of `{body['kind']}`.{nearest(str(key), known)} "
                    f"Fields: {', '.join(sorted(stage_class.model_fields))}.",
                )
        if stage_class.random and fields.get("seed") is None:
            fields["seed"] = seed
        try:
            config = stage_class.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            loc = first["loc"]  # empty where it is the fields together that don't fit
            found = "" if first["type"] == "missing" or not loc else f", found {first['input']!r}"
            hint = ""
            if first["type"] == "extra_forbidden":
                hint, found = _nested_hint(stage_class, loc), ""
            field = f" `{'.'.join(str(part) for part in loc)}`:" if loc else ""
            told = first["msg"].removeprefix("Value error, ").rstrip(".")
            raise fail((*where, *loc), f"stage `{name}`:{field} {told}{found}.{hint}") from None
        steps[name] = Step(name, str(body["kind"]), config, body.get("from"), lines.get(where, 1))

    for step in steps.values():
        if step.given is None and any(not port.optional for port in type(step.config).takes.values()):
            takes = ", ".join(
                f"{n} ({' or '.join(p.kinds)})" for n, p in type(step.config).takes.items() if not p.optional
            )
            raise fail(("stages", step.name), f"stage `{step.name}` ({step.kind}) needs `from:`; it takes {takes}.")
        for value in names_in(step.given):
            if isinstance(value, dict):
                try:
                    parse_input(cast(dict[str, Any], value))
                except UserError as error:
                    raise fail(("stages", step.name, "from"), f"stage `{step.name}`: {error}") from None
                continue
            if not isinstance(value, str):
                raise fail(("stages", step.name, "from"), f"`from` holds names of stages, found {value!r}.")
            if value not in steps and not is_external(value):
                raise fail(
                    ("stages", step.name, "from"),
                    f"stage `{step.name}` takes from `{value}`, which is no stage of this recipe.{nearest(value, steps)} "
                    "A file or folder starts with `./` or `/`, a hub model with `hub:`, another artifact of the store with `store:`.",
                )
    name = data.get("name") or Path(file).stem
    return Recipe(name, seed, steps, base, file, data.get("store"), lines)


def is_external(name: str) -> bool:
    """Whether an input is a file, a folder, a URL or a hub name rather than a stage."""
    return name.startswith(("./", "../", "/", "~", "hub:", "store:")) or "://" in name


def names_in(given: Any) -> list[Any]:
    """All inputs in a `from`, whatever its shape: names, and mappings with `path` (see `engine.plan.inputs.PlainInput`)."""
    if given is None:
        return []
    if isinstance(given, dict) and "path" in given:
        return [given]
    if isinstance(given, dict):
        return [name for value in cast(dict[str, Any], given).values() for name in names_in(value)]
    if isinstance(given, list):
        return [name for value in cast(list[Any], given) for name in names_in(value)]
    return [given]


def _nested_hint(stage_class: type[Stage], loc: tuple[int | str, ...]) -> str:
    """The nearest spelling for a key inside a nested field, from the stage's JSON Schema."""
    known = {
        key
        for definition in stage_class.model_json_schema().get("$defs", {}).values()
        for key in definition.get("properties", {})
    }
    return nearest(str(loc[-1]), known)


def _override(data: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"`--set {text}`: expected STAGE.FIELD=VALUE.")
    parsed = yaml.safe_load(value)
    if "." not in path:
        data[path] = parsed
        return
    stage, *fields = path.split(".")
    stages = data.get("stages") or {}
    if stage not in stages:
        raise UserError(f"`--set {text}`: there is no stage `{stage}`.{nearest(stage, stages)}")
    target = stages[stage]
    for key in fields[:-1]:
        target = target.setdefault(key, {})
    target[fields[-1]] = parsed


def parse_yaml(text: str, file: str) -> tuple[dict[str, Any], Lines]:
    """Parse YAML safely; also tell the line (from 1) of every key, by its path.

    Raises:
        UserError: not YAML, not a mapping, or a key that stands twice.
    """
    lines: Lines = {}

    def walk(node: yaml.Node, path: tuple[str | int, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    raise UserError(f"{file}:{key.start_mark.line + 1}: `{key.value}` stands twice in the same place.")
                if key.value != "<<":
                    seen.add(key.value)
                lines[(*path, key.value)] = key.start_mark.line + 1
                walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*path, index)] = value.start_mark.line + 1
                walk(value, (*path, index))

    try:
        loader = LOADER(text)
        root = loader.get_single_node()
        data = None
        if root is not None:
            walk(root, ())
            data = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{file}:{line}: this is not YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: this is not YAML: {error}.") from error
    if not isinstance(data, dict):
        raise UserError(f"{file}:1: a recipe is a mapping with `stages:`, found {type(data).__name__}.")
    return cast(dict[str, Any], data), lines
