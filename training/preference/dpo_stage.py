"""`dpo`: policy and preferences -> policy, without a reward model (Rafailov et al. 2023, eq. 7), on TRL.

    loss = -log sigmoid(beta (log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)))

The reference is always handed to TRL as a model of its own: left out, TRL 1.16 loads whatever the policy's configuration
names as its origin, which is silently the wrong model once the weights in memory differ from it. With `lora` the policy
without its adapter is the reference, and there is one copy of the weights.

`simpo` (Meng et al. 2024), `orpo` (Hong et al. 2024) and `cpo` (Xu et al. 2024) need no reference; TRL keeps them apart.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from engine.stage.job import Job
from engine.stage.stage import Device, NotIdentity, Stage, port
from engine.statistics import bootstrap
from training.hardware import memory
from training.loops.tracking_settings import ReportTo
from training.loops.trl import arguments, train
from training.models.load import load_model, save
from training.models.logprobs import token_logprobs
from training.models.lora import peft_config
from training.models.lora_settings import Lora
from training.preference.pairs import Pair, load

Loss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "simpo", "cpo", "orpo",
]  # fmt: skip
REFERENCE_FREE = ("simpo", "cpo", "orpo")
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired", "simpo", "cpo")


class Dpo(Stage):
    """Train a policy on preferences directly."""

    takes = {
        "policy": port("Model", "Adapter"),
        "preferences": port("Preference", many=True),
        "reference": port("Model", "Adapter", optional=True),
    }
    gives = "Model"
    random = True
    version = 2

    beta: float = Field(0.1, gt=0, description="How strongly the policy is held to the reference. `orpo`: lambda.")
    loss: Loss = Field("sigmoid", description="One of TRL's losses. `ipo` and `sigmoid_norm` are divided by length.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of labels believed wrong; for robust, exo_pair, aot, simpo and cpo."
    )
    length_decay: float | None = Field(
        None, ge=0, le=1, description="LD-DPO's alpha: how much tokens beyond the shorter answer's length count."
    )
    target_margin: float = Field(0.5, ge=0, description="SimPO's gamma: by how much chosen should lead.")
    sft_weight: float = Field(0.0, ge=0, description="Weight of the chosen answer's own log-likelihood (RPO, CPO).")
    epochs: int = Field(1, ge=1)
    batch: int = Field(16, ge=1, description="Pairs a step.")
    micro_batch: int | None = Field(None, ge=1, description="In memory at once, on each device; `batch` if left out.")
    lr: float = Field(1e-6, gt=0)
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps in which the rate rises.")
    max_length: int = Field(1024, ge=2, description="Longest prompt and answer, in tokens. Longer pairs are left out.")
    held_out: float = Field(0.0, ge=0, lt=1, description="Share of prompts for validation where no row says `split`.")
    lora: Lora | None = Field(None, description="Train an adapter; the policy without it is the reference.")
    checkpoint_every: Annotated[int, NotIdentity] = Field(50, ge=1, description="Steps.")
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Dpo:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"`micro_batch` ({self.micro_batch}) must divide `batch` ({self.batch})")
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(f"`label_smoothing` has no effect on `{self.loss}`; it has on {', '.join(SMOOTHED)}")
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("`exo_pair` needs a `label_smoothing` above 0; its paper recommends 0.001")
        if self.length_decay is not None and self.loss in REFERENCE_FREE:
            raise ValueError(f"`length_decay` has no effect on `{self.loss}`")
        if self.loss == "orpo" and self.sft_weight:
            raise ValueError("`orpo` holds the chosen answer's likelihood already: leave out `sft_weight`")
        return self

    def output(self, given: dict[str, list[str]]) -> str:
        return "Adapter" if self.lora and not self.lora.merge else "Model"

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        size, references = self.micro_batch or self.batch, int(not self.lora and self.loss not in REFERENCE_FREE)
        return memory.forecast_fine_tuning(
            given["policy"][0], device, self.lora, self.max_length, self.batch, size, rows=2, references=references
        )

    def run(self, job: Job) -> None:
        policy, tokenizer = load_model(job.input("policy").location, job)
        given = job.maybe("reference")
        if self.loss in REFERENCE_FREE or (self.lora and not given):
            reference = None
        else:
            reference, _ = load_model((given or job.input("policy")).location, job)
        training, validation = load(job, "preferences", tokenizer, self.max_length, self.held_out)
        size = self.micro_batch or self.batch
        settings: dict[str, Any] = {
            "beta": self.beta,
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": self.batch // size,
            "learning_rate": self.lr,
            "warmup_steps": int(self.warmup * -(-len(training) // self.batch) * self.epochs),
            "lr_scheduler_type": "linear",
            "max_length": self.max_length,
            "save_steps": self.checkpoint_every,
            "disable_dropout": True,
        }
        if self.loss in REFERENCE_FREE:
            trainer = self._reference_free(job, policy, tokenizer, training, settings)
        else:
            trainer = self._held_to(job, policy, reference, tokenizer, training, settings)
        train(trainer, job, report_to=self.report_to)
        trained = trainer.accelerator.unwrap_model(trainer.model).eval()
        if validation:
            report(job, trained, reference, validation, self.beta, self.loss)
        if self.lora and self.lora.merge:
            trained = trained.merge_and_unload()
        save(job, trained, tokenizer, job.input("policy").id if self.lora and not self.lora.merge else "")

    def _held_to(
        self, job: Job, policy: Any, reference: Any, tokenizer: Any, pairs: list[Pair], settings: dict[str, Any]
    ) -> Any:
        import datasets
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        args = arguments(
            job,
            DPOConfig,
            **settings,
            loss_type=[self.loss, "sft"] if self.sft_weight else [self.loss],
            loss_weights=[1.0, self.sft_weight] if self.sft_weight else None,
            label_smoothing=self.label_smoothing,
            ld_alpha=self.length_decay,
        )
        rows = [
            {"prompt_ids": p.chosen.prompt, "chosen_ids": p.chosen.response, "rejected_ids": p.rejected.response}
            for p in pairs
        ]
        return on_token_ids(DPOTrainer)(
            model=policy,
            ref_model=reference,
            args=args,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(rows),
            peft_config=peft_config(self.lora) if self.lora else None,
        )

    def _reference_free(
        self, job: Job, policy: Any, tokenizer: Any, pairs: list[Pair], settings: dict[str, Any]
    ) -> Any:
        import datasets

        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        if self.loss == "orpo":
            from trl.experimental import orpo as home

            Config, Trainer = home.ORPOConfig, home.ORPOTrainer
        else:
            from trl.experimental import cpo as home

            Config, Trainer = home.CPOConfig, home.CPOTrainer
            settings |= {
                "loss_type": "simpo" if self.loss == "simpo" else "sigmoid",
                "cpo_alpha": self.sft_weight,
                "simpo_gamma": self.target_margin,
                "label_smoothing": self.label_smoothing,
            }
        args: Any = arguments(job, Config, **settings, remove_unused_columns=False)
        rows: list[dict[str, list[int]]] = []
        for pair in pairs:
            row = {"prompt_input_ids": pair.chosen.prompt, "prompt_attention_mask": [1] * len(pair.chosen.prompt)}
            for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                row[f"{side}_input_ids"] = [*answer.prompt, *answer.response]
                row[f"{side}_attention_mask"] = [1] * len(answer)
                row[f"{side}_labels"] = [-100] * len(answer.prompt) + answer.response
            rows.append(row)

        return on_token_ids(Trainer)(
            model=policy,
            args=args,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(rows),
            peft_config=peft_config(self.lora) if self.lora else None,
        )


def on_token_ids(trainer: type[Any]) -> type[Any]:
    """TRL's trainer, fed the token ids that are there instead of making them anew from text.

    What follows the end of the turn in a chat template (a line feed, say) would otherwise be trained as an answer.
    """

    class OnTokenIds(trainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
            """The same, of the trainers without a reference."""
            return feature

    return OnTokenIds


def report(job: Job, policy: Any, reference: Any, pairs: list[Pair], beta: float, loss: str) -> None:
    """How often the policy's implicit reward orders held-out pairs as people did.

    The reward is beta log(pi/pi_ref); of losses without a reference, beta times the mean log-probability of a token.
    """
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    ours = token_logprobs(policy, answers)
    if loss in REFERENCE_FREE:
        ratios = [float(a.mean()) for a in ours]
    else:
        with policy.disable_adapter() if reference is None else nullcontext():
            theirs = token_logprobs(reference or policy, answers)
        ratios = [float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)]
    difference = np.array(ratios[0::2]) - np.array(ratios[1::2])
    accuracy = bootstrap.mean((np.sign(difference) + 1) / 2, [p.prompt_id for p in pairs], job.seed, "accuracy")
    # The shorter answer wins this often: what a policy that only learnt to be brief (or long) would get, or 1 less it.
    shorter = np.mean([np.sign(len(p.rejected.response) - len(p.chosen.response)) / 2 + 0.5 for p in pairs])
    job.summary(
        validation_pairs=len(pairs),
        accuracy=round(accuracy.value, 6),
        accuracy_low=round(accuracy.low, 6),
        accuracy_high=round(accuracy.high, 6),
        accuracy_of_length=round(float(max(shorter, 1 - shorter)), 6),
        chosen_logratio=round(float(np.mean(ratios[0::2])), 6),
        rejected_logratio=round(float(np.mean(ratios[1::2])), 6),
        reward_margin=round(beta * float(difference.mean()), 6),
    )
