"""The commands in the documentation run as written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from engine.store.store import Store
from tests.engine.view.ui.served import served
from tests.engine.view.ui.small_run import build as build_small
from tests.training import tiny_chat

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    lines = "\n".join(blocks(page, "console")).splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


def flywheel(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "FLYWHEEL_STORE": str(folder / "store")}
    program = [sys.executable, "-c", "from flywheel.commandline import main; main()"]
    return subprocess.run([*program, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_writing_a_recipe(tmp_path: Path) -> None:
    page = "docs/recipes.md"
    (tmp_path / "notes").mkdir()
    for number in range(4):
        (tmp_path / "notes" / f"{number}.md").write_text(
            f"Note {number}: a wheel that stores turning, for later use.\n"
        )
    (tmp_path / "notes" / "draft.md").write_text("DRAFT: these are words that nobody should read yet.\n")
    (tmp_path / "notes.yaml").write_text(blocks(page, "yaml")[0])
    row = ""
    for command in commands(page):
        assert command[0] == "flywheel"
        arguments = [row if word == "ID" else word for word in command[1:]]
        stop = arguments.index(">") if ">" in arguments else len(arguments)
        done = flywheel(tmp_path, arguments[:stop])
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if command[:3] == ["flywheel", "show", "notes/clean"]:
            row = row or next(word for word in done.stdout.split() if re.fullmatch("[0-9a-f]{32}", word))
        if "--rejected" in command:
            assert "no_drafts" in done.stdout and "DRAFT" in done.stdout
    assert (tmp_path / "out" / "README.md").exists()
    env = {**os.environ, "FLYWHEEL_STORE": str(tmp_path / "store")}
    program = blocks(page, "python")[0] + "\nprint(flywheel.open('notes/clean').to_table()['text'].to_pylist())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "Rows of one's own" in done.stdout, done.stderr


def test_bringing_data(tmp_path: Path) -> None:
    page = "docs/data.md"
    (tmp_path / "own.yaml").write_text(blocks(page, "yaml")[0])
    question = "Which river runs through the old town of Lima before it comes to the sea at Callao"
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.md").write_text(f"An exam asked: {question}? Nobody knew.\n")
    (tmp_path / "pages" / "b.txt").write_bytes("Something else, entirely: a page of its own.\n".encode("utf-16"))
    (tmp_path / "exam.csv").write_text(f'question,answer\n"{question}",Rímac\n')
    (tmp_path / "faq.csv").write_text("title,body,solution,n\nColour,which one,007,1\nSize,how large,12,2\n")
    told: dict[str, str] = {}
    for command in commands(page):
        done = flywheel(tmp_path, command[1:])
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        told[command[1]] = done.stdout
    assert "2 rows: texts" in told["plan"] and "1 row: questions with known answers" in told["plan"]
    assert "a page of its own" in told["show"] and "Nobody knew" not in told["show"]
    (part,) = (tmp_path / "faq" / "data").iterdir()
    rows = pq.read_table(part).to_pylist()
    assert [(row["prompt"][0]["content"], row["reference"]) for row in rows] == [("Colour", "007"), ("Size", "12")]
    assert json.loads(rows[0]["metadata"]) == {"body": "which one", "n": "1"}


def test_curating_text(tmp_path: Path) -> None:
    page = "docs/curation.md"
    exec(blocks(page, "python")[0], {})
    (tmp_path / "corpus.yaml").write_text(blocks(page, "yaml")[0])
    told: dict[str, str] = {}
    for command in commands(page):
        done = flywheel(tmp_path, command[1:])
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        told[" ".join(command[1:])] = done.stdout
    assert "gopher_words" in told["show corpus/clean"] and "no_consoles" in told["show corpus/clean"]
    assert "contaminated" in told["show corpus/safe --rejected"]
    assert "The funnel" in (tmp_path / "corpus.html").read_text()


@pytest.mark.slow
def test_answering_from_documents(tmp_path: Path) -> None:
    from tests.generators.conftest import build_model

    page = "docs/retrieval.md"
    model = build_model(tmp_path / "model", context=2048)
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook" / "travel.txt").write_text(
        "Travel\n======\n\nTrains first.\n\nHotels\n------\nUp to 140 crowns a night.\n"
    )
    (tmp_path / "handbook" / "leave.md").write_text("# Leave\n\nThirty days a year.\n")
    (tmp_path / "finding.yaml").write_text(blocks(page, "yaml")[0])
    (tmp_path / "questions.jsonl").write_text(blocks(page, "json")[0])
    index, told = "", list[str]()
    for command in commands(page):
        words = {"MODEL": str(model), "index=INDEX": f"index={index}"}
        arguments = [words.get(word, word) for word in command[1:]]
        if "MODEL" in command and command[1] == "ask":
            arguments += ["--max-tokens", "4"]
        done = flywheel(tmp_path, arguments)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        index = index or done.stdout.strip()
        told.append(done.stdout)
    asked = [out for command, out in zip(commands(page), told, strict=True) if command[1] == "ask"]
    assert "[1] handbook/travel.txt:6 › Travel › Hotels" in asked[0] and "[1] handbook/travel.txt:6" in asked[1]
    assert json.loads(asked[2])["passages"][0]["source"] == "travel.txt" and "leave.md" not in asked[3]
    assert json.loads(told[-1])["meaning hybrid"]["recall_at_5"] == 1


def test_looking_at_a_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    build_small(store, tmp_path)
    record = store.run("small")
    store.update_run("notes", lambda _: record or {})
    (look, report) = commands("docs/window.md")
    assert look == ["flywheel", "ui"]
    with served(store.url) as (link, _):
        assert "notes" in httpx.get(link, follow_redirects=True).text
    assert flywheel(tmp_path, report[1:]).returncode == 0 and (tmp_path / "notes.html").exists()


def test_the_readme_names_every_stage_kind() -> None:
    from engine.stage.stage import kinds

    readme = (ROOT / "README.md").read_text()
    assert not [kind for kind in kinds() if not kind.startswith("toy_") and f"`{kind}`" not in readme]


PAGES = [
    "examples/plugin/README.md",
    "README.md",
    "CONTRIBUTING.md",
    "AGENTS.md",
    "CHANGELOG.md",
    *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]


def test_what_the_pages_link_to_is_there() -> None:
    gone = [
        f"{page}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text())
        if "://" not in target and not ((ROOT / page).parent / target).exists()
    ]
    assert not gone


def test_every_file_that_a_stranger_looks_for_is_two_steps_from_the_readme() -> None:
    assert "(CONTRIBUTING.md)" in (ROOT / "README.md").read_text()
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Where is what?")[1].split("\n## ")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 12
    files = [target for row in rows for target in re.findall(r"\]\(([^)]+)\)", row)]
    assert len(files) >= 11 and all((ROOT / file).exists() for file in files)


def test_runs_are_named_compared_swept_and_previewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.generators.faulty_server import FaultyServer

    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    page = "docs/runs.md"
    rows = [
        {"prompt": f"What is the number {i} good for?", "completion": f"For counting, {'and more than that ' * n}of course."}
        for i in range(40) for n in range(4)
    ]  # fmt: skip
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told: dict[str, str] = {}
    with FaultyServer(share=0) as server:
        for recipe in blocks(page, "yaml"):
            name = recipe.split()[1]
            (tmp_path / f"{name}.yaml").write_text(recipe.replace("http://127.0.0.1:8000/v1", server.url))
        for command in commands(page):
            done = flywheel(tmp_path, command[1:])
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            told[" ".join(command[1:])] = done.stdout + done.stderr
    assert "beta: 1.0 -> 0.1); what there was stays as best@1" in told["run best.yaml --set kept.beta=0.1"]
    assert "beta: 1.0 -> 0.1" in told["runs best"]
    assert told["compare baseline loose"].startswith(
        "best@1 and loose: 1 of 1 differences that were measured are beyond noise"
    )
    swept = told["sweep best.yaml --over kept.beta=0.1,10 --seeds 2"]
    assert "2 settings, 2 seeds each" in swept and "beyond noise" in swept and (tmp_path / "best-sweep.svg").exists()
    shown = told["preview replies.yaml replies --rows 2"]
    assert (
        "user: What is the number 0 good for?" in shown and "the run: about" in shown and "Nothing was kept." in shown
    )


def test_the_notebook(tmp_path: Path) -> None:
    notebook: Any = nbformat.read(ROOT / "examples/notebook.ipynb", 4)
    last = "made['base'].metrics()['loss'].drop_nulls().to_list(), len(texts.to_table()), made['unique'].rows, lost['reason'].to_list()"
    notebook.cells += [nbformat.v4.new_code_cell(last), nbformat.v4.new_code_cell("flywheel.open('notes/bese')")]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}, allow_errors=True).execute()
    *cells, wrong = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert not [one for outputs in cells for one in outputs if one.output_type == "error"]
    losses, texts, unique, reasons = eval(cells[-1][0].data["text/plain"])  # what this test's own cell says
    assert losses[-1] < losses[0] - 0.5 and texts == unique + len(reasons)
    assert {"duplicate", "long_enough"} <= set(reasons)
    (told,) = wrong[0].traceback  # words and no traceback
    assert told.startswith("UserError: ") and "base" in told


def test_the_tutorial(tmp_path: Path) -> None:
    """Step by step as it is written, the recipe growing, with a tiny model in place of the one it names."""
    page = "docs/tutorial.md"
    model = tiny_chat.save(tmp_path / "model")
    steps = (ROOT / page).read_text().split("\n## ")[1:]
    row, recipe = "", ""
    for step in steps:
        for language, text in re.findall(r"```(\w+)\n(.*?)```", step, re.DOTALL):
            if language == "json":
                (tmp_path / "questions.jsonl").write_text(text)
            elif language == "yaml":
                recipe += text.replace("hub:HuggingFaceTB/SmolLM2-135M-Instruct", str(model))
                (tmp_path / "desk.yaml").write_text(recipe)
            for line in text.splitlines() if language == "console" else ():
                arguments = [row if word == "ID" else word for word in shlex.split(line.removeprefix("$ flywheel "))]
                done = flywheel(tmp_path, arguments)
                assert done.returncode == 0, (line, done.stdout, done.stderr)
                if arguments[1] == "desk/preferences":
                    row = next(word for word in done.stdout.split() if re.fullmatch("[0-9a-f]{32}", word))
    assert (tmp_path / "desk-model" / "config.json").exists() and (tmp_path / "desk.html").exists()
    store = Store(str(tmp_path / "store"))
    assert store.find("desk/sft").manifest["inputs"]["conversations"]
    assert store.find("desk/results").manifest["summary"]["table"]["dpo"]["n"] == 48  # four answers to each of twelve
