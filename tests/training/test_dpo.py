"""DPO against its formula, worked out by hand from log-probabilities that transformers gives."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.store import Artifact, Store
from tests.training import killed, tiny_chat
from tests.training.test_reward import answers_of, preferences
from tests.training.tiny_chat import one_thread
from training.dpo import Dpo
from training.logprobs import token_logprobs

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]


@pytest.fixture
def policy(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))


@pytest.fixture
def other(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "other", seed=1))


def curve(made: Artifact, name: str) -> list[float]:
    log = made.log("metrics.parquet")
    assert log is not None
    values = pq.read_table(io.BytesIO(log)).column(name).to_pylist()
    return [value for value in values if value is not None]


def losses(made: Artifact) -> list[float]:
    return curve(made, "loss")


def by_hand(folder: Path, reference: Path, rows: list[dict[str, Any]], beta: float) -> float:
    from transformers import AutoModelForCausalLM

    totals: list[list[float]] = []
    for place in (folder, reference):
        model = AutoModelForCausalLM.from_pretrained(place).eval()
        totals.append([float(t.sum()) for t in token_logprobs(model, answers_of(rows))])
    ratios = [a - b for a, b in zip(*totals, strict=True)]
    gaps = [c - r for c, r in zip(ratios[0::2], ratios[1::2], strict=True)]
    return sum(math.log1p(math.exp(-beta * gap)) for gap in gaps) / len(gaps)


def test_the_first_loss_is_ln_2(policy: Artifact, given: Given, build: Build) -> None:
    made = build(Dpo, {"policy": policy, "preferences": given("Preference", preferences(32))}, lr=3e-3, batch=8)
    assert losses(made)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(made)[-1] < 0.6


def test_a_reference_of_its_own_gives_the_loss_worked_out_by_hand(
    policy: Artifact, other: Artifact, given: Given, build: Build
) -> None:
    """One batch holds all pairs and the rate is next to nothing, so that the only loss is that of the given weights."""
    rows = [row for row in preferences(24) if row["split"] == "train"]
    made = build(
        Dpo,
        {"policy": policy, "preferences": given("Preference", rows), "reference": other},
        lr=1e-12,
        beta=0.3,
        batch=len(rows),
    )
    expected = by_hand(policy.path, other.path, rows, 0.3)
    assert losses(made) == pytest.approx([expected], abs=1e-5)
    assert abs(expected - math.log(2)) > 1e-3


def test_it_learns_what_people_preferred_and_says_so_on_held_out_prompts(
    policy: Artifact, given: Given, build: Build
) -> None:
    rows = preferences(160)
    made = build(Dpo, {"policy": policy, "preferences": given("Preference", rows)}, lr=3e-3, epochs=2)
    summary = made.manifest["summary"]
    assert summary["accuracy"] == 1.0 and summary["validation_pairs"] == 40
    held_out = [row for row in rows if row["split"] == "validation"]
    assert by_hand(made.path, policy.path, held_out, 0.1) < 0.5


def test_a_killed_training_ends_with_the_same_bits(
    tmp_path: Path, policy: Artifact, given: Given, store: Store
) -> None:
    made = given("Preference", preferences(64))
    spec: dict[str, Any] = {
        "store": store.url,
        "stage": "training.dpo:Dpo",
        "config": {"seed": 3, "epochs": 3, "batch": 8, "lr": 1e-3, "checkpoint_every": 4},
        "inputs": {"policy": {"p": ["Model", str(policy.path)]}, "preferences": {"d": ["", made.id]}},
    }
    killed.start(spec, tmp_path, kill_at=7)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    whole = killed.start({**spec, "store": killed.another_store(store, made, tmp_path)}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None and resumed.digest == whole.digest
