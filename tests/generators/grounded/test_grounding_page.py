"""What docs/grounding.md says can be written can be, and its commands run."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from engine.stage.stage import load
from flywheel.commandline import main
from generators.grounded.support import first_unsupported
from tests.generators.faulty_server import FaultyServer
from tests.test_docs import ROOT, blocks, commands

PAGE = "docs/grounding.md"


def test_every_stage_on_the_page_is_one() -> None:
    for block in blocks(PAGE, "yaml"):
        for body in yaml.safe_load(block).values():
            stage = load(body["kind"])
            stage.model_validate({key: value for key, value in body.items() if key not in ("kind", "from")})
            assert set(body.get("from", {})) <= set(stage.takes)


def test_the_code_says_what_the_page_says() -> None:
    said = StringIO()
    with redirect_stdout(said):
        exec(blocks(PAGE, "python")[0], {})
    lines = said.getvalue().splitlines()
    assert (
        lines[0].startswith("“The shop closes at 17:30.”: 17:30 stands in none")
        and lines[1] == "1.0 0.6666666666666666 True"
    )
    assert lines[2] == "Refusals(precision=1.0, recall=1.0)"


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few pages of the handbook, its own questions, and a server that writes one question to each passage."""
    shutil.copytree(ROOT / "recipes" / "rag_or_finetune" / "2026", tmp_path / "handbook")
    facts = [
        json.loads(line) for line in (ROOT / "recipes" / "rag_or_finetune" / "facts.jsonl").read_text().splitlines()
    ]
    terms = [one for one in facts if (tmp_path / "handbook" / f"{one['document']}.md").exists()]
    rows = [
        {"messages": [{"role": "user", "content": one["question"]}, {"role": "assistant", "content": one["statement"]}]}
        for one in terms
    ]
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answer(messages: list[dict[str, str]], seed: int) -> str:
        passage = messages[-1]["content"].split("Here is a passage:")[1].split("Write one question")[0]
        quote = next(line for line in passage.splitlines() if len(line.split()) > 8).strip("- ")
        return json.dumps({"question": f"What about {' '.join(quote.split()[:5])}?", "answer": quote, "quote": quote})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
    with FaultyServer(share=0, answer=answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        for line in commands(PAGE):
            monkeypatch.setattr("sys.argv", line)
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code, line
    raft, made = (pq.read_table(next((tmp_path / name / "data").iterdir())).to_pylist() for name in ("raft", "made"))
    assert len(raft) > 0.9 * len(terms) and 1 <= len(made) <= 4
    for row in [*raft, *made]:
        assert not first_unsupported(row["messages"][-1]["content"], row["passages"], row["question"]).reason
        assert len(row["gold"]) == 1
