"""What docs/generation.md says can be written can be, and its commands run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from unittest.mock import patch

import yaml

from engine.stage.stage import load
from flywheel.commandline import main
from generators.rules.sandbox.programs import Limits, grade
from generators.rules.verify import verify
from tests.generators.faulty_server import FaultyServer
from tests.generators.instructions.self_instructing import SelfInstructing
from tests.test_docs import blocks, commands

PAGE = "docs/generation.md"


def test_every_stage_on_the_page_is_one() -> None:
    seen = set[str]()
    for block in blocks(PAGE, "yaml"):
        for name, body in yaml.safe_load(block).items():
            fields = {key: value for key, value in body.items() if key not in ("kind", "from")}
            stage = load(body["kind"])
            stage.model_validate({**fields, "seed": 0} if stage.random else fields)
            given = body.get("from")
            assert not isinstance(given, dict) or set(given) <= set(stage.takes), name
            seen.add(body["kind"])
    assert {"corpus", "instructions", "grounded", "candidates", "judge"} <= seen


def test_the_commands_run(tmp_path: Path) -> None:
    seeds = [{"text": f"Tell me about subject {i}, please", "output": f"Subject {i} is old."} for i in range(9)]
    (tmp_path / "seeds.jsonl").write_text("\n".join(map(json.dumps, seeds)))
    (tmp_path / "questions.jsonl").write_text(json.dumps({"prompt": "What is subject 3?", "reference": "3"}))
    instruct = SelfInstructing()

    def answer(messages: list[dict[str, str]], seed: int) -> str:
        text = messages[-1]["content"]
        return instruct(text, seed) if re.match("Here is the beg|Is a task|The task is|Make an", text) else "Said [1]."

    with (
        FaultyServer(share=0, answer=answer) as server,
        patch.dict(os.environ, {"OPENAI_BASE_URL": server.url, "FLYWHEEL_STORE": str(tmp_path / "store")}),
    ):
        before = Path.cwd()
        os.chdir(tmp_path)
        try:
            for command in commands(PAGE):
                assert command[0] == "flywheel"
                with patch("sys.argv", command):
                    try:
                        main()
                    except SystemExit as end:
                        assert not end.code, command
        finally:
            os.chdir(before)
    for folder in ("tasks", "said_again", "answers"):
        assert (tmp_path / folder / "README.md").exists()


def test_the_sandbox_as_shown() -> None:
    assert grade("def double(x): return 2 * x", "assert double(2) == 4", Limits(cpu_s=2)).status == "ok"
    assert verify("mathematics", ["so it is \\boxed{42}"], ["#### 42"]) == [1.0]
