"""Engines die; batches do not."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.parts.moments import Moments
from engine.errors import StageFailed, UserError
from generators.backends.process import spawn
from generators.backends.process.engine_process import NoRoom, OwnProcess
from generators.backends.process.spawn import environment, import_path
from generators.backends.process.watched import WatchedEngine
from generators.backends.protocol import Completion, Failure, Sampling
from tests.generators.backends.frail import BREAKS, FRAIL, KILLS, alive, expected

PROMPTS = [[10 + i, 50 + i] for i in range(37)]
SEEDS = list(range(37))


def test_a_batch_survives_deaths(tmp_path: Path) -> None:
    said = list[str]()
    for i in range(2):
        (tmp_path / f"fuse-{i}").touch()
    with WatchedEngine(FRAIL, str(tmp_path), said.append) as engine:
        assert engine.generate(PROMPTS, Sampling(), SEEDS) == expected(PROMPTS)
        assert engine.deaths == 2
        assert engine.generate(PROMPTS, Sampling(), SEEDS) == expected(PROMPTS)
        assert engine.deaths == 2
    assert len(said) == 2 and "SIGKILL, as the kernel does when memory runs out" in said[0]


@pytest.mark.parametrize("poison", [KILLS, BREAKS])
def test_rows_that_kill_the_engine_are_found_and_the_rest_is_answered(tmp_path: Path, poison: int) -> None:
    prompts = [list(prompt) for prompt in PROMPTS]
    prompts[3][0] = prompts[30][0] = poison
    with WatchedEngine(FRAIL, str(tmp_path)) as engine:
        made = engine.generate(prompts, Sampling(), SEEDS)
    bad = [i for i, one in enumerate(made) if isinstance(one, Failure)]
    assert bad == [3, 30]
    assert [one for i, one in enumerate(made) if i not in bad] == [
        e for i, e in enumerate(expected(prompts)) if i not in bad
    ]
    failure = made[3]
    assert isinstance(failure, Failure) and failure.reason == "engine_died"
    assert ("SIGKILL" if poison == KILLS else "IndexError: out of bounds") in failure.detail


def test_an_engine_without_a_place_is_not_taken_for_one_that_is_loaded(tmp_path: Path) -> None:
    room = [True, False, False, True]

    def start(spec: Any) -> OwnProcess:
        if not room.pop(0):
            raise NoRoom
        return OwnProcess(spec, None)

    (tmp_path / "fuse-0").touch()
    with WatchedEngine(FRAIL, str(tmp_path), elsewhere=start) as engine:
        assert engine.max_model_len == 100
        with pytest.raises(NoRoom):
            engine.generate(PROMPTS, Sampling(), SEEDS)
        with pytest.raises(NoRoom):
            _ = engine.max_model_len
        assert engine.max_model_len == 100 and engine.generate(PROMPTS, Sampling(), SEEDS) == expected(PROMPTS)
        with pytest.raises(StageFailed, match="its weights stay as they are"):
            engine.load_weights([])


def test_errors_in_our_own_words_reach_the_caller(tmp_path: Path) -> None:
    nowhere = WatchedEngine("transformers", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="there is no model at"):
        nowhere.generate(PROMPTS, Sampling(), SEEDS)
    broken = WatchedEngine("tests.generators.backends.frail:Missing", str(tmp_path))
    with pytest.raises(StageFailed, match="dies while it loads: exit code 1"):
        broken.generate(PROMPTS, Sampling(), SEEDS)


def test_the_child_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys; from generators.backends.protocol import Sampling; from generators.backends.process.watched import WatchedEngine\n"
        f"engine = WatchedEngine({FRAIL!r}, {str(tmp_path)!r}, slow=60); engine.max_model_len\n"
        "print(engine.pid, flush=True); engine.generate([[1]], Sampling(), [0])"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    while not (tmp_path / "busy").exists():
        assert parent.poll() is None
        time.sleep(0.01)
    with os.fdopen(os.pidfd_open(child)) as gone:
        parent.kill()
        parent.wait()
        assert select.select([gone], [], [], 300)[0]  # readable when the child has ended, at once
    assert not alive(child)


def test_weights_outlive_the_engine_that_took_them(tmp_path: Path) -> None:
    first = {"a": torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16), "b": torch.tensor(0.5), "c": torch.zeros(0, 3)}
    second = {"b": torch.full((9,), 1 / 3, dtype=torch.float64), "a": torch.arange(6.0).view(2, 3).T}
    with WatchedEngine(FRAIL, str(tmp_path)) as engine:
        for weights, sum_of_them in ((first, 11.0), (second, 33.0)):
            engine.load_weights(weights.items())
            (made,) = engine.generate([[5]], Sampling(), [7])
            assert isinstance(made, Completion) and made.logprobs == [7 + sum_of_them]
        (tmp_path / "fuse-0").touch()
        assert engine.generate([[5]], Sampling(), [7]) == [made] and engine.deaths == 1
        child = engine.pid
        with pytest.raises(StageFailed, match="can't take weights: ValueError: b is missing"):
            engine.load_weights([("a", torch.zeros(1))])
    assert child is not None and not alive(child) and engine.pid is None


def test_an_engine_does_not_take_itself_for_a_training_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with WatchedEngine(FRAIL, str(tmp_path)) as engine:
        assert engine.max_model_len == 100
        seen = Path(f"/proc/{engine.pid}/environ").read_text().split("\0")
    assert not left.keys() & {entry.partition("=")[0] for entry in seen}


@pytest.mark.slow
def test_killing_vllm_in_the_middle_of_a_batch_changes_no_token(
    engine: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do weights that were swapped in before."""
    from transformers import AutoModelForCausalLM

    prompts = [[i % 250 + 4, 7, 9] for i in range(64)]
    sampling = Sampling(max_tokens=100, min_tokens=100)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    given = engine.generate(prompts, sampling, list(range(64)))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    after = {name: parameter * 1.1 for name, parameter in before.items()}
    engine.load_weights(after.items())
    truth = engine.generate(prompts, sampling, list(range(64)))
    engine.load_weights(before.items())
    assert truth != given == engine.generate(prompts, sampling, list(range(64)))
    moments = Moments(tmp_path / "moments", tmp_path)
    moments.fuse(batch=0, step=41)  # of a hundred: a token each
    for name, value in moments.environment.items():
        monkeypatch.setenv(name, value)
    with WatchedEngine("vllm", str(tiny), kv_cache_gib=1) as watched:
        assert watched.max_model_len == 128
        watched.load_weights(after.items())
        first = watched.pid
        assert first is not None
        made = watched.generate(prompts, sampling, list(range(64)))
        assert watched.deaths == 1 and watched.pid != first and not moments.fuses
    assert made == truth


