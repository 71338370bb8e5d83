"""The card of a dataset or model: what it is, what it was made from, under which licences, how good it is, by which recipe.

Written beside a model when it is finished, and anew on export, when it may have been evaluated. No part of the digest:
the same weights are the same weights wherever they were evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import yaml

from engine.redaction import redacted_json
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.text.markdown import block, code, plain
from engine.text.visible import visible
from engine.view import card_facts

UNSTATED = "not stated"
SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"), (10**12, "1B<n<1T"),
)  # fmt: skip


def card(store: Store, name: str, manifest: dict[str, Any], format: str | None = None) -> str:
    """The card as Markdown, with the YAML front matter that model hubs read.

    Args:
        name: the artifact's id.
        format: of another program, that a model is exported in.
    """
    line = list(_ancestry(store, name, manifest))
    artifact = Artifact(store, name, manifest)
    splits = artifact.splits() if format is None else {}
    licences = sorted({licence for _, _, licence in line if licence and licence != UNSTATED})
    front: dict[str, Any] = {"tags": ["flywheel", manifest["stage"]["kind"]]}
    if len(licences) == 1 and not any(licence == UNSTATED for _, _, licence in line):
        front["license"] = visible(licences[0], one_line=True)
    if manifest["kind"] == "dataset":
        front |= _dataset(manifest, splits)
    elif format:
        front["tags"].append(format)
    else:
        front["library_name"] = "peft" if manifest["schema"] == "Adapter" else "transformers"
    if manifest["kind"] == "model" and (base := _base(store, line)):
        front["base_model"] = base
    lines = ["---", yaml.safe_dump(front).strip(), "---", "", f"# {plain(store.title(artifact))}", ""]
    kind = manifest["schema"]
    if manifest["rows"]:
        by_split = ", ".join(f"{sum(files.values()):,} {plain(split)}" for split, files in splits.items())
        lines += [
            f"{manifest['rows']:,} rows of {kind}{f' ({by_split})' if by_split else ''}: {card_facts.IS[kind]}.",
            "",
        ]
    else:
        lines += [f"{card_facts.IS[kind].capitalize()}.", ""]
    if told := _how(line):
        lines += [f"Made by Flywheel: {told}.", ""]
    if lost := sum(manifest["rejected"].values()):
        told = ", ".join(f"{count:,} {code(reason)}" for reason, count in manifest["rejected"].items())
        where = "are in `rejected/`, each with its reason" if manifest["kind"] == "dataset" else "were left out"
        lines += [f"{lost:,} rows did not make it and {where}: {told}.", ""]
    if numbers := _table(manifest["summary"]):
        lines += ["## In numbers", "", *numbers, ""]
    lines += [
        "## Evaluation",
        "",
        *(list(_evaluations(store, name)) or ["Not evaluated in the store it comes from."]),
        "",
    ]
    unstated = any(licence == UNSTATED for _, _, licence in line)
    if format is None:
        lines += [*card_facts.columns(artifact)]
    lines += [*card_facts.agreement(store, artifact, line)]
    lines += ["## Made from", ""]
    if line[1:]:
        lines += ["| name | artifact | kind | stage | rows | licence of the source |", "|---|---|---|---|---|---|"]
        for i, m, licence in line[1:]:
            title = store.title(Artifact(store, i, m))
            lines += [
                f"| {plain(title) if title != i else ''} | {code(i, cell=True)} | {m['schema']} | {plain(m['stage']['kind'])} | "
                f"{m['rows'] or ''} | {plain(licence)} |"
            ]
    else:
        lines += ["- files"]
    if unstated:
        lines += ["", f"Where a licence is `{UNSTATED}`, look at the source before you share what was made from it."]
    lines += ["", *card_facts.costs(store, line), *card_facts.limits(artifact, line, unstated)]
    recipe = redacted_json({i: {"kind": m["stage"]["kind"], **m["stage"]["config"]} for i, m, _ in reversed(line)})
    lines += ["## Recipe", "", *block(yaml.safe_dump(recipe, sort_keys=False, width=100).strip(), "yaml"), ""]
    lines += [
        "## Versions",
        "",
        *(f"- {plain(package)} {plain(version)}" for package, version in manifest["packages"].items()),
        "",
    ]
    lines += [f"Digest `{manifest['digest']}`, key `{manifest['key']}`.", ""]
    return "\n".join(lines)


def _how(line: list[tuple[str, dict[str, Any], str]]) -> str:
    """The stages that led here, the first of them first, in one sentence."""
    steps = [m["stage"]["kind"] for _, m, _ in reversed(line) if m["stage"]["kind"] != "external"]
    return ", then ".join(plain(step) for step in dict.fromkeys(steps))


def _base(store: Store, line: list[tuple[str, dict[str, Any], str]]) -> str | None:
    """The model from outside that this one was made from, by its nearest name that a hub could have."""
    for id, manifest, _ in line[1:]:
        if manifest["kind"] == "model" and manifest["stage"]["kind"] == "external":
            name = Artifact(store, id, manifest).name
            return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else None
    return None


def _dataset(manifest: dict[str, Any], splits: dict[str, Any]) -> dict[str, Any]:
    """What a hub wants to know of a dataset: where its data is, how large it is, what it is for."""
    kind, rows = manifest["schema"], manifest["rows"]
    files: Any = "data/*." + ("arrow" if kind == "TokenBlock" else "parquet")
    if splits:
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    facts: dict[str, Any] = {
        "configs": [{"config_name": "default", "data_files": files}],
        "size_categories": [next((name for most, name in SIZES if rows < most), "n>1T")],
    }
    if kind in ("Document", "Prompt", "Conversation", "Candidate", "TokenBlock"):
        facts["task_categories"] = ["text-generation"]
    elif kind == "Preference":
        facts["task_categories"] = ["reinforcement-learning"]
    if "models" in manifest["summary"]:  # which wrote it
        facts["tags"] = ["flywheel", manifest["stage"]["kind"], "synthetic"]
    return facts


def _ancestry(store: Store, name: str, manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """This artifact and all it was made from, nearest first, each once, with the licence of those that were read."""
    waiting, seen = [(name, manifest)], {name}
    while waiting:
        current, facts = waiting.pop(0)
        given = [entry["artifact"] for entries in facts["inputs"].values() for entry in entries]
        config = facts["stage"]["config"]
        stated = config.get("license") or facts["summary"].get("license")  # a recipe says it, or the file itself
        yield current, facts, "" if given else str(stated or UNSTATED)
        for one in given:
            found = store.get(one)
            if found and one not in seen:
                seen.add(one)
                waiting.append((one, found.manifest))


def _evaluations(store: Store, name: str) -> Iterator[str]:
    """What evaluations in the store found about this model, as tables."""
    for artifact in store.artifacts():
        given = [entry for entries in artifact.manifest["inputs"].values() for entry in entries]
        labels = {entry["name"] for entry in given if entry["artifact"] == name}
        if not labels or "table.json" not in artifact.manifest["files"]:
            continue
        table: dict[str, dict[str, Any]] = artifact.read_json("table.json")
        for label in sorted(labels & table.keys()):
            yield f"By {code(artifact.id)}, as {code(label)}:"
            yield ""
            yield from _table(table[label])
            yield ""


def _table(values: dict[str, Any]) -> list[str]:
    """Names and values, with 95 % intervals where they are known: as `NAME_low` and `NAME_high`, or as `low` and `high` beside `value`.

    People who judged are counted (`card_facts.agreement`), and not named where anybody may read it.
    """
    known = dict(_flat("", {name: value for name, value in values.items() if name != "annotators"}))
    rows: list[str] = []
    for name, value in known.items():
        stem, _, end = name.rpartition("_")
        if end in ("low", "high") and stem in known:
            continue
        if name.endswith((", low", ", high")) and f"{name.rpartition(', ')[0]}, value" in known:
            continue
        short = name.removesuffix(", value")
        sides = (f"{short}, low", f"{short}, high") if short != name else (f"{name}_low", f"{name}_high")
        low, high = (known.get(side) for side in sides)
        between = f" ({_number(low)} to {_number(high)})" if low is not None and high is not None else ""
        rows.append(f"| {plain(short)} | {_number(value)}{between} |")
    return ["| | |", "|---|---|", *rows] if rows else []


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else plain(value)


def _flat(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, int | float | str]]:
    """Numbers and words, those inside of others by both names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{key}, ", cast("dict[str, Any]", value))
        elif isinstance(value, (int, float, str)) and value != "":
            yield f"{prefix}{key}", value
