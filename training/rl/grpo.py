"""GRPO by TRL's trainer, with answers and scores of our own (`training.rl.grpo_stage` has the methods and their papers)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import Tensor
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from engine.errors import UserError
from engine.stage.job import Job
from training.loops.clock import Clock
from training.loops.distributed import everywhere, from_lead, rank, spread, turns, world
from training.loops.lead_files import from_lead_file
from training.loops.passes import bound, in_dealt_batches, recomputes
from training.loops.process_group import share_work
from training.loops.trl import arguments, train, trained_model
from training.models.answers import EncodedAnswer
from training.models.load import base_dtype, is_adapter, load_model, save_trained
from training.models.logprobs import forward, token_logprobs
from training.models.lora import peft_config
from training.models.padding import pad
from training.models.precision import autocast, products
from training.rl.grpo_stage import Grpo
from training.rl.record import consumed, keep, warn_of_sameness
from training.rl.rollouts import Question, Rollout, check_room, draw, load_questions
from training.rl.sampler import Sampler, start_engine
from training.rl.scoring import Scorer, make_scorer


def optimise(stage: Grpo, job: Job) -> None:
    share_work(stage, job, learn, stage.shareable, ("peft", "trl.trainer.grpo_trainer", __name__))


def learn(stage: Grpo, job: Job) -> None:
    """What each process does. Rank 0 alone samples, scores, reports and writes."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy: Any
    source, width = job.input("policy"), products(stage.dtype)
    weights = base_dtype(source.location, job, stage.lora, width)
    policy, tokenizer = load_model(source.location, job, dtype=weights)
    questions = load_questions(job, tokenizer)
    check_room(questions, stage.max_tokens, policy.config)
    lead = rank() == 0
    scorer = make_scorer(job, tokenizer, stage.rules, stage.weights, stage.pessimism, device) if lead else None
    in_loss = stage.chosen("kl") == "loss"
    if in_loss and stage.lora and job.maybe("reference"):
        raise UserError(
            "with `lora` and the KL in the loss the reference is the policy without its adapter: leave out `reference`, or set `kl: reward`."
        )

    per_prompt = stage.rollouts // stage.samples
    longest = stage.max_tokens + max(len(question.token_ids) for question in questions)
    minibatch = stage.rollouts // stage.minibatches
    if stage.together:
        size = stage.micro_batch or minibatch
    else:
        most = stage.micro_batch or bound(stage, policy.config, longest) // longest
        size = fitting(minibatch, min(most, max(1, minibatch // world())))
    steps = stage.minibatches * stage.epochs
    args = arguments(
        job,
        GRPOConfig,
        stage.dtype,
        recomputes(stage),
        max_steps=stage.iterations * steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=minibatch // size,
        steps_per_generation=stage.rollouts // size,
        num_generations=stage.samples,
        num_iterations=stage.epochs,
        max_completion_length=stage.max_tokens,
        learning_rate=stage.lr,
        lr_scheduler_type="linear" if stage.decay else "constant",
        beta=stage.beta if in_loss else 0.0,
        epsilon=stage.clip,
        epsilon_high=stage.chosen("clip_high"),
        loss_type=stage.chosen("loss"),
        scale_rewards=stage.chosen("scale"),
        mask_truncated_completions=bool(stage.chosen("mask_cut")),
        # The leave-one-out baseline is the mean's, scaled: r_i - mean_{j != i} r_j = G / (G - 1) (r_i - mean r)
        reward_weights=[stage.samples / (stage.samples - 1) if stage.chosen("leave_one_out") else 1.0],
        max_grad_norm=stage.max_grad_norm,
        adam_beta2=0.95,
        adam_epsilon=1e-5,
        save_steps=stage.checkpoint_every * steps,  # only between iterations: their rollouts are not in a checkpoint
        shuffle_dataset=False,
        disable_dropout=True,
    )
    drawn = [i for number in range(stage.iterations) for i in draw(len(questions), per_prompt, number, job.seed)]
    reference = reference_folder(job) if in_loss else reference_model(stage, job)
    hooks = Hooks(stage, job, tokenizer, questions, scorer, None if in_loss else reference)
    origin = policy.config._name_or_path
    if in_loss and not stage.lora:
        policy.config._name_or_path = str(reference)  # from where TRL loads its reference
    trainer = in_dealt_batches(trimmed(GRPOTrainer), stage.sharding)(
        model=policy,
        reward_funcs=[hooks.score],
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": [str(i) for i in drawn]}),
        processing_class=tokenizer,
        peft_config=peft_config(stage.lora) if stage.lora else None,
        rollout_func=hooks.sample,
    )
    policy.config._name_or_path = origin
    try:
        train(trainer, job, report_to=stage.report_to)
    finally:
        hooks.close()
    trained = trained_model(trainer, lambda: load_model(source.location, job, dtype=weights)[0], stage.lora)
    if lead:
        digest, learnt_from = consumed(job)
        job.summary(consumed=digest, episodes=learnt_from)
        save_trained(job, trained, tokenizer, stage.lora, source)


def fitting(answers: int, most: int) -> int:
    """The largest part of a minibatch that divides it and has at most so many answers."""
    return max(n for n in range(1, answers + 1) if answers % n == 0 and (n == 1 or n <= most))


def reference_folder(job: Job) -> Path:
    """For a KL in the loss: what TRL loads. All processes must ask."""
    given = job.maybe("reference") or job.input("policy")
    if not is_adapter(given.location):
        return Path(given.location)

    def merged() -> Path:
        folder = job.scratch / "reference"
        load_model(given.location, job)[0].save_pretrained(folder)
        return folder

    return cast(Path, from_lead_file(merged, job.scratch))


def reference_model(stage: Grpo, job: Job) -> Any:
    """For a KL in the reward. None: the policy without its adapter."""
    given = job.maybe("reference")
    if stage.lora and not given:
        return None
    location = (given or job.input("policy")).location
    reference = load_model(location, job, dtype=base_dtype(location, job, stage.lora, products(stage.dtype)))[0].eval()
    spread(reference, stage.sharding)
    return reference


def trimmed(trainer: type[Any]) -> type[Any]:
    """The trainer, whose passes leave out the columns that are padding in all of their rows: it pads all answers of an iteration
    to the longest prompt and the longest answer. What only looks back on them is shared by the processes."""

    class Trimmed(trainer):
        def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
        ) -> Any:
            if world() > 1 and not torch.is_grad_enabled():
                return self._together(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
            return self._trimmed(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

        def _together(self, model: Any, input_ids: Any, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
            """The same, of each process's part of the rows. The last row stands in for those that a part is short of."""
            count, parts = len(input_ids), -(-len(input_ids) // world())
            own = [min(rank() + i * world(), count - 1) for i in range(parts)]
            found = everywhere(self._trimmed(model, input_ids[own], attention_mask[own], *args, **kwargs))
            place = [(row % world(), row // world()) for row in range(count)]
            both = [
                None
                if found[0][which] is None
                else torch.stack([found[number][which][i] for number, i in place]).to(input_ids.device)
                for which in (0, 1)
            ]
            return *both, *found[0][2:]

        def _trimmed(
            self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
        ) -> Any:
            real, width = attention_mask.any(0).nonzero(), input_ids.shape[1]
            first, end = int(real[0]), max(int(real[-1]), width - logits_to_keep) + 1
            kept = logits_to_keep - (width - end)
            logprobs, entropies, *rest = super()._get_per_token_logps_and_entropies(
                model, input_ids[:, first:end], attention_mask[:, first:end], kept, *args, **kwargs
            )
            pad = (0, width - end)
            wide = [None if x is None else torch.nn.functional.pad(x, pad) for x in (logprobs, entropies)]
            return *wide, *rest

    return Trimmed


def shared_logprobs(model: Any, answers: Sequence[EncodedAnswer]) -> list[Tensor]:
    """`token_logprobs` of all answers, each process asking the model about its part of them."""
    if world() == 1:
        return token_logprobs(model, answers)
    device = next(model.parameters()).device
    own: dict[int, Tensor] = {}
    with torch.no_grad():
        for chunk, counts in turns(answers):
            logprobs_BR = forward(model, pad([answers[i] for i in chunk], device)).logprobs_BR.cpu()
            if counts:
                own |= {i: logprobs_BR[row, : len(answers[i].response)].clone() for row, i in enumerate(chunk)}
    found = {i: logprobs for part in everywhere(own) for i, logprobs in part.items()}
    return [found[i] for i in range(len(answers))]


@dataclass
class Hooks:
    """What TRL's trainer calls for answers, and then for what they are worth."""

    stage: Grpo
    job: Job
    tokenizer: Any
    questions: list[Question]
    scorer: Scorer | None  # rank 0's
    reference: Any
    sampler: Sampler | None = None
    rollouts: list[Rollout] = field(default_factory=lambda: [])
    clock: Clock = field(default_factory=Clock)
    measured: dict[str, float] = field(default_factory=lambda: {})
    penalty: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def iteration(self, state: Any) -> int:
        return state.global_step // (self.stage.minibatches * self.stage.epochs)

    def sample(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`; a prompt is the number of a question."""
        stage, job = self.stage, self.job
        iteration = self.iteration(trainer.state)
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self.sampler is None:
            location = job.input("policy").location
            engine = (
                start_engine(location, self.questions, stage.max_tokens, stage.gpu_share, job) if rank() == 0 else None
            )
            self.sampler = Sampler(job, engine, model, self.tokenizer, stage.max_tokens)
        with torch.no_grad(), self.clock.part("sampling"):
            self.rollouts = self.sampler.sample([self.questions[int(prompt)] for prompt in prompts], iteration)
        # TRL shuffles answers into minibatches by the ambient generator, which vLLM reseeds whenever an engine starts: in
        # a continued run that is after the checkpoint's random state was put back.
        torch.manual_seed(job.derive("minibatches", iteration))
        answers = [rollout.answer for rollout in self.rollouts]
        with self.clock.part("looking_back"), autocast(next(model.parameters()).device, products(stage.dtype)):
            ours = shared_logprobs(model, answers)
        gaps = torch.cat([mine - torch.tensor(r.logprobs) for mine, r in zip(ours, self.rollouts, strict=True)]).abs()
        self.measured = {"sampler_gap": float(gaps.mean()), "sampler_gap_max": float(gaps.max())}
        self.penalty = np.zeros(len(answers))
        if stage.chosen("kl") == "reward" and stage.beta:
            with (
                self.clock.part("looking_back"),
                model.disable_adapter() if self.reference is None else nullcontext(),
                autocast(next(model.parameters()).device, products(stage.dtype)),
            ):
                theirs = shared_logprobs(self.reference or model, answers)
            kl = np.array([float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)])
            self.penalty = stage.beta * kl
            self.measured["kl"] = float(kl.mean())
        return {
            "prompt_ids": [answer.prompt for answer in answers],
            "completion_ids": [answer.response for answer in answers],
            "logprobs": [rollout.logprobs for rollout in self.rollouts],
        }

    def score(self, prompts: list[str], log_metric: Any, trainer_state: Any, **_: Any) -> list[float | None]:
        """TRL's reward function: of the answers sampled last."""
        iteration = self.iteration(trainer_state)
        with self.clock.part("scoring"):
            scores, parts = from_lead(lambda: cast(Scorer, self.scorer).score(self.rollouts))
        groups = len(scores) // self.stage.samples
        warn_of_sameness(self.job, iteration, self.rollouts, scores, self.stage.missing_eos, groups)
        if rank() == 0:
            keep(self.job, iteration, self.rollouts, scores)
        length = np.mean([len(rollout.token_ids) for rollout in self.rollouts])
        ended = np.array([rollout.ended for rollout in self.rollouts])
        described = {"score": scores.mean(), "score_std": scores.std(), "length": length, "ended": ended.mean()}
        spent = {name: value for name, value in self.clock.read().items() if name != "seconds"}  # that is the step's
        for name, value in {**parts, **described, **self.measured, **spent}.items():
            log_metric(name, float(value))
        return (scores - self.stage.missing_eos * ~ended - self.penalty).tolist()

    def close(self) -> None:
        if self.sampler is not None:
            self.sampler.close()
