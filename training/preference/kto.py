"""Kahneman-Tversky optimisation, by TRL's trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import torch
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from engine.errors import UserError
from engine.seeds import shuffled
from generators.text.chat_template import Unusable
from generators.text.learning_template import learning
from training.loops.distributed import dealt, everywhere, from_lead, rank, total
from training.loops.passes import bound, in_passes, recomputes
from training.loops.process_group import share_work
from training.loops.trl import arguments, train, trained_model
from training.models.answers import EncodedAnswer, encode
from training.models.load import base_dtype, load_model, load_reference, save_trained
from training.models.lora import peft_config
from training.models.precision import autocast, products
from training.models.splits import check_split
from training.preference.kto_stage import Kto
from training.preference.pairs import Pair, load, set_aside
from training.preference.report import report, whole_reference
from training.preference.token_ids import on_token_ids

if TYPE_CHECKING:
    from engine.stage.job import Job


def train_on_marks(stage: Kto, job: Job) -> None:
    """Train on all answers that are marked.

    Raises:
        UserError: all of them are good, or none is.
    """
    share_work(stage, job, learn, stage.batch, ("peft", "trl.trainer.kto_trainer", __name__))


def learn(stage: Kto, job: Job) -> None:
    """What each process does."""
    source = job.input("policy")
    width = products(stage.dtype)
    weights = base_dtype(source.location, job, stage.lora, width)
    policy, tokenizer = load_model(source.location, job, dtype=weights)
    reference = load_reference(job, stage.lora, width)
    marked, validation = from_lead(lambda: load_marked(stage, job, tokenizer))
    good = sum(m.good for m in marked)
    if not good or good == len(marked):
        raise UserError(
            f"{good} of {len(marked)} answers are good: KTO needs good and bad ones. Give `preferences`, or "
            "`candidates` with a `label` or with `verdicts` on both sides of `above`."
        )
    weight = stage.good_weight or stage.bad_weight * (len(marked) - good) / good
    rows = rotated([marked[i] for i in shuffled(range(len(marked)), job.seed, "marked")], stage.batch)
    args = arguments(
        job,
        KTOConfig,
        stage.dtype,
        recomputes(stage),
        beta=stage.beta,
        loss_type=stage.loss,
        desirable_weight=weight,
        undesirable_weight=stage.bad_weight,
        num_train_epochs=stage.epochs,
        per_device_train_batch_size=stage.batch,
        learning_rate=stage.lr,
        warmup_steps=int(stage.warmup * -(-len(rows) // stage.batch) * stage.epochs),
        lr_scheduler_type="linear",
        max_length=stage.max_length,
        save_steps=stage.checkpoint_every,
        disable_dropout=True,
    )
    learner = with_one_kl(
        in_passes(
            on_token_ids(KTOTrainer), bound(stage, policy.config, stage.max_length), stage.micro_batch,
            sharding=stage.sharding,
        )
    )  # fmt: skip
    trainer = learner(
        model=policy,
        ref_model=reference,
        args=args,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=peft_config(stage.lora) if stage.lora else None,
    )
    train(trainer, job, report_to=stage.report_to)
    job.summary(good=good, bad=len(marked) - good, good_weight=round(weight, 6))
    trained = trained_model(trainer, lambda: load_model(source.location, job, dtype=weights)[0], stage.lora)
    if rank():
        return
    trained.to(trainer.args.device).eval()
    if validation:
        reference = whole_reference(reference, lambda: load_reference(job, stage.lora, width))
        with autocast(trained.device, width):
            report(job, trained, reference, validation, stage.beta)
    save_trained(job, trained, tokenizer, stage.lora, source)


def load_marked(stage: Kto, job: Job, tokenizer: Any) -> tuple[list[Marked], list[Pair]]:
    """The answers that are trained on, and the pairs that are held out."""
    marked: list[Marked] = []
    validation: list[Pair] = []
    if job.all("preferences"):
        pairs, validation = load(job, "preferences", tokenizer, stage.max_length, stage.held_out)
        marked += [
            m for p in pairs for m in (Marked(p.prompt_id, p.chosen, True), Marked(p.prompt_id, p.rejected, False))
        ]
    if job.all("candidates"):
        marked += judged(job, tokenizer, stage.metric, stage.above, stage.max_length)
    return marked, validation


def with_one_kl(trainer: type[Any]) -> type[Any]:
    """The trainer with z0 estimated once, from all answers of a batch, before its parts are learnt from."""

    class WithOneKl(trainer):
        z0: torch.Tensor | None = None
        _sides: Iterator[torch.Tensor] = iter(())

        def before_passes(self, model: Any, parts: list[dict[str, Any]]) -> None:
            self.z0 = None
            if not self.calculate_KL:
                return
            summed, rows = torch.zeros((), device=self.accelerator.device), 0.0
            unwrapped = self.accelerator.unwrap_model(self.model)
            with torch.no_grad(), self.compute_loss_context_manager():
                for number, counts in dealt(len(parts)):
                    part = parts[number]
                    ours = super()._compute_kl_logps(model, part)
                    with unwrapped.disable_adapter() if self.ref_model is None else nullcontext():
                        theirs = super()._compute_kl_logps(self.ref_model or self.model, part)
                    summed, rows = summed + counts * (ours - theirs).sum(), rows + counts * len(ours)
            self.z0 = total(summed) / sum(everywhere(rows))

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            told = self._metrics["train"]
            chosen, rejected = told.get("rewards/chosen"), told.get("rewards/rejected")
            if (
                chosen and rejected and "rewards/margins" not in told
            ):  # TRL tells it of passes with answers of both kinds
                told["rewards/margins"] = [sum(chosen) / len(chosen) - sum(rejected) / len(rejected)]
            return loss

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            if self.z0 is not None:
                self._sides = iter((self.z0[None], torch.zeros_like(self.z0)[None]))
            return super().compute_loss(*args, **kwargs)

        def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
            """TRL takes the mean difference of what this gives for the policy and then for the reference."""
            return super()._compute_kl_logps(model, batch) if self.z0 is None else next(self._sides)

    return WithOneKl


@dataclass(frozen=True)
class Marked:
    """An answer and whether it is good."""

    prompt_id: str
    answer: EncodedAnswer
    good: bool


def judged(job: Job, tokenizer: Any, metric: str | None, above: float, max_length: int) -> list[Marked]:
    """Candidates that are marked: by the verdict on them, or by a `label` of their own. Those without are counted in the summary;
    too long ones, those of another split, and what the chat template can't show the model, are rejected rows.

    Raises:
        UserError: there is no such metric, or several and none was named; without verdicts, no candidate has a label.
    """
    marked: list[Marked] = []
    template, rejected = learning(tokenizer), list[dict[str, Any]]()
    rows = [row for artifact in job.all("candidates") for row in artifact.to_table().to_pylist()]
    marks = _marks(job, rows, metric, above)
    for row in rows:
        if row["id"] not in marks:
            continue
        try:
            check_split(row)
            answer = encode(template, row["prompt"] or [], row["completion"] or [], row.get("tools"))
            if len(answer) > max_length:
                raise Unusable(
                    "too_long", f"{len(answer)} tokens with the prompt, of at most {max_length} (`max_length`)"
                )
        except Unusable as fault:
            rejected.append({**row, "reason": fault.reason, "detail": fault.detail, "failed": False})
            continue
        marked.append(Marked(row["prompt_id"], answer, marks[row["id"]]))
    if left_out := set_aside(job, "candidates", rejected):
        job.summary(candidates_left_out=left_out)
    job.summary(candidates=len(rows), candidates_used=len(marked))
    return marked


def _marks(job: Job, rows: list[dict[str, Any]], metric: str | None, above: float) -> dict[str, bool]:
    """Id of a candidate -> whether it is good."""
    verdicts = [row for artifact in job.all("verdicts") for row in artifact.to_table().to_pylist()]
    if not verdicts:
        labels = {row["id"]: row["label"] for row in rows if row.get("label") is not None}
        if not labels:
            raise UserError(
                "nothing says which candidates are good: give `verdicts`, or rows with a `label` (true or false)."
            )
        return labels
    metrics = sorted({row["metric"] for row in verdicts})
    if metric is None and len(metrics) == 1:
        (metric,) = metrics
    if metric not in metrics:
        raise UserError(f"`metric` is {metric}; the verdicts have {', '.join(metrics)}.")
    return {
        row["subject"]: row["value"] > above for row in verdicts if row["metric"] == metric and row["value"] is not None
    }


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
