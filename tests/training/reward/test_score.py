"""What `score` says of stored answers is what the reward model says when it is asked directly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from engine.execution.worker import carry_out
from engine.stage.stage import Stage
from tests.training import tiny_chat
from training.reward.score_stage import Score

WORDS = ["what", "colour", "red", "blue", "?"]
CANDIDATES: list[dict[str, Any]] = [
    {
        "id": f"{i:032x}", "parents": [], "prompt_id": f"{i // 3:032x}", "sample": i % 3, "model": "m",
        "prompt": [{"role": "user", "content": " ".join(WORDS[: 1 + i % 5])}],
        "completion": [{"role": "assistant", "content": " ".join(WORDS[i % 4 :] * (1 + i))}],
    }
    for i in range(12)
]  # fmt: skip


def test_scores_are_the_models_own(store: Any, given: Any, build: Any, tmp_path: Path) -> None:
    tokens, folder = tiny_chat.tokenizer(), tmp_path / "reward"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=48, num_labels=1, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokens.save_pretrained(folder)

    class Trained(Stage):
        gives = "RewardModel"

        def run(self, job: Any) -> None:
            shutil.copytree(folder, job.output, dirs_exist_ok=True)

    reward = carry_out(store, "trained", Trained(), {})
    made = build(Score, {"candidates": given("Candidate", CANDIDATES), "reward": reward}, partition=5)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    got = {row["subject"]: row for row in made.to_table().to_pylist()}
    long = 0
    for row in CANDIDATES:
        ids = tokens.apply_chat_template([*row["prompt"], *row["completion"]], return_dict=False)
        if len(ids) > 48:
            long += 1
            assert row["id"] not in got
            continue
        with torch.no_grad():
            expected = model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]).item()
        assert got[row["id"]]["value"] == pytest.approx(expected, abs=1e-5)
        assert got[row["id"]]["parents"] == [row["id"]] and got[row["id"]]["metric"] == "reward"
    assert 0 < long < 12 and made.manifest["rejected"] == {"too_long": long}
