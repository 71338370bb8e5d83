"""Kahneman-Tversky optimisation, by TRL's trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from engine.errors import UserError
from engine.seeds import shuffled
from generators.text.chat_template import Unusable
from generators.text.learning_template import learning
from training.loops.trl import arguments, train
from training.models.answers import EncodedAnswer, encode
from training.models.load import load_model, load_reference, save_trained
from training.models.lora import peft_config
from training.models.splits import check_split
from training.preference.kto_stage import Kto
from training.preference.pairs import Pair, load, set_aside
from training.preference.report import report
from training.preference.token_ids import on_token_ids

if TYPE_CHECKING:
    from engine.stage.job import Job


def train_on_marks(stage: Kto, job: Job) -> None:
    """Train on all answers that are marked.

    Raises:
        UserError: all of them are good, or none is.
    """
    source = job.input("policy")
    policy, tokenizer = load_model(source.location, job)
    reference = load_reference(job, stage.lora)
    marked: list[Marked] = []
    validation: list[Pair] = []
    if job.all("preferences"):
        pairs, validation = load(job, "preferences", tokenizer, stage.max_length, stage.held_out)
        marked += [
            m for p in pairs for m in (Marked(p.prompt_id, p.chosen, True), Marked(p.prompt_id, p.rejected, False))
        ]
    if job.all("candidates"):
        marked += judged(job, tokenizer, stage.metric, stage.above, stage.max_length)
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
    trainer = on_token_ids(KTOTrainer)(
        model=policy,
        ref_model=reference,
        args=args,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=peft_config(stage.lora) if stage.lora else None,
    )
    train(trainer, job, report_to=stage.report_to)
    job.summary(good=good, bad=len(marked) - good, good_weight=round(weight, 6))
    trained = trainer.accelerator.unwrap_model(trainer.model).eval()
    if validation:
        report(job, trained, reference, validation, stage.beta)
    save_trained(job, trained, tokenizer, stage.lora, source)


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
