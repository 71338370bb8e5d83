"""`dpo`: policy and preferences -> policy, without a reward model (Rafailov et al. 2023, eq. 7), on TRL.

    loss = -log sigmoid(beta (log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)))

The reference is always handed to TRL as a model of its own: left out, TRL 1.16 loads whatever the policy's configuration
names as its origin, which is silently the wrong model once the weights in memory differ from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from engine.job import Job
from engine.stage import NotIdentity, Stage, port
from training import bootstrap
from training.logprobs import token_logprobs
from training.pairs import Pair, load
from training.trl_stage import arguments, load_model, save, train

Loss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop",
]  # fmt: skip


class Dpo(Stage):
    """Train a policy on preferences directly."""

    takes = {
        "policy": port("Model"),
        "preferences": port("Preference", many=True),
        "reference": port("Model", optional=True),
    }
    gives = "Model"
    random = True

    beta: float = Field(0.1, gt=0, description="How strongly the policy is held to the reference.")
    loss: Loss = Field("sigmoid", description="One of TRL's losses. `ipo` is normalised by length there.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of labels believed wrong (cDPO, robust).")
    sft_weight: float = Field(0.0, ge=0, description="Weight of the chosen answer's own log-likelihood (RPO).")
    epochs: int = Field(1, ge=1)
    batch: int = Field(16, ge=1, description="Pairs a step.")
    lr: float = Field(1e-6, gt=0)
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps in which the rate rises.")
    max_length: int = Field(1024, ge=2, description="Longest prompt and answer, in tokens. Longer pairs are left out.")
    held_out: float = Field(0.0, ge=0, lt=1, description="Share of prompts for validation where no row says `split`.")
    checkpoint_every: Annotated[int, NotIdentity] = Field(50, ge=1, description="Steps.")

    def run(self, job: Job) -> None:
        import datasets
        from trl.trainer.dpo_config import DPOConfig

        policy, tokenizer = load_model(job.input("policy").location, job)
        reference, _ = load_model((job.maybe("reference") or job.input("policy")).location, job)
        training, validation = load(job, "preferences", tokenizer, self.max_length, self.held_out)
        steps = -(-len(training) // self.batch) * self.epochs
        args = arguments(
            job,
            DPOConfig,
            beta=self.beta,
            loss_type=[self.loss, "sft"] if self.sft_weight else [self.loss],
            loss_weights=[1.0, self.sft_weight] if self.sft_weight else None,
            label_smoothing=self.label_smoothing,
            num_train_epochs=self.epochs,
            per_device_train_batch_size=self.batch,
            learning_rate=self.lr,
            warmup_steps=int(self.warmup * steps),
            lr_scheduler_type="linear",
            max_length=self.max_length,
            save_steps=self.checkpoint_every,
            disable_dropout=True,
        )
        rows = datasets.Dataset.from_list(
            [
                {
                    "prompt_ids": pair.chosen.prompt,
                    "chosen_ids": pair.chosen.response,
                    "rejected_ids": pair.rejected.response,
                }
                for pair in training
            ]
        )
        trainer = on_token_ids()(
            model=policy, ref_model=reference, args=args, processing_class=tokenizer, train_dataset=rows
        )
        train(trainer, job)
        policy.eval()
        if validation:
            report(job, policy, reference, validation, self.beta)
        save(job, policy, tokenizer)


def on_token_ids() -> type[Any]:
    """TRL's trainer, fed the token ids that are there instead of making them anew from text.

    What follows the end of the turn in a chat template (a line feed, say) would otherwise be trained as an answer.
    """
    from trl.trainer.dpo_trainer import DPOTrainer

    class OnTokenIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return OnTokenIds


def report(job: Job, policy: Any, reference: Any, pairs: list[Pair], beta: float) -> None:
    """How often the policy's implicit reward, beta log(pi/pi_ref), orders held-out pairs as people did."""
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    ours, theirs = token_logprobs(policy, answers), token_logprobs(reference, answers)
    rewards = [beta * float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)]
    difference = np.array(rewards[0::2]) - np.array(rewards[1::2])
    accuracy = bootstrap.mean((np.sign(difference) + 1) / 2, [p.prompt_id for p in pairs], job.seed, "accuracy")
    job.summary(
        validation_pairs=len(pairs),
        accuracy=round(accuracy.value, 6),
        accuracy_low=round(accuracy.low, 6),
        accuracy_high=round(accuracy.high, 6),
        chosen_logratio=round(float(np.mean(rewards[0::2])) / beta, 6),
        rejected_logratio=round(float(np.mean(rewards[1::2])) / beta, 6),
    )
