"""`ppo`: policy, reward and prompts -> policy (Schulman et al. 2017; for language models, Ziegler et al. 2019).

One iteration:

1.  sample answers from the policy with vLLM at temperature 1: the samples are the policy's own
2.  r_t = -beta (log pi(y_t) - log pi_ref(y_t)) + [t is the last token] (score - penalty if it is not an end token)
                                                                                         (Ziegler et al. 2019, eq. 2)
3.  A_t, R_t by generalised advantage estimation                                      (`training.gae`)
4.  a few epochs of minibatches on
        L = E[min(rho_t A_t, clip(rho_t, 1-eps, 1+eps) A_t)],   rho_t = pi(y_t) / pi_old(y_t)     (PPO, eq. 7)
        + value_weight 1/2 E[max((V_t - R_t)^2, (clip(V_t, V_old +- eps_v) - R_t)^2)]             (PPO, eq. 9, clipped)
        - entropy_weight E[H_t]
    with values and returns in units of the returns' root mean square, so that no weight depends on the reward's scale

pi_old is the trainer's own: vLLM computes in another order, so its log-probabilities differ by rounding (or by its
dtype). The weight min(pi_old / pi_sampler, C) corrects for that (truncated importance sampling, Ionides 2008), and
the difference is one of the curves. The same weight corrects for the step that samples are behind with `ahead`, which
has the sampler answer the next questions while the policy learns (Noukhovitch et al. 2024, arXiv:2410.18252).

Everything an iteration draws is derived from its number. With policy, critic, optimizer and beta in one checkpoint an
iteration, a run that is killed ends with the same bits as one that is not.

Several processes (`training.loops.distributed`) share 2 and 4, rank 0 alone samples, scores, reports and writes (`training.ppo_run`):
all of them run the same lines, and a function that hands something from one to the others says so.

Shapes: B rollouts, R tokens of the longest response, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from engine.seeds import generator
from engine.stage.job import Job
from engine.stage.stage import Device, NotIdentity, Stage, port
from generators.rules.rule import Rule, version
from training import gae, kl
from training.hardware import memory
from training.loops import schedule
from training.loops.tracking import tracked
from training.loops.tracking_settings import ReportTo
from training.models.answers import TOKENS, Answer
from training.models.logprobs import forward
from training.models.lora_settings import Lora
from training.models.padding import pad
from training.overoptimisation import GuardConfig
from training.ppo_run import Run
from training.rollouts import Rollout, keep, warn_of_sameness

if TYPE_CHECKING:
    from torch import Tensor

    from generators.backends.protocol import Completion
    from training.critic import Critic


class Ppo(Stage):
    """Train a policy by reinforcement learning to give answers that score higher."""

    takes = {
        "policy": port("Model", "Adapter"),
        "reward": port("RewardModel", optional=True),
        "prompts": port("Prompt", "Conversation", many=True),
        "reference": port("Model", "Adapter", optional=True),
        "held_out": port("Prompt", "Conversation", many=True, optional=True),
    }
    gives = "Model"
    random = True
    version = 3

    iterations: int = Field(30, ge=1)
    rollouts: int = Field(128, ge=2, description="Answers sampled an iteration.")
    samples: int = Field(1, ge=1, description="Answers a prompt; divides `rollouts`.")
    max_tokens: int = Field(64, ge=1, description="Longest answer.")
    epochs: int = Field(2, ge=1, description="Passes over the rollouts of an iteration.")
    minibatches: int = Field(4, ge=1, description="Optimizer steps an epoch.")
    lr: float = Field(1e-5, gt=0)
    decay: bool = Field(True, description="Let the rate fall linearly to 0 over the run.")
    clip: float = Field(0.2, gt=0, description="eps: how far the ratio moves before it stops to pay.")
    clip_value: float = Field(0.2, gt=0, description="eps_v: the same for a value, in units of the returns' RMS.")
    value_weight: float = Field(0.5, ge=0)
    entropy_weight: float = Field(0.0, ge=0)
    critic: Literal["shared", "separate"] = Field("shared", description="A head on the policy, or a model of its own.")
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    beta: float = Field(0.05, ge=0, description="Reward given up per nat of KL to the reference.")
    target: float | None = Field(None, gt=0, description="KL (nats an answer) towards which beta is steered.")
    kl_estimator: Literal["k1", "k3"] = Field("k1", description="Of the KL in the reward, per token.")
    stop_kl: float | None = Field(
        0.05, gt=0, description="KL (nats a token) between the policy and pi_old that ends an iteration's epochs early."
    )
    missing_eos: float = Field(1.0, ge=0, description="Taken off the score of an answer that was cut at `max_tokens`.")
    whiten_rewards: bool = Field(False, description="Scale rewards to unit variance. beta then counts in those units.")
    whiten_advantages: bool = True
    correction: float = Field(2.0, ge=1, description="C: the cap on the weight pi_old / pi_sampler.")
    ahead: bool = Field(
        False,
        description="Sample the answers of the next iteration while this one is learnt from: they are a step behind the "
        "policy, which `correction` weighs. For machines with a core or a GPU to spare.",
    )
    max_grad_norm: float = Field(1.0, gt=0)
    rules: dict[str, Rule] = Field(
        {}, description="Name -> expression over completion, reference, prompt, length, finish_reason, or a verifier."
    )
    weights: dict[str, float] = Field(
        {}, description="Weight of each rule and of `reward` in the score; 1 if not named."
    )
    pessimism: float = Field(0.0, ge=0, description="Standard deviations of an ensemble taken off its mean.")
    guard: GuardConfig | None = Field(
        None, description="Stop where the reward is over-optimised, and give the best policy instead of the last."
    )
    gold: dict[str, Rule] = Field({}, description="For the guard: rules that measure answers to `held_out` prompts.")
    gold_every: int = Field(5, ge=1, description="Iterations between two such measurements.")
    lora: Lora | None = Field(None, description="Train an adapter; the policy without it is the reference.")
    gpu_share: Annotated[float, NotIdentity] = Field(0.3, gt=0, lt=1, description="Of the GPU's memory, for sampling.")
    processes: Annotated[int | None, NotIdentity] = Field(
        None, ge=1, description="That share each minibatch; one for each GPU if left out. Changes rounding only."
    )
    sharding: Annotated[Literal["replicate", "shard"], NotIdentity] = Field(
        "replicate", description="`shard`: FSDP2, for models that don't fit one GPU."
    )
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Ppo:
        if self.minibatches > self.rollouts:
            raise ValueError(f"{self.rollouts} `rollouts` can't be cut into {self.minibatches} `minibatches`")
        if self.lora and self.sharding == "shard":
            raise ValueError("`lora` needs whole matrices: use `sharding: replicate`, or train all weights")
        return self

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **version([*self.rules.values(), *self.gold.values()])}

    def output(self, given: dict[str, list[str]]) -> str:
        return "Adapter" if self.lora and not self.lora.merge else "Model"

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        """Prompts count as long as answers may be; what `gpu_share` leaves is what there is to train in."""
        length, count = 2 * self.max_tokens, self.processes or 1
        at_once = max(1, min(self.rollouts // self.minibatches // count, TOKENS // length))
        split = count if self.sharding == "shard" else 1
        beside = (int(not self.lora) + 4 * (self.critic == "separate")) / split + len(given.get("reward", []))
        return memory.forecast_fine_tuning(
            given["policy"][0], device.less(self.gpu_share), self.lora, length, at_once,
            references=beside, processes=split,
        )  # fmt: skip

    def run(self, job: Job) -> None:
        import torch

        from training.loops.distributed import processes

        count = self.processes or max(1, torch.cuda.device_count())
        with tracked(job, self.report_to), processes(count, job, self.optimise, ("peft",)) as job:
            self.optimise(job)

    def optimise(self, job: Job) -> None:
        run = Run(self, job)
        for iteration in run.iterations:
            rollouts, sampled = run.sample(iteration)
            scores, parts = run.score(rollouts)
            worth = scores - self.missing_eos * np.array([not rollout.ended for rollout in rollouts])
            experience = self.look_back(run, rollouts, sampled, worth)
            if run.ends(iteration, float(scores.mean()), experience.kl, parts.get("disagreement")):
                break
            warn_of_sameness(job, iteration, rollouts, scores)
            if run.leads:
                keep(job, iteration, rollouts, scores)
            run.sample_ahead(iteration + 1)
            learnt = self.improve(run, experience, iteration)
            beta = run.controller.beta
            job.metric(iteration + 1, **parts, **describe(rollouts, worth, experience), **learnt, beta=beta)
            job.progress(iteration + 1, self.iterations, "iterations")
            run.controller.update(experience.kl, self.rollouts)
            run.save(iteration + 1)
        run.finish()

    def look_back(self, run: Run, rollouts: list[Rollout], sampled: list[Completion], scores: np.ndarray) -> Experience:
        """What the rollouts were worth, token by token, under the policy and the values they were sampled with."""
        import torch

        from training.loops.distributed import total, turns

        policy, reference, critic = run.policy, run.reference, run.critic
        answers = [rollout.answer for rollout in rollouts]
        device = next(policy.parameters()).device
        whole = pad(answers, device)
        mask_BR = whole.mask_BR
        logprobs_BR, reference_BR, values_BR, entropy_BR = (torch.zeros(mask_BR.shape, device=device) for _ in range(4))
        with torch.no_grad():
            for chunk, counts in turns(answers):
                batch = pad([answers[i] for i in chunk], device)
                out = forward(policy, batch, entropy=True, hidden=critic.backbone is None)
                assert out.entropy_BR is not None
                width = out.logprobs_BR.shape[1]
                logprobs_BR[chunk, :width] += counts * out.logprobs_BR
                entropy_BR[chunk, :width] += counts * out.entropy_BR
                values_BR[chunk, :width] += counts * critic(batch, out.hidden_BRD)
                with policy.disable_adapter() if reference is None else nullcontext():
                    reference_BR[chunk, :width] += counts * forward(reference or policy, batch).logprobs_BR
        for known_BR in (logprobs_BR, reference_BR, values_BR, entropy_BR):
            total(known_BR)  # each process knows the rows of its share
            known_BR.masked_fill_(~mask_BR, 0.0)
        sampler_BR = rows([torch.tensor(c.logprobs) for c in sampled], mask_BR)
        kl_BR = torch.where(mask_BR, kl.estimate(logprobs_BR, reference_BR, self.kl_estimator), 0.0)
        score_B = torch.tensor(scores, dtype=torch.float32, device=device)
        rewards_BR = token_rewards(kl_BR, score_B, mask_BR, run.controller.beta)
        if self.whiten_rewards:
            rewards_BR = gae.whiten(rewards_BR, mask_BR, shift_mean=False)
        advantages_BR, returns_BR = gae.advantages(rewards_BR, values_BR, mask_BR, self.gamma, self.lam)
        if self.whiten_advantages:
            advantages_BR = gae.whiten(advantages_BR, mask_BR)
        return Experience(
            answers, mask_BR, logprobs_BR, reference_BR, sampler_BR, values_BR, entropy_BR, advantages_BR, returns_BR
        )

    def improve(self, run: Run, old: Experience, iteration: int) -> dict[str, float]:
        """Epochs of minibatch steps on what `look_back` found. Returns means over the steps taken."""
        import torch

        from training.loops.distributed import sum_gradients, totals, turns

        policy, critic, optimizer = run.policy, run.critic, run.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.lr * (schedule.linear(iteration, self.iterations, 0.0) if self.decay else 1.0)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        weights_BR = torch.exp(old.logprobs_BR - old.sampler_BR).clamp(max=self.correction)
        seen: list[dict[str, float]] = []
        stopped = False
        for epoch in range(self.epochs):
            order = generator(run.job.seed, "minibatch", iteration, epoch).permutation(len(old.answers))
            for minibatch in np.array_split(order, self.minibatches):
                tokens = int(old.mask_BR[minibatch].sum())
                optimizer.zero_grad()
                sums: dict[str, float] = {}
                for chunk, counts in turns([old.answers[i] for i in minibatch]):
                    loss, parts = self.loss(policy, critic, old, weights_BR, minibatch[chunk])
                    (counts * loss / tokens).backward()
                    sums = {name: sums.get(name, 0.0) + counts * value for name, value in parts.items()}
                step = {name: value / tokens for name, value in totals(sums).items()}
                if self.stop_kl is not None and step["step_kl"] > self.stop_kl:
                    stopped = True
                    break
                sum_gradients(policy)
                sum_gradients(critic)
                torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                optimizer.step()
                seen.append(step)
            if stopped:
                break
        means = {name: float(np.mean([step[name] for step in seen])) for name in (seen[0] if seen else {})}
        return {**means, "steps": float(len(seen))}

    def loss(
        self, policy: Any, critic: Critic, old: Experience, weights_BR: Tensor, picked: np.ndarray
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss summed over the tokens of these rollouts, and sums of what it is made of."""
        import torch

        batch = pad([old.answers[i] for i in picked], old.mask_BR.device)
        mask_BR = batch.mask_BR
        width = mask_BR.shape[1]
        rows_B = torch.as_tensor(picked, device=mask_BR.device)

        def cut(x_BR: Tensor) -> Tensor:
            return x_BR[rows_B, :width]

        out = forward(policy, batch, entropy=self.entropy_weight > 0, hidden=critic.backbone is None)
        log_ratio_BR = torch.where(mask_BR, out.logprobs_BR - cut(old.logprobs_BR), 0.0)
        ratio_BR = log_ratio_BR.exp()
        clipped_BR = ratio_BR.clamp(1 - self.clip, 1 + self.clip)
        advantages_BR = cut(old.advantages_BR)
        gain_BR = torch.minimum(ratio_BR * advantages_BR, clipped_BR * advantages_BR) * cut(weights_BR)

        values_BR, old_values_BR, returns_BR = critic(batch, out.hidden_BRD), cut(old.values_BR), cut(old.returns_BR)
        reach = self.clip_value * old.scale
        near_BR = old_values_BR + (values_BR - old_values_BR).clamp(-reach, reach)
        error_BR = torch.maximum((values_BR - returns_BR) ** 2, (near_BR - returns_BR) ** 2) / (2 * old.scale**2)

        def total(x_BR: Tensor) -> Tensor:
            return torch.where(mask_BR, x_BR, 0.0).sum()

        loss = -total(gain_BR) + self.value_weight * total(error_BR)
        if out.entropy_BR is not None:
            loss = loss - self.entropy_weight * total(out.entropy_BR)
        with torch.no_grad():
            parts = {
                "policy_loss": -total(gain_BR),
                "value_loss": total(error_BR),
                "clip_fraction": total((ratio_BR * advantages_BR > clipped_BR * advantages_BR).float()),
                # KL(pi_old || pi) by k3: the samples are pi_old's
                "step_kl": total(kl.estimate(cut(old.logprobs_BR), out.logprobs_BR, "k3")),
            }
        return loss, {name: value.item() for name, value in parts.items()}


