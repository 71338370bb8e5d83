"""`kto`: policy and answers that are good or bad, each for itself -> policy (Ethayarajh et al. 2024, eq. 7), on TRL.

    loss = lambda_y - lambda_y sigmoid(+-(beta log pi(y|x)/pi_ref(y|x) - z0)),   + for good answers, - for bad ones

z0 estimates the KL to the reference from answers paired with another prompt of the batch, so that a thumb up or down is
enough. Pairs are taken apart: the chosen answer is good, the rejected one bad.

The reference is always handed to TRL as a model of its own, for the reason given in `training.preference.dpo_stage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from engine.errors import UserError
from engine.seeds import shuffled
from engine.stage.job import Job
from engine.stage.stage import Device, NotIdentity, Stage, port
from training.hardware import memory
from training.loops.tracking_settings import ReportTo
from training.loops.trl import arguments, train
from training.models.answers import Answer, encode
from training.models.load import load_model, save
from training.models.lora import peft_config
from training.models.lora_settings import Lora
from training.preference.dpo_stage import on_token_ids, report
from training.preference.pairs import load


class Kto(Stage):
    """Train a policy on answers that are marked good or bad."""

    takes = {
        "policy": port("Model", "Adapter"),
        "preferences": port("Preference", many=True, optional=True),
        "candidates": port("Candidate", many=True, optional=True),
        "verdicts": port("Verdict", many=True, optional=True),
        "reference": port("Model", "Adapter", optional=True),
    }
    gives = "Model"
    random = True

    metric: str | None = Field(None, description="Which of the `verdicts` says whether a candidate is good.")
    above: float = Field(0.5, description="A candidate is good if the verdict is greater than this.")
    beta: float = Field(0.1, gt=0, description="How strongly the policy is held to the reference.")
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    good_weight: float | None = Field(
        None, gt=0, description="lambda of good answers; chosen so that both kinds weigh the same if left out."
    )
    bad_weight: float = Field(1.0, gt=0, description="lambda of bad answers.")
    epochs: int = Field(1, ge=1)
    batch: int = Field(16, ge=2, description="Answers a step, at least 2: z0 needs another prompt's answer.")
    lr: float = Field(1e-6, gt=0)
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps in which the rate rises.")
    max_length: int = Field(1024, ge=2, description="Longest prompt and answer, in tokens. Longer ones are left out.")
    held_out: float = Field(0.0, ge=0, lt=1, description="Share of prompts for validation where no row says `split`.")
    lora: Lora | None = Field(None, description="Train an adapter; the policy without it is the reference.")
    checkpoint_every: Annotated[int, NotIdentity] = Field(50, ge=1, description="Steps.")
    report_to: ReportTo = "none"

    def output(self, given: dict[str, list[str]]) -> str:
        return "Adapter" if self.lora and not self.lora.merge else "Model"

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        return memory.forecast_fine_tuning(
            given["policy"][0], device, self.lora, self.max_length, self.batch, references=int(not self.lora)
        )

    def run(self, job: Job) -> None:
        import datasets
        from trl.trainer.kto_config import KTOConfig
        from trl.trainer.kto_trainer import KTOTrainer

        policy, tokenizer = load_model(job.input("policy").location, job)
        given = job.maybe("reference")
        reference = None if self.lora and not given else load_model((given or job.input("policy")).location, job)[0]
        marked: list[Marked] = []
        validation: list[Any] = []
        if job.all("preferences"):
            pairs, validation = load(job, "preferences", tokenizer, self.max_length, self.held_out)
            marked += [
                m for p in pairs for m in (Marked(p.prompt_id, p.chosen, True), Marked(p.prompt_id, p.rejected, False))
            ]
        if job.all("candidates"):
            marked += judged(job, tokenizer, self.metric, self.above, self.max_length)
        good = sum(m.good for m in marked)
        if not good or good == len(marked):
            raise UserError(
                f"{good} of {len(marked)} answers are good: KTO needs good and bad ones. Give `preferences`, or "
                "`candidates` with `verdicts` on both sides of `above`."
            )
        weight = self.good_weight or self.bad_weight * (len(marked) - good) / good
        rows = rotated([marked[i] for i in shuffled(range(len(marked)), job.seed, "marked")], self.batch)
        args = arguments(
            job,
            KTOConfig,
            beta=self.beta,
            loss_type=self.loss,
            desirable_weight=weight,
            undesirable_weight=self.bad_weight,
            num_train_epochs=self.epochs,
            per_device_train_batch_size=self.batch,
            learning_rate=self.lr,
            warmup_steps=int(self.warmup * -(-len(rows) // self.batch) * self.epochs),
            lr_scheduler_type="linear",
            max_length=self.max_length,
            save_steps=self.checkpoint_every,
            disable_dropout=True,
        )
        trainer = on_token_ids(KTOTrainer)(
            model=policy,
            ref_model=reference,
            args=args,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(rows),
            peft_config=peft_config(self.lora) if self.lora else None,
        )
        train(trainer, job, report_to=self.report_to)
        job.summary(good=good, bad=len(marked) - good, good_weight=round(weight, 6))
        trained = trainer.accelerator.unwrap_model(trainer.model).eval()
        if validation:
            report(job, trained, reference, validation, self.beta, self.loss)
        if self.lora and self.lora.merge:
            trained = trained.merge_and_unload()
        save(job, trained, tokenizer, job.input("policy").id if self.lora and not self.lora.merge else "")


@dataclass(frozen=True)
class Marked:
    """An answer and whether it is good."""

    prompt_id: str
    answer: Answer
    good: bool


def judged(job: Job, tokenizer: Any, metric: str | None, above: float, max_length: int) -> list[Marked]:
    """Candidates with the verdict on them; those without one or too long are counted in the summary.

    Raises:
        UserError: there is no such metric, or several and none was named.
    """
    verdicts = [row for artifact in job.all("verdicts") for row in artifact.to_table().to_pylist()]
    metrics = sorted({row["metric"] for row in verdicts})
    if metric is None and len(metrics) == 1:
        (metric,) = metrics
    if metric not in metrics:
        raise UserError(f"`metric` is {metric}; the verdicts have {', '.join(metrics) or 'none'}.")
    values = {row["subject"]: row["value"] for row in verdicts if row["metric"] == metric and row["value"] is not None}
    marked: list[Marked] = []
    rows = [row for artifact in job.all("candidates") for row in artifact.to_table().to_pylist()]
    for row in rows:
        if row["id"] not in values:
            continue
        answer = encode(tokenizer, row["prompt"], row["completion"])
        if len(answer) <= max_length:
            marked.append(Marked(row["prompt_id"], answer, values[row["id"]] > above))
    job.summary(candidates=len(rows), candidates_used=len(marked))
    return marked


def rotated(marked: Sequence[Marked], batch: int) -> list[dict[str, Any]]:
    """Rows for TRL's trainer. Each carries the answer of the row before it in its batch, from which z0 is estimated.

    A last batch of one would be compared with itself: it takes the answer of the very first row.
    """
    rows: list[dict[str, Any]] = []
    for start in range(0, len(marked), batch):
        group = marked[start : start + batch]
        for place, m in enumerate(group):
            other = marked[0] if len(group) == 1 else group[place - 1]
            rows.append(
                {
                    "prompt_ids": m.answer.prompt,
                    "completion_ids": m.answer.response,
                    "KL_completion_ids": other.answer.response,
                    "label": m.good,
                }
            )
    return rows
