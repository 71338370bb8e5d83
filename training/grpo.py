"""`grpo`: policy, reward and prompts -> policy, without a critic, on TRL.

Several answers to one prompt are each other's baseline (Shao et al. 2024, arXiv:2402.03300, eq. 3). `method` sets what
its successors changed, and each of these can be set by itself:

|          | advantage of answer i | token losses are      | KL to the reference | else |
|----------|-----------------------|-----------------------|---------------------|------|
| grpo     | (r_i - mean) / std    | averaged an answer    | in the loss, k3     | |
| dr_grpo  | r_i - mean            | summed / max_tokens   | in the loss, k3     | no bias by length or difficulty (arXiv:2503.20783) |
| dapo     | (r_i - mean) / std    | averaged over tokens  | in the loss, k3     | clip to [1 - .2, 1 + .28], cut answers do not count (arXiv:2503.14476) |
| rloo     | r_i - mean of others  | summed / max_tokens   | in the reward, k1   | the policy gradient itself (arXiv:2402.14740) |

Only a KL in the reward tells a token what it does to the KL of later ones: the optimum of that objective is
pi_ref exp(r / beta), and `rloo` reaches it. A KL in the loss takes the prefix as given.

Answers are sampled by vLLM in this process, on a CPU too. The reference is always the one that is given (or the policy
as it was); TRL would load what the policy's configuration names as its origin.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from engine.errors import UserError
from engine.stage.job import Job
from engine.stage.stage import Device, NotIdentity, Stage, port
from generators.rules.rule import Rule, version
from training.hardware import memory
from training.loops.tracking_settings import ReportTo
from training.loops.trl import arguments, train
from training.models.load import is_adapter, load_model, save
from training.models.logprobs import token_logprobs
from training.models.lora import peft_config
from training.models.lora_settings import Lora
from training.reward_function import Scorer, make_scorer
from training.rollouts import (
    Question,
    Rollout,
    ask,
    check_room,
    consumed,
    draw,
    keep,
    load_questions,
    start_engine,
    warn_of_sameness,
)  # fmt: skip

if TYPE_CHECKING:
    from training.rollouts import Engine

Method = Literal["grpo", "dr_grpo", "dapo", "rloo"]
METHODS: dict[Method, dict[str, Any]] = {
    "grpo": {"loss": "grpo", "scale": "group", "kl": "loss"},
    "dr_grpo": {"loss": "dr_grpo", "scale": "none", "kl": "loss"},
    "dapo": {"loss": "dapo", "scale": "group", "kl": "loss", "clip_high": 0.28, "mask_cut": True},
    "rloo": {"loss": "dr_grpo", "scale": "none", "kl": "reward", "leave_one_out": True},
}


class Grpo(Stage):
    """Train a policy by reinforcement learning, comparing answers to the same prompt."""

    takes = {
        "policy": port("Model", "Adapter"),
        "reward": port("RewardModel", optional=True),
        "prompts": port("Prompt", "Conversation", many=True),
        "reference": port("Model", "Adapter", optional=True),
    }
    gives = "Model"
    random = True
    version = 2

    method: Method = "grpo"
    iterations: int = Field(30, ge=1)
    rollouts: int = Field(128, ge=2, description="Answers sampled an iteration.")
    samples: int = Field(8, ge=2, description="Answers a prompt, compared with each other; divides `rollouts`.")
    max_tokens: int = Field(64, ge=1, description="Longest answer.")
    epochs: int = Field(1, ge=1, description="Passes over the rollouts of an iteration.")
    minibatches: int = Field(1, ge=1, description="Optimizer steps an epoch.")
    micro_batch: int | None = Field(None, ge=1, description="Answers in memory at once, on each device.")
    lr: float = Field(1e-6, gt=0)
    decay: bool = Field(True, description="Let the rate fall linearly to 0 over the run.")
    beta: float = Field(0.05, ge=0, description="Reward given up per nat of KL to the reference.")
    clip: float = Field(0.2, gt=0, description="eps: how far the ratio moves before it stops to pay.")
    clip_high: float | None = Field(None, gt=0, description="The same for a ratio above 1; `clip` if left out.")
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo"] | None = Field(
        None, description="How token losses are put together (TRL's `loss_type`); by `method` if left out."
    )
    scale: Literal["group", "batch", "none"] | None = Field(
        None, description="What advantages are divided by the standard deviation of; by `method` if left out."
    )
    kl: Literal["loss", "reward"] | None = Field(None, description="Where the KL goes; by `method` if left out.")
    mask_cut: bool | None = Field(
        None, description="Leave answers that were cut at `max_tokens` out of the loss; by `method` if left out."
    )
    missing_eos: float = Field(1.0, ge=0, description="Taken off the score of an answer that was cut at `max_tokens`.")
    max_grad_norm: float = Field(1.0, gt=0)
    rules: dict[str, Rule] = Field(
        {}, description="Name -> expression over completion, reference, prompt, length, finish_reason, or a verifier."
    )
    weights: dict[str, float] = Field(
        {}, description="Weight of each rule and of `reward` in the score; 1 if not named."
    )
    pessimism: float = Field(0.0, ge=0, description="Standard deviations of an ensemble taken off its mean.")
    lora: Lora | None = Field(None, description="Train an adapter; the policy without it is the reference.")
    gpu_share: Annotated[float, NotIdentity] = Field(0.3, gt=0, lt=1, description="Of the GPU's memory, for sampling.")
    checkpoint_every: Annotated[int, NotIdentity] = Field(1, ge=1, description="Iterations.")
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Grpo:
        if self.rollouts % self.samples:
            raise ValueError(f"`samples` ({self.samples}) must divide `rollouts` ({self.rollouts})")
        if self.rollouts % (self.minibatches * (self.micro_batch or 1)):
            raise ValueError(f"`minibatches` times `micro_batch` must divide `rollouts` ({self.rollouts})")
        return self

    def chosen(self, name: str) -> Any:
        """An option, or what `method` sets it to."""
        given = getattr(self, name, None)
        return METHODS[self.method].get(name) if given is None else given

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **version(self.rules.values())}

    def output(self, given: dict[str, list[str]]) -> str:
        return "Adapter" if self.lora and not self.lora.merge else "Model"

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        """Prompts count as long as answers may be; what `gpu_share` leaves is what there is to train in."""
        size = self.rollouts // self.minibatches
        return memory.forecast_fine_tuning(
            given["policy"][0], device.less(self.gpu_share), self.lora, 2 * self.max_tokens, size,
            self.micro_batch or size, references=int(not self.lora) + len(given.get("reward", [])),
        )  # fmt: skip

    def run(self, job: Job) -> None:
        import datasets
        import torch
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        location = job.input("policy").location
        policy: Any
        policy, tokenizer = load_model(location, job)
        questions = load_questions(job, tokenizer)
        check_room(questions, self.max_tokens, policy.config)
        scorer = make_scorer(job, tokenizer, self.rules, self.weights, self.pessimism, device)
        in_loss = self.chosen("kl") == "loss"
        if in_loss and self.lora and job.maybe("reference"):
            raise UserError(
                "with `lora` and the KL in the loss the reference is the policy without its adapter: leave out `reference`, or set `kl: reward`."
            )

        per_prompt = self.rollouts // self.samples
        size = self.micro_batch or self.rollouts // self.minibatches
        steps = self.minibatches * self.epochs
        args = arguments(
            job,
            GRPOConfig,
            max_steps=self.iterations * steps,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=self.rollouts // self.minibatches // size,
            steps_per_generation=self.rollouts // size,
            num_generations=self.samples,
            num_iterations=self.epochs,
            max_completion_length=self.max_tokens,
            learning_rate=self.lr,
            lr_scheduler_type="linear" if self.decay else "constant",
            beta=self.beta if in_loss else 0.0,
            epsilon=self.clip,
            epsilon_high=self.chosen("clip_high"),
            loss_type=self.chosen("loss"),
            scale_rewards=self.chosen("scale"),
            mask_truncated_completions=bool(self.chosen("mask_cut")),
            # The leave-one-out baseline is the mean's, scaled: r_i - mean_{j != i} r_j = G / (G - 1) (r_i - mean r)
            reward_weights=[self.samples / (self.samples - 1) if self.chosen("leave_one_out") else 1.0],
            max_grad_norm=self.max_grad_norm,
            adam_beta2=0.95,
            adam_epsilon=1e-5,
            save_steps=self.checkpoint_every * steps,  # only between iterations: their rollouts are not in a checkpoint
            shuffle_dataset=False,
            disable_dropout=True,
        )
        drawn = [i for number in range(self.iterations) for i in draw(len(questions), per_prompt, number, job.seed)]
        reference = self._reference(job, policy)
        sampler = Sampler(self, job, tokenizer, questions, scorer, steps, location, None if in_loss else reference)
        origin = policy.config._name_or_path
        if in_loss and not self.lora:
            policy.config._name_or_path = str(reference)  # from where TRL loads its reference
        trainer = GRPOTrainer(
            model=policy,
            reward_funcs=[sampler.score],
            args=args,
            train_dataset=datasets.Dataset.from_dict({"prompt": [str(i) for i in drawn]}),
            processing_class=tokenizer,
            peft_config=peft_config(self.lora) if self.lora else None,
            rollout_func=sampler.sample,
        )
        policy.config._name_or_path = origin
        try:
            train(trainer, job, report_to=self.report_to)
        finally:
            sampler.close()
        digest, learnt_from = consumed(job)
        job.summary(consumed=digest, episodes=learnt_from)
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        if self.lora and self.lora.merge:
            trained = trained.merge_and_unload()
        save(job, trained, tokenizer, job.input("policy").id if self.lora and not self.lora.merge else "")

    def _reference(self, job: Job, policy: Any) -> Any:
        """For a KL in the loss, the folder that TRL loads; for one in the reward, the model (None: the policy without
        its adapter)."""
        given = job.maybe("reference") or job.input("policy")
        if self.chosen("kl") == "reward":
            return None if self.lora and not job.maybe("reference") else load_model(given.location, job)[0].eval()
        if not is_adapter(given.location):
            return Path(given.location)
        folder = job.scratch / "reference"
        load_model(given.location, job)[0].save_pretrained(folder)
        return folder


class Sampler:
    """What TRL's trainer asks for answers, and then for what they are worth."""

    def __init__(
        self,
        stage: Grpo,
        job: Job,
        tokenizer: Any,
        questions: list[Question],
        scorer: Scorer,
        steps: int,
        location: str,
        reference: Any,
    ) -> None:
        self.stage, self.job, self.tokenizer, self.questions, self.scorer = stage, job, tokenizer, questions, scorer
        self.steps, self.location, self.reference = steps, location, reference
        self.engine: Engine | None = None
        self.rollouts: list[Rollout] = []
        self.measured: dict[str, float] = {}
        self.penalty = np.zeros(0)

    def sample(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`; a prompt is the number of a question."""
        import torch

        stage = self.stage
        iteration = trainer.state.global_step // self.steps
        self.engine = self.engine or start_engine(
            self.location, self.questions, stage.max_tokens, stage.gpu_share, self.job
        )
        model = trainer.accelerator.unwrap_model(trainer.model)
        asked = [self.questions[int(prompt)] for prompt in prompts]
        with torch.no_grad():
            self.rollouts, completions = ask(
                self.job, self.engine, model, self.tokenizer, asked, stage.max_tokens, iteration
            )
        # TRL shuffles answers into minibatches by the ambient generator, which vLLM reseeds whenever an engine starts: in
        # a continued run that is after the checkpoint's random state was put back.
        torch.manual_seed(self.job.derive("minibatches", iteration))
        answers = [rollout.answer for rollout in self.rollouts]
        ours = token_logprobs(model, answers)
        gaps = torch.cat([mine - torch.tensor(c.logprobs) for mine, c in zip(ours, completions, strict=True)]).abs()
        self.measured = {"sampler_gap": float(gaps.mean()), "sampler_gap_max": float(gaps.max())}
        self.penalty = np.zeros(len(answers))
        if stage.chosen("kl") == "reward" and stage.beta:
            with model.disable_adapter() if self.reference is None else nullcontext():
                theirs = token_logprobs(self.reference or model, answers)
            kl = np.array([float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)])
            self.penalty = stage.beta * kl
            self.measured["kl"] = float(kl.mean())
        return {
            "prompt_ids": [answer.prompt for answer in answers],
            "completion_ids": [answer.response for answer in answers],
            "logprobs": [c.logprobs for c in completions],
        }

    def score(self, prompts: list[str], log_metric: Any, trainer_state: Any, **_: Any) -> list[float | None]:
        """TRL's reward function: of the answers sampled last."""
        iteration = trainer_state.global_step // self.steps
        scores, parts = self.scorer.score(self.rollouts)
        warn_of_sameness(self.job, iteration, self.rollouts, scores)
        keep(self.job, iteration, self.rollouts, scores)
        lengths = [len(rollout.token_ids) for rollout in self.rollouts]
        ended = np.array([rollout.ended for rollout in self.rollouts])
        described = {
            "score": scores.mean(),
            "score_std": scores.std(),
            "length": np.mean(lengths),
            "ended": ended.mean(),
        }
        for name, value in {**parts, **described, **self.measured}.items():
            log_metric(name, float(value))
        return (scores - self.stage.missing_eos * ~ended - self.penalty).tolist()

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
