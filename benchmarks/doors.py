"""What people bring: chat templates, files, expressions, hidden rows, busy machines, mistakes in recipes. One JSON object.

    python -m benchmarks.doors --json [--only templates files mathematics hidden plan busy]

`templates` takes every chat template that TRL ships, `files` brings thousands of generated files in (benchmarks/parts/door_fuzz.py),
`mathematics` compares verdicts on 500 expressions with plain math-verify's, `hidden` looks for evaluation rows in training text that
is written otherwise, `plan` has mistakes refused before a run and counts what a plan costs, `busy` runs the quickstart's DPO beside
six processes that do nothing but turn (alone on the machine, please).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import Claim, claim
from engine.store.store import Store

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
BROKEN = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"  # without the answers

# A mistake, the stage with it, and words that the refusal has to have.
MISTAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    "a column that is not there": (
        "{kind: filter, from: ./docs.jsonl, keep: {good: \"txt NOT LIKE 'x'\"}}",
        ("txt", "Did you mean `text`"),
    ),
    "a function that is none": (
        '{kind: judge, from: ./answers.jsonl, rules: {good: "len(completion)"}}',
        ("len",),
    ),
    "a function that can't be imported": (
        '{kind: judge, from: ./answers.jsonl, rules: {good: {python: "no_such.rewards:score"}}}',
        ("no_such",),
    ),
    "a template with an unknown name": (
        '{kind: judge, from: ./answers.jsonl, server: {url: "http://127.0.0.1:9/v1", model: m}, rubric: true, '
        'template: "Rate {{ completoin }} of {{ prompt }}"}',
        ("completoin", "Did you mean `completion`"),
    ),
    "a server that is not there": (
        '{kind: candidates, from: {prompts: ./prompts.jsonl}, server: {url: "http://127.0.0.1:9/v1", model: m}}',
        ("127.0.0.1:9", "--offline"),
    ),
    "a model without a usable template": (
        "{kind: sft, from: {model: ./model, conversations: ./chats.jsonl}}",
        ("chat template",),
    ),
    "a file without the columns": (
        "{kind: sft, from: {model: ./model, conversations: ./docs.jsonl}}",
        ("docs.jsonl:1", "messages"),
    ),
}


def templates() -> list[Claim]:
    """Which chat templates train, in SFT and in DPO, and why the others don't."""
    from benchmarks.parts.template_table import rows

    table = rows()
    trained = [row for row in table if row["sft"] and row["dpo"] and row["two turns"]]
    silent = [row["template"] for row in table if row not in trained and not row["reason"]]
    return [
        claim("templates_train", len(trained), "at least 30", len(trained) >= 30, of=len(table), table=table),
        claim("templates_tool_calls", sum(row["tool call"] for row in table), "told", True),
        claim("templates_refused_without_reason", silent, "none", not silent),
    ]


def files() -> list[Claim]:
    """Generated files: every column with every type in every encoding."""
    from benchmarks.parts.door_fuzz import fuzz

    told = fuzz()
    held = told["kept"] + told["rejected"] == told["rows"]
    return [
        claim("files", told["files"], "at least 2000", told["files"] >= 2000, refused=told["refused"]),
        claim("files_tracebacks", told["tracebacks"][:5], "none", not told["tracebacks"]),
        claim("files_rows_accounted_for", told["kept"] + told["rejected"], str(told["rows"]), held and not told["lost"],
              kept=told["kept"], rejected=told["rejected"], lost=told["lost"][:5]),
    ]  # fmt: skip


def mathematics() -> list[Claim]:
    """Verdicts on expressions: x against x, against x in other words, and against another."""
    from benchmarks.parts.expressions import table

    told = table()
    kinds: dict[str, dict[str, int]] = told["kinds"]
    ours, theirs = (sum(kind[who] for kind in kinds.values()) for who in ("ours", "math_verify"))
    behind = [name for name, kind in kinds.items() if kind["ours"] < kind["math_verify"]]
    both = [row for row in told["wrong"] if len(row["wrong"]) > 1]
    return [
        claim("mathematics_right", ours, f"at least math-verify's {theirs}", ours >= theirs, of=sum(k["of"] for k in kinds.values()), kinds=kinds),
        claim("mathematics_kinds_behind", behind, "none", not behind),
        claim("mathematics_wrong", [row for row in told["wrong"] if "ours" in row["wrong"]], "listed", True, both_wrong=len(both)),
    ]  # fmt: skip


