"""The benchmark that wants a GPU: every row runs here at tiny sizes and tells its numbers, lines are drawn from them, and what fails, is
cut or can't be had leaves words."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Started
from benchmarks.parts.gpu import policy_steps, sampling_rate
from benchmarks.parts.gpu.row_process import Account, carry_out
from benchmarks.parts.gpu.rows import LINES, ROWS, claims
from benchmarks.parts.gpu.scene import END, TINY, Scene
from tests.training.tiny_chat import one_thread

__all__ = ["one_thread"]  # applies to every test here

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, for all rows."""
    return tmp_path_factory.mktemp("data")


def row(name: str, folder: Path, data: Path) -> dict[str, Any]:
    """What the row's file says in the end."""
    carry_out(ROWS[name], Account(folder / f"{name}.json", True), folder / name, data)
    return json.loads((folder / f"{name}.json").read_text())


def numbers(name: str, folder: Path, data: Path) -> dict[str, Any]:
    told = row(name, folder, data)
    assert told["problem"] == "" and told["done"] and told["tiny"]
    return told["numbers"]


@pytest.mark.parametrize("size", ["350M", "7B"])
def test_utilisation_is_the_work_of_the_tokens_over_the_peak(size: str, tmp_path: Path, data: Path) -> None:
    told = numbers(f"mfu_{size}", tmp_path, data)
    # By hand: the matrices of two layers and the head, six FLOPs a weight and token; attention is 6 T D a layer.
    layers, width, inner, length, vocabulary = 2, 64, 128, 64, 300
    weights = layers * (4 * width * width + 3 * width * inner) + vocabulary * width
    by_token = 6 * weights + 6 * layers * width * length
    assert told["parameters"] == weights + (2 * layers + 1) * width
    assert len(told["ways"]) == (2 if size == "7B" else 1)
    for way in told["ways"]:
        assert way["mfu"] == pytest.approx(
            by_token * way["tokens_per_s"] / told["peak_tflops"] / 1e12, rel=0.05, abs=2e-4
        )
        assert way["tokens_per_s"] * way["step_s"] == pytest.approx(4 * length, rel=0.02)  # four blocks a step
        assert way["memory_gib"] > 0 and way["counted_memory_gib"] >= 0
    assert told["mfu"] == max(way["mfu"] for way in told["ways"]) > 0
    assert [way["recompute"] for way in told["ways"]] == [False, True][: len(told["ways"])]


def test_both_learn_from_the_same_conversations(tmp_path: Path, data: Path) -> None:
    told = {name: numbers(name, tmp_path, data) for name in ("sft_lora", "sft_lora_trl", "sft_full")}
    scene = Scene(tmp_path, data, True, lambda **_: None)
    from benchmarks.parts.gpu.fine_tuning import conversations

    words = [len(turn["content"].split()) for one in conversations(scene) for turn in one["messages"]]
    every = sum(words) + 2 * len(words)  # a token before each turn, and one that ends it
    assert {one["tokens"] for one in told.values()} == {every}
    assert all(one["tokens_per_s"] > 0 and one["memory_gib"] > 0 and one["steps"] == 2 for one in told.values())
    assert "counted: " in told["sft_lora"]["cost"] and "LoRA trains" in told["sft_lora"]["cost"]
    speed, memory = claims(told, {}, list(told))
    assert speed["value"] == pytest.approx(
        told["sft_lora"]["tokens_per_s"] / told["sft_lora_trl"]["tokens_per_s"], abs=1e-4
    )
    assert memory["id"] == "sft_lora_memory" and memory["value"] is not None


@pytest.mark.parametrize("name", ["sft_qlora", "sft_qlora_trl"])
def test_what_needs_a_gpu_says_so(name: str, tmp_path: Path, data: Path) -> None:
    told = row(name, tmp_path, data)
    assert told["problem"].startswith("skipped: `quantize` (QLoRA) needs an NVIDIA GPU") and told["done"]


