"""What every stage that trains with TRL shares: arguments, exact resume, curves, loading and saving.

A stage builds its trainer and hands it over::

    args = arguments(job, SFTConfig, learning_rate=2e-5, max_steps=100, save_steps=50)
    model, tokenizer = load_model(job.input("model").location, job)
    trainer = SFTTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=rows)
    train(trainer, job)                  # resumes from the last good checkpoint, if there is one
    save(job, trainer.model, tokenizer)

The Trainer writes a checkpoint into its final folder bit by bit, so a killed one looks like a finished one. Here a
checkpoint counts once `SEAL`, the digests of its files, has been written next to them, last and by a rename.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from engine.errors import StageFailed
from training.loops.tracking import Tracker, tracked

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

    from engine.stage.job import Job

    Arguments = TypeVar("Arguments", bound=TrainingArguments)

Named = Callable[[list[list[int]]], list[str]]
SEAL = "sealed.json"
KEEP = 2


def arguments(job: Job, config_class: type[Arguments], **overrides: Any) -> Arguments:
    """Training arguments for this job: seeded from it, checkpoints in its scratch, nothing reported elsewhere.

    On a CPU everything is float32. On a GPU that can, matrix products are bfloat16 (weights stay as they were loaded)
    and activations are recomputed in the backward pass.

    Args:
        overrides: fields of `config_class`; they win over what is set here.
    """
    import torch

    quiet()
    gpu = torch.cuda.is_available()
    torch.use_deterministic_algorithms(True, warn_only=True)
    seed = job.derive("trainer") % 2**31
    settings: dict[str, Any] = {
        "output_dir": str(job.scratch / "checkpoints"),
        "seed": seed,
        "data_seed": seed,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": gpu,
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
    return config_class(**{**settings, **overrides})


def quiet() -> None:
    """Keep progress bars and notices of transformers and datasets out of the log."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def train(trainer: Trainer, job: Job, named: Named | None = None, report_to: Tracker = "none") -> None:
    """Train from the last good checkpoint to the end, with curves and progress told to the job.

    Args:
        named: gives the ids of rows by their token ids, to be told when the loss is not a number.
        report_to: where the curves go as well.

    Raises:
        StageFailed: the loss or the gradient is not a number, or a checkpoint could not be written.
    """
    from transformers import PrinterCallback

    batch = _remember(trainer) if named else []
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(
        progress_callback(job, lambda: named([row for inputs in batch for row in sequences(inputs)]) if named else [])
    )
    last = resume_from(job)
    if last:
        job.say(f"resumes from step {Path(last).name.removeprefix('checkpoint-')}")
    with tracked(job, report_to):
        try:
            trainer.train(resume_from_checkpoint=last)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _full(job) from error
        except Exception as error:  # safetensors and torch wrap what the system said
            if "No space left" not in str(error) and "os error 28" not in str(error):
                raise
            raise _full(job) from error


def _full(job: Job) -> StageFailed:
    return StageFailed(
        f"a checkpoint could not be written to {job.scratch / 'checkpoints'}: no space is left on the device. "
        "Make room and run again: it goes on from the checkpoint before."
    )


def _remember(trainer: Any) -> list[dict[str, Any]]:
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
    found: list[list[int]] = []
    masks = inputs.get("attention_mask")
    positions = inputs.get("position_ids")
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        if masks is not None:
            found.append([i for i, kept in zip(ids, masks[row].tolist(), strict=True) if kept])
        elif positions is not None:
            starts = [at for at, position in enumerate(positions[row].tolist()) if position == 0]
            found += [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
        else:
            found.append(ids)
    return found


def resume_from(job: Job) -> str | None:
    """The newest whole checkpoint of this job, or None. Broken and unfinished ones are removed."""
    folder = job.scratch / "checkpoints"
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    while found:
        newest = found.pop()
        if _whole(newest):
            return str(newest)
        shutil.rmtree(newest)
    return None


def progress_callback(job: Job, rows: Callable[[], list[str]] = list) -> TrainerCallback:
    """A callback that turns logs into `job.metric` and `job.progress`, and seals each checkpoint when it is whole.

    Args:
        rows: gives the ids of the rows of the last step.
    """
    import torch
    from transformers import TrainerCallback

    from training.hardware.flops import peak_memory

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    class Progress(TrainerCallback):
        clock, tokens = 0.0, 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.clock = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if not state.is_world_process_zero or not logs or "train_runtime" in logs:
                return
            values = {("lr" if name == "learning_rate" else name): float(value) for name, value in logs.items()}
            loss, norm = values.get("loss", 0.0), values.get("grad_norm", 0.0)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                told = ", ".join(rows())
                raise StageFailed(
                    f"at step {state.global_step} the loss is {loss} and the norm of the gradient {norm} "
                    f"(learning rate {values.get('lr', 0.0):.2g}). "
                    + (f"The batch was of the rows {told}. " if told else "")
                    + "A lower `lr`, a longer `warmup`, or those rows are where to look."
                )
            if "num_tokens" in values:  # TRL counts them from the start, or from where it was resumed
                now = time.monotonic()
                if 0 < self.tokens < values["num_tokens"]:
                    values["tokens_per_s"] = (values["num_tokens"] - self.tokens) / (now - self.clock)
                self.clock, self.tokens = now, values["num_tokens"]
            job.metric(state.global_step, **values, memory_gib=peak_memory(device) / 2**30)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                job.progress(state.global_step, state.max_steps, "steps")

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Progress()


def seal(checkpoint: Path) -> None:
    """Write the digests of a finished checkpoint's files beside them; from now on it counts."""
    digests = {}
    for file in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        digests[file.relative_to(checkpoint).as_posix()] = _digest(file)
    partial = checkpoint / (SEAL + ".partial")
    partial.write_text(json.dumps(digests))
    partial.replace(checkpoint / SEAL)


def _whole(checkpoint: Path) -> bool:
    try:
        digests: dict[str, str] = json.loads((checkpoint / SEAL).read_text())
        return all(_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, json.JSONDecodeError):
        return False


def _digest(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def load_model(location: str, job: Job, quantization: Any = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, by folder (or hub name), ready to be trained.

    Weights come in float32: an optimizer's small steps are lost in bfloat16. An adapter comes merged into its base.
    `job` gives the seed for whatever is drawn afterwards (dropout, new adapters).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    from training.models.lora import base_of, is_adapter, merged

    quiet()
    set_seed(job.derive("model") % 2**31)
    adapter = is_adapter(location)
    options = {"quantization_config": quantization} if quantization else {}
    model: Any = AutoModelForCausalLM.from_pretrained(
        base_of(location, job) if adapter else location, dtype=torch.float32, **options
    )
    if adapter:
        model = merged(model, location)
    return model, AutoTokenizer.from_pretrained(location)


def save(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase, base: str = "") -> None:
    """Write the model in the Hugging Face layout into the job's output, by rank 0 alone.

    What names this machine (the folder it was loaded from) is left out: the same weights give the same files.

    Args:
        base: for an adapter (a PEFT model), the id of the artifact it was trained on.
    """
    if int(os.environ.get("RANK", "0")):
        return
    if base:
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(job.output, save_embedding_layers=False)  # "auto" would ask a model hub
    else:
        model.config._name_or_path = ""
        model.save_pretrained(job.output)
    (job.output / "README.md").unlink(missing_ok=True)  # PEFT's template of a card, with paths in it
    tokenizer.name_or_path = ""
    tokenizer.save_pretrained(job.output)