def token_rewards(kl_BR: Tensor, score_B: Tensor, mask_BR: Tensor, beta: float) -> Tensor:
    """-beta KL for every token, and the score on the last one: the end of the turn, not the padding after it."""
    import torch

    rewards_BR = torch.where(mask_BR, -beta * kl_BR, 0.0)
    rewards_BR[torch.arange(len(mask_BR), device=mask_BR.device), mask_BR.sum(1) - 1] += score_B
    return rewards_BR


@dataclass(frozen=True)
class Experience:
    """Rollouts with everything that stays fixed while the policy learns from them. All _BR are 0 where masked."""

    answers: list[Answer]
    mask_BR: Tensor
    logprobs_BR: Tensor
    reference_BR: Tensor
    sampler_BR: Tensor
    values_BR: Tensor
    entropy_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor

    @cached_property
    def scale(self) -> float:
        """Root mean square of the returns, the unit of the value loss."""
        returns = self.returns_BR[self.mask_BR]
        return max(float((returns**2).mean().sqrt()), 1e-6)

    @property
    def kl(self) -> float:
        """KL to the reference in nats an answer: the mean over rollouts of the sum of k1, which has no bias."""
        import torch

        log_ratio_BR = torch.where(self.mask_BR, self.logprobs_BR - self.reference_BR, 0.0)
        return float(log_ratio_BR.sum(1).mean())


