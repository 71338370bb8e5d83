"""`kill -9` of Flywheel in the middle of a partition, again and again: the same bytes, and nothing paid for twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from engine.store.store import Store
from tests.generators.faulty_server import FaultyServer

RECIPE = """
name: killed
seed: 1
stages:
  made:
    kind: candidates
    from: {{prompts: ./prompts.jsonl}}
    n: 2
    partition: 10
    logprobs: false
    server: {{model: m, url: "{url}", concurrency: 8}}
"""


def start(folder: Path, store: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-c", "from engine.cli import main; main()", "run", "killed.yaml", "--store", store]
    return subprocess.Popen(program, cwd=folder, start_new_session=True, stderr=subprocess.PIPE)


def test_a_run_that_is_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    prompts = [{"id": f"{i:032x}", "prompt": f"Say {i}!"} for i in range(60)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    places = sorted(random.Random(5).sample(range(10, 110), 3))  # of 120 answers
    armed: tuple[int, int] | None = None  # a process, and the answer that it does not live to see

    def kill(answers: int) -> None:
        nonlocal armed
        if armed and answers >= armed[1]:
            os.killpg(armed[0], signal.SIGKILL)
            armed = None

    with FaultyServer(share=0.1, seconds=0.03, stall=2, before=kill) as faulty:
        (tmp_path / "killed.yaml").write_text(RECIPE.format(url=faulty.url))
        for place in places:
            run = start(tmp_path, "killed")
            armed = run.pid, place
            assert run.wait() == -signal.SIGKILL
        assert start(tmp_path, "killed").wait() == 0
        twice = sum(faulty.served.values()) - 120
        assert len(faulty.served) == 120 and twice <= 3 * 8  # at most what was under way at each kill
        assert start(tmp_path, "calm").wait() == 0
    made, calm = (Store(str(tmp_path / name)).find("killed/made") for name in ("killed", "calm"))
    assert made.rows == 120 and made.digest == calm.digest
