"""Supervised fine-tuning, by TRL's trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import datasets
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from training.hardware.cost import say_cost, trainable_share
from training.loops.distributed import from_lead, rank, world
from training.loops.lead_files import from_lead_file
from training.loops.passes import bound, in_dealt_batches, in_passes, recomputes
from training.loops.process_group import share_work
from training.loops.trl import arguments, train, trained_model
from training.models.load import base_dtype, load_model, save_trained
from training.models.lora import peft_config, quantization
from training.models.precision import products
from training.sft.document_attention import attend_by_document
from training.sft.examples import prepare, row_ids, teach_to_end
from training.sft.stage import Sft

if TYPE_CHECKING:
    from engine.stage.job import Job


def fine_tune(stage: Sft, job: Job) -> None:
    share_work(stage, job, learn, stage.batch, ("peft", "trl.trainer.sft_trainer", __name__))


def learn(stage: Sft, job: Job) -> None:
    """What each process does."""
    source = job.input("model")
    quantized = quantization() if stage.lora and stage.lora.quantize else None
    weights = base_dtype(source.location, job, stage.lora, products(stage.dtype))
    model, tokenizer = load_model(source.location, job, quantized, weights)
    template = teach_to_end(model, tokenizer)
    length = min(stage.max_length, getattr(model.config, "max_position_embeddings", stage.max_length))
    made, conversations, learnt = from_lead(lambda: prepare(job, template, length, stage.reasoning))
    examples = from_lead_file(lambda: made, job.scratch)
    assert examples is not None
    if stage.packing:
        attend_by_document(model)
    at_once = packed_at_once(stage, world()) if stage.packing else stage.batch
    args = arguments(
        job,
        SFTConfig,
        stage.dtype,
        recomputes(stage),
        num_train_epochs=stage.epochs,
        max_steps=stage.steps or -1,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=stage.batch // at_once,
        max_length=length,
        packing=stage.packing,
        learning_rate=stage.lr or (2e-4 if stage.lora else 2e-5),
        lr_scheduler_type=stage.schedule,
        warmup_steps=stage.warmup,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.clip,
        neftune_noise_alpha=stage.neftune,
        save_steps=stage.checkpoint_every,
    )
    learner = (
        in_dealt_batches(SFTTrainer, stage.sharding)
        if stage.packing
        else in_passes(SFTTrainer, bound(stage, model.config, length), stage.micro_batch, sharding=stage.sharding)
    )
    trainer = learner(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_file(str(examples)),
        peft_config=peft_config(stage.lora) if stage.lora else None,
    )
    share = trainable_share(trainer.model)
    train(trainer, job, lambda batch: row_ids(examples, batch), stage.report_to)
    if stage.lora:
        say_cost(stage, job, trainer.model, length)
    trained = trained_model(trainer, lambda: load_model(source.location, job, quantized, weights)[0], stage.lora)
    if rank() == 0:
        save_trained(job, trained, tokenizer, stage.lora, source)
    job.summary(
        conversations=conversations,
        learnt_tokens=learnt,
        trainable_share=share,
        steps=trainer.state.global_step,
    )


def packed_at_once(stage: Sft, processes: int) -> int:
    """Packed sequences in memory at once: as many as the stage says, or fewer, so that each process has a part of a step."""
    most = max(1, min(stage.at_once, stage.batch // processes))
    return max(n for n in range(1, most + 1) if stage.batch % n == 0)