def describe(rollouts: Sequence[Rollout], scores: np.ndarray, old: Experience) -> dict[str, float]:
    """The curves of an iteration that do not depend on what is learnt from it."""
    mask_BR = old.mask_BR
    returns, values = old.returns_BR[mask_BR], old.values_BR[mask_BR]
    spread = float(returns.var(correction=0))
    gap = (old.logprobs_BR - old.sampler_BR)[mask_BR].abs()
    return {
        "score": float(scores.mean()),
        "score_std": float(scores.std()),
        "kl": old.kl,
        "entropy": float(old.entropy_BR[mask_BR].mean()),
        "length": float(mask_BR.sum(1).float().mean()),
        "ended": float(np.mean([rollout.ended for rollout in rollouts])),
        "distinct": len({(r.question.id, tuple(r.token_ids)) for r in rollouts}) / len(rollouts),
        # 1: the critic foresees every return; 0: it might as well say their mean; below 0: it misleads
        "explained_variance": 1 - float((returns - values).var(correction=0)) / spread if spread > 0 else 0.0,
        "sampler_gap": float(gap.mean()),
        "sampler_gap_max": float(gap.max()),
    }


def rows(values: Sequence[Tensor], mask_BR: Tensor) -> Tensor:
    """One row for each rollout's tokens, 0 where masked."""
    import torch

    flat = torch.cat([v.float() for v in values]).to(mask_BR.device)
    return torch.zeros(mask_BR.shape, device=mask_BR.device).masked_scatter(mask_BR, flat)
