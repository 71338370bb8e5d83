"""Supervised fine-tuning of a 1.3B model: the stage `sft` as it is, and TRL's SFTTrainer on the same conversations.

A step is of 16 conversations of all lengths up to the context, of which the answers are learnt. `sft` cuts it into passes by what fits;
TRL is given its own defaults, batches of eight twice and gradient checkpointing. Tokens are those that TRL counts, without padding.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.parts.gpu.scene import Scene
from training.hardware import flops
from training.models.lora import peft_config, quantization
from training.models.lora_settings import Lora
from training.sft.stage import Sft

Method = Literal["full", "lora", "qlora"]
BATCH, WARM = 16, 3


def steps(scene: Scene) -> int:
    return scene.whole(14, WARM + 2)


def adapter(method: Method) -> Lora | None:
    return None if method == "full" else Lora(quantize=method == "qlora", merge=False)


def conversations(scene: Scene) -> list[dict[str, Any]]:
    """A question and an answer a row, together as long as people's."""
    random, longest = np.random.default_rng(1), scene.length - 8
    return [
        {
            "id": f"{i:032x}",
            "messages": [
                {"role": "user", "content": scene.text(random, max(1, words // 4))},
                {"role": "assistant", "content": scene.text(random, max(1, words - words // 4))},
            ],
        }
        for i, words in enumerate(scene.lengths(BATCH * steps(scene), longest))
    ]


@dataclass
class Pace:
    """Tells tokens a second and most memory so far, of the steps after those that warm up."""

    scene: Scene
    seen: list[tuple[float, float]] = field(default_factory=lambda: [])  # seconds, tokens learnt from since the start

    def step(self, tokens: float) -> None:
        self.scene.wait()
        self.seen.append((time.perf_counter(), tokens))
        if len(self.seen) <= WARM:
            return
        (since, before), (now, after) = self.seen[WARM - 1], self.seen[-1]
        counted = len(self.seen) - WARM
        self.scene.tell(
            steps=counted, step_s=round((now - since) / counted, 4),
            tokens_per_s=round((after - before) / (now - since), 1),
            tokens=after, memory_gib=round(flops.peak_memory(self.scene.device) / 2**30, 3),
        )  # fmt: skip


def ours(scene: Scene, method: Method) -> None:
    pace = Pace(scene)

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "metric" and "num_tokens" in event:
            pace.step(event["num_tokens"])
        elif "counted" in event.get("text", ""):  # what the plan would have said
            scene.tell(cost=event["text"])

    stage = Sft.model_validate({
        "lora": adapter(method), "batch": BATCH, "max_length": scene.length, "steps": steps(scene), "seed": 0,
        "checkpoint_every": 10_000, "dtype": "auto" if scene.tiny else "bfloat16",
    })  # fmt: skip
    model = scene.model("1.3B")
    rows = scene.rows("Conversation", conversations(scene))
    scene.forget()
    with patch("training.sft.work.save_trained", unsaved):
        stage.run(scene.job(f"sft-{method}", listen, model=model, conversations=rows))


def unsaved(*_: Any) -> None:
    """What is learnt from random text is not worth a place."""


def trl(scene: Scene, method: Method) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    pace = Pace(scene)

    class Listener(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "num_tokens" in logs and "train_runtime" not in logs:
                pace.step(float(logs["num_tokens"]))

    lora = adapter(method)
    folder = scene.model("1.3B").location
    scene.forget()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32 if lora is None else torch.bfloat16, trust_remote_code=False,
        **({"quantization_config": quantization()} if lora and lora.quantize else {}),
    )  # fmt: skip
    gpu = torch.cuda.is_available()
    args = SFTConfig(
        output_dir=str(scene.folder / "trl"), max_steps=steps(scene), per_device_train_batch_size=8,
        gradient_accumulation_steps=BATCH // 8, max_length=scene.length, assistant_only_loss=True,
        learning_rate=2e-5 if lora is None else 2e-4, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, bf16=gpu, use_cpu=not gpu, dataloader_pin_memory=gpu, seed=0,
    )  # fmt: skip
    SFTTrainer(
        model=model, args=args, processing_class=scene.tokenizer(), callbacks=[Listener()],
        train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in conversations(scene)]),
        peft_config=peft_config(lora) if lora else None,
    ).train()  # fmt: skip
