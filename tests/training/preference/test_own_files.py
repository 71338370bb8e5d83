"""Files that people bring, trained on: what a row says of itself is heeded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.plan.inputs import resolve
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training import tiny_chat
from tests.training.tiny_chat import assistant, one_thread, user
from training.preference.dpo_stage import Dpo
from training.preference.kto_stage import Kto
from training.sft.stage import Sft

__all__ = ["one_thread"]  # applies to every test here

Build = Callable[..., Artifact]
Bring = Callable[[str, list[dict[str, Any]]], Artifact]


@pytest.fixture
def policy(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))


@pytest.fixture
def bring(store: Store, tmp_path: Path) -> Bring:
    def make(kind: str, rows: list[dict[str, Any]]) -> Artifact:
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return resolve("./own.jsonl", tmp_path, (kind,), store).adopt(store)

    return make


def reasons(made: Artifact) -> dict[str, int]:
    return made.manifest["rejected"]


def test_pairs_of_the_test_split_are_not_trained_on(policy: Artifact, bring: Bring, build: Build) -> None:
    pairs = [
        {"prompt": "what colour the cat ?", "chosen": "blue", "rejected": "red", "split": s} for s in ("test", "train")
    ]
    made = build(Dpo, {"policy": policy, "preferences": bring("Preference", pairs)}, batch=2, max_failed=1.0)
    assert made.manifest["summary"]["pairs"] == 1 and reasons(made) == {"split_test": 1}


def test_a_prompt_that_stands_in_the_answers_is_shown_once(policy: Artifact, bring: Bring, build: Build) -> None:
    """UltraFeedback's shape trains as TRL's does: to the same losses."""
    ask = "what colour the cat ?"
    both = [
        {"prompt": ask, "chosen": [*user(ask), *assistant("blue")], "rejected": [*user(ask), *assistant("red")]},
        {"prompt": ask, "chosen": "blue", "rejected": "red"},
    ]
    made = [
        build(Dpo, {"policy": policy, "preferences": bring("Preference", [row])}, lr=1e-2, epochs=3, batch=2)
        for row in both
    ]
    assert made[0].read_file("model.safetensors") == made[1].read_file("model.safetensors")


def test_marks_of_ones_own_are_enough_for_kto(policy: Artifact, bring: Bring, build: Build) -> None:
    rows = [{"prompt": f"what colour the {w} ?", "completion": c, "label": c == "blue"} for w in ("cat", "dog") for c in ("blue", "red", "green")]  # fmt: skip
    made = build(
        Kto,
        {"policy": policy, "candidates": bring("Candidate", [*rows, {"prompt": "what ?", "completion": "blue"}])},
        batch=2,
    )
    summary = made.manifest["summary"]
    assert (summary["good"], summary["bad"], summary["candidates"], summary["candidates_used"]) == (2, 4, 7, 6)


def test_conversations_of_other_splits_are_not_learnt(policy: Artifact, bring: Bring, build: Build) -> None:
    rows = [
        {"question": "what colour the cat ?", "answer": "blue", "split": s} for s in ("test", "train", "val", "train")
    ]
    made = build(Sft, {"model": policy, "conversations": bring("Conversation", rows)}, batch=2, epochs=1)
    assert reasons(made) == {"split_test": 1, "split_validation": 1}
