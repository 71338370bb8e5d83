"""What every stage that trains with TRL shares: arguments, exact resume, curves.

A stage builds its trainer and hands it over::

    args = arguments(job, SFTConfig, "auto", False, learning_rate=2e-5, max_steps=100, save_steps=50)
    model, tokenizer = load_model(job.input("model").location, job)
    trainer = SFTTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=rows)
    train(trainer, job)                  # resumes from the last good checkpoint, if there is one
    save(job, trainer.model, tokenizer)

The Trainer writes a checkpoint into its final folder bit by bit, so a killed one looks like a finished one. Here a
checkpoint counts once it is sealed.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import PrinterCallback, TrainerCallback

from engine.errors import StageFailed
from training.hardware.flops import peak_memory
from training.loops.clock import Clock
from training.loops.distributed import put_together, rank
from training.loops.lead_files import from_lead_file
from training.loops.patches import score_learnt_tokens
from training.loops.sealed import is_whole, seal
from training.loops.tracking import tracked
from training.models.load import quiet
from training.models.precision import products

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from engine.stage.job import Job
    from training.loops.tracking_settings import Tracker
    from training.models.lora_settings import Lora
    from training.models.precision_settings import Precision

    Arguments = TypeVar("Arguments", bound=TrainingArguments)

RowIds = Callable[[list[list[int]]], list[str]]
KEEP = 2  # checkpoints


def arguments(
    job: Job, config_class: type[Arguments], dtype: Precision, recompute: bool, **overrides: Any
) -> Arguments:
    """Training arguments for this job: seeded from it, checkpoints in its scratch, nothing reported elsewhere.

    Args:
        dtype: of matrix products; weights stay as they were loaded.
        recompute: activations in the backward pass.
        overrides: fields of `config_class`; they win over what is set here.
    """
    quiet()
    score_learnt_tokens()
    gpu = torch.cuda.is_available()
    torch.use_deterministic_algorithms(True, warn_only=True)
    seed = job.derive("trainer") % 2**31
    settings: dict[str, Any] = {
        "output_dir": str(job.scratch / "checkpoints"),
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not gpu,
        "bf16": products(dtype) == torch.bfloat16,
        "gradient_checkpointing": recompute,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": gpu,
        "save_strategy": "steps",
        "save_steps": 100,
        "save_total_limit": KEEP,
        "logging_steps": 1,
        # A NaN must stop the run, not be averaged away.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    own = torch.cuda.current_device() if gpu else 0
    made: Any = config_class(**{**settings, **overrides})
    if gpu:
        # transformers would take the first GPU, and spread batches over all others (DataParallel). Each process has its own.
        torch.cuda.set_device(own)
        made.__dict__["_setup_devices"] = torch.device("cuda", own)
        made._n_gpu = 1
    return made


def train(trainer: Trainer, job: Job, row_ids: RowIds | None = None, report_to: Tracker = "none") -> None:
    """Train from the last good checkpoint to the end, with curves and progress reported to the job.

    Args:
        row_ids: gives the ids of rows by their token ids, to be named when the loss is not a number.
        report_to: where the curves go as well.

    Raises:
        StageFailed: the loss or the gradient is not a number, or a checkpoint could not be written.
    """
    batch = _last_batch(trainer) if row_ids else []

    def last_rows() -> list[str]:
        return row_ids([row for inputs in batch for row in sequences(inputs)]) if row_ids else []

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainerProgress(job, last_rows))
    last = from_lead_file(lambda: resume_from(job), job.scratch)
    if last:
        job.say(f"resumes from step {last.name.removeprefix('checkpoint-')}")
    with tracked(job, report_to):
        try:
            trainer.train(resume_from_checkpoint=last and str(last))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _full(job) from error
        except Exception as error:  # safetensors and torch wrap what the system said
            if "No space left" not in str(error) and "os error 28" not in str(error):
                raise
            raise _full(job) from error


def trained_model(trainer: Any, load: Callable[[], Any], lora: Lora | None) -> Any:
    """The model that was trained, whole in rank 0; all processes must ask.

    Args:
        load: the model as it was; used where the processes have split the one that learnt.
    """

    def another() -> Any:
        if lora is None:
            return load()
        # PEFT takes seconds to import.
        from peft import get_peft_model

        from training.models.lora import peft_config

        return get_peft_model(load(), peft_config(lora))

    return put_together(trainer.accelerator.unwrap_model(trainer.model), another)


def _full(job: Job) -> StageFailed:
    return StageFailed(
        f"a checkpoint could not be written to {job.scratch / 'checkpoints'}: no space is left on the device. "
        "Make room and run again: it goes on from the checkpoint before."
    )


def _last_batch(trainer: Any) -> list[dict[str, Any]]:
    """A list that always holds what the model is given in the optimizer step under way."""
    batch: list[dict[str, Any]] = []
    step_of, at = trainer.training_step, -1

    def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal at
        if trainer.state.global_step != at:
            at = trainer.state.global_step
            batch.clear()
        batch.append({name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs})
        return step_of(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    return batch


def sequences(inputs: dict[str, Any]) -> list[list[int]]:
    """The token ids of each row of a batch, without padding; packed rows one by one."""
    rows: list[list[int]] = []
    masks = inputs.get("attention_mask")
    positions = inputs.get("position_ids")
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        if masks is not None:
            rows.append([i for i, real in zip(ids, masks[row].tolist(), strict=True) if real])
        elif positions is not None:
            starts = [at for at, position in enumerate(positions[row].tolist()) if position == 0]
            rows += [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
        else:
            rows.append(ids)
    return rows


def resume_from(job: Job) -> Path | None:
    """The newest whole checkpoint of this job, or None. Broken and unfinished ones are removed."""
    folder = job.scratch / "checkpoints"
    by_step = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    for newest in reversed(by_step):
        if is_whole(newest):
            return newest
        shutil.rmtree(newest)
    return None


class TrainerProgress(TrainerCallback):
    """Turns the trainer's logs into `job.metric` and `job.progress`, and seals each checkpoint when it is whole.

    Args:
        last_rows: gives the ids of the rows of the last step.
    """

    def __init__(self, job: Job, last_rows: Callable[[], list[str]]) -> None:
        self.job, self.last_rows = job, last_rows
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clock, self.tokens = Clock(), 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock.read()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if rank() or not logs or "train_runtime" in logs:  # all processes have the same; one tells it
            return
        values = {
            ("lr" if name == "learning_rate" else name): float(value)
            for name, value in logs.items()
            if value is not None
        }
        loss, norm = values.get("loss", 0.0), values.get("grad_norm", 0.0)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            rows = ", ".join(self.last_rows())
            raise StageFailed(
                f"at step {state.global_step} the loss is {loss} and the norm of the gradient {norm} "
                f"(learning rate {values.get('lr', 0.0):.2g}). "
                + (f"The batch was of the rows {rows}. " if rows else "")
                + "A lower `lr`, a longer `warmup`, or those rows are where to look."
            )
        values |= self.clock.read()
        if "num_tokens" in values:  # TRL counts them from the start, or from where it was resumed
            if 0 < self.tokens < values["num_tokens"]:
                values["tokens_per_s"] = (values["num_tokens"] - self.tokens) / values["seconds"]
            self.tokens = values["num_tokens"]
        self.job.metric(state.global_step, **values, memory_gib=peak_memory(self.device) / 2**30)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if rank() == 0:
            self.job.progress(state.global_step, state.max_steps, "steps")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if rank() == 0:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
