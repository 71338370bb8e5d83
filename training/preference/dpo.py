"""Direct preference optimisation, by TRL's trainers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import datasets
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from training.loops.distributed import from_lead, rank
from training.loops.passes import bound, in_passes, recomputes
from training.loops.process_group import share_work
from training.loops.trl import arguments, train, trained_model
from training.models.load import base_dtype, load_model, load_reference, save_trained
from training.models.lora import peft_config
from training.models.precision import autocast, products
from training.preference.dpo_stage import Dpo
from training.preference.pairs import load
from training.preference.report import report, whole_reference
from training.preference.token_ids import on_token_ids

if TYPE_CHECKING:
    from engine.stage.job import Job
    from training.preference.pairs import Pair


def train_on_pairs(stage: Dpo, job: Job) -> None:
    share_work(stage, job, learn, stage.shareable, ("peft", "trl.trainer.dpo_trainer", __name__))


def learn(stage: Dpo, job: Job) -> None:
    """What each process does."""
    source = job.input("policy")
    width = products(stage.dtype)
    weights = base_dtype(source.location, job, stage.lora, width)
    policy, tokenizer = load_model(source.location, job, dtype=weights)
    reference = None if stage.reference_free else load_reference(job, stage.lora, width)
    training, validation = from_lead(
        lambda: load(job, "preferences", tokenizer, stage.max_length, stage.held_out, stage.reasoning)
    )
    settings: dict[str, Any] = {
        "beta": stage.beta,
        "num_train_epochs": stage.epochs,
        "per_device_train_batch_size": stage.batch,
        "learning_rate": stage.lr,
        "warmup_steps": int(stage.warmup * -(-len(training) // stage.batch) * stage.epochs),
        "lr_scheduler_type": "linear",
        "max_length": stage.max_length,
        "dtype": stage.dtype,
        "recompute": recomputes(stage),
        "save_steps": stage.checkpoint_every,
        "disable_dropout": True,
    }
    trainer_class, args, rows = (without_reference if stage.reference_free else held_to_reference)(
        stage, job, training, settings
    )
    learner = in_passes(
        on_token_ids(trainer_class),
        bound(stage, policy.config, stage.max_length),
        stage.at_once,
        pairs=not stage.reference_free,
        sharding=stage.sharding,
        together=stage.together,
    )
    trainer = learner(
        model=policy,
        args=args,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=peft_config(stage.lora) if stage.lora else None,
        **({} if stage.reference_free else {"ref_model": reference}),
    )
    train(trainer, job, report_to=stage.report_to)
    trained = trained_model(trainer, lambda: load_model(source.location, job, dtype=weights)[0], stage.lora)
    if rank():
        return
    trained.to(trainer.args.device).eval()
    if validation:
        reference = whole_reference(reference, lambda: load_reference(job, stage.lora, width))
        with autocast(trained.device, width):
            report(job, trained, reference, validation, stage.beta, against_reference=not stage.reference_free)
    save_trained(job, trained, tokenizer, stage.lora, source)


def held_to_reference(stage: Dpo, job: Job, pairs: list[Pair], settings: dict[str, Any]) -> tuple[type, Any, list[Any]]:
    """TRL's trainer of the losses that hold a policy to a reference, its arguments, and its rows."""
    args = arguments(
        job,
        DPOConfig,
        **settings,
        loss_type=[stage.loss, "sft"] if stage.sft_weight else [stage.loss],
        loss_weights=[1.0, stage.sft_weight] if stage.sft_weight else None,
        label_smoothing=stage.label_smoothing,
        ld_alpha=stage.length_decay,
    )
    rows = [
        {"prompt_ids": p.chosen.prompt, "chosen_ids": p.chosen.response, "rejected_ids": p.rejected.response}
        for p in pairs
    ]
    return DPOTrainer, args, rows


def without_reference(stage: Dpo, job: Job, pairs: list[Pair], settings: dict[str, Any]) -> tuple[type, Any, list[Any]]:
    """The same of the losses without a reference."""
    # TRL warns of its experimental trainers as it imports them, unless told that they are wanted.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from training.preference.without_logits import without_logits

    if stage.loss == "orpo":
        from trl.experimental import orpo as home

        config, trainer = home.ORPOConfig, without_logits(home.ORPOTrainer)
    else:
        from trl.experimental import cpo as home

        config, trainer = home.CPOConfig, without_logits(home.CPOTrainer)
        settings |= {
            "loss_type": "simpo" if stage.loss == "simpo" else "sigmoid",
            "cpo_alpha": stage.sft_weight,
            "simpo_gamma": stage.target_margin,
            "label_smoothing": stage.label_smoothing,
        }
    args: Any = arguments(job, config, **settings, remove_unused_columns=False)
    rows: list[dict[str, list[int]]] = []
    for pair in pairs:
        row = {"prompt_input_ids": pair.chosen.prompt, "prompt_attention_mask": [1] * len(pair.chosen.prompt)}
        for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            row[f"{side}_input_ids"] = [*answer.prompt, *answer.response]
            row[f"{side}_attention_mask"] = [1] * len(answer)
            row[f"{side}_labels"] = [-100] * len(answer.prompt) + answer.response
        rows.append(row)
    return trainer, args, rows
