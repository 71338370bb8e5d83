"""A recipe is planned without what carries it out."""

from __future__ import annotations

import subprocess
import sys

STAGES = [
    "pretrain.stage", "sft.stage", "preference.dpo_stage", "preference.kto_stage", "reward.reward_stage",
    "reward.score_stage", "reward.benchmark_stage", "evaluate.stage",
]  # fmt: skip
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "vllm", "numpy", "polars", "pyarrow"}


def test_configurations_load_no_heavy_library() -> None:
    imports = "".join(f"import training.{stage}\n" for stage in STAGES)
    loaded = subprocess.run(
        [sys.executable, "-c", f"{imports}import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not HEAVY & set(loaded)
