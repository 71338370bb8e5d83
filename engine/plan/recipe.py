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

import datetime
import math
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from engine.errors import UserError, nearest
from engine.plan.credentials import refuse_secrets
from engine.plan.inputs import parse_input
from engine.redaction import redacted
from engine.stage.stage import Stage, load
from engine.store.run_records import LONGEST, misnamed
from engine.text.visible import visible

TOP = {"name": str, "description": str, "seed": int, "store": str, "executor": str, "stages": dict}
EXECUTORS = ("local", "ray")
# libyaml's where PyYAML was built with it: a tenth of the time.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
EIGHTS = re.compile(r"[-+]?0[0-7_]*[0-7][0-7_]*")
LARGEST = 16 << 20  # bytes of a recipe
# Of a recipe, which has some hundred values and no number of so many digits.
MOST_VALUES, DEEPEST, DIGITS = 100_000, 100, 100
SHOWN = 1500  # characters of a message
ABOUT = 600  # characters of what a recipe is for
# What a value may be; the rest of YAML's types (`!!set`, `!!binary`) has no order, or is no text.
TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")
}
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
    """A parsed recipe.

    Attributes:
        base: the folder that relative paths in it are relative to.
        about: its `description`, or the comment that its file begins with; empty where there is neither.
    """

    name: str
    seed: int
    steps: dict[str, Step]
    base: Path
    file: str
    store: str | None = None
    lines: Lines = field(default_factory=lambda: {})
    executor: str | None = None
    about: str = ""


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe file.

    Args:
        overrides: `STAGE.FIELD=VALUE` (the value is YAML) or `seed=VALUE`, as `--set` takes them.

    Raises:
        UserError: with file, line and the nearest valid spelling.
    """
    file = Path(path)
    text = _text(file)
    data, lines = parse_yaml(text, str(file))
    for override in overrides or []:
        _override(data, override)
    return replace(build_recipe(data, lines, str(file), file.parent), about=_about(text, data.get("description") or ""))


def _about(text: str, description: str) -> str:
    """What a recipe is for, on one line: what it says itself, or the first paragraph of the comment that its file begins with."""
    told = description.split()
    for line in text.splitlines() if not told else ():
        words = line.lstrip("#").strip()
        if not line.startswith("#") or (told and not words):
            break
        if words and not words.startswith("yaml-language-server"):
            told.append(words)
    return visible(" ".join(told), one_line=True)[:ABOUT]


def _text(file: Path) -> str:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe or /dev/zero would never end
            raise UserError(f"{file} is no file that can be read as a recipe{', but a folder' * file.is_dir()}.")
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"there is no recipe {file}.{_instead(file)}") from None
    except (OSError, ValueError) as error:  # a NUL in its name
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{_brief(str(file))} can't be read as a recipe: {told}.") from error
    if len(data) > LARGEST:
        raise UserError(f"{file} has more than {LARGEST:,} bytes: that is no recipe.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: a recipe is UTF-8; the byte 0x{data[error.start]:02x} here is not.") from error


def _instead(file: Path) -> str:
    """What may have been meant: a recipe beside it, or one to start from."""
    from engine.plan.starters import starters

    try:
        beside = [str(one) for one in file.parent.glob("*.y*ml")]
    except (OSError, ValueError):
        beside = []
    if file.name.partition(".")[0] in {one.name for one in starters()} and file.parent == Path():
        return f" `flywheel new {file.name.partition('.')[0]}` writes one of that name."
    return nearest(str(file), beside)


def build_recipe(data: dict[str, Any], lines: Lines, file: str, base: Path) -> Recipe:
    """Turn parsed YAML into a recipe; `file` is what error messages call it."""

    def fail(where: tuple[str | int, ...], text: str) -> UserError:
        line = next((lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines), 1)
        return UserError(f"{file}:{line}: {_short(text)}")

    refuse_secrets(data, fail)
    for key in data:
        if key not in TOP:
            raise fail((key,), f"`{key}` is not a recipe key.{nearest(str(key), TOP)} Keys: {', '.join(TOP)}.")
        if not isinstance(data[key], TOP[key]) or isinstance(data[key], bool):
            raise fail((key,), f"`{key}` should be a {TOP[key].__name__}, found {data[key]!r}.")
    name = data.get("name")
    if name is not None and (told := misnamed(name)):
        raise fail(("name",), told)
    stages = data.get("stages")
    if not stages:
        raise fail(("stages",), "a recipe needs `stages:`, a mapping of names to stages.")
    seed = data.get("seed", 0)
    if not 0 <= seed < 2**63:
        raise fail(("seed",), f"`seed` should be 0 or more and less than 2^63, found {seed}.")

    if data.get("executor", "local") not in EXECUTORS:
        known = nearest(data["executor"], EXECUTORS)
        raise fail(("executor",), f"`executor` should be `local` or `ray`, found {_brief(data['executor'])}.{known}")

    steps: dict[str, Step] = {}
    for name, body in stages.items():
        where = ("stages", name)
        if (
            not isinstance(name, str)
            or not name.replace("_", "").replace("-", "").isalnum()
            or len(name.encode()) > LONGEST
        ):
            raise fail(
                where, f"a stage's name is at most {LONGEST} letters, digits, `-` and `_`; found {_brief(name)}."
            )
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
            loc = _written(first["loc"], fields)  # empty where it is the fields together that don't fit
            found = "" if first["type"] == "missing" or not loc else f", found {redacted(repr(first['input']))}"
            hint = ""
            if first["type"] == "extra_forbidden":
                hint, found = _nested_hint(stage_class, loc), ""
            field = f" `{'.'.join(str(part) for part in loc)}`:" if loc else ""
            hint += _yaml_hint(first["input"]) if first["type"] == "string_type" else ""
            told = first["msg"].removeprefix("Value error, ").rstrip(".")
            if first["type"] == "value_error" and redacted(str(first["input"])) in told:
                found = ""  # our own words have it already
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
    return Recipe(name, seed, steps, base, file, data.get("store"), lines, data.get("executor"))


def called(recipe: Recipe, name: str | None) -> Recipe:
    """The recipe under another name (`--as`).

    Raises:
        UserError: a run can't be called so.
    """
    if name is None:
        return recipe
    if told := misnamed(name):
        raise UserError(f"`--as`: {told}")
    return replace(recipe, name=name)


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


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"


def _brief(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else f"`{value}`"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _written(loc: tuple[int | str, ...], fields: dict[str, Any]) -> tuple[int | str, ...]:
    """The place of a fault as the recipe has it: without the names that pydantic gives to the members of a union."""
    path: list[int | str] = []
    at: Any = fields
    for part in loc:
        if (isinstance(at, dict) and part in at) or (isinstance(at, list) and isinstance(part, int)):
            at = cast(Any, at)[part]
            path.append(part)
        elif isinstance(at, dict) and part == loc[-1]:  # a key that is missing
            path.append(part)
    return tuple(path)


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
    if visible(path, one_line=True) != path or len(path) > SHOWN or any("\ud800" <= c <= "\udfff" for c in value):
        raise UserError(f"`--set {_short(visible(text, one_line=True))}`: expected STAGE.FIELD=VALUE in UTF-8.")
    if not equals:
        raise UserError(f"`--set {text}`: expected STAGE.FIELD=VALUE.")
    parsed = setting(text, value)
    if "." not in path:
        data[path] = parsed
        return
    stage, *fields = path.split(".")
    stages = data.get("stages") or {}
    if stage not in stages:
        raise UserError(f"`--set {text}`: there is no stage `{stage}`.{nearest(stage, stages)}")
    target: Any = stages[stage]
    for at, key in enumerate(fields):
        if not isinstance(target, dict):
            raise UserError(
                f"`--set {text}`: `{'.'.join([stage, *fields[:at]])}` is {target!r}, which has no `{key}` in it."
            )
        if at == len(fields) - 1:
            target[key] = parsed
        else:
            target = cast(dict[str, Any], target).setdefault(key, {})


def setting(option: str, value: str) -> Any:
    """The value of a `--set`: YAML; a template (`{{ question }}`, which YAML would take for a mapping) is text as it is.

    Raises:
        UserError: it is not YAML.
    """
    if value.lstrip().startswith(("{{", "{%", "{#")):
        return value
    return _parse(value, f"`--set {_short(option)}`", None)[0]


def parse_yaml(text: str, file: str) -> tuple[dict[str, Any], Lines]:
    """Parse YAML safely; also tell the line (from 1) of every key, by its path.

    Raises:
        UserError: not YAML, not a mapping, a key that stands twice, or a number that YAML reads in another way than people do.
    """
    data, lines = _parse(text, file, 1)
    if not isinstance(data, dict):
        raise UserError(f"{file}:1: a recipe is a mapping with `stages:`, found {type(data).__name__}.")
    return cast(dict[str, Any], data), lines


def _parse(text: str, file: str, first: int | None) -> tuple[Any, Lines]:
    """`first`: the number of the text's first line; None where a message has no use for it."""
    lines: Lines = {}
    above: set[int] = set()

    def fail(mark: Any, told: str) -> UserError:
        line = f":{mark.line + first}" if first is not None and mark else ""
        return UserError(f"{_short(file)}{line}: {_short(told)}")

    def walk(node: yaml.Node, path: tuple[str | int, ...]) -> None:
        if len(lines) > MOST_VALUES or id(node) in above or len(path) > DEEPEST:
            raise fail(node.start_mark, "this holds itself, or repeats itself by aliases (`*name`), without end.")
        above.add(id(node))
        if node.tag not in TAGS and node.tag.startswith("tag:yaml.org,2002:") and "python" not in node.tag:
            raise fail(node.start_mark, f"`!!{node.tag.rpartition(':')[2]}` is no type that a recipe has a use for.")
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise fail(
                        key.start_mark,
                        "a key is a word, found a list or a mapping. A text that begins with `{` or `[` stands in quotes.",
                    )
                if key.value in seen:
                    raise fail(key.start_mark, f"`{key.value}` stands twice in the same place.")
                if key.value != "<<":
                    seen.add(key.value)
                lines[(*path, key.value)] = key.start_mark.line + 1
                walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*path, index)] = value.start_mark.line + 1
                walk(value, (*path, index))
        elif told := _misread(node):
            raise fail(node.start_mark, told)
        above.discard(id(node))

    try:
        if fault := _boundless(LOADER(text)):
            raise fail(*fault)
        loader = LOADER(text)
        root = loader.get_single_node()
        data = None
        if root is not None:
            walk(root, ())
            data = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise fail(error.problem_mark, f"this is not YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: this is not YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise UserError(f"{file}: lists or mappings stand in each other too deeply.") from None
    except (
        ValueError,
        OverflowError,
        TypeError,
    ) as error:  # a date of month 13, a number of 5,000 digits, a key that is a list
        raise UserError(f"{file}: this is not YAML: {error}.") from error
    return data, lines


def _boundless(loader: Any) -> tuple[Any, str] | None:
    """Where a text is too deep, or has too much in it, for the parser, which is C that recurses; None where it is neither."""
    depth = count = 0
    while event := loader.get_event():
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        count += 1
        if depth > DEEPEST:
            return event.start_mark, f"lists or mappings stand in each other more than {DEEPEST} deep."
        if count > 3 * MOST_VALUES:
            return event.start_mark, f"this has more than {MOST_VALUES:,} values."
    return None


def _misread(node: yaml.Node) -> str | None:
    """What is wrong with a number that YAML 1.1 reads in eights or in sixties, where nobody means that."""
    kind, value = node.tag.rpartition(":")[2], str(node.value)
    if kind not in ("int", "float") or getattr(node, "style", None):  # in quotes it is text
        return None
    if len(value) > DIGITS:
        return f"this number has {len(value)} digits."
    if ":" in value:
        return f'`{value}` is a number in sixties to YAML. Write the number, or "{value}" in quotes for text.'
    bare = value.replace("_", "").lower()
    if kind == "float" and not math.isfinite(float(bare.replace(".inf", "inf").replace(".nan", "nan"))):
        return f"`{value}` is no number that can be reckoned with."
    if kind == "int" and len(bare) > 18 and abs(int(bare, 0 if bare.lstrip("+-")[:1] == "0" else 10)) >= 2**63:
        return f"`{value}` is larger than any number that is used, 2^63 - 1."
    if kind == "int" and EIGHTS.fullmatch(value):
        plain = value[: value.startswith("-")] + (value.lstrip("+-0_") or "0")
        return f'`{value}` is a number in eights to YAML, {int(value.replace("_", ""), 8)}. Write {plain}, or "{value}" in quotes for text.'
    return None


def _yaml_hint(value: Any) -> str:
    """Why a field for text holds something else, though the recipe has a word there."""
    if isinstance(value, bool):
        return " YAML reads yes, no, on, off, true and false as truth values: put the word in quotes."
    if isinstance(value, int | float | datetime.date):
        kind = "date" if isinstance(value, datetime.date) else "number"
        return f" YAML reads this as a {kind}: put it in quotes."
    return ""
