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

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from engine.errors import StageFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

    from engine.job import Job

    Arguments = TypeVar("Arguments", bound=TrainingArguments)

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


def train(trainer: Trainer, job: Job) -> None:
    """Train from the last good checkpoint to the end, with curves and progress told to the job.

    Raises:
        StageFailed: the loss is not a number.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress_callback(job))
    last = resume_from(job)
    if last:
        job.say(f"resumes from step {Path(last).name.removeprefix('checkpoint-')}")
    trainer.train(resume_from_checkpoint=last)


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


def progress_callback(job: Job) -> TrainerCallback:
    """A callback that turns logs into `job.metric` and `job.progress`, and seals each checkpoint when it is whole."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if not state.is_world_process_zero or not logs or "train_runtime" in logs:
                return
            values = {("lr" if name == "learning_rate" else name): float(value) for name, value in logs.items()}
            if not math.isfinite(values.get("loss", 0.0)):
                raise StageFailed(
                    f"the loss is {values['loss']} at step {state.global_step}: a lower learning rate (`lr`), "
                    "or a look at the rows of that step, is the way out."
                )
            job.metric(state.global_step, **values)

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


def load_model(location: str, job: Job) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, by folder (or hub name), ready to be trained.

    Weights come in float32: an optimizer's small steps are lost in bfloat16. `job` gives the seed for whatever is drawn
    afterwards (dropout, adapters).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    quiet()
    set_seed(job.derive("model") % 2**31)
    model: Any = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(location)


def save(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the model in the Hugging Face layout into the job's output, by rank 0 alone.

    What names this machine (the folder it was loaded from) is left out: the same weights give the same files.
    """
    if int(os.environ.get("RANK", "0")):
        return
    model.config._name_or_path = ""
    model.save_pretrained(job.output, safe_serialization=True)
    tokenizer.name_or_path = ""
    tokenizer.save_pretrained(job.output)
