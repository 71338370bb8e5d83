"""Artifacts, runs and stage kinds in words: what `show`, `status`, `stages` and `schema` print."""

from __future__ import annotations

import json
from typing import Any

from engine.stage.stage import kinds, load
from engine.store.schema import DATASETS
from engine.store.store import Artifact, Store


def status_of(store: Store) -> list[dict[str, Any]]:
    """One entry a stage of every run: done, under way (has committed partitions or checkpoints) or not."""
    rows: list[dict[str, Any]] = []
    for run in store.runs():
        for name, entry in (store.run(run) or {"stages": {}})["stages"].items():
            artifact = store.get(entry["artifact"])
            begun = store.exists("artifacts", entry["artifact"])
            rows.append({
                "run": run, "stage": name, "kind": entry["kind"], "artifact": entry["artifact"],
                "state": "done" if artifact else "under way" if begun else "gone",
                "rows": artifact.rows if artifact else 0,
            })  # fmt: skip
    known = {row["artifact"] for row in rows}
    for name in store.list("artifacts"):
        if name not in known:
            artifact = store.get(name)
            rows.append({
                "run": "", "stage": "", "kind": name.rpartition("-")[0], "artifact": name,
                "state": "done" if artifact else "under way", "rows": artifact.rows if artifact else 0,
            })  # fmt: skip
    return rows


def turns(messages: list[dict[str, str]] | None) -> str:
    """A conversation on one line."""
    return " ".join(f"{m['role']}: {m['content']}" if m["role"] != "user" else m["content"] for m in messages or [])


def line_of(kind: str, row: dict[str, Any], width: int = 100) -> str:
    """What a person wants to know of a row, on one line."""
    match kind:
        case "Document":
            text = row.get("text", "")
        case "Prompt":
            text = turns(row.get("prompt"))
        case "Conversation":
            text = turns(row.get("messages"))
        case "Candidate":
            text = (
                f"{turns(row.get('completion')).removeprefix('assistant: ')!r}, sample {row.get('sample')} of "
                f"{row.get('model')}, seed {row.get('seed')}, {row.get('sampling')}"
            )
        case "Ranking":
            order = sorted(
                ((rank, text) for rank, text in zip(row["ranks"], row["completions"], strict=True) if rank is not None),
            )
            text = f"{row['annotator']} ({row['annotator_kind']}): " + "; ".join(
                f"{rank}. {text}" for rank, text in order
            )
            width = 160
        case "Preference":
            chosen, rejected = (turns(row[side]).removeprefix("assistant: ") for side in ("chosen", "rejected"))
            text = (
                f"{turns(row.get('prompt'))} → {chosen!r} over {rejected!r} (agreement {row.get('agreement') or 0:.0%})"
            )
            width = 200
        case "Verdict":
            text = f"{row.get('model')}: {row.get('metric')} = {row.get('value')} {row.get('text') or ''}"
        case _:
            text = json.dumps(row, default=str)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def as_json(artifact: Artifact, rows: int, rejected: bool = False) -> dict[str, Any]:
    """The manifest and the first rows (or rejected rows)."""
    table = (artifact.rejected() if rejected else None) if rejected else _head(artifact, rows)
    return {
        "manifest": {key: value for key, value in artifact.manifest.items() if key != "files"},
        "path": str(artifact.path),
        "rows": table.slice(0, rows).to_pylist() if table is not None else [],
    }


def _head(artifact: Artifact, rows: int) -> Any:
    import pyarrow as pa

    if artifact.kind not in DATASETS or artifact.kind == "TokenBlock":
        return None
    batch = next(artifact.batches(rows=max(rows, 1)), None)
    return pa.Table.from_batches([batch]) if batch is not None else None