def hidden() -> list[Claim]:
    """Evaluation rows in training text, written otherwise: found by decontaminate, and as copies by dedup."""
    from benchmarks.parts.hidden_rows import hidden_rows

    with tempfile.TemporaryDirectory() as name:
        told = hidden_rows(Store(name))
    return [
        {**one, "kinds": told["kinds"]} if one["id"] == "hidden_rows_decontaminate" else one for one in told["claims"]
    ]


def plan() -> list[Claim]:
    """Mistakes that a plan refuses in words, and what the quickstart's plan costs."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _bring(folder)
        for mistake, (stage, words) in MISTAKES.items():
            (folder / "r.yaml").write_text(f"name: r\nstages:\n  it: {stage}\n")
            done = _flywheel(folder, "plan", "r.yaml")
            told = done.stderr.strip()
            held = (
                done.returncode == 2
                and "r.yaml:3" in told
                and "Traceback" not in told
                and all(w in told for w in words)
            )
            found[mistake] = told if held else {"rc": done.returncode, "told": told[-600:], "wanted": words}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = _flywheel(folder, "plan", str(QUICKSTART), "--store", str(folder / "store"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
    wrong = [mistake for mistake, told in found.items() if not isinstance(told, str)]
    return [
        claim("plan_refuses", len(found) - len(wrong), f"{len(found)} mistakes, exit 2 and words for each", not wrong, told=found),
        claim("plan_quickstart_cpu_s", seconds, "under 3", seconds < 3 and done.returncode == 0),
    ]  # fmt: skip


def _bring(folder: Path) -> None:
    """Files of one's own, and a folder of a model whose template leaves out what the assistant says."""
    from benchmarks.parts.template_table import names, tokenizer

    rows: dict[str, dict[str, Any]] = {
        "docs": {"text": "A text."},
        "answers": {"prompt": "Which?", "completion": "This."},
        "prompts": {"prompt": "Which?"},
        "chats": {"prompt": "Which?", "completion": "This."},
    }
    for file, row in rows.items():
        (folder / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
    made = tokenizer(names()[0])
    made.chat_template = BROKEN
    made.save_pretrained(folder / "model")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": len(made)}  # fmt: skip
    (folder / "model" / "config.json").write_text(json.dumps(config))


def _flywheel(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from flywheel.commandline import main; main()"]
    env = {**os.environ, "FLYWHEEL_STORE": str(folder / "store"), "COLUMNS": "400"}
    return subprocess.run([*program, *arguments], cwd=folder, env=env, capture_output=True, text=True)


def busy() -> list[Claim]:
    """The quickstart's DPO alone, and beside six processes that turn."""
    from benchmarks.parts.busy import busy as measure

    told = measure()
    more = {name: value for name, value in told.items() if name not in ("ratio", "bar")}
    return [claim("busy_dpo_ratio", told["ratio"], "at most 5", told["ratio"] <= 5, **more)]


PARTS: dict[str, Callable[[], list[Claim]]] = {
    "templates": templates, "files": files, "mathematics": mathematics, "hidden": hidden, "plan": plan, "busy": busy,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    given = parser.parse_args()
    found: list[Claim] = []
    for name in given.only:
        started = time.process_time()
        own = PARTS[name]()
        seconds = round(time.process_time() - started, 1)
        found += [{**one, "part_cpu_s": seconds} for one in own]
    if not given.json:
        for one in found:
            print(f"{'holds' if one['holds'] else 'FAILS':6} {one['id']}: {one['value']} (bar: {one['bar']})")
            for row in one.get("table", []):
                marks = " ".join(
                    f"{key} {'yes' if row[key] else 'no':3}" for key in ("sft", "dpo", "two turns", "tool call")
                )
                print(f"         {row['template']:<24} {marks} {row['reason']}")
        return
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "doors", **machine, "claims": found}, default=str))


if __name__ == "__main__":
    main()
