"""The plan: a recipe wired up, type-checked, put in order and keyed. Nothing runs and nothing is written here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

from engine.errors import UserError, nearest
from engine.plan.identity import differences, folder_of, identify, key_of
from engine.plan.inputs import External, PlainInput, Say, parse_input, resolve, silent
from engine.plan.recipe import Recipe, Step, names_in
from engine.stage.stage import Device, Port, load
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS
from engine.store.store import Store

LOOKED_AT = 1000  # prompts


@dataclass(frozen=True)
class Planned:
    """One stage of the plan.

    Attributes:
        inputs: port -> (label, source) where source is a planned stage or something external.
        folder: its artifact's folder in the store.
        cached: whether that artifact is there already.
        why: why it is not, in words (empty when cached).
        rows: rows that it gave (cached) or is expected to give, where known.
        forecast: what is known of its result ahead (`Stage.forecast`), if that was asked for.
    """

    step: Step
    inputs: dict[str, list[tuple[str, Planned | External]]]
    identity: dict[str, Any]
    key: str
    gives: str
    cached: bool
    why: list[str] = field(default_factory=lambda: [])
    rows: int | None = None
    forecast: dict[str, Any] = field(default_factory=lambda: {})

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def folder(self) -> str:
        return folder_of(self.step.kind, self.key)


def make_plan(
    recipe: Recipe, store: Store, only: list[str] | None = None, device: Device | None = None, say: Say = silent
) -> list[Planned]:
    """Wire, check and key every stage of a recipe, in an order in which they can run.

    Args:
        only: names of stages; the plan then holds these and what they need.
        device: what models will be on; with it, stages tell what they need of it.
        say: is told what of a folder is left out, being no data.

    Raises:
        UserError: a cycle, an input that fits no port, a port without input, a file that is not there.
    """
    for name in only or []:
        if name not in recipe.steps:
            raise UserError(f"{recipe.file}: there is no stage `{name}`.{nearest(name, recipe.steps)}")
    before = (store.run(recipe.name) or {}).get("stages", {})
    planned: dict[str, Planned] = {}
    for name in _order(recipe, only):
        stage = _plan_step(recipe, recipe.steps[name], planned, store, before, say=say)
        if device:
            stage.forecast.update(_forecast(recipe, stage, store, device))
        planned[name] = stage
    for stage in list(planned.values()):
        if audit := _audit(stage, planned):
            step, inputs = audit
            planned[step.name] = _plan_step(recipe, step, planned, store, before, inputs)
    return list(planned.values())


Inputs = dict[str, list[tuple[str, Planned | External]]]


def _audit(stage: Planned, planned: dict[str, Planned]) -> tuple[Step, Inputs] | None:
    """The check that this stage asks for, wired to all that its models were trained on; None if there is nothing to check."""
    wanted = stage.step.config.audit()
    if wanted is None:
        return None
    checked = load(wanted.kind)
    against = stage.inputs.get(wanted.rows, [])
    rows = {source.name for _, source in against}
    for other in planned.values():
        if other.step.kind == wanted.kind and rows <= {source.name for _, source in other.inputs.get("against", [])}:
            return None  # the recipe spells it out
    feeds: list[tuple[str, Planned | External]] = []
    seen: set[str] = set()

    def visit(source: Planned | External) -> None:
        if source.name in seen:
            return
        seen.add(source.name)
        if _kind(source) in checked.takes["training"].kinds:
            feeds.append((source.name, source))
        elif isinstance(source, Planned):  # a model, or what its rows became on their way to it: token blocks
            for given in source.inputs.values():
                for _, made_of in given:
                    visit(made_of)

    for _, model in stage.inputs.get(wanted.models, []):
        visit(model)
    if not feeds or not against:
        return None
    name = f"{stage.name}_{wanted.kind}"
    step = Step(
        name if name not in planned else f"{name}_audit", wanted.kind, checked.model_validate({}), None, stage.step.line
    )
    return step, {"training": feeds, "against": against}


def _order(recipe: Recipe, only: list[str] | None) -> list[str]:
    """Topological order, stable in the recipe's own order."""
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise UserError(
                f"{recipe.file}:{recipe.steps[name].line}: these stages take from each other in a circle: {circle}."
            )
        path.append(name)
        for source in names_in(recipe.steps[name].given):
            if isinstance(source, str) and source in recipe.steps:
                visit(source)
        path.pop()
        order.append(name)

    for name in only or recipe.steps:
        visit(name)
    return order


