"""A small run with something of everything that people look at, made without a model: stages that write down what they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS, ToolMessages, row_id, wide
from engine.store.store import Store

OWN = "document.title='owned';window.owned=1"
HOSTILE = f'<script>{OWN}</script><img src=x onerror="{OWN}"><b hx-get="/" hx-trigger="load">x</b> {{{{ 7*7 }}}}'
WORDS = ["the", "wheel", "turns", "and", "stores", "its", "turning", "for", "later", "use", "by", "the", "river"]
DOCUMENTS = 130
QUESTIONS = [f"What is the capital of country {i}?" for i in range(6)]


def said(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def document(i: int) -> dict[str, Any]:
    text = HOSTILE if i == 3 else f"Text {i}: {' '.join(WORDS[: 3 + i % 11])}" + (", twice" if i % 7 == 0 else "")
    return {
        "id": row_id("Document", i),
        "parents": [],
        "text": text,
        "source": "pages.txt",
        "offset": 100 * i,
        "score": (i * 37 % 101) / 7,
    }


class Told(Stage):
    """Commits the rows that are in a file: `kept`, `rejected`, and what else an artifact holds."""

    takes = {
        name: port(*DATASETS, "Model", many=True, optional=True)
        for name in ("documents", "prompts", "models", "rankings")
    }
    random = True
    file: str

    def run(self, job: Job) -> None:
        told: dict[str, Any] = json.loads(Path(self.file).read_text())
        for name, value in told.get("files", {}).items():
            (job.output / name).write_text(json.dumps(value))
        for step, loss in enumerate(told.get("losses", []), 1):
            job.metric(step, loss=loss)
        for who, (tokens_in, tokens_out, cost) in told.get("spent", {}).items():
            job.spend(who, tokens_in=tokens_in, tokens_out=tokens_out, cost=cost)
        if told.get("summary"):
            job.summary(**told["summary"])
        if told.get("kept"):
            rejected = told.get("rejected")
            # In two parts, so that a page goes on over the end of a file.
            half = max(1, len(told["kept"]) // 2)
            job.commit(
                "00000", _table(told["kept"][:half], job.gives), pa.Table.from_pylist(rejected) if rejected else None
            )
            if told["kept"][half:]:
                job.commit("00001", _table(told["kept"][half:], job.gives))


def _table(rows: list[dict[str, Any]], kind: str) -> pa.Table:
    schema = DATASETS[kind]
    names = list(dict.fromkeys(name for row in rows for name in row))
    forms = {name: schema.field(name).type for name in names if name in schema.names}
    if any(wide(row.get("messages")) for row in rows):
        forms["messages"] = ToolMessages
    return pa.table({name: pa.array([row.get(name) for row in rows], forms.get(name)) for name in names})


def build(store: Store, folder: Path) -> dict[str, Artifact]:
    """The run `small`: stage -> artifact."""
    made: dict[str, Artifact] = {}
    entries: dict[str, Any] = {}

    def stage(name: str, kind: str, gives: str, inputs: dict[str, list[str]], **told: Any) -> None:
        file = folder / f"{name}.json"
        file.write_text(json.dumps(told))
        one = type("ToldKind", (Told,), {"gives": gives})(file=str(file), seed=5)
        given = {p: {label: made[label] for label in labels} for p, labels in inputs.items()}
        made[name] = carry_out(store, kind, one, given)
        ports = {p: [[label, made[label].id] for label in labels] for p, labels in inputs.items()}
        entries[name] = {"artifact": made[name].id, "kind": kind, "identity": {}, "inputs": ports}

    documents = [document(i) for i in range(DOCUMENTS)]
    stage("pages", "read", "Document", {}, kept=documents)
    near = [
        {
            **documents[i],
            "reason": "near_duplicate",
            "detail": "jaccard 0.91",
            "failed": False,
            "kept_id": documents[i - 1]["id"],
            "jaccard": 0.91,
        }
        for i in (8, 9)
    ]
    near[1]["kept_id"] = documents[7]["id"]
    short = {
        **documents[10],
        "reason": "min_words",
        "detail": "2 words, expected 3",
        "failed": False,
        "kept_id": None,
        "jaccard": None,
    }
    kept = [d for i, d in enumerate(documents) if i not in (8, 9, 10)]
    stage("unique", "dedup", "Document", {"documents": ["pages"]}, kept=kept, rejected=[*near, short])
    tool = [
        said("user", "What is the time?"), said("assistant", None, tool_calls='[{"function": {"name": "clock", "arguments": "{}"}}]'),
        said("tool", "noon", name="clock"), said("assistant", "It is noon.", reasoning_content="The clock says noon."),
    ]  # fmt: skip
    keys = ("role", "content", "tool_calls", "name", "reasoning_content")
    tool = [{key: one.get(key) for key in keys} for one in tool]
    chat = {"id": row_id("Conversation", 0), "parents": [kept[0]["id"]], "messages": tool}
    stage(
        "chats",
        "instructions",
        "Conversation",
        {"documents": ["unique"]},
        kept=[chat],
        spent={"judge-9": (1200, 340, 0.5), "writer-2": (80, 20, 1.25)},
    )
    stage("sft", "sft", "Model", {"documents": ["chats"]}, files={"config.json": {}}, losses=[3.0, 2.0, 1.5])
    prompts = [
        {"id": row_id("Prompt", q), "parents": [], "prompt": [said("user", q)], "reference": f"City {i}"}
        for i, q in enumerate(QUESTIONS)
    ]
    stage("questions", "read", "Prompt", {}, kept=prompts)
    rankings: list[dict[str, Any]] = []
    for p in prompts:
        for who in ("ada", "ben", "cleo"):
            # Cleo alone turns the order of the second question round.
            ranks = [3, 1, 2] if who == "cleo" and p is prompts[1] else [1, 2, 3]
            rankings.append({
                "id": row_id("Ranking", p["id"], who), "parents": [p["id"]], "prompt_id": p["id"], "prompt": p["prompt"],
                "candidates": [f"{p['id'][:8]}{n}" for n in range(3)], "completions": [f"First of {p['reference']}", "Second.", "Third."], "ranks": ranks,
                "annotator": who, "annotator_kind": "person",
            })  # fmt: skip
    stage("rankings", "label", "Ranking", {"prompts": ["questions"]}, kept=rankings)
    pairs = [
        {"id": row_id("Preference", p["id"]), "parents": [p["id"]], "prompt_id": p["id"], "prompt": p["prompt"], "chosen": [said("assistant", "The capital is large.")],
         "rejected": [said("assistant", "The capital is small.")], "agreement": 1.0, "annotators": 3}
        for p in prompts
    ]  # fmt: skip
    summary = {
        "agreement": {"alpha": {"value": 0.62, "low": 0.51, "high": 0.71, "prompts": 6}},
        "annotators": {
            name: {"rankings": 6, "reliability": 1.1, "reliability_low": 0.7, "reliability_high": 1.5}
            for name in ("ada", "ben", "cleo")
        },
    }
    stage("preferences", "preferences", "Preference", {"rankings": ["rankings"]}, kept=pairs, summary=summary)
    stage(
        "dpo",
        "dpo",
        "Model",
        {"models": ["sft"], "documents": ["preferences"]},
        files={"config.json": {}},
        losses=[0.7, 0.6, 0.4],
    )
    verdicts: list[dict[str, Any]] = []
    for number, p in enumerate(prompts):
        for model in ("sft", "dpo"):
            utility = float(number % 3) if model == "dpo" else 1.0  # lost, tied, won, and again
            texts: list[tuple[str, float | None, str | None]] = [
                ("sample", None, f"{model} says City {number}"),
                ("utility", utility, None),
                ("accuracy", utility / 2, None),
            ]
            verdicts += [
                {"id": row_id("Verdict", model, p["id"], metric), "parents": [p["id"]], "subject": p["id"], "model": model, "metric": metric, "value": value,
                 "text": text, "sample": 0}
                for metric, value, text in texts
            ]  # fmt: skip
    table = {
        "sft": {
            "accuracy": 0.5,
            "accuracy_low": 0.4,
            "accuracy_high": 0.6,
            "gold_win_rate": 0.5,
            "gold_win_rate_low": 0.5,
            "gold_win_rate_high": 0.5,
        },
        "dpo": {
            "accuracy": 0.51,
            "accuracy_low": 0.31,
            "accuracy_high": 0.71,
            "gold_win_rate": 0.52,
            "gold_win_rate_low": 0.22,
            "gold_win_rate_high": 0.82,
        },
    }
    samples = [
        {
            "prompt": p["prompt"],
            "reference": p["reference"],
            "answers": {m: f"{m} says City {i}" for m in ("sft", "dpo")},
        }
        for i, p in enumerate(prompts[:2])
    ]
    files = {"table.json": table, "samples.json": samples}
    stage(
        "results",
        "evaluate",
        "Verdict",
        {"models": ["sft", "dpo"], "prompts": ["questions"]},
        kept=verdicts,
        files=files,
        summary={"reference": "sft", "table": table, "prompts": 6},
    )
    store.update_run("small", lambda record: {"recipe": "small.yaml", "stages": entries})
    other = {**entries["sft"], "inputs": {}}
    store.update_run("other", lambda record: {"recipe": "other.yaml", "stages": {"sft": other}})
    return made