def test_an_engine_that_dies_on_every_row_fails_the_stage_instead_of_cutting_for_ever(tmp_path: Path) -> None:
    engine = WatchedEngine(FRAIL, str(tmp_path))
    with pytest.raises(StageFailed, match=r"dies whatever it is asked: .*out of bounds"):
        engine.generate([[BREAKS, i] for i in range(64)], Sampling(), list(range(64)))
    engine.close()
    assert engine.deaths == 5  # three whole batches, the first row, the last row


@pytest.mark.usefixtures("among_namesakes")
def test_an_engine_starts_where_folders_and_files_have_the_names_of_its_own(tmp_path: Path) -> None:
    with WatchedEngine(FRAIL, str(tmp_path)) as engine:
        assert engine.generate([[1, 2]], Sampling(), [3]) == [Completion([2, 1], [3.0], "stop")]


def test_the_projects_folder_is_added_where_a_child_would_not_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "/mine"]))
    assert spawn.ROOT in sys.path and import_path() == ["/mine"]
    monkeypatch.setattr(spawn, "_installed", lambda: {"/elsewhere"})
    assert import_path() == [spawn.ROOT, "/mine"]
    monkeypatch.delenv("PYTHONPATH")
    assert environment()["PYTHONPATH"] == spawn.ROOT