@pytest.fixture(scope="module")
def engine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from generators.backends.vllm.engine import VllmEngine

    model = Scene(tmp_path_factory.mktemp("engine"), data, True, lambda **_: None).model("1.3B")
    with VllmEngine(model.location, dtype="float32", max_model_len=64, kv_cache_gib=1) as engine:
        yield engine


@pytest.fixture
def lent(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine for whoever opens one: starting it takes longer than all rows."""

    class Lent:
        generate, load_weights, max_model_len, _llm = (
            engine.generate, engine.load_weights, engine.max_model_len, engine._llm,
        )  # fmt: skip

        def close(self) -> None: ...

    def lend(*_: Any, **__: Any) -> Any:
        return Lent()

    monkeypatch.setattr(sampling_rate, "open_engine", lend)
    monkeypatch.setattr("training.rl.grpo.start_engine", lend)


def test_answers_are_counted_alike(lent: None, tmp_path: Path, data: Path) -> None:
    told = {name: numbers(name, tmp_path, data) for name in ("candidates", "candidates_bare")}
    for one in told.values():
        assert one["answers"] == 8 * sampling_rate.N and len(one["rounds"]) == 1 and one["tokens_per_s"] > 0
        # About 3 of 300 ids end an answer, which has 16 tokens at most: 14.9 on average if all ids were as likely.
        assert 12 < one["mean_tokens"] <= 16
    (line,) = claims(told, {}, list(told))
    assert line["id"] == "candidates_over_bare_vllm" and line["value"] > 0


def test_steps_of_grpo_are_timed(lent: None, tmp_path: Path, data: Path) -> None:
    told = {name: numbers(name, tmp_path, data) for name in ("grpo", "grpo_trl")}
    assert all(one["steps"] == 1 and one["step_s"] > 0 for one in told.values())
    assert told["grpo"]["seconds/sampling"] < told["grpo"]["step_s"]
    assert all(
        1 <= one["length"] <= policy_steps.longest(Scene(tmp_path, data, True, lambda **_: None))
        for one in told.values()
    )
    (line,) = claims(told, {}, list(told))
    assert line["value"] == pytest.approx(told["grpo"]["step_s"] / told["grpo_trl"]["step_s"], abs=1e-3)


def test_a_text_has_as_many_tokens_as_words(tmp_path: Path) -> None:
    import numpy as np

    scene = Scene(tmp_path, tmp_path, True, lambda **_: None)
    tokenizer = scene.tokenizer()
    text = scene.text(np.random.default_rng(0), 50)
    assert len(tokenizer(text)["input_ids"]) == 50 and len(tokenizer) == scene.vocabulary
    said = [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7"}]
    made = tokenizer.apply_chat_template(said, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert made["input_ids"] == [2, 5, 6, END, 3, 7, END] and made["assistant_masks"] == [0, 0, 0, 0, 0, 1, 1]
    assert TINY.settings(300)["hidden_size"] == 64


def test_lines_are_drawn_from_what_there_is() -> None:
    told: dict[str, dict[str, Any]] = {
        "mfu_350M": {"mfu": 0.6},
        "mfu_1.3B": {"mfu": 0.5},
        "sft_lora": {"tokens_per_s": 30.0, "memory_gib": 9.0},
        "sft_lora_trl": {"tokens_per_s": 20.0, "memory_gib": 8.0},
        "candidates": {"tokens_per_s": 96.0},
        "candidates_bare": {"tokens_per_s": 100.0},
        "grpo": {"step_s": 2.0},
    }
    problems = {"grpo_trl": "skipped: `vllm` is not installed here", "mfu_1.3B": "cut after 60 s"}
    found = {one["id"]: one for one in claims(told, problems, [name for name in ROWS if name != "mfu_7B"])}
    assert (found["mfu_350M"]["holds"], found["mfu_1.3B"]["holds"], found["mfu_1.3B"]["why"]) == (
        True, False, "mfu_1.3B: cut after 60 s",
    )  # fmt: skip
    assert found["sft_lora_speed"]["value"] == 1.5 and found["sft_lora_speed"]["holds"]
    assert found["sft_lora_memory"]["value"] == 1.125 and not found["sft_lora_memory"]["holds"]
    assert found["candidates_over_bare_vllm"]["value"] == 0.96 and not found["candidates_over_bare_vllm"]["holds"]
    assert found["grpo_step_over_trl"]["value"] is None and "`vllm` is not" in found["grpo_step_over_trl"]["why"]
    assert "mfu_7B" not in found and found.keys() < LINES.keys()


def test_what_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.parts.gpu.fine_tuning", raising=False)
    monkeypatch.setitem(sys.modules, "training.models.lora_settings", None)
    told = row("sft_lora", tmp_path, tmp_path)
    assert told["problem"].startswith(
        "skipped: `training` is not installed here; `python -m benchmarks.parts.gpu_wheels`"
    )


@pytest.mark.parametrize(("found", "told"), [(None, "0"), (object(), None)])
def test_vllm_does_not_look_for_what_is_left_behind(
    found: object, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.parts.gpu import row_process

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    row_process.prepare_vllm()
    assert os.environ.get("VLLM_USE_FLASHINFER_SAMPLER") == told and "VLLM_NO_USAGE_STATS" in os.environ


def benchmark(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_rows_that_are_kept_are_not_run_again_and_a_cut_one_is(tmp_path: Path) -> None:
    told = {"tiny": True, "done": True, "problem": "", "numbers": {"mfu": 0.59, "device": "a card"}}
    (tmp_path / "mfu_350M.json").write_text(json.dumps(told))
    (tmp_path / "mfu_7B.json").write_text(json.dumps({**told, "done": False}))  # of a run that was killed
    said = benchmark("--tiny", "--only", "mfu_350M,mfu_7B,mfu_1.3B", "--keep", str(tmp_path), "--minutes", "0.002")
    assert said["device"] == "a card" and said["rows"]["mfu_350M"]["mfu"] == 0.59
    assert said["problems"] == {"mfu_7B": "cut after 0 s", "mfu_1.3B": "no time was left for it"}
    assert [(one["id"], one["holds"]) for one in said["claims"]] == [
        ("mfu_350M", True),
        ("mfu_1.3B", False),
        ("mfu_7B", False),
    ]


def test_a_row_in_a_process_of_its_own(tmp_path: Path) -> None:
    said = benchmark("--tiny", "--only", "mfu_350M", "--keep", str(tmp_path))
    assert said["problems"] == {} and said["rows"]["mfu_350M"]["mfu"] > 0 and said["tiny"]
    assert json.loads((tmp_path / "mfu_350M.json").read_text())["done"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_row_says_so(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("out.json", "folder", "data")]
    command = [sys.executable, "-m", "benchmarks.parts.gpu.row_process", "mfu_350M", *paths]
    subprocess.run(command, cwd=ROOT, input="begin\n", capture_output=True, text=True, check=True)
    assert json.loads((tmp_path / "out.json").read_text())["problem"].startswith("skipped: there is no NVIDIA GPU here")


def test_without_a_gpu_one_row_answers_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(Started):
        def end(self) -> None: ...

    def start(name: str, keep: Path, *_: Any) -> Idle:
        return Idle(name, cast(Any, None), keep / f"{name}.json", keep / f"{name}.log")

    words = f"skipped: {gpu.NO_GPU}"
    monkeypatch.setattr(gpu, "start", start)
    monkeypatch.setattr(gpu, "run", lambda row, seconds: words)
    names = ["mfu_350M", "grpo", "grpo_trl"]
    problems = gpu.run_all(names, tmp_path, tmp_path, 60, False)
    assert problems == dict.fromkeys(names, words)
    said = gpu.summary(names, tmp_path, problems, False)
    assert said["rows"]["grpo"] == {"skipped": gpu.NO_GPU} and not any(one["holds"] for one in said["claims"])


def test_an_unknown_row_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", "mfu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "there is no row mfu; there are mfu_350M" in done.stderr