def _plan_step(
    recipe: Recipe,
    step: Step,
    planned: dict[str, Planned],
    store: Store,
    before: dict[str, Any],
    inputs: dict[str, list[tuple[str, Planned | External]]] | None = None,
    say: Say = silent,
) -> Planned:
    where = (
        f"{recipe.file}:{recipe.lines.get(('stages', step.name, 'from'), step.line)}: stage `{step.name}` ({step.kind})"
    )
    inputs = _wire(step, planned, recipe, store, where, say) if inputs is None else inputs
    keys = {port: [(label, source.key) for label, source in given] for port, given in inputs.items()}
    try:
        identity = identify(step.kind, step.config, keys, recipe.base)
    except UserError as error:
        raise UserError(f"{recipe.file}:{step.line}: stage `{step.name}`: {error}") from None
    key = key_of(identity)
    gives = step.config.output({port: [_kind(source) for _, source in given] for port, given in inputs.items()})
    folder = folder_of(step.kind, key)
    found = store.get(folder)
    lack = found.incomplete() if found else store.damage.get(folder)
    if found and not lack:
        return Planned(step, inputs, identity, key, gives, True, [], found.rows)
    known = {port: [s.rows if isinstance(s, Planned) else None for _, s in given] for port, given in inputs.items()}
    sums = {port: sum(cast(list[int], rows)) for port, rows in known.items() if None not in rows}
    rows = step.config.expected_rows(sums) if len(sums) == len(known) else None
    why = [f"its artifact is damaged: {lack}"] if lack else _why(before.get(step.name), identity, inputs)
    return Planned(step, inputs, identity, key, gives, False, why, rows)


def _forecast(recipe: Recipe, stage: Planned, store: Store, device: Device) -> dict[str, Any]:
    given = {
        port: [
            {**(s.forecast if isinstance(s, Planned) else _known(store, s)), **longest_prompt(store, s)}
            for _, s in sources
        ]
        for port, sources in stage.inputs.items()
    }
    try:
        told = stage.step.config.forecast(given, device)
    except UserError as error:
        raise UserError(f"{recipe.file}:{stage.step.line}: stage `{stage.name}`: {error}") from None
    return {**told, **_facts(store.get(stage.folder) if stage.cached else None)}


def known(store: Store, source: Planned | External, artifact: Artifact | None) -> dict[str, Any]:
    """What is known of an input when a stage begins (`Stage.footprint`): of rows `rows` and `bytes`, of a model `weights`, in bytes, 0 if
    they are nowhere yet.

    Args:
        artifact: what a stage of the plan made.
    """
    if isinstance(source, Planned):
        facts = {**source.forecast, **_facts(artifact)}
        facts.pop("memory", None)  # that its own stage took
    else:
        facts, artifact = _known(store, source), store.get(source.folder)
    size = sum(entry["bytes"] for entry in artifact.manifest["files"].values()) if artifact else 0
    if _kind(source) in DATASETS:
        return {**facts, "rows": artifact.rows, "bytes": size} if artifact else facts
    if isinstance(source, External) and source.place and source.place.is_dir():
        size = sum(file.stat().st_size for file in source.place.rglob("*") if file.is_file())
    return {**facts, "weights": size}


def longest_prompt(store: Store, source: Planned | External) -> dict[str, int]:
    """Characters of the longest prompt among the first rows of an input of prompts (`longest`), where they are there already."""
    if _kind(source) != "Prompt":
        return {}
    found = store.get(source.folder)
    if found:
        rows = next(found.batches(columns=["prompt"], rows=LOOKED_AT), None)
    elif isinstance(source, External) and source.reading:
        from engine.reader.typed_rows import sample

        try:
            rows, _ = sample(list(source.files), source.reading, LOOKED_AT)
        except UserError:  # the checks say it
            return {}
    else:
        return {}
    prompts: list[Any] = rows.column("prompt").to_pylist() if rows is not None else []
    return {"longest": max((sum(len(turn["content"] or "") for turn in prompt or []) for prompt in prompts), default=0)}


def _known(store: Store, source: External) -> dict[str, Any]:
    file = source.place / "config.json" if source.place else None
    if file and file.exists():
        return {"config": json.loads(file.read_text())}
    return _facts(store.get(source.folder))


def _facts(artifact: Artifact | None) -> dict[str, Any]:
    if artifact is None:
        return {}
    facts: dict[str, Any] = {"summary": artifact.manifest["summary"]}
    if "config.json" in artifact.manifest["files"]:
        facts["config"] = artifact.read_json("config.json")
    return facts


def _kind(source: Planned | External) -> str:
    return source.gives if isinstance(source, Planned) else source.kind


