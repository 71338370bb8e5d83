"""TRL 1.12.0's PPOTrainer, the last that TRL had, on a specification that `benchmarks.alignment` writes.

    python benchmarks/peers/trl_ppo.py SPEC.json     (in an environment of its own: `trl==1.12.0`)

Prints one JSON object: for every seed the seconds that the steps after the first took, and what it was given.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


def run(spec: dict[str, Any], seed: int) -> dict[str, Any]:
    from datasets import Dataset  # pyright: ignore
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore

    tokenizer = AutoTokenizer.from_pretrained(spec["policy"], padding_side="left", trust_remote_code=False)
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(spec["policy"], trust_remote_code=False) for _ in range(2)
    )
    reward = AutoModelForSequenceClassification.from_pretrained(spec["reward"], trust_remote_code=False)
    value = AutoModelForSequenceClassification.from_pretrained(spec["policy"], num_labels=1, trust_remote_code=False)
    value.score.weight.data.zero_()
    ticks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ticks.append((time.perf_counter(), time.process_time()))

    options: Any = {
        "output_dir": f"{spec['out']}/scratch",
        "per_device_train_batch_size": spec["rollouts"],
        "gradient_accumulation_steps": 1,
        "local_rollout_forward_batch_size": spec["rollouts"],
        "num_mini_batches": spec["minibatches"],
        "num_ppo_epochs": spec["epochs"],
        "total_episodes": spec["rollouts"] * spec["iterations"],
        "response_length": spec["max_tokens"],
        "stop_token": "eos",
        "missing_eos_penalty": spec["missing_eos"],
        "temperature": 1.0,
        "kl_coef": spec["beta"],
        "cliprange": spec["clip"],
        "cliprange_value": spec["clip_value"],
        "vf_coef": spec["value_weight"],
        "gamma": spec["gamma"],
        "lam": spec["lam"],
        "learning_rate": spec["lr"],
        "lr_scheduler_type": "linear",
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-5,
        "num_sample_generations": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": seed,
    }
    rows = Dataset.from_dict({"input_ids": [ids for ids in spec["prompts"] for _ in range(spec["rollouts"])]})
    trainer = PPOTrainer(
        args=PPOConfig(**options), processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        train_dataset=rows, eval_dataset=rows.select(range(1)), value_model=value, callbacks=[Clock()],
    )  # fmt: skip
    sys.stdout, told = sys.stderr, sys.stdout
    trainer.train()
    sys.stdout = told
    folder = Path(spec["out"]) / f"trl-{seed}"
    policy.save_pretrained(folder)
    return {
        "seed": seed,
        "folder": str(folder),
        "episodes": spec["rollouts"] * (len(ticks) - 1),
        "seconds": ticks[-1][0] - ticks[0][0],
        "cpu_seconds": ticks[-1][1] - ticks[0][1],
    }


def main() -> None:
    import torch
    import transformers
    import trl

    spec = json.loads(Path(sys.argv[1]).read_text())
    runs = [run(spec, seed) for seed in spec["seeds"]]
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps({"runs": runs, "versions": versions}))


if __name__ == "__main__":
    main()