def print_artifact(artifact: Artifact, rows: int, rejected: bool) -> None:
    """Print what made an artifact, its numbers and some rows."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    manifest = artifact.manifest
    console.print(f"[bold]{artifact.id}[/]  {artifact.kind}" + (f", {artifact.rows:,} rows" if artifact.rows else ""))
    console.print(f"[dim]{artifact.path}[/]", highlight=False)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for port, given in manifest["inputs"].items():
        facts.add_row(port, ", ".join(f"{e['name']} ({e['artifact']})" for e in given))
    config = {k: v for k, v in manifest["stage"]["config"].items() if v not in (None, [], {})}
    for key, value in {**config, **manifest["summary"]}.items():
        text = json.dumps(value, ensure_ascii=False, default=str)
        facts.add_row(key, text if len(text) < 300 else text[:299] + "…")
    timings = manifest["timings"]
    if timings:
        facts.add_row(
            "took", f"{timings['wall_s']:.1f} s, {timings['cpu_s']:.1f} CPU s, {timings['peak_rss_mb']:.0f} MB"
        )
    console.print(facts)
    lost = sum(manifest["rejected"].values())
    if lost:
        share = lost / max(1, lost + artifact.rows)
        console.print(f"\n[bold]{lost:,} rows did not make it[/] ({share:.1%}, {manifest['failed']:,} of them failed):")
        _print_removed(console, artifact, lost + artifact.rows)
    table = artifact.rejected() if rejected else _head(artifact, rows)
    if table is None:
        return
    console.print()
    for row in table.slice(0, rows).to_pylist():
        if rejected:
            detail = f" ({row['detail']})" if row["detail"] else ""
            console.print(f"[yellow]{row['reason']}[/]", end="", highlight=False)
            console.print(f"{detail}  {quote(row, 200)}", markup=False, highlight=False)
        else:
            print_row(console, artifact.kind, row)


def _print_removed(console: Any, artifact: Artifact, total: int) -> None:
    """Each reason with its count, and examples of it beside what they are held against."""
    from engine.view.removed import examples, largest_clusters

    for reason, shown in examples(artifact).items():
        count = artifact.manifest["rejected"][reason]
        console.print(f"  {count:>9,}  [yellow]{reason}[/]  [dim]{count / total:.1%}[/]", highlight=False)
        for example in shown:
            detail = f"({example.row['detail']}) " if example.row.get("detail") else ""
            console.print(f"             {detail}{quote(example.row, 110)}", markup=False, highlight=False)
            evidence = example.row.get("evidence")
            if evidence:
                console.print(f"               in common: {_cut(str(evidence), 110)}", markup=False, highlight=False)
            if example.other is not None:
                console.print(
                    f"               {example.against}: {quote(example.other, 110)}", markup=False, highlight=False
                )
    for cluster in largest_clusters(artifact, count=3, each=1):
        if cluster.size > 2:
            console.print(f"  {cluster.size:>9,}  alike, one kept: ", end="", highlight=False)
            console.print(quote(cluster.kept, 90), markup=False, highlight=False)


def quote(row: dict[str, Any], width: int) -> str:
    """The text of a row that did not make it, whichever of the usual columns it has; else its id."""
    told: list[str] = []
    for name in ("text", "prompt", "messages", "completion", "chosen"):
        value = row.get(name)
        told.append(value if isinstance(value, str) else turns(value) if isinstance(value, list) else "")
    return _cut(" ".join(told), width) or str(row.get("id"))


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


# The columns of a row that are conversations, in the order in which they are read.
SAID = {
    "Conversation": ("messages",),
    "Prompt": ("prompt",),
    "Candidate": ("prompt", "completion"),
    "Preference": ("prompt", "chosen", "rejected"),
}


def print_row(console: Any, kind: str, row: dict[str, Any]) -> None:
    """One row as a person would want to read it: conversations turn by turn, the rest on a line."""
    console.print(f"[dim]{row['id']}[/]", highlight=False)
    if kind not in SAID:
        console.print(line_of(kind, row, 400), markup=False, highlight=False)
        return
    for column in SAID[kind]:
        if kind == "Preference" and column != "prompt":
            console.print(f"  [dim]{column}[/]", highlight=False)
        for message in row[column] or []:
            console.print(f"  [bold cyan]{message['role']}[/]  ", end="")
            console.print(message["content"].replace("\n", "\n    "), markup=False, highlight=False)
    if told := _facts(kind, row):
        console.print(f"  [dim]{told}[/]", highlight=False)


def _facts(kind: str, row: dict[str, Any]) -> str:
    """What else is worth knowing of a row that is a conversation."""
    from rich.markup import escape

    if kind == "Candidate":
        facts = [f"sample {row['sample']} of {row['model']}", f"ended by {row['finish_reason']}"]
        if row.get("token_ids") is not None:
            facts.append(f"{len(row['token_ids'])} tokens")
        if scores := [score for score in row.get("logprobs") or [] if score is not None]:
            facts.append(f"mean log-probability {sum(scores) / len(scores):.2f}")
        if row.get("value") is not None:
            facts.append(f"value {row['value']:.4g}")
        return escape(", ".join(facts))
    if kind == "Preference":
        return escape(f"agreement {row.get('agreement') or 0:.0%} of {row.get('annotators')}")
    return escape(f"reference: {row['reference']}") if row.get("reference") else ""


def describe_kinds() -> list[dict[str, Any]]:
    """Every stage kind: what it takes, gives and does."""
    return [
        {
            "kind": kind,
            "takes": {
                n: " or ".join(p.kinds) + ("..." if p.many else "") + ("?" if p.optional else "")
                for n, p in c.takes.items()
            },
            "gives": c.gives,
            "what": (c.__doc__ or "").strip().split("\n")[0],
        }
        for kind, c in ((kind, load(kind)) for kind in kinds())
    ]


def describe_kind(kind: str) -> None:
    """Print a stage kind's documentation and fields."""
    from inspect import cleandoc

    stage = load(kind)
    print(cleandoc(stage.__doc__ or ""))
    for name, port in stage.takes.items():
        print(
            f"  takes {name}: {' or '.join(port.kinds)}{' (any number)' if port.many else ''}{' (optional)' if port.optional else ''}"
        )
    print(f"  gives {stage.gives}\n")
    for name, field in stage.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        print(f"  {name}: {field.description or ''} ({default})")


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