def _wire(
    step: Step, planned: dict[str, Planned], recipe: Recipe, store: Store, where: str, say: Say
) -> dict[str, list[tuple[str, Planned | External]]]:
    """Give every input to a port, checking kinds and counts."""
    takes = type(step.config).takes
    inputs: dict[str, list[tuple[str, Planned | External]]] = {}

    def source_of(given: Any, accepts: tuple[str, ...]) -> Planned | External:
        if isinstance(given, dict):
            wanted: str | PlainInput = parse_input(cast(dict[str, Any], given))
        elif (wanted := str(given)) in planned:
            return planned[wanted]
        try:
            return resolve(wanted, recipe.base, accepts, store, say)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    if isinstance(step.given, dict) and "path" not in step.given:
        for port_name, value in cast(dict[str, Any], step.given).items():
            if port_name not in takes:
                raise UserError(f"{where} has no input `{port_name}`.{nearest(port_name, takes)} {_ports(takes)}")
            labelled = isinstance(value, dict) and "path" not in value
            named = cast(dict[str, Any], value) if labelled else {_label(n): n for n in names_in(value)}
            for label, name in named.items():
                source = source_of(name, takes[port_name].kinds)
                if _kind(source) not in takes[port_name].kinds:
                    raise UserError(
                        f"{where} takes {' or '.join(takes[port_name].kinds)} as `{port_name}`, but `{_label(name)}` gives "
                        f"{_kind(source)}."
                    )
                inputs.setdefault(port_name, []).append((label, source))
    else:
        everything = tuple(kind for port in takes.values() for kind in port.kinds)
        for name in names_in(step.given):
            source = source_of(name, everything)
            name = _label(name)
            fits = [p for p, port in takes.items() if _kind(source) in port.kinds]
            open_ports = [p for p in fits if takes[p].many or p not in inputs] or fits
            if not fits:
                raise UserError(f"{where} can't take from `{name}`, which gives {_kind(source)}. {_ports(takes)}")
            required = [p for p in open_ports if not takes[p].optional]
            if len(open_ports) > 1 and len(required) != 1:
                raise UserError(
                    f"{where}: `{name}` ({_kind(source)}) fits {' and '.join(f'`{p}`' for p in open_ports)}; "
                    f"say which: `from: {{{open_ports[0]}: {name}, ...}}`."
                )
            inputs.setdefault((required or open_ports)[0], []).append((name, source))
    for port_name, port in takes.items():
        count = len(inputs.get(port_name, []))
        if not count and not port.optional:
            raise UserError(f"{where} needs `{port_name}` ({' or '.join(port.kinds)}). {_ports(takes)}")
        if count > 1 and not port.many:
            names = ", ".join(f"`{label}`" for label, _ in inputs[port_name])
            raise UserError(f"{where} takes one `{port_name}`, found {count}: {names}.")
    return inputs


def _label(given: Any) -> str:
    return str(given["path"] if isinstance(given, dict) else given)


def _ports(takes: dict[str, Port]) -> str:
    told = [
        f"`{name}` ({' or '.join(port.kinds)}{', any number' if port.many else ''}{', optional' if port.optional else ''})"
        for name, port in takes.items()
    ]
    return f"It takes {', '.join(told)}." if told else "It takes no input."


def _why(
    old: dict[str, Any] | None, identity: dict[str, Any], inputs: dict[str, list[tuple[str, Planned | External]]]
) -> list[str]:
    """What differs from the last run of the stage with this name."""
    if old is None or "identity" not in old:
        return ["has not run yet"]
    was: dict[str, Any] = old["identity"]
    reasons = differences(was, identity)
    if was["kind"] != identity["kind"]:
        return reasons
    for port in sorted({*was["inputs"], *identity["inputs"]}):
        if was["inputs"].get(port) != identity["inputs"].get(port):
            anew = [
                f"`{label}`"
                for label, source in inputs.get(port, [])
                if not (isinstance(source, Planned) and source.cached)
            ]
            reasons.append(f"input {port} changed" + (f": {', '.join(anew)}" if anew else ""))
    return reasons or ["its artifact is not in the store"]


def names_that_move(store: Store, run: str, plan: list[Planned]) -> list[Planned]:
    """Stages whose name stands for something else than what this plan makes of it."""
    there = (store.run(run) or {}).get("stages", {})
    return [stage for stage in plan if stage.name in there and there[stage.name]["artifact"] != stage.folder]


def moves_in_words(store: Store, run: str, moved: list[Planned], verb: tuple[str, str]) -> str:
    """Which names come to stand for something else, and what the recipe has otherwise for it."""
    there = (store.run(run) or {}).get("stages", {})
    changed = {
        stage.name: told
        for stage in moved
        if (entry := there.get(stage.name)) and "identity" in entry
        if (told := differences(entry["identity"], stage.identity))
    }
    names = ", ".join(f"{run}/{stage.name}" for stage in moved[:4]) + (
        f" and {len(moved) - 4} more" if moved[4:] else ""
    )
    because = "; ".join(f"{name}: {', '.join(told)}" for name, told in list(changed.items())[:3])
    return f"{names} {verb[len(moved) > 1]} something else" + (f" ({because})" if because else "")
